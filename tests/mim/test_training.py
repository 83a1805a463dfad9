"""Training of MIM models: schedules, what a run leaves, several seeds at once, stopping and resuming, every flag."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_ml_gen.core import cli, config, runs
from mi_ml_gen.core.errors import NonFiniteError, Preempted, UsageError
from mi_ml_gen.mim import losses, training
from mi_ml_gen.mim.datasets import Dataset, Items
from mi_ml_gen.mim.distributions import Noise
from mi_ml_gen.mim.model import MIM, load_mim
from mi_ml_gen.mim.settings import MimConfig
from mi_ml_gen.mim.training import beta_at, loss_of, noam, train_mim, train_seeds

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "mim_model.npz", allow_pickle=False)
KEYS = (
    "Dkl_q_p Dkl_p_q Dkl MI H_q_x H_p_z H_enc H_dec H_Msamp H_mean MI_ksg MI_ksg_l2_err H_P_x H_P_z x_recon_err epoch "
    "loss clf_acc_KNN1 clf_acc_KNN3 clf_acc_KNN5 clf_acc_KNN10"
).split()


class Flat:
    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return torch.full(value.shape[:-1], -1.5)


class TinyData(Dataset):
    """Two clusters, 80 items an epoch."""

    def __init__(self, binary: bool = False, pairs: bool = False, x_dim: int = 2, known: bool = True) -> None:
        self.name, self.text, self.x_dim, self.n_train = "tiny", "two clusters", x_dim, 80
        self.binary, self.pairs = binary, pairs
        self.anchor = Flat() if known else None
        self.n_epochs_drawn = self.n_tests_drawn = 0
        self.before_epoch: dict = {}
        self.test = self._draw(torch.Generator().manual_seed(99), 64)

    def draw_epoch(self, rng: torch.Generator) -> Items:
        self.n_epochs_drawn += 1
        self.before_epoch.pop(self.n_epochs_drawn, lambda: None)()
        items = self._draw(rng, self.n_train)
        return items._replace(x_in=items.x.flip(0)) if self.pairs else items

    def draw_test(self, rng: torch.Generator) -> Items:
        self.n_tests_drawn += 1
        return self._draw(rng, 64)

    def _draw(self, rng: torch.Generator, n: int) -> Items:
        labels = torch.randint(2, (n,), generator=rng)
        x = 2.0 * labels[:, None] + 0.3 * torch.randn(n, self.x_dim, generator=rng)
        return Items(x.sigmoid() if self.binary else x, None, labels)


SETTINGS = MimConfig(
    dataset="toy4", batch_size=4, epochs=5, warmup_steps=2, mid_dim=8, min_logvar=3, device="cpu", mi_interval=2,
    state_interval_s=0.0, mim_loss=True, mim_samp=True,
)  # fmt: skip


def train(path, data=None, seeds=None, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return train_seeds(settings, seeds, path, data or TinyData(), neighbours=False, progress=False)


def rows_of(path: Path) -> list[dict]:
    return runs.read_metrics(path)


def files_of(path: Path) -> dict[str, bytes]:
    """What a run is: models, results and metrics."""
    kept = [*path.rglob("*.safetensors"), *path.rglob("results.csv"), *path.rglob("metrics.jsonl")]
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(kept)}


# --- schedules and flags


@pytest.mark.parametrize(
    "name, warmup, options",
    [
        ("warmup3", 3, {}),
        ("warmup10", 10, {}),
        ("warmup25", 25, {}),
        ("warmup5_nodecay_minlr1e-3_lr2e-3", 5, dict(lr=2e-3, decay=False, min_lr=1e-3)),
    ],
)
def test_the_learning_rate_is_the_published_one(name, warmup, options):
    options = dict(lr=1e-3) | options
    found = [noam(epoch, warmup=warmup, **options) for epoch in range(31)]
    np.testing.assert_allclose(found, GOLDEN[f"noam/{name}"], rtol=1e-9, atol=1e-18)


def test_beta_warms_up_in_epochs():
    assert [beta_at(epoch, 4) for epoch in (1, 2, 4, 9)] == [0.25, 0.5, 1.0, 1.0]


def test_flags_name_the_losses():
    def of(**flags):
        return loss_of(MimConfig(**flags))

    assert of() is losses.vae and of(inv_H_loss=True) is losses.vae_plus_entropy
    assert of(ae_loss=True) is losses.auto_encoder
    assert of(ae_loss=True, inv_H_loss=True) is losses.auto_encoder_plus_entropy
    assert of(mim_loss=True) is of(mim_loss=True, mim_samp=True) is losses.a_mim
    assert of(mim_loss=True, inv_H_loss=True) is losses.mim_minus_entropy


PUBLISHED = {
    "--dataset toyMIM --z-dim 2 --mid-dim 50 --min-logvar 6 --seed 1 --batch-size 128 --epochs 49 --warmup-steps 25 "
    "--vis-progress --ae-loss": "toyMIM/z2/ae_logvar6_mid-dim50_layers2_q-x0marginal_q-zx0_p-z0anchor_p-xz0/seed1",
    "--dataset toy4 --z-dim 2 --mid-dim 500 --min-logvar 6 --seed 10 --batch-size 128 --epochs 200 --warmup-steps 3 "
    "--mim-loss --mim-samp --inv-H-loss": "toy4/z2/mim-samp_logvar6_mid-dim500_layers2_q-x0marginal_q-zx0_p-z0anchor"
    "_p-xz0-inv_H/seed10",
    "--dataset pca-fashion-mnist20 --z-dim 16 --mid-dim 50 --seed 3 --epochs 200 --min-logvar 6 --warmup-steps 3": (
        "pca-fashion-mnist20/z16/vae_logvar6_mid-dim50_layers2_q-x0marginal_q-zx0_p-z0anchor_p-xz0/seed3"
    ),
    "--dataset Toy4 --mim-loss --act swish --learn-P-z --p-z prior --p-z-gmm 5 --q-x gmm-marginal --q-x-gmm 2 "
    "--layers 3 --q-zx-gmm 4 --p-xz-gmm 6 --lr 2e-3 --no-cuda --show-detailed --plot-x-recon-err --tag t": (
        "Toy4/z2/mim_logvar10_mid-dim400_layers3_q-x2gmm-marginal_q-zx4_p-z5prior_p-xz6-learn_P_z-self-t/seed1"
    ),
}


def settings_of(line: str) -> MimConfig:
    parser = cli.Parser()
    config.add_arguments(parser, MimConfig)
    return config.from_arguments(MimConfig, parser.parse_args(line.split()))


@pytest.mark.parametrize("line", PUBLISHED)
def test_published_command_lines_are_understood_and_go_where_they_went(line):
    settings = settings_of(line)
    assert str(settings.folder([settings.seed])) == f"mim_runs/{PUBLISHED[line]}"
    assert settings.vis_progress == ("--vis-progress" in line) and settings.inv_H_loss == ("--inv-H-loss" in line)


def test_defaults_are_the_published_ones():
    settings = settings_of("")
    published = dict(
        batch_size=128, epochs=50, seed=1, lr=1e-3, warmup_steps=10, log_interval=10, act="tanh", p_z="anchor",
        q_x="marginal", layers=2, z_dim=2, mid_dim=400, min_logvar=10, q_x_gmm=0, dataset="toyMIM", tag="",
    )  # fmt: skip
    assert {name: getattr(settings, name) for name in published} == published


# --- a run


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """An uninterrupted run of 5 epochs of 20 steps."""
    return train(tmp_path_factory.mktemp("mim") / "whole")[0]


def test_a_run_folder_holds_what_a_run_is(whole_run):
    path = whole_run.path
    assert runs.read_config(path)["warmup_steps"] == 2
    rows = rows_of(path)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5] and [row["step"] for row in rows] == [20, 40, 60, 80, 100]
    assert [row["beta"] for row in rows] == [0.5, 1, 1, 1, 1]
    assert rows[0]["lr"] == pytest.approx(5e-4) and rows[1]["lr"] == pytest.approx(1e-3)
    assert [row["epoch"] for row in rows if "MI_ksg" in row] == [2, 4]
    results = dict(csv.reader((path / "results.csv").read_text().splitlines()))
    assert list(results) == KEYS[:-4]
    best = min((row for row in rows if row["epoch"] >= 2), key=lambda row: row["test_loss"])
    assert (whole_run.best_epoch, whole_run.best_loss) == (best["epoch"], best["test_loss"])
    assert (int(results["epoch"]), float(results["loss"])) == (best["epoch"], best["test_loss"])


def test_training_lowers_the_loss(whole_run):
    rows = rows_of(whole_run.path)
    assert rows[-1]["test_loss"] < rows[0]["test_loss"] - 0.2
    assert rows[-1]["train_loss"] < rows[1]["train_loss"]


def test_the_best_model_is_kept_and_its_loss_is_its_own(whole_run):
    model = load_mim(whole_run.path / "best.safetensors", anchor=Flat())
    again = training.epoch_test(MIM.stack([model]), TinyData(), SETTINGS, losses.a_mim, 3, [1])
    assert again.item() == pytest.approx(whole_run.best_loss, rel=1e-6)


def test_the_same_seed_gives_the_same_run(whole_run, tmp_path):
    train(tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(whole_run.path)


def test_another_seed_gives_another_run(whole_run, tmp_path):
    record = train(tmp_path / "other", seed=2)[0]
    assert record.seed == 2 and record.best_loss != whole_run.best_loss


def test_the_sampling_half_enters_when_beta_is_1(monkeypatch, tmp_path):
    seen = []
    real = training.batch_loss

    def spy(model, x, rng, loss, beta, sampling, x_in=None):
        if torch.is_grad_enabled():
            seen.append((beta, sampling))
        return real(model, x, rng, loss, beta, sampling, x_in)

    monkeypatch.setattr(training, "batch_loss", spy)
    train(tmp_path / "run", warmup_steps=4, epochs=4)
    assert list(dict.fromkeys(seen)) == [(0.25, False), (0.5, False), (0.75, False), (1.0, True)]
    seen.clear()
    train(tmp_path / "ae", mim_loss=False, mim_samp=False, ae_loss=True, epochs=2)
    assert set(seen) == {(0.0, False)}


def test_the_test_set_is_fixed_and_as_published_drawn_anew(tmp_path):
    data = TinyData()
    train(tmp_path / "fixed", data, epochs=3)
    assert data.n_tests_drawn == 1  # by the evaluation at the end
    data = TinyData()
    train(tmp_path / "published", data, epochs=3, as_published=True)
    assert data.n_tests_drawn == 1 + 3


def test_training_that_ends_within_the_warm_up_keeps_the_last_model(tmp_path):
    record = train(tmp_path / "short", warmup_steps=10, epochs=2)[0]
    assert record.best_epoch == 2 and math.isnan(record.best_loss)
    assert "loss" not in dict(csv.reader((record.path / "results.csv").read_text().splitlines()))


def test_the_encoder_sees_what_the_data_says_it_sees(monkeypatch, tmp_path):
    seen = []
    real = MIM.data_half

    def spy(self, x, rng, x_in=None):
        if torch.is_grad_enabled():
            seen.append(x_in is not None and not torch.equal(x, x_in))
        else:
            assert x_in is None or torch.equal(x, x_in)
        return real(self, x, rng, x_in)

    monkeypatch.setattr(MIM, "data_half", spy)
    train(tmp_path / "run", TinyData(pairs=True), epochs=1)
    assert len(seen) == 20 and all(seen)


# --- several seeds at once


def close(together: list[dict], alone: list[dict]) -> None:
    assert len(together) == len(alone)
    for a, b in zip(together, alone, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=2e-4, abs=2e-4), name


def test_seeds_trained_together_are_those_trained_alone(tmp_path):
    together = train(tmp_path / "together", seeds=[3, 1, 8])
    for record in together:
        alone = train(tmp_path / f"alone{record.seed}", seed=record.seed)[0]
        assert record.path == tmp_path / "together" / f"seed_{record.seed}"
        close([row for row in rows_of(tmp_path / "together") if row["seed"] == record.seed], rows_of(alone.path))
        assert record.best_epoch == alone.best_epoch
        assert record.statistics.H_q_x == pytest.approx(alone.statistics.H_q_x, rel=1e-3)
        a, b = (load_mim(one.path / "best.safetensors").state_dict() for one in (record, alone))
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)


def test_each_seed_stops_by_itself_and_the_others_go_on(tmp_path):
    early = dict(warmup_steps=1, epochs=40, lr=2e-2, mim_samp=False, mim_loss=False, mi_interval=0)
    together = train(tmp_path / "together", seeds=[1, 2, 3, 4], **early)
    assert len({record.epochs for record in together}) > 1
    for record in together:
        rows = [row for row in rows_of(tmp_path / "together") if row["seed"] == record.seed]
        assert rows[-1]["epoch"] == record.epochs == record.best_epoch + 2
        assert "no lower test loss for 2 epochs" in record.reason
        alone = train(tmp_path / f"alone{record.seed}", seed=record.seed, **early)[0]
        assert (alone.epochs, alone.best_epoch) == (record.epochs, record.best_epoch)
        close(rows, rows_of(alone.path))


def test_seeds_must_differ(tmp_path):
    with pytest.raises(UsageError, match="must be different"):
        train(tmp_path / "run", seeds=[1, 1])


# --- stopping and resuming


def test_several_seeds_resume_after_some_have_stopped(tmp_path):
    early = dict(seeds=[1, 2, 3, 4], warmup_steps=1, epochs=40, lr=2e-2, mim_samp=False, mim_loss=False, mi_interval=0)
    whole = train(tmp_path / "whole", **early)
    last = max(record.epochs for record in whole)
    data = TinyData()

    def stop():
        os.kill(os.getpid(), signal.SIGTERM)

    first = min(record.epochs for record in whole)
    assert first < last
    data.before_epoch[4 * first + 1] = stop  # in the epoch after the first seed has left
    with pytest.raises(Preempted):
        train(tmp_path / "run", data, **early)
    train(tmp_path / "run", **early)
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")


def test_more_epochs_go_on_with_a_finished_run(whole_run, tmp_path):
    train(tmp_path / "run", epochs=3)
    train(tmp_path / "run", epochs=5)
    assert files_of(tmp_path / "run") == files_of(whole_run.path)
    train(tmp_path / "run", epochs=5)  # once more: nothing left to train
    assert files_of(tmp_path / "run") == files_of(whole_run.path)


def test_what_is_not_finite_stops_training_and_is_named(tmp_path):
    class Spoilt(TinyData):
        def draw_epoch(self, rng):
            items = super().draw_epoch(rng)
            if self.n_epochs_drawn == 6:  # the second seed's third epoch
                items.x[17, 0] = math.inf
            return items

    with pytest.raises(NonFiniteError, match=r"the training loss of seed 2 .*state_000000000040.pt"):
        train(tmp_path / "run", Spoilt(), seeds=[1, 2])
    assert not list((tmp_path / "run").rglob("results.csv"))
    assert len(rows_of(tmp_path / "run")) == 4


# --- every flag


@pytest.mark.parametrize("changes, reason", [
    (dict(mim_loss=True, ae_loss=True, mim_samp=False), "choose one of them"),
    (dict(mim_loss=False), "give --mim-loss too"),
    (dict(batch_size=81), "more than the 80 items"),
    (dict(p_z="marginal", q_x="marginal"), "each is defined by the other"),
    (dict(p_z="gmm-marginal", p_z_gmm=100), "start from data items, of which there are 80"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused_before_a_folder_is_made(tmp_path, changes, reason):
    with pytest.raises(UsageError, match=reason):
        train(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_q_x_as_an_unknown_P_x_is_refused(tmp_path):
    with pytest.raises(UsageError, match="of this data set is not known"):
        train(tmp_path / "run", TinyData(known=False), q_x="anchor")


MODES = ("anchor", "prior", "marginal", "gmm-marginal")


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("p_z, q_x", list(itertools.product(MODES, MODES)))
def test_every_combination_of_densities_trains_a_step_with_every_loss_or_is_refused(p_z, q_x, binary):
    """Times: components of each density or none, learn_P_z, the auto-encoder's encoder, as published."""
    data = TinyData(binary=binary)
    x = data.test.x[None, :6]
    refusals = set()
    for counts in itertools.product((0, 2), repeat=4):
        gmm = dict(zip(("q_x_gmm", "q_zx_gmm", "p_z_gmm", "p_xz_gmm"), counts, strict=True))
        for learn, fixed, published in itertools.product((False, True), repeat=3):
            modes = dict(p_z=p_z, q_x=q_x, learn_P_z=learn, fixed_std=fixed, as_published=published)
            try:
                one = MIM(2, 2, 4, min_logvar=3, binary=binary, **gmm, **modes, anchor=Flat())
            except UsageError as error:
                refusals.add(str(error))
                continue
            model = MIM.stack([one])
            noise = Noise([torch.Generator().manual_seed(0)], 256)
            data_half, sampled = model.data_half(x, noise), model.sampling_half(6, noise)
            every = [losses.vae, losses.vae_plus_entropy, losses.auto_encoder_plus_entropy, losses.a_mim]
            total = sum(loss(data_half, 1.0).mean() for loss in (*every, losses.mim_minus_entropy))
            for loss in (losses.a_mim, losses.mim_minus_entropy):
                per_pair = loss(sampled, 1.0)
                total = total + (losses.with_score(per_pair, sampled.x_given_z) if binary else per_pair).mean()
            total.backward()
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            assert math.isfinite(total.item()) and all(torch.isfinite(gradient).all() for gradient in gradients)
            assert sum(gradient.abs().sum() for gradient in gradients) > 0
    assert all(text.startswith("--") for text in refusals)
    assert bool(refusals) == ((p_z, q_x) != ("prior", "prior"))  # components without a mixture, or the reverse


@pytest.mark.parametrize("kind", ["vae", "ae", "mim", "mim-samp"])
@pytest.mark.parametrize("binary, pairs", [(False, False), (True, True)])
def test_every_loss_activation_and_kind_of_data_trains_through_the_whole_path(tmp_path, kind, binary, pairs):
    flags = dict(mim_loss=kind.startswith("mim"), mim_samp=kind == "mim-samp", ae_loss=kind == "ae")
    for act, inv_H, published in itertools.product(("swish", "tanh", "relu"), (False, True), (False, True)):
        path = tmp_path / f"{act}{inv_H}{published}"
        changes = dict(
            flags, act=act, inv_H_loss=inv_H, as_published=published, epochs=1, warmup_steps=1, batch_size=40
        )
        record = train_seeds(
            dataclasses.replace(SETTINGS, **changes), path=path, dataset=TinyData(binary, pairs), measure=False,
            progress=False,
        )[0]  # fmt: skip
        assert record.epochs == 1 and math.isfinite(record.best_loss)


# --- the command


def test_the_script_trains_measures_and_shows(tmp_path, capsys):
    from scripts.train_mim import main

    line = "--dataset toy4 --z-dim 2 --mid-dim 6 --min-logvar 6 --batch-size 500 --epochs 2 --warmup-steps 1 --no-cuda "
    line += "--mi-interval 1"
    main([*line.split(), "--mim-loss", "--mim-samp", "--vis-progress", "--seeds", "2", "--save-folder", str(tmp_path)])
    (folder,) = (tmp_path / "toy4" / "z2").glob("mim-samp_*/seed1-2")
    for seed in (1, 2):
        results = dict(csv.reader((folder / f"seed_{seed}" / "results.csv").read_text().splitlines()))
        assert list(results) == KEYS
        assert (folder / f"seed_{seed}" / "progress.gif").read_bytes()[:3] == b"GIF"
        assert (folder / f"seed_{seed}" / "best.png").read_bytes()[1:4] == b"PNG"
        assert f"seed {seed}: all 2 epochs are done" in (text := capsys.readouterr().out) or seed == 2
        if seed == 1:
            assert "clf_acc_KNN5" in text
    assert {path.name for path in (folder / "images").iterdir()} == {"curves.png", "information.png"}
    main([*line.split(), "--dry-run"])
    assert "mid_dim: 6" in capsys.readouterr().out


def test_one_record_of_one_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(training.datasets, "load", lambda *a, **k: TinyData())
    record = train_mim(dataclasses.replace(SETTINGS, epochs=1), tmp_path / "run", progress=False)
    assert record.path == tmp_path / "run" and json.loads((record.path / "metrics.jsonl").read_text())["epoch"] == 1
