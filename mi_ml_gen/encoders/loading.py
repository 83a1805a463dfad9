"""Encoders in files: ours, and the published ones, of which nothing is run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mi_ml_gen.checkpoints.reading import CheckpointFile, naming
from mi_ml_gen.core import files
from mi_ml_gen.core.errors import CheckpointError, CorruptCheckpointError, UsageError
from mi_ml_gen.core.resnet import ResNet
from mi_ml_gen.encoders.base import Architecture, Encoder, architecture_of, backbone_key
from mi_ml_gen.encoders.byol import BYOL
from mi_ml_gen.encoders.simclr import SimCLR
from mi_ml_gen.encoders.simsiam import SimSiam
from mi_ml_gen.hub import fetching as hub

FORMAT = "mi_ml_gen encoder"
METHODS: dict[str, type[Encoder]] = {cls.method: cls for cls in (SimCLR, SimSiam, BYOL)}


class Layout(NamedTuple):
    """One way of naming an encoder's tensors."""

    method: str
    what: str
    prefix: str
    """What the backbone's tensors begin with."""
    head: str
    """What follows the prefix in tensors that are no part of the backbone."""
    sign: str
    """A tensor that only this layout has."""


PUBLISHED = (
    Layout("simsiam", "SimSiam, as published", "encoder.", "fc.", "encoder.fc.6.weight"),
    Layout("byol", "BYOL, as published", "online_network.encoder.", "fc.", "online_network.encoder.0.weight"),
    Layout("backbone", "ResNet under model., as published", "model.", "fc.", "model.conv1.weight"),
    Layout("backbone", "COP-Gen's encoder", "encoder.", "fc.", "encoder.stem.0.weight"),
    Layout("backbone", "COP-Gen's encoder", "encoder.module.", "fc.", "encoder.module.stem.0.weight"),
    Layout("backbone", "COP-Gen's encoder", "encoder.module.", "fc.", "encoder.module.conv1.weight"),
    Layout("backbone", "torchvision's ResNet", "", "fc.", "conv1.weight"),
)
OWN = {
    "simclr": Layout("simclr", "SimCLR", "encoder.", "fc.", "encoder.conv1.weight"),
    "simsiam": Layout("simsiam", "SimSiam", "encoder.", "fc.", "encoder.conv1.weight"),
    "byol": Layout("byol", "BYOL", "online.encoder.", "fc.", "online.encoder.conv1.weight"),
    "backbone": Layout("backbone", "backbone", "encoder.", "fc.", "encoder.conv1.weight"),
}


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
    file (see hub.py).

    Published: the Lightning checkpoints of SimSiam, BYOL and the linear classifiers, COP-Gen's SimCLR encoders, and
    torchvision's ResNet-18 and -50. Raises UsageError for a missing file, UnsafeCheckpointError or
    CorruptCheckpointError for one that is refused, or whose backbone is not exactly a ResNet's.
    """
    path = hub.local_path(path)
    if path.is_dir():
        path = _newest(path)
    if path.suffix == ".safetensors" and (own := _own(path)) is not None:
        state, layout, about = own
    else:
        state, layout = read_published(path)
        about = {}
    tensors = backbone_of(state, layout)
    with naming(path):
        backbone = _built(tensors)
    left_out = tuple(key for key in state if not _is_backbone(key, layout))
    backbone = backbone.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
    return LoadedEncoder(backbone, layout.method, layout.what, architecture_of(tensors), len(tensors), left_out, about)


def save_encoder(path: str | Path, encoder: Encoder, **about: Any) -> None:
    """Write an encoder, heads and all, with what builds it again and `about`, plain values, in the header."""
    _write(Path(path), encoder.method, encoder.architecture, encoder.state_dict(), about)


def convert_published(state: Mapping[str, Tensor], layout: Layout, target: Path, **about: Any) -> str:
    """Write the encoder of a published state dict as a file of ours; the words for it. Raises CheckpointError."""
    if layout.method in ("simsiam", "byol"):
        build = SimSiam.from_published if layout.method == "simsiam" else BYOL.from_published
        encoder = build(state)
        architecture, tensors = encoder.architecture, encoder.state_dict()
    else:
        found = backbone_of(state, layout)
        backbone = _built(found)
        architecture = architecture_of(found)
        tensors = {f"encoder.{key}": value for key, value in backbone.state_dict().items()}
    _write(target, layout.method, architecture, tensors, about)
    return f"encoder, {layout.what}: ResNet-{architecture.depth} of width {architecture.width}"


def read_published(path: str | Path) -> tuple[dict[str, Tensor], Layout]:
    """The state dict of a published encoder, and how it is named; raises as `load_encoder`."""
    with CheckpointFile(path) as file:
        root = part_with_tensors(file.root)
        layout = layout_of(root)
        if layout is None:
            raise CorruptCheckpointError(f"{path}: holds no encoder of a known layout")
        state = file.build(root)
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    return tensors, layout


def part_with_tensors(root: Any) -> Any:
    """The part of a parsed checkpoint that is its state dict: what Lightning and COP-Gen put it under, or all."""
    if isinstance(root, dict):
        for name in ("state_dict", "model"):
            if isinstance(root.get(name), dict):
                return root[name]
    return root


def layout_of(root: Any) -> Layout | None:
    """How a published encoder's tensors are named, told by their names alone; None for something else."""
    if not isinstance(root, dict):
        return None
    return next((layout for layout in PUBLISHED if layout.sign in root), None)


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


def _write(
    path: Path, method: str, architecture: Architecture, state: Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    header = {
        "format": FORMAT,
        "method": method,
        "architecture": json.dumps(dataclasses.asdict(architecture)),
        "about": json.dumps(dict(about)),
    }
    files.save_tensors(path, state, header)


def _own(path: Path) -> tuple[dict[str, Tensor], Layout, dict[str, Any]] | None:
    """Tensors, layout and description of a file of ours; None for another safetensors file."""
    tensors, header = files.load_tensors(path)
    if header.get("format") != FORMAT:
        return None
    try:
        return tensors, OWN[header["method"]], dict(json.loads(header["about"]))
    except (KeyError, ValueError, TypeError):
        raise CorruptCheckpointError(f"{path}: its header describes no encoder") from None


def _newest(folder: Path) -> Path:
    """The final encoder of a run folder, or the last one saved along the way."""
    final = folder / "encoder.safetensors"
    along = sorted((folder / "encoders").glob("e_*.safetensors"))
    if not final.is_file() and not along:
        raise UsageError(f"{folder}: no encoder has been saved there yet")
    return final if final.is_file() else along[-1]
