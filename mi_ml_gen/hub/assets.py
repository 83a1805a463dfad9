"""The table of known artifacts (assets.toml), and references: the words that path flags take in place of paths.

bigbigan-x1        https://host/file.pth        hf://owner/repo/file        hf://owner/repo/file@revision
"""

from __future__ import annotations

import functools
import os
import re
import sys
from importlib import resources
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from mi_ml_gen.core.errors import UsageError, nearest
from mi_ml_gen.core.files import user_path

DEFAULT_REVISION = "main"
KINDS = ("generator", "walker", "encoder", "classifier", "dataset")


class HubFile(NamedTuple):
    """A file of a model repository; with * in `path`, the only file that matches; with "" or a final /, a folder."""

    repo: str
    path: str
    revision: str = DEFAULT_REVISION

    def __str__(self) -> str:
        return f"hf://{self.repo}/{self.path}" + ("" if self.revision == DEFAULT_REVISION else f"@{self.revision}")

    def at(self, revision: str | None) -> HubFile:
        """The same of another revision; None for this."""
        return self if revision is None else self._replace(revision=revision)

    @property
    def is_pattern(self) -> bool:
        return "*" in self.path

    @property
    def is_folder(self) -> bool:
        return self.path == "" or self.path.endswith("/")


class WebFile(NamedTuple):
    """A file at an address that is no Hub's."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of its path, as the name of a local file; "file" where that is none (%2e%2e is "..")."""
        name = re.sub(r"[\x00-\x1f\\]", "_", unquote(urlsplit(self.url).path).rsplit("/", 1)[-1])
        return "file" if name in ("", ".", "..") else name


Source = HubFile | WebFile


class Artifact(NamedTuple):
    """One line of the table, see assets.toml for the fields; `where` and `also` parsed."""

    name: str
    kind: str
    family: str
    where: Source
    also: tuple[Source, ...]
    licence: str
    what: str
    size_bytes: int | None = None
    sha256: str | None = None
    by_hand: str = ""

    def __str__(self) -> str:
        return self.name


class Folder(NamedTuple):
    """A folder of a repository whose files the table cannot name."""

    kind: str
    family: str
    where: HubFile
    licence: str
    what: str


class Assets(NamedTuple):
    artifacts: dict[str, Artifact]
    folders: tuple[Folder, ...]


@functools.cache
def assets() -> Assets:
    """The table of the package."""
    return read_table(resources.files("mi_ml_gen.hub").joinpath("assets.toml").read_text(encoding="utf-8"))


def read_table(text: str) -> Assets:
    """A table from its TOML."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    content = tomllib.loads(text)
    artifacts = {}
    for line in content.get("artifact", ()):
        where, also = source_of(line["where"]), tuple(map(source_of, line.get("also", ())))
        artifacts[line["name"]] = Artifact(**{**line, "where": where, "also": also})
    folders = [
        Folder(**{"family": "", **line, "where": _hub_file(line["where"])}) for line in content.get("folder", ())
    ]
    return Assets(artifacts, tuple(folders))


# --- references ---------------------------------------------------------------------------------------------

SCHEME = re.compile(r"(hf|https?):/{1,2}")  # a Path of an address has lost a slash


def is_reference(reference: str | os.PathLike) -> bool:
    """Whether this is a name of the table, an address, or hf://..., and not a path."""
    text = os.fspath(reference)
    return SCHEME.match(text) is not None or text in assets().artifacts


def parse(reference: str | os.PathLike) -> Path | Artifact | HubFile | WebFile:
    """What a reference means; what is neither a name of the table nor an address is a path.

    hf://owner/repo/file@revision may also be written hf://owner/repo@revision/file, as huggingface_hub does;
    hf://owner/repo and hf://owner/repo/folder/ are folders. Raises UsageError for an address that makes no sense.
    """
    text = os.fspath(reference)
    if SCHEME.match(text):
        return source_of(text)
    return assets().artifacts.get(text) or user_path(reference)


def check_path(flag: str, path: str | os.PathLike) -> None:
    """Refuse, by UsageError, what a path flag was given that is neither there nor a reference. Fetches nothing."""
    text = os.fspath(path)
    if user_path(text).exists() or is_reference(text):
        return
    if os.sep in text:
        raise UsageError(f"{flag} {text}: no such file or folder")
    near = nearest(text, assets().artifacts, "artifact")
    raise UsageError(f"{flag} {text}: no such file, and no known artifact{near}")


def source_of(text: str) -> Source:
    scheme = SCHEME.match(text)
    assert scheme is not None
    rest = text[scheme.end() :]
    if scheme[1] == "hf":
        return _hub_file(text)
    if not rest.partition("/")[0]:
        raise UsageError(f"{text}: is not an address")
    return WebFile(f"{scheme[1]}://{rest}")


def check_inside(path: str, named_by: object) -> None:
    """Raise UsageError for a path in a repository that leads out of it, and so out of any folder that it is put in."""
    if path.startswith("/") or "\\" in path or "\0" in path or any(part in (".", "..") for part in path.split("/")):
        raise UsageError(f"{named_by}: {path} is not a path inside a repository")


_REPO_PART = re.compile(r"[\w.-]+")


def _hub_file(text: str) -> HubFile:
    rest = SCHEME.sub("", text, count=1)
    form = "write hf://owner/repo/file, with @revision behind it for another than main"
    owner, _, rest = rest.partition("/")
    name, _, path = rest.partition("/")
    if "@" in name:
        name, _, revision = name.partition("@")
    else:
        path, _, revision = path.rpartition("@") if "@" in path else (path, "", DEFAULT_REVISION)
    if owner in ("datasets", "spaces", "models", "buckets"):
        raise UsageError(f"{text}: only model repositories are read; {form}")
    if not (_REPO_PART.fullmatch(owner) and _REPO_PART.fullmatch(name) and revision):
        raise UsageError(f"{text}: {form}")
    check_inside(path, text)
    return HubFile(owner + "/" + name, path, revision)
