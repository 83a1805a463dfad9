"""What can be fetched: the table of known artifacts, and what the repositories list, to show and to choose from."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mi_ml_gen import hub
from mi_ml_gen.assets import SCHEME, Artifact, HubFile, Source, WebFile, assets, source_of
from mi_ml_gen.errors import EnvironmentFault, UsageError, nearest


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


def catalogue(online: bool = True, revision: str | None = None) -> Catalogue:
    """All that is known: the table, and, online, what the repositories list."""
    table = assets()
    listings: dict[str, dict[str, hub.Listed]] = {}
    faults: list[str] = []
    places = [*(artifact.where for artifact in table.artifacts.values()), *(folder.where for folder in table.folders)]
    if online:
        for repo in dict.fromkeys(place.repo for place in places if isinstance(place, HubFile)):
            try:
                listings[repo] = hub.list_files(repo, revision or "main")
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
                sizes = file.size_bytes, file.sha256
                entries.append(Entry(str(place), folder.kind, folder.family, place, *sizes, folder.licence, ""))
    return Catalogue(entries, faults)


def _is_about(path: str) -> bool:
    return path.rpartition("/")[2] in (".gitattributes", ".gitignore", "README.md", "LICENSE")


def _of_artifact(artifact: Artifact, listings: Mapping[str, Mapping[str, hub.Listed]], revision: str | None) -> Entry:
    where, size_bytes, sha256 = artifact.where, artifact.size_bytes, artifact.sha256
    if isinstance(where, HubFile):
        where = where.at(revision)
        listing = listings.get(where.repo, {})
        matches = fnmatch.filter(listing, where.path)
        if len(matches) == 1:
            file = listing[matches[0]]
            where, size_bytes, sha256 = where._replace(path=file.path), file.size_bytes, sha256 or file.sha256
    return Entry(
        artifact.name, artifact.kind, artifact.family, where, size_bytes, sha256, artifact.licence, artifact.what
    )


def select(entries: Sequence[Entry], words: Sequence[str], kinds: Mapping[str, str] | None = None) -> list[Entry]:
    """The entries that words (names, references, globs) and kinds ({"walker": "bigbigan"}, "*" for all) name.

    Raises UsageError for a word that names nothing.
    """
    found: dict[str, Entry] = {}
    for kind, family in (kinds or {}).items():
        fitting = [entry for entry in entries if entry.kind == kind and not entry.is_folder]
        fitting = [e for e in fitting if fnmatch.fnmatchcase(e.family, family) or family in str(e.where).lower()]
        if not fitting:
            known = {entry.family for entry in entries if entry.kind == kind and entry.family}
            raise UsageError(f"{kind}s of {family}: none are known{nearest(family, known, 'family')}")
        found |= {entry.name: entry for entry in fitting}
    for word in words:
        fitting = [entry for entry in entries if not entry.is_folder and (word == entry.name or entry.answers_to(word))]
        if not fitting and SCHEME.match(word) and "*" not in word:
            fitting = [Entry(word, "", "", source_of(word), None, None, "", "")]
        if not fitting:
            raise UsageError(f"{word}: no known artifact{nearest(word, [entry.name for entry in entries], 'artifact')}")
        found |= {entry.name: entry for entry in fitting}
    return list(found.values())


def is_cached(entry: Entry) -> bool:
    """Whether an entry is in a cache, so far as can be told without asking anybody."""
    if isinstance(entry.where, WebFile):
        return hub.web_target(entry.where, assets().artifacts.get(entry.name), None).exists()
    path = entry.where.path
    if entry.where.is_pattern:
        path = hub.remembered(entry.where) or path
    return bool(path) and hub.in_cache(entry.where._replace(path=path)) is not None
