"""What can be fetched: the table of known artifacts, and what the repositories list, to show and to choose from."""

from __future__ import annotations

import concurrent.futures
import fnmatch
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

from mi_ml_gen.core.errors import EnvironmentFault, UsageError, nearest
from mi_ml_gen.core.files import NoHome
from mi_ml_gen.hub import fetching as hub
from mi_ml_gen.hub.assets import DEFAULT_REVISION, KINDS, SCHEME, Artifact, HubFile, Source, WebFile, assets, source_of
from mi_ml_gen.hub.downloads import in_units

PATIENCE_S = 2.0
"""How long the repositories may take before the table is shown without them."""


class Entry(NamedTuple):
    """A line of the catalogue: something that can be fetched by its name, or a folder that was not listed."""

    name: str
    """Of the table, or hf://..."""
    kind: str
    family: str
    where: Source
    size_bytes: int | None
    sha256: str | None
    licence: str
    what: str
    is_missing: bool = False
    """Its repository was listed, and it is not there."""

    @property
    def is_folder(self) -> bool:
        return isinstance(self.where, HubFile) and self.where.is_folder

    def answers_to(self, pattern: str) -> bool:
        """Whether a glob matches the name, the address, or the path in the repository."""
        path = self.where.path if isinstance(self.where, HubFile) else self.where.name
        return any(fnmatch.fnmatchcase(text, pattern) for text in (self.name, str(self.where), path))


class Catalogue(NamedTuple):
    entries: list[Entry]
    faults: list[str]
    """Why repositories could not be listed."""


def catalogue(online: bool = True, revision: str | None = None, pauses_s: Sequence[float] | None = None) -> Catalogue:
    """All that is known: the table, and, online, what the repositories list. pauses_s: waits between attempts."""
    table = assets()
    listings: dict[str, dict[str, hub.Listed]] = {}
    faults: list[str] = []
    places = [*(artifact.where for artifact in table.artifacts.values()), *(folder.where for folder in table.folders)]
    if online:
        for repo in dict.fromkeys(place.repo for place in places if isinstance(place, HubFile)):
            try:
                listings[repo] = hub.list_files(repo, revision or DEFAULT_REVISION, pauses_s)
            except (EnvironmentFault, UsageError) as fault:
                faults.append(str(fault))
    entries = [_of_artifact(artifact, listings, revision) for artifact in table.artifacts.values()]
    named = {entry.where for entry in entries}
    for folder in table.folders:
        where = folder.where.at(revision)
        listing = listings.get(where.repo)
        if listing is None:
            unlisted = where, None, None, folder.licence, folder.what
            entries.append(Entry(str(where), folder.kind, folder.family, *unlisted))
            continue
        for file in listing.values():
            place = where._replace(path=file.path)
            if file.path.startswith(where.path) and place not in named and not _is_about(file.path):
                found = place, file.size_bytes, file.sha256, folder.licence, ""
                entries.append(Entry(str(place), folder.kind, folder.family, *found))
    return Catalogue(entries, faults)


def soon(revision: str | None = None) -> tuple[Catalogue, Future[Catalogue] | None]:
    """What the repositories list, asked once; where they do not answer soon, the table, and the answer to come.

    Ending the process does not wait for that.
    """
    answer: Future[Catalogue] = Future()

    def ask() -> None:
        try:
            answer.set_result(catalogue(True, revision, pauses_s=()))
        except BaseException as error:  # raised where the answer is looked at
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(PATIENCE_S), None
    except concurrent.futures.TimeoutError:
        return catalogue(False, revision), answer


def _is_about(path: str) -> bool:
    return path.rpartition("/")[2] in (".gitattributes", ".gitignore", "README.md", "LICENSE")


def _of_artifact(artifact: Artifact, listings: Mapping[str, Mapping[str, hub.Listed]], revision: str | None) -> Entry:
    name, kind, family, where = artifact.name, artifact.kind, artifact.family, artifact.where
    size_bytes, sha256, is_missing = artifact.size_bytes, artifact.sha256, False
    if isinstance(where, HubFile):
        where = where.at(revision)
        listing = listings.get(where.repo)
        matches = fnmatch.filter(listing or (), where.path)
        is_missing = listing is not None and len(matches) != 1
        if listing is not None and len(matches) == 1:
            file = listing[matches[0]]
            where, size_bytes, sha256 = where._replace(path=file.path), file.size_bytes, sha256 or file.sha256
    return Entry(name, kind, family, where, size_bytes, sha256, artifact.licence, artifact.what, is_missing)


def select(entries: Sequence[Entry], words: Sequence[str], kinds: Mapping[str, str] | None = None) -> list[Entry]:
    """The entries that words (names, references, globs) and kinds ({"walker": "bigbigan"}, "*" for all) name.

    A family may also be a part of the path, since files that are only listed have none. Raises UsageError for a word
    that names nothing.
    """
    there = [entry for entry in entries if not entry.is_folder and not entry.is_missing]
    found: dict[str, Entry] = {}
    for kind, family in (kinds or {}).items():
        of_kind = [entry for entry in there if entry.kind == kind]
        fitting = [e for e in of_kind if fnmatch.fnmatchcase(e.family, family) or family in str(e.where).lower()]
        if not fitting:
            known = {entry.family for entry in of_kind if entry.family}
            raise UsageError(f"{kind}s of {family}: none are known here{nearest(family, known, 'family')}")
        found |= {entry.name: entry for entry in fitting}
    for word in words:
        fitting = [entry for entry in entries if word in (entry.name, str(entry.where)) and not entry.is_folder]
        fitting = fitting or [entry for entry in there if entry.answers_to(word)]
        if not fitting and SCHEME.match(word) and "*" not in word:
            fitting = [Entry(word, "", "", source_of(word), None, None, "", "")]
        if not fitting:
            raise UsageError(f"{word}: no known artifact{nearest(word, [entry.name for entry in there], 'artifact')}")
        found |= {entry.name: entry for entry in fitting}
    return list(found.values())


def is_cached(entry: Entry) -> bool:
    """Whether an entry is in a cache, so far as can be told without asking anybody."""
    if isinstance(entry.where, WebFile):
        try:
            return hub.web_target(entry.where, assets().artifacts.get(entry.name), None).exists()
        except NoHome:
            return False
    path = (hub.remembered(entry.where) or "") if entry.where.is_pattern else entry.where.path
    return path not in ("", "/") and hub.in_cache(entry.where._replace(path=path)) is not None


def to_text(entries: Sequence[Entry]) -> str:
    """The entries for a terminal, by kind: name, size, whether it is here; below it what it is, and its licence."""
    lines = []
    for kind in (*KINDS, ""):
        for entry in (entry for entry in entries if entry.kind == kind):
            state = "in the cache" if is_cached(entry) else "not in the repository" if entry.is_missing else ""
            size = "not listed" if entry.is_folder else in_units(entry.size_bytes)
            lines.append(f"{kind:10}  {entry.name}  ({size})  {state}".rstrip())
            sha256 = f"sha256 {entry.sha256}" if entry.sha256 else ""
            about = [entry.what, f"licence: {entry.licence}" if entry.licence else "", sha256]
            lines.append("            " + "; ".join(filter(None, about)))
    return "\n".join(lines)


def plan(entries: Sequence[Entry], local_dir: Path | None) -> str:
    """What fetching the entries would bring, for a terminal."""
    coming = [entry for entry in entries if local_dir is not None or not is_cached(entry)]
    sizes = [entry.size_bytes for entry in coming]
    known = in_units(sum(size or 0 for size in sizes))
    unknown = f" and {sizes.count(None)} of unknown size" if None in sizes else ""
    place = Path(local_dir or hub.cache_folder()).absolute()
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    free = in_units(shutil.disk_usage(existing).free)
    return f"{len(coming)} of {len(entries)} files to fetch: {known}{unknown}; {free} free at {existing}"
