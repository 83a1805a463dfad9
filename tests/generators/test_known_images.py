"""What the linear Gaussian family says of its chunks, against integrals that know nothing of its formulas, and its
images that bend."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.known_images import image_task
from mi_ml_gen.generators.linear_gaussian import GaussianPerturbation, LinearGaussian
from mi_ml_gen.generators.registry import load_generator, save_generator
from mi_ml_gen.generators.waves import Waves
from mi_ml_gen.information.closed_forms import binned_normal_information
from mi_ml_gen.information.tasks import make_task
from mi_ml_gen.latents import Chunks, TruncatedNormal


def _rng(seed=0):
    return torch.Generator().manual_seed(seed)


def _one_number(look="tiles"):
    """x is one number: a_0 z_0 + a_1 z_1 + noise."""
    generator = LinearGaussian((1, 1), observed_dim=1, noise=0.5, gains=(1.0, 2.0), resolution=2, seed=1, look=look)
    return generator, *generator.mixing.double()[0].tolist()


def _shared_by_integral(gain, rest):
    """I(u; v), u = gain s + rest n, v = gain s + rest n' with s, n, n' standard normal: sums on grids, s summed out."""
    s = np.linspace(-8, 8, 401)
    width = math.hypot(gain, rest)
    u = np.linspace(-8, 8, 401) * width
    given = stats.norm.pdf(u[:, None], gain * s, rest)  # (u, s)
    p = given @ (given * (stats.norm.pdf(s) * (s[1] - s[0]))).T
    side = stats.norm.pdf(u, 0, width)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 1e-300, p * np.log(p / np.outer(side, side)), 0.0)
    return terms.sum() * (u[1] - u[0]) ** 2


@pytest.mark.parametrize("look", ["tiles", "waves"])
def test_shared_and_carried_information_are_integrals(look):
    generator, a_0, a_1 = _one_number(look)
    first, second = Chunks(0, 1), Chunks(1, 2)
    for chunks, other, gain, rest in ((first, second, a_0, a_1), (second, first, a_1, a_0)):
        expected = _shared_by_integral(gain, math.hypot(rest, 0.5))
        assert generator.carried_information(chunks) == pytest.approx(expected, abs=1e-6)
        assert generator.shared_information(other) == pytest.approx(expected, abs=1e-6)
    everything = Chunks(0, 2)
    assert generator.shared_information(everything) == pytest.approx(0, abs=1e-9)
    whole = _shared_by_integral(math.hypot(a_0, a_1), 0.5)
    assert generator.carried_information(everything) == pytest.approx(whole, abs=1e-6)


def test_class_information_is_an_integral():
    generator, a_0, a_1 = _one_number()
    rest = math.hypot(a_1, 0.5)
    width = math.hypot(a_0, rest)
    x = np.linspace(-9, 9, 1201) * width
    nodes, weights = np.polynomial.legendre.leggauss(200)
    for n_classes in (2, 3):
        edges = np.clip(stats.norm.ppf(np.arange(n_classes + 1) / n_classes), -9, 9)
        total = 0.0
        for low, high in itertools.pairwise(edges):  # p(label, x), the number inside the bin summed out
            z = (low + high) / 2 + (high - low) / 2 * nodes
            mass = (stats.norm.pdf(x[:, None], a_0 * z, rest) * stats.norm.pdf(z)) @ (weights * (high - low) / 2)
            p = stats.norm.pdf(x, 0, width)
            total += np.where(mass > 0, mass * np.log(np.maximum(mass, 1e-300) * n_classes / p), 0.0).sum()
        expected = total * (x[1] - x[0])
        assert generator.class_information(n_classes=n_classes) == pytest.approx(expected, abs=1e-6)
        assert generator.class_information(Chunks(1, 2), n_classes) == pytest.approx(expected, abs=1e-6)
        assert generator.class_information(Chunks(0, 1), n_classes) == 0


def test_binned_information_at_its_ends():
    assert binned_normal_information(0.0, 4) == 0 and binned_normal_information(0.5, 1) == 0
    assert binned_normal_information(1.0, 4) == pytest.approx(math.log(4))
    assert binned_normal_information(0.9999999, 4) == pytest.approx(math.log(4), abs=2e-3)
    values = [binned_normal_information(rho, 4) for rho in (0.1, 0.5, 0.9, 0.999)]
    assert values == sorted(values)
    assert values[2] < -0.5 * math.log(1 - 0.81)  # a bin says less than the number


def test_information_adds_up_where_chunks_are_orthogonal():
    """With orthonormal columns every number of z is a channel of its own, so ranges add."""
    generator = LinearGaussian((2, 1, 3), noise=0.4, gains=(1.0, 0.5, 2.0))
    carried = [generator.carried_information(Chunks(i, i + 1)) for i in range(3)]
    for start in range(3):
        for stop in range(start + 1, 4):
            chunks = Chunks(start, stop)
            assert generator.carried_information(chunks) == pytest.approx(sum(carried[start:stop]), abs=1e-6)
            rest = sum(carried) - sum(carried[start:stop])
            assert generator.shared_information(chunks) == pytest.approx(rest, abs=1e-6)
    crowded = LinearGaussian((2, 2), observed_dim=2, noise=0.1)  # fewer numbers than latents: each hides the others
    both = sum(crowded.carried_information(Chunks(i, i + 1)) for i in range(2))
    assert crowded.carried_information(Chunks(0, 2)) > both + 0.2
    with pytest.raises(UsageError, match="positive definite"):
        LinearGaussian((2, 2), noise=0.0).shared_information(Chunks(0, 1))


def test_labels_are_equally_likely_and_follow_their_chunk():
    generator = LinearGaussian((2, 2), truncation=2.0)
    z = TruncatedNormal().sample((20_000, 4), _rng())
    labels = generator.labels(z, 5, chunk=1)
    assert labels.bincount(minlength=5).float() == pytest.approx(4000, rel=0.05)
    assert (z[:, 2][labels == 0].max() <= z[:, 2][labels == 1].min()).item()
    with pytest.raises(UsageError, match="at least 2"):
        generator.labels(z, 1)


# --- noise that is truncated ----------------------------------------------------------------------------------------


def test_scores_of_truncated_noise_are_normal_and_can_be_undone():
    generator = LinearGaussian((2, 2), truncation=2.0)
    z = TruncatedNormal().sample((2000, 4), _rng())
    scores = generator.scores(z)
    assert stats.kstest(scores.flatten().numpy(), "norm").pvalue > 1e-3 and scores.abs().max() > 3
    torch.testing.assert_close(generator.noise_of(scores), z, rtol=0, atol=1e-5)
    ends = generator.scores(torch.tensor([[2.0, -2.0, 5.0, 0.0]]))
    torch.testing.assert_close(ends, torch.tensor([[6.0, -6.0, 6.0, 0.0]]), rtol=0, atol=1e-4)
    free = LinearGaussian((2, 2))
    assert free.scores(z) is z and free.noise_of(z) is z


def test_drawing_chunks_of_truncated_noise_anew_follows_the_closed_form():
    """As a map of a generator does it: z by TruncatedNormal, and again on the range."""
    generator = LinearGaussian((1, 2), noise=0.4, truncation=2.0)
    at = generator.layout.slice(Chunks(1, 2))
    z, fresh = (TruncatedNormal().sample((100_000, 3), _rng(seed)) for seed in (0, 1))
    again = torch.cat([z[:, : at.start], fresh[:, at]], 1)
    rng = _rng(2)
    a, b = (generator.observe(generator.decode(latents, rng)).double() for latents in (z, again))
    found = torch.cat([a, b], 1).T.cov()
    expected = generator.joint(GaussianPerturbation.stationary(0.0), Chunks(1, 2)).both.cov
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


# --- looks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("look", ["tiles", "waves"])
@pytest.mark.parametrize(("observed_dim", "resolution"), [(1, 1), (8, 8), (30, 7)])
def test_images_can_be_read_back(look, grey, observed_dim, resolution):
    generator = LinearGaussian((4, 4), observed_dim=observed_dim, resolution=resolution, look=look, grey=grey)
    x = generator.synthesize(torch.randn(50, 8, generator=_rng()))
    images = generator.render(x)
    assert images.shape == (50, 3, resolution, resolution) and images.min() >= 0 and images.max() <= 1
    assert grey == torch.equal(images[:, 0], images[:, 2])
    torch.testing.assert_close(generator.observe(images), x, rtol=0, atol=5e-5)


def test_waves_are_far_from_linear_and_pass_gradients():
    generator = load_generator("linear-gaussian-waves")
    assert generator.name == "linear-gaussian-waves" and generator.resolution == 16 and generator.truncation == 2
    z = TruncatedNormal().sample((3000, 8), _rng()).requires_grad_()
    images = generator.decode(z, _rng(1))
    images.square().mean().backward()
    assert (z.grad.abs().sum(1) > 0).all()
    flat = torch.cat([images.detach().flatten(1), torch.ones(3000, 1)], 1).double()
    x = generator.observe(images).detach().double()
    fit = torch.linalg.lstsq(torch.cat([x, torch.ones(3000, 1).double()], 1), flat[:, :-1]).solution
    left = flat[:, :-1] - torch.cat([x, torch.ones(3000, 1).double()], 1) @ fit
    assert left.var() > 0.15 * flat[:, :-1].var()
    assert generator.clip_probability() == 0


def test_too_small_images_and_unknown_looks_are_refused():
    with pytest.raises(UsageError, match="need at least 3"):
        LinearGaussian((4, 4), resolution=2, grey=True)
    with pytest.raises(UsageError, match="cannot show 13 numbers"):
        Waves(13, 2)
    with pytest.raises(UsageError, match="look 'blobs': must be one of tiles, waves"):
        LinearGaussian(look="blobs")
    with pytest.raises(UsageError, match="truncation 0"):
        LinearGaussian(truncation=0)


def test_settings_survive_a_file_and_the_usual_ones_are_as_before(tmp_path):
    assert list(LinearGaussian().config()) == ["sizes", "observed_dim", "noise", "resolution", "gains", "seed"]
    generator = load_generator("linear-gaussian-waves")
    assert list(generator.state_dict()) == ["mixing"]
    save_generator(tmp_path / "g.safetensors", generator)
    found = load_generator("linear-gaussian", tmp_path / "g.safetensors")
    z = TruncatedNormal().sample((4, 8), _rng())
    assert torch.equal(found.decode(z, _rng(1)), generator.decode(z, _rng(1)))
    assert found.config() == generator.config() and found.name == "linear-gaussian-waves"


# --- pairs of images as tasks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("nats", [0.0, 2.0, 10.0])
def test_the_family_of_images(nats):
    task = make_task("images", nats, 5)
    assert task.nats == pytest.approx(nats, abs=1e-8) and task.d_x == task.d_y == 9
    x, y = task.sample(2000, _rng())
    assert x.min() >= 0 and x.max() <= 1 and torch.equal(task.sample(5, _rng(3)).y, task.sample(5, _rng(3)).y)
    assert json.dumps(task.parameters)
    if nats == 2.0:  # the images hold it: read back, they follow the closed form
        generator = LinearGaussian(**{key: task.parameters[key] for key in generator_settings(task)})
        shown = [generator.observe(side.float().view(-1, 1, 3, 3).repeat(1, 3, 1, 1)).double() for side in (x, y)]
        joint = generator.joint(GaussianPerturbation(**task.parameters["perturbation"]))
        ratios = joint.log_ratio(*shown)
        assert abs(ratios.mean().item() - 2.0) < 4 * ratios.std().item() / math.sqrt(2000)


def generator_settings(task):
    return set(task.parameters) - {"perturbation", "chunks"}


def test_a_task_of_your_own():
    generator = LinearGaussian((2, 2), noise=0.4, resolution=4)
    task = image_task(generator, GaussianPerturbation.stationary(0.0), Chunks(0, 1), "mine")
    assert task.nats == generator.shared_information(Chunks(0, 1)) and task.d_x == 48
    assert task.sample(3, _rng()).x.shape == (3, 48) and task.name == "mine"
