"""The doctor, run as a user runs it on machines that have one thing wrong: what it says, and what it exits with."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mi_ml_gen.hub import doctor
from mi_ml_gen.hub import fetching as hub
from mi_ml_gen.hub.assets import WebFile, assets
from mi_ml_gen.hub.downloads import hashes_of

ROOT = Path(__file__).parents[2]
TORCH = """
__version__ = "2.12.0"
class version: cuda = None
class cuda:
    is_available = staticmethod(lambda: False)
class distributed:
    is_gloo_available = staticmethod(lambda: True)
def zeros(*shape): return shape
"""
TORCHVISION = """
__version__ = "0.27.0"
class ops:
    nms = staticmethod(lambda boxes, scores, threshold: None)
"""


@pytest.fixture
def machine(tmp_path):
    """Stand-ins for torch and torchvision, in a folder of packages that comes before all others."""
    place = tmp_path / "packages"
    for name, source in (("torch", TORCH), ("torchvision", TORCHVISION)):
        add(place, name, source)
    return place


def add(place: Path, name: str, source: str, version: str | None = None) -> None:
    (place / name).mkdir(parents=True, exist_ok=True)
    (place / name / "__init__.py").write_text(source)
    if version is not None:
        about = place / f"{name}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def run(packages: Path, **environment: str) -> tuple[int, str]:
    """Exit code and output of the script, without torchrun; nothing may go to stderr."""
    around = {
        **os.environ,
        "PYTHONPATH": str(packages),
        "COLUMNS": "100",
        "HF_HOME": str(packages.parent),
        **environment,
    }
    words = [sys.executable, str(ROOT / "scripts" / "doctor.py"), "--quick"]
    done = subprocess.run(words, env=around, capture_output=True, text=True, timeout=120, cwd=packages.parent)
    assert done.stderr == ""
    return done.returncode, done.stdout


def line(output: str, name: str) -> str:
    """State and words of a finding, with its command, in one line."""
    rows = re.split(r"\n(?=  \w)|\n\n", output)
    found = [" ".join(row.split()) for row in rows if re.match(rf"(.*\n)?  \w+ +{re.escape(name)}  ", row)]
    assert len(found) == 1, (name, output)
    return found[0].partition(" ")[0] + ": " + found[0].split(f" {name} ", 1)[1]


def test_a_machine_without_gpu_and_ffcv_is_well(machine):
    hidden = "import sys\nsys.modules['ffcv'] = None\n"  # also where it is installed
    (machine / "sitecustomize.py").write_text(hidden)
    code, output = run(machine)
    assert code == 0 and output.endswith("\nall that is required works\n")
    assert line(output, "torch") == "ok: 2.12.0, built without CUDA"
    assert line(output, "torchvision") == "ok: 0.27.0"
    assert line(output, "GPU").startswith("none: everything runs on the CPU")
    assert line(output, "tiny-bigbigan") == "ok: comes with the package, intact"
    assert line(output, "ffcv").startswith("none: reads .beton files faster") and "[ffcv]'" in line(output, "ffcv")
    rows = [row for row in output.splitlines() if re.match(r"  (ok|none|warn|fail) ", row)]
    assert len(rows) > 20 and {row[8 + len(row[8:].split("  ")[0]) :][:2] for row in rows} == {"  "}
    starts = {re.match(r"  \w+ +\S+(?: \S+)* {2,}", row).end() for row in rows}
    assert len(starts) == 1  # aligned
    assert [row for row in output.splitlines()[1:] if not {"->", "cache"} & set(row.split()) and len(row) > 100] == []


@pytest.mark.parametrize(
    ("version", "code", "says"),
    [
        ("1.13.1", 4, "fail: 1.13.1, built without CUDA: must be 2.6 or later"),
        ("2.5.1+cu124", 4, "fail: 2.5.1+cu124, built without CUDA: must be 2.6 or later"),
        ("2.6.0", 0, "warn: 2.6.0, built without CUDA: before 2.10"),
        ("2.10.0", 0, "ok: 2.10.0"),
        ("2.12.0a0+git123", 0, "ok: 2.12.0a0+git123"),
    ],
)
def test_versions_of_torch(machine, version, code, says):
    add(machine, "torch", TORCH.replace("2.12.0", version))
    found, output = run(machine)
    assert found == code and line(output, "torch").startswith(says)
    assert ("--upgrade torch torchvision" in output) == (not says.startswith("ok"))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("raise ModuleNotFoundError(\"No module named 'torch'\")", "fail: is not installed -> "),
        ("raise ImportError('libcudart.so.12: cannot open')", "fail: cannot be imported: ImportError: libcudart.so.12"),
        ("import os; os.kill(os.getpid(), 11)", "fail: cannot be imported: importing it ends the process"),
        ("import sys; sys.exit(3)", "fail: cannot be imported: SystemExit: 3"),
        ("syntax error", "fail: cannot be imported: SyntaxError"),
        ("", "fail: cannot be imported: AttributeError"),
    ],
    ids=["absent", "library", "killed", "exits", "syntax", "empty"],
)
def test_a_torch_that_cannot_be_imported(machine, source, says):
    add(machine, "torch", source)
    code, output = run(machine)
    assert code == 4 and line(output, "torch").startswith(says)
    assert "install" in line(output, "torch") and "1 problem to mend" in output.replace("2 problems", "1 problem")
    assert line(output, "tiny-bigbigan").startswith("ok")  # the rest is looked at all the same


def test_a_torchvision_that_does_not_fit(machine):
    add(machine, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    code, output = run(machine)
    assert code == 4 and "1 problem to mend" in output
    says = "fail: does not fit this torch, of another version or built for something else: RuntimeError: operator"
    assert line(output, "torchvision").startswith(says)
    assert "--force-reinstall torch torchvision" in line(output, "torchvision")


def test_packages_that_are_old_or_absent(machine):
    add(machine, "safetensors", "class SafetensorError(Exception): pass", version="0.2.0")
    code, output = run(machine)
    assert code == 4 and line(output, "safetensors").startswith(
        f"fail: 0.2.0: must be {doctor.REQUIRED['safetensors']} or later"
    )
    assert doctor._versioned("scipy", None).says == "is not installed"
    assert doctor._versioned("scipy", "1.9.3").mend.endswith("--upgrade 'scipy>=1.10'")
    assert doctor._versioned("scipy", "1.10").state == "ok"


def test_an_ffcv_without_its_libraries(machine):
    add(machine, "ffcv", "raise ImportError('libopencv_imgproc.so.4.5: cannot open')", version="1.0.2")
    code, output = run(machine)
    assert code == 0 and "1 warning" in output
    assert line(output, "ffcv").startswith("warn: is installed and cannot be imported: ImportError: libopencv_imgproc")
    assert "apt-get install libopencv-dev libturbojpeg0-dev pkg-config && " in line(output, "ffcv")


def test_caches_that_cannot_be_used(machine, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for home, says in (
        (tmp_path / "file", f"fail: {tmp_path}/file is a file, not a folder -> mv {tmp_path}/file {tmp_path}/file.old"),
        (tmp_path / "link", f"fail: {tmp_path}/link is a link to nothing"),
        ("/proc/mi_ml_gen", "fail: /proc cannot be written"),
    ):
        code, output = run(machine, HF_HOME=str(home))
        assert code == 4 and line(output, "cache").startswith(says), output
    code, output = run(machine, HF_HOME=str(tmp_path / "new"))
    assert code == 0 and not (tmp_path / "new").exists()  # looking leaves nothing behind
    code, output = run(machine, HF_HOME="/proc/no", HF_HUB_CACHE=str(tmp_path / "own"))
    assert line(output, "cache").startswith(f"ok: {tmp_path}/own")


NO_FCNTL = """
import sys, warnings
warnings.filterwarnings("ignore", message="only soft file lock")  # of filelock, which knows that this is no Windows
class No:
    def find_spec(self, name, path=None, target=None):
        if name == "fcntl":
            raise ModuleNotFoundError("No module named 'fcntl'", name="fcntl")
sys.modules.pop("fcntl", None)
sys.meta_path.insert(0, No())
"""
NO_HOME = """
import os, pwd
def nobody(number):
    raise KeyError(number)
pwd.getpwuid = nobody
for name in ("HOME", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "MI_ML_GEN_CACHE"):
    os.environ.pop(name, None)
"""
NO_LOCKS = """
import errno, fcntl, os
def flock(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
fcntl.flock = flock
"""


@pytest.mark.parametrize(
    ("begins", "code", "name", "says"),
    [
        (NO_FCNTL, 4, "system", "fail: this Python has no file locks"),
        (NO_HOME, 0, "cache", "warn: this user has no home folder"),
        (NO_LOCKS, 0, "this folder", "has no file locks (No locks available)"),
    ],
)
def test_systems_users_and_disks_that_lack_something(machine, begins, code, name, says):
    (machine / "sitecustomize.py").write_text(begins)
    found, out = run(machine)
    assert found == code and says in line(out, name), out


def test_a_damaged_generator_of_the_package(machine):
    shutil.copytree(ROOT / "mi_ml_gen", machine / "mi_ml_gen", ignore=shutil.ignore_patterns("__pycache__"))
    pretrained = machine / "mi_ml_gen" / "generators" / "pretrained"
    content = bytearray((pretrained / "tiny-bigbigan.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (pretrained / "tiny-bigbigan.safetensors").write_bytes(content)
    (pretrained / "tiny-nvae.safetensors.sha256").write_bytes(b"\xff\xfe" * 40)
    code, output = run(machine)
    assert "damaged, not what tiny-nvae.safetensors.sha256 says" in line(output, "tiny-nvae")
    assert code == 4 and f"at {machine}" in output
    assert "safetensors: damaged, not what tiny-bigbigan.safetensors.sha256 says" in line(output, "tiny-bigbigan")
    assert "--force-reinstall --no-deps mi_ml_gen" in line(output, "tiny-bigbigan")
    for path in pretrained.iterdir():
        path.unlink()
    code, output = run(machine)
    assert code == 4 and line(output, "bundled").startswith("fail: no generators are in")


def test_a_gpu_that_torch_does_not_see(machine, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '560.35.03, NVIDIA T4'; echo '560.35.03, NVIDIA T4'\n")
    tool.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    code, output = run(machine, PATH=path)
    assert code == 0 and line(output, "driver") == "ok: 560.35.03, 2 GPUs"
    assert line(output, "CUDA").startswith("warn: a GPU is there, and this torch is built without CUDA -> ")
    add(machine, "torch", TORCH.replace("cuda = None", 'cuda = "12.4"'))
    assert "a GPU is there, and torch does not see it: driver too old" in line(run(machine, PATH=path)[1], "CUDA")


def test_gpus_and_one_that_cannot_compute():
    facts = {"torch": "2.12.0", "cuda": "12.4", "available": True, "gpus": [["A", 1e9, 2e9]], "bf16": False}
    found = {finding.name: finding for finding in doctor._gpus({**facts, "computes": True})}
    assert found["cuda:0"].says == "A, 1.0 GB of 2.0 GB free; no bf16: --precision fp32" and "CUDA" not in found
    found = {finding.name: finding for finding in doctor._gpus({**facts, "computes_error": "no kernel image"})}
    assert found["CUDA"].state == "fail" and "cannot compute: no kernel image" in found["CUDA"].says


def test_artifacts_that_were_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("MI_ML_GEN_CACHE", str(tmp_path))
    artifact = next(one for one in assets().artifacts.values() if isinstance(one.where, WebFile) and not one.sha256)
    (found,) = [finding for finding in doctor._fetched() if finding.name in (artifact.name, "fetched")]
    assert found.says.startswith("0 of ")
    path = hub.web_target(artifact.where, artifact, None)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    hub._seen.add(artifact.name, sha256=hashes_of(path).sha256.hexdigest(), size_bytes=7)
    states = {finding.name: finding for finding in doctor._fetched()}
    assert states[artifact.name] == ("Weights", artifact.name, "ok", str(path), "")
    assert states["fetched"].says.startswith("1 of ")
    path.write_bytes(b"weight5")
    states = {finding.name: finding for finding in doctor._fetched()}
    assert states[artifact.name].state == "warn" and "SHA-256" in states[artifact.name].says
    assert states[artifact.name].mend == f"python -m mi_ml_gen download_pretrained {artifact.name}"
    (tmp_path / "seen.json").write_text("{")
    (broken,) = doctor._fetched()
    assert broken.state == "warn" and "seen.json: cannot be read" in broken.says


def test_two_processes_by_torchrun():
    (found,) = doctor._two_processes({"torch": "2"})
    assert found.state == "ok", found
    assert list(doctor._two_processes({})) == []  # nothing to try without torch


def test_a_torchrun_that_fails_is_a_warning(machine, monkeypatch):
    add(machine, "torch", TORCH.replace("class distributed", "class _"))
    add(machine, "torch/distributed", "")
    (machine / "torch" / "distributed" / "run.py").write_text("raise RuntimeError('name resolution failed')")
    monkeypatch.setenv("PYTHONPATH", str(machine))
    (found,) = doctor._two_processes({"torch": "2"})
    assert found.state == "warn" and "RuntimeError: name resolution failed" in found.says and found.mend
    assert doctor.is_well([found])


def test_what_is_required_is_what_the_package_declares():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = dict(
        re.findall(r'^    "([\w-]+)>=([\d.]+)"', text.partition("dependencies = [")[2].partition("]")[0], re.M)
    )
    assert declared.pop("torch") == ".".join(map(str, doctor.TORCH))
    assert {name: version for name, version in declared.items() if name != "tomli"} == doctor.REQUIRED
    assert f'requires-python = ">={".".join(map(str, doctor.PYTHON))}"' in text
    for extra, packages in doctor.EXTRAS.items():
        (line_of,) = re.findall(rf"^{extra} = \[(.*)\]$", text, re.M)
        assert set(packages) <= set(re.findall(r'"([\w-]+)', line_of))


def test_nothing_heavy_is_imported():
    heavy = ("torch", "numpy", "yaml", "huggingface_hub")
    program = f"import sys, mi_ml_gen.hub.doctor; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done
