"""The Inception network of published Frechet distances (Heusel et al., 2017), from a weight file of the user's.

The file is the one that PyTorch programs for FID share, `pt_inception-2015-12-05-6726825d.pth` (95 MB): the weights of
TensorFlow's 2015 network under torchvision's names. That network differs from torchvision's in its pooling alone:
averages leave out the padding, and the last block takes the largest value instead of the mean. It comes with no
package, so the result was not compared with published distances here; the forward pass is compared with torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import inception_v3

from mi_ml_gen.checkpoints.reading import read_state_dict
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.files import user_path
from mi_ml_gen.features.base import FeatureNetwork, take_weights

SIDE_PX = 299
N_CLASSES = 1008
"""Outputs of TensorFlow's network; the features do not depend on them."""
Pool = Callable[[Tensor], Tensor]


def mean_pool(x: Tensor) -> Tensor:
    """3 x 3 means of what lies within the image."""
    return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def max_pool(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, 1, 1)


class InceptionFID(FeatureNetwork):
    """Images (n, 3, H, W) in [0, 1] -> the 2,048 features before the classes."""

    title = "Inception (FID)"
    feature_dim = 2048

    def __init__(self) -> None:
        super().__init__()
        self.network = inception_v3(
            weights=None, num_classes=N_CLASSES, aux_logits=False, transform_input=False, init_weights=False
        )
        self.pool: Pool = mean_pool
        self.last_pool: Pool = max_pool

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (SIDE_PX, SIDE_PX):
            images = functional.interpolate(images, (SIDE_PX, SIDE_PX), mode="bilinear", align_corners=False)
        return self.features(images * 2 - 1)

    def features(self, x: Tensor) -> Tensor:
        """Of images in [-1, 1], at least 75 px."""
        n = self.network
        x = n.maxpool1(n.Conv2d_2b_3x3(n.Conv2d_2a_3x3(n.Conv2d_1a_3x3(x))))
        x = n.maxpool2(n.Conv2d_4a_3x3(n.Conv2d_3b_1x1(x)))
        for block in (n.Mixed_5b, n.Mixed_5c, n.Mixed_5d):
            x = _block_a(block, x, self.pool)
        x = n.Mixed_6a(x)
        for block in (n.Mixed_6b, n.Mixed_6c, n.Mixed_6d, n.Mixed_6e):
            x = _block_c(block, x, self.pool)
        x = _block_e(n.Mixed_7b, n.Mixed_7a(x), self.pool)
        return _block_e(n.Mixed_7c, x, self.last_pool).mean(dim=(2, 3))

    @classmethod
    def load(cls, path: str | None = None) -> InceptionFID:
        """With the weights of a file. Raises UsageError without one, CheckpointError where it holds another network."""
        if path is None:
            raise UsageError("--features inception: write inception:FILE with the weights of Frechet distances")
        network, place = cls(), Path(user_path(path))
        take_weights(network.network, read_state_dict(place), place, "the Inception network of Frechet distances")
        return network


def _block_a(block: nn.Module, x: Tensor, pool: Pool) -> Tensor:
    b = block.get_submodule
    branches = [
        b("branch1x1")(x),
        b("branch5x5_2")(b("branch5x5_1")(x)),
        b("branch3x3dbl_3")(b("branch3x3dbl_2")(b("branch3x3dbl_1")(x))),
        b("branch_pool")(pool(x)),
    ]
    return torch.cat(branches, 1)


def _block_c(block: nn.Module, x: Tensor, pool: Pool) -> Tensor:
    narrow, double = x, x
    for i in range(1, 4):
        narrow = block.get_submodule(f"branch7x7_{i}")(narrow)
    for i in range(1, 6):
        double = block.get_submodule(f"branch7x7dbl_{i}")(double)
    ends = block.get_submodule("branch1x1")(x), block.get_submodule("branch_pool")(pool(x))
    return torch.cat([ends[0], narrow, double, ends[1]], 1)


def _block_e(block: nn.Module, x: Tensor, pool: Pool) -> Tensor:
    b = block.get_submodule
    wide = b("branch3x3_1")(x)
    double = b("branch3x3dbl_2")(b("branch3x3dbl_1")(x))
    branches = [
        b("branch1x1")(x),
        b("branch3x3_2a")(wide),
        b("branch3x3_2b")(wide),
        b("branch3x3dbl_3a")(double),
        b("branch3x3dbl_3b")(double),
        b("branch_pool")(pool(x)),
    ]
    return torch.cat(branches, 1)
