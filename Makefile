# make quickstart   an environment in .venv, then Table 1 of the bundled generators, as a page to look at
#                   (TORCH=cpu takes torch's CPU build, 5 GB smaller, where the package index offers it)
# make test         the test suite
# make test-oldest  the same with Python 3.10 and the oldest versions that pyproject.toml allows, in .venv-oldest
# make test-wheel   a wheel, installed with what it needs in an empty environment, and used there
# make torture      every case of the fault harness, into docs/reliability.md; stopped, the same command goes on
# make lint         ruff and mypy
# make doctor       what works on this machine, and which command mends what does not
# make bench        timings against the plain way, one table in bench/results/cpu.md (ARGS=--quick: in some minutes)
# make bench-gpu    the tests that need a GPU and the times of training steps on it, into bench/results/gpu.md
# make house        how the code is laid out, in numbers

PYTHON ?= python3
TORCH ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test test-oldest test-wheel torture lint doctor bench bench-gpu house clean

quickstart: $(STAMP)
	$(BIN)/python scripts/quickstart.py

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

# Both need uv, which finds or fetches the Python and knows how to choose the oldest versions.
OLDEST := .venv-oldest
OLDEST_PYTHON ?= 3.10
TESTS ?=

test-oldest: $(STAMP)
	test -x $(OLDEST)/bin/python || $(BIN)/python -m uv venv --quiet --python $(OLDEST_PYTHON) $(OLDEST)
	$(BIN)/python -m uv pip install --quiet --resolution lowest-direct --python $(OLDEST)/bin/python -e '.[dev]'
	$(BIN)/python -m uv pip check --python $(OLDEST)/bin/python
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n auto --maxprocesses 8 --dist loadfile $(TESTS)

WHEEL := build/wheel

test-wheel: $(STAMP)
	rm -rf $(WHEEL)
	$(BIN)/python -m uv build --quiet --wheel --out-dir $(WHEEL)/dist
	$(BIN)/python -m uv venv --quiet --python $(BIN)/python $(WHEEL)/venv
	$(BIN)/python -m uv pip install --quiet --python $(WHEEL)/venv/bin/python $(WHEEL)/dist/*.whl
	$(BIN)/python -m uv pip check --python $(WHEEL)/venv/bin/python
	cd $(WHEEL) && venv/bin/mi-ml-gen --version && venv/bin/mi-ml-gen train-navigator --generator tiny-bigbigan \
	  --chunks 0_1 --num_samples 64 --batch_size 8 --device cpu --save_folder runs

torture: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.torture $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

doctor: $(STAMP)
	$(BIN)/python scripts/doctor.py

bench: $(STAMP)
	$(BIN)/python -m bench.run $(ARGS)

bench-gpu: $(STAMP)
	bench/gpu.sh

# uv installs the same packages as pip, in a fraction of the time. Where uv cannot be had, pip installs them.
# Only uv can choose a build of torch; where the index has no such build, the ordinary one is installed.
UV := $(BIN)/python -m uv pip install --quiet --python $(BIN)/python -e '.[dev]'

$(STAMP): pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv || true
	if ! $(BIN)/python -m uv --version >/dev/null 2>&1; then $(BIN)/python -m pip install --quiet -e '.[dev]'; \
	elif [ -n "$(TORCH)" ] && $(UV) --torch-backend $(TORCH); then echo "torch: the $(TORCH) build"; \
	else [ -z "$(TORCH)" ] || echo "no $(TORCH) build of torch could be installed; installing the ordinary one"; $(UV); fi
	touch $@

house:
	$(PYTHON) bench/house.py

clean:
	rm -rf $(VENV) $(OLDEST) quickstart build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
