"""Directions by GANSpace and SeFa: found where the answer is known, walked along, written and read back."""

from __future__ import annotations

import json

import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.delta import estimate_delta
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.linear_gaussian import LinearGaussian
from mi_ml_gen.latents import Chunks, LatentLayout, TruncatedNormal
from mi_ml_gen.walkers import directions as module
from mi_ml_gen.walkers.base import PublishedSeed
from mi_ml_gen.walkers.directions import (
    DirectionsWalker,
    directions_walker,
    ganspace_directions,
    sefa_directions,
)
from mi_ml_gen.walkers.files import read_about, save_walker
from mi_ml_gen.walkers.spec import load_groups, load_walker, walker_from
from tests.conftest import make_small_generator


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(module, "N_DRAWS", 300)


def _stretched():
    """Chunk 1 acts three times as strongly along one number as along the others: its directions are the axes."""
    generator = LinearGaussian((2, 3), noise=0.0)
    with torch.no_grad():
        generator.mixing[:, 3] *= 3.0
        generator.mixing[:, 2] *= 2.0
    return generator


def test_both_methods_find_the_directions_of_a_linear_generator():
    """The mixing matrix has orthogonal columns, so its singular vectors are axes, strongest first: 1, 0, 2."""
    generator = _stretched()
    axes = torch.eye(3)[[1, 0, 2]]
    torch.testing.assert_close(sefa_directions(generator, "1_2", 3), axes, rtol=0, atol=1e-4)
    found = ganspace_directions(generator, Chunks(1, 2), 3)
    assert ((found * axes).sum(1) > 0.97).all()
    assert torch.equal(found, ganspace_directions(generator, "1_2", 3))


def test_a_walk_along_directions():
    generator = _stretched()
    walker = directions_walker(generator, "1_2", "sefa", 2, strength=0.5)
    z = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0))
    pair = walker(generator, z, torch.Generator().manual_seed(1))
    step = pair.positive - pair.anchor
    assert step[:, [0, 1, 4]].abs().max() < 1e-3  # the third direction, and the other chunk, stay
    expected = TruncatedNormal(0, 0.5, 2).sample((100_000,), torch.Generator().manual_seed(2)).std()
    assert step[:, 2:4].std(dim=0).tolist() == pytest.approx([expected.item()] * 2, rel=0.05)
    again = walker(generator, z, torch.Generator().manual_seed(1))
    assert torch.equal(again.positive, pair.positive)
    seeded = [walker(generator, z[:5], PublishedSeed(3)).positive for _ in range(2)]
    assert torch.equal(*seeded)
    found = estimate_delta(generator, walker, 2000)
    assert found.mean == pytest.approx(step.norm(dim=1).mean().item(), rel=0.05)


@pytest.mark.parametrize("method", ["ganspace", "sefa"])
@pytest.mark.parametrize("chunks", ["0_1", "1_2", "0_2"])
def test_bigbigan_has_both(method, chunks):
    generator = make_small_generator()
    walker = directions_walker(generator, chunks, method, 3)
    width = 4 * len(walker.range)
    assert walker.directions.shape == (3, width)
    torch.testing.assert_close(walker.directions.norm(dim=1), torch.ones(3))
    if method == "sefa":
        torch.testing.assert_close(walker.directions @ walker.directions.T, torch.eye(3), rtol=0, atol=1e-5)
        weights = generator.first_weights(walker.range)
        sizes = (weights @ walker.directions.T).norm(dim=0)
        assert sizes[0] >= sizes[1] >= sizes[2] and sizes[0] == pytest.approx(torch.linalg.matrix_norm(weights, 2))


def test_first_weights_are_those_that_the_chunk_meets():
    """Along a direction that they do not see, the image stays."""
    generator = make_small_generator()
    for i in range(2):
        weights = generator.first_weights(Chunks(i, i + 1))
        assert weights.shape[1] == 4
        with torch.no_grad():
            rows = [generator.stem] if i == 0 else [
                layer for norm in (generator.blocks[0].norm1, generator.blocks[0].norm2)
                for layer in (norm.gain, norm.bias)]  # fmt: skip
            for row in rows:
                row.weight[:, 2] = 0
        z = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
        moved = z.clone()
        moved[:, 4 * i + 2] += 1
        torch.testing.assert_close(generator.decode(moved), generator.decode(z))


class Styled(MultiLatentGenerator):
    """Two chunks of four, both the one style tanh(z M) of noise z (3): latents are not the noise."""

    name, layout, noise_dim, resolution = "styled", LatentLayout((4, 4)), 3, 8

    def __init__(self):
        super().__init__()
        self.register_buffer("matrix", torch.diag(torch.tensor([0.01, 0.5, 0.1]))[:, [0, 1, 2, 2]])

    def walk_slice(self, chunks):
        return slice(0, 3)

    def latents(self, z):
        return torch.tanh(z @ self.matrix).repeat(1, 2)


def test_ganspace_takes_the_latents_where_they_are_not_the_noise():
    found = ganspace_directions(Styled(), "0_1", 2)
    assert found[0].abs().argmax() == 1 and found[1].abs().argmax() == 2 and found[0, 1] > 0.95


def test_what_cannot_be_is_refused_in_one_line():
    generator = _stretched()
    with pytest.raises(UsageError, match="styled does not name its first weights, which sefa needs; use ganspace"):
        sefa_directions(Styled(), "0_1", 1)
    with pytest.raises(UsageError, match="4 directions on chunks 1_2 of linear-gaussian: must be 1 to 3"):
        sefa_directions(generator, "1_2", 4)
    with pytest.raises(UsageError, match="0 directions"):
        ganspace_directions(generator, "1_2", 0)
    with torch.no_grad():
        generator.mixing[:, 2:] = 0
    with pytest.raises(UsageError, match="change along fewer than 1 directions"):
        ganspace_directions(generator, "1_2", 1)
    with pytest.raises(UsageError, match="must be one of ganspace, sefa"):
        directions_walker(generator, "1_2", "pca", 1)
    with pytest.raises(UsageError, match="none of them 0"):
        DirectionsWalker("0_1", torch.zeros(2, 2))
    with pytest.raises(UsageError, match="directions of 2 numbers on chunks 1_2 do not fit"):
        DirectionsWalker("1_2", torch.ones(1, 2)).check(generator)


def test_a_file_gives_the_same_walker(tmp_path):
    generator = make_small_generator()
    walker = directions_walker(generator, "0_2", "ganspace", 3, 1.5)
    path = save_walker(tmp_path / "w", walker, generator="small")
    found = load_walker(path)
    assert isinstance(found, DirectionsWalker) and found.config() == walker.config()
    assert torch.equal(found.directions, walker.directions) and read_about(path) == {"generator": "small"}
    assert json.loads((tmp_path / "w.json").read_text())["method"] == "ganspace"
    z = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    pairs = [one(generator, z, torch.Generator().manual_seed(1)).positive for one in (walker, found)]
    assert torch.equal(*pairs)


@pytest.mark.parametrize(("text", "strength"), [("ganspace:2,1.5", 1.5), ("sefa:2", 1.0), (" sefa: 2 , 0.5", 0.5)])
def test_the_grammar(text, strength, tmp_path):
    generator = make_small_generator()
    walker = walker_from(f"0_1={text} 1_2=0.5", generator)
    first = walker.members[0]
    method = text.strip().partition(":")[0]
    expected = directions_walker(generator, "0_1", method, 2, strength)
    assert first.config() == expected.config() and torch.equal(first.directions, expected.directions)
    groups = tmp_path / "groups.yaml"
    groups.write_text(f"0_1: '{text}'\n1_2: 0.5\n")
    assert load_groups(groups, generator).config() == walker.config()
    assert walker_from({"0_1": text, "1_2": [0, 0.5, 2]}, generator).config() == walker.config()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("ganspace:2", "says no chunks; for all of small write 0_2=ganspace:2"),
        ("0_1=ganspace:2,strong", "the strength must be a number of at least 0"),
        ("0_1=sefa:2,-1", "the strength must be a number of at least 0"),
        ("0_1=sefa:9", "9 directions on chunks 0_1 of small: must be 1 to 4"),
    ],
)
def test_faults_of_the_grammar(written, said):
    with pytest.raises(UsageError, match=said):
        walker_from(written, make_small_generator())
