"""How a script begins and ends: `cli.run(main)` turns every failure into one line on stderr and an exit code.

0 done | 1 a fault of ours | 2 wrong usage | 3 a file refused | 4 the environment | 5 non-finite training
75 preempted, the same command resumes | 130 interrupted | 141 nobody reads our output | 143 terminated
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NoReturn, TypeVar

from mi_ml_gen.core import config, locks, threads
from mi_ml_gen.core.errors import CorruptCheckpointError, EnvironmentFault, MiMlGenError, Preempted, UsageError, nearest

INTERRUPTED, BROKEN_PIPE, TERMINATED = 130, 141, 143

Main = Callable[[Sequence[str] | None], int | None]
C = TypeVar("C")


class Parser(argparse.ArgumentParser):
    """argparse, but what is wrong with a command line is raised as UsageError, in one line, and an unknown
    flag is answered with the nearest known one. Flags are never guessed from their beginnings.

    A system that is not supported is refused once the flags are read, so --help works anywhere; works_anywhere: not
    even then.
    """

    def __init__(self, works_anywhere: bool = False, **options):
        self._works_anywhere = works_anywhere
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("epilog", "--debug shows the traceback of an error.")
        super().__init__(allow_abbrev=False, **options)
        # argparse takes "-1e-3" for a flag: its own pattern of a negative number knows no exponent.
        self._negative_number_matcher = re.compile(r"^-\d+$|^-\d*\.?\d+(e[-+]?\d+)?$", re.IGNORECASE)

    declared: ClassVar[set[str]] = set()
    """Flags of the command line that was read last, with underscores."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def parse_args(self, args=None, namespace=None):
        words = sys.argv[1:] if args is None else args
        Parser.declared = {name.replace("-", "_") for name in self._option_string_actions}
        namespace, unknown = self.parse_known_args(self._as_declared(words), namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            if not flag.startswith("--"):
                self.error(f"unexpected argument {flag!r}")
            shown = [action for action in self._actions if action.help != argparse.SUPPRESS]
            known = [name for action in shown for name in action.option_strings if name.startswith("--")]
            self.error(f"unknown flag {flag}{nearest(flag, known, 'flag')}")
        if not self._works_anywhere:
            locks.check_system()
        return namespace

    def _as_declared(self, words: Sequence[str]) -> list[str]:
        """The words with flags spelled as they were declared: a dash may stand for an underscore, and the reverse."""
        declared = {name.replace("-", "_"): name for name in self._option_string_actions if name.startswith("--")}
        found = []
        for word in words:
            flag, equals, value = word.partition("=")
            if flag.startswith("--") and flag not in self._option_string_actions:
                flag = declared.get(flag.replace("-", "_"), flag)
            found.append(flag + equals + value)
        return found


def run(main: Main) -> NoReturn:
    """Run a script's `main(argv)` on the command line and exit. `--debug` anywhere on it asks for
    tracebacks."""
    argv = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(argv) < len(sys.argv) - 1
    logging.basicConfig(handlers=[_OneLineHandler()], force=True)
    logging.getLogger("mi_ml_gen").setLevel(logging.INFO)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _raise_terminated)
    code: Any = 0
    try:
        threads.prepare()
        code = main(argv)
        sys.stdout.flush()
    except SystemExit as request:  # argparse's --help, or a main that exits itself
        code = request.code
    except BaseException as error:
        if debug:
            traceback.print_exc()
        code = _report(error)
    sys.exit(code)


def begin(
    argv: Sequence[str] | None,
    about: str | None,
    settings: type[C],
    more: Callable[[Parser], object] | None = None,
) -> tuple[C, argparse.Namespace] | None:
    """The settings that a command line says, and all that was read of it, for a script whose flags are the fields of
    `settings`, what `more` declares, and --dry-run. None for a dry run, which has then been answered.

    about: the text of --help. The settings' own `check`, where they have one, sees them first. A script whose settings
    depend on other flags puts the same parts together itself.
    """
    parser = Parser(description=about)
    config.add_arguments(parser, settings)
    if more is not None:
        more(parser)
    add_dry_run(parser)
    arguments = parser.parse_args(argv)
    found = config.from_arguments(settings, arguments)
    check = getattr(found, "check", None)
    if check is not None:
        check()
    if is_dry_run(arguments, found):
        return None
    loading()
    return found, arguments


def add_report_only(parser: Parser) -> None:
    """Declare --report-only, for a queue of trainings."""
    about = "train nothing; write table and page of what is there"
    parser.add_argument("--report-only", action="store_true", help=about)


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Declare --dry-run, which `is_dry_run` answers."""
    parser.add_argument("--dry-run", action="store_true", help="check the settings, print them, and stop")


def is_dry_run(arguments: argparse.Namespace, settings: Any, found: Sequence[str] = ()) -> bool:
    """Whether --dry-run was given; if so, the settings are printed as YAML by the names of their flags, in a form that
    --config reads, under comments with what was `found`."""
    if arguments.dry_run:
        for line in found:
            print(f"# {line}")
        print(config.to_yaml(settings, as_flags=True), end="")
    return arguments.dry_run


def command(script: str, *words: str) -> str:
    """A command line of a script, as the one that runs now was called: by mi-ml-gen, or from a checkout."""
    is_installed = sys.argv[0].startswith("mi-ml-gen ")
    return shlex.join([*(["mi-ml-gen", script] if is_installed else ["python", f"scripts/{script}.py"]), *words])


def called(script: str, argv: Sequence[str] | None) -> str:
    """The command line that a script was called by, for what it writes. argv: what its `main` was given."""
    return command(script, *(sys.argv[1:] if argv is None else argv))


def loading(what: str = "torch") -> None:
    """Say "loading torch ..." on a terminal, before an import that takes seconds.

    Nothing is said where the module is loaded already, where stderr is a file or a pipe, whose only line is an error's,
    and by processes of torchrun but the first.
    """
    if what not in sys.modules and sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        print(f"loading {what} ...", file=sys.stderr, flush=True)


class _Terminated(BaseException):
    """SIGTERM as an exception, so that `with` blocks are left in order."""


class _OneLineHandler(logging.StreamHandler):
    """Log records as "warning: what happened" on stderr; what is only information as it is."""

    def format(self, record: logging.LogRecord) -> str:
        if record.levelno <= logging.INFO:
            return _one_line(record.getMessage())
        return f"{record.levelname.lower()}: {_one_line(record.getMessage())}"


def _raise_terminated(signum, frame) -> NoReturn:
    raise _Terminated


def _report(error: BaseException) -> int:
    """Print the one line that `error` deserves; returns the exit code."""
    if isinstance(error, BrokenPipeError):
        # The interpreter flushes stdout once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    if isinstance(error, KeyboardInterrupt):
        return _say("interrupted", INTERRUPTED)
    if isinstance(error, _Terminated):
        return _say("terminated", TERMINATED)
    if isinstance(error, Preempted):
        return _say(f"stopped: {error}", error.exit_code)
    known = as_known(error)
    if known is None:
        return _say(f"error: {type(error).__name__}: {error} (unforeseen; --debug shows where)", 1)
    return _say(f"error: {known}{_without_flags(str(known))}", known.exit_code)


def _without_flags(text: str) -> str:
    """What to add to an error of a room that many commands use, where it advises a flag that this one does not have."""
    if not Parser.declared or re.search(r"pip install|scripts/|torchrun", text):  # other programs' flags
        return ""
    given = " ".join(sys.argv).replace("-", "_")
    named = dict.fromkeys(re.findall(r"(?<![\w-])--[A-Za-z](?:[\w-]*\w)?", text))
    lacking = [flag for flag in named if (own := flag.replace("-", "_")) not in Parser.declared and own not in given]
    return f" (this command has no {' and no '.join(lacking)})" if lacking else ""


def as_known(error: BaseException) -> MiMlGenError | None:
    """The error of ours that says what an exception of Python or torch means to a user, or None."""
    if isinstance(error, MiMlGenError):
        return error
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("mi_ml_gen"):
        return EnvironmentFault(f"the package {error.name} is not installed")
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        wrong_path = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
        return (UsageError if wrong_path else EnvironmentFault)(f"{where}{error.strerror or error}")
    if isinstance(error, RecursionError) and _in_reader(error):
        return CorruptCheckpointError("a file's values are nested too deeply to be read")
    # By name: a script that never needed torch should not import it in order to fail.
    classes = {base.__name__ for base in type(error).__mro__}
    text = str(error)
    if classes & {"MemoryError", "OutOfMemoryError"} or "DefaultCPUAllocator" in text:
        return EnvironmentFault(f"out of memory: {text or 'this machine has no more'}")
    if classes & {"RuntimeError", "ValueError", "OverflowError"} and _TOO_LARGE.search(text):
        return EnvironmentFault(f"out of memory: a size in the settings is too large: {text.strip().splitlines()[0]}")
    if "DistError" in classes or ("RuntimeError" in classes and any(name in text for name in ("gloo", "NCCL"))):
        return EnvironmentFault(f"lost the connection to the other processes: {text}")
    if "RuntimeError" in classes and _DEVICE_FAULT.search(text) and "device-side assert" not in text:
        return EnvironmentFault(f"the device failed: {text.strip().splitlines()[0]}")
    return None


_TOO_LARGE = re.compile(
    r"Storage size calculation overflowed|integer multiplication overflow|Maximum allowed dimension exceeded"
    r"|array is too big|cannot fit 'int' into an index-sized integer"
)
"""What torch, NumPy and Python say of a size that not even its number of bytes can be counted of."""
_DEVICE_FAULT = re.compile(
    r"\b(CUDA|HIP|cuDNN|MIOpen|cuBLAS|cublasLt|cusolver|cufft|cusparse|MPS) (driver |runtime |backend )?error\b"
    r"|\b(CUDNN|CUBLAS|CUSOLVER|CUFFT|CUSPARSE)_STATUS_\w+|No CUDA GPUs are available|no NVIDIA driver",
    re.IGNORECASE,
)
"""How torch begins what a driver or a library of the device reports. An assertion on the device is none of these: it is
an index out of range, a fault of the program."""


def _in_reader(error: BaseException) -> bool:
    """Whether an error arose in a parser of JSON or YAML."""
    modules = {frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)}
    return any(module.partition(".")[0] in ("json", "yaml") for module in modules)


def _say(line: str, code: int) -> int:
    rank = os.environ.get("RANK", "0")
    where = f" (rank {rank})" if rank != "0" else ""
    print(_one_line(line) + where, file=sys.stderr, flush=True)
    return code


def _one_line(text: str) -> str:
    return " ".join(text.split())
