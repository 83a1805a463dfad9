"""scripts/download_pretrained.py as a user calls it, against a Hub on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from mi_ml_gen.generators.registry import save_generator
from mi_ml_gen.hub import catalogue, downloads
from mi_ml_gen.hub.assets import assets
from mi_ml_gen.latents import Chunks
from mi_ml_gen.walkers.files import save_walker
from mi_ml_gen.walkers.learned import NonlinearWalker
from mi_ml_gen.walkers.spec import load_walker
from tests.conftest import GOLDEN, make_small_generator
from tests.hub.test_fetching import gets, set_offline
from tests.hub_server import Fault, HubServer, hub
from tests.scripts.test_scripts import call

__all__ = ["hub"]  # the fixture

ROOT = Path(__file__).parents[2]
WALKER = (GOLDEN / "fixtures" / "walker_bigbigan_1_6.pth").read_bytes()
W_1_6 = "runs/walkers/bigbigan_chunksgt0/w_COPGen_120000.pth"
CHUNK_0 = "runs/walkers/bigbigan_chunks/chunk0/w_COPGen_4096.pth"
ENCODER = "runs/encoders/bigbigan_simsiam/encoder_imagenet_chunks_learned/last.ckpt"


@pytest.fixture
def published(hub: HubServer, monkeypatch) -> HubServer:
    monkeypatch.setattr(downloads, "PAUSES_S", (0.01,) * 4)
    monkeypatch.setattr(catalogue, "PATIENCE_S", 60.0)
    hub.add("SerezD/mi_ml_gen", {W_1_6: WALKER, CHUNK_0: WALKER, ENCODER: b"e" * 2000, "README.md": b"hello"})
    hub.add("SerezD/NVAE-from-scratch", {"cifar10/last.pt": b"n" * 70_000})
    return hub


@pytest.fixture
def run(monkeypatch, capsys):
    return lambda *argv: call(monkeypatch, capsys, "download_pretrained", *argv)


def test_the_list_offline_is_the_table(published, run, monkeypatch):
    set_offline(monkeypatch)
    code, out, err = run("--list")
    assert (code, err) == (0, "") and published.requests == []
    for name, artifact in assets().artifacts.items():
        assert f"  {name}  (" in out and artifact.licence in out
    for folder in assets().folders:
        assert f"  {folder.where}  (not listed)" in out
    assert "walker      walker-bigbigan-copgen  (119.1 kB)" in out


def test_the_list_online_is_what_the_repositories_hold(published, run):
    code, out, err = run("--list")
    assert (code, err) == (0, "")
    assert "walker      walker-bigbigan-1_6  (84.8 kB)\n" in out
    assert "walker      walker-bigbigan-0_6  (size unknown)  not in the repository" in out
    assert f"walker      hf://SerezD/mi_ml_gen/{CHUNK_0}  (84.8 kB)" in out
    assert "encoder     simsiam-imagenet-chunks-learned  (2,000 B)" in out
    assert "generator   hf://SerezD/NVAE-from-scratch/cifar10/last.pt  (70.0 kB)" in out
    assert f"hf://SerezD/mi_ml_gen/{W_1_6}" not in out and "README" not in out  # once, and nothing about
    run("walker-bigbigan-1_6")
    assert "walker-bigbigan-1_6  (84.8 kB)  in the cache" in run("--list", "--walkers")[1]


def test_the_list_without_a_repository(published, run):
    published.faults.append(Fault("NVAE", status=500))
    code, out, err = run("--list")
    assert (
        code == 0 and "hf://SerezD/NVAE-from-scratch/  (not listed)" in out and "walker-bigbigan-1_6  (84.8 kB)" in out
    )
    assert err.startswith("warning: not listed: hf://SerezD/NVAE-from-scratch/: ") and "(HTTP 500)" in err


def test_the_list_comes_at_once_where_the_hub_is_silent(published, run, monkeypatch):
    set_offline(monkeypatch)
    table = run("--list", "--walkers")[1]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(catalogue, "PATIENCE_S", 0.0)
    published.faults.append(Fault("/api/models/", stall_s=0.5))
    code, out, err = run("--list", "--walkers")
    assert code == 0 and out.startswith(table) and err.startswith("waiting for the repositories")
    assert f"hf://SerezD/mi_ml_gen/{CHUNK_0}  (84.8 kB)" in out.removeprefix(table)


def test_by_name_with_its_licence_first(published, run):
    code, out, err = run("walker-bigbigan-1_6")
    name, path = out.strip().split(": ")
    assert code == 0 and name == "walker-bigbigan-1_6" and Path(path).read_bytes() == WALKER
    assert Path(path).is_relative_to(constants.HF_HUB_CACHE)
    assert err == (
        f"fetching walker-bigbigan-1_6, hf://SerezD/mi_ml_gen/{W_1_6} (84.8 kB); "
        f"licence: {assets().artifacts['walker-bigbigan-1_6'].licence}\n"
    )
    assert published.count("/api/models/") == 0  # a name needs no listing


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["--encoders"], ["simsiam-imagenet-chunks-learned"]),
        (["--encoders", "simsiam"], ["simsiam-imagenet-chunks-learned"]),
        (["--generators", "nvae"], ["hf://SerezD/NVAE-from-scratch/cifar10/last.pt"]),
        (["*/chunk0/*"], [f"hf://SerezD/mi_ml_gen/{CHUNK_0}"]),
        (["walker-bigbigan-1*", "walker-bigbigan-1_6"], ["walker-bigbigan-1_6"]),
        ([f"hf://SerezD/mi_ml_gen/{W_1_6}"], ["walker-bigbigan-1_6"]),
        (["hf://SerezD/mi_ml_gen/README.md"], ["hf://SerezD/mi_ml_gen/README.md"]),
    ],
)
def test_by_kind_and_by_glob(published, run, argv, names):
    code, out, err = run(*argv)
    assert code == 0, err
    assert [line.rpartition(": ")[0] for line in out.splitlines()] == names
    assert all(Path(line.rpartition(": ")[2]).is_file() for line in out.splitlines())


def test_dry_run_fetches_nothing(published, run, tmp_path):
    code, out, err = run("--walkers", "chunk", "simsiam-imagenet-chunks-learned", "--dry-run")
    assert (code, err, gets(published)) == (0, "", 0)
    assert "3 of 3 files to fetch: 171.6 kB; " in out and " free at " in out
    run("walker-bigbigan-1_6")
    assert (
        "2 of 3 files to fetch: 86.8 kB; "
        in run("--walkers", "chunk", "simsiam-imagenet-chunks-learned", "--dry-run")[1]
    )
    out = run("walker-bigbigan-1_6", "bigbigan-x1", "--dry-run", "--local-dir", tmp_path / "new")[1]
    assert "2 of 2 files to fetch: 84.8 kB and 1 of unknown size; " in out and f"free at {tmp_path}\n" in out
    assert not (tmp_path / "new").exists()


def test_a_revision(published, run):
    published.add("SerezD/mi_ml_gen", {W_1_6: b"other"}, branch="v2")
    code, out, err = run("walker-bigbigan-1_6", "--revision", "v2")
    assert code == 0 and Path(out.strip().rpartition(": ")[2]).read_bytes() == b"other", err
    assert run("walker-bigbigan-1_6", "--revision", "v3")[0] == 4


def test_into_a_folder_and_converted(published, run, tmp_path):
    home = tmp_path / "weights"
    argv = ["walker-bigbigan-1_6", f"hf://SerezD/mi_ml_gen/{ENCODER}", "--local-dir", home, "--convert"]
    code, out, err = run(*argv)
    assert code == 0, err
    target = home / "walker-bigbigan-1_6.safetensors"
    assert f"converted: walker on chunks 1_6; use it with --walker {target}\n" in out
    assert (home / W_1_6).read_bytes() == WALKER and (home / ENCODER).is_file()
    ours, theirs = load_walker(target).state_dict(), load_walker(home / W_1_6).state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    n_gets = gets(published)
    code, out, err = run(*argv)
    assert code == 0 and f"{target}: already exists" in out and gets(published) == n_gets


def test_what_is_converted_goes_through_the_restricted_reader(published, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    published.add("SerezD/mi_ml_gen", {W_1_6: b"\x80\x04cos\nsystem\nX\x0b\x00\x00\x00touch hackedR."})
    code, _, err = run("walker-bigbigan-1_6", "--convert")
    assert code == 3 and err.splitlines()[-1].startswith("error: ") and "w_COPGen_120000.pth" in err
    assert os.listdir(tmp_path) == ["home"]


@pytest.mark.parametrize(
    ("argv", "fault", "code", "says"),
    [
        ([], None, 2, "name what to fetch, or give --list"),
        (["walker-bigbigan-1_7"], None, 2, "no known artifact; nearest known artifact: walker-bigbigan-1_6"),
        (["runs/nothing/*"], None, 2, "runs/nothing/*: no known artifact"),
        (["--walkers", "bigbign"], None, 2, "walkers of bigbign: none are known here; nearest known family: bigbigan"),
        (["hf://SerezD/mi_ml_gen/runs/x.pth"], None, 2, "has no such file"),
        (["hf://SerezD"], None, 2, "write hf://owner/repo/file"),
        (["walker-bigbigan-0_6"], None, 4, "has no such file"),
        (["hf://me/none/x.pth"], None, 2, "there is no repository me/none"),
        (["walker-bigbigan-1_6"], Fault("/resolve/", status=401), 4, "refuses access (HTTP 401); set HF_TOKEN"),
        (["walker-bigbigan-1_6"], Fault("/resolve/", status=429), 4, "(HTTP 429) (5 attempts)"),
        (["walker-bigbigan-1_6"], Fault("/cdn/", status=500), 4, "(HTTP 500) (5 attempts)"),
        (["walker-bigbigan-1_6"], Fault("/cdn/", replace=b"x" * len(WALKER)), 4, "of the Hub; nothing was kept"),
        (["walker-bigbigan-1_6"], Fault("/cdn/", redirect_to="/cdn/" + "0" * 64), 4, "redirects in a loop"),
        (["walker-bigbigan-1_6", "--local-dir", "/proc/none"], None, 4, "/proc/none"),
    ],
)
def test_one_line_and_an_exit_code(published, run, argv, fault, code, says):
    if fault is not None:
        published.faults.append(fault)
    found, out, err = run(*argv)
    last = err.strip().splitlines()[-1]
    assert found == code and out == "", err
    assert last.startswith("error: ") and says in last


def test_offline_without_the_file(published, run, monkeypatch):
    set_offline(monkeypatch)
    code, _, err = run("walker-bigbigan-1_6")
    assert code == 4 and "is not in the cache, and cannot be fetched, because HF_HUB_OFFLINE is set" in err


def test_a_full_disk(published, tmp_path):
    """The limit on the size of files stands for it; in a process of its own, since it holds for all files."""
    command = [sys.executable, "scripts/download_pretrained.py", "walker-bigbigan-1_6"]
    environment = {**os.environ, **published.environment(tmp_path / "home")}
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 20; exec "$@"', "-", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4
    assert "error: cannot write " in done.stderr and "File too large" in done.stderr
    assert not list((tmp_path / "home").rglob("w_COPGen*"))


def test_terminated_and_resumed(published, tmp_path):
    published.faults.append(Fault("/cdn/", times=1, pause_s=0.05, piece=2000))
    command = [sys.executable, "scripts/download_pretrained.py", "walker-bigbigan-1_6"]
    environment = {**os.environ, **published.environment(tmp_path / "home")}
    child = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    stop = time.monotonic() + 60
    while not any(path.stat().st_size > 5000 for path in tmp_path.rglob("*.incomplete")):
        assert child.poll() is None and time.monotonic() < stop
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    assert child.communicate()[1].endswith("terminated\n") and child.returncode == 143
    (came,) = [path.stat().st_size for path in tmp_path.rglob("*.incomplete")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and Path(done.stdout.strip().rpartition(": ")[2]).read_bytes() == WALKER
    assert [r.range for r in published.requests if "/cdn/" in r.path] == [None, f"bytes={came}-"]


def test_other_scripts_take_references_for_paths(published, monkeypatch, capsys, tmp_path):
    generator = make_small_generator()
    save_generator(tmp_path / "g.safetensors", generator, "bigbigan")
    save_walker(tmp_path / "w", NonlinearWalker.on(generator, Chunks(0, 1)))
    published.add("me/m", {path.name: path.read_bytes() for path in tmp_path.glob("[gw].*")})
    monkeypatch.chdir(tmp_path)
    weights = ["--generator", "bigbigan", "--g_path", "hf://me/m/g.safetensors"]
    code, out, err = call(monkeypatch, capsys, "train_navigator", *weights, "--chunks", "0_1", "--dry-run")
    assert code == 0 and "g_path: hf://me/m/g.safetensors" in out, err
    look = ["--walker", "hf://me/m/w.safetensors", "--n_images", 2, "--device", "cpu"]
    code, out, err = call(monkeypatch, capsys, "visualize_walker", *weights, *look)
    assert code == 0 and out == "written: strength.png\n" and (tmp_path / "strength.png").is_file(), err
    code, out, err = call(monkeypatch, capsys, "convert_checkpoint", "walker-bigbigan-1_6", "c.safetensors")
    assert code == 0 and "walker on chunks 1_6" in out, err
    code, out, err = call(monkeypatch, capsys, "train_navigator", *weights[:3], "bigbigan-x2", "--chunks", "0_1")
    assert code == 2 and "bigbigan-x2: no such file, and no known artifact; nearest known artifact: bigbigan-x1" in err
