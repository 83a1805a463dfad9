"""What may happen to a training, for every trainer: it is stopped or killed, the disk is full, a value is no number,
its settings change or are lost, its folder is removed. Afterwards nothing is half written, and the same command gives
what an uninterrupted run gives, bit for bit.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from mi_ml_gen.core import runs, runtime
from mi_ml_gen.core.errors import CorruptCheckpointError, EnvironmentFault, NonFiniteError, Preempted, UsageError
from mi_ml_gen.core.files import load_tensors, write_with_hash
from mi_ml_gen.core.loop import Session
from tests.conftest import GOLDEN
from tests.distributed import run_processes
from tests.faults.acts import (
    PLACES,
    UNNOTICED,
    Killed,
    assert_same,
    at_step,
    bad_values,
    fill_disk,
    full_disk,
    is_clock,
    kill,
    newest,
    poison,
    rewrite,
    states,
    step_at,
    stop,
    unnoticed_parts,
)
from tests.faults.trainers import TRAINERS

NAMES = list(TRAINERS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Callable[[str], Path]:
    """whole(name): the folder of an uninterrupted run, made once."""
    folder = tmp_path_factory.mktemp("whole")

    def get(name: str) -> Path:
        path = folder / name / "run"
        if not path.exists():
            TRAINERS[name].train(path)
        return path

    return get


# --- stopped and killed


@pytest.mark.parametrize("name", NAMES)
def test_stopped_and_resumed_equals_uninterrupted(name, whole, tmp_path):
    """SIGTERM in the first step, in the middle and in the last step but one, of one and the same run."""
    trainer, path = TRAINERS[name], tmp_path / "run"
    for place in PLACES:
        step = step_at(trainer, place)
        wanted = next((at for at in trainer.stops or range(1, trainer.n_steps) if at >= step), trainer.n_steps)
        with at_step(step, stop):
            if wanted == trainer.n_steps:  # where it cannot stop before its end
                trainer.train(path)
            else:
                with pytest.raises(Preempted, match=rf"saved at step {wanted} of .*the same command resumes"):
                    trainer.train(path)
        assert newest(path)[0] == wanted
    trainer.train(path)
    assert_same(path, whole(name))


@pytest.mark.parametrize("name", NAMES)
def test_killed_and_resumed_equals_uninterrupted(name, whole, tmp_path):
    trainer, path = TRAINERS[name], tmp_path / "run"
    for place in PLACES:
        step = step_at(trainer, place)
        with at_step(step, kill), pytest.raises(Killed):
            trainer.train(path)
        assert [newest(path)[0]] if any(at < step for at in trainer.saves) else not states(path)
    trainer.train(path)
    assert_same(path, whole(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_in_the_last_step_finishes_the_run_and_once_more_changes_nothing(name, whole, tmp_path):
    trainer, path = TRAINERS[name], tmp_path / "run"
    with at_step(trainer.n_steps, stop):
        trainer.train(path)
    assert_same(path, whole(name))
    trainer.train(path)
    assert_same(path, whole(name))


# --- the suite itself: each part of the state matters


@pytest.mark.parametrize("name", NAMES)
def test_any_part_left_out_is_noticed(name, whole, tmp_path):
    """The comparison above fails, on all that is left, for every part of the state but the two that are named."""
    unnoticed = unnoticed_parts(TRAINERS[name], whole(name), tmp_path)
    assert not set(unnoticed) - set(UNNOTICED)


def test_a_state_without_a_part_is_refused(tmp_path):
    trainer, path = TRAINERS["example"], tmp_path / "run"
    with at_step(60, stop), pytest.raises(Preempted):
        trainer.train(path)
    step, state = newest(path)
    state.pop("optimizer")
    with runs.RunFolder.open(path, runs.read_config(path)) as run:
        run.save_state(step, state)
    with pytest.raises(CorruptCheckpointError, match=r"state_000000000060\.pt: .*lacks 'optimizer'"):
        trainer.train(path)


# --- the disk


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_ends_the_run_and_harms_nothing(name, whole, tmp_path):
    trainer, path = TRAINERS[name], tmp_path / "run"
    first, second = trainer.saves[:2]
    with full_disk(), at_step(second, fill_disk):
        with pytest.raises(EnvironmentFault, match=f"^cannot write .*{second:012d}"):
            trainer.train(path)
    assert states(path) == [first]
    assert not list(path.rglob("*.partial"))
    trainer.train(path)
    assert_same(path, whole(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_removed_during_the_run_does_not_come_back(name, tmp_path):
    trainer, path = TRAINERS[name], tmp_path / "run"
    with at_step(step_at(trainer, PLACES[1]), lambda session: shutil.rmtree(path)):
        with pytest.raises(EnvironmentFault, match=r"run or its \.lock was removed during the run"):
            trainer.train(path)
    assert not path.exists()


# --- values that are no numbers


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_that_is_no_number_ends_the_run(name, tmp_path, monkeypatch):
    trainer, path = TRAINERS[name], tmp_path / "run"
    plain, spoilt = Session.watch, []

    def watch(self: Session, quantity: str, *tensors: torch.Tensor) -> None:
        if self.done > trainer.saves[0] and not spoilt:
            spoilt.append(quantity)
            tensors = (torch.tensor(float("nan")),)
        plain(self, quantity, *tensors)

    monkeypatch.setattr(Session, "watch", watch)
    with pytest.raises(NonFiniteError) as error:
        trainer.train(path)
    assert str(error.value).startswith(f"{spoilt[0]} became nan or infinite")
    assert f"state_{trainer.saves[0]:012d}.pt" in str(error.value)
    assert states(path) == [trainer.saves[0]]
    assert all(row["step"] <= trainer.saves[1] for row in runs.read_metrics(path))


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_no_numbers_are_never_written(name, tmp_path, monkeypatch):
    """In each module, by the last update: the loss, taken before it, was still a number."""
    trainer = TRAINERS[name]
    parts: list[str] = ["?"]
    plain_watch, plain_resume = Session.watch, Session.resume

    def resume(self: Session, *arguments: Any, **named: Any) -> None:
        plain_resume(self, *arguments, **named)
        modules = {key: getattr(part, "_model", part) for key, part in self._parts.items()}
        modules = {key: module for key, module in modules.items() if isinstance(module, nn.Module)}
        if parts == ["?"]:
            parts[:] = modules
        monkeypatch.setattr(Session, "module", modules[parts[0]], raising=False)

    def watch(self: Session, quantity: str, *tensors: torch.Tensor) -> None:
        plain_watch(self, quantity, *tensors)
        if self.done == trainer.n_steps:
            poison(self.module, float("nan"))

    monkeypatch.setattr(Session, "resume", resume)
    monkeypatch.setattr(Session, "watch", watch)
    monkeypatch.setattr(runtime, "broadcast_module", lambda module: None)
    while parts:
        path = tmp_path / parts[0] / "run"
        with pytest.raises(NonFiniteError, match=r"^\w+\.\S+ became nan or infinite at or before step"):
            trainer.train(path)
        assert not bad_values(path)
        assert states(path)[-1] == trainer.saves[-2]
        parts.pop(0)


def test_a_state_with_bad_weights_is_not_gone_on_from(tmp_path):
    """An earlier version may have written one."""
    trainer, path = TRAINERS["example"], tmp_path / "run"
    with at_step(60, stop), pytest.raises(Preempted):
        trainer.train(path)
    step, state = newest(path)
    state["model"]["weight"][0] = float("inf")
    with runs.RunFolder.open(path, runs.read_config(path)) as run:
        run.save_state(step, state)
    with pytest.raises(NonFiniteError, match=r"state_000000000060\.pt: model\.weight is nan or infinite"):
        trainer.train(path)


# --- settings


@pytest.mark.parametrize("name", NAMES)
def test_other_settings_are_refused_with_and_without_the_record_of_them(name, whole, tmp_path):
    trainer, path = TRAINERS[name], tmp_path / "run"
    with at_step(step_at(trainer, PLACES[1]), stop), pytest.raises(Preempted):
        trainer.train(path)
    (key,) = trainer.other
    config = path / "config.yaml"
    for spoil in (lambda: None, lambda: config.unlink(), lambda: rewrite(config, trainer.other)):
        before = config.read_bytes()
        spoil()
        spoilt = config.read_bytes() if config.exists() else None
        with pytest.raises(UsageError, match=f"was made with {key}"):
            trainer.train(path, **trainer.other)
        assert (config.read_bytes() if config.exists() else None) == spoilt
        config.write_bytes(before)
    config.unlink()
    trainer.train(path)
    assert config.read_bytes() == (whole(name) / "config.yaml").read_bytes() or "save_folder" in config.read_text()
    assert_same(path, whole(name))


# --- runs of earlier versions

ADDED = {"gan": "state_interval_s", "calibration": "state_interval_s"}
"""Settings that runs of the version before the session did not have."""
AMONG_PARTS = ("probe", "gan", "calibration", "example")
"""Trainers whose states had the values of the course among the parts, if they had any."""


def as_of_old(name: str, path: Path) -> None:
    """Make a run one of the version before the session: states without settings, and with values elsewhere."""
    for file in (path / "checkpoints").glob("state_*.pt"):
        saved = torch.load(file, weights_only=True)
        del saved["settings"]
        if name in AMONG_PARTS:
            saved["state"] |= saved["state"].pop("course")
        if name == "mim":
            place = {"epoch": saved["step"] // 20 + 1, "step": saved["step"] % 20}
            saved["state"]["course"] |= {"seeds": [1, 2]} | place
        buffer = io.BytesIO()
        torch.save(saved, buffer)
        write_with_hash(file, buffer.getvalue())
    settings = runs.read_config(path)
    settings.pop(ADDED.get(name, ""), None)
    (path / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))


@pytest.mark.parametrize("name", NAMES)
def test_runs_of_earlier_versions_go_on(name, whole, tmp_path):
    trainer, path = TRAINERS[name], tmp_path / "run"
    with at_step(step_at(trainer, PLACES[1]), stop), pytest.raises(Preempted):
        trainer.train(path)
    as_of_old(name, path)
    config = (path / "config.yaml").read_bytes()
    (path / "config.yaml").unlink()
    with pytest.raises(UsageError, match=r"without its config\.yaml"):  # such a state does not tell the settings
        trainer.train(path)
    (path / "config.yaml").write_bytes(config)
    trainer.train(path)
    assert_same(path, whole(name))


@pytest.mark.parametrize(("name", "step"), [("mim", 36), ("probe", 5)])
def test_a_run_that_an_earlier_version_left_goes_on(name, step, whole, tmp_path):
    """From the files themselves. The machine that made them may have rounded otherwise."""
    path = tmp_path / "run"
    shutil.copytree(GOLDEN / "earlier_runs" / name, path)
    assert newest(path)[0] == step
    TRAINERS[name].train(path)
    mine, theirs = (runs.read_metrics(folder) for folder in (path, whole(name)))
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]
    for one, other in zip(mine, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-2)


# --- how often


@pytest.mark.parametrize("name", NAMES)
def test_states_are_saved_as_often_as_asked_for(name, tmp_path, monkeypatch):
    trainer, saved = TRAINERS[name], []
    plain = runs.RunFolder.save_state

    def save_state(self: runs.RunFolder, step: int, state: Any) -> Path:
        saved.append(step)
        return plain(self, step, state)

    monkeypatch.setattr(runs.RunFolder, "save_state", save_state)
    trainer.train(tmp_path / "often")
    assert tuple(saved) == trainer.saves
    saved.clear()
    trainer.train(tmp_path / "seldom", state_interval_s=1e6)
    assert saved == [trainer.n_steps]


def test_a_step_that_does_not_end_is_noticed(tmp_path):
    with Session.open(tmp_path / "run", {}) as session:
        session.resume()
        with pytest.raises(RuntimeError, match="step 0 has ended without a call of end_of_step"):
            for _ in session.steps(2, progress=False):
                pass


# --- several processes


def _in_a_group(folder: str) -> dict[str, Any]:
    """Each trainer uninterrupted; then stopped by a signal to the last rank alone, with a full disk, and resumed."""
    is_last_rank = runtime.rank() == runtime.world_size() - 1
    seen: dict[str, Any] = {}
    for name, trainer in TRAINERS.items():
        if not trainer.is_distributed:
            continue
        kept: dict[str, Any] = {}
        plain = Session.resume

        def resume(self: Session, *arguments: Any, kept=kept, plain=plain, **parts: Any) -> None:
            plain(self, *arguments, **parts)
            kept |= parts

        trainer.train(Path(folder) / name / "whole", **trainer.of_two)
        path = Path(folder) / name / "run"
        errors = []
        with at_step(step_at(trainer, PLACES[1]), stop if is_last_rank else lambda session: None):
            try:
                trainer.train(path, **trainer.of_two)
            except Preempted as error:
                errors.append(str(error))
        with full_disk(), at_step(trainer.n_steps, fill_disk if runtime.is_main() else lambda session: None):
            try:
                trainer.train(path, **trainer.of_two)
            except EnvironmentFault as error:
                errors.append(str(error))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Session, "resume", resume)
            trainer.train(path, **trainer.of_two)
        parameters = {
            f"{key}.{inner}": value.detach()
            for key, part in kept.items() if isinstance(part, nn.Module) for inner, value in part.named_parameters()
        }  # fmt: skip
        seen[name] = {"errors": errors, "parameters": parameters}
    return seen


def test_two_processes_stop_together_and_resume_to_the_same(whole, tmp_path):
    """And where they share what one process does, they come to what it comes to."""
    one, two = run_processes(_in_a_group, 2, str(tmp_path), limit_s=900)
    for name, trainer in TRAINERS.items():
        if trainer.is_distributed:
            assert one[name]["errors"] == two[name]["errors"] and len(one[name]["errors"]) == 2, name
            assert f"saved at step {step_at(trainer, PLACES[1])} of" in one[name]["errors"][0]
            mine, theirs = one[name]["parameters"], two[name]["parameters"]
            assert mine and all(torch.equal(mine[key], theirs[key]) for key in mine), name
            assert_same(tmp_path / name / "run", tmp_path / name / "whole")
        if trainer.is_same_in_two:
            assert_close(tmp_path / name / "whole", whole(name))


def assert_close(one: Path, other: Path) -> None:
    """Equal metrics and weights, up to the order of sums."""
    for mine, theirs in zip(runs.read_metrics(one), runs.read_metrics(other), strict=True):
        a, b = (np.hstack([value for key, value in row.items() if not is_clock(key)]) for row in (mine, theirs))
        np.testing.assert_allclose(a, b, rtol=1e-3)
    for file in other.glob("*.safetensors"):
        tensors = load_tensors(one / file.name).tensors
        for key, wanted in load_tensors(file).tensors.items():
            torch.testing.assert_close(tensors[key], wanted, atol=2e-4, rtol=1e-2, msg=f"{file}: {key}")


# --- the example of the documentation


def test_the_example_fits_its_line(tmp_path):
    from tests.faults.trainers import example

    model = example()(tmp_path / "run")
    assert model.weight.item() == pytest.approx(3, abs=0.1) and model.bias.item() == pytest.approx(1, abs=0.1)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["slope"] == model.weight.item()
