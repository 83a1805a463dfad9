"""Published weights: how a reference becomes a local file.

A reference is a path, a name of the table, an address, or a file of a Hugging Face repository, see assets.py. Files of
a repository land in the Hub's own cache (HF_HOME, HF_HUB_CACHE) and follow its rules (HF_TOKEN, HF_ENDPOINT,
HF_HUB_OFFLINE). Files of an address land in mi_ml_gen/ beside it. What must be right is the SHA-256 of the table, of
the Hub, or, where nobody published one, the one recorded when the file first came.

The Hub's client says what a file is (commit, size, hash) and keeps the cache. It does not carry the bytes; downloads.py
does. The client (up to 2.4) writes to a temporary file with a new name each time, so after a kill it would start over.
It also compares the size of what came, but not its hash.

Imports neither torch nor, before something is fetched, huggingface_hub.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fnmatch
import hashlib
import inspect
import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from mi_ml_gen.core import locks
from mi_ml_gen.core.errors import CorruptCheckpointError, EnvironmentFault, UsageError, nearest
from mi_ml_gen.core.files import NoHome, atomic_write, disk_faults, hash_file, recorded_hashes, user_path
from mi_ml_gen.hub.assets import DEFAULT_REVISION, Artifact, HubFile, WebFile, assets, check_inside, is_reference, parse
from mi_ml_gen.hub.downloads import (
    LOG_IN,
    Address,
    Expected,
    Missing,
    Unreachable,
    download,
    hashes_of,
    in_units,
    mismatch,
    network_fault,
    retrying,
    status_fault,
)

__all__ = ["HubFile", "NotCached", "cache_folder", "fetch", "fetch_folder", "is_offline", "is_reference", "list_files",
           "local_path", "parse"]  # fmt: skip

logger = logging.getLogger(__name__)

HASHED_AT_EVERY_USE_BYTES = 2 << 30
"""Cached files up to this size have their hash checked at every use, larger ones only when they come."""
CLIENT_ONLY_FROM_BYTES = 50_000_000_000
"""The Hub serves larger files to its own client (hf_xet) only."""


def local_path(reference: str | os.PathLike) -> Path:
    """The local file that a path flag means: a path that is there as it stands, what is known elsewhere fetched.

    With a safetensors file of a repository comes what lies beside it there (.json, .safetensors.sha256). A bare word
    that is neither file nor known name is a UsageError naming the nearest; a path with folders in it is left to its
    reader to miss. Else raises as `fetch`.
    """
    if os.path.exists(reference):
        return Path(reference)
    meant = parse(reference)
    if isinstance(meant, Path):
        if len(meant.parts) == 1:
            names = assets().artifacts
            raise UsageError(f"{meant}: no such file, and no known artifact{nearest(str(meant), names, 'artifact')}")
        return meant
    path = fetch(reference)
    source = meant.where if isinstance(meant, Artifact) else meant
    if isinstance(source, HubFile) and source.path.endswith(".safetensors"):
        for beside in (source.path.removesuffix(".safetensors") + ".json", source.path + ".sha256"):
            with contextlib.suppress(Missing, NotCached):
                fetch(str(source._replace(path=beside)))
    return path


# --- surroundings -------------------------------------------------------------------------------------------


def _constants() -> Any:
    from huggingface_hub import constants

    return constants


def endpoint() -> str:
    """HF_ENDPOINT."""
    return str(_constants().ENDPOINT)


def is_offline() -> bool:
    """HF_HUB_OFFLINE."""
    return bool(_constants().HF_HUB_OFFLINE)


class NotCached(EnvironmentFault):
    """HF_HUB_OFFLINE, and the cache does not have it."""

    def __init__(self, what: object):
        super().__init__(f"{what}: is not in the cache, and cannot be fetched, because HF_HUB_OFFLINE is set")


def cache_folder() -> Path:
    """Where files of addresses, locks and recorded hashes are kept: MI_ML_GEN_CACHE, or HF_HOME/mi_ml_gen. Raises
    NoHome where neither is set and there is no home folder."""
    own = os.environ.get("MI_ML_GEN_CACHE")
    return user_path(own) if own else _homed(_constants().HF_HOME) / "mi_ml_gen"


def hub_cache() -> Path:
    """The Hub's own cache: HF_HUB_CACHE, or HF_HOME/hub. Raises NoHome as `cache_folder`."""
    return _homed(_constants().HF_HUB_CACHE)


def _homed(folder: str) -> Path:
    """A folder as the Hub's client names it; without a home folder it would make one that is called ~ here."""
    try:
        return user_path(folder)
    except NoHome:
        raise NoHome(
            "this user has no home folder (no HOME, no entry in the passwd file), so there is no place for fetched "
            "files; set HF_HOME to a folder"
        ) from None


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """One process at a time for a target file; the others wait. The system releases a dead process's lock.

    Where the folder of locks cannot be written, as in a cache that others share for reading, it is one among the
    temporary files: then the target lies elsewhere, or writing it fails with its own name.
    """
    locks.check_system()
    name = hashlib.sha256(str(target.absolute()).encode()).hexdigest()[:32]
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(_lock_file(cache_folder() / "locks", name))
        except EnvironmentFault as fault:
            if not _is_read_only(fault):
                raise
            elsewhere = Path(tempfile.gettempdir()) / f"mi_ml_gen-locks-{os.getuid()}"
            file = stack.enter_context(_lock_file(elsewhere, name))
        with disk_faults(Path(file.name)):
            locks.take(file, wait=True)
        yield


def _lock_file(folder: Path, name: str) -> IO[bytes]:
    with disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return open(folder / f"{name}.lock", "ab")


def _is_read_only(fault: EnvironmentFault) -> bool:
    """Whether nothing can be written there by this user, for good: no rights, a read-only disk, or no home folder."""
    cause = fault.__cause__
    return isinstance(fault, NoHome) or getattr(cause, "errno", None) in (errno.EACCES, errno.EPERM, errno.EROFS)


class _Seen:
    """seen.json: hashes at first sight, and the file names that patterns led to."""

    @property
    def path(self) -> Path:
        return cache_folder() / "seen.json"

    def read(self) -> dict[str, dict[str, Any]]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            return {key: dict(fields) for key, fields in content.items()}
        except (FileNotFoundError, NoHome):
            return {}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise CorruptCheckpointError(
                f"{self.path}: cannot be read ({error}); move it away to start again"
            ) from None

    def add(self, key: str, **fields: Any) -> None:
        """Note something. In a cache that this user may only read nothing is noted, and what is noted there stays."""
        known = self.read().get(key, {})
        if fields.items() <= known.items():
            return
        try:
            self._write(key, fields)
        except EnvironmentFault as fault:
            if not _is_read_only(fault) or known:
                raise

    def _write(self, key: str, fields: Mapping[str, Any]) -> None:
        with _locked(self.path):
            content = self.read()
            today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
            content[key] = {**content.get(key, {}), "since": today, **fields}
            atomic_write(self.path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())

    def expected(self, key: str, artifact: Artifact | None) -> Expected:
        """What the table or, failing that, the record of first sight says of a file."""
        size_bytes = artifact.size_bytes if artifact is not None else None
        if artifact is not None and artifact.sha256 is not None:
            return Expected(size_bytes, artifact.sha256, says="the table of known artifacts")
        seen = self.read().get(key, {})
        if "sha256" in seen:
            says = f"the record of {seen.get('since')} in {self.path}"
            return Expected(seen.get("size_bytes"), seen["sha256"], says=says)
        return Expected(size_bytes, says="the table of known artifacts")


_seen = _Seen()


def _wrong(path: Path, expected: Expected, whole: bool = False) -> str | None:
    """How a file that is here differs from what it should be, or None. Of a large one only the size is looked at,
    unless the whole is asked for."""
    with disk_faults(path):
        size_bytes = path.stat().st_size
        looks = expected.is_known and (whole or size_bytes <= HASHED_AT_EVERY_USE_BYTES)
        return mismatch(size_bytes, hashes_of(path) if looks else None, expected)


def _announce(label: str, artifact: Artifact | None, size_bytes: int | None) -> None:
    """Say on stderr what comes and under which licence, before it comes."""
    folders = (folder.licence for folder in assets().folders if label.startswith(str(folder.where)))
    licence = artifact.licence if artifact is not None else next(folders, "none known here, see its repository")
    name = f"{artifact.name}, " if artifact is not None else ""
    print(f"fetching {name}{label} ({in_units(size_bytes)}); licence: {licence}", file=sys.stderr, flush=True)


# --- fetching -----------------------------------------------------------------------------------------------


def fetch(
    reference: str | os.PathLike,
    revision: str | None = None,
    local_dir: str | os.PathLike | None = None,
    accept_change: bool = False,
) -> Path:
    """The local file of a reference, brought here if need be; a path is given back as it is.

    revision: of the repository, in place of that in the reference. local_dir: put the file there, under its path in
    the repository (or its name), with its .sha256 beside, instead of into the cache. accept_change: take a file whose
    hash is not the one recorded at first sight, and record it anew.

    Raises UsageError where there is no such thing; EnvironmentFault for network, server, rights, disk, and for a file
    that is not what it should be; CorruptCheckpointError for a damaged file in the cache that cannot be fetched anew.
    """
    meant = parse(reference)
    if isinstance(meant, Path):
        return meant
    folder = None if local_dir is None else Path(local_dir)
    if isinstance(meant, WebFile):
        return _fetch_web(meant, None, folder, accept_change)
    if isinstance(meant, HubFile):
        return _fetch_hub(meant.at(revision), None, folder, accept_change)
    faults: list[Exception] = []
    for source in (meant.where, *meant.also):
        try:
            if isinstance(source, WebFile):
                return _fetch_web(source, meant, folder, accept_change)
            return _fetch_hub(source.at(revision), meant, folder, accept_change)
        except (Missing, EnvironmentFault) as fault:
            faults.append(fault)
    by_hand = f"; by hand: {meant.by_hand}" if meant.by_hand else ""
    raise EnvironmentFault("; then ".join(dict.fromkeys(map(str, faults))) + by_hand) from faults[0]


def _fetch_web(source: WebFile, artifact: Artifact | None, folder: Path | None, accept_change: bool) -> Path:
    key = artifact.name if artifact is not None else source.url
    target = web_target(source, artifact, folder)
    renew = accept_change and not (artifact is not None and artifact.sha256)
    if not renew and _is_here(target, key, artifact, is_users=folder is not None):
        return target
    with _locked(target):
        if not renew and _is_here(target, key, artifact, is_users=folder is not None):
            return target
        if is_offline():
            raise NotCached(key)
        expected = Expected(artifact.size_bytes if artifact else None) if renew else _seen.expected(key, artifact)
        _announce(source.url, artifact, expected.size_bytes)
        address = Address(source.url, key, _constants().HF_HUB_DOWNLOAD_TIMEOUT)
        _record(key, download(address, target, expected), target, beside=folder is not None)
    return target


def web_target(source: WebFile, artifact: Artifact | None, folder: Path | None) -> Path:
    if folder is not None:
        return folder / source.name
    key = artifact.name if artifact is not None else hashlib.sha256(source.url.encode()).hexdigest()[:16]
    return cache_folder() / "web" / key / source.name


def _is_here(target: Path, key: str, artifact: Artifact | None, is_users: bool) -> bool:
    """Whether a file of an address is here and right. A wrong one in our cache is removed, for a new one to come; a
    wrong one in a folder of the user's is an error."""
    if not target.exists():
        return False
    expected = _seen.expected(key, artifact)
    wrong = _wrong(target, expected)
    if wrong is None:
        if not expected.is_known:
            _record(key, hashes_of(target).sha256.hexdigest(), target, beside=False)
        return True
    if is_users:
        raise _in_the_way(target, wrong)
    _drop(target, wrong)
    return False


def _in_the_way(path: Path, wrong: str) -> UsageError:
    return UsageError(f"{path}: already exists, but {wrong}; remove it, or choose another folder")


def _record(key: str, sha256: str, path: Path, beside: bool) -> None:
    """Note a file's hash for later uses; where it lies in a folder of the user's, also beside it, as sha256sum does."""
    _seen.add(key, sha256=sha256, size_bytes=path.stat().st_size)
    if beside:
        atomic_write(hash_file(path), f"{sha256}  {path.name}\n".encode())


def _drop(path: Path, wrong: str) -> None:
    """Remove a damaged file, and what it points to, from a cache, if a new one may come."""
    if is_offline():
        raise CorruptCheckpointError(f"{path}: {wrong}; HF_HUB_OFFLINE is set, so it cannot be fetched again")
    logger.warning(f"{path}: {wrong}; it is fetched again")
    content = path.resolve()
    with disk_faults(path):
        path.unlink(missing_ok=True)
        content.unlink(missing_ok=True)


# --- the Hub ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hub_faults(file: HubFile) -> Iterator[None]:
    """What the Hub's client raises, as errors of ours. Those of HTTP by name: it has changed its library twice."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        page = f"{endpoint()}/{file.repo}"
        raise EnvironmentFault(f"{file}: access must be requested; ask for it at {page}{LOG_IN}") from error
    except errors.RepositoryNotFoundError as error:
        private = "" if error.response.status_code == 404 else f", or it is private{LOG_IN}"
        raise Missing(f"{file}: there is no repository {file.repo}{private}") from error
    except errors.RevisionNotFoundError as error:
        raise Missing(f"{file}: {file.repo} has no revision {file.revision}") from error
    except errors.LocalEntryNotFoundError as error:
        raise (NotCached(file) if is_offline() else Unreachable(f"{file}: the Hub did not answer")) from error
    except errors.EntryNotFoundError as error:
        raise Missing(f"{file}: {file.repo} has no such file{_nearest_file(file)}") from error
    except errors.OfflineModeIsEnabled as error:
        raise NotCached(file) from error
    except errors.HfHubHTTPError as error:
        raise status_fault(error.response.status_code, str(file), endpoint(), error.response.headers) from error
    except RecursionError as error:  # so the client followed redirects before its version 1
        raise EnvironmentFault(f"{file}: redirected in a loop") from error
    except Exception as error:
        libraries = {base.__module__.partition(".")[0].rstrip("2") for base in type(error).__mro__}
        if not libraries & {"httpx", "httpcore", "requests", "urllib3", "ssl", "socket"}:
            raise
        raise network_fault(error, str(file)) from error


def _nearest_file(file: HubFile) -> str:
    """The end of a message about a file that is not there, as far as the listing can be had."""
    try:
        return nearest(file.path, list_files(file.repo, file.revision, pauses_s=()), "file")
    except (EnvironmentFault, UsageError):
        return ""


class Listed(NamedTuple):
    """A file in a repository's listing. Small ones have no SHA-256 there."""

    path: str
    size_bytes: int | None
    sha256: str | None


def list_files(
    repo: str, revision: str = DEFAULT_REVISION, pauses_s: Sequence[float] | None = None
) -> dict[str, Listed]:
    """All files of a model repository by their paths, asked from the Hub. Raises as `fetch`."""
    from huggingface_hub import HfApi

    repository = HubFile(repo, "", revision)
    if is_offline():
        raise EnvironmentFault(f"{repository}: HF_HUB_OFFLINE is set, so it cannot be listed")

    def ask() -> list[Listed]:
        api, timeout_s = HfApi(endpoint=endpoint()), _constants().HF_HUB_ETAG_TIMEOUT
        with hub_faults(repository):
            info = api.model_info(repo, revision=revision, timeout=timeout_s, files_metadata=True)
        return [Listed(f.rfilename, f.size, f.lfs.sha256 if f.lfs is not None else None) for f in info.siblings or ()]

    return {file.path: file for file in sorted(retrying(ask, pauses_s))}


def fetch_folder(reference: str | os.PathLike, local_dir: str | os.PathLike | None = None) -> Path:
    """All files of a repository, hf://owner/repo@revision, or of a folder in it, hf://owner/repo/folder/; gives the
    local folder. Without the Hub, that of the cache, as far as it was ever fetched. Raises as `fetch`."""
    meant = parse(reference)
    if not (isinstance(meant, HubFile) and meant.is_folder):
        raise UsageError(f"{reference}: write hf://owner/repo, or hf://owner/repo/folder/")
    if is_offline():
        from huggingface_hub import snapshot_download

        with hub_faults(meant):
            kept = snapshot_download(meant.repo, revision=meant.revision, cache_dir=hub_cache(), local_files_only=True)
            root = Path(kept)
        if not (root / meant.path).is_dir():
            raise NotCached(meant)
        return root / meant.path
    paths = [path for path in list_files(meant.repo, meant.revision) if path.startswith(meant.path)]
    if not paths:
        raise Missing(f"{meant}: {meant.repo} has no such folder")
    revision = meant.revision
    for path in paths:
        fetched = fetch(str(HubFile(meant.repo, path, revision)), local_dir=local_dir)
        if local_dir is None:
            revision = _commit_of(fetched, path)  # the rest of the same commit
    return fetched.parents[len(Path(path).parts) - 1] / meant.path


class _Remote(NamedTuple):
    """What the Hub says about a file: the commit that it is of, its hash (SHA-256, or git's), its size."""

    commit: str
    etag: str
    size_bytes: int | None

    @property
    def expected(self) -> Expected:
        is_sha256 = re.fullmatch(r"[0-9a-f]{64}", self.etag) is not None
        is_git = re.fullmatch(r"[0-9a-f]{40}", self.etag) is not None and self.size_bytes is not None
        return Expected(self.size_bytes, self.etag if is_sha256 else None, self.etag if is_git else None, "the Hub")


def _ask(file: HubFile, pauses_s: Sequence[float] | None) -> _Remote:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    def ask() -> _Remote:
        with hub_faults(file):
            url = hf_hub_url(file.repo, file.path, revision=file.revision, endpoint=endpoint())
            found = get_hf_file_metadata(url, timeout=_constants().HF_HUB_ETAG_TIMEOUT)
        if found.commit_hash is None or found.etag is None:
            raise EnvironmentFault(f"{file}: {endpoint()} does not answer as a Hub; look at HF_ENDPOINT and proxies")
        return _Remote(found.commit_hash, found.etag, found.size)

    return retrying(ask, () if _client_retries() else pauses_s)


def _client_retries() -> bool:
    """Whether the client asks about a file again by itself: it did from version 1.0 until `retry_on_errors` came."""
    import huggingface_hub

    takes = inspect.signature(huggingface_hub.get_hf_file_metadata).parameters
    return not huggingface_hub.__version__.startswith("0.") and "retry_on_errors" not in takes


def in_cache(file: HubFile) -> Path | None:
    """The file in the Hub's cache, as of its revision when that was last asked for."""
    from huggingface_hub import try_to_load_from_cache

    try:
        folder = hub_cache()
    except NoHome:
        return None  # there is no cache
    found = try_to_load_from_cache(file.repo, file.path, folder, file.revision)
    return Path(found) if isinstance(found, str) else None


def _commit_of(cached: Path, path: str) -> str:
    """snapshots/COMMIT/PATH is how the Hub's cache names a file."""
    return cached.parents[len(Path(path).parts) - 1].name


def _fetch_hub(file: HubFile, artifact: Artifact | None, folder: Path | None, accept_change: bool) -> Path:
    if file.is_pattern:
        file = _only_match(file)
    if file.is_folder:
        raise UsageError(f"{file}: is a folder; name a file in it")
    check_inside(file.path, file)  # a pattern's file is named by the server's list
    here = in_cache(file) if folder is None else _in_folder(folder / file.path)
    is_commit = re.fullmatch(r"[0-9a-f]{40}", file.revision) is not None
    if is_offline() and here is None:
        raise NotCached(file)
    if here is not None and (is_offline() or (is_commit and folder is None)):
        if _is_right(here, file, artifact, folder):
            return here
        here = None
    try:
        remote = _ask(file, None if here is None else ())
    except Unreachable as fault:
        if here is None or not _is_right(here, file, artifact, folder):
            raise
        logger.warning(f"{fault}; {here} is used")
        return here
    pinned = file._replace(revision=remote.commit)
    known = artifact if artifact is not None and file.revision == DEFAULT_REVISION else None  # another is another file
    key = known.name if known is not None else str(pinned)
    expected = _agreed(file, remote.expected, _seen.expected(key, known), known, accept_change)
    if folder is not None:
        path = folder / file.path
        _into_folder(path, file, pinned, artifact, expected)
    elif here is not None and not _is_writable(hub_cache()):  # one that others share, and fill
        if (wrong := _wrong(here, expected)) is not None:
            logger.warning(f"{here}: {wrong}; it is used, since {hub_cache()} cannot be written")
            return here
        path = here
    else:
        path = _into_cache(file, pinned, artifact, remote, expected)
    sha256 = expected.sha256 or hashes_of(path).sha256.hexdigest()
    for name in {key, str(pinned)}:
        _record(name, sha256, path, beside=folder is not None)
    return path


def _agreed(file: HubFile, hub: Expected, known: Expected, artifact: Artifact | None, accept_change: bool) -> Expected:
    """What the file should be, where the Hub and the table, or the record, both speak."""
    if known.sha256 is None or (accept_change and artifact is not None and artifact.sha256 is None):
        return hub
    if hub.sha256 in (None, known.sha256):
        return known._replace(size_bytes=hub.size_bytes or known.size_bytes)
    may_change = artifact is None or artifact.sha256 is None
    way = "if you expected a change, accept it with --accept-change" if may_change else "do not use it"
    raise EnvironmentFault(f"{file}: has SHA-256 {hub.sha256} on the Hub, not {known.sha256} of {known.says}; {way}")


def _is_right(here: Path, file: HubFile, artifact: Artifact | None, folder: Path | None) -> bool:
    """Whether a file that is here is what was recorded when it came, without asking the Hub."""
    if folder is not None:
        expected = Expected(sha256=(recorded_hashes(here) or ["the hash"])[0], says=hash_file(here).name)
    else:
        expected = _seen.expected(str(file._replace(revision=_commit_of(here, file.path))), None)
        if artifact is not None and artifact.sha256 is not None and file.revision == DEFAULT_REVISION:
            expected = _seen.expected(artifact.name, artifact)
    wrong = _wrong(here, expected)
    if wrong is not None and folder is not None:
        raise _in_the_way(here, wrong)
    if wrong is not None:
        _drop(here, wrong)
    return wrong is None


def _in_folder(path: Path) -> Path | None:
    """A file that an earlier fetch put into a folder of the user's, with its hash beside."""
    return path if path.is_file() and hash_file(path).is_file() else None


def _into_folder(path: Path, file: HubFile, pinned: HubFile, artifact: Artifact | None, expected: Expected) -> None:
    with _locked(path):
        if path.exists():
            if (wrong := _wrong(path, expected)) is None:
                return
            raise _in_the_way(path, wrong)
        _announce(str(file), artifact, expected.size_bytes)
        _carry(pinned, path, expected)


def _into_cache(file: HubFile, pinned: HubFile, artifact: Artifact | None, remote: _Remote, expected: Expected) -> Path:
    """Bring the content under the name that the Hub's cache looks for, and let the client enter it there."""
    from huggingface_hub import hf_hub_download

    cache = hub_cache()
    blob = cache / f"models--{file.repo.replace('/', '--')}" / "blobs" / remote.etag
    if not _is_writable(cache):
        raise EnvironmentFault(f"{file}: is not in {cache}, which cannot be written; set HF_HOME to another folder")
    with _locked(blob):
        for known in (in_cache(pinned), blob):
            if known is not None and known.exists() and (wrong := _wrong(known, expected)) is not None:
                _drop(known, wrong)
        if (cached := in_cache(pinned)) is not None and in_cache(file) == cached:
            return cached
        by_client = not blob.exists() and cached is None
        if by_client:
            _announce(str(file), artifact, remote.size_bytes)
            if (remote.size_bytes or 0) < CLIENT_ONLY_FROM_BYTES:
                _carry(pinned, blob, expected)
                by_client = False
        with hub_faults(file), disk_faults(blob), _client_locks(cache):
            path = Path(
                hf_hub_download(file.repo, file.path, revision=file.revision, endpoint=endpoint(), cache_dir=cache)
            )
        by_client |= _commit_of(path, file.path) != remote.commit  # something newer has just been published
        if by_client and (wrong := _wrong(path, expected, whole=True)) is not None:
            _drop(path, wrong)
            raise EnvironmentFault(f"{file}: what came from the Hub {wrong}; nothing was kept")
    return path


@contextlib.contextmanager
def _client_locks(cache: Path) -> Iterator[None]:
    """Say what to do where the Hub's client cannot do without locks."""
    try:
        yield
    except OSError as error:
        if not locks.are_missing(error):
            raise
        raise EnvironmentFault(
            f"the disk of {cache} has no file locks ({error.strerror}), which the Hub's own client needs; "
            "set HF_HOME to a folder on another disk"
        ) from error


def _is_writable(folder: Path) -> bool:
    """Whether this user may make files in a folder, or make the folder; other faults of it count as writable."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    return not there.is_dir() or os.access(there, os.W_OK)


def _carry(pinned: HubFile, target: Path, expected: Expected) -> str:
    """Bring a file of a commit to `target`; gives its SHA-256."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(pinned.repo, pinned.path, revision=pinned.revision, endpoint=endpoint())
    label = f"hf://{pinned.repo}/{pinned.path}"
    timeout_s = _constants().HF_HUB_DOWNLOAD_TIMEOUT
    return download(Address(url, label, timeout_s, build_hf_headers().get("authorization")), target, expected)


def _only_match(pattern: HubFile) -> HubFile:
    """The one file of the repository that a pattern means; remembered, for when the Hub cannot be asked."""
    known = remembered(pattern)
    if is_offline() and known is None:
        raise NotCached(pattern)
    if not is_offline():
        try:
            paths = list_files(pattern.repo, pattern.revision, () if known else None)
        except Unreachable:
            if known is None:
                raise
        else:
            matches = fnmatch.filter(paths, pattern.path)
            if len(matches) != 1:
                found = ", ".join(f"hf://{pattern.repo}/{path}" for path in matches[:4]) or "none"
                more = ", ..." if len(matches) > 4 else ""
                raise Missing(
                    f"{pattern}: one file should match, found {found}{more}; see download_pretrained.py --list"
                )
            known = matches[0]
            _seen.add(str(pattern), path=known)
    return pattern._replace(path=str(known))


def remembered(pattern: HubFile) -> str | None:
    """The file that a pattern meant when it was last looked up."""
    return _seen.read().get(str(pattern), {}).get("path")


# --- what is here -------------------------------------------------------------------------------------------


def where_it_lies(artifact: Artifact) -> Path | None:
    """The local file of an artifact that was fetched into the caches, or None; nothing is asked from anybody."""
    for source in (artifact.where, *artifact.also):
        path: Path | None = None
        if isinstance(source, WebFile):
            with contextlib.suppress(NoHome):
                path = web_target(source, artifact, None)
        else:
            known = remembered(source) if source.is_pattern else source.path
            path = in_cache(source._replace(path=known)) if known is not None else None
        if path is not None and path.is_file():
            return path
    return None


def what_is_wrong(artifact: Artifact, path: Path) -> str | None:
    """How the file of an artifact differs from what the table says, or was recorded when it came; None if not."""
    return _wrong(path, _seen.expected(artifact.name, artifact))
