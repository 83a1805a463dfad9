"""The measures of quality against closed forms and slow twins, and on generators whose quality is known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.gan.quality import frechet_distance, measure_quality, precision_recall, train_classifier
from mi_ml_gen.latents import LatentLayout


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def white(n: int, d: int, seed: int = 0) -> torch.Tensor:
    """(n, d) float64 whose sample mean is 0 and whose sample covariance is the identity."""
    x = torch.randn(n, d, dtype=torch.float64, generator=rng(seed))
    x = x - x.mean(dim=0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False).T


# --- Frechet distance


def test_frechet_distance_of_axis_aligned_gaussians():
    """|m - n|^2 + sum (s - t)^2, for means m, n and standard deviations s, t."""
    m, n = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.0, 1.0, 0.5]).double()
    s, t = torch.tensor([1.0, 2.0, 0.1]).double(), torch.tensor([1.5, 0.3, 4.0]).double()
    found = frechet_distance(white(50, 3) * s + m, white(70, 3, seed=1) * t + n)
    assert found == pytest.approx(((m - n).square() + (s - t).square()).sum().item(), rel=1e-9)


def test_frechet_distance_equals_the_matrix_root_of_scipy():
    """Covariances that do not commute."""
    a = white(60, 5) @ torch.randn(5, 5, dtype=torch.float64, generator=rng(2))
    b = white(80, 5, seed=1) @ torch.randn(5, 5, dtype=torch.float64, generator=rng(3)) + 1
    cov_a, cov_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    assert np.abs(cov_a @ cov_b - cov_b @ cov_a).max() > 0.1
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    shift = np.square(a.mean(0).numpy() - b.mean(0).numpy()).sum()
    expected = shift + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_equal_sets_is_zero_and_of_a_shift_its_square():
    x = torch.randn(40, 4, dtype=torch.float64, generator=rng())
    shift = torch.tensor([3.0, 0.0, -4.0, 0.0], dtype=torch.float64)
    assert abs(frechet_distance(x, x)) < 1e-12
    assert frechet_distance(x, x[torch.randperm(40, generator=rng())] + shift) == pytest.approx(25)


def test_frechet_distance_of_features_that_are_constant():
    """A generator stuck on one image: a singular covariance, and a distance all the same."""
    x = white(50, 3)
    assert frechet_distance(x, torch.zeros(20, 3, dtype=torch.float64)) == pytest.approx(3)


# --- precision and recall


def covered_twin(points: torch.Tensor, manifold: torch.Tensor, k: int) -> float:
    """Share of points within some ball around a point of the manifold that reaches to its k-th neighbour."""
    inside = 0
    for point in points:
        for center in manifold:
            reach = sorted((center - other).norm().item() for other in manifold)[k]  # [0] is the center itself
            if (point - center).norm().item() <= reach:
                inside += 1
                break
    return inside / len(points)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_equal_their_slow_twin(k):
    real = torch.randn(40, 2, dtype=torch.float64, generator=rng())
    fake = torch.randn(30, 2, dtype=torch.float64, generator=rng(1)) * 0.7 + 1
    precision, recall = precision_recall(real, fake, k)
    assert precision == pytest.approx(covered_twin(fake, real, k))
    assert recall == pytest.approx(covered_twin(real, fake, k))
    assert 0 < precision < 1 and 0 < recall < 1 and precision != recall


def test_precision_and_recall_of_equal_disjoint_and_partial_sets():
    x = torch.randn(50, 3, dtype=torch.float64, generator=rng())
    assert precision_recall(x, x.flip(0)) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)
    two_modes = torch.cat([x, x + 100])
    assert precision_recall(two_modes, x) == (1, 0.5)  # one of two modes: all good, half of it
    assert precision_recall(x, two_modes) == (0.5, 1)


def test_precision_and_recall_do_not_depend_on_the_parts_that_they_are_computed_in():
    real, fake = torch.randn(2500, 2, generator=rng()), torch.randn(1200, 2, generator=rng(1))
    whole = precision_recall(real, fake)
    balls = torch.cdist(real, real).kthvalue(4, dim=1).values
    assert whole[0] == pytest.approx((torch.cdist(fake, real) <= balls).any(dim=1).double().mean().item(), abs=2e-3)


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
