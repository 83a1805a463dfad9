"""T_z, decode, T_x: what a step's views are a function of, and what they hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.data.source import HeldImages
from mi_ml_gen.generators.bigbigan import from_published
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.latents import Chunks, TruncatedNormal
from mi_ml_gen.views.augment import Augment, unit_range
from mi_ml_gen.views.sampler import (
    BatchKey,
    GeneratedImages,
    PairedImages,
    StoredImages,
    Views,
    ViewSampler,
    stored_images,
)
from mi_ml_gen.walkers.base import IdentityWalker
from mi_ml_gen.walkers.files import save_walker
from mi_ml_gen.walkers.grouped import GroupedWalker
from mi_ml_gen.walkers.learned import NonlinearWalker
from mi_ml_gen.walkers.noise import RandomWalker
from mi_ml_gen.walkers.spec import walker_from
from tests.conftest import GOLDEN, make_small_generator

RANDOM = "0_1=0,0.5,2 1_2=0,1,2"


def generated(text=None, **settings) -> ViewSampler:
    generator = make_small_generator()
    origin = GeneratedImages(generator, walker_from(text, generator), decode_at_once=settings.pop("at_once", None))
    return ViewSampler(origin, **{"policy": "simclr", "batch_size": 4, "seed": 5} | settings)


def counted(n: int, size: int = 8) -> HeldImages:
    """n images that tell their own number by their grey, at most 256."""
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1).expand(n, size, size)
    return HeldImages("counted", images, torch.arange(n))


def numbers(sampler: ViewSampler, step: int) -> list[int]:
    return (sampler.images(step).anchor[:, 0, 0, 0] * 255).round().int().tolist()


@pytest.fixture
def walkers(tmp_path):
    """Two learned walkers of the small generator that move far, a file for each chunk."""
    paths = {}
    for start in (0, 1):
        torch.manual_seed(start)
        walker = NonlinearWalker.on(make_small_generator(), Chunks(start, start + 1))
        torch.nn.init.normal_(walker.walker[2].weight)
        torch.nn.init.normal_(walker.walker[2].bias)
        paths[f"{start}_{start + 1}"] = str(save_walker(tmp_path / f"walker{start}", walker))
    return paths


# --- precision


@pytest.mark.parametrize("kind", ["learned", "random"])
def test_the_precision_of_the_decoder_leaves_the_latents(monkeypatch, walkers, kind):
    """A walker perturbs as it does in the navigator, in float32; only the decoder runs in bf16."""
    seen: dict[str, list[torch.Tensor]] = {}
    for precision in ("fp32", "bf16"):
        sampler = generated(walkers if kind == "learned" else RANDOM, precision=precision)

        def decode_pair(anchor, positive, chunks, rng, precision=precision, plain=sampler.origin.decode_pair):
            assert torch.is_autocast_enabled("cpu") == (precision == "bf16")
            seen[precision] = [anchor, positive]
            return plain(anchor, positive, chunks, rng)

        monkeypatch.setattr(sampler.origin, "decode_pair", decode_pair)
        sampler.images(0)
    for full, half in zip(seen["fp32"], seen["bf16"], strict=True):
        assert half.dtype == torch.float32 and torch.equal(full, half)
    assert not torch.equal(*seen["fp32"])


# --- randomness


@pytest.mark.parametrize("text", [None, RANDOM])
def test_views_are_a_function_of_seed_rank_and_step(text):
    one, other = generated(text), generated(text)
    wanted = [one(step) for step in range(3)]
    for step in (2, 0, 1):  # another process, in another order
        again = other(step)
        assert torch.equal(again.first, wanted[step].first) and torch.equal(again.second, wanted[step].second)
    different = [generated(text, seed=6)(0), generated(text, rank=1, world_size=2)(0), wanted[1]]
    assert all(not torch.equal(views.first, wanted[0].first) for views in different)


def test_no_two_processes_or_steps_share_a_latent_or_a_crop():
    """Eight ranks, two hundred steps, each use of randomness: every stream begins with other numbers."""
    device = torch.device("cpu")
    seen = set()
    keys = [BatchKey(0, step, rank, 8, 4, device) for step in range(200) for rank in range(8)]
    names = ("anchors", "positives", "decode", "crops")
    for key in keys:
        for name in names:
            seen.add(tuple(torch.rand(2, generator=key.rng(name)).tolist()))
    assert len(seen) == len(keys) * len(names)


def test_runs_that_differ_in_tz_alone_have_the_same_anchors_and_crops():
    plain, moved = generated(None), generated("1_2=0,1,2")
    assert torch.equal(plain.images(3).anchor, moved.images(3).anchor)
    assert torch.equal(plain(3).first, moved(3).first)
    assert not torch.equal(plain(3).second, moved(3).second)


READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "nonzero")


def test_nothing_is_read_back_by_the_host(monkeypatch):
    sampler = generated(RANDOM)

    def read(tensor, *arguments):
        raise AssertionError("the host would wait for the device here")

    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, read)
    sampler(0)
    with pytest.raises(AssertionError):  # the detector itself works
        bool(torch.ones(1) > 0)


# --- T_z


def test_unperturbed_images_are_decoded_once_and_seen_twice():
    sampler = generated(None)
    images = sampler.images(0)
    assert images.anchor is images.positive
    views = sampler(0)
    assert views.first.shape == views.second.shape == (4, 3, 7, 7)
    assert not torch.equal(views.first, views.second)
    plain = generated(None, policy="none")(0)
    assert torch.equal(plain.first, plain.second)


def test_random_groups_move_their_chunks_only():
    sampler = generated("1_2=0,1,2", policy="none")
    generator = sampler.origin.generator
    key = sampler.key(0)
    z = TruncatedNormal().sample((4, generator.noise_dim), key.rng("anchors"))
    pair = RandomWalker(Chunks(1, 2), TruncatedNormal())(generator, z, key.rng("positives"))
    assert torch.equal(pair.anchor[:, :4], pair.positive[:, :4])
    torch.testing.assert_close(sampler.images(0).positive, generator.decode(pair.positive), atol=1e-6, rtol=0)
    torch.testing.assert_close(sampler(0).first, Augment("none", 8)(generator.decode(z)), atol=1e-5, rtol=0)


def test_several_learned_walkers_on_bigbigan(walkers):
    """Each chunk's own walker, from the same anchor."""
    sampler = generated(walkers)
    generator = sampler.origin.generator
    assert isinstance(sampler.origin.walker, GroupedWalker)
    assert all(not parameter.requires_grad for parameter in sampler.origin.walker.parameters())
    z = TruncatedNormal().sample((4, generator.noise_dim), sampler.key(1).rng("anchors"))
    with torch.no_grad():
        first, second = sampler.origin.walker.members
        moved = [first.walker(z[:, :4]), second.walker(z[:, 4:])]
        wanted = generator.decode(z + torch.cat(moved, dim=1))
    found = sampler.images(1)
    torch.testing.assert_close(found.positive, wanted, atol=1e-6, rtol=0)
    assert (found.positive - found.anchor).abs().max() > 0.05


def test_learned_random_and_null_groups_together(walkers):
    walker = walker_from({"0_1": walkers["0_1"], "1_2": ["0", "0.5", "2"]}, make_small_generator())
    assert [type(member) for member in walker.members] == [NonlinearWalker, RandomWalker]
    text = walker_from(f"0_1={walkers['0_1']} 1_2=null", make_small_generator())
    assert text.chunks == (Chunks(0, 1),)
    assert isinstance(walker_from("none", make_small_generator()), IdentityWalker)
    one = walker_from(walkers["1_2"], make_small_generator())
    assert one.chunks == (Chunks(1, 2),)


@pytest.mark.parametrize(
    "text, message",
    [
        ("0_3=0,1,2", "stop must be at most 2"),
        ("0_1=0,1,2 0_2=0,1,2", "overlaps"),
        ("0_1=0,1,2 0_1=0,1,2", "twice"),
        ("0_1=0,1,2 nonsense", "CHUNKS=WALKER"),
        ("0_1=0,1,2,3", "mean, std, truncation"),
        ("0_1=0,x,2", "mean,std,truncation"),
        ("missing.safetensors", "no such file"),
    ],
)
def test_a_wrong_tz_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        walker_from(text, make_small_generator())


def test_a_walker_of_another_generator_is_refused(tmp_path):
    path = save_walker(tmp_path / "wide", NonlinearWalker(Chunks(0, 1), 20))
    for text in (str(path), {"0_1": str(path)}):
        with pytest.raises(UsageError, match="does not fit"):
            walker_from(text, make_small_generator())


@pytest.mark.parametrize("text", [None, RANDOM])
def test_decoding_in_parts_changes_nothing(text):
    whole, parts = generated(text)(2), generated(text, at_once=3)(2)
    torch.testing.assert_close(parts.first, whole.first, atol=1e-5, rtol=0)
    torch.testing.assert_close(parts.second, whole.second, atol=1e-5, rtol=0)


def test_images_stay_in_range_under_autocast():
    sampler = generated(RANDOM, precision="bf16")
    images = sampler.images(0)
    assert images.anchor.dtype == torch.float32 and sampler(0).first.dtype == torch.float32
    assert images.positive.min() >= 0 and images.positive.max() <= 1


# --- stored images


def test_an_epoch_holds_each_image_once_over_all_processes():
    samplers = [ViewSampler(StoredImages(counted(50)), "none", 4, 1, rank=r, world_size=3) for r in range(3)]
    orders = []
    for epoch in range(2):  # 50 // 12 = 4 steps each, two images left out
        seen = [n for step in range(4 * epoch, 4 * epoch + 4) for sampler in samplers for n in numbers(sampler, step)]
        assert len(seen) == len(set(seen)) == 48
        orders.append(seen)
    assert orders[0] != orders[1] and sorted(orders[0]) != sorted(orders[1])


def test_reading_ahead_equals_reading_anew():
    wanted = [numbers(ViewSampler(StoredImages(counted(50)), "none", 8, 1), step) for step in range(13)]
    sampler = ViewSampler(StoredImages(counted(50)), "none", 8, 1)
    assert [numbers(sampler, step) for step in range(13)] == wanted
    assert numbers(sampler, 4) == wanted[4] and numbers(sampler, 5) == wanted[5]  # back, as after a resume
    assert numbers(ViewSampler(StoredImages(counted(50)), "none", 8, 2), 0) != wanted[0]


def test_two_views_of_a_stored_image_are_cut_differently():
    source = HeldImages("noise", torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8))
    sampler = ViewSampler(StoredImages(source), "simclr", 5, 0, crop_size=12)
    views = sampler(0)
    assert views.first.shape == (5, 3, 12, 12) and not torch.equal(views.first, views.second)
    rng = runtime.stream(0, "views: crops", 0, 0)
    images = unit_range(source.batch(StoredImages(source).rest_of_epoch(sampler.key(0))[0]))
    assert torch.equal(views.first, Augment("simclr", 16, 12)(images, rng))


def test_a_batch_larger_than_the_set_is_refused():
    with pytest.raises(UsageError, match="smaller batch"):
        ViewSampler(StoredImages(counted(7)), "none", 8)(0)


# --- the published pipeline


class Given:
    """A distribution that gives what it was given."""

    def __init__(self, values):
        self.values = values

    def sample(self, shape, rng, device=None):
        assert self.values.shape == tuple(shape)
        return self.values


def test_views_of_published_latents(published_bigbigan):
    """From the reference's latents its views, on the whole BigBiGAN."""
    with np.load(GOLDEN / "view_batches.npz") as golden:
        prefix, latents = str(golden["generator_prefix"]), torch.from_numpy(golden["batch/0/latents"])
        wanted = [torch.from_numpy(golden[f"batch/0/view{i}_grid"])[1:] for i in (1, 2)]
    generator = from_published(published_bigbigan("bigbigan_x1", prefix)).freeze()
    anchor, positive = latents[1:2], latents[3:4]
    walker = walker_from("1_6=0,1,2", generator)
    walker.members[0].distribution = Given((positive - anchor)[:, generator.walk_slice(Chunks(1, 6))])
    views = ViewSampler(GeneratedImages(generator, walker, Given(anchor)), "none", 1)(0)
    for view, grid in zip(views, wanted, strict=True):
        assert view.shape == (1, 3, 112, 112)
        torch.testing.assert_close(view[:, :, ::8, ::8], grid, atol=1e-4, rtol=0)


def test_the_bundled_generator_gives_views():
    generator = load_generator("tiny-bigbigan")
    views = ViewSampler(GeneratedImages(generator), "simclr", 2)(0)
    assert views.first.shape == (2, 3, 28, 28) and views.first.isfinite().all()


# --- pairs that people made


class Numbered:
    """Seven things, each drawn three times: picture p of thing t is grey 10 t + p."""

    name, n_images, image_size, labels, classes = "numbered", 7, 8, None, ()

    def batch(self, indices):
        return (10 * indices).byte()[:, None, None, None].expand(-1, 3, 8, 8)

    def pairs(self, indices, draws):
        first = (draws[:, 0] * 3).long()
        second = (first + 1 + (draws[:, 1] * 2).long()) % 3
        return tuple((10 * indices + part).byte()[:, None, None, None].expand(-1, 3, 8, 8) for part in (first, second))


def test_pairs_of_a_source_are_two_pictures_of_one_thing():
    origin = stored_images(Numbered())
    assert isinstance(origin, PairedImages) and not isinstance(stored_images(counted(9)), PairedImages)
    sampler = ViewSampler(origin, "none", batch_size=3, seed=1)
    seen: list[int] = []
    for step in range(4):
        first, second = (images[:, 0, 0, 0].mul(255).round().int() for images in sampler.images(step))
        assert torch.equal(first // 10, second // 10) and (first != second).all()
        seen += (first // 10).tolist()
        assert torch.equal(sampler.images(step).positive, ViewSampler(origin, "none", 3, 1).images(step).positive)
    assert len(set(seen[:6])) == len(set(seen[6:])) == 6  # each once in an epoch
    others = ViewSampler(stored_images(Numbered()), "none", 3, 2).images(0)
    assert not torch.equal(others.anchor, sampler.images(0).anchor)


def test_a_mixture_makes_each_pair_by_T_z_or_by_colour():
    """Pair by pair: that of T_z without changes of colour, or that of the anchor twice under the whole T_x."""
    generator = load_generator("tiny-bigbigan")
    walked, still = GeneratedImages(generator, RandomWalker(Chunks(1, 3), 1.0)), GeneratedImages(generator)
    how = dict(batch_size=12, seed=3)
    mixed = ViewSampler(walked, "torchvision", mixture=0.5, **how)(0)
    by_Tz = ViewSampler(walked, "torchvision_no_color", **how)(0)
    by_Tx = ViewSampler(still, "torchvision", **how)(0)

    def equals(other: Views, i: int) -> bool:
        return all(one[i].allclose(half[i], atol=1e-5) for one, half in zip(mixed, other, strict=True))

    kinds = [(equals(by_Tz, i), equals(by_Tx, i)) for i in range(12)]
    assert set(kinds) == {(True, False), (False, True)}
