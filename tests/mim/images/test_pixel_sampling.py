"""Sampling with cached features gives the images of whole passes, bit for bit."""

import pytest
import torch

from mi_ml_gen.core import runtime
from mi_ml_gen.mim.images import pixel_sampling
from mi_ml_gen.mim.images.networks import PixelHVAE
from tests.mim.images.test_networks import small_model


def lively_model(**changes):
    """A decoder whose norms have seen data, and whose images depend on what came before."""
    model = small_model("pixelhvae_2level", **changes)
    assert isinstance(model, PixelHVAE)
    rng = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=rng)
            module.running_var.uniform_(0.3, 1.5, generator=rng)
            module.weight.data.uniform_(0.8, 1.6, generator=rng)
            module.bias.data.normal_(0, 0.3, generator=rng)
    return model.eval()


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize(("kind", "shape"), [("binary", (1, 9, 7)), ("gray", (1, 8, 8)), ("continuous", (3, 6, 6))])
def test_cached_features_give_the_same_images(kind, shape, as_published):
    model = lively_model(kind=kind, shape=shape, as_published=as_published)
    z = model.sample_prior(6, runtime.stream(0, "z", 0, 0))
    uniforms = runtime.uniform((6, *shape), runtime.stream(0, "u", 0, 0))
    plain = model.sample_plainly(z, uniforms)
    assert torch.equal(pixel_sampling.sample(model, z, uniforms), plain)
    assert plain.std() > 0.05 and not torch.equal(plain[0], plain[1])


@pytest.mark.parametrize("kind", ["binary", "gray"])
def test_draws_at_the_edge_are_decided_by_whole_passes(kind, monkeypatch):
    """Every draw counts as close: then whole passes decide them all, of some images or of all together."""
    model = lively_model(kind=kind, shape=(1, 4, 4))
    z = model.sample_prior(5, runtime.stream(0, "z", 0, 0))
    uniforms = runtime.uniform((5, 1, 4, 4), runtime.stream(0, "u", 0, 0))
    plain = model.sample_plainly(z, uniforms)
    passes = []
    monkeypatch.setattr(model.pixelcnn, "forward", counted(model.pixelcnn.forward, passes))
    for close, very_close, n in ((0.0, 0.0, 0), (0.05, 0.0, None), (2.0, 2.0, 2 * 16)):
        monkeypatch.setattr(pixel_sampling, "CLOSE", close)
        monkeypatch.setattr(pixel_sampling, "VERY_CLOSE", very_close)
        passes.clear()
        assert torch.equal(pixel_sampling.sample(model, z, uniforms), plain)
        assert n is None or len(passes) == n


def counted(forward, calls):
    def call(x):
        calls.append(len(x))
        return forward(x)

    return call


def test_the_mode_of_the_model_stays():
    model = lively_model(shape=(1, 4, 4)).train()
    z = model.sample_prior(2, runtime.stream(0, "z", 0, 0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pixel_sampling.sample(model, z, torch.rand(2, 1, 4, 4))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
