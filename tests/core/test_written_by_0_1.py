"""Every kind of weight file that version 0.1 wrote is read, and its model gives what it gave there."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from mi_ml_gen.core import weights
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.encoders.loading import load_encoder, load_whole
from mi_ml_gen.generators.linear_gaussian import LinearGaussian
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.hub import sharing
from mi_ml_gen.mim.model import load_mim
from mi_ml_gen.probe.classifier import load_classifier
from mi_ml_gen.walkers.files import read_about
from mi_ml_gen.walkers.spec import load_walker
from tests.conftest import GOLDEN

SAMPLES = GOLDEN / "written_by_0.1"
EXPECTED = dict(np.load(SAMPLES / "expected.npz"))
FAMILIES = {"bigbigan": "bigbigan", "stylegan2": "stylegan2", "linear": "linear-gaussian"}


def inputs(*shape: int) -> torch.Tensor:
    """The fixed input of write.py: numbers in [-1, 1]."""
    return torch.from_numpy(np.cos(np.arange(int(np.prod(shape))) * 1.7).astype(np.float32)).reshape(shape)


def outputs(name: str, model: torch.nn.Module) -> torch.Tensor:
    """What write.py noted of a model."""
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        if name.startswith("walker"):
            return model(LinearGaussian(sizes=(2, 2, 2, 2)), inputs(3, 8), rng).positive
        if name == "encoder_backbone" or name == "classifier":
            return model(inputs(2, 3, 16, 16))
        if name.startswith("encoder"):
            found = model(inputs(2, 3, 16, 16), inputs(2, 3, 16, 16).flip(0))
            return torch.cat([part.flatten() for part in (found.features, *found.parts)])
        if name.startswith("mim"):
            half = model.data_half((inputs(4, 3) > 0).float(), rng)
            return torch.stack([half.x_given_z, half.z_given_x, half.p_z])
        return model.decode(model.latents(inputs(2, model.noise_dim)))


def read(name: str) -> torch.nn.Module:
    """A sample, by the function that scripts use for its kind."""
    kind, _, which = name.partition("_")
    if kind == "walker":
        return load_walker(SAMPLES / f"{name}.safetensors")
    if kind == "mim":
        return load_mim(SAMPLES / name / "best.safetensors").eval()
    if kind == "classifier":
        return load_classifier(SAMPLES / "classifier.safetensors")
    if kind == "generator":
        return load_generator(FAMILIES[which], SAMPLES / f"{name}.safetensors")
    if which == "backbone":
        return load_encoder(SAMPLES / f"{name}.safetensors").backbone
    return load_whole(SAMPLES / f"{name}.safetensors").eval()


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_its_files_give_equal_outputs(name):
    torch.testing.assert_close(outputs(name, read(name)).numpy(), EXPECTED[name], rtol=1e-6, atol=1e-6)


def test_every_sample_is_looked_at():
    assert {path.stem for path in SAMPLES.glob("*.safetensors")} | {"mim", "mim_mixture"} == set(EXPECTED)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("shared_walker", "walker_nonlinear"),
        ("shared_generator", "generator_bigbigan"),
        ("shared_encoder", "encoder_simsiam"),
        ("shared_classifier", "classifier"),
        ("shared_mim", "mim"),
    ],
)
def test_its_shared_folders_give_equal_outputs(folder, name):
    found = outputs(name, sharing.load(SAMPLES / folder))
    torch.testing.assert_close(found.numpy(), EXPECTED[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["simclr", "simsiam", "byol"])
def test_what_it_noted_is_there(method):
    found = load_encoder(SAMPLES / f"encoder_{method}.safetensors")
    assert found.method == method and found.about == {"crop_size": 16, "epoch": 1, "settings": {"seed": 1}}
    classifier = load_classifier(SAMPLES / "classifier.safetensors")
    assert classifier.classes == ("cat", "dog", "n02") and classifier.image_size == 18
    about = {"generator": "linear-gaussian", "samples": 2048, "seed": 1}
    assert read_about(SAMPLES / "walker_grouped.json") == about
    assert load_walker(SAMPLES / "walker_grouped.json").config()["kind"] == "grouped"
    assert load_generator("stylegan2", SAMPLES / "generator_stylegan2.safetensors").settings.psi == 0.7
    assert weights.read(SAMPLES / "generator_linear.safetensors").about == {"source": "somewhere.pth"}


def test_its_files_in_the_new_format_are_the_same_models(tmp_path):
    for path in sorted(SAMPLES.glob("*.safetensors")):
        if path.stem == "encoder_backbone":  # no whole model
            continue
        model = weights.load(path)
        weights.save(tmp_path / path.name, model)
        again = weights.load(tmp_path / path.name)
        assert type(again) is type(model) and weights.is_own(tmp_path / path.name)
        assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))


def test_its_walker_without_a_description_is_refused(tmp_path):
    shutil.copy(SAMPLES / "walker_nonlinear.safetensors", tmp_path)
    with pytest.raises(UsageError, match=r"walker_nonlinear.json: no such file"):
        load_walker(tmp_path / "walker_nonlinear.safetensors")
    for text in ("", "[1]", '{"kind": "nonlinear"}', '{"kind": 3, "about": {}}', "[" * 100_000):
        (tmp_path / "walker_nonlinear.json").write_text(text)
        with pytest.raises(CorruptCheckpointError):
            load_walker(tmp_path / "walker_nonlinear.safetensors")
