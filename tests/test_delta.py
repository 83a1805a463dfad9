"""Delta against its closed form, its slow twin, and itself at other numbers of draws."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.delta import BATCH, estimate_delta, independent_delta, pair_delta
from mi_ml_gen.latents import Chunks, TruncatedNormal
from mi_ml_gen.walkers.base import IdentityWalker
from mi_ml_gen.walkers.grouped import GroupedWalker
from mi_ml_gen.walkers.learned import NonlinearWalker
from mi_ml_gen.walkers.noise import RandomWalker

UNTRUNCATED = TruncatedNormal(0, 1, math.inf)


def test_gaussian_noise_has_the_length_of_a_chi_variable(small_generator):
    """Noise of std s on a chunk of 4 numbers: delta / s is chi with 4 degrees of freedom."""
    walker = RandomWalker(Chunks(1, 2), TruncatedNormal(0, 0.3, math.inf))
    estimate = estimate_delta(small_generator, walker, 50_000, UNTRUNCATED)
    chi = stats.chi(4, scale=0.3)
    assert estimate.mean == pytest.approx(chi.mean(), abs=4 * estimate.standard_error)
    assert estimate.std == pytest.approx(chi.std(), rel=0.02)
    assert estimate.standard_error == pytest.approx(chi.std() / math.sqrt(50_000), rel=0.02)


def test_independent_draws_lie_as_far_apart_as_the_distribution_says(small_generator):
    estimate = independent_delta(small_generator, Chunks(0, 1), 50_000, UNTRUNCATED)
    assert estimate.mean == pytest.approx(stats.chi(4, scale=math.sqrt(2)).mean(), abs=4 * estimate.standard_error)


def test_streaming_equals_the_plain_mean_and_deviation(small_generator):
    """The slow twin: all lengths kept, then mean and standard deviation."""
    torch.manual_seed(0)
    walker = NonlinearWalker(Chunks(0, 2), 8)
    n = 2 * BATCH + 37  # no multiple of anything
    lengths = []

    def keep(z, moved, chunks):
        lengths.append((moved - z).norm(dim=1))
        return lengths[-1]

    small_generator.distance = keep
    estimate = estimate_delta(small_generator, walker, n, seed=3)
    whole = torch.cat(lengths)[:n].double()
    assert estimate.n_samples == n
    assert estimate.mean == pytest.approx(whole.mean().item(), rel=1e-9)
    assert estimate.std == pytest.approx(whole.std(unbiased=False).item(), rel=1e-6)


def test_delta_is_the_length_of_the_pairs_difference(small_generator):
    """The estimator never builds a pair; building them must give the same lengths."""
    torch.manual_seed(1)
    walker = GroupedWalker([NonlinearWalker(Chunks(0, 1), 4), NonlinearWalker(Chunks(1, 2), 4)])
    from mi_ml_gen.core import runtime

    z = TruncatedNormal().sample((BATCH, 8), runtime.stream(5, "delta", 0, 0))
    with torch.no_grad():
        expected = pair_delta(small_generator, walker(small_generator, z), walker.chunks)[:100]
    estimate = estimate_delta(small_generator, walker, 100, seed=5)
    assert estimate.mean == pytest.approx(expected.double().mean().item(), rel=1e-6)


def test_a_seed_gives_the_same_estimate_and_another_seed_another(small_generator):
    walker = RandomWalker(Chunks(0, 1), TruncatedNormal())
    one, two, other = (estimate_delta(small_generator, walker, 1000, seed=seed) for seed in (1, 1, 2))
    assert one == two and one.mean != other.mean


def test_nothing_perturbed_has_no_length(small_generator):
    assert estimate_delta(small_generator, IdentityWalker(), 10).mean == 0


def test_no_draws_are_refused(small_generator):
    with pytest.raises(UsageError, match="--n_samples 0"):
        estimate_delta(small_generator, IdentityWalker(), 0)
