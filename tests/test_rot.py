"""What a disk may do to our files: bits flip, files are cut short. For every format that this package writes and reads
again, a reader gives what was written, or one error of ours; never something else. A new format joins by its line in
FORMATS.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from mi_ml_gen.core import provenance
from mi_ml_gen.core.cells import Cells
from mi_ml_gen.core.errors import MiMlGenError
from mi_ml_gen.core.files import hash_file, write_json, write_with_hash
from mi_ml_gen.core.runs import RunFolder, read_config, read_metrics
from mi_ml_gen.data import folders
from mi_ml_gen.data.beton.format import Encoded, encode_jpeg, write_beton
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.experiments import explorer, generated_dataset, information_calibration, run_report
from mi_ml_gen.experiments import view_comparison as comparison
from mi_ml_gen.hub import sharing
from mi_ml_gen.information.task_files import export_tasks
from mi_ml_gen.information.tasks import make_task
from mi_ml_gen.latents import Chunks
from mi_ml_gen.mim.sweep import read_statistics
from mi_ml_gen.navigator.folders import find_walkers
from mi_ml_gen.report.tables import Table
from mi_ml_gen.walkers import budget
from mi_ml_gen.walkers.learned import NonlinearWalker
from tests.faults.trainers import train_navigator

POSITIONS = 12
"""Places in each file at which a bit is flipped; a short file has one at every byte."""


class Format(NamedTuple):
    write: Callable[[Path], object]
    read: Callable[[Path], Any]
    """What a result is computed from, in values that can be compared."""
    may_end_early: tuple[str, ...] = ()
    """Files of runs that may still be going on: cut short at the end of a line they are whole."""
    seen_elsewhere: tuple[str, ...] = ()
    """Folders that another line of FORMATS is about."""
    keeps: bool = False
    """Whether damage is mended without an error: a cache, whose content is found again."""


def plain(value: Any) -> Any:
    """Nested values with tensors and arrays as lists."""
    if isinstance(value, torch.nn.Module):
        return {name: tensor.tolist() for name, tensor in value.state_dict().items()}
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


# --- formats ------------------------------------------------------------------------------------------------


def a_run(path: Path) -> None:
    with RunFolder.open(path, {"seed": 1, "name": "a b", "lr": 0.5}) as run:
        for step in (1, 2, 3):
            run.log(step, loss=step / 7, saved=True)
        run.write_json("summary.json", {"delta": 1.5, "bound_nats": 2.0, "note": "x"})


def of_a_run(path: Path) -> Any:
    [run] = run_report.read_runs([path])
    return run.settings, run.rows, run.summary, read_config(path), read_metrics(path, whole=True)


def table_of_walkers(path: Path) -> Any:
    return [(w.samples, w.infonce, w.walker, w.rows, w.training, w.record.noise) for w in find_walkers(path)]


def a_beton(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(4, 9, 8, 3), dtype=np.uint8)
    images = (Encoded(encode_jpeg(image), 9, 8, i % 2) for i, image in enumerate(pixels))
    write_beton(path / "train.beton", images, 4, ("a", "b"))


def of_a_beton(path: Path) -> Any:
    source = load_source(path / "train.beton", loader="torch", image_size=8)
    return source.classes, source.labels, source.batch(torch.arange(4))


def a_shared_walker(path: Path) -> None:
    torch.manual_seed(0)
    sharing.save(NonlinearWalker(Chunks(0, 1), 4), path / "shared")


def a_scan(path: Path) -> None:
    from tests.image_files import picture, save

    for name in ("a", "b"):
        save(path / "pictures" / f"{name}.png", picture(1, 4, 4))
    (path / "pictures" / "c.png").write_bytes(b"no image")
    of_a_scan(path)


def of_a_scan(path: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(folders.CACHE_VARIABLE, str(path / "cache"))
        found = folders.scan_folder(path / "pictures", progress=False)
    return found.files, found.bad


def a_cell(path: Path) -> None:
    write_json(path / "cell.json", comparison.Cell("real", 0, {"sgd": 51.5}, 100, 2.5)._asdict())


def a_map(path: Path) -> None:
    cell = {"chunks": "0_1", "shared": {"nats": 1.25, "interval_nats": [1.0, None], "verdict": "consistent"}}
    write_json(path / "map.json", {"ranges": [cell]})
    Table(["chunks", "delta", "nats"], [["0_1", 1.5, 2.5]]).write(path, "table1")


FORMATS = {
    "run": Format(a_run, of_a_run, may_end_early=("metrics.jsonl",)),
    "run's record": Format(a_run, provenance.read, keeps=True),
    "navigator's run": Format(
        lambda path: train_navigator(path / "chunk0"), table_of_walkers, seen_elsewhere=("walkers", "images")
    ),
    "beton": Format(a_beton, of_a_beton),
    "shared model": Format(a_shared_walker, lambda path: sharing.load(path / "shared")),
    "scan": Format(a_scan, of_a_scan, keeps=True),
    "budgets": Format(
        lambda path: write_json(path / "budget.json", [{"chunks": "0_1", "budget_nats": 3.0, "strength": 0.25}]),
        lambda path: budget._recorded(path / "budget.json"),
    ),
    "cell of a comparison": Format(a_cell, lambda path: Cells(path).result("cell")),
    "map and table": Format(
        a_map, lambda path: explorer.known_facts(Chunks(0, 1), path / "map.json", path / "table1.json")
    ),
    "statistics": Format(
        lambda path: write_with_hash(path / "results.csv", b"mi,1.25\nnll,0.5\n"),
        lambda path: read_statistics(path / "results.csv"),
    ),
    "pairs": Format(
        lambda path: export_tasks(path, [make_task("normal", 1.0, 2)], 8),
        lambda path: information_calibration._read_pairs(next(path.glob("*.npz"))),
    ),
    "progress of an export": Format(
        lambda path: write_json(path / "progress.json", {"n_safe": 300}),
        lambda path: generated_dataset._Progress(path / "progress.json").n_safe in (0, 300),
        keeps=True,
    ),
}


# --- damage -------------------------------------------------------------------------------------------------


def damaged(data: bytes) -> Iterator[tuple[str, bytes]]:
    """A file with one bit flipped, in many places, and cut short."""
    places = np.unique(np.linspace(0, len(data) - 1, min(len(data), POSITIONS)).astype(int)) if data else []
    for at in map(int, places):
        yield f"bit {at % 7} of byte {at} flipped", data[:at] + bytes([data[at] ^ 1 << at % 7]) + data[at + 1 :]
    for size in {0, 1, len(data) // 2, max(0, len(data) - 1)}:
        yield f"cut to {size} bytes", data[:size]


@pytest.mark.parametrize("name", FORMATS)
def test_no_damage_goes_unnoticed(name, tmp_path, monkeypatch):
    """Pictures and the states of trainings, which no reader of results looks at, are left alone."""
    monkeypatch.setenv(folders.CACHE_VARIABLE, str(tmp_path / "cache"))
    form, path = FORMATS[name], tmp_path / "it"
    path.mkdir()
    form.write(path)
    wanted = plain(form.read(path))
    wrong = []
    unread = {".lock", "checkpoints", "pictures", *form.seen_elsewhere}
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and not {*file.parts} & unread]
    assert files
    for file in files:
        data = file.read_bytes()
        for how, spoilt in damaged(data):
            if spoilt == data or (how.startswith("cut") and file.name in form.may_end_early):
                continue
            file.write_bytes(spoilt)
            try:
                found = plain(form.read(path))
            except MiMlGenError as error:
                if "\n" in str(error):
                    wrong.append(f"{file.name}, {how}: several lines")
                continue
            except Exception as error:
                wrong.append(f"{file.name}, {how}: {type(error).__name__}: {error}")
                continue
            if found != wanted and not (form.keeps and found == []):  # [] is no record at all, with a warning
                wrong.append(f"{file.name}, {how}: other values, and nothing is said")
        file.write_bytes(data)
    assert not wrong, json.dumps(wrong[:20], indent=1)
    assert plain(form.read(path)) == wanted


def test_a_removed_hash_is_no_damage(tmp_path):
    """Files of earlier versions, and those that users write, have none."""
    write_json(tmp_path / "map.json", {"ranges": [{"chunks": "0_1"}]})
    hash_file(tmp_path / "map.json").unlink()
    assert explorer.known_facts(Chunks(0, 1), tmp_path / "map.json", None) == []
