"""Weights of our own models in files: one format for every kind of model, and the registry of kinds.

A file is safetensors. Its metadata has one entry, HEAD, a JSON text:

    {"kind": "walker", "format_version": 2, "config": {...}, "about": {...}}

config: plain values from which, with the tensors, the same model is built again. about: what the writer noted (number
of samples, seed ...). The SHA-256 of the whole file, and so of the head, lies beside it (.sha256) and is checked
whenever the file is read. Weights that are no finite numbers are neither written nor read.

A kind registers itself in the file that knows its models:

    @register_kind
    class WalkerFiles(Kind):
        name, models, file = "walker", Walker, "walker.safetensors"

        def build(self, config, tensors): ...

Files of version 0.1 had other heads; each kind reads its own (`Kind.older`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from mi_ml_gen.core import files
from mi_ml_gen.core.errors import (
    CheckpointError,
    CorruptCheckpointError,
    NonFiniteError,
    UsageError,
    nearest,
    with_article,
)
from mi_ml_gen.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

HEAD = "mi_ml_gen"
"""Key of the head among the metadata of a file."""
VERSION = 2
"""Of the head; a reader refuses a later one. Files of version 0.1 have no such head."""
LARGEST = 1e19
"""Weights beyond it are refused as infinity is: their squares do not fit into float32."""

M = TypeVar("M", bound="nn.Module")
K = TypeVar("K", bound="type[Kind[Any]]")


class Content(NamedTuple):
    """What a file holds: the head and the tensors, on the CPU."""

    kind: str
    config: dict[str, Any]
    about: dict[str, Any]
    tensors: dict[str, Tensor]


class Published(NamedTuple):
    """A published file of others that a kind has read."""

    what: str
    """The kind of file and its sizes, for people."""
    save: Callable[[Path], object]
    """Write it as a file of our own."""
    flags: str
    """How the scripts are given the result, {path} standing for it."""


class Kind(Generic[M]):
    """One kind of model. A subclass sets the fields and `build`, and registers itself by `register_kind`."""

    name: ClassVar[str]
    models: ClassVar[type]
    """The class of all models of this kind."""
    file: ClassVar[str] = ""
    """The trained model in a run folder; "" where no run leaves one."""
    about: ClassVar[str] = ""
    """What such a model is, for its card."""
    use: ClassVar[str] = ""
    """Python that loads it, {repo} standing for the repository, {generator} for the run's generator; for its card."""
    citation: ClassVar[str] = "serez2025mutual"
    """The paper that its card cites, a key of hub.model_card.CITATIONS."""

    def config(self, model: M) -> dict[str, Any]:
        """Plain values from which, with `tensors`, `build` makes the same model again."""
        return model.config()  # type: ignore[operator]

    def tensors(self, model: M) -> Mapping[str, Tensor]:
        return model.state_dict()

    def build(self, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> M:
        """The model, on the CPU. Whatever it raises for content that does not fit becomes CorruptCheckpointError."""
        raise NotImplementedError

    def description(self, content: Content) -> str | None:
        """Text of a .json file that is written beside the weights for people; None for none. It must follow from the
        head, against which it is checked when the weights are read."""
        return None

    def older(self, path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> Content | None:
        """The content of a file of this kind that version 0.1 wrote, None for another file."""
        return None

    def published(self, root: Any, source: Path) -> Published | None:
        """What a file holds that others published, told by its parsed content (`CheckpointFile.root`); None for
        something else. Raises CheckpointError for such a file that is damaged."""
        return None

    def pickle_names(self, module: str, name: str) -> Any:
        """What a published pickle of this kind may name, see checkpoints/names.py; None for nothing more than usual."""
        return None


KINDS: Registry[Kind[Any]] = Registry("kind of model", rooms=True)


def register_kind(kind: K) -> K:
    """Class decorator: make a kind known under its name."""
    KINDS.add(kind.name, kind())
    return kind


def kind_of(model: nn.Module) -> Kind[Any]:
    """The kind of a model. Raises UsageError where it is of none."""
    for kinds in (KINDS.loaded(), KINDS):  # first without importing the rest of the package
        for kind in kinds.values():
            if isinstance(model, kind.models):
                return kind
    raise UsageError(f"a {type(model).__name__} cannot be shared; {', '.join(KINDS)} can")


# --- writing ------------------------------------------------------------------------------------------------


def save(path: str | Path, model: nn.Module, **about: Any) -> None:
    """Write a model of a registered kind, with `about`, plain values, in the head. Raises as `write`."""
    kind = kind_of(model)
    write(path, kind.name, kind.tensors(model), kind.config(model), about)


def write(
    path: str | Path, kind: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any], about: Mapping[str, Any]
) -> None:
    """Write a .safetensors file, its SHA-256 beside it, and the kind's description where it has one.

    Raises NonFiniteError, and writes nothing, for weights that are no finite numbers.
    """
    path = Path(path)
    if bad := first_not_finite(tensors):
        raise NonFiniteError(f"{path} is not written: {bad}")
    head = json.dumps({"kind": kind, "format_version": VERSION, "config": dict(config), "about": dict(about)})
    read_back = json.loads(head)
    content = Content(kind, read_back["config"], read_back["about"], dict(tensors))
    text = KINDS[kind].description(content)
    if text is not None:  # an older one would not fit the new weights, if the process died in between
        with files.disk_faults(description_file(path)):
            description_file(path).unlink(missing_ok=True)
    files.save_tensors(path, tensors, {HEAD: head})
    if text is not None:
        files.atomic_write(description_file(path), text.encode())


def description_file(path: Path) -> Path:
    """Where the description of a kind lies, beside the weights."""
    return path.with_suffix(".json")


def first_not_finite(tensors: Mapping[str, Tensor]) -> str:
    """Says which tensor holds nan, infinity or a number beyond LARGEST; "" where none does."""
    for name, value in tensors.items():
        if value.is_floating_point() and value.numel() > 0:
            least, most = (float(bound) for bound in value.detach().aminmax())
            if not (least >= -LARGEST and most <= LARGEST):  # nan is neither
                return f"{name} holds nan, infinity, or numbers beyond {LARGEST:.0e}"
    return ""


def check_finite(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise CorruptCheckpointError for weights, read from `path`, that are no finite numbers."""
    if bad := first_not_finite(tensors):
        raise CorruptCheckpointError(f"{path}: {bad}")


# --- reading ------------------------------------------------------------------------------------------------


def load(path: str | Path, kind: str | None = None) -> Any:
    """The model of a file that `save` or version 0.1 wrote, on the CPU. kind: the only one that will do.

    Raises UsageError for a missing file, CorruptCheckpointError for one that is damaged, of another kind, or whose
    head and tensors do not fit together.
    """
    path = Path(path)
    return build(path, read(path, kind))


def build(path: Path, content: Content, make: Callable[[Any, Any], Any] | None = None) -> Any:
    """The model of a file's content, by `make(config, tensors)` or its kind's `build`. Raises CorruptCheckpointError
    naming `path`."""
    from mi_ml_gen.core.memory import no_more_than  # imports torch

    try:
        with no_more_than(path):
            return (make or KINDS[content.kind].build)(content.config, content.tensors)
    except CheckpointError as error:
        said = str(error)
        raise CorruptCheckpointError(said if str(path) in said else f"{path}: {said}") from None
    except (UsageError, RuntimeError, TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        words = f"{error.args[0]} is missing" if isinstance(error, KeyError) and error.args else str(error)
        words = " ".join(words.split())[:300] or type(error).__name__
        raise CorruptCheckpointError(f"{path}: its head and its tensors do not fit together: {words}") from None


def read(path: str | Path, kind: str | None = None) -> Content:
    """Head and tensors of a file of our own; raises as `load`."""
    path = Path(path)
    tensors, metadata = files.load_tensors(path)
    content = _content(path, tensors, metadata, kind)
    if content is None:
        raise CorruptCheckpointError(f"{path}: its head describes no {kind or 'model'} of mi_ml_gen")
    if kind is not None and content.kind != kind:
        raise CorruptCheckpointError(f"{path}: holds {with_article(content.kind)}, not {with_article(kind)}")
    check_finite(path, tensors)
    return content


def is_own(path: str | Path) -> bool:
    """Whether a .safetensors file is one that we wrote, of whatever kind or version. Raises as `read`."""
    tensors, metadata = files.load_tensors(path)
    return _content(Path(path), tensors, metadata, None) is not None


def _content(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str], kind: str | None) -> Content | None:
    if HEAD not in metadata:
        candidates = KINDS.values() if kind is None else [KINDS[kind]]
        found = (candidate.older(path, tensors, metadata) for candidate in candidates)
        return next((content for content in found if content is not None), None)
    content = _from_head(path, metadata[HEAD], tensors)
    text = KINDS[content.kind].description(content)
    beside = description_file(path)
    if text is not None and beside.is_file() and files.read_with_hash(beside, hash_required=False) != text.encode():
        raise CorruptCheckpointError(f"{beside}: damaged, or of another {content.kind}: not what {path.name} says")
    return content


def parsed(path: Path, text: str) -> Any:
    """JSON in an older head. Raises CorruptCheckpointError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise CorruptCheckpointError(f"{path}: its head is damaged") from None


def _from_head(path: Path, text: str, tensors: dict[str, Tensor]) -> Content:
    try:
        head = json.loads(text)
        kind, version, config, about = (head[key] for key in ("kind", "format_version", "config", "about"))
        right = isinstance(kind, str) and type(version) is int and isinstance(config, dict) and isinstance(about, dict)
    except (ValueError, KeyError, TypeError, RecursionError):
        right = False
    if not right:
        raise CorruptCheckpointError(f"{path}: its head is damaged")
    if version > VERSION:
        raise CorruptCheckpointError(f"{path}: has format {version}, this version reads {VERSION}; upgrade mi_ml_gen")
    if kind not in KINDS:
        near = nearest(kind[:40], KINDS, "kind")
        raise CorruptCheckpointError(f"{path}: holds a {kind[:40]!r}, a kind of model that is not known here{near}")
    return Content(kind, config, about, tensors)


__all__ = [
    "HEAD",
    "KINDS",
    "Content",
    "Kind",
    "Published",
    "check_finite",
    "kind_of",
    "load",
    "read",
    "register_kind",
    "save",
    "write",
]
