"""The ResNets that critic, encoders and probe share: the blocks of He et al. (2016) under a stem to suit the image
size.

Names, initial weights and outputs are those of torchvision's `resnet18` and `resnet50`. They are not imported from
there, since that takes longer than torch itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mi_ml_gen.core.errors import UsageError

SMALL_IMAGE_PX = 64
"""Below this the stem keeps the resolution: 3x3, stride 1, no max pool."""
HALVING_STEM = 4
"""Kernel of the stem for small images that halves the resolution: 4x4, stride 2, no max pool."""


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, whose batches `ResNet` counts for all its norms at once: a launch each is many."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.momentum is not None
        return functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum, self.eps
        )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (n, inputs, h, w) -> (n, planes, h / stride, w / stride)."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int = 1, downsample: nn.Sequential | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, padding=1, bias=False)
        self.bn1 = BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        branch = torch.relu_(self.bn1(self.conv1(x)))
        return _joined(self.bn2(self.conv2(branch)), x, self.downsample)


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3 and 1x1 beside a shortcut: (n, inputs, h, w) -> (n, 4 * planes, h / stride, w / stride).

    The 3x3 convolution strides, not the first (version 1.5, as torchvision's).
    """

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int = 1, downsample: nn.Sequential | None = None) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = BatchNorm2d(outputs)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        branch = torch.relu_(self.bn1(self.conv1(x)))
        branch = torch.relu_(self.bn2(self.conv2(branch)))
        return _joined(self.bn3(self.conv3(branch)), x, self.downsample)


def _joined(branch: Tensor, x: Tensor, shortcut: nn.Sequential | None) -> Tensor:
    """A block's output, in the memory of its branch."""
    branch += x if shortcut is None else shortcut(x)
    return torch.relu_(branch)


_BLOCKS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    10: (BasicBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(nn.Module):
    """Images (n, 3, H, W), already normalised, to features (n, feature_dim).

    Modules carry torchvision's names (conv1, bn1, layer1 .. layer4), so that with `width=64` and the standard
    stem a state dict of torchvision's `resnet18` or `resnet50` fits once `fc` is dropped.  The last pooling
    is a mean over the axes: unlike adaptive pooling its backward is deterministic on CUDA.

    small_images: the stem without stride and pooling. halves: with small_images, the stem that halves the resolution at
    a quarter of the work for the same width. A stem shows in the shape of its kernel.
    """

    def __init__(
        self,
        depth: int = 18,
        small_images: bool = False,
        width: int = 64,
        zero_init_residual: bool = False,
        halves: bool = False,
    ) -> None:
        super().__init__()
        if depth not in _BLOCKS:
            raise UsageError(f"ResNet depth {depth}: must be one of {', '.join(map(str, _BLOCKS))}")
        if width < 1:
            raise UsageError(f"ResNet width {width}: must be at least 1")
        block, lengths = _BLOCKS[depth]
        kernel, stride, padding = (7, 2, 3)
        if small_images:
            kernel, stride, padding = (HALVING_STEM, 2, 1) if halves else (3, 1, 1)
        self.conv1 = nn.Conv2d(3, width, kernel, stride, padding, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(block, width, width, lengths[0], stride=1)
        self.layer2 = _stage(block, width * block.expansion, 2 * width, lengths[1], stride=2)
        self.layer3 = _stage(block, 2 * width * block.expansion, 4 * width, lengths[2], stride=2)
        self.layer4 = _stage(block, 4 * width * block.expansion, 8 * width, lengths[3], stride=2)
        self.feature_dim = 8 * width * block.expansion
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, BasicBlock):
                    nn.init.zeros_(module.bn2.weight)
                elif isinstance(module, Bottleneck):
                    nn.init.zeros_(module.bn3.weight)

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(torch.relu_(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (n, feature_dim, h, w)
        if self.training:
            norms = [module for module in self.modules() if isinstance(module, BatchNorm2d) and module.training]
            counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
            if counters:
                torch._foreach_add_(counters, 1)
        return x.mean(dim=(2, 3))


def resnet(
    depth: int = 18, image_size: int = 128, width: int = 64, zero_init_residual: bool = False, halves: bool = False
) -> ResNet:
    """ResNet-`depth` (10, 18 or 50) for square images of `image_size` px; `width` channels in the first stage.

    `width=64` is the published network.  `zero_init_residual` starts every block as its shortcut (the last
    norm of its branch at 0), as torchvision's option of that name.  `halves`: see `ResNet`; larger images have a stem
    of their own.  Raises `UsageError` for another depth or a size or width below 1.
    """
    if image_size < 1:
        raise UsageError(f"image size {image_size} px: must be at least 1")
    return ResNet(depth, image_size < SMALL_IMAGE_PX, width, zero_init_residual, halves)


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, planes: int, length: int, stride: int
) -> nn.Sequential:
    """`length` residual blocks of `planes * expansion` output channels; the first strides and reshapes."""
    outputs = planes * block.expansion
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), BatchNorm2d(outputs))
    first = block(inputs, planes, stride, shortcut)
    return nn.Sequential(first, *(block(outputs, planes) for _ in range(length - 1)))


class Sizes(NamedTuple):
    """What a ResNet is built from."""

    depth: int
    width: int
    small_images: bool
    halves: bool


def sizes_of(tensors: Mapping[str, Tensor]) -> Sizes | None:
    """The sizes of the ResNet with these tensors; None where they have no stem of four axes."""
    stem = tensors.get("conv1.weight")
    if stem is None or stem.ndim != 4:
        return None
    depth = 50 if "layer1.0.conv3.weight" in tensors else 18 if "layer1.1.conv1.weight" in tensors else 10
    kernel = stem.shape[-1]
    return Sizes(depth, stem.shape[0], kernel in (3, HALVING_STEM), kernel == HALVING_STEM)


def torchvision_key(key: str) -> str:
    """Name in `ResNet` of an encoder tensor named as the published checkpoints do.

    Those call the stem's convolution and norm `stem.0` and `stem.1` and the shortcuts `shortcut`, and carry a
    `module.` where the encoder was wrapped for several GPUs.
    """
    key = key.removeprefix("module.").replace(".shortcut.", ".downsample.")
    for theirs, ours in (("stem.0.", "conv1."), ("stem.1.", "bn1.")):
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return key


__all__ = ["SMALL_IMAGE_PX", "ResNet", "Sizes", "resnet", "sizes_of", "torchvision_key"]
