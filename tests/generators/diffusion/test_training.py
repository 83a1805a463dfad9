"""Training a diffusion model at a size that takes a moment; resuming and the other faults are in tests/faults."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from mi_ml_gen.core import config, runs, runtime, weights
from mi_ml_gen.core.errors import Preempted, UsageError
from mi_ml_gen.data.source import HeldImages
from mi_ml_gen.generators import trainers
from mi_ml_gen.generators.diffusion import card, training
from mi_ml_gen.generators.diffusion.generator import Diffusion
from mi_ml_gen.generators.diffusion.processes import PROCESSES, Objective
from mi_ml_gen.generators.diffusion.train_settings import OBJECTIVES, DiffusionTrainConfig
from mi_ml_gen.generators.diffusion.training import TrainingImages, stored_images, train_diffusion
from mi_ml_gen.generators.gan.settings import GanConfig
from mi_ml_gen.generators.gan.training import train_generator
from mi_ml_gen.generators.registry import load_generator
from tests.conftest import StopAt


def tiny(folder, **settings) -> DiffusionTrainConfig:
    sizes = dict(
        resolution=8, widths=(8,), patch=2, steps=3, batch_size=4, warmup_steps=2, sampler_steps=2, block=1, lr=1e-2,
        save_every=2, state_interval_s=0.0, run_name="run", device="cpu", save_folder=str(folder),
    )  # fmt: skip
    return DiffusionTrainConfig(**(sizes | settings))


def held(n: int = 12, seed: int = 0, n_classes: int = 2) -> HeldImages:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8, generator=rng)
    return HeldImages("noise", images, torch.arange(n) % n_classes, tuple(map(str, range(n_classes))))


def test_the_objectives_are_those_of_the_processes():
    assert set(OBJECTIVES) == {name for name, cls in PROCESSES.items() if issubclass(cls, Objective)}
    assert set(card.OBJECTIVES) == set(OBJECTIVES)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_weight_learns_and_the_result_is_an_ordinary_generator(tmp_path, monkeypatch, objective):
    monkeypatch.setattr(training, "LOG_INTERVAL", 1)
    settings = tiny(tmp_path, objective=objective, precision="bf16")
    path = train_diffusion(settings, held().images, progress=False)
    torch.manual_seed(settings.seed)
    fresh = Diffusion(settings.network(), PROCESSES[objective]())
    fresh.unet.start_at_zero()
    found = load_generator("diffusion", path / "generator.safetensors")
    for name, before in fresh.state_dict().items():
        assert not torch.equal(found.state_dict()[name], before), name
    assert found.name == "run" and found.layout.sizes == (64, 64) and found.process.kind == objective
    z = torch.randn(3, found.noise_dim, generator=torch.Generator().manual_seed(1))
    images = found.decode(found.latents(z))
    assert images.shape == (3, 3, 8, 8) and 0 <= images.min() < images.max() <= 1
    rows = runs.read_metrics(path)
    assert [row["step"] for row in rows] == [1, 2, 3] and all(row["loss"] > 0 for row in rows)
    assert weights.read(path / "generator.safetensors").about == {"steps": "3"}


def test_training_lowers_the_loss_towards_its_least_value(tmp_path, monkeypatch):
    """Images that are all the same: the noise in x_t is then known, and the loss can fall towards 0."""
    monkeypatch.setattr(training, "LOG_INTERVAL", 10)
    monkeypatch.setattr(training, "_save_samples", lambda *_: None)
    images = held(1).images.expand(16, -1, -1, -1)
    path = train_diffusion(tiny(tmp_path, widths=(16,), steps=60, batch_size=16), images, progress=False)
    losses = [row["loss"] for row in runs.read_metrics(path)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_shorter_run_of_the_same_folder_ends_where_it_is(tmp_path):
    """A training that was stopped by time is finished by the same command with fewer steps."""
    path = train_diffusion(tiny(tmp_path), held().images, progress=False)
    first = (path / "generator.safetensors").read_bytes()
    (path / "generator.safetensors").unlink()
    assert train_diffusion(tiny(tmp_path, steps=1), held().images, progress=False) == path
    assert (path / "generator.safetensors").read_bytes() == first


def test_dropout_is_a_function_of_seed_and_step(tmp_path, monkeypatch):
    """A resumed run draws what the uninterrupted one drew, though other draws of torch's own generator came between."""
    settings = tiny(tmp_path, dropout=0.5)
    whole = train_diffusion(replace(settings, run_name="whole"), held().images, progress=False)
    with monkeypatch.context() as patch:
        StopAt(patch, 2)
        with pytest.raises(Preempted):
            train_diffusion(settings, held().images, progress=False)
    halves = train_diffusion(settings, held().images, progress=False)
    one, two = (load_generator("diffusion", path / "generator.safetensors").unet for path in (whole, halves))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_one_process_of_several_takes_its_rows(tmp_path, monkeypatch):
    whole = TrainingImages(held().images, tiny(tmp_path, flip=True), torch.device("cpu")).batch(1)
    monkeypatch.setattr(runtime, "world_size", lambda: 2)
    monkeypatch.setattr(runtime, "rank", lambda: 1)
    assert torch.equal(
        TrainingImages(held().images, tiny(tmp_path, flip=True), torch.device("cpu")).batch(1), whole[2:]
    )
    with pytest.raises(UsageError, match="--batch_size 3: must be a multiple of the 2 processes"):
        train_diffusion(tiny(tmp_path, batch_size=3), held().images)
    with pytest.raises(UsageError, match="--family stylegan2: trains in one process; start it with python"):
        train_generator(GanConfig(family="stylegan2", batch_size=4), held().images)
    assert not any(tmp_path.iterdir())


def test_batches_hold_every_image_of_an_epoch_once(tmp_path):
    images = held(9).images
    data = TrainingImages(images, tiny(tmp_path), torch.device("cpu"))
    batches = [data.batch(step) for step in range(4)]
    expected = images.float() / 127.5 - 1
    for epoch in (batches[:2], batches[2:]):
        order = torch.cdist(torch.cat(epoch).flatten(1), expected.flatten(1)).argmin(1)
        assert len(set(order.tolist())) == 8
        torch.testing.assert_close(torch.cat(epoch), expected[order])
    assert torch.equal(TrainingImages(images, tiny(tmp_path), torch.device("cpu")).batch(3), batches[3])
    flipped = TrainingImages(images, tiny(tmp_path, flip=True), torch.device("cpu")).batch(0)
    each = [torch.equal(a, b) or torch.equal(a, b.flip(2)) for a, b in zip(flipped, batches[0], strict=True)]
    assert all(each) and not torch.equal(flipped, batches[0])


def test_wrong_images_and_settings_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"images \[1, 8, 8\]: the network has \[3, 8, 8\]"):
        train_diffusion(tiny(tmp_path, colours="rgb"), held().images)
    with pytest.raises(UsageError, match="--batch_size 13: there are only 12"):
        train_diffusion(tiny(tmp_path, batch_size=13), held().images)
    with pytest.raises(UsageError, match="--block 3"):
        tiny(tmp_path, block=3).check()
    with pytest.raises(UsageError, match="sample_size 9: must be a multiple of 2"):
        tiny(tmp_path, resolution=9).check()
    with pytest.raises(UsageError, match="--data_path no/folder"):
        tiny(tmp_path, data="no/folder").check()
    train_diffusion(tiny(tmp_path), held().images, progress=False)
    with pytest.raises(UsageError, match="objective"):
        train_diffusion(tiny(tmp_path, objective="flow"), held().images, progress=False)


def test_images_come_in_the_colours_of_the_network(tmp_path):
    rgb = stored_images(tiny(tmp_path, data="fashion-mnist", colours="rgb", resolution=32), "test")
    grey = stored_images(tiny(tmp_path, data="fashion-mnist", resolution=32), "test")
    assert rgb.images.shape == (10_000, 3, 32, 32) and grey.images.shape == (10_000, 1, 32, 32)
    assert torch.equal(rgb.images[:, 1:2], grey.images)
    colours = torch.tensor([10, 20, 33], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, -1, 4, 4)
    assert (training._grey(colours) == 21).all()


def test_a_card_says_how_the_network_was_made_and_how_good_it_is(tmp_path):
    settings = tiny(tmp_path, quality_images=8, compare_samplers=True, objective="flow")
    train, test = held(24), held(16, seed=1)
    path = train_diffusion(settings, train.images, progress=False)
    text = card.describe_run(path, settings, train, test)
    assert (path / "card.md").read_text() == text and (path / "samples.png").is_file()
    quality = json.loads((path / "quality.json").read_text())
    assert quality["n"] == 8 and [one["steps"] for one in quality["samplers"]] == [5, 10, 20, 50, 2, 2]
    assert "flow matching on straight lines" in text and f"| {quality['frechet']:.3f} |" in text
    assert "2 chunks (64, 64 numbers)" in text and "3 of 4 images" in text
    assert "--objective flow" in text and str(tmp_path) not in text
    again = load_generator("diffusion", path / "generator.safetensors")
    assert (again.how.steps, again.how.block) == (2, 1)
    plain = card.describe_run(path, tiny(tmp_path, objective="flow"), train, None)
    assert "Not measured." in plain


def test_the_family_chooses_the_settings(tmp_path):
    assert trainers.chosen([]).settings is GanConfig
    assert trainers.chosen(["--family", "stylegan", "--steps", "3"]).settings is GanConfig
    assert trainers.chosen(["--family=diffusion"]).settings is DiffusionTrainConfig
    (tmp_path / "own.yaml").write_text("family: diffusion\nsteps: 7\n")
    assert trainers.chosen(["--config", str(tmp_path / "own.yaml")]).settings is DiffusionTrainConfig
    assert config.load(DiffusionTrainConfig, tmp_path / "own.yaml").steps == 7
    assert trainers.chosen(["--config", "no/file"]).settings is GanConfig  # whose reader says what is wrong
    with pytest.raises(UsageError, match="--family difusion: must be one of .*nearest known family: diffusion"):
        trainers.chosen(["--family", "difusion"])


def test_the_network_starts_at_zero(tmp_path):
    network = Diffusion(tiny(tmp_path).network(), PROCESSES["v"]()).unet
    network.start_at_zero()
    assert isinstance(network, nn.Module)
    assert network(torch.randn(2, 1, 8, 8), torch.ones(2)).abs().max() == network.conv_out.bias.abs().max()
