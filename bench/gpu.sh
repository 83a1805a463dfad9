#!/usr/bin/env bash
# For whoever has a GPU: runs the tests on it, times every training step beside the plain way, and writes
# bench/results/gpu.json and gpu.md, in under ten minutes. bench/gpu.py says what is measured.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=python3
exec "$python" -m bench.gpu "$@"
