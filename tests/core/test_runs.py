from __future__ import annotations

import contextlib
import errno
import json
import logging
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
import yaml
from torch import nn

from mi_ml_gen.core import config, locks, loop, runs, runtime
from mi_ml_gen.core.config import option
from mi_ml_gen.core.errors import CorruptCheckpointError, EnvironmentFault, UsageError
from mi_ml_gen.core.files import atomic_write, load_tensors, save_tensors
from mi_ml_gen.core.loop import Preemption
from mi_ml_gen.core.runs import RunFolder
from tests.distributed import run_processes

CONFIG = {"chunks": "1_6", "lr_walk": 8e-5, "widths": (1, 2), "out": Path("x"), "seed": None, "save_freq": 10}


# For what must not happen to this process: kills, audit hooks, locks. Children are forked off a server that
# has no threads; forking the test process itself hangs once other tests have started some.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["torch", "numpy", "pytest", "mi_ml_gen.core.runs", "tests.distributed"])


def start(work: Callable, *arguments: object) -> BaseProcess:
    child = processes.Process(target=work, args=arguments, daemon=True)
    child.start()
    return child


def exit_code(child: BaseProcess) -> int | None:
    """0, 1 after an exception, minus the signal after a kill, None if it does not end."""
    child.join(timeout=60)
    return child.exitcode


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- files --------------------------------------------------------------------------------------------------


def test_atomic_write(tmp_path):
    path = tmp_path / "a" / "b.bin"
    atomic_write(path, b"old")
    atomic_write(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["b.bin"]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "b.bin"
    atomic_write(path, b"old")

    def fail(file):
        file.write(b"half")
        raise KeyError("mid write")

    with pytest.raises(KeyError):
        atomic_write(path, fail)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["b.bin"]


def replace_again_and_again(path: Path) -> None:
    for i in range(10**6):
        atomic_write(path, b"ab"[i % 2 : i % 2 + 1] * 3_000_000)


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "b.bin"
    atomic_write(path, b"a" * 3_000_000)
    child = start(replace_again_and_again, path)
    contents = []
    while len(contents) < 100 or len(set(contents)) < 2:
        data = path.read_bytes()
        assert data in (b"a" * 3_000_000, b"b" * 3_000_000)
        contents.append(data[:1])
    child.kill()


@pytest.fixture
def small_disk():
    """No file of this process may grow beyond 100,000 bytes, as on a disk with that much left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk(tmp_path, small_disk):
    path = tmp_path / "b.bin"
    atomic_write(path, b"old")
    with pytest.raises(EnvironmentFault, match=f"^cannot write {re.escape(str(path))}: "):
        atomic_write(path, bytes(200_000))
    assert path.read_bytes() == b"old"
    with pytest.raises(EnvironmentFault, match=r"new.safetensors"):
        save_tensors(tmp_path / "new.safetensors", {"a": torch.zeros(50_000)})
    assert names(tmp_path) == ["b.bin"]


def test_full_disk_keeps_the_previous_state(tmp_path, small_disk):
    with RunFolder.open(tmp_path / "run", CONFIG) as folder:
        folder.log(1, loss=1.0)
        folder.save_state(1, {"a": torch.ones(3)})
        before = names(folder.checkpoints)
        with pytest.raises(EnvironmentFault, match=r"state_000000000002.pt"):
            folder.save_state(2, {"a": torch.ones(50_000)})
        assert names(folder.checkpoints) == before
        with pytest.raises(EnvironmentFault, match=r"metrics.jsonl"):
            folder.log(2, text="x" * 200_000)
        assert folder.metrics() == [{"step": 1, "loss": 1.0}]
        folder.log(2, loss=2.0)
        assert [row["step"] for row in folder.metrics()] == [1, 2]
        step, state = folder.load_latest()
        assert step == 1 and torch.equal(state["a"], torch.ones(3))


def test_paths_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "x", tmp_path / "folder"):
        with pytest.raises(UsageError, match=f"^cannot write {re.escape(str(path))}: "):
            atomic_write(path, b"")
    with pytest.raises(EnvironmentFault, match="File name too long"):
        atomic_write(tmp_path / ("x" * 300), b"")


def test_tensors_round_trip(tmp_path):
    path = tmp_path / "walker.safetensors"
    shared = torch.arange(6.0)
    tensors = {"a": shared.view(2, 3).T, "b": shared[2:], "c": torch.ones(2, dtype=torch.bfloat16)}
    tensors["c"].requires_grad_()
    save_tensors(path, tensors, {"kind": "nonlinear"})
    loaded = load_tensors(path)
    assert loaded.metadata == {"kind": "nonlinear"}
    assert loaded.tensors.keys() == tensors.keys()
    assert all(torch.equal(loaded.tensors[name], tensors[name]) for name in tensors)
    assert names(tmp_path) == ["walker.safetensors", "walker.safetensors.sha256"]
    if sys.platform == "linux":
        command = ["sha256sum", "--check", "--quiet", "walker.safetensors.sha256"]
        subprocess.run(command, cwd=tmp_path, check=True)


def test_equal_tensors_and_metadata_give_equal_bytes(tmp_path):
    """The order in which metadata was given does not matter, and every reader of safetensors finds all."""
    tensors = {"b": torch.randn(3), "a": torch.arange(5)}
    metadata = {f"key {i}": f"value {i} \u00e9" for i in range(20)}
    save_tensors(tmp_path / "one", tensors, metadata)
    save_tensors(tmp_path / "two", tensors, dict(reversed(metadata.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with safetensors.safe_open(tmp_path / "one", "pt") as file:
        assert file.metadata() == metadata
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())


def test_tensors_that_are_replaced(tmp_path):
    path = tmp_path / "my walker.safetensors"
    for value in (1.0, 2.0):
        save_tensors(path, {"a": torch.tensor(value)})
        assert float(load_tensors(path).tensors["a"]) == value
    assert len(Path(f"{path}.sha256").read_text().splitlines()) == 1


def test_bit_rot_in_tensors(tmp_path):
    path = tmp_path / "w.safetensors"
    save_tensors(path, {"a": torch.randn(10), "b": torch.zeros(3, 3)}, {"k": "v"})
    good = path.read_bytes()
    random = np.random.default_rng(0)
    damaged = [good[:n] for n in range(0, len(good), 7)]
    for _ in range(50):
        copy = bytearray(good)
        copy[random.integers(len(good))] ^= 1 << random.integers(8)
        damaged.append(bytes(copy))
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(CorruptCheckpointError, match=re.escape(str(path))):
            load_tensors(path)


def test_foreign_tensors_need_no_hash(tmp_path):
    path = tmp_path / "w.safetensors"
    save_tensors(path, {"a": torch.ones(2)})
    Path(f"{path}.sha256").unlink()
    assert load_tensors(path).metadata == {}
    for data in (b"", b"PK\3\4" + bytes(100), path.read_bytes()[:-1], b"\xff" * 64):
        path.write_bytes(data)
        with pytest.raises(CorruptCheckpointError, match="not a (whole )?safetensors file"):
            load_tensors(path)
    for missing in (tmp_path / "none", tmp_path, path / "below"):
        with pytest.raises(UsageError, match=re.escape(str(missing))):
            load_tensors(missing)


# --- opening ------------------------------------------------------------------------------------------------


def test_a_new_folder(tmp_path):
    with RunFolder.open(tmp_path / "a" / "run", CONFIG) as folder:
        assert (folder.path, folder.checkpoints, folder.images) == (
            tmp_path / "a" / "run",
            tmp_path / "a" / "run" / "checkpoints",
            tmp_path / "a" / "run" / "images",
        )
        assert folder.load_latest() is None and folder.last_state is None and folder.metrics() == []
        written = yaml.safe_load((folder.path / "config.yaml").read_text())
    assert written == CONFIG | {"widths": [1, 2], "out": "x"} == runs.read_config(tmp_path / "a" / "run")


def test_reopening_needs_the_same_settings(tmp_path):
    RunFolder.open(tmp_path, CONFIG).close()
    RunFolder.open(tmp_path, CONFIG).close()
    before = (tmp_path / "config.yaml").read_bytes()
    for change, message in (
        ({"lr_walk": 1e-3}, "was made with lr_walk 8e-05, not 0.001; .*choose another --run_name"),
        ({"new": 3}, r"was made with new \(not set\), not 3"),
        ({"save_freq": 20}, "was made with save_freq 10, not 20"),
    ):
        with pytest.raises(UsageError, match=message):
            RunFolder.open(tmp_path, CONFIG | change)
        assert (tmp_path / "config.yaml").read_bytes() == before
    without = {key: value for key, value in CONFIG.items() if key != "seed"}
    with pytest.raises(UsageError, match=r"was made with seed None, not \(not set\)"):
        RunFolder.open(tmp_path, without)


def test_a_setting_that_an_older_version_did_not_have_counts_as_its_default(tmp_path):
    RunFolder.open(tmp_path, CONFIG).close()
    now = {"new": 3, "free_new": 1, "path": Path("a")}
    before = (tmp_path / "config.yaml").read_bytes()
    for changed, message in (
        ({"new": 4}, r"was made with new 3, not 4, the default, because it was begun before new was a setting; give"),
        ({"path": Path("b")}, "was made with path a, not b"),
        ({"save_freq": 20}, "was made with save_freq 10, not 20; give"),
        ({"other": 1}, r"was made with other \(not set\), not 1"),
    ):
        with pytest.raises(UsageError, match=message):
            RunFolder.open(tmp_path, CONFIG | now | changed, defaults=now | {"save_freq": 20})
        assert (tmp_path / "config.yaml").read_bytes() == before
    with RunFolder.open(tmp_path, CONFIG | now | {"free_new": 2}, free={"free_new"}, defaults=now) as folder:
        assert folder.load_latest() is None
        folder.save_state(1, {})
    assert runs.read_config(tmp_path) == yaml.safe_load(before) | {"new": 3, "free_new": 2, "path": "a"}
    with pytest.raises(UsageError, match="was made with new 3, not 4; give"):  # recorded from now on
        RunFolder.open(tmp_path, CONFIG | now | {"new": 4}, defaults=now)


def test_a_state_of_an_older_version_counts_so_too(tmp_path):
    with RunFolder.open(tmp_path, CONFIG) as folder:
        folder.save_state(1, {})
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(UsageError, match="was made with new 3, not 4"):
        RunFolder.open(tmp_path, CONFIG | {"new": 4}, defaults={"new": 3})
    with RunFolder.open(tmp_path, CONFIG | {"new": 3}, defaults={"new": 3}) as folder:
        assert folder.load_latest() == (1, {})


@dataclass
class Settings:
    steps: int = option(10, positive=True)
    widths: list[int] = option((1, 2), free=True)
    needed: str = option()


def test_what_reopening_needs_is_read_from_the_settings_class():
    assert config.resuming(Settings) == {"free": ("widths",), "defaults": {"steps": 10, "widths": [1, 2]}}


def test_free_settings_may_change(tmp_path):
    RunFolder.open(tmp_path, CONFIG, free={"save_freq"}).close()
    RunFolder.open(tmp_path, CONFIG | {"save_freq": 20}, free={"save_freq"}).close()
    assert runs.read_config(tmp_path)["save_freq"] == 20


def test_a_damaged_or_missing_config(tmp_path):
    with pytest.raises(UsageError, match="not a run folder"):
        runs.read_config(tmp_path / "none")
    for data in (b"\xff\xfe\x00", b"a: [", b"", b"- 1"):
        (tmp_path / "config.yaml").write_bytes(data)
        with pytest.raises(CorruptCheckpointError, match=r"config.yaml: damaged"):
            RunFolder.open(tmp_path, CONFIG)


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match="is a file, not a folder"):
            RunFolder.open(path, CONFIG)


def test_links_to_folders_are_followed_and_others_are_named(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with pytest.raises(UsageError, match="link is a link that leads nowhere"):
        RunFolder.open(tmp_path / "link", CONFIG)
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(UsageError, match="circle is a link that leads nowhere"):
        RunFolder.open(tmp_path / "circle", CONFIG)
    (tmp_path / "there").mkdir()
    RunFolder.open(tmp_path / "link", CONFIG).close()
    assert (tmp_path / "there" / "config.yaml").exists() and (tmp_path / "link").is_symlink()


def test_an_unwritable_folder(tmp_path):
    path = tmp_path / "closed"
    path.mkdir(mode=0o500)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # the superuser may write anywhere
    try:
        with pytest.raises(EnvironmentFault, match=r"closed.*: Permission denied"):
            RunFolder.open(path / "run", CONFIG)
    finally:
        os.seteuid(user)


def test_left_overs_are_swept(tmp_path):
    with RunFolder.open(tmp_path, CONFIG) as folder:
        folder.save_state(1, {})
    kept = {"checkpoints/mine.partial", "checkpoints/state_000000000001.pt.sha256"}
    kept |= {"other/.x.0123456789ab.partial"}  # being written by another run's process
    swept = {"walkers/.w.safetensors.0123456789ab.partial", ".config.yaml.0123456789ab.partial"}
    swept |= {"checkpoints/.s.pt.0123456789ab.partial"}
    swept |= {"images/.a.png.0123456789ab.partial", "checkpoints/state_000000000009.pt.sha256"}
    for name in ("other", "walkers"):
        (tmp_path / name).mkdir()
    for name in swept | kept - {"checkpoints/state_000000000001.pt.sha256"}:
        (tmp_path / name).write_text("")
    with open(tmp_path / "other" / ".x.0123456789ab.partial", "ab") as file:
        locks.take(file, wait=False)
        RunFolder.open(tmp_path, CONFIG).close()
    assert {name for name in swept | kept if (tmp_path / name).exists()} == kept


# --- metrics ------------------------------------------------------------------------------------------------


def test_metrics_are_plain_json(tmp_path):
    with RunFolder.open(tmp_path, CONFIG) as folder:
        folder.log(1, loss=torch.tensor(0.5), per_chunk=torch.tensor([1.0, float("nan")]), n=np.int64(3))
        folder.log(np.int64(2), loss=float("inf"), note="text", flag=True, nothing=None)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert all(re.fullmatch("[0-9a-f]{8}", row.pop("crc32")) for row in rows)  # of the rest of the line
    assert rows == [
        {"step": 1, "loss": 0.5, "per_chunk": [1.0, None], "n": 3},
        {"step": 2, "loss": None, "note": "text", "flag": True, "nothing": None},
    ]


def test_a_torn_last_line_goes(tmp_path):
    with RunFolder.open(tmp_path, CONFIG) as folder:
        folder.log(1, loss=1.0)
        folder.save_state(1, {})
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 2, "lo')
    assert runs.read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]
    with RunFolder.open(tmp_path, CONFIG) as folder:
        folder.load_latest()
        folder.log(2, loss=2.0)
        assert folder.metrics() == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]


def test_a_damaged_line_is_reported(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"st\xffep": 2}\n[3]\n{"step": 4}\n')
    assert [row["step"] for row in runs.read_metrics(tmp_path)] == [1, 4]
    assert [record.message.split(": ")[1] for record in caplog.records] == [
        "line 2 is damaged and left out",
        "line 3 is damaged and left out",
    ]


def flipped(data: bytes, at: int, bit: int = 0) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def test_no_flipped_bit_of_a_metric_goes_unnoticed(tmp_path, caplog):
    with RunFolder.open(tmp_path, CONFIG) as folder:
        for step in (1, 2, 3):
            folder.log(step, loss=step / 7, saved=True)
    path = tmp_path / "metrics.jsonl"
    data, rows = path.read_bytes(), runs.read_metrics(tmp_path, whole=True)
    assert [set(row) for row in rows] == [{"step", "loss", "saved"}] * 3 and data.count(b"crc32") == 3
    for at in range(data.index(b"\n", data.index(b"\n") + 1)):  # the first two rows
        path.write_bytes(flipped(data, at, at % 7))
        caplog.clear()
        found = runs.read_metrics(tmp_path)
        assert found == rows or ("damaged" in caplog.text and all(row in rows for row in found)), at
        if found != rows:
            with pytest.raises(CorruptCheckpointError, match=r"metrics.jsonl: damaged in lines? \d"):
                runs.read_metrics(tmp_path, whole=True)


def test_rows_of_an_older_version_have_no_checksum_and_are_followed_by_some_that_have(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 0.5}\n')
    with RunFolder.open(tmp_path, CONFIG) as folder:
        folder.log(2, loss=0.25)
        assert folder.metrics() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


def test_damage_to_settings_and_results_is_noticed(tmp_path):
    with RunFolder.open(tmp_path, CONFIG) as folder:
        folder.write_json("summary.json", {"delta": 1.5, "name": "a"})
    assert runs.read_json(tmp_path / "summary.json") == {"delta": 1.5, "name": "a"}
    for name, read in (("config.yaml", lambda: runs.read_config(tmp_path)),
                       ("summary.json", lambda: runs.read_json(tmp_path / "summary.json"))):  # fmt: skip
        path, whole = tmp_path / name, read()
        data = path.read_bytes()
        for spoilt in (*(flipped(data, at, at % 7) for at in range(0, len(data), 3)), data[: len(data) // 2], b""):
            path.write_bytes(spoilt)
            try:
                assert read() == whole, spoilt  # a flip in a comment
            except CorruptCheckpointError as error:
                assert str(path) in str(error)
        path.write_bytes(data)
    edited = "\n".join((tmp_path / "config.yaml").read_text().splitlines()[1:]).replace(
        "save_freq: 10", "save_freq: 20"
    )
    (tmp_path / "config.yaml").write_text(edited)
    assert runs.read_config(tmp_path)["save_freq"] == 20  # a user's own


def test_rows_after_the_state_are_removed(tmp_path):
    with RunFolder.open(tmp_path, CONFIG) as folder:
        for step in range(6):
            folder.log(step)
        folder.save_state(3, {})
    with RunFolder.open(tmp_path, CONFIG) as folder:
        assert folder.load_latest() == (3, {})
        assert [row["step"] for row in folder.metrics()] == [0, 1, 2, 3]


def three_rows(path):
    with RunFolder.open(path, CONFIG) as folder:
        for step in (1, 2, 3):
            folder.log(step, loss=step / 7)
        folder.save_state(3, {"n": 3})
        folder.log(4, loss=4 / 7)
    return path / "metrics.jsonl"


@pytest.mark.parametrize("spoil", [
    lambda path: path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2])),  # whole lines gone
    lambda path: path.write_bytes(path.read_bytes()[:130]),
    lambda path: path.write_bytes(b""),
    lambda path: path.unlink(),
])  # fmt: skip
def test_rows_that_the_newest_state_knew_are_missed(tmp_path, caplog, spoil):
    path = three_rows(tmp_path)
    assert len(runs.read_metrics(tmp_path, whole=True)) == 4
    spoil(path)
    lost = r"metrics.jsonl: has [0-2] rows, and had 3 when the state of step 3 was saved; .* remove metrics.rows"
    with pytest.raises(CorruptCheckpointError, match=lost):
        runs.read_metrics(tmp_path, whole=True)
    assert len(runs.read_metrics(tmp_path)) < 3
    assert re.search(lost, caplog.text)
    with RunFolder.open(tmp_path, CONFIG) as folder, pytest.raises(CorruptCheckpointError, match=lost):
        folder.load_latest()
    (tmp_path / "metrics.rows").unlink()
    with RunFolder.open(tmp_path, CONFIG) as folder:
        assert folder.load_latest() == (3, {"n": 3})
        folder.log(4)
        folder.save_state(4, {})
    assert runs.read_metrics(tmp_path, whole=True)[-1] == {"step": 4}


def test_the_row_of_after_the_newest_state_may_be_cut(tmp_path):
    path = three_rows(tmp_path)
    path.write_bytes(path.read_bytes()[:-5])  # as a kill may leave it
    assert [row["step"] for row in runs.read_metrics(tmp_path, whole=True)] == [1, 2, 3]


def test_going_back_to_an_older_state_misses_no_row(tmp_path):
    with RunFolder.open(tmp_path, CONFIG) as folder:
        for step in (1, 2, 3):
            folder.log(step)
            folder.save_state(step, {})
    (tmp_path / "checkpoints" / "state_000000000003.pt").write_bytes(b"rotten")
    with RunFolder.open(tmp_path, CONFIG) as folder:
        assert folder.load_latest() == (2, {})
    assert [row["step"] for row in runs.read_metrics(tmp_path, whole=True)] == [1, 2]


def test_a_damaged_number_of_rows_is_no_number(tmp_path, caplog):
    three_rows(tmp_path)
    path = tmp_path / "metrics.rows"
    for data in (flipped(path.read_bytes(), 12), b"", b'{"step": 3, "rows": 9}\n', b"3\n"):
        path.write_bytes(data)
        with pytest.raises(CorruptCheckpointError, match=r"metrics.rows: damaged; remove it"):
            runs.read_metrics(tmp_path, whole=True)
        caplog.clear()
        assert len(runs.read_metrics(tmp_path)) == 4
        assert "metrics.rows: damaged" in caplog.text
    with RunFolder.open(tmp_path, CONFIG) as folder:
        assert folder.load_latest() == (3, {"n": 3})
        folder.save_state(4, {})
    assert len(runs.read_metrics(tmp_path, whole=True)) == 3


def test_without_a_state_all_rows_are_removed(tmp_path):
    with RunFolder.open(tmp_path, CONFIG) as folder:
        folder.log(0)
        assert folder.load_latest() is None
        assert folder.metrics() == []


# --- states -------------------------------------------------------------------------------------------------


def test_states_hold_all_that_training_needs(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "best": None, "l": [1, 2.5]}
    with RunFolder.open(tmp_path, CONFIG) as folder:
        folder.save_state(7, state)
        step, loaded = folder.load_latest()
    assert step == 7 and loaded.keys() == state.keys() and loaded["l"] == [1, 2.5]
    assert torch.equal(loaded["model"]["weight"], model.weight)
    torch.optim.Adam(nn.Linear(2, 2).parameters()).load_state_dict(loaded["optimizer"])


def test_a_state_that_could_not_be_read_back_is_refused(tmp_path):
    with RunFolder.open(tmp_path, CONFIG) as folder:
        with pytest.raises(Exception, match=r"[Ww]eights"):
            folder.save_state(1, {"model": nn.Linear(2, 2)})
        assert names(folder.checkpoints) == []


def test_the_newest_states_are_kept(tmp_path):
    with RunFolder.open(tmp_path, CONFIG, keep=2) as folder:
        for step in (5, 50, 10**11, 200):  # not in order of text, time or step
            folder.save_state(step, {"step was": step})
        assert [step for step, _ in folder._states()] == [200, 10**11]
        assert len(names(folder.checkpoints)) == 4
        assert folder.last_state.name == "state_100000000000.pt"
        assert folder.load_latest() == (10**11, {"step was": 10**11})


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def test_a_rotten_state_is_passed_over(tmp_path, caplog):
    with RunFolder.open(tmp_path, CONFIG) as folder:
        for step in (1, 2):
            folder.log(step)
            folder.save_state(step, {"a": torch.full((100,), float(step))})
        damage(folder.last_state)
    with RunFolder.open(tmp_path, CONFIG) as folder:
        step, state = folder.load_latest()
        assert step == 1 and torch.equal(state["a"], torch.ones(100))
        assert [row["step"] for row in folder.metrics()] == [1]
        (warning,) = caplog.records
        assert warning.levelno == logging.WARNING
        assert "state_000000000002.pt: damaged" in warning.message
        folder.save_state(2, {})
        folder.save_state(3, {})  # a rotten file does not count among those that are kept
        assert [step for step, _ in folder._states()] == [2, 3]
        assert "state_000000000002.pt.corrupt" in names(folder.checkpoints)


def test_any_damage_to_a_state_is_noticed(tmp_path):
    with RunFolder.open(tmp_path, CONFIG) as folder:
        path = folder.save_state(1, {"a": torch.randn(100), "b": [1, 2, 3]})
        good, random = path.read_bytes(), np.random.default_rng(0)
        for i in range(60):
            copy = bytearray(good)
            place = int(random.integers(len(good)))
            if i % 3 == 0:
                copy[place] ^= 1 << int(random.integers(8))
            elif i % 3 == 1:
                del copy[place:]
            else:
                copy[place : place + 64] = bytes(len(copy[place : place + 64]))
            path.write_bytes(copy)
            if bytes(copy) != good:
                with pytest.raises(CorruptCheckpointError, match="no saved state is whole"):
                    folder.load_latest()
        path.write_bytes(good)
        assert folder.load_latest()[0] == 1


def test_no_good_state_is_an_error_that_changes_nothing(tmp_path):
    with RunFolder.open(tmp_path, CONFIG) as folder:
        for step in (1, 2):
            folder.log(step)
            damage(folder.save_state(step, {}))
        before = names(folder.checkpoints), folder.metrics()
        for _ in range(2):
            with pytest.raises(CorruptCheckpointError, match=r"no saved state is whole; .* --run_name"):
                folder.load_latest()
        assert (names(folder.checkpoints), folder.metrics()) == before


def test_a_state_without_its_hash_is_not_trusted(tmp_path):
    with RunFolder.open(tmp_path, CONFIG) as folder:
        path = folder.save_state(1, {})
        Path(f"{path}.sha256").unlink()
        with pytest.raises(CorruptCheckpointError):
            folder.load_latest()


def test_other_files(tmp_path):
    from matplotlib.figure import Figure

    with RunFolder.open(tmp_path, CONFIG) as folder:
        assert folder.write_text("notes/a.txt", "a").read_text() == "a"
        assert json.loads(folder.write_json("table.json", {"rows": [1]}).read_text()) == {"rows": [1]}
        assert folder.save_figure("curve.png", Figure()).read_bytes().startswith(b"\x89PNG")
        assert names(folder.images) == ["curve.png"]


# --- kill -9 ------------------------------------------------------------------------------------------------


def killed_at(n: int, folder: Path) -> None:
    """From here on, SIGKILL at this process's n-th touch of the file system under `folder`."""
    touches = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal touches
        if event in ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir"):
            touches += any(str(folder) in str(argument) for argument in arguments)
            if touches == n:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def train(path: Path, acknowledge: Callable[[int], object]) -> None:
    """A run of six steps that saves every second one, and goes on where it was."""
    with RunFolder.open(path, CONFIG) as folder:
        step, state = folder.load_latest() or (0, {"value": torch.zeros(2)})
        while step < 6:
            step += 1
            state["value"] += step
            folder.log(step, value=state["value"].tolist())
            if step % 2 == 0:
                folder.save_state(step, state)
                acknowledge(step)


def train_and_die(path: Path, n: int, writer: Connection) -> None:
    killed_at(n, path)
    train(path, writer.send)


def last_received(reader: Connection, default: int) -> int:
    """The last number that a process, by now dead, has sent."""
    with contextlib.suppress(EOFError):
        while True:
            default = reader.recv()
    return default


def test_kill_at_every_touch_of_the_file_system(tmp_path):
    all_rows = [{"step": step, "value": [step * (step + 1) / 2] * 2} for step in range(1, 7)]
    code, n, acknowledgements = None, 0, set()
    while code != 0:
        n += 1
        path = tmp_path / f"run_{n}"
        reader, writer = processes.Pipe(duplex=False)
        child = start(train_and_die, path, n, writer)
        writer.close()
        code = exit_code(child)
        assert code in (0, -signal.SIGKILL), n
        acknowledged = last_received(reader, 0)
        acknowledgements.add(acknowledged)
        with RunFolder.open(path, CONFIG) as folder:
            step, state = folder.load_latest() or (0, {"value": torch.zeros(2)})
            assert step >= acknowledged, n
            assert state["value"].tolist() == [step * (step + 1) / 2] * 2, n
            assert folder.metrics() == all_rows[:step], n
            assert not list(path.rglob("*.partial")), n
        train(path, lambda step: None)
        assert runs.read_metrics(path) == all_rows, n
    assert acknowledgements == {0, 2, 4, 6} and n > 40


def replace_and_die(path: Path, n: int) -> None:
    killed_at(n, path.parent)
    save_tensors(path, {"a": torch.tensor(n)})


def test_kill_while_tensors_are_replaced(tmp_path):
    """At every moment the old file or the new one is there, with a hash that agrees."""
    path = tmp_path / "w.safetensors"
    save_tensors(path, {"a": torch.tensor(0)})
    found, code = [], None
    while code != 0:
        code = exit_code(start(replace_and_die, path, len(found) + 1))
        found.append(int(load_tensors(path).tensors["a"]))
    assert found[0] == 0 and found == sorted(found) and found[-1] == len(found) > 8


def train_for_ever(path: Path, writer: Connection) -> None:
    with RunFolder.open(path, CONFIG) as folder:
        step, _ = folder.load_latest() or (0, None)
        while True:
            step += 1
            folder.log(step)
            folder.save_state(step, {"value": torch.full((400_000,), float(step))})
            writer.send(step)


def test_kill_at_random_moments(tmp_path):
    """A clock instead of a count, and a larger state, so that kills fall into writes too."""
    acknowledged = 0
    for wait_s in np.random.default_rng(0).uniform(0.0, 0.06, size=20):
        reader, writer = processes.Pipe(duplex=False)
        child = start(train_for_ever, tmp_path, writer)
        writer.close()
        acknowledged = max(acknowledged, reader.recv())  # past the first step, so that each start gets on
        time.sleep(wait_s)
        child.kill()
        assert exit_code(child) == -signal.SIGKILL
        acknowledged = last_received(reader, acknowledged)
        with RunFolder.open(tmp_path, CONFIG) as folder:
            step, state = folder.load_latest()
            assert step >= acknowledged and torch.equal(state["value"], torch.full((400_000,), float(step)))
            assert [row["step"] for row in folder.metrics()] == list(range(1, step + 1))
            assert not list(folder.checkpoints.glob("*.corrupt"))
    assert acknowledged >= 20


# --- one process a folder -----------------------------------------------------------------------------------


def race(path: Path, gate: Barrier, over: Event, queue: Queue) -> None:
    gate.wait()
    try:
        with RunFolder.open(path, CONFIG):
            queue.put((os.getpid(), "winner"))
            over.wait(60)
    except UsageError as error:
        queue.put((os.getpid(), str(error)))


def test_one_winner_of_eight(tmp_path):
    gate, over, queue = processes.Barrier(8), processes.Event(), processes.Queue()
    children = [start(race, tmp_path / "run", gate, over, queue) for _ in range(8)]
    said = [queue.get(timeout=60) for _ in children]
    over.set()
    assert [exit_code(child) for child in children] == [0] * 8
    (winner,) = (pid for pid, words in said if words == "winner")
    assert sum(f"run is in use by pid {winner} on " in words for _, words in said) == 7


def die_with_a_worker_left(path: Path, writer: Connection) -> None:
    folder = RunFolder.open(path, CONFIG)
    worker = os.fork()  # as a data worker is
    if worker == 0:
        time.sleep(60)
        os._exit(0)
    writer.send(worker)
    os.kill(os.getpid(), signal.SIGKILL)
    folder.close()


def test_a_killed_runs_lock_is_free_even_where_its_worker_lives(tmp_path):
    reader, writer = processes.Pipe(duplex=False)
    child = start(die_with_a_worker_left, tmp_path, writer)
    worker = reader.recv()
    while "pid" not in (tmp_path / ".lock").read_text():
        time.sleep(0.01)
    opened = False
    for _ in range(200):  # join() would wait for the worker, which holds the child's end of its pipe
        with contextlib.suppress(UsageError):
            RunFolder.open(tmp_path, CONFIG).close()
            opened = True
            break
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    assert opened and exit_code(child) == -signal.SIGKILL


def test_a_folder_is_open_once_in_a_process(tmp_path):
    with RunFolder.open(tmp_path, CONFIG), pytest.raises(UsageError, match="already open in this process"):
        RunFolder.open(tmp_path / "images" / "..", CONFIG)
    RunFolder.open(tmp_path, CONFIG).close()


def test_a_refused_folder_is_given_back(tmp_path):
    RunFolder.open(tmp_path, CONFIG).close()
    with pytest.raises(UsageError):
        RunFolder.open(tmp_path, {})
    RunFolder.open(tmp_path, CONFIG).close()


def test_open_folders_do_not_pile_up(tmp_path):
    with RunFolder.open(tmp_path, CONFIG) as folder:
        folder.save_state(0, {})
        before = len(os.listdir("/dev/fd"))
        for step in range(20):
            folder.log(step)
            folder.save_state(step, {})
        assert len(os.listdir("/dev/fd")) == before


# --- ranks --------------------------------------------------------------------------------------------------


def run_of_two_ranks(path: str) -> dict[str, object]:
    seen: dict[str, object] = {}
    with RunFolder.open(path, {"seed": 0}) as folder:
        for step in (1, 2, 3):
            folder.log(step, rank=runtime.rank())
            if step < 3:
                folder.save_state(step, {"value": torch.tensor(float(step + 10 * runtime.rank()))})
        folder.write_text(f"rank_{runtime.rank()}.txt", "")
        runtime.barrier()
        step, state = folder.load_latest()
        seen |= {"step": step, "value": state["value"]}
    runtime.barrier()
    try:
        RunFolder.open(path, {"seed": 1})
    except UsageError as error:
        seen["error"] = str(error)
    return seen


def test_only_rank_0_writes_and_all_ranks_read(tmp_path):
    first, second = run_processes(run_of_two_ranks, 2, str(tmp_path))
    assert first == second
    assert first["step"] == 2 and float(first["value"]) == 2.0
    assert "was made with seed 0, not 1" in first["error"]
    assert runs.read_metrics(tmp_path) == [{"step": 1, "rank": 0}, {"step": 2, "rank": 0}]
    assert "rank_0.txt" in names(tmp_path) and "rank_1.txt" not in names(tmp_path)


# --- being asked to stop ------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", Preemption.SIGNALS)
def test_a_first_signal_is_a_request(signum, capfd):
    before = [signal.getsignal(each) for each in Preemption.SIGNALS]
    with Preemption() as preemption:
        assert not preemption.requested
        os.kill(os.getpid(), signum)
        os.kill(os.getpid(), signum)  # Ctrl-C under torchrun: the same request twice
        assert preemption.requested
    assert capfd.readouterr().err == f"{signum.name}: stopping after this step; again to stop at once\n"
    assert [signal.getsignal(each) for each in Preemption.SIGNALS] == before


def test_a_second_signal_acts_at_once(monkeypatch):
    monkeypatch.setattr(Preemption, "SAME_REQUEST_S", 0.0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell put us in the background
    try:
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
            assert preemption.requested
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_nothing_is_requested():
    seen = []

    def work():
        with Preemption() as preemption:
            seen.append(preemption.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def send_sigterm_to_a_forked_worker() -> None:
    reader, writer = os.pipe()
    with Preemption() as preemption:
        worker = os.fork()
        if worker == 0:
            os.write(writer, b"x")
            for _ in range(500):  # Python sees a signal between two calls: one long sleep could begin just before it
                time.sleep(0.1)
            os._exit(0)
        os.read(reader, 1)
        os.kill(worker, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == -signal.SIGTERM
        assert not preemption.requested


def test_forked_workers_die_of_sigterm():
    assert exit_code(start(send_sigterm_to_a_forked_worker)) == 0


def test_no_space_reads_as_the_system_says_it(tmp_path):
    def fail(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(EnvironmentFault, match=f"^cannot write {re.escape(str(tmp_path))}/a: No space left"):
        atomic_write(tmp_path / "a", fail)


# --- a command that is refused leaves nothing


def test_a_new_folder_of_a_refused_command_goes(tmp_path):
    path = tmp_path / "a" / "b"
    with pytest.raises(UsageError), RunFolder.open(path, CONFIG):
        raise UsageError("--source x: no such file")
    assert not (tmp_path / "a").exists()
    with pytest.raises(UsageError), loop.Session.open(path, CONFIG):
        raise UsageError("no such file")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("keeps", ["metrics", "a file", "the folder", "another error"])
def test_a_refused_command_takes_nothing_else_along(tmp_path, keeps):
    path = tmp_path / "a" / "b"
    if keeps == "the folder":
        path.mkdir(parents=True)
    error = EnvironmentFault("x") if keeps == "another error" else UsageError("x")
    with pytest.raises(type(error)), RunFolder.open(path, CONFIG) as run:
        if keeps == "metrics":
            run.log(1, loss=1.0)
        elif keeps == "a file":
            (path / "images" / "mine.png").touch()
        raise error
    assert runs.read_config(path)["chunks"] == "1_6"
    with RunFolder.open(path, CONFIG):
        pass  # and it is free again
