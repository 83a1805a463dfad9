"""The ablation of NVAE: its parts, correlations, and the page of a small network from one command."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from mi_ml_gen.core import config
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.delta import DeltaEstimate
from mi_ml_gen.experiments.nvae_ablation import Part, groups, in_words, random_steps, rank_correlation, scales
from mi_ml_gen.experiments.settings import NVAEAblationConfig
from mi_ml_gen.generators.nvae.generator import NVAE
from mi_ml_gen.generators.nvae.settings import NVAEConfig
from mi_ml_gen.generators.registry import save_generator
from mi_ml_gen.information.estimate import Verdict
from mi_ml_gen.information.verdicts import Finding
from mi_ml_gen.latents import Chunks
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.report.figures import figure_png, scatter
from mi_ml_gen.walkers.base import Pair

CONFIG = NVAEConfig(
    (1, 8, 8), num_scales=2, num_groups_per_scale=2, num_cells_per_group=1, num_latent_per_group=2,
    initial_channels=4, num_pre_post_process_cells=1, num_logistic_mixtures=2,
)  # fmt: skip


def small() -> NVAE:
    torch.manual_seed(0)
    return NVAE(CONFIG, "small").eval()


def test_parts_are_the_groups_and_the_scales():
    generator = small()
    assert scales(generator) == {"scale 0": Chunks(0, 2), "scale 1": Chunks(2, 4)}
    assert groups(generator)["group 1:0"] == Chunks(2, 3) and len(groups(generator)) == 4
    adaptive = NVAE(NVAEConfig((1, 8, 8), 2, 2, is_adaptive=True, initial_channels=2))
    assert list(scales(adaptive).values()) == [Chunks(0, 1), Chunks(1, 3)]


def test_rank_correlation_is_scipys_and_its_interval_covers():
    """Of 400 samples of 40 pairs, the interval holds the true value in about 95%."""
    rng = np.random.default_rng(0)
    truth = 6 / np.pi * np.arcsin(0.6 / 2)  # of a normal pair with correlation 0.6 (Pearson, 1907)
    hits = []
    for _ in range(400):
        x = rng.standard_normal(40)
        y = 0.6 * x + 0.8 * rng.standard_normal(40)
        found = rank_correlation(x.tolist(), y.tolist())
        assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
        hits.append(found.low <= truth <= found.high)
    assert 0.92 <= np.mean(hits) <= 0.98
    assert str(rank_correlation([1, 2, 3, 4], [1, 2, 3, 4])).startswith("+1.00")
    with pytest.raises(UsageError, match="3 groups"):
        rank_correlation([1, 2, 3], [1, 2, 3])


def test_a_scatter_has_a_point_for_each_pair():
    assert figure_png(scatter([1, 2], [3, 4], ["a", "b"])).startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="2 and 1 numbers"):
        scatter([1, 2], [3], ["a", "b"])


def test_the_page_of_a_small_network(tmp_path, capsys):
    from scripts.nvae_ablation import main

    save_generator(tmp_path / "g.safetensors", small(), "nvae")
    command = [
        "--generator", "nvae", "--g_path", str(tmp_path / "g.safetensors"), "--data", "digits", "--n-images", "20",
        "--out", str(tmp_path / "out"), "--n_samples", "50", "--num_samples", "48", "--save_freq", "24",
        "--batch_size", "8", "--critic_width", "4", "--lr_walk", "0.01", "--lr_MI", "0.001", "--device", "cpu",
    ]  # fmt: skip
    main(command)
    shown = capsys.readouterr().out
    assert "rank correlation of the KL divergence with delta of independent" in shown
    rows = json.loads((tmp_path / "out" / "table1.json").read_text())
    rows = rows if isinstance(rows, list) else rows["rows"]
    assert [row["part"] for row in rows] == ["group 0:0", "group 0:1", "group 1:0", "group 1:1", "scale 0", "scale 1"]
    assert rows[4]["KL (nats)"] == pytest.approx(rows[0]["KL (nats)"] + rows[1]["KL (nats)"], rel=1e-6)
    for row in rows:
        assert row["delta"] > 0 and row["change at t = 1"] > 0 and row["random directions"] > 0
        assert row["KL error"] > 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "group 1:1: delta" in page and "Do walkers and KL divergence agree?" in page
    assert "These 4 groups do not decide it" in page  # with four groups every interval holds 0 or reaches down to it
    assert {row["training"] for row in rows} == {"too short to tell"} and "0 of 6 walkers converged" in page
    main(command)  # nothing is trained again
    assert json.loads((tmp_path / "out" / "table1.json").read_text()) is not None
    with pytest.raises(UsageError, match="is not an NVAE"):
        main(["--generator", "tiny-bigbigan", "--device", "cpu"])


def test_the_same_order_in_both_lists_is_no_certainty():
    """Six groups in the same order happen by chance, too: the interval reaches far down, and holds the estimate."""
    found = rank_correlation([1, 2, 3, 4, 5, 6], [2, 3, 5, 7, 8, 9])
    assert found.value == found.high == pytest.approx(1) and 0.2 < found.low < 0.6
    most = 1 - 12 / (6 * 35)  # two neighbours exchanged
    assert rank_correlation([1, 2, 3, 4, 5, 6], [2, 3, 5, 7, 9, 8]).value == pytest.approx(most)
    opposite = rank_correlation([1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1])
    assert (opposite.low, opposite.high) == (pytest.approx(-1), pytest.approx(-found.low))
    same = rank_correlation([1, 1, 1, 1], [1, 2, 3, 4])
    assert (same.low, same.high) == (-1, 1)


def part(name: str, kl: float, bound: float | None, of_independent: float, change: float) -> Part:
    """A part as far as its correlations and its words need it."""
    delta = DeltaEstimate(of_independent, 0.0, 100)
    trained = SimpleNamespace(training="converged", bound=Finding(Verdict.NOT_CONVERGED, "it rose"))
    row = SimpleNamespace(delta=delta, independent=DeltaEstimate(1.0, 0.0, 100), bound_nats=bound, walker=trained)
    return Part(name, Chunks(0, 1), kl, 0.0, row, {1.0: change}, 1.0)  # type: ignore[arg-type]


def test_the_words_say_what_the_intervals_decide():
    """Seven groups whose delta and bound rise with KL, and whose change has no order."""
    changes = [0.3, 0.6, 0.1, 0.7, 0.2, 0.5, 0.4]
    parts = [part(f"group 0:{i}", 10.0 * i, 4.0 - 0.1 * i, 0.1 * i + 0.1, changes[i]) for i in range(7)]
    said = in_words(parts)
    assert "The interval of 2 of 3 rank correlations excludes 0 (KL divergence and delta of independent: +1.00" in said
    assert "largest KL divergence is that of group 0:6, 60.0 nats; the critic of its walker finds 3.40 nats" in said
    assert said.endswith("3.40 nats (not converged). No other critic finds less.")
    parts[2] = part("group 0:2", 20.0, 1.0, 0.3, 0.1)
    least = "The critic of group 0:2 finds least, 1.00 nats (not converged), where the KL divergence is 20.0 nats."
    assert least in in_words(parts)
    unknown = [part(f"group 0:{i}", 10.0 * i, None, change, change) for i, change in enumerate(changes)]
    assert in_words(unknown).startswith("These 7 groups do not decide it") and "finds" not in in_words(unknown)


def test_random_steps_have_the_lengths_and_places_of_the_learned_ones():
    anchor, step = torch.randn(5, 8), torch.zeros(5, 8)
    step[:, 2:5] = torch.randn(5, 3)
    pair = random_steps(Pair(anchor, anchor + step), torch.Generator().manual_seed(0))
    moved = pair.positive - pair.anchor
    assert torch.equal(moved != 0, step != 0) and not torch.allclose(moved, step)
    torch.testing.assert_close(moved.norm(dim=1), step.norm(dim=1))


def test_the_settings_of_the_walkers_are_the_navigators(tmp_path):
    """So that a walker's run folder is that of train_navigator.py, and the folder of all results is taken."""
    given = {"save_folder": str(tmp_path), "lr_walk": 0.5, "data": "digits"}
    settings = config.load(NVAEAblationConfig, NVAEAblationConfig.preset("tiny-nvae"), given)
    assert settings.save_folder == tmp_path and settings.data_path == "digits"
    assert type(settings.of_walkers) is NavigatorConfig and settings.of_walkers.lr_walk == 0.5
    assert settings.of_walkers.num_samples == 4096
    assert NVAEAblationConfig.preset("nvae") is None
