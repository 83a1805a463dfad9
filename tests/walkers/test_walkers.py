"""Walkers against the reference implementation's numbers, and what they promise."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.delta import pair_delta
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.latents import Chunks, LatentLayout, TruncatedNormal
from mi_ml_gen.walkers.base import IdentityWalker, PublishedSeed
from mi_ml_gen.walkers.files import read_about, save_walker
from mi_ml_gen.walkers.grouped import GroupedWalker
from mi_ml_gen.walkers.learned import NonlinearWalker
from mi_ml_gen.walkers.noise import OccasionalNormal, RandomWalker, distribution_from
from mi_ml_gen.walkers.spec import load_groups, load_walker
from tests.conftest import GOLDEN


class LikeBigBiGAN(MultiLatentGenerator):
    """Six chunks of 20, latents are the noise."""

    name, layout, noise_dim, resolution = "bigbigan", LatentLayout((20,) * 6), 120, 128


class LikeStyleGAN(MultiLatentGenerator):
    """Sixteen chunks of 512, each tanh(z M): the fake mapping network of the golden numbers."""

    name, layout, noise_dim, resolution = "stylegan", LatentLayout((512,) * 16), 512, 512

    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def walk_slice(self, chunks):
        return slice(0, 512)

    def latents(self, z):
        return torch.tanh(z @ self.matrix).repeat(1, 16)


with np.load(GOLDEN / "walkers.npz") as arrays:
    WALKERS = dict(arrays)
CASES = json.loads(str(WALKERS["meta_json"]))


@pytest.fixture(scope="module")
def generators(fill):
    return {"bigbigan": LikeBigBiGAN(), "stylegan": LikeStyleGAN(fill("walkers/mapping.weight", (512, 512)))}


def nonlinear(fill, chunks: str, width: int, prefix: str) -> NonlinearWalker:
    walker = NonlinearWalker(Chunks.parse(chunks, 16), width)
    shapes = {key: value.shape for key, value in walker.state_dict().items()}
    walker.load_state_dict({key: fill(prefix + key, shape) for key, shape in shapes.items()})
    return walker


def built(case: dict, fill) -> tuple:
    """The walker of a golden case, and the seed of its noise."""
    family, n_chunks = case["g_type"], {"bigbigan": 6, "stylegan": 16}[case["g_type"]]
    kind = case["walker"]
    if kind == "NonlinearWalker":
        width = case["weights"]["walker.0.bias"][0]
        return nonlinear(fill, case["chunks"], width, case["weights_prefix"]), None
    if kind == "RandomWalker":
        return RandomWalker(case["chunks"], distribution_from(case["gauss_params"])), case["seed"]
    if kind == "MultipleRandomWalker":
        return GroupedWalker.from_groups(case["groups"], n_chunks), case["seed"]
    if kind == "SynthWalker":
        return IdentityWalker(), None
    assert (kind, family) == ("MultipleNonLinearWalker", "stylegan")
    groups = {
        text: None if group is None else nonlinear(fill, text, 512, group.removeprefix("weights_prefix "))
        for text, group in case["groups"].items()
    }
    return GroupedWalker.from_groups(groups, n_chunks), None


# The reference reads the length of a chunk off the last group, so groups that end early move too much there.
FAULTY = "multi_random/bigbigan/6"


@pytest.mark.parametrize("name", [name for name in CASES if name != FAULTY])
def test_walkers_equal_the_reference(name, generators, fill):
    case = CASES[name]
    generator = generators[case["g_type"]]
    walker, seed = built(case, fill)
    z = torch.from_numpy(WALKERS[f"z_{case['g_type']}"])
    with torch.no_grad():
        pair = walker(generator, z, None if seed is None else PublishedSeed(seed))

    expected = torch.from_numpy(WALKERS[f"{name}/positive"]).flatten(1)
    torch.testing.assert_close(pair.positive, expected, rtol=0, atol=1e-5)
    anchor = z if case["g_type"] == "bigbigan" else torch.from_numpy(WALKERS[f"{name}/anchor_row"]).repeat(1, 16)
    torch.testing.assert_close(pair.anchor, anchor, rtol=0, atol=1e-5)
    if f"{name}/delta" in WALKERS:
        length = pair_delta(generator, pair, walker.chunks)
        torch.testing.assert_close(length, torch.from_numpy(WALKERS[f"{name}/delta"]).float(), rtol=0, atol=5e-5)


def test_groups_that_end_early_keep_to_their_chunks(generators):
    """Where the reference is at fault (see FAULTY) ours moves the named chunks and no others."""
    case = CASES[FAULTY]
    z = torch.from_numpy(WALKERS["z_bigbigan"])
    pair = GroupedWalker.from_groups(case["groups"], 6)(generators["bigbigan"], z, PublishedSeed(case["seed"]))
    assert torch.equal(pair.positive[:, 60:], z[:, 60:])
    assert (pair.positive[:, :60] != z[:, :60]).all()
    assert not np.allclose(WALKERS[f"{FAULTY}/positive"][:, 60:], z[:, 60:].numpy())


def test_a_published_pickle_gives_the_published_positives(generators):
    with np.load(GOLDEN / "walker_fixtures.npz") as arrays:
        golden = dict(arrays)
    walker = load_walker(GOLDEN / "fixtures" / "walker_bigbigan_1_6.pth")
    assert walker.chunks == (Chunks(1, 6),)
    with torch.no_grad():
        pair = walker(generators["bigbigan"], torch.from_numpy(golden["walker_bigbigan_1_6/z"]))
    expected = torch.from_numpy(golden["walker_bigbigan_1_6/positive"])
    torch.testing.assert_close(pair.positive, expected, rtol=0, atol=1e-5)


def test_gradients_reach_the_walker_and_only_the_chunks_move(small_generator):
    walker = NonlinearWalker.on(small_generator, Chunks(1, 2))
    z = torch.randn(5, small_generator.noise_dim)
    pair = walker(small_generator, z)
    assert torch.equal(pair.positive[:, :4], z[:, :4])
    small_generator.decode(pair.positive).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in walker.parameters())


def test_groups_move_independently_and_from_the_anchor(generators):
    """Two random groups: independent noise, each as if alone."""
    z = torch.randn(2000, 120, generator=torch.Generator().manual_seed(0))
    noise_of = TruncatedNormal(0, 1, 2)
    walker = GroupedWalker([RandomWalker(Chunks(0, 1), noise_of), RandomWalker(Chunks(3, 4), noise_of)])
    noise = walker(generators["bigbigan"], z, torch.Generator().manual_seed(1)).positive - z
    first, second = noise[:, :20], noise[:, 60:80]
    assert torch.equal(noise[:, 20:60], torch.zeros(2000, 40))
    assert (first * second).mean().abs() < 0.02
    assert first.std() == pytest.approx(0.8796, abs=0.01)  # of a standard normal truncated at 2


def test_occasional_noise_moves_about_half_of_the_samples():
    noise = OccasionalNormal(0.5, 1.0).sample((4000, 3), torch.Generator().manual_seed(0))
    moved = noise.abs().sum(dim=1) > 0
    assert moved.float().mean() == pytest.approx(0.5, abs=0.03)


def test_overlapping_groups_are_refused():
    with pytest.raises(UsageError, match="2_4 overlaps"):
        GroupedWalker.from_groups({"0_3": [0, 1, 2], "2_4": [0, 1, 2]}, 6)


def test_a_walker_of_another_width_is_refused(generators):
    with pytest.raises(UsageError, match="walk slice there has 20 numbers"):
        NonlinearWalker(Chunks(0, 1), 30)(generators["bigbigan"], torch.zeros(1, 120))


@pytest.mark.parametrize(
    "walker",
    [
        NonlinearWalker(Chunks(1, 3), 40),
        RandomWalker(Chunks(0, 2), TruncatedNormal(0.1, 0.5, 1.0)),
        RandomWalker(Chunks(0, 2), OccasionalNormal(0.1, 0.5)),
        IdentityWalker(),
        GroupedWalker([NonlinearWalker(Chunks(0, 1), 20), RandomWalker(Chunks(2, 3), TruncatedNormal())]),
    ],
    ids=lambda walker: walker.config()["kind"],
)
def test_saved_walkers_come_back_bit_for_bit(walker, tmp_path, generators):
    path = save_walker(tmp_path / "w_000002048", walker, generator="bigbigan", samples=2048)
    assert path.name == "w_000002048.safetensors"
    loaded = load_walker(path)
    z = torch.randn(4, 120)
    one, two = (w(generators["bigbigan"], z, torch.Generator().manual_seed(3)) for w in (walker, loaded))
    assert torch.equal(one.positive, two.positive)
    assert loaded.config() == walker.config()
    assert read_about(path.with_suffix(".json")) == {"generator": "bigbigan", "samples": 2048}


def test_damaged_walker_files_are_noticed(tmp_path):
    path = save_walker(tmp_path / "w", NonlinearWalker(Chunks(0, 1), 4))
    whole = path.read_bytes()
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # one bit of a weight
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match="w.safetensors"):
        load_walker(path)
    with pytest.raises(UsageError, match="no such file"):
        load_walker(tmp_path / "absent.safetensors")
    path.write_bytes(whole)
    (tmp_path / "w.json").write_text('{"kind": "nonlinear"')
    with pytest.raises(CorruptCheckpointError, match=r"w\.json: damaged, or of another walker"):
        load_walker(path)
    (tmp_path / "w.json").unlink()  # it is for people; the head of the weights says the same
    assert load_walker(path).config() == {"kind": "nonlinear", "chunks": "0_1", "width": 4}


# --- groups from a file


@pytest.fixture
def four_chunks(tmp_path):
    """A generator of four chunks of 3, and two of its walkers on the disk: a file and a run folder."""

    class Four(MultiLatentGenerator):
        name, layout, noise_dim, resolution = "four", LatentLayout((3,) * 4), 12, 8

    generator = Four()
    (tmp_path / "run").mkdir()
    for chunks, place in ((Chunks(0, 1), tmp_path / "coarse"), (Chunks(2, 4), tmp_path / "run" / "walker")):
        walker = NonlinearWalker.on(generator, chunks)
        for parameter in walker.parameters():
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(chunks.start))
        save_walker(place, walker)
    return generator


def test_groups_come_from_a_file_with_paths_beside_it(tmp_path, four_chunks, monkeypatch):
    """A walker's file, noise, a group left alone, a run folder; the file is read from another folder."""
    text = "0_1: coarse.safetensors\n1_2: [0.5, 2, 1.5]\n2_4: run\n"
    (tmp_path / "groups.yaml").write_text(text)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    walker = load_groups("../groups.yaml", four_chunks)
    assert list(map(str, walker.chunks)) == ["0_1", "1_2", "2_4"]
    z = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    pair = walker(four_chunks, z, torch.Generator().manual_seed(1))
    coarse, fine = (load_walker(tmp_path / name) for name in ("coarse.json", "run/walker.safetensors"))
    noise = TruncatedNormal(0.5, 2, 1.5).sample((5, 3), torch.Generator().manual_seed(1))
    assert torch.equal(pair.positive[:, :3], coarse(four_chunks, z).positive[:, :3])
    assert torch.equal(pair.positive[:, 3:6], z[:, 3:6] + noise)
    assert torch.equal(pair.positive[:, 6:], fine(four_chunks, z).positive[:, 6:])
    again = load_walker("../groups.yaml", generator=four_chunks)
    assert again.config() == walker.config()


@pytest.mark.parametrize("nothing", ["null", "none", "~", ""])
def test_a_group_may_be_left_alone(tmp_path, four_chunks, nothing):
    (tmp_path / "groups.yaml").write_text(f"0_1: {nothing}\n1_4: [0.5, 1]\n")
    walker = load_groups(tmp_path / "groups.yaml", four_chunks)
    assert walker.chunks == (Chunks(1, 4),)
    assert isinstance(walker.members[0].distribution, OccasionalNormal)


def test_groups_may_be_a_mapping(tmp_path, four_chunks, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = RandomWalker(Chunks(1, 2), TruncatedNormal())
    walker = load_groups({"0_1": "coarse.safetensors", "1_2": own, "2_3": (0, 1, 2), "3_4": None}, four_chunks)
    assert walker.members[1] is own and list(map(str, walker.chunks)) == ["0_1", "1_2", "2_3"]


def test_a_published_walker_may_be_a_group(generators):
    path = GOLDEN / "fixtures" / "walker_bigbigan_1_6.pth"
    walker = load_groups({"0_1": None, "1_6": path}, generators["bigbigan"])
    z = torch.randn(3, 120, generator=torch.Generator().manual_seed(0))
    alone = load_walker(path)(generators["bigbigan"], z)
    assert torch.equal(walker(generators["bigbigan"], z).positive, alone.positive)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0_2: [0, 1, 2]\n1_4: [0, 1, 2]\n", "1_4 overlaps another group"),
        ("0_1: [0, 1, 2]\n0_1: [0, 2, 2]\n", "groups.yaml: 0_1 is given twice"),
        ("0_9: [0, 1, 2]\n", "groups.yaml: group 0_9: stop must be at most 4; four has chunks 0_4"),
        ("first: [0, 1, 2]\n", "groups.yaml: group first: write START_STOP"),
        ("0_1: [0]\n", "group 0_1: noise [0.0]: give std, [mean, std, truncation] or [low, high]"),
        ("0_1: [0, a lot, 2]\n", "groups.yaml: group 0_1: ['0', 'a lot', '2']: must be a walker's path"),
        ("0_1: {std: 1}\n", "groups.yaml: group 0_1: {'std': '1'}: must be a walker's path"),
        ("0_1: [0, -1, 2]\n", "std -1.0: must be a finite number of at least 0"),
        ("0_1: absent.safetensors\n", "absent.safetensors: no such file"),
        ("1_2: coarse.safetensors\n", "group 1_2: its walker was trained on chunks 0_1"),
        ("- 0_1\n", "groups.yaml: must hold lines of the form"),
        ("", "groups.yaml: must hold lines of the form"),
        ("0_1: [0, 1", "groups.yaml: not a YAML file"),
    ],
)
def test_groups_that_make_no_sense_are_refused(tmp_path, four_chunks, text, says):
    (tmp_path / "groups.yaml").write_text(text)
    with pytest.raises(UsageError) as refused:
        load_groups(tmp_path / "groups.yaml", four_chunks)
    assert says in str(refused.value)


def test_a_walker_of_another_width_is_refused_when_it_is_loaded(tmp_path, four_chunks):
    save_walker(tmp_path / "wide", NonlinearWalker(Chunks(0, 1), 20))
    with pytest.raises(UsageError, match="a walker of width 20 on chunks 0_1 does not fit four"):
        load_groups({"0_1": tmp_path / "wide.safetensors"}, four_chunks)


def test_a_missing_file_of_groups_is_named(tmp_path, four_chunks):
    with pytest.raises(UsageError, match=r"absent.yaml: No such file"):
        load_groups(tmp_path / "absent.yaml", four_chunks)
