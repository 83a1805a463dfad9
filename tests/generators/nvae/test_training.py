"""Training NVAE at sizes that take seconds: the objective, resuming bit for bit, two processes as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from mi_ml_gen.core import config, runs, runtime
from mi_ml_gen.core.errors import Preempted, UsageError
from mi_ml_gen.generators.nvae import objective
from mi_ml_gen.generators.nvae.network import AutoEncoder, BatchNorm
from mi_ml_gen.generators.nvae.settings import NVAEConfig
from mi_ml_gen.generators.nvae.training import NVAETrainConfig, learning_rate, stored_images, train_nvae
from mi_ml_gen.generators.registry import load_generator
from tests.conftest import StopAt, load_helper
from tests.distributed import run_processes

golden = load_helper("nvae")


def tiny(folder, **settings) -> NVAETrainConfig:
    sizes = dict(
        resolution=(1, 8, 8), num_scales=2, num_groups_per_scale=2, num_cells_per_group=1, num_latent_per_group=2,
        initial_channels=4, num_pre_post_process_cells=1, num_logistic_mixtures=2, cumulative_bs=4, epochs=3,
        warmup_epochs=0.5, base_lr=3e-3, seed=1, device="cpu", log_every=1, save_every=2,
        state_interval_s=0.0, save_folder=str(folder),
    )  # fmt: skip
    return NVAETrainConfig(**(sizes | settings))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(256, (10, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# The objective


def test_balanced_kl_equals_the_reference():
    numbers = golden.numbers()
    kl = torch.from_numpy(numbers["a/fwd/kl"])
    alpha = objective.balancing(golden.settings("plain"))
    np.testing.assert_allclose(alpha[None].numpy(), numbers["a/kl_alpha"], rtol=1e-6)
    total = objective.balanced_kl(kl, 0.3, alpha)
    np.testing.assert_allclose(total.numpy(), numbers["a/fwd/balanced_beta0.3/total"][0], rtol=1e-5)
    torch.testing.assert_close(objective.balanced_kl(kl, 1.0, alpha), kl.sum(1).mean())


def test_alpha_follows_the_groups_of_an_adaptive_network():
    adaptive = NVAEConfig(num_groups_per_scale=4, is_adaptive=True)
    assert objective.balancing(adaptive).tolist() == [1, 2, 2, 4, 4, 4, 4]


def test_regularisers_equal_the_reference():
    numbers, network = golden.numbers(), golden.network("plain")
    norms = objective.SpectralNorms(network, torch.Generator().manual_seed(0))
    exact = sum(
        torch.linalg.matrix_norm(m.weight.detach().flatten(1), 2).item()
        for m in network.modules()
        if hasattr(m, "stride") and hasattr(m, "weight")
    )
    assert exact == pytest.approx(numbers["a/reg/sr_exact_svd"], rel=1e-5)
    assert norms().item() == pytest.approx(numbers["a/reg/sr_upstream_seed0"], rel=5e-3)
    for _ in range(20):
        close = norms().item()
    assert close == pytest.approx(exact, rel=1e-3) and close <= exact * (1 + 1e-6)
    assert objective.largest_gains(network).item() == pytest.approx(numbers["a/reg/bn"], rel=1e-6)


def test_the_spectral_norms_pull_the_largest_singular_values():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 1, bias=False)
    norms = objective.SpectralNorms(layer, torch.Generator().manual_seed(0))
    for _ in range(5):
        value = norms()
    (gradient,) = torch.autograd.grad(value, layer.weight)
    u, _, v = torch.linalg.svd(layer.weight.detach().flatten(1))
    torch.testing.assert_close(gradient.flatten(1), torch.outer(u[:, 0], v[0]), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("step", "beta"), [(0, 0.05), (10, 0.05), (25, 0.5), (40, 1.0), (90, 1.0)])
def test_warm_up(step, beta):
    assert objective.warm_up(step, 100, 0.3, 0.1, 0.05) == pytest.approx(beta)


def test_learning_rate_rises_and_falls():
    settings = NVAETrainConfig(epochs=10, warmup_epochs=1, base_lr=1.0, min_lr=0.1)
    rates = [learning_rate(settings, step, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55) and rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert learning_rate(NVAETrainConfig(warmup_epochs=None, base_lr=1.0), 0, 10) == 1.0


def test_bits_per_dimension():
    uniform = torch.tensor(np.log(256.0) * 3 * 8 * 8)  # nats of a uniform distribution
    assert objective.bits_per_dimension(uniform, NVAEConfig((3, 8, 8), 1)).item() == pytest.approx(8.0)


# The loop


def test_training_learns_and_leaves_a_generator(images, tmp_path):
    repeated = images[:1].expand(8, -1, -1, -1).contiguous()
    path = train_nvae(tiny(tmp_path, epochs=25, save_every=50, weight_decay_norm=0.0), repeated, progress=False)
    rows = runs.read_metrics(path)
    assert len(rows) == 50 and len(rows[0]["kl_nats"]) == 4
    assert rows[-1]["bits_per_dimension"] < rows[0]["bits_per_dimension"] - 0.3
    generator = load_generator("nvae", path / "generator.safetensors")
    assert generator.layout.n_chunks == 4 and generator.name == "nvae"
    assert {p.name for p in (path / "images").iterdir()} >= {"samples_00000050.png", "reconstructions_00000050.png"}


def test_a_run_may_be_shortened(images, tmp_path, monkeypatch):
    """The schedules follow the new number of epochs from there on; other settings may not change."""
    with monkeypatch.context() as patch:
        StopAt(patch, 2)
        with pytest.raises(Preempted):
            train_nvae(tiny(tmp_path), images, progress=False)
    with pytest.raises(UsageError, match="made with base_lr"):
        train_nvae(tiny(tmp_path, epochs=2, base_lr=1.0), images, progress=False)
    rows = runs.read_metrics(train_nvae(tiny(tmp_path, epochs=2), images, progress=False))
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[3]["lr"] == pytest.approx(learning_rate(tiny(tmp_path, epochs=2), 3, 2))


def test_statistics_over_processes_equal_those_of_the_whole_batch(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(6, 3, 4, 4, dtype=torch.float64) * 2 + 1
    whole = BatchNorm(3).double()
    expected = whole(x)
    for part, found in zip(x.chunk(2), run_processes(_normalise, 2, x), strict=True):
        torch.testing.assert_close(found["y"], expected[: len(part)] if torch.equal(part, x[:3]) else expected[3:])
        torch.testing.assert_close(found["var"], whole.running_var)
        torch.testing.assert_close(found["mean"], whole.running_mean)


def _normalise(x):
    norm = BatchNorm(3).double()
    y = norm(x.chunk(2)[runtime.rank()])
    return {"y": y.detach(), "var": norm.running_var, "mean": norm.running_mean}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": (1, 16, 16)}, r"resolution \[1, 16, 16\]: the images have \[1, 8, 8\]"),
        ({"cumulative_bs": 11}, "--cumulative_bs 11: .* at most the 10 images"),
        ({"num_scales": 4}, "num_scales 4: "),
    ],
)
def test_settings_that_do_not_fit_are_refused(images, tmp_path, settings, message):
    with pytest.raises(UsageError, match=message):
        train_nvae(tiny(tmp_path, **settings), images, progress=False)
    assert not any(tmp_path.iterdir())


# Configurations


def test_a_published_configuration_file_is_read(tmp_path):
    """Names with a dash, sections, and numbers that YAML takes for text."""
    path = tmp_path / "base_conf.yaml"
    path.write_text(
        "resolution: [3, 64, 64]\nautoencoder:\n  num_pre-post_process_blocks: 2\n  num_nf_cells: null\n"
        "training:\n  base_lr: 1e-2\n  warmup_epochs: null\n  spectral_regularization:\n    weight_decay_norm: 1e-1\n"
    )
    settings = config.load(NVAETrainConfig, path)
    assert settings.num_pre_post_process_blocks == 2 and settings.resolution == (3, 64, 64)
    assert (settings.base_lr, settings.weight_decay_norm, settings.warmup_epochs) == (0.01, 0.1, None)
    path.write_text("autoencoder:\n  seed: 3\ntraining:\n  seed: 4\n")
    with pytest.raises(UsageError, match="seed is given twice"):
        config.load(NVAETrainConfig, path)
    path.write_text("autoencoder:\n  num_scale: 3\n")
    with pytest.raises(UsageError, match=r"unknown key num_scale in .*nearest known key: num_scales"):
        config.load(NVAETrainConfig, path)


@pytest.mark.parametrize("name", ["nvae/tiny", "nvae/cifar10", "nvae/celeba64"])
def test_bundled_configurations_make_a_network(name):
    settings = config.load(NVAETrainConfig, name)
    with torch.device("meta"):
        n_parameters = sum(p.numel() for p in AutoEncoder(settings.architecture()).parameters())
    assert (n_parameters < 1e6) == (name == "nvae/tiny")


def test_images_are_read_in_the_colours_of_the_network():
    grey, colour = NVAEConfig((1, 8, 8), 1), NVAEConfig((3, 8, 8), 1)
    images = stored_images("digits", grey)
    assert images.shape[1:] == (1, 8, 8) and torch.equal(stored_images("digits", colour)[:, 1:2], images)


def test_the_script_shows_its_settings(capsys):
    from scripts.train_nvae import main

    main(["--config", "nvae/tiny", "--epochs", "2", "--dry-run"])
    assert "num_groups_per_scale: 3" in (shown := capsys.readouterr().out) and "epochs: 2" in shown
    with pytest.raises(UsageError, match="num_scales 9"):
        main(["--config", "nvae/tiny", "--num_scales", "9"])
    assert json.dumps(shown)


SIZES = (
    "--resolution 1 8 8 --num_scales 2 --num_groups_per_scale 1 --num_cells_per_group 1 --num_latent_per_group 2 "
    "--initial_channels 4 --num_pre-post_process_cells 1 --num_logistic_mixtures 2 --cumulative_bs 600 --max_epochs 2 "
    "--data_path digits --device cpu --log_every 1 --save_freq 100"
).split()


def test_two_processes_of_the_script_equal_one(tmp_path, monkeypatch):
    """By torchrun: the same losses, KL divergences and weights, up to the order of sums."""
    from scripts import train_nvae as script

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script.__file__]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command += [*SIZES, "--save_folder", str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    script.main([*SIZES, "--save_folder", str(tmp_path / "one")])
    one, two = (runs.read_metrics(tmp_path / name / "nvae") for name in ("one", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in two] == [1, 2, 3, 4]
    for a, b in zip(one, two, strict=True):
        for key in ("bits_per_dimension", "kl_nats", "regularisation", "lr"):
            assert b[key] == pytest.approx(a[key], rel=1e-3), key
    a, b = (load_generator("nvae", tmp_path / name / "nvae" / "generator.safetensors") for name in ("one", "two"))
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, atol=2e-4, rtol=1e-2, msg=name)
