"""The navigator: what training does, that stopping and resuming change nothing, and the rules of its course."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mi_ml_gen import delta
from mi_ml_gen.core import config, runs
from mi_ml_gen.core.errors import NonFiniteError, Preempted, UsageError
from mi_ml_gen.core.files import load_tensors
from mi_ml_gen.delta import estimate_delta, independent_delta
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.registry import save_generator
from mi_ml_gen.latents import LatentLayout
from mi_ml_gen.navigator import folders
from mi_ml_gen.navigator.keeping import thinned
from mi_ml_gen.navigator.parts import Parts
from mi_ml_gen.navigator.selection import convergence, near, report, select_checkpoint, should_stop
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.navigator.training import next_row, train_navigator, walker_name
from mi_ml_gen.views.augment import Augment
from mi_ml_gen.walkers.learned import ConvolutionalWalker, learned_walker
from mi_ml_gen.walkers.spec import load_walker
from tests.conftest import StopAt, assert_same_weights, make_small_generator

SETTINGS = NavigatorConfig(
    generator="small", chunks="0_1", num_samples=192, save_freq=48, batch_size=8, critic_width=4, lr_walk=1e-2,
    lr_MI=1e-3, device="cpu", state_interval_s=0.0, image_freq=100, seed=3,
)  # fmt: skip
TIMED = "pairs_per_s"


def train(path, generator=None, **changes):
    return train_navigator(
        dataclasses.replace(SETTINGS, **changes), generator or make_small_generator(), path, progress=False
    )


def rows_of(path):
    return [{key: value for key, value in row.items() if key != TIMED} for row in runs.read_metrics(path)]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """An uninterrupted run of 24 steps."""
    path = tmp_path_factory.mktemp("navigator") / "whole"
    return train(path)


def test_a_run_ends_with_its_answer(whole_run):
    """delta of the selected walker, measured; its scale; the bound; what comes next. summary.json and the lines."""
    summary = json.loads((whole_run.path / "summary.json").read_text())
    assert whole_run.summary == summary
    generator = make_small_generator()
    walker = load_walker(whole_run.path / "walker.safetensors")
    measured = estimate_delta(generator, walker, 20_000, seed=SETTINGS.seed)
    apart = independent_delta(generator, "0_1", 20_000, seed=SETTINGS.seed)
    assert (summary["delta"], summary["delta_std"]) == (measured.mean, measured.std)
    assert summary["delta_of_independent"] == pytest.approx(measured.mean / apart.mean)
    assert summary["walker_kind"] == "nonlinear" and summary["walker_parameters"] == 40
    lines = report(summary)
    assert (
        lines[2].startswith(f"delta: {measured.mean:.3f} ") and f"{measured.mean / apart.mean:.1%} of the" in lines[2]
    )
    assert f"finds {summary['bound_nats']:.2f} nats" in lines[3]
    assert lines[-1] == f"next: python scripts/visualize_walker.py --run {whole_run.path}"


def course(*losses):
    return [{"saved": True, "smoothed_loss": loss} for loss in losses]


@pytest.mark.parametrize(
    ("rows", "by_rule", "converged", "why"),
    [
        (course(5, 1, 2, 3, 3.9, 4, 4, 4, 4, 4), False, True, "had stopped rising"),
        (course(5, 1, 1, 1, 1, 1.5, 2, 2.5, 3, 3.5), False, False, "the loss was still rising"),
        (course(5, 4.5, 4, 3.5, 3, 2.5, 2, 1.5, 1, 0.5), False, False, "the loss was still falling"),
        (course(5, 1, 2, 3), False, False, "4 saved walkers are too few"),
        (course(5, 1, 2, 3), True, True, "a stopping rule ended"),
    ],
)
def test_a_run_says_whether_it_was_long_enough(rows, by_rule, converged, why):
    found, said = convergence(rows, by_rule)
    assert found == converged and why in said


def test_what_the_answer_advises(whole_run):
    lines = "\n".join(report(whole_run.summary | {"converged": False, "bound_is_saturated": True}))
    assert "not yet converged" in lines and "--num_samples 384 continues from here" in lines
    assert "saturated: a larger --batch_size could show more" in lines
    lines = "\n".join(report(whole_run.summary | {"converged": True, "bound_is_saturated": False}))
    assert "\nconverged: " in lines and "saturated" not in lines and "--num_samples" not in lines


def test_long_chunks_are_learned_by_a_convolutional_walker(tmp_path, monkeypatch):
    """Beyond the published form's limit; the run, its picture, its file and its summary are the same otherwise."""

    monkeypatch.setattr(delta, "INDEPENDENT_DRAWS", 64)

    class Maps(MultiLatentGenerator):
        name, resolution, noise_dim = "maps", 16, 20 * 256
        layout = LatentLayout.of_shapes([(4, 16, 16), (16, 16, 16)])

        def decode(self, latents, rng=None):
            return latents.unflatten(1, (20, 16, 16))[:, 3:6].sigmoid()

    result = train(tmp_path / "run", Maps(), chunks="1_2", num_samples=16, save_freq=16, batch_size=4)
    walker = load_walker(result.path)
    assert isinstance(walker, ConvolutionalWalker) and walker.parts == [(16, 16, 16)]
    assert result.summary["walker_kind"] == "convolutional"
    fresh = ConvolutionalWalker("1_2", [(16, 16, 16)])
    assert result.summary["walker_parameters"] == sum(parameter.numel() for parameter in fresh.parameters())
    z = torch.randn(2, Maps.noise_dim)
    pair = walker(Maps(), z)
    assert torch.equal(pair.positive[:, :1024], z[:, :1024]) and not torch.equal(pair.positive, z)


def test_a_run_folder_holds_what_a_run_is(whole_run):
    path = whole_run.path
    settings = runs.read_config(path)
    assert settings["lr_walk"] == 1e-2 and settings["temp"] == 0.1
    rows = runs.read_metrics(path)
    assert [row["step"] for row in rows] == [6, 12, 16, 18, 24]
    assert all(math.isfinite(row[key]) for row in rows for key in ("loss", "bound_nats", "delta", TIMED))
    assert [row["samples"] for row in rows if row["saved"]] == [48, 96, 144, 192]
    for name in ("walker.safetensors", "walker.json", "summary.json", "images/curves.png", "images/selected.png"):
        assert (path / name).stat().st_size > 0
    about = json.loads((path / "walker.json").read_text())["about"]
    assert about["samples"] == whole_run.selection.samples
    chosen = load_tensors(path / "walkers" / f"{walker_name(about['samples'])}.safetensors").tensors
    selected = load_tensors(path / "walker.safetensors").tensors
    assert chosen.keys() == selected.keys() and all(torch.equal(chosen[key], selected[key]) for key in chosen)


def assert_same_run(one: Path, other: Path) -> None:
    """Every saved walker, the last state (parameters, buffers, optimisers, counters) and the metrics are equal."""
    assert rows_of(one) == rows_of(other)
    names = sorted(path.name for path in (other / "walkers").glob("*.safetensors"))
    assert names == sorted(path.name for path in (one / "walkers").glob("*.safetensors"))
    last = sorted((other / "checkpoints").glob("*.pt"))[-1].name
    assert_same_weights(one, other, [*(f"walkers/{name}" for name in names), "walker.safetensors"], last)


def test_a_finished_run_is_left_as_it_is(whole_run):
    before = {path: path.read_bytes() for path in whole_run.path.rglob("*.safetensors")}
    again = train(whole_run.path)
    assert again.selection == whole_run.selection
    assert {path: path.read_bytes() for path in whole_run.path.rglob("*.safetensors")} == before


def test_more_samples_go_on_from_the_end(whole_run, tmp_path):
    train(tmp_path / "run", num_samples=96)
    train(tmp_path / "run")
    theirs = load_tensors(whole_run.path / "walkers" / f"{walker_name(192)}.safetensors").tensors
    mine = load_tensors(tmp_path / "run" / "walkers" / f"{walker_name(192)}.safetensors").tensors
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_the_walker_raises_the_loss_that_the_critic_lowers(tmp_path):
    """Against a held critic the walker's steps raise InfoNCE; against a held walker the critic's lower it."""
    held_critic = train(tmp_path / "a", num_samples=800, lr_MI=1e-12, lr_walk=3e-2, chunks="0_2")
    rows = runs.read_metrics(held_critic.path)
    assert rows[-1]["loss"] > rows[0]["loss"] + 0.05 and rows[-1]["delta"] > 5 * rows[0]["delta"]
    held_walker = train(tmp_path / "b", num_samples=800, lr_walk=1e-12, lr_MI=3e-3)
    rows = runs.read_metrics(held_walker.path)
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"] and rows[-1]["delta"] == pytest.approx(rows[0]["delta"], rel=0.2)


def test_the_plain_way_takes_the_same_step(tmp_path):
    """The slow twin of one step: separate decodes, all gradients, backward through everything."""
    from mi_ml_gen.core.runtime import stream
    from mi_ml_gen.information.critic import Critic
    from mi_ml_gen.information.infonce import infonce_loss
    from mi_ml_gen.latents import Chunks
    from mi_ml_gen.views.augment import Augment
    from mi_ml_gen.walkers.learned import NonlinearWalker

    train(tmp_path / "run", num_samples=8, save_freq=8)
    mine = load_tensors(tmp_path / "run" / "walkers" / f"{walker_name(8)}.safetensors").tensors

    generator = make_small_generator()
    torch.manual_seed(SETTINGS.seed)
    walker, critic = NonlinearWalker(Chunks(0, 1), 4), Critic(7, width=4).train()
    options = dict(betas=(0.5, 0.999))
    adam_critic = torch.optim.Adam(critic.parameters(), lr=SETTINGS.lr_MI, **options)
    adam_walker = torch.optim.Adam(walker.parameters(), lr=SETTINGS.lr_walk, **options)
    augment = Augment("none", 8)
    rng = stream(SETTINGS.seed, "pairs", 0, 0)
    z = SETTINGS.distribution.sample((8, 8), rng)
    pair = walker(generator, z)
    views = augment(generator.decode(pair.anchor)), augment(generator.decode(pair.positive))

    def loss(images):
        return infonce_loss(torch.stack([critic(torch.cat(images))[:8], critic(torch.cat(images))[8:]], 1), 0.1)

    loss([view.detach() for view in views]).backward()
    adam_critic.step()
    (-loss(views)).backward()
    adam_walker.step()
    for key, value in walker.state_dict().items():
        torch.testing.assert_close(mine[key], value, rtol=1e-4, atol=1e-6)


def test_a_nan_stops_the_run_and_is_named(tmp_path, monkeypatch):
    from mi_ml_gen.information import infonce
    from mi_ml_gen.navigator import step as navigator

    calls = iter(range(1000))
    plain = infonce.infonce_loss
    monkeypatch.setattr(navigator, "infonce_loss", lambda *a: plain(*a) * (math.nan if next(calls) == 26 else 1.0))
    with pytest.raises(NonFiniteError, match=r"InfoNCE .* the last good checkpoint is .*state_000000000012\.pt"):
        train(tmp_path / "run")
    assert [row["step"] for row in runs.read_metrics(tmp_path / "run")] == [6, 12]
    assert len(list((tmp_path / "run" / "walkers").glob("*.safetensors"))) == 2


def test_image_size_is_the_generators(tmp_path):
    with pytest.raises(UsageError, match="--image_size 128: small decodes to 8 px"):
        train(tmp_path / "run", img_size=128)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------------------
# Rules


def course(losses, deltas=None, every=100):
    deltas = deltas or [1.0] * len(losses)
    return [
        dict(
            step=i + 1,
            samples=(i + 1) * every,
            loss=loss,
            smoothed_loss=loss,
            bound_nats=-loss,
            delta=delta,
            smoothed_delta=delta,
            saved=True,
        )
        for i, (loss, delta) in enumerate(zip(losses, deltas, strict=True))
    ]


def test_selection_takes_the_first_walker_that_keeps_the_rise_after_the_trough():
    rows = course([6.0, 1.0, 0.5, 1.5, 2.4, 2.5, 2.4])
    assert select_checkpoint(rows, 10.0).samples == 500  # 0.5 + 80% of 1.9 is 2.02; the high start does not count


def test_selection_is_not_taken_in_by_a_rise_that_does_not_last():
    rows = course([2.0, 0.5, 3.0, 0.6, 1.0, 1.5, 2.0, 2.1])
    assert select_checkpoint(rows, 10.0).samples == 700  # 0.5 + 80% of 1.6 is 1.78


def test_selection_of_a_course_that_only_falls_is_its_last_walker():
    assert select_checkpoint(course([3.0, 2.0, 1.0]), 10.0).samples == 300


def test_selection_leaves_out_walkers_beyond_independent_draws():
    rows = course([1.0, 0.5, 1.0, 1.5, 6.0], deltas=[0.1, 0.5, 1.0, 2.0, 9.0])
    assert select_checkpoint(rows, 5.0).samples == 400
    assert select_checkpoint(course([1.0, 2.0], deltas=[9.0, 9.0]), 5.0).samples == 100


def test_selection_does_not_trust_a_smoothed_delta_that_lags():
    rows = course([1.0, 0.5, 1.0, 1.5, 6.0], deltas=[0.1, 0.5, 1.0, 2.0, 3.0])
    rows[-1]["delta"] = 9.0
    assert select_checkpoint(rows, 5.0).samples == 400


def test_selection_needs_a_walker():
    with pytest.raises(UsageError, match="no walker"):
        select_checkpoint([], 1.0)


@pytest.mark.parametrize(
    ("losses", "deltas", "changes", "why"),
    [
        ([1.0, 2.6], None, dict(early_stopping_min_steps=200), None),
        ([1.0, 2.0, 2.6], None, dict(early_stopping_min_steps=200), "above the threshold 2.5"),
        ([1.0, 2.0, 2.6], None, dict(early_stopping_min_steps=200, early_stopping_threshold=None), None),
        ([1.0, 2.0, 1.9, 1.9], None, dict(early_stopping_min_steps=0, patience=200), "not risen for 200 samples"),
        ([1.0, 2.0, 1.9, 2.1], None, dict(early_stopping_min_steps=0, patience=200), None),
        ([1.0, 2.0], [1.0, 7.0], dict(early_stopping_min_steps=0), "beyond 1.25 times"),
        ([1.0, 2.0], [1.0, 7.0], dict(early_stopping_min_steps=0, patience=None), None),
    ],
)
def test_stopping(losses, deltas, changes, why):
    reason = should_stop(course(losses, deltas), dataclasses.replace(SETTINGS, **changes), independent=5.0)
    assert (reason is None) if why is None else (why in reason)


def test_a_stopping_rule_ends_the_run_and_is_remembered(tmp_path):
    changes = dict(early_stopping_min_steps=50, early_stopping_threshold=1e-6)
    result = train(tmp_path / "run", **changes)
    assert "threshold" in result.reason and result.samples == 96
    assert train(tmp_path / "run", **changes).reason == result.reason


def test_smoothing_is_a_weighted_mean_of_what_was_seen():
    rows: list[dict] = []
    for step, loss in ((16, 4.0), (32, 1.0), (48, 1.0)):
        rows.append({"step": step, **next_row(rows, step, 16 * loss, 0.0)})
    assert [row["smoothed_loss"] for row in rows] == pytest.approx([4.0, (4 / 2 + 1) / 1.5, (4 / 4 + 1 / 2 + 1) / 1.75])


def test_near_averages_around_the_checkpoint():
    rows = course([1.0, 2.0, 3.0, 4.0, 5.0])
    assert near(rows, 300, window=1)["loss"] == pytest.approx(3.0)


# ---------------------------------------------------------------------------------------------------------------
# Killed and resumed, as a user's process is


def test_killed_at_any_moment_it_ends_the_same(tmp_path):
    weights = tmp_path / "small.safetensors"
    save_generator(weights, make_small_generator(), "bigbigan")
    flags = [part for key, value in config.to_dict(SETTINGS).items() if value not in (None, False, [])
             for part in (f"--{key}", str(value))]  # fmt: skip
    script = Path(__file__).parents[2] / "scripts" / "train_navigator.py"
    command = [sys.executable, str(script), *flags, "--generator", "bigbigan", "--g_path", str(weights)]
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1]), "OMP_NUM_THREADS": "1"}

    def finish(folder: Path) -> Path:
        done = subprocess.run(
            [*command, "--save_folder", str(folder)], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert "selected: the walker of" in done.stdout and "\ndelta: " in done.stdout and "\nnext: " in done.stdout
        return folder / "0_bigbigan_0_1_none"

    path = tmp_path / "killed" / "0_bigbigan_0_1_none"
    for n_rows in (1, 3):  # killed once so many lines of metrics are there
        process = subprocess.Popen(
            [*command, "--save_folder", str(tmp_path / "killed")], env=environment, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if path.exists() and len(runs.read_metrics(path)) >= n_rows:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.002)
        assert process.wait() in (-signal.SIGKILL, 0)
    assert_same_run(finish(tmp_path / "killed"), finish(tmp_path / "whole"))


# --- parts of a step


@pytest.mark.parametrize("policy", ["none", "simclr"])
@pytest.mark.parametrize("size", [3, 4, 9])
def test_views_and_gradients_in_parts_equal_the_whole(policy, size):
    """Also where the last part is smaller, and where one part is the whole batch. In float64."""
    torch.manual_seed(0)
    generator = make_small_generator().double()
    chunks, augment = generator.chunks("0_1"), Augment(policy, generator.resolution)
    walker = learned_walker(generator, chunks).double()
    pair = walker(generator, torch.randn(9, generator.noise_dim, dtype=torch.float64))
    images = generator.decode_pair(*pair, chunks)
    drawn = augment.draw_pair(9, torch.Generator().manual_seed(1), "cpu")
    whole = augment.pair(*images, torch.Generator().manual_seed(1))
    slopes = torch.randn_like(whole)
    parameters = list(walker.parameters())
    expected = torch.autograd.grad(whole, parameters, slopes, retain_graph=True)

    parts = Parts(pair, chunks, size, generator.decode_pair, lambda _: None, augment, drawn)
    torch.testing.assert_close(parts.views(), whole.detach(), rtol=0, atol=1e-12)
    for ours, right in zip(parts.gradients(slopes, parameters), expected, strict=True):
        assert (ours - right).abs().max() <= 1e-11 * right.abs().max()


def test_a_run_in_parts_equals_the_whole_run(tmp_path):
    changes = dict(num_samples=24, save_freq=8, lr_walk=1e-3, simclr_aug=True)
    whole, parts = train(tmp_path / "whole", **changes), train(tmp_path / "parts", **changes, micro_batches=3)
    for one, other in zip(rows_of(whole.path), rows_of(parts.path), strict=True):
        assert one == pytest.approx(other, rel=1e-4)  # float32, over three steps


def test_parts_hold_the_graph_of_one_part(tmp_path):
    """What autograd keeps of the generator is at its largest a part's."""
    generator = make_small_generator()
    n_rows = []
    decode_pair = generator.decode_pair

    def watched(anchor, positive, chunks, rng=None):
        if torch.is_grad_enabled() and positive.requires_grad:
            n_rows.append(len(positive))
        return decode_pair(anchor, positive, chunks, rng)

    generator.decode_pair = watched
    train(tmp_path / "run", generator, num_samples=8, micro_batches=3)
    assert n_rows == [3, 3, 2]


# --- how many walkers stay


@pytest.mark.parametrize("keep", [2, 3, 7, 100, None])
def test_walkers_are_thinned_evenly_and_none_comes_back(keep):
    here = set()
    for n in range(1, 60):
        samples = [10 * i for i in range(n)]
        found = thinned(samples, keep)
        assert found == sorted({*found}) and found[0] == 0 and found[-1] == samples[-1]
        assert len(found) == n if keep is None or n <= keep else keep / 2 <= len(found) <= keep
        assert {*found} - {samples[-1]} <= here
        here = {*found}


def test_a_run_with_few_walkers_selects_among_them_also_when_resumed(tmp_path, monkeypatch):
    few = dict(num_samples=64, save_freq=8, keep=3)
    whole = train(tmp_path / "whole" / "run", **few)
    with monkeypatch.context() as patch:
        StopAt(patch, 5)
        with pytest.raises(Preempted):
            train(tmp_path / "stopped" / "run", **few)
    again = train(tmp_path / "stopped" / "run", **few)
    assert again.selection == whole.selection
    for path in (whole.path, again.path):
        found = {file.name.partition(".")[0] for file in (path / "walkers").iterdir()}
        assert found == {walker_name(8), walker_name(40), walker_name(64)}
        assert folders.find_walkers(path.parent)[0].samples == whole.selection.samples
