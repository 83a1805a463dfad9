"""Delta against its closed form, its slow twin, and itself at other numbers of draws."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mi_ml_gen import delta
from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.delta import BATCH, block_rows, estimate_delta, independent_delta, pair_delta, quick_draws
from mi_ml_gen.experiments import table1
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.latents import Chunks, LatentLayout, TruncatedNormal
from mi_ml_gen.navigator.folders import TrainedWalker
from mi_ml_gen.walkers import learned
from mi_ml_gen.walkers.base import IdentityWalker
from mi_ml_gen.walkers.grouped import GroupedWalker
from mi_ml_gen.walkers.learned import ConvolutionalWalker, NonlinearWalker, learned_walker
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


# --- what a seed means


def test_seeds_of_short_noise_mean_what_they_always_did(small_generator):
    """Blocks of 8192 draws, anchors and then the walker's noise from the block's stream."""
    walker = RandomWalker("0_1", [0, 0.5, 2])
    lengths = []
    for block in range(3):
        rng = runtime.stream(3, "delta", block, 0)
        TruncatedNormal().sample((8192, 8), rng)  # the anchors come first
        lengths.append(TruncatedNormal(0, 0.5, 2).sample((8192, 4), rng).norm(dim=1))
    wanted = torch.cat(lengths)[:20_000].double()
    estimate = estimate_delta(small_generator, walker, 20_000, seed=3)
    assert estimate.mean == pytest.approx(wanted.mean().item(), rel=1e-6)


@pytest.mark.parametrize("noise_dim", [1, 120, 512, 1024, 1025, 5000, 172_032, 700_000, 2**23, 2**24])
def test_blocks_are_bounded_by_values(noise_dim):
    rows = block_rows(noise_dim)
    assert rows == BATCH if noise_dim <= 1024 else rows * noise_dim <= delta.BLOCK_VALUES or rows == 1
    assert rows == BATCH or 2 * rows * noise_dim > delta.BLOCK_VALUES / 2


def test_each_block_of_long_noise_has_its_own_stream():
    generator = Latents(LatentLayout((3000, 3000)))
    n = 2 * block_rows(6000) + 5
    lengths = []
    for block in range(3):
        rng = runtime.stream(7, "independent delta", block, 0)
        first, second = (TruncatedNormal().sample((block_rows(6000), 6000), rng)[:, :3000] for _ in range(2))
        lengths.append((first - second).norm(dim=1))
    estimate = independent_delta(generator, "0_1", n, seed=7)
    assert estimate.mean == pytest.approx(torch.cat(lengths)[:n].double().mean().item(), rel=1e-6)


def test_the_former_name_of_the_distribution_still_works(small_generator):
    narrow = TruncatedNormal(0, 0.5, 1)
    new = independent_delta(small_generator, "0_1", 100, distribution=narrow)
    assert new == independent_delta(small_generator, Chunks(0, 1), 100, law=narrow)
    walker = NonlinearWalker.on(small_generator, "0_1")
    new = estimate_delta(small_generator, walker, 100, distribution=narrow)
    assert new == estimate_delta(small_generator, walker, 100, law=narrow)


def test_long_noise_needs_few_draws():
    assert quick_draws(Latents(LatentLayout((512,)))) == 20_000
    assert quick_draws(LONGEST) == 1000


# --- memory


class Latents(MultiLatentGenerator):
    """A latent space alone, whose latents are the noise."""

    name, resolution = "latents", 8

    def __init__(self, layout: LatentLayout):
        super().__init__()
        self.layout, self.noise_dim = layout, layout.dim


LONG = Latents(LatentLayout.of_shapes([(16, 8, 8)] * 8 + [(16, 16, 16)] * 8 + [(16, 32, 32)] * 8))
"""24 chunks, 172,032 numbers; 131,072 of them in the last scale."""
LONGEST = Latents(LatentLayout((30_000,) * 20 + (25_000,) * 4))
"""24 chunks without shapes, 700,000 numbers."""


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of all storages that tensors made inside of it hold at once."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._users: Counter[int] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = {tensor.untyped_storage().data_ptr() for tensor in tree_leaves((args, kwargs)) if _is_tensor(tensor)}
        for tensor in filter(_is_tensor, tree_leaves(result)):
            storage = tensor.untyped_storage()
            pointer = storage.data_ptr()
            if self._users[pointer] == 0:
                if pointer in known:
                    continue  # made outside
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
            self._users[pointer] += 1
            weakref.finalize(tensor, self._release, pointer, storage.nbytes())
        return result

    def _release(self, pointer: int, n_bytes: int) -> None:
        self._users[pointer] -= 1
        if self._users[pointer] == 0:
            self.now -= n_bytes


def _is_tensor(value) -> bool:
    return isinstance(value, torch.Tensor)


def test_the_count_of_memory_counts():
    with PeakBytes() as counted:
        kept = torch.zeros(1000, 1000)
        for _ in range(3):
            other = kept + 1
            del other
    assert 8_000_000 <= counted.peak < 9_000_000


@pytest.mark.parametrize(("generator", "chunks"), [(LONG, "0_24"), (LONGEST, "0_1")], ids=["maps", "vectors"])
def test_long_latents_need_no_more_memory(generator, chunks, monkeypatch):
    """delta of a learned walker, of noise, and the independent one, and all of Table 1: far below 1 GB in all."""
    random = GroupedWalker([RandomWalker(Chunks(i, i + 1), 0.5) for i in range(24)])
    monkeypatch.setattr(delta, "INDEPENDENT_DRAWS", 100)
    walkers = learned_walker(generator, chunks), RandomWalker(chunks, 0.5)
    n = block_rows(generator.noise_dim)
    with PeakBytes() as counted:
        trained = [TrainedWalker(Path("w"), walker, 2048, 1.0, 1.0, 64, 0.1) for walker in walkers]
        rows = table1.estimate_rows(generator, trained, n)
        several = estimate_delta(generator, random, n)
    assert counted.peak < 500_000_000
    assert several.mean == pytest.approx(0.5 * 0.8796 * math.sqrt(generator.noise_dim), rel=0.01)
    width = generator.walk_slice(Chunks.of(chunks))
    apart = 0.8796 * math.sqrt(2 * (width.stop - width.start))
    assert rows[0].independent.mean == pytest.approx(apart, rel=0.01)
    assert 0 < rows[0].delta.mean < 0.05 * apart
    assert rows[1].delta.mean == pytest.approx(0.5 * apart / math.sqrt(2), rel=0.01)


def test_hidden_values_are_bounded_too(monkeypatch):
    """The 64 hidden channels are 64 times as many numbers as this chunk; all rows at once would take 67 MB a layer."""
    walker = ConvolutionalWalker("0_1", [(1, 64, 64)])
    monkeypatch.setattr(learned, "_VALUES_AT_ONCE", 2**20)  # 4 MB
    z = torch.randn(64, 4096)
    with PeakBytes() as counted, torch.no_grad():
        walker.displacement(z)
    assert counted.peak < 30_000_000
