"""The measures of quality on generators whose quality is known."""

from __future__ import annotations

import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.gan.quality import measure_quality, train_classifier
from mi_ml_gen.latents import LatentLayout


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the whole measurement


def stripes(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(images (n, 1, 32, 32) in [0, 1], labels (n,)): a bright bar, lying, standing or across."""
    labels = torch.arange(n) % 3
    offset = torch.randint(4, 24, (n, 1, 1), generator=rng(seed))
    row, column = torch.arange(32)[:, None], torch.arange(32)[None]
    place = torch.stack([row.expand(32, 32), column.expand(32, 32), (row + column) // 2])[labels]
    bars = ((place - offset).abs() < 4).float()
    noise = torch.rand(n, 32, 32, generator=rng(seed + 100))
    return (0.7 * bars + 0.3 * noise)[:, None], labels


class Replay(MultiLatentGenerator):
    """Gives back stored images, in an order that the noise decides on."""

    name, resolution, noise_dim = "replay", 32, 4

    def __init__(self, images: torch.Tensor):
        super().__init__()
        self.layout = LatentLayout((4,))
        self.images = images

    def decode(self, latents: torch.Tensor, rng: torch.Generator | None = None) -> torch.Tensor:
        chosen = (latents.abs().sum(dim=1) * 1e4).long() % len(self.images)
        return self.images[chosen].expand(-1, 3, -1, -1)


@pytest.fixture(scope="module")
def setting():
    train, labels = stripes(480, 0)
    held_out, held_out_labels = stripes(240, 1)
    classifier = train_classifier(train, labels, 0, torch.device("cpu"), epochs=8, progress=False)
    return train, held_out, held_out_labels, classifier


def quality_of(images: torch.Tensor, setting):
    train, held_out, labels, classifier = setting
    return measure_quality(Replay(images), classifier, train, held_out, labels, 0, n=240, n_neighbours=120)


def test_a_generator_of_real_images_is_as_good_as_the_floor(setting):
    quality = quality_of(setting[0], setting)
    assert quality.classifier_accuracy > 0.9
    assert quality.floor_precision > 0.8 and quality.floor_recall > 0.8
    assert quality.precision > 0.75 and quality.recall > 0.6  # drawn with replacement
    assert quality.frechet < 5 * quality.floor_frechet + 0.05
    assert sum(quality.class_shares) == pytest.approx(1, abs=1e-3)
    assert max(quality.class_shares) < 0.45
    assert (quality.n, quality.n_neighbours) == (240, 120) and quality.as_dict()["n"] == 240


def test_faults_of_a_generator_show_where_they_should(setting):
    train = setting[0]
    good = quality_of(train, setting)
    one_class = quality_of(train[::3], setting)  # precise, but a third of what there is
    noise = quality_of(torch.rand(200, 1, 32, 32, generator=rng(5)), setting)
    assert max(one_class.class_shares) > 0.9
    assert one_class.precision > 0.7 and one_class.recall < 0.5 < good.recall
    assert noise.precision < 0.2
    assert noise.frechet > 5 * good.frechet and one_class.frechet > 5 * good.frechet


def test_measuring_is_a_function_of_the_seed(setting):
    assert quality_of(setting[0], setting) == quality_of(setting[0], setting)


def test_a_small_set_is_measured_by_what_there_is(setting):
    train, held_out, labels, classifier = setting
    found = measure_quality(Replay(train), classifier, train, held_out[:20], labels[:20], 0, n=240, n_neighbours=120)
    assert found.n == found.n_neighbours == 20 and 0 <= found.precision <= 1
    with pytest.raises(UsageError, match="3 images are too few"):
        measure_quality(Replay(train), classifier, train, held_out[:3], labels[:3], 0)


def test_fewer_images_than_a_batch_train_the_classifier():
    images = torch.rand(30, 1, 32, 32)
    model = train_classifier(images, torch.arange(30) % 2, 0, torch.device("cpu"), epochs=1, progress=False)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert int(model.body[1].num_batches_tracked) == 1  # it was trained
