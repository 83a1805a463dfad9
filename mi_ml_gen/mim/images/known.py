"""The data sets of the image models, by name; this file imports no torch.

A set of the package is a function here that imports its reader when it is asked for. A user's is a function
`make(root, seed) -> ImageSets`, named as --dataset_name FILE.py:make.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.registry import Registry

if TYPE_CHECKING:
    from mi_ml_gen.mim.images.sets import Maker

DATASETS = (
    "dynamic_fashion_mnist", "dynamic_mnist", "static_mnist", "omniglot", "caltech101silhouettes", "freyfaces",
    "histopathologyGray", "cifar10", "mnist_5k", "animals",
)  # fmt: skip
"""The names that --dataset_name takes, beside FILE.py:FUNCTION. The first is read from the idx files on disk, the last
two from packages (extras `mnist-5k` and `animals`)."""


def _maker_of(name: str, found: Any) -> Maker:
    if not callable(found):
        raise UsageError(f"--dataset_name {name}: must be a function of (root, seed) that gives an ImageSets")
    return found


SETS: Registry[Maker] = Registry("data set", "--dataset_name", adapt=_maker_of)


def _reader(name: str) -> Maker:
    from mi_ml_gen.mim.images.readers import READERS

    return READERS[name]


for _name in DATASETS:
    SETS.lazily(_name)(functools.partial(_reader, _name))

__all__ = ["DATASETS", "SETS"]
