"""Label-conditional networks: no class is chosen in silence, and a pair is of one class."""

from __future__ import annotations

import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.registry import load_generator, save_generator
from mi_ml_gen.generators.stylegan2.config import StyleGAN2Config
from mi_ml_gen.generators.stylegan2.generator import StyleGAN2
from mi_ml_gen.latents import Chunks
from mi_ml_gen.walkers.grouped import GroupedWalker
from mi_ml_gen.walkers.noise import RandomWalker

SIZES = {"z_dim": 8, "w_dim": 6, "img_resolution": 16, "mapping_layers": 2, "channel_base": 64, "channel_max": 8}
N_CLASSES = 5


@pytest.fixture
def path(tmp_path):
    torch.manual_seed(0)
    save_generator(tmp_path / "g.safetensors", StyleGAN2(StyleGAN2Config(**SIZES, c_dim=N_CLASSES)), "stylegan2")
    return tmp_path / "g.safetensors"


def _noise(n, seed=0):
    return torch.randn(n, SIZES["z_dim"], generator=torch.Generator().manual_seed(seed))


def _classes(generator, z, latents):
    """The class of each row of latents, found by trying all."""
    candidates = [generator.latents(z, torch.full((len(z),), label)) for label in range(N_CLASSES)]
    distances = torch.stack([(latents - candidate).abs().amax(1) for candidate in candidates])
    assert (distances.amin(0) < 1e-5).all()
    return distances.argmin(0)


@pytest.mark.parametrize(
    "use, warned",
    [((), True), (["psi=0.5"], True), (["label=0"], False), (["label=3"], False), (["label=random"], False)],
)
def test_a_class_that_nobody_chose_is_said(path, caplog, use, warned):
    generator = load_generator("stylegan2", path, use=use)
    said = [record.message for record in caplog.records]
    assert [f"{N_CLASSES} classes" in text and "label=random" in text for text in said] == [True] * warned
    z = _noise(64)
    found = _classes(generator.use(["psi=1"]), z, generator.latents(z)).unique().tolist()
    assert found == {"label=3": [3], "label=random": list(range(N_CLASSES))}.get("".join(use), [0])


@pytest.mark.parametrize("c_dim", [0, 1])
def test_networks_without_a_choice_of_classes_say_nothing(tmp_path, caplog, c_dim):
    save_generator(tmp_path / "g.safetensors", StyleGAN2(StyleGAN2Config(**SIZES, c_dim=c_dim)), "stylegan2")
    load_generator("stylegan2", tmp_path / "g.safetensors")
    assert not caplog.records


def test_random_classes_are_uniform_and_follow_the_noise(path):
    generator = load_generator("stylegan2", path, use={"label": "random"})
    z = _noise(20_000)
    labels = generator._labels(z)
    shares = torch.bincount(labels, minlength=N_CLASSES) / len(z)
    assert (shares - 1 / N_CLASSES).abs().max() < 0.015  # five standard deviations
    assert torch.equal(generator._labels(z.flip(0)), labels.flip(0)), "a sample's class depends on its batch"
    assert torch.equal(generator._labels(z.double()), labels)
    means = torch.stack([z[labels == label].mean(0) for label in range(N_CLASSES)])
    assert means.abs().max() < 0.09, "classes differ in their noise"


def test_a_pair_is_of_one_class(path):
    generator = load_generator("stylegan2", path, use={"label": "random"})
    z = _noise(40)
    labels = generator._labels(z)
    for walker in (RandomWalker("0_6", 0.5), GroupedWalker([RandomWalker("0_2", 0.5), RandomWalker("2_6", 0.5)])):
        anchor, positive = walker(generator, z, torch.Generator().manual_seed(1))
        assert torch.equal(_classes(generator, z, anchor), labels)
        for chunks, moved in walker.moves(generator, z, torch.Generator().manual_seed(1)):
            at = generator.layout.slice(chunks)
            assert torch.equal(positive[:, at], generator.latents(moved, labels)[:, at])
            assert not torch.equal(generator._labels(moved), labels)
    chunks, moved = Chunks(1, 4), z + 0.1
    at = generator.layout.slice(chunks)
    apart = (generator.latents(moved, labels) - generator.latents(z, labels))[:, at].norm(dim=1)
    torch.testing.assert_close(generator.distance(z, moved, chunks), apart)
    torch.testing.assert_close(super(StyleGAN2, generator).distance(z, moved, chunks), apart)


def test_a_saved_generator_remembers_that_classes_are_random(path, tmp_path):
    generator = load_generator("stylegan2", path, use={"label": "random"})
    save_generator(tmp_path / "again.safetensors", generator, "stylegan2")
    again = load_generator("stylegan2", tmp_path / "again.safetensors")
    assert again.settings.label == "random"
    assert torch.equal(again.latents(_noise(4)), generator.latents(_noise(4)))


@pytest.mark.parametrize("label", [-1, 1.5, True, "other", N_CLASSES])
def test_labels_that_make_no_sense(label):
    with pytest.raises(UsageError, match="label"):
        StyleGAN2Config(**SIZES, c_dim=N_CLASSES, label=label)
