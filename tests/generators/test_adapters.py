"""A network of anybody's as a generator: how it is cut, read from files, saved, and what is refused."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mi_ml_gen.core import weights
from mi_ml_gen.core.errors import CorruptCheckpointError, UnsafeCheckpointError, UsageError
from mi_ml_gen.generators import ModuleGenerator, from_module
from mi_ml_gen.generators.checking import check_generator
from mi_ml_gen.generators.families import ENTRY_POINTS
from mi_ml_gen.generators.registry import FAMILIES, load_generator, load_own
from mi_ml_gen.latents import Chunks
from mi_ml_gen.walkers.noise import RandomWalker

FILE = """
from torch import nn

from mi_ml_gen.generators import ModuleGenerator


class Mine(ModuleGenerator):
    chunk_sizes = (4, 4, 8)

    def build(self, width=4):
        return nn.Sequential(
            nn.Linear(16, 16 * width), nn.BatchNorm1d(16 * width), nn.ReLU(), nn.Unflatten(1, (width, 4, 4)),
            nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh(),
        )
"""


def network(n_in: int = 16, n_channels: int = 3, side: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(n_in, n_channels * side**2), nn.Unflatten(1, (n_channels, side, side)), nn.Tanh())


@pytest.fixture
def mine(tmp_path) -> str:
    (tmp_path / "mine.py").write_text(FILE)
    return f"{tmp_path / 'mine.py'}:Mine"


def test_a_class_around_a_network_keeps_all_promises(mine, tmp_path):
    generator = load_generator(mine)
    assert (generator.layout.sizes, generator.noise_dim, generator.resolution) == ((4, 4, 8), 16, 8)
    check_generator(generator)
    z = torch.randn(2, 16)
    pair = RandomWalker(Chunks(1, 2), 0.5)(generator, z, torch.Generator().manual_seed(0))
    assert (pair.anchor != pair.positive).any(0).nonzero().flatten().tolist() == [4, 5, 6, 7]
    torch.testing.assert_close(generator.decode(z), (generator.network(z) + 1) / 2)

    wider = type(generator)(width=6).freeze()
    again = type(generator).from_pretrained(wider.save_pretrained(tmp_path / "saved"))
    assert again.config() == {"width": 6} and torch.equal(again.decode(z), wider.decode(z))


@pytest.mark.parametrize(
    ("key", "prefix"),
    [(None, ""), (None, "module."), ("g_ema", ""), ("state_dict", "_orig_mod."), ("model", "module.")],
)
def test_weights_from_a_training_script(mine, tmp_path, key, prefix):
    wanted = load_generator(mine)
    torch.nn.init.normal_(wanted.network[0].weight)
    state = {f"{prefix}{name}": value for name, value in wanted.network.state_dict().items()}
    content = state if key is None else {"step": 3, key: state, "optimizer": {"lr": 0.1}}
    torch.save(content, tmp_path / "weights.pt")
    found = load_generator(mine, tmp_path / "weights.pt")
    z = torch.randn(2, 16)
    assert torch.equal(found.decode(z), wanted.decode(z)) and not found.network.training


def test_files_that_do_not_fit_are_refused(mine, tmp_path):
    state = load_generator(mine).network.state_dict()
    for content, says in (
        ({"step": 1}, "holds no state dict of a network; write it by torch.save"),
        ({name: value for name, value in state.items() if name != "0.bias"}, r"Mine state dict: 0\.bias is missing"),
        (state | {"9.weight": torch.zeros(1)}, "Mine state dict: unknown keys 9.weight"),
    ):
        torch.save(content, tmp_path / "weights.pt")
        with pytest.raises(CorruptCheckpointError, match=f"weights.pt: {says}"):
            load_generator(mine, tmp_path / "weights.pt")
    torch.save(network(), tmp_path / "weights.pt")  # a whole module, pickled
    with pytest.raises((CorruptCheckpointError, UnsafeCheckpointError)):
        load_generator(mine, tmp_path / "weights.pt")


def test_a_network_in_hand():
    grey = from_module(network(n_channels=1), (10, 6), name="drawn")
    z = torch.randn(3, 16)
    images = grey.decode(z)
    assert images.shape == (3, 3, 4, 4) and torch.equal(images[:, 0], images[:, 2]) and grey.name == "drawn"
    check_generator(grey, skip=["save and load"])
    with pytest.raises(
        UsageError, match="drawn is a network in hand, which cannot be built again; derive a class from"
    ):
        check_generator(grey)
    assert not any(parameter.requires_grad for parameter in grey.parameters())


def test_input_of_another_shape_and_range():
    class Map(nn.Module):
        def forward(self, z):
            assert z.shape[1:] == (4, 2, 2)
            return torch.sigmoid(z[:, :3]) * 255

    generator = from_module(Map(), (8, 4, 4), latent_shape=(4, 2, 2), image_range=(0, 255))
    z = torch.randn(2, 16)
    torch.testing.assert_close(generator.decode(z), torch.sigmoid(z.view(2, 4, 2, 2)[:, :3]))


def test_a_network_with_an_input_for_each_chunk():
    class Two(ModuleGenerator):
        chunk_sizes = (3, 5)

        def build(self):
            return nn.Bilinear(3, 5, 48)

        def run(self, latents):
            return torch.tanh(self.network(*latents.split(self.layout.sizes, dim=1))).view(-1, 3, 4, 4)

    check_generator(Two().freeze())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (dict(latent_shape=(15,)), r"latent_shape \(15,\) does not hold 16 numbers"),
        (dict(image_range=(1, -1)), r"image_range \(1, -1\) must be \(black, white\), the lower number first"),
        (
            dict(network=network(n_channels=2)),
            r"the network gives \(2, 2, 4, 4\) for 2 latent vectors; it must give im",
        ),
        (dict(network=nn.Linear(16, 3)), r"the network gives \(2, 3\) .*override run\(latents\)"),
    ],
)
def test_what_makes_no_generator_is_refused(given, says):
    with pytest.raises(UsageError, match=says):
        from_module(**{"network": network(), "chunk_sizes": (8, 8)} | given)


def test_chunks_must_add_up():
    class Short(ModuleGenerator):
        chunk_sizes, latent_size = (4, 4), 16

        def build(self):
            return network()

    with pytest.raises(UsageError, match=r"Short: chunk_sizes \[4, 4\] add up to 8; latent_size is 16"):
        Short()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("chunk_sizes = (4, 4, 8)", "chunk_sizes = 16"), r"Mine: chunk_sizes 16: must be the length of each chunk"),
        (("chunk_sizes = (4, 4, 8)", ""), r"Mine: chunk_sizes None: must be the length of each chunk"),
        (
            ("chunk_sizes = (4, 4, 8)", "chunk_sizes = (4, 4)"),
            r"Mine: the network cannot run on latent vectors \(2, 8\)",
        ),
        (("def build", "def make"), r"Mine: define build\(self\), which returns the network"),
        (("        return nn.Sequential(", "        ("), r"Mine: build gives NoneType; it must return the network"),
        (
            ("        return nn.Sequential(", "        raise SystemExit(1)\n        ("),
            "Mine: cannot be made .*SystemExit: 1",
        ),
        (
            ("class Mine", "raise SystemExit(1)\n\n\nclass Mine"),
            "Mine: ends the program when it is imported .exit 1.; put",
        ),
        (("8)\n", "8)\n    image_range = 1\n"), r"Mine: image_range 1 must be \(black, white\)"),
        (("8)\n", "8)\n    latent_shape = 16\n"), r"Mine: latent_shape 16 does not hold 16 numbers; it is the shape"),
    ],
)
def test_what_is_wrong_with_a_class_is_one_line(tmp_path, change, says):
    assert change[0] in FILE
    (tmp_path / "mine.py").write_text(FILE.replace(*change, 1))
    with pytest.raises(UsageError, match=says) as refused:
        load_generator(f"{tmp_path / 'mine.py'}:Mine")
    assert "\n" not in str(refused.value)


def test_the_trial_leaves_statistics_alone(mine):
    cls = type(load_generator(mine))
    assert int(cls().network[1].num_batches_tracked) == 0 and cls().network[1].training


def test_an_entry_point_names_a_generator_in_every_script(tmp_path, monkeypatch, capsys):
    """A package that pip installed: its module, and the metadata that names the class."""
    from tests.scripts.test_scripts import call

    place = tmp_path / "site-packages"
    about = place / "my_gan-1.0.dist-info"
    about.mkdir(parents=True)
    (place / "my_gan_module.py").write_text(FILE)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-gan\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[mi_ml_gen.generators]\nmine = my_gan_module:Mine\n")
    monkeypatch.syspath_prepend(str(place))
    code, out, err = call(monkeypatch, capsys, "check_generator", "mine")
    assert code == 0 and "Mine keeps all promises" in out, err
    argv = ["--generator", "mine", "--out", tmp_path / "pictures", "--n_images", 2]
    assert call(monkeypatch, capsys, "visualize_generator", *argv)[0] == 0
    assert Path(tmp_path / "pictures" / "swaps.png").is_file()


def test_a_saved_generator_comes_back_by_every_name_of_its_class(mine, tmp_path, monkeypatch):
    """Its own, the entry point's, FILE.py:CLASS, MODULE:CLASS; a file that has its own name is found by its package."""
    place = tmp_path / "theirs"
    place.mkdir()
    (place / "gan_of_16.py").write_text(FILE.replace("Mine", "GanOf16"))
    monkeypatch.syspath_prepend(place)
    point = importlib.metadata.EntryPoint("of-16", "gan_of_16:GanOf16", ENTRY_POINTS)
    monkeypatch.setattr(FAMILIES, "points", lambda: {"of-16": point})
    state = load_generator(mine).state_dict()
    heads = {name: {"family": name, "name": "it", "settings": {}} for name in ("GanOf16", "of-16")}
    for name, head in heads.items():
        weights.write(tmp_path / f"{name}.safetensors", "generator", state, head, {})
    weights.write(
        tmp_path / "base.safetensors", "generator", {}, heads["of-16"] | {"family": "MultiLatentGenerator"}, {}
    )
    with pytest.raises(CorruptCheckpointError, match="its family 'MultiLatentGenerator' is not known here"):
        load_own(tmp_path / "base.safetensors")
    assert "gan_of_16" not in sys.modules
    found = load_own(tmp_path / "GanOf16.safetensors")
    cls = type(found)
    assert sys.modules["gan_of_16"].GanOf16 is cls
    names = ("of-16", f"{place / 'gan_of_16.py'}:GanOf16", "gan_of_16:GanOf16")
    for path in (*(tmp_path / f"{name}.safetensors" for name in heads), found.save_pretrained(tmp_path / "shared")):
        assert all(type(load_generator(name, path)) is cls for name in names), path
        with pytest.raises(UsageError, match="--g_path .*: holds a .*, not a Mine; give --generator"):
            load_generator(mine, path)
    del sys.modules["gan_of_16"]
