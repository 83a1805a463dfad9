"""Sharing: a trained model as a folder that others load, and on the Hugging Face Hub.

    model.safetensors     the weights, in the form that the kind's own reader takes (.sha256 beside)
    config.json           what kind of model it is, its configuration, and the SHA-256 of each file
    README.md, images/    the model card, written from the record of the run (model_card.py)

    walker.push_to_hub("me/my-walker", run="walker_runs/...")             # shows what would go
    walker.push_to_hub("me/my-walker", run="walker_runs/...", licence="mit", dry_run=False)
    walker = Walker.from_pretrained("me/my-walker")                       # or a folder

What can be shared is a registered kind (core/weights.py). Whatever a folder holds, reading it runs nothing of it:
weights are read as safetensors, all else as JSON, and no more memory is taken than the weights account for.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from mi_ml_gen import __version__
from mi_ml_gen.core import files, weights
from mi_ml_gen.core.errors import (
    CheckpointError,
    CorruptCheckpointError,
    EnvironmentFault,
    UsageError,
    nearest,
    with_article,
)
from mi_ml_gen.core.texts import TextError, parse_json, parse_yaml
from mi_ml_gen.core.weights import KINDS, Kind
from mi_ml_gen.hub import fetching as hub
from mi_ml_gen.hub import model_card
from mi_ml_gen.hub.assets import HubFile
from mi_ml_gen.hub.downloads import hashes_of

FORMAT = "mi_ml_gen"
VERSION = 1
"""Of the folder's layout; a reader refuses a later one."""
CONFIG, WEIGHTS, CARD, IMAGES = "config.json", "model.safetensors", "README.md", "images"
READ = re.compile(r"model\.(safetensors|json)")
"""Files that are read of a shared folder beside config.json."""
MAX_CONFIG_BYTES = 1 << 20
UNNAMED = "OWNER/NAME"
"""Stands in a card for the repository, where none was named."""

M = TypeVar("M", bound="Shared")


class Shared(nn.Module):
    """Base of models that can be shared, once their kind is registered. `config()` gives plain values that describe
    the model."""

    def config(self) -> dict[str, Any]:
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path, run: str | Path | None = None, **about: Any) -> Path:
        """As `save`."""
        return save(self, folder, run, **about)

    def push_to_hub(
        self,
        repo: str,
        run: str | Path | None = None,
        dry_run: bool = True,
        private: bool = False,
        licence: str | None = None,
    ) -> Upload:
        """Save into a folder of its own and `push` that to OWNER/NAME; as long as it is a dry run nothing is sent."""
        with tempfile.TemporaryDirectory() as place:
            folder = save(self, Path(place) / "model", run, repo=repo, licence=licence)
            return push(folder, repo, dry_run, private)

    @classmethod
    def from_pretrained(
        cls: type[M], source: str | Path, device: torch.device | str | None = None, revision: str | None = None
    ) -> M:
        """As `load`. Raises UsageError where a model of another class is found."""
        model = load(source, device, revision)
        if not isinstance(model, cls):
            raise UsageError(f"{source}: holds {with_article(type(model).__name__)}, not {with_article(cls.__name__)}")
        return model


# --- a folder -----------------------------------------------------------------------------------------------


def save(
    model: Shared,
    folder: str | Path,
    run: str | Path | None = None,
    repo: str = UNNAMED,
    licence: str | None = None,
) -> Path:
    """Write a model with its card into a folder that is not there yet, all or nothing; gives the folder.

    run: the run folder that it comes from, whose record the card tells. repo, licence: for the card.
    Raises UsageError for a folder that is there, a run folder that is none, a licence that is no identifier, and a repo
    that is not OWNER/NAME.
    """
    folder = Path(folder)
    if folder.exists():
        raise UsageError(f"{folder}: already exists; remove it or choose another")
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise UsageError(
            f"--license {licence}: must be an identifier of the Hub, such as mit, apache-2.0, cc-by-4.0, other"
        )
    _check_repo(repo)
    kind = weights.kind_of(model)
    record = model_card.RunRecord.read(run) if run is not None else None
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        with files.disk_faults(partial):
            partial.mkdir(parents=True)
        _write_weights(model, kind, partial / WEIGHTS, record)
        shown = []
        for picture in model_card.pictures(record):
            files.atomic_write(partial / IMAGES / picture.name, picture.read_bytes())
            shown.append(f"{IMAGES}/{picture.name}")
        n_parameters = sum(parameter.numel() for parameter in model.parameters())
        subject = model_card.Subject(
            kind.name, type(model).__name__, kind.about, kind.use, n_parameters, model.config(), kind.citation
        )
        files.atomic_write(partial / CARD, model_card.write(subject, record, repo, licence, shown).encode())
        description = {
            "format": FORMAT,
            "format_version": VERSION,
            "kind": kind.name,
            "class": type(model).__name__,
            "config": model.config(),
            "files": {
                path.name: hashes_of(path).sha256.hexdigest()
                for path in sorted(partial.iterdir())
                if READ.fullmatch(path.name)
            },
            "mi_ml_gen_version": __version__,
        }
        files.atomic_write(partial / CONFIG, (json.dumps(description, indent=2) + "\n").encode())
        _check_return(model, partial)
        with files.disk_faults(folder):
            partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


def _write_weights(model: Shared, kind: Kind[Any], target: Path, record: model_card.RunRecord | None) -> None:
    """The run's own file, where it holds this model: it also has what the run noted there; else a new one."""
    own = record.path / kind.file if record is not None and kind.file else None
    if own is None or not own.is_file() or not _equal(weights.load(own, kind.name), model):
        weights.save(target, model)
        return
    files.write_with_hash(target, own.read_bytes())
    if weights.description_file(own).is_file():
        files.atomic_write(weights.description_file(target), weights.description_file(own).read_bytes())


def _check_return(model: Shared, folder: Path) -> None:
    """Raise UsageError where what was written does not come back as it was."""
    try:
        returned = load(folder)
    except CheckpointError as error:
        raise UsageError(f"this {type(model).__name__} cannot be shared: {error}") from error
    if not _equal(returned, model):
        raise UsageError(f"this {type(model).__name__} cannot be shared: reading it back gives another model")


def _equal(model: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same class and state, bit for bit."""
    mine, theirs = model.state_dict(), other.state_dict()
    if type(model) is not type(other) or mine.keys() != theirs.keys():
        return False
    return all(mine[key].dtype == theirs[key].dtype and torch.equal(mine[key].cpu(), theirs[key].cpu()) for key in mine)


def load(source: str | Path, device: torch.device | str | None = None, revision: str | None = None) -> Shared:
    """The model of a folder that `save` wrote, or of a repository of such files (OWNER/NAME), in evaluation mode.

    revision: branch, tag or commit of the repository. Raises UsageError where there is no such thing, CheckpointError
    for a folder of something else or damaged files, EnvironmentFault where the Hub cannot be reached.
    """
    folder, description = _find(source, revision)
    try:
        model = weights.load(folder / WEIGHTS, description["kind"])
    except UsageError as error:
        raise CorruptCheckpointError(f"{folder}: its files do not fit together: {_line(error)}") from None
    return model.eval().to(device)


def describe(folder: Path) -> dict[str, Any]:
    """The content of a shared folder's config.json, checked. Raises CheckpointError."""
    path = folder / CONFIG
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CorruptCheckpointError(f"{path}: is not the description of a model: {path.stat().st_size:,} bytes")
        content = parse_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{folder}: holds no shared model, there is no {CONFIG}") from None
    except OSError as error:
        raise EnvironmentFault(f"cannot read {path}: {error.strerror}") from None
    except TextError as error:
        raise CorruptCheckpointError(f"{path}: damaged: {_line(error)}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: does not describe a model of mi_ml_gen (its format must be {FORMAT!r})")
    if content.get("format_version") != VERSION:
        version = str(content.get("format_version"))[:20]
        raise CheckpointError(f"{path}: has layout {version}, this version reads {VERSION}; upgrade mi_ml_gen")
    kind, hashes = content.get("kind"), content.get("files")
    if not isinstance(kind, str) or kind not in KINDS:
        raise CheckpointError(
            f"{path}: kind {str(kind)[:40]!r} is not known here{nearest(str(kind)[:40], KINDS, 'kind')}"
        )
    if not isinstance(hashes, dict) or WEIGHTS not in hashes or not all(READ.fullmatch(name) for name in hashes):
        raise CorruptCheckpointError(f"{path}: damaged: names no {WEIGHTS}, or other files than a model's")
    return content


def _find(source: str | Path, revision: str | None) -> tuple[Path, dict[str, Any]]:
    """The local folder of a source, its files checked, and its description."""
    if str(source) and Path(source).is_dir():
        folder = Path(source)
        description = describe(folder)
    elif _is_repo(str(source)):
        repo = str(source).removeprefix("hf://")
        folder = hub.fetch(f"hf://{repo}/{CONFIG}", revision).parent
        description = describe(folder)
        commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else revision
        for name in description["files"]:  # of the same commit, whatever is pushed meanwhile
            hub.fetch(f"hf://{repo}/{name}", commit)
    else:
        raise UsageError(f"{source}: is neither a folder nor a repository OWNER/NAME")
    for name, sha256 in description["files"].items():
        _check(folder / name, sha256)
    return folder, description


def _check(path: Path, sha256: object) -> None:
    try:
        found = hashes_of(path).sha256.hexdigest()
    except FileNotFoundError:
        raise CorruptCheckpointError(f"{path.parent}: {path.name} is missing") from None
    except OSError as error:
        raise EnvironmentFault(f"cannot read {path}: {error.strerror}") from None
    if found != sha256:
        raise CorruptCheckpointError(f"{path}: damaged, not what {CONFIG} beside it says")


def _check_repo(repo: str) -> None:
    if not _is_repo(repo) or repo.startswith("hf://"):
        raise UsageError(f"--repo {repo}: write OWNER/NAME")


def _is_repo(text: str) -> bool:
    return re.fullmatch(r"(hf://)?[\w-][\w.-]*/[\w-][\w.-]*", text) is not None


# --- kinds --------------------------------------------------------------------------------------------------


def kind_of(model: nn.Module) -> str:
    """The kind of a model. Raises UsageError where it is none that can be shared."""
    return weights.kind_of(model).name


def find_in_run(folder: Path) -> str | None:
    """The kind of the trained model that lies in a run folder, or None."""
    return next((name for name, kind in KINDS.items() if kind.file and (folder / kind.file).is_file()), None)


def load_from_run(folder: str | Path) -> Shared:
    """The trained model of a run folder. Raises UsageError where there is none, else as its kind's reader."""
    folder = Path(folder)
    name = find_in_run(folder)
    if name is None:
        wanted = ", ".join(kind.file for kind in KINDS.values() if kind.file)
        raise UsageError(f"{folder}: no trained model is in it (one of {wanted}), and no shared one ({CONFIG})")
    return weights.load(folder / KINDS[name].file, name)


def prepare(
    folder: str | Path,
    repo: str,
    licence: str | None = None,
    out: str | Path | None = None,
    to_push: bool = False,
) -> Path:
    """The shared folder of a run folder, written to `out` (by default its subfolder shared) where it is not there.

    A shared folder is given back as it is, so that an edited card stays. to_push: refuse, before anything is written,
    what `push` would refuse for want of a licence. Raises UsageError where what is there is of another model than the
    run's, or its card names another repository or licence than is asked for.
    """
    _check_repo(repo)
    folder = Path(folder)
    if (folder / CONFIG).is_file():
        target = folder
    else:
        model = load_from_run(folder)
        target = Path(out) if out is not None else folder / "shared"
        if not target.exists():
            if to_push and licence is None:
                raise UsageError("--push needs --license, such as mit")
            return save(model, target, folder, repo, licence)
        if not _equal(model, load(target)):
            raise UsageError(f"{target}: holds another model than {folder}; remove it to have it written again")
    if (named := _named_repo(target)) not in (None, repo):
        raise UsageError(f"--repo {repo}: {target / CARD} names {named}; edit it there, or remove {target}")
    stated = stated_licence(target)
    if licence is not None and licence != stated:
        stated = stated or "none"
        raise UsageError(f"--license {licence}: {target / CARD} states {stated}; edit it there, or remove {target}")
    return target


def stated_licence(folder: Path) -> str | None:
    """The licence in the head of a shared folder's card."""
    try:
        head = (folder / CARD).read_text(encoding="utf-8").split("---\n")
        content = parse_yaml(head[1]) if len(head) > 2 and head[0] == "" else {}
        return str(content["license"]) if content.get("license") else None
    except FileNotFoundError:
        return None
    except (TextError, UnicodeDecodeError, AttributeError) as error:
        raise CheckpointError(f"{folder / CARD}: its head is not YAML: {_line(error)}") from None


def _named_repo(folder: Path) -> str | None:
    """The repository that a shared folder's card tells its readers to load from; None where it names none."""
    try:
        card = (folder / CARD).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    found = re.search(r'from_pretrained\("([^"]+)"', card)
    return found[1] if found is not None and found[1] != UNNAMED else None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


# --- the Hub ------------------------------------------------------------------------------------------------


class Upload(NamedTuple):
    """What goes to the Hub, or would go."""

    repo: str
    files: dict[str, int]
    """Size in bytes by path in the repository."""
    card: str
    """The text of README.md."""
    private: bool
    url: str | None
    """Of the commit; None for a dry run."""

    def __str__(self) -> str:
        width = max(map(len, self.files))
        lines = [f"  {path:<{width}}  {size:>14,} bytes" for path, size in self.files.items()]
        where = f"{'private' if self.private else 'public'} repository {self.repo}"
        first = f"pushed to the {where}: {self.url}" if self.url else f"would go to the {where}:"
        return "\n".join([first, *lines])


def push(folder: str | Path, repo: str, dry_run: bool = True, private: bool = False) -> Upload:
    """Bring a folder that `save` wrote to OWNER/NAME on the Hub, which is made if it is not there, in one commit.

    The files are checked before; a repository of anything but a shared model is left alone. Raises UsageError for a
    name that is none, a card without a licence, or such a repository; CheckpointError for a folder that `load` would
    refuse; EnvironmentFault where the Hub cannot be reached or does not let us in.
    """
    folder = Path(folder)
    _check_repo(repo)
    load(folder)
    names = [CONFIG, *describe(folder)["files"], files.hash_file(folder / WEIGHTS).name, CARD]
    names += sorted(f"{IMAGES}/{path.name}" for path in (folder / IMAGES).glob("*.png"))
    sizes = {name: (folder / name).stat().st_size for name in names if (folder / name).is_file()}
    card = (folder / CARD).read_text(encoding="utf-8") if CARD in sizes else ""
    if dry_run:
        return Upload(repo, sizes, card, private, None)
    if stated_licence(folder) is None:
        raise UsageError(f"{folder / CARD}: states no licence; give --license, such as mit")
    return Upload(repo, sizes, card, private, _send(folder, repo, private, list(sizes)))


def _send(folder: Path, repo: str, private: bool, names: list[str]) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    if hub.is_offline():
        raise EnvironmentFault("HF_HUB_OFFLINE is set, so nothing can be pushed")
    if get_token() is None:
        raise EnvironmentFault("pushing needs a token that may write: run `hf auth login`, or set HF_TOKEN")
    api = HfApi(endpoint=hub.endpoint())
    with _push_faults(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        there = set(api.list_repo_files(repo))
    if there - {".gitattributes", CARD} and not _is_ours(repo, there):
        raise UsageError(f"--repo {repo}: already holds something else ({_few(sorted(there))}); choose another name")
    operations: list[Any] = [CommitOperationAdd(name, folder / name) for name in names]
    stale = {path for path in there if path.startswith(f"{IMAGES}/") or READ.fullmatch(path)} - set(names)
    operations += [CommitOperationDelete(path) for path in sorted(stale)]
    with _push_faults(repo):
        done = api.create_commit(repo, operations, commit_message=f"Share a {describe(folder)['kind']} of mi_ml_gen")
    return str(done.commit_url)


def _is_ours(repo: str, there: set[str]) -> bool:
    """Whether a repository holds a shared model already, to be replaced."""
    if CONFIG not in there:
        return False
    try:
        describe(hub.fetch(f"hf://{repo}/{CONFIG}").parent)
    except CheckpointError:
        return False
    return True


@contextlib.contextmanager
def _push_faults(repo: str) -> Iterator[None]:
    """What the Hub's client raises while writing, as errors of ours."""
    from huggingface_hub.errors import HfHubHTTPError

    with hub.hub_faults(HubFile(repo, "")):
        try:
            yield
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status not in (401, 403):
                raise
            advice = "run `hf auth login`, or set HF_TOKEN, with a token that may write there"
            raise EnvironmentFault(f"--repo {repo}: the Hub refuses write access (HTTP {status}); {advice}") from None


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


__all__ = [
    "KINDS",
    "Kind",
    "Shared",
    "Upload",
    "describe",
    "find_in_run",
    "kind_of",
    "load",
    "load_from_run",
    "push",
    "save",
]
