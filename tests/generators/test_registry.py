"""load_generator: every name, our files and published ones, and what it refuses."""

from __future__ import annotations

import re

import pytest
import torch

from mi_ml_gen.core import weights
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.checking import check_generator
from mi_ml_gen.generators.families import check_name
from mi_ml_gen.generators.linear_gaussian import LinearGaussian
from mi_ml_gen.generators.registry import FAMILIES, bundled, load_generator, load_latent_space, names, save_generator
from mi_ml_gen.hub import sharing
from mi_ml_gen.latents import LatentLayout, TruncatedNormal
from tests.conftest import GOLDEN, make_small_generator
from tests.scripts.test_scripts import call

PICKLE = GOLDEN / "fixtures" / "stylegan2_tiny_torch.pkl"
MINE = """
import torch
from mi_ml_gen.generators import MultiLatentGenerator
from mi_ml_gen.latents import LatentLayout


class Mine(MultiLatentGenerator):
    def __init__(self, gain=1.0):
        super().__init__()
        self.gain = gain
        self.layout, self.noise_dim, self.resolution = LatentLayout((1, 2)), 3, 8
        self.register_parameter("weight", torch.nn.Parameter(torch.full((3,), 0.5)))

    def config(self):
        return {"gain": self.gain}

    def decode(self, latents, rng=None):
        x = torch.sigmoid(self.gain * latents * self.weight)
        return x[:, :, None, None].expand(-1, -1, 8, 8)
"""


@pytest.fixture(scope="module")
def every_generator(tmp_path_factory) -> list[MultiLatentGenerator]:
    """All that can be made without a published file: the bundled ones, the linear one, a small one from a file."""
    path = tmp_path_factory.mktemp("generators") / "small.safetensors"
    save_generator(path, make_small_generator(), "bigbigan")
    found = [load_generator(name) for name in bundled()]
    return [*found, load_generator("linear-gaussian"), load_generator("bigbigan", path)]


def test_what_is_bundled():
    assert bundled() == ["tiny-bigbigan", "tiny-diffusion", "tiny-emoji", "tiny-nvae", "tiny-stylegan"]
    assert set(bundled()) <= set(names())


def test_every_generator_keeps_the_interfaces_promises(every_generator):
    for generator in every_generator:
        layout = generator.layout
        z = TruncatedNormal().sample((3, generator.noise_dim), torch.Generator().manual_seed(0))
        latents = generator.latents(z)
        assert latents.shape == (3, layout.dim)
        assert layout.slice(layout.all) == slice(0, layout.dim)
        rng = torch.Generator().manual_seed(1)
        images = generator.decode(latents, rng)
        assert images.shape == (3, 3, generator.resolution, generator.resolution)
        assert images.min() >= 0 and images.max() <= 1 and images.std() > 0.01
        assert not generator.training and not any(p.requires_grad for p in generator.parameters())
        z.requires_grad_()
        total = generator.decode(generator.latents(z), rng).sum()
        assert torch.autograd.grad(total, z)[0].abs().sum() > 0


def test_decode_pair_is_decoding_both(every_generator):
    for generator in every_generator:
        chunks = generator.chunks("1_2")
        first = torch.randn(2, generator.noise_dim, generator=torch.Generator().manual_seed(0))
        second = torch.randn(2, generator.noise_dim, generator=torch.Generator().manual_seed(1))
        anchor, moved = generator.latents(first), generator.latents(second)
        at = generator.layout.slice(chunks)
        positive = torch.cat([anchor[:, : at.start], moved[:, at], anchor[:, at.stop :]], dim=1)
        pair = generator.decode_pair(anchor, positive, chunks, torch.Generator().manual_seed(2))
        rng = torch.Generator().manual_seed(2)
        expected = generator.decode(anchor, rng), generator.decode(positive, rng)
        torch.testing.assert_close(pair.anchor, expected[0])
        torch.testing.assert_close(pair.positive, expected[1])
        expected_distance = (positive - anchor).norm(dim=1)
        torch.testing.assert_close(generator.distance(first, second, chunks), expected_distance)


def test_saved_generators_come_back_bit_for_bit(every_generator, tmp_path):
    families = {"linear-gaussian": "linear-gaussian", "small": "bigbigan", "tiny-bigbigan": "bigbigan"}
    families |= {
        "tiny-stylegan": "stylegan2",
        "tiny-nvae": "nvae",
        "tiny-diffusion": "diffusion",
        "tiny-emoji": "stylegan2",
    }
    for generator in every_generator:
        family = families.get(generator.name)
        if family is None:
            continue
        save_generator(tmp_path / "g.safetensors", generator, family)
        again = load_generator(family, tmp_path / "g.safetensors")
        assert again.name == generator.name and again.config() == generator.config()
        z = torch.randn(2, generator.noise_dim)
        images = [g.decode(g.latents(z), torch.Generator().manual_seed(0)) for g in (generator, again)]
        assert torch.equal(*images)


def test_latents_of_bigbigan_need_no_weights():
    generator = load_latent_space("bigbigan")
    assert generator.layout.sizes == (20,) * 6
    z = torch.randn(2, 120)
    assert torch.equal(generator.latents(z), z)


def test_wrong_names_and_files_are_refused(tmp_path):
    with pytest.raises(UsageError, match="--generator nope: must be one of bigbigan, linear-gaussian"):
        load_generator("nope")
    with pytest.raises(UsageError, match=r"bigbigan: its weights are not bundled; give --g_path, .*BigBiGAN_x1.pth"):
        load_generator("bigbigan")
    save_generator(tmp_path / "linear.safetensors", load_generator("linear-gaussian"), "linear-gaussian")
    with pytest.raises(UsageError, match="holds a linear-gaussian, not a bigbigan; give --generator linear-gaussian"):
        load_generator("bigbigan", tmp_path / "linear.safetensors")
    from mi_ml_gen.core.files import save_tensors

    save_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(CorruptCheckpointError, match="other.safetensors: its head describes no generator"):
        load_generator("bigbigan", tmp_path / "other.safetensors")


def test_every_family_says_how_it_is_had():
    for family in FAMILIES.values():
        assert family.make is not None or family.published_as


# --- names, and families of users


def test_published_names_mean_ours():
    assert load_generator("stylegan", PICKLE).name == load_generator("stylegan2", PICKLE).name
    assert load_latent_space("stylegan", PICKLE).layout.n_chunks == 8
    check_name("stylegan")
    with pytest.raises(UsageError, match="--generator style: must be one of bigbigan, .*or FILE.py:CLASS"):
        check_name("style")


@pytest.mark.parametrize("load", [load_generator, load_latent_space])
def test_a_published_file_of_another_family_names_the_flag(load):
    with pytest.raises(UsageError, match="holds a stylegan2, not a bigbigan; give --generator stylegan2"):
        load("bigbigan", PICKLE)


def test_the_published_command_for_cars_names_the_flag(tmp_path, monkeypatch, capsys):
    argv = ["--g_path", PICKLE, "--dim_z", 64, "--walkers_base_path", tmp_path]
    code, out, err = call(monkeypatch, capsys, "monte_carlo_simulation", *argv)
    assert code == 2 and out == "" and err.count("\n") == 1 and "give --generator stylegan2" in err


@pytest.fixture
def mine(tmp_path) -> str:
    (tmp_path / "mine.py").write_text(MINE)
    return f"{tmp_path / 'mine.py'}:Mine"


def test_a_class_in_a_file_needs_no_registration(mine, tmp_path):
    generator = load_generator(mine)
    assert generator.name == "Mine" and not generator.weight.requires_grad and not generator.training
    check_generator(generator)
    torch.nn.init.constant_(generator.weight, 0.25)
    save_generator(tmp_path / "g.safetensors", generator)
    z = torch.randn(2, 3)
    for again in (
        load_generator(mine, tmp_path / "g.safetensors"),
        weights.load(tmp_path / "g.safetensors"),
        sharing.load(generator.save_pretrained(tmp_path / "shared")),
        type(generator).from_pretrained(tmp_path / "shared"),
    ):
        assert type(again) is type(generator) and again.name == "Mine"
        assert torch.equal(again.decode(z), generator.decode(z))
    with pytest.raises(UsageError, match="holds a Mine, not a bigbigan"):
        load_generator("bigbigan", tmp_path / "g.safetensors")
    with pytest.raises(UsageError, match="Mine reads .safetensors files only"):
        load_generator(mine, PICKLE)


def test_a_subclass_of_a_family_of_the_package_comes_back_as_itself(tmp_path):
    class Twice(LinearGaussian):
        pass

    generator = Twice(sizes=(1, 2)).freeze()
    again = Twice.from_pretrained(generator.save_pretrained(tmp_path / "t"))
    assert type(again) is Twice and again.layout.sizes == (1, 2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("torch.sigmoid(", "torch.tanh(3 * "), r"generator Mine: decode gives values from -\S+ to \S+; images must"),
        (("torch.sigmoid(", "torch.log("), "decode gives nan or infinity"),
        (("torch.sigmoid(", "(lambda x: 300 * torch.sigmoid(x))("), "images must lie in"),
        (("-1, -1, 8, 8", "-1, -1, 8, 4"), r"decode gives shape \(1, 3, 8, 4\); 1 images must have \(1, 3, 8, 8\)"),
        (("expand(-1, -1, 8, 8)", "expand(-1, -1, 8, 8).byte()"), "decode gives torch.uint8"),
        (("LatentLayout((1, 2)), 3, 8", "(1, 2), 3, 8"), "layout must be a LatentLayout, not tuple"),
        (("LatentLayout((1, 2)), 3, 8", "LatentLayout((1, 2)), 3, None"), "resolution must be a whole number"),
        (("LatentLayout((1, 2)), 3, 8", "LatentLayout((1, 2)), 4, 8"), r"latents gives shape \(1, 4\)"),
        (("self.weight)", "self.wait)"), r"decoding fails: AttributeError: .*'wait' \(.*mine.py|.*line 19"),
        (("gain=1.0", "gain"), "cannot be made without arguments: TypeError"),
        (("class Mine(MultiLatentGenerator)", "class Mine(torch.nn.Module)"), "must be a class derived from"),
    ],
)
def test_a_generator_that_breaks_its_promise_is_refused_in_one_line(mine, change, says, monkeypatch, capsys, tmp_path):
    path = tmp_path / "mine.py"
    assert change[0] in MINE
    path.write_text(MINE.replace(*change))
    argv = ["--generator", mine, "--out", tmp_path / "pictures"]
    code, out, err = call(monkeypatch, capsys, "visualize_generator", *argv)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert re.search(says, err), err
    assert not (tmp_path / "pictures").exists()


def test_checking_draws_nothing_from_the_global_generator(mine):
    before = torch.random.get_rng_state()
    load_generator(mine)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_no_gradient_is_noticed_by_the_thorough_check(tmp_path):
    class Flat(MultiLatentGenerator):
        name, layout, noise_dim, resolution = "flat", LatentLayout((2, 2)), 4, 8

        def decode(self, latents, rng=None):
            return torch.full((len(latents), 3, 8, 8), 0.5)

    with pytest.raises(UsageError, match="generator flat: no gradient flows from its images to the noise"):
        check_generator(Flat())
    for generator in (load_generator("tiny-bigbigan"), load_generator("tiny-stylegan"), make_small_generator()):
        check_generator(generator)


def test_scripts_take_a_class_in_a_file(mine, tmp_path, monkeypatch, capsys):
    """Every script with --generator; the longer ones are in tests/test_extending.py."""
    argv = ["--generator", mine, "--chunks", "0_1", "--dry-run"]
    code, out, err = call(monkeypatch, capsys, "train_navigator", *argv)
    assert code == 0 and "mine.py:Mine" in out
    argv = ["--generator", mine, "--Tz", "0_1=0,1,2", "--n_images", 1, "--augmentations", 1, "--save_folder", tmp_path]
    code, out, err = call(monkeypatch, capsys, "view_generation", *argv)
    assert code == 0 and (tmp_path / "idx=0_var=1.png").exists(), err
