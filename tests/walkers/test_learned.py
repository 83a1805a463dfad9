"""Learned walkers for chunks of any size: which is chosen, how it starts, what it may depend on, and its size."""

from __future__ import annotations

import math

import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.delta import estimate_delta, independent_delta
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.latents import Chunks, LatentLayout
from mi_ml_gen.walkers import learned
from mi_ml_gen.walkers.files import save_walker
from mi_ml_gen.walkers.learned import ConvolutionalWalker, LowRankWalker, NonlinearWalker, learned_walker
from mi_ml_gen.walkers.spec import load_walker


class Latents(MultiLatentGenerator):
    """A latent space alone, whose latents are the noise."""

    name, resolution = "latents", 8

    def __init__(self, layout: LatentLayout):
        super().__init__()
        self.layout, self.noise_dim = layout, layout.dim


SCALES = LatentLayout.of_shapes([(16, 8, 8)] * 8 + [(16, 16, 16)] * 8 + [(16, 32, 32)] * 8)
"""Three scales of eight groups: 172,032 numbers, 131,072 of them in the last scale."""
MIXED = LatentLayout((5000, 4096, 4096, 2048), (None, (4, 32, 32), (4, 32, 32), (2, 32, 32)))


def n_parameters(walker: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in walker.parameters())


@pytest.mark.parametrize(
    ("layout", "chunks", "kind"),
    [
        (LatentLayout((20,) * 6), "0_6", NonlinearWalker),
        (LatentLayout((3161,)), "0_1", NonlinearWalker),
        (LatentLayout((3162,)), "0_1", LowRankWalker),
        (SCALES, "0_1", NonlinearWalker),
        (SCALES, "8_9", ConvolutionalWalker),
        (SCALES, "16_24", ConvolutionalWalker),
        (SCALES, "0_24", ConvolutionalWalker),
        (MIXED, "0_1", LowRankWalker),
        (MIXED, "0_4", ConvolutionalWalker),
    ],
)
def test_the_published_form_is_taken_up_to_its_limit(layout, chunks, kind):
    walker = learned_walker(Latents(layout), chunks)
    assert type(walker) is kind
    assert n_parameters(walker) <= learned.MAX_PUBLISHED_PARAMETERS
    published = 2 * walker.width * (walker.width + 1)
    assert (kind is NonlinearWalker) == (published <= learned.MAX_PUBLISHED_PARAMETERS)


def test_a_walk_slice_that_is_not_the_chunks_is_taken_as_flat():
    """A family that maps noise to shaped latents: what the walker moves has none of the chunk's shape."""

    class Mapped(Latents):
        def walk_slice(self, chunks):
            return slice(0, 4000)

    assert isinstance(learned_walker(Mapped(SCALES), "16_17"), LowRankWalker)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: LowRankWalker("0_1", 1000 * n),
        lambda n: ConvolutionalWalker("0_1", [(10 * n, 8, 8)]),
        lambda n: ConvolutionalWalker("0_1", [(10, 8 * n, 8)]),
        lambda n: ConvolutionalWalker("0_1", [(1000 * n,)]),
    ],
)
def test_sizes_grow_linearly(make):
    first, second, third = (n_parameters(make(n)) for n in (1, 2, 3))
    assert third - second == second - first > 0


@pytest.mark.parametrize(("layout", "chunks"), [(LatentLayout((5000, 5000)), "0_1"), (SCALES, "16_24"), (MIXED, "0_4")])
def test_long_walkers_start_near_the_identity(layout, chunks):
    torch.manual_seed(0)
    generator = Latents(layout)
    walker = learned_walker(generator, chunks)
    moved = estimate_delta(generator, walker, 16).mean
    apart = independent_delta(generator, chunks, 16).mean
    assert 0 < moved < 0.05 * apart


def test_only_the_chunks_move_and_gradients_reach_every_weight():
    generator = Latents(MIXED)
    walker = learned_walker(generator, "1_4")
    for parameter in walker.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    z = torch.randn(2, MIXED.dim)
    pair = walker(generator, z)
    assert torch.equal(pair.positive[:, :5000], z[:, :5000])
    assert (pair.positive[:, 5000:] != z[:, 5000:]).any(dim=0).all()
    (pair.positive * torch.randn_like(z)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in walker.parameters())


def test_groups_of_a_scale_may_depend_on_one_another_and_scales_do_not():
    walker = ConvolutionalWalker("0_3", [(2, 6, 6), (2, 6, 6), (2, 3, 3)], channels=4)
    for parameter in walker.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    z = torch.randn(1, walker.width)
    other = z.clone()
    other[:, :72] = torch.randn(1, 72)  # the first group alone
    change = (walker.displacement(other) - walker.displacement(z)).abs()[0]
    assert change[72:144].max() > 0 and change[144:].max() == 0


def test_the_offset_may_differ_from_place_to_place():
    walker = ConvolutionalWalker("0_1", [(1, 4, 4)], channels=2)
    with torch.no_grad():
        walker.networks[0].offset.copy_(torch.arange(16.0).view(1, 4, 4))
        walker.networks[0].leave.weight.zero_()
        walker.networks[0].leave.bias.zero_()
    assert torch.equal(walker.displacement(torch.randn(1, 16)), torch.arange(16.0)[None])


def test_rows_at_a_time_change_nothing(monkeypatch):
    walker = ConvolutionalWalker("0_1", [(3, 8, 8)], channels=8)
    z = torch.randn(7, 192)
    whole = walker.displacement(z)
    monkeypatch.setattr(learned, "_VALUES_AT_ONCE", 2 * 8 * 64)
    with torch.no_grad():
        torch.testing.assert_close(walker.displacement(z), whole)


@pytest.mark.parametrize(
    "walker",
    [
        LowRankWalker("0_1", 16, rank=3),
        ConvolutionalWalker("0_4", [(5,), (1, 2, 3), (2, 2, 3), (1, 4, 4)], channels=2),
    ],
    ids=lambda walker: walker.config()["kind"],
)
def test_saved_ones_come_back_bit_for_bit(walker, tmp_path):
    loaded = load_walker(save_walker(tmp_path / "w", walker))
    assert loaded.config() == walker.config()
    z = torch.randn(3, walker.width)
    assert torch.equal(loaded.displacement(z), walker.displacement(z))


def test_a_walker_can_learn_to_move_a_feature_map():
    """A few steps of Adam towards a given displacement, minus the mean of the neighbours, remove most of its error."""
    torch.manual_seed(0)
    walker = ConvolutionalWalker("0_1", [(4, 8, 8)], channels=16)
    optimizer = torch.optim.Adam(walker.parameters(), lr=3e-3)

    def error() -> torch.Tensor:
        z = torch.randn(32, 4, 8, 8)
        wanted = -torch.nn.functional.avg_pool2d(z, 3, 1, 1)
        return (walker.displacement(z.flatten(1)) - wanted.flatten(1)).square().mean()

    first = error().item()
    for _ in range(150):
        optimizer.zero_grad()
        loss = error()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * first


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: NonlinearWalker("1-2", 4), "chunks '1-2': give Chunks"),
        (lambda: NonlinearWalker(3, 4), "chunks 3: give Chunks"),
        (lambda: NonlinearWalker(("0", "1"), 4), "give Chunks"),
        (lambda: NonlinearWalker("2_1", 4), "0 <= start < stop"),
        (lambda: NonlinearWalker("0_1", 0), "width 0 of a walker"),
        (lambda: LowRankWalker("0_1", 4, rank=0), "rank 0 of a walker"),
        (lambda: LowRankWalker("0_1", 4.0), "width 4.0 of a walker"),
        (lambda: ConvolutionalWalker("0_2", [(1, 2, 2)]), "give (channels, height, width) or (size,) for each"),
        (lambda: ConvolutionalWalker("0_1", [(2, 2)]), "give (channels, height, width) or (size,) for each"),
        (lambda: ConvolutionalWalker("0_1", [(0, 2, 2)]), "size of a part 0"),
        (lambda: learned_walker(Latents(SCALES), "0_25"), "stop must be at most 24; latents has chunks 0_24"),
    ],
)
def test_what_makes_no_sense_is_refused_at_construction(make, says):
    with pytest.raises(UsageError) as refused:
        make()
    assert says in str(refused.value)


def test_chunks_as_text_are_the_same_chunks():
    assert NonlinearWalker("1_3", 4).chunks == NonlinearWalker(Chunks(1, 3), 4).chunks == (Chunks(1, 3),)
    assert math.prod(SCALES.shapes[16]) == SCALES.sizes[16]
