"""Data sets by name: what an epoch holds, that test sets stay, and the images' augmentation and projection."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as reference

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.mim import datasets

N_TRAIN, N_TEST = 500, 120


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes(), 1))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder in MNIST's form: smooth blobs whose place depends on the label."""
    folder, rng = tmp_path_factory.mktemp("idx"), np.random.default_rng(0)
    y, x = np.mgrid[:28, :28]
    for prefix, n in (("train", N_TRAIN), ("t10k", N_TEST)):
        labels = rng.integers(0, 10, n)
        center = 8 + rng.normal(0, 1, (n, 2)) + np.stack([labels, labels % 3 * 4], axis=1)
        far = (y - center[:, :1, None]) ** 2 + (x - center[:, 1:, None]) ** 2
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", 255 * np.exp(-far / 30))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)
    return folder


def test_a_toy_epoch():
    data = datasets.load("toy4_3")
    first, second = data.draw_epoch(seeded(0)), data.draw_epoch(seeded(1))
    assert (data.x_dim, data.binary, data.n_train) == (3, False, 10_000)
    assert first.x.shape == (10_000, 3) and first.x.dtype == torch.float32 and first.x_in is None
    assert not torch.equal(first.x, second.x)
    assert torch.equal(first.x, datasets.load("toy4_3").draw_epoch(seeded(0)).x)
    assert len(first.labels.unique()) == 5 and (first.labels[1:] == first.labels[:-1]).float().mean() < 0.25


def test_the_test_set_stays():
    data = datasets.load("toyMIM")
    assert data.draw_test(seeded(0)) is data.test
    assert torch.equal(data.test.x, datasets.load("toyMIM").test.x)
    assert not torch.equal(data.test.x, data.draw_epoch(seeded(0)).x)
    published = datasets.load("toyMIM", as_published=True)
    assert not torch.equal(published.draw_test(seeded(0)).x, published.draw_test(seeded(1)).x)


def test_self_supervision_sees_another_draw_of_the_component():
    data = datasets.load("Toy-5")
    items = data.draw_epoch(seeded(0))
    spread = data.anchor.scales[0, 0]
    centers = data.anchor.locs[items.labels]
    for side in (items.x, items.x_in):
        assert (((side - centers) / spread).std() - 1).abs() < 0.02
    noise = [(side - centers).flatten() for side in (items.x, items.x_in)]
    assert np.corrcoef(*[side.numpy() for side in noise])[0, 1] < 0.03
    assert data.test.x_in is None


def test_the_anchor_knows_the_law():
    data = datasets.load("toy1")
    found = -data.anchor.log_prob(data.test.x).mean()
    other = -data.anchor.log_prob(data.test.x + 0.5).mean()
    assert found < other - 0.1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("toy", "nearest known data set: toyN"),
        ("tOy4", "nearest known data set: toyN"),
        ("mnsit", "nearest known data set: mnist"),
        ("toyMIM_20", "two dimensions"),
        ("toy-0", "no component is left"),
        ("pca-fashion-mnist", "pca-fashion-mnist20"),
        ("pca-fashion-mnist0", "must be 1 to 784"),
        ("pca-fashion-mnist-3", "must be 1 to 784"),
        ("pca-fashion-mnist785", "must be 1 to 784"),
    ],
)
def test_unknown_names(name, says):
    with pytest.raises(UsageError) as refused:
        datasets.load(name)
    assert says in str(refused.value)


def test_mnist_is_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "MNIST_PLACES", (tmp_path,))
    monkeypatch.setenv("MI_ML_GEN_DATA", str(tmp_path / "named"))
    with pytest.raises(UsageError, match="named/mnist"):
        datasets.load("mnist")


def test_mnist(images, monkeypatch, tmp_path):
    data = datasets.load("mnist", root=images)
    items = data.draw_epoch(seeded())
    assert data.binary and data.x_dim == 784 and data.anchor is None and data.n_train == N_TRAIN
    for x in (items.x, data.test.x):
        assert x.min() >= 1e-3 and x.max() <= 1 - 1e-3
    assert sorted(items.labels.tolist()) == sorted(datasets._mnist("train", images).labels.tolist())
    (tmp_path / "mnist").symlink_to(images)
    monkeypatch.setenv("MI_ML_GEN_DATA", str(tmp_path))
    assert torch.equal(datasets.load("mnist").test.x, data.test.x)


def test_labels_stay_with_their_images(images):
    """Blobs of label l lie at height 8 + l."""
    items = datasets.load("mnist", root=images).draw_epoch(seeded())
    pictures = items.x.view(-1, 28, 28)
    height = (pictures.sum(2) * torch.arange(28)).sum(1) / pictures.sum((1, 2))
    assert np.corrcoef(height.numpy(), items.labels.numpy())[0, 1] > 0.8


def test_pca_of_the_training_images(images):
    data = datasets.load("pca-fashion-mnist4", root=images)
    train = datasets._fashion("train", str(images)).images.flatten(1).double() / 255
    mean = train.mean(0)
    _, values, axes = torch.linalg.svd(train - mean, full_matrices=False)
    test = datasets._fashion("test", str(images)).images.flatten(1).double() / 255
    expected = (test - mean) @ axes[:4].T
    signs = (expected * data.test.x).sum(0).sign()
    torch.testing.assert_close(data.test.x.double(), expected * signs, rtol=1e-3, atol=2e-4)
    basis = datasets.pca("train", str(images))
    torch.testing.assert_close(basis.variances[:4].double(), values[:4] ** 2 / (N_TRAIN - 1), rtol=1e-4, atol=0)
    assert basis.first(784).share == pytest.approx(1, abs=1e-4)
    assert (basis.axes[:, :4].T @ basis.axes[:, :4] - torch.eye(4)).abs().max() < 1e-5

    items = data.draw_epoch(seeded())
    assert items.x.shape == (N_TRAIN, 4) and data.x_dim == 4 and not data.binary
    assert not torch.equal(items.x, data.draw_epoch(seeded(1)).x)


def test_published_test_images_have_their_own_basis(images):
    plain, published = (datasets.load("pca-fashion-mnist4", as_published=flag, root=images) for flag in (False, True))
    assert published.test.x.mean(0).abs().max() < 1e-4 < plain.test.x.mean(0).abs().max()
    assert torch.equal(plain.draw_epoch(seeded()).x, published.draw_epoch(seeded()).x)


def test_affine_is_torchvisions():
    pictures = torch.randint(0, 256, (25, 28, 28), generator=seeded(), dtype=torch.uint8)
    maps = datasets.Affine.draw(25, seeded(1))
    found = datasets.affine(pictures, maps)
    for i in range(25):
        expected = reference.affine(
            pictures[i : i + 1],
            angle=math.degrees(maps.angle[i]),
            translate=maps.shift_px[i].int().tolist(),
            scale=maps.scale[i].item(),
            shear=[math.degrees(maps.shear[i]), 0.0],
        )
        # A place on the edge between two pixels may be rounded the other way.
        assert (found[i] != expected[0]).float().mean() < 0.005


def test_affine_maps_are_within_their_ranges():
    maps = datasets.Affine.draw(20_000, seeded())
    assert math.degrees(maps.angle.abs().max()) == pytest.approx(10, abs=0.01)
    assert math.degrees(maps.shear.abs().max()) == pytest.approx(5, abs=0.01)
    assert maps.scale.min() == pytest.approx(0.8, abs=1e-3) and maps.scale.max() == pytest.approx(1.2, abs=1e-3)
    assert maps.shift_px.unique().tolist() == [-3, -2, -1, 0, 1, 2, 3]


def test_half_of_the_images_move_and_all_are_dequantised():
    pictures = torch.zeros(4000, 28, 28, dtype=torch.uint8)
    pictures[:, 10:18, 3:9] = 200
    out = datasets.augment(pictures, seeded())
    back = (256 * out).floor()  # the dequantised pixel minus its noise; the clamp lifts only the darkest
    stays = (back == pictures).flatten(1).all(1).float().mean()
    assert 0.45 < stays < 0.55
    flat = datasets.augment(torch.full((50, 28, 28), 100, dtype=torch.uint8), seeded())
    inside = 256 * flat[:, 14, 14] - 100
    assert inside.min() >= 0 and inside.max() < 1 and 0.3 < inside.mean() < 0.7
