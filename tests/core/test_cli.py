from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from mi_ml_gen.core import cli, config, errors
from mi_ml_gen.core.errors import nearest


def script(body: str, *argv: str, **options) -> subprocess.CompletedProcess:
    """Run `main(argv)` with this body as a script of its own."""
    return subprocess.run(
        [sys.executable, "-c", program(body), *argv], capture_output=True, text=True, timeout=120, **options
    )


def program(body: str) -> str:
    lines = ["import errno, os, signal, sys", "from mi_ml_gen.core import cli", "from mi_ml_gen.core.errors import *"]
    return "\n".join([*lines, "def main(argv):", textwrap.indent(body, "    "), "cli.run(main)"])


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("pass", 0, ""),
        ("return 7", 7, ""),
        ("sys.exit(9)", 9, ""),
        ("raise UsageError('--chunks 9_1: wrong')", 2, "error: --chunks 9_1: wrong"),
        ("raise UnsafeCheckpointError('x.pth: calls os.system')", 3, "error: x.pth: calls os.system"),
        ("raise CorruptCheckpointError('x.pth: cut short')", 3, "error: x.pth: cut short"),
        ("raise EnvironmentFault('a\\n  b')", 4, "error: a b"),
        ("raise NonFiniteError('loss')", 5, "error: loss"),
        ("raise Preempted('at step 3')", 75, "stopped: at step 3"),
        ("raise MiMlGenError('x')", 1, "error: x"),
        ("raise KeyboardInterrupt", 130, "interrupted"),
        ("raise OSError(errno.ENOSPC, 'No space left', '/a/b')", 4, "error: /a/b: No space left"),
        ("raise OSError(errno.EROFS, 'Read-only file system')", 4, "error: Read-only file system"),
        ("raise PermissionError(errno.EACCES, 'Permission denied', 'f')", 4, "error: f: Permission denied"),
        ("open('/no/such/file')", 2, "error: /no/such/file: No such file or directory"),
        ("raise TimeoutError('no answer')", 4, "error: no answer"),
        ("raise MemoryError", 4, "error: out of memory: this machine has no more"),
        ("import no_such_package", 4, "error: the package no_such_package is not installed"),
        ("{}['k']", 1, "error: KeyError: 'k' (unforeseen; --debug shows where)"),
        ("cli.Parser(prog='p').parse_args(argv)", 2, "error: unexpected argument 'stray' (see p --help)"),
    ],
)
def test_one_line_and_exit_code(body, code, line):
    done = script(body, *(["stray"] if "parse_args" in body else []))
    assert (done.returncode, done.stderr) == (code, line + "\n" if line else "")


def test_torch_out_of_memory():
    raised = "class OutOfMemoryError(RuntimeError): pass\nraise OutOfMemoryError('CUDA out of memory')"
    assert script(raised).returncode == 4
    done = script("import torch\ntorch.empty(2**60, dtype=torch.uint8)")
    assert done.returncode == 4
    assert done.stderr.startswith("error: out of memory:") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (
            "AcceleratorError",
            "CUDA error: an illegal memory access was encountered\nSearch for cudaErrorIllegalAddress",
        ),
        ("RuntimeError", "CUDA error: unspecified launch failure"),
        ("RuntimeError", "CUDA driver error: unknown error"),
        ("RuntimeError", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        ("RuntimeError", "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        ("RuntimeError", "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`"),
        ("RuntimeError", "HIP error: invalid device function"),
        ("RuntimeError", "Found no NVIDIA driver on your system."),
        ("RuntimeError", "No CUDA GPUs are available"),
        ("RuntimeError", "NCCL communicator was aborted on rank 1. Original reason for failure was: timeout"),
        ("DistBackendError", "NCCL error in: ProcessGroupNCCL.cpp:94, unhandled cuda error"),
    ],
)
def test_faults_of_a_device(kind, text):
    """As torch raises them; torch itself is not imported for it."""
    error = type(kind, (RuntimeError,), {})(text)
    known = cli.as_known(error)
    assert known is not None and known.exit_code == 4
    assert text.splitlines()[0] in str(known) and "\n" not in str(known)


@pytest.mark.parametrize(
    "text", ["CUDA error: device-side assert triggered", "mat1 and mat2 shapes cannot be multiplied"]
)
def test_faults_of_the_program_are_no_faults_of_a_device(text):
    assert cli.as_known(RuntimeError(text)) is None


def test_debug_shows_the_traceback_and_is_kept_from_main():
    done = script("print(argv)\nraise UsageError('wrong')", "--a", "--debug", "b")
    assert done.stdout.strip() == "['--a', 'b']"
    assert done.returncode == 2
    assert "Traceback" in done.stderr and done.stderr.endswith("error: wrong\n")


def test_warnings_are_one_line():
    done = script("import logging\nlogging.getLogger('mi_ml_gen.core.runs').warning('a\\nb %s', 3)")
    assert done.stderr == "warning: a b 3\n"


def test_other_ranks_say_who_they_are():
    done = script("raise UsageError('wrong')", env=os.environ | {"RANK": "3"})
    assert done.stderr == "error: wrong (rank 3)\n"


def test_sigterm_leaves_with_blocks_in_order():
    body = """
    try:
        print("ready", flush=True)
        signal.pause()
    finally:
        print("cleaned", flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", program(textwrap.dedent(body))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (143, "cleaned\n", "terminated\n")


def test_a_reader_that_leaves_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-c", program("for i in range(10**6): print(i)")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 141


def test_failing_scripts_need_no_torch():
    assert script("print('torch' in sys.modules)").stdout == "False\n"


def test_nearest():
    assert nearest("lr_wakl", ["lr_walk", "seed"], "key") == "; nearest known key: lr_walk"
    assert nearest("zzz", ["lr_walk", "seed"], "key") == "; known keys: lr_walk, seed"
    assert nearest("zzz", [f"k{i}" for i in range(99)], "key") == ""


def test_exit_codes():
    codes = {"UsageError": 2, "CheckpointError": 3, "UnsafeCheckpointError": 3, "CorruptCheckpointError": 3}
    codes |= {"EnvironmentFault": 4, "NonFiniteError": 5, "Preempted": 75, "MiMlGenError": 1}
    assert {name: getattr(errors, name).exit_code for name in codes} == codes
    assert issubclass(errors.UsageError, ValueError)


def test_a_size_beyond_all_memory_is_no_fault_of_ours():
    import numpy as np
    import torch

    for make in (
        lambda: torch.empty(2**62, 8),
        lambda: torch.zeros(2**62),
        lambda: np.zeros((2**62, 8)),
        lambda: np.zeros(2**80),
        lambda: [0] * 2**70,
    ):
        with pytest.raises((RuntimeError, ValueError, OverflowError, MemoryError)) as caught:
            make()
        known = cli.as_known(caught.value)
        assert isinstance(known, errors.EnvironmentFault) and "out of memory" in str(known), caught.value


def test_advice_of_a_flag_that_the_command_lacks_says_so(monkeypatch, capsys):
    parser = cli.Parser(prog="x")
    parser.add_argument("--skip-bad")
    parser.add_argument("--report-only")
    parser.parse_args([])

    def said(text: str) -> str:
        cli._report(errors.UsageError(text))
        return capsys.readouterr().err.strip()

    monkeypatch.setattr(sys, "argv", ["x", "--sed", "3"])
    assert said("a bad image; leave it out with --skip_bad") == "error: a bad image; leave it out with --skip_bad"
    assert said("a bad image; choose --loader torch").endswith("--loader torch (this command has no --loader)")
    assert said("leave out --report-only") == "error: leave out --report-only"
    for text in ("unknown flag --sed", "run pip install --no-deps x", "see scripts/y.py --all", "a -- b"):
        assert said(text) == f"error: {text}"


@dataclasses.dataclass
class Few:
    """Settings."""

    n: int = config.option(3, at_least=1, help="a number")

    def check(self) -> None:
        if self.n == 7:
            raise errors.UsageError("--n 7: is refused")


def test_begin_reads_checks_and_answers_a_dry_run(capsys):
    begun = cli.begin(["--n", "4", "--report-only"], "About.", Few, cli.add_report_only)
    assert begun is not None
    settings, arguments = begun
    assert settings == Few(n=4) and arguments.report_only
    assert cli.begin(["--n", "5", "--dry-run"], "About.", Few) is None
    assert capsys.readouterr().out == "n: 5\n"
    for argv in (["--n", "7"], ["--n", "7", "--dry-run"]):
        with pytest.raises(errors.UsageError, match="--n 7"):
            cli.begin(argv, "About.", Few)
    with pytest.raises(errors.UsageError, match="unknown flag --report-only"):
        cli.begin(["--report-only"], "About.", Few)


@pytest.mark.parametrize("argv", [None, ["--out", "a b"]])
def test_the_command_that_a_script_writes_down_has_its_flags(monkeypatch, argv):
    monkeypatch.setattr("sys.argv", ["scripts/quickstart.py", "--out", "a b"])
    assert cli.called("quickstart", argv) == "python scripts/quickstart.py --out 'a b'"
    monkeypatch.setattr("sys.argv", ["mi-ml-gen quickstart", "--out", "a b"])
    assert cli.called("quickstart", argv) == "mi-ml-gen quickstart --out 'a b'"
