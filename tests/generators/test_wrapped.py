"""Published generators and classifiers that somebody saved again from DataParallel or torch.compile."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mi_ml_gen.core.resnet import ResNet
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.probe.classifier import load_classifier
from tests.conftest import GOLDEN, load_helper

WRAPPERS = ("module.", "_orig_mod.", "_orig_mod.module.")


def _wrapped(state, wrapper):
    return {f"{wrapper}{key}": value for key, value in state.items()}


def _assert_equal(found, wanted):
    found, wanted = found.state_dict(), wanted.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_bigbigan(tmp_path, published_bigbigan, wrapper):
    with np.load(GOLDEN / "bigbigan_tiny.npz") as arrays:
        state = published_bigbigan("bigbigan_tiny", str(arrays["prefix"]))
    torch.save(state, tmp_path / "plain.pth")
    torch.save(_wrapped(state, wrapper), tmp_path / "wrapped.pth")
    plain, wrapped = (load_generator("bigbigan", tmp_path / f"{name}.pth") for name in ("plain", "wrapped"))
    _assert_equal(wrapped, plain)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_nvae(tmp_path, wrapper):
    content = load_helper("nvae").checkpoint()
    torch.save(content, tmp_path / "plain.pt")
    torch.save(content | {"state_dict": _wrapped(content["state_dict"], wrapper)}, tmp_path / "wrapped.pt")
    plain, wrapped = (load_generator("nvae", tmp_path / f"{name}.pt") for name in ("plain", "wrapped"))
    _assert_equal(wrapped, plain)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_classifiers(tmp_path, wrapper):
    backbone = ResNet(18, small_images=True, width=4)
    state = {f"model.{key}": value for key, value in backbone.state_dict().items()}
    state |= {"model.fc.weight": torch.randn(3, backbone.feature_dim), "model.fc.bias": torch.zeros(3)}
    torch.save({"state_dict": state}, tmp_path / "plain.ckpt")
    torch.save({"state_dict": _wrapped(state, wrapper)}, tmp_path / "wrapped.ckpt")
    _assert_equal(load_classifier(tmp_path / "wrapped.ckpt"), load_classifier(tmp_path / "plain.ckpt"))
