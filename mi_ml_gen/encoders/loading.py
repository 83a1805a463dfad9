"""Encoders in files: ours, and the published ones, of which nothing is run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mi_ml_gen.checkpoints.reading import CheckpointFile, module_state_dict, naming, without_wrappers
from mi_ml_gen.checkpoints.values import Record, kind, kind_of_dict
from mi_ml_gen.core import weights
from mi_ml_gen.core.errors import CheckpointError, CorruptCheckpointError, UsageError
from mi_ml_gen.core.resnet import ResNet
from mi_ml_gen.core.weights import Content, Kind, Published, register_kind
from mi_ml_gen.encoders.base import Architecture, Encoder, Layout, architecture_of, backbone_key
from mi_ml_gen.encoders.registry import METHODS
from mi_ml_gen.hub import fetching as hub

FORMAT = "mi_ml_gen encoder"
"""In the metadata of files of version 0.1."""
BACKBONE = "backbone"
"""Stands for the method of a file that holds a backbone alone."""
BACKBONES = (
    Layout(BACKBONE, "ResNet under model., as published", "model.", "model.conv1.weight"),
    Layout(BACKBONE, "COP-Gen's encoder", "encoder.", "encoder.stem.0.weight"),
    Layout(BACKBONE, "COP-Gen's encoder", "encoder.module.", "encoder.module.stem.0.weight"),
    Layout(BACKBONE, "COP-Gen's encoder", "encoder.module.", "encoder.module.conv1.weight"),
    Layout(BACKBONE, "ResNet under encoder.", "encoder.", "encoder.conv1.weight"),
    Layout(BACKBONE, "torchvision's ResNet", "", "conv1.weight"),
)
"""Published layouts that tell nothing of a method; those of methods are in their classes."""


@dataclass(frozen=True)
class LoadedEncoder:
    """The backbone of a file, all of whose tensors were found there, in shape and number.

    backbone: frozen, in evaluation mode. method: simclr, simsiam, byol, or backbone where the file does not say.
    layout: how its tensors were named. left_out: tensors of the file that are no part of the backbone. about: what
    a run of ours says of itself (crop_size in pixels, epoch, samples, settings); empty for a published file.
    """

    backbone: ResNet
    method: str
    layout: str
    architecture: Architecture
    n_tensors: int
    left_out: tuple[str, ...]
    about: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        heads = sorted({".".join(key.split(".")[:2]) for key in self.left_out})
        left = f"; left out: {len(self.left_out)} tensors ({', '.join(heads[:6])})" if heads else ""
        return (
            f"{self.layout}: ResNet-{self.architecture.depth} of width {self.architecture.width}, "
            f"all {self.n_tensors} tensors of it matched{left}"
        )


def load_encoder(path: str | Path, device: torch.device | str | None = None) -> LoadedEncoder:
    """The backbone in a run folder, a .safetensors file of ours, or a published checkpoint; or of a reference to a
    file (see hub/fetching.py).

    Published: the Lightning checkpoints of SimSiam, BYOL and the linear classifiers, COP-Gen's SimCLR encoders, and
    torchvision's ResNet-18 and -50. Raises UsageError for a missing file, UnsafeCheckpointError or
    CorruptCheckpointError for one that is refused, or whose backbone is not exactly a ResNet's.
    """
    path = hub.local_path(path)
    if path.is_dir():
        path = _newest(path)
    about: dict[str, Any] = {}
    if path.suffix == ".safetensors" and weights.is_own(path):
        content = weights.read(path, EncoderFiles.name)
        state, about = content.tensors, content.about
        with naming(path):
            layout = _own_layout(content.config)
    else:
        state, layout = read_published(path)
    tensors = backbone_of(state, layout)
    with naming(path):
        backbone = _built(tensors)
    left_out = tuple(key for key in state if not _is_backbone(key, layout))
    backbone = backbone.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
    return LoadedEncoder(backbone, layout.method, layout.what, architecture_of(tensors), len(tensors), left_out, about)


def save_encoder(path: str | Path, encoder: Encoder, **about: Any) -> None:
    """Write an encoder, heads and all, with what builds it again and `about`, plain values, in the head.

    Raises NonFiniteError, and writes nothing, for weights that are no finite numbers."""
    weights.write(path, EncoderFiles.name, encoder.state_dict(), _config(encoder), about)


def convert_published(state: Mapping[str, Tensor], layout: Layout, target: Path, **about: Any) -> str:
    """Write the encoder of a published state dict as a file of ours; the words for it. Raises CheckpointError."""
    if layout.method == BACKBONE:
        found = backbone_of(state, layout)
        backbone = _built(found)
        architecture = architecture_of(found)
        tensors = {f"encoder.{key}": value for key, value in backbone.state_dict().items()}
        config = {"method": BACKBONE, "architecture": dataclasses.asdict(architecture), "prefix": "encoder."}
    else:
        encoder = METHODS[layout.method].from_published(state)
        architecture, tensors, config = encoder.architecture, encoder.state_dict(), _config(encoder)
    weights.write(target, EncoderFiles.name, tensors, config, about)
    return _described(layout, architecture)


def _described(layout: Layout, architecture: Architecture) -> str:
    return f"encoder, {layout.what}: ResNet-{architecture.depth} of width {architecture.width}"


def load_whole(path: str | Path) -> Encoder:
    """The encoder that `save_encoder` wrote, heads and all; `load_encoder` gives the backbone alone.

    Raises UsageError for a missing file, CorruptCheckpointError for one that holds no whole encoder of a method known
    here."""
    encoder = weights.load(path, EncoderFiles.name)
    assert isinstance(encoder, Encoder)
    return encoder


def read_published(path: str | Path) -> tuple[dict[str, Tensor], Layout]:
    """The state dict of a published encoder, and how it is named; raises as `load_encoder`."""
    with CheckpointFile(path) as file:
        with naming(path):
            root = part_with_tensors(file.root)
            layout = layout_of(root)
            if layout is None:
                raise CorruptCheckpointError(_unknown(root))
        state = file.build(root)
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    weights.check_finite(path, tensors)
    return tensors, layout


def part_with_tensors(root: Any) -> Any:
    """The part of a parsed checkpoint that is its state dict: what others put it under, or all.

    Names that a wrapper changed (DataParallel, torch.compile) are given without it where no layout has them as they
    are. A module that was saved whole is its state dict.
    """
    part = root
    if isinstance(root, dict):
        found = (root.get(name) for name in ("state_dict", "model", "model_state_dict", "encoder", "net"))
        part = next((value for value in found if isinstance(value, (dict, Record))), root)
    if isinstance(part, Record) and "_modules" in part.state:
        part = module_state_dict(part)
    if isinstance(part, dict) and layout_of(part) is None:
        bare = without_wrappers(part)
        return bare if layout_of(bare) is not None else part
    return part


def layout_of(root: Any) -> Layout | None:
    """How a published encoder's tensors are named, told by their names alone; None for something else."""
    if not isinstance(root, dict):
        return None
    return next((layout for layout in _layouts() if layout.sign in root), None)


def _layouts() -> list[Layout]:
    return [*(layout for method in METHODS.values() for layout in method.published_layouts), *BACKBONES]


def _unknown(root: Any) -> str:
    """Why no encoder was found: what the file holds, and what was looked for."""
    met = kind_of_dict(root) if isinstance(root, dict) else kind(root)
    known = ", ".join(f"{layout.sign} ({layout.what})" for layout in _layouts())
    return f"holds no encoder of a known layout but {met}; looked for {known}, each also under module. or _orig_mod."


def backbone_of(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The backbone's tensors under torchvision's names."""
    return {
        backbone_key(key.removeprefix(layout.prefix)): value
        for key, value in state.items()
        if _is_backbone(key, layout)
    }


def _is_backbone(key: str, layout: Layout) -> bool:
    rest = key.removeprefix(layout.prefix)
    own = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}
    return key.startswith(layout.prefix) and backbone_key(rest).partition(".")[0] in own


def _built(tensors: Mapping[str, Tensor]) -> ResNet:
    try:
        backbone = architecture_of(tensors).backbone()
        backbone.load_state_dict(dict(tensors))
    except (CheckpointError, UsageError, RuntimeError) as error:
        raise CorruptCheckpointError(" ".join(str(error).split())) from None
    return backbone


def _config(encoder: Encoder) -> dict[str, Any]:
    architecture = dataclasses.asdict(encoder.architecture)
    return {"method": encoder.method, "architecture": architecture, "prefix": encoder.backbone_prefix}


def _own_layout(config: Mapping[str, Any]) -> Layout:
    """Where the backbone is in a file of ours; the class of its method need not be known here."""
    try:
        method, prefix = config["method"], config["prefix"]
    except KeyError as error:
        raise CorruptCheckpointError(f"its head does not describe an encoder: {error.args[0]} is missing") from None
    if not (isinstance(method, str) and isinstance(prefix, str)):
        raise CorruptCheckpointError("its head does not describe an encoder")
    known = METHODS.get(method)
    return Layout(method, known.__name__ if known is not None else method, prefix)


@register_kind
class EncoderFiles(Kind[Encoder]):
    """Encoders of all methods in files."""

    name = "encoder"
    models = Encoder
    file = "encoder.safetensors"
    about = (
        "An encoder: a ResNet that learned a representation of images from pairs of views, with the heads that it was "
        "trained with."
    )
    use = (
        "from mi_ml_gen.encoders import Encoder\n\n"
        'encoder = Encoder.from_pretrained("{repo}")\n'
        "features = encoder.backbone(images)  # normalised images (n, 3, height, width) -> (n, feature_dim)"
    )

    def config(self, model: Encoder) -> dict[str, Any]:
        return _config(model)

    def build(self, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> Encoder:
        method = METHODS.get(config["method"])
        if method is None:
            known = ", ".join(METHODS)
            raise UsageError(f"method {config['method']!r} is none with heads that is known here ({known})")
        encoder = method(Architecture(**config["architecture"]))  # type: ignore[call-arg]
        encoder.load_state_dict(tensors)
        return encoder

    def older(self, path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> Content | None:
        """Metadata of 0.1: format, method, architecture and about as JSON."""
        if metadata.get("format") != FORMAT:
            return None
        if not {"method", "architecture", "about"} <= metadata.keys():
            raise CorruptCheckpointError(f"{path}: its header does not describe an encoder")
        method = metadata["method"]
        known = METHODS.get(method)
        if known is None and method != BACKBONE:
            raise CorruptCheckpointError(f"{path}: its header does not describe an encoder: {method[:40]!r}")
        config = {
            "method": method,
            "architecture": weights.parsed(path, metadata["architecture"]),
            "prefix": known.backbone_prefix if known is not None else "encoder.",
        }
        return Content(self.name, config, weights.parsed(path, metadata["about"]), tensors)

    def published(self, root: Any, source: Path) -> Published | None:
        if layout_of(part_with_tensors(root)) is None:
            return None
        state, layout = read_published(source)
        with naming(source):
            architecture = architecture_of(backbone_of(state, layout))

        def save(target: Path) -> None:
            with naming(source):
                convert_published(state, layout, target, source=source.name)

        return Published(_described(layout, architecture), save, "--encoder_path {path}")


def _newest(folder: Path) -> Path:
    """The final encoder of a run folder, or the last one saved along the way."""
    final = folder / "encoder.safetensors"
    along = sorted((folder / "encoders").glob("e_*.safetensors"))
    if not final.is_file() and not along:
        raise UsageError(f"{folder}: no encoder has been saved there yet")
    return final if final.is_file() else along[-1]
