"""What the three methods of representation learning share: a backbone, outputs of two views, a loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mi_ml_gen.core.errors import CheckpointError, CorruptCheckpointError, UsageError
from mi_ml_gen.core.resnet import ResNet, sizes_of, torchvision_key
from mi_ml_gen.hub.sharing import Shared


@dataclass(frozen=True)
class Architecture:
    """The sizes of an encoder, from which, with a state dict, the same one is built again.

    depth: of the ResNet, 10, 18 or 50. width: channels of its first stage, 64 as published. small_images: the stem
    without stride and pooling. dim: of the projections. pred: hidden units of the predictor, where there is one.
    halves: the stem for small images that halves their resolution.
    """

    depth: int = 50
    width: int = 64
    small_images: bool = False
    dim: int = 2048
    pred: int = 512
    halves: bool = False

    def backbone(self, zero_init_residual: bool = False) -> ResNet:
        return ResNet(self.depth, self.small_images, self.width, zero_init_residual, self.halves)


class Layout(NamedTuple):
    """One way of naming an encoder's tensors."""

    method: str
    what: str
    prefix: str
    """What the backbone's tensors begin with."""
    sign: str = ""
    """A tensor that only this layout has."""


class Outputs(NamedTuple):
    """What the network gives for two views, a row for each sample.

    features: the backbone's, of the first views, (n, feature_dim), without a graph: what is watched for collapse.
    parts: what the loss is made of.
    """

    features: Tensor
    parts: tuple[Tensor, ...]


class Gradients(NamedTuple):
    """What `accumulate_gradients` tells of the step: the loss (scalar) and the features, both without a graph."""

    loss: Tensor
    features: Tensor


class Encoder(Shared):
    """A backbone with what its method trains around it.

    A method defines `backbone`, `forward` (the heavy part: views to outputs) and `loss`.
    """

    method: ClassVar[str]
    couples_samples: ClassVar[bool] = False
    """Whether the loss of a sample depends on the other samples (of all processes)."""
    backbone_prefix: ClassVar[str] = "encoder."
    """What the backbone's tensors begin with in the state dict."""
    published_layouts: ClassVar[tuple[Layout, ...]] = ()
    """How others named the tensors of such encoders, for a method that has `from_published`."""
    architecture: Architecture

    @classmethod
    def from_settings(cls, architecture: Architecture, settings: Any) -> Encoder:
        """A new encoder of these sizes; settings: the `EncoderConfig`, for a method that takes more from it."""
        return cls(architecture)  # type: ignore[call-arg]

    @classmethod
    def from_published(cls, state: Mapping[str, Tensor]) -> Encoder:
        """The encoder in a state dict of one of the `published_layouts`, strictly."""
        raise NotImplementedError

    @classmethod
    def with_tensors(cls, tensors: Mapping[str, Tensor]) -> Encoder:
        """The encoder with these tensors, strictly, for a method whose sizes show in its backbone and its predictor.
        Raises CorruptCheckpointError where they do not fit."""
        start = cls.backbone_prefix
        backbone = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
        try:
            pred, dim = tensors["predictor.0.weight"].shape
            encoder = cls(architecture_of(backbone, dim, pred))  # type: ignore[call-arg]
            encoder.load_state_dict(tensors)
        except (KeyError, ValueError, RuntimeError, CheckpointError, UsageError) as error:
            raise CorruptCheckpointError(f"{cls.__name__} state dict: {' '.join(str(error).split())}") from None
        return encoder

    def config(self) -> dict[str, Any]:
        return {"method": self.method, **asdict(self.architecture)}

    @property
    def backbone(self) -> ResNet:
        """What is kept for later use: normalised images (n, 3, H, W) -> features (n, feature_dim)."""
        raise NotImplementedError

    def forward(self, first: Tensor, second: Tensor) -> Outputs:
        """Two batches of normalised views (n, 3, H, W), row i of both of the same sample -> outputs."""
        raise NotImplementedError

    def loss(self, parts: tuple[Tensor, ...]) -> Tensor:
        """The scalar loss, in float32, of the parts that `forward` gave; of all processes where they are coupled."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The trained parameters for an optimiser; `fix_lr` says that a group keeps the peak learning rate."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": trained, "fix_lr": False}]

    def after_step(self) -> None:
        """What follows the optimiser's step."""


def accumulate_gradients(
    encoder: Encoder, first: Tensor, second: Tensor, n_parts: int, context: AbstractContextManager, run: Any = None
) -> Gradients:
    """Add the gradient of the loss over a process's batch to the parameters, worked on in `n_parts` parts.

    The memory is that of one part, the loss that of the batch. Where samples are coupled all outputs are computed
    first without a graph, the loss is taken back to them, and each part is then run again with one (Gao et al.
    2021, "Scaling deep contrastive learning batch size under memory limited setup"). Batch normalisation sees one
    part at a time. context: such as autocast, for the forward passes. run: the encoder, or a compiled form of it.
    """
    run = encoder if run is None else run
    n = len(first)
    parts = list(zip(first.chunk(n_parts), second.chunk(n_parts), strict=True))
    if len(parts) == 1 or not encoder.couples_samples:
        losses, seen = [], []
        for one, other in parts:
            with context:
                outputs = run(one, other)
            loss = encoder.loss(outputs.parts) * (len(one) / n)
            loss.backward()
            losses.append(loss.detach())
            seen.append(outputs.features)
        return Gradients(torch.stack(losses).sum(), torch.cat(seen))

    with torch.no_grad(), frozen_statistics(encoder), context:
        without_graph = [run(one, other) for one, other in parts]
    columns = zip(*(outputs.parts for outputs in without_graph), strict=True)
    whole = tuple(torch.cat(column).requires_grad_() for column in columns)
    loss = encoder.loss(whole)
    loss.backward()
    slopes = [tensor.grad.split([len(one) for one, _ in parts]) for tensor in whole if tensor.grad is not None]
    for i, (one, other) in enumerate(parts):
        with context:
            outputs = run(one, other)
        torch.autograd.backward(outputs.parts, [slope[i] for slope in slopes])
    return Gradients(loss.detach(), torch.cat([outputs.features for outputs in without_graph]))


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms work as they do, but their running statistics and counters stay."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter


def mlp(n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    """Linear, norm, ReLU, Linear: the predictor of SimSiam, and both heads of BYOL."""
    return nn.Sequential(
        nn.Linear(n_in, n_hidden, bias=False),
        nn.BatchNorm1d(n_hidden),
        nn.ReLU(inplace=True),
        nn.Linear(n_hidden, n_out),
    )


def float32(tensor: Tensor) -> Tensor:
    """Half precision as float32; the rest as it is."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


# ---------------------------------------------------------------------------------------------------------------
# Published files

POSITIONS = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""The parts of a torchvision ResNet by their place among its children, as published BYOL encoders name them."""


def named_by_position(key: str) -> str:
    """ "4.0.conv1.weight" -> "layer1.0.conv1.weight"; other keys stay."""
    place, dot, rest = key.partition(".")
    return POSITIONS.get(place, place) + dot + rest


def backbone_key(key: str) -> str:
    """The name in `ResNet` of a backbone's tensor, whichever of the published ways it is named in."""
    return named_by_position(torchvision_key(key))


def architecture_of(backbone: Mapping[str, Tensor], dim: int = 2048, pred: int = 512) -> Architecture:
    """The sizes of a backbone, read off its tensors. Raises CorruptCheckpointError where it is no ResNet's."""
    sizes = sizes_of(backbone)
    if sizes is None:
        raise CorruptCheckpointError("backbone: there is no conv1.weight of four axes")
    return Architecture(sizes.depth, sizes.width, sizes.small_images, dim, pred, sizes.halves)
