"""The critic against the reference implementation's numbers (golden/critic.npz), under a renaming of keys."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_ml_gen.core.errors import CheckpointError
from mi_ml_gen.information.critic import Critic

GOLDEN = Path(__file__).parents[1] / "golden"


def _fill():
    spec = importlib.util.spec_from_file_location("golden_fill", GOLDEN / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILL = _fill()


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "critic.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def published(golden):
    contract = json.loads((GOLDEN / "critic_resnet18.json").read_text())
    arrays = FILL.fill_state_dict(contract["state_dict"], str(golden["prefix"]))
    return {key: torch.from_numpy(np.asarray(value)) for key, value in arrays.items()}


@pytest.fixture(scope="module")
def images(golden):
    return torch.from_numpy(FILL.fill(str(golden["input_name"]), (2, 3, 112, 112)))


def _weighted_sum(features, golden):
    return (features * torch.from_numpy(FILL.fill(str(golden["gradw_name"]), (2, 128)))).sum()


def test_eval_values_and_input_gradient(golden, published, images):
    critic = Critic.from_published(published).eval()
    images = images.clone().requires_grad_()
    features = critic(images)
    np.testing.assert_allclose(critic.encoder(images).detach(), golden["encoder_eval"], atol=1e-5)
    np.testing.assert_allclose(features.detach(), golden["features_eval"], atol=1e-6)
    _weighted_sum(features, golden).backward()
    grid = golden["grad_input_eval_grid"]
    np.testing.assert_allclose(images.grad[:, :, ::8, ::8], grid, atol=1e-3 * np.abs(grid).max())
    assert images.grad.norm().item() == pytest.approx(float(golden["grad_input_eval_norm"]), rel=1e-3)


def test_train_values_gradients_and_statistics(golden, published, images):
    critic = Critic.from_published(published).train()
    features = critic(images)
    np.testing.assert_allclose(features.detach(), golden["features_train"], atol=5e-6)
    _weighted_sum(features, golden).backward()
    for gradient, name in (
        (critic.encoder.conv1.weight.grad, "grad_train_stem_weight"),
        (critic.head[0].bias.grad, "grad_train_head0_bias"),
    ):
        np.testing.assert_allclose(gradient, golden[name], atol=1e-3 * np.abs(golden[name]).max())
    for buffer in ("running_mean", "running_var", "num_batches_tracked"):
        expected = golden[f"after_train/encoder.stem.1.{buffer}"]
        np.testing.assert_allclose(getattr(critic.encoder.bn1, buffer), expected, rtol=1e-4, atol=1e-5)


def test_reads_an_encoder_that_was_wrapped_for_several_gpus(published):
    wrapped = {key.replace("encoder.", "encoder.module.", 1): value for key, value in published.items()}
    plain, unwrapped = Critic.from_published(published), Critic.from_published(wrapped)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, unwrapped.state_dict()[name]), name


@pytest.mark.parametrize("damage", ["missing stem", "missing block", "foreign key", "wrong shape"])
def test_another_layout_is_refused(published, damage):
    state = dict(published)
    if damage == "missing stem":
        del state["encoder.stem.0.weight"]
    elif damage == "missing block":
        del state["encoder.layer3.1.bn2.bias"]
    elif damage == "foreign key":
        state["encoder.fc.weight"] = torch.zeros(10, 512)
    else:
        state["head.0.bias"] = torch.zeros(7)
    with pytest.raises(CheckpointError, match="published critic"):
        Critic.from_published(state)


@pytest.mark.parametrize(("image_size", "width"), [(28, 8), (112, 8)])
def test_unit_length_float32_also_under_autocast(image_size, width):
    torch.manual_seed(0)
    critic = Critic(image_size, projection_dim=16, width=width)
    with torch.autocast("cpu", torch.bfloat16):
        features = critic(torch.randn(4, 3, image_size, image_size))
    assert features.shape == (4, 16) and features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(4), rtol=0, atol=1e-6)
