"""A file from an address, whole or not at all: taken up where it broke, checked while it comes, renamed when right.

What a server may do to us (refuse, fail, stall, break off, send something else, redirect in a loop) ends after a
bounded number of attempts in one line that says what to do. Imports neither torch nor huggingface_hub.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import re
import shutil
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from mi_ml_gen.core.errors import EnvironmentFault, UsageError
from mi_ml_gen.core.files import atomic_write, disk_faults

PAUSES_S = (1.0, 2.0, 4.0, 8.0)
"""Waits between attempts; an attempt that brought new bytes starts the count anew."""
LONGEST_WAIT_S = 60.0
"""What a server may ask for with Retry-After before we give up instead."""
TRANSIENT_STATUS = (408, 425, 429, 500, 502, 503, 504)
BLOCK_BYTES = 1 << 20
LOG_IN = "; set HF_TOKEN, or run `hf auth login`, with a token that may read it"

T = TypeVar("T")


# --- faults -------------------------------------------------------------------------------------------------


class Missing(UsageError):
    """The server knows no such thing."""


class Transient(EnvironmentFault):
    """What may go away by itself."""

    def __init__(self, message: str, retry_after_s: float | None = None):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unreachable(EnvironmentFault):
    """What did not go away in time; what is in a cache will do instead."""


def retrying(action: Callable[[], T], pauses_s: Sequence[float] | None = None) -> T:
    """The result of `action`, which may fail with Transient as often as there are pauses (default PAUSES_S)."""
    pauses_s = PAUSES_S if pauses_s is None else pauses_s
    for pause_s in pauses_s:
        try:
            return action()
        except Transient as error:
            _wait(pause_s, error)
    try:
        return action()
    except Transient as error:
        raise _given_up(error, len(pauses_s) + 1) from error


def _given_up(error: Transient, n_attempts: int, more: str = "") -> Unreachable:
    return Unreachable(f"{error} ({n_attempts} attempts){more}" if n_attempts > 1 else f"{error}{more}")


def _wait(pause_s: float, error: Transient) -> None:
    """Wait as long as we would or as the server asks. Raises Unreachable where it asks for too much."""
    wanted_s = error.retry_after_s or 0.0
    if wanted_s > LONGEST_WAIT_S:
        raise Unreachable(f"{error}; it asks to wait for {wanted_s:.0f} s") from error
    time.sleep(max(pause_s, wanted_s))


def status_fault(status: int, what: str, url: str, headers: Any = None) -> UsageError | EnvironmentFault:
    """What an HTTP status of at least 400 means for `what`, asked for at `url`."""
    host = urlsplit(url).netloc or url
    after = (headers.get("Retry-After") or "").strip() if headers is not None else ""
    retry_after_s = float(after) if after.isdigit() else None
    if status in (404, 410):
        at = "" if what == url else f" at {url}"
        return Missing(f"{what}: there is no such file{at} (HTTP {status})")
    if status in (401, 403):
        return EnvironmentFault(f"{what}: {host} refuses access (HTTP {status}){LOG_IN}")
    if status == 429:
        return Transient(f"{what}: {host} got too many requests from here (HTTP 429)", retry_after_s)
    if status in TRANSIENT_STATUS:
        return Transient(f"{what}: {host} reports an error of its own (HTTP {status})", retry_after_s)
    return EnvironmentFault(f"{what}: {host} answers HTTP {status}")


def network_fault(error: BaseException, what: str) -> EnvironmentFault:
    """What a failed connection means. By names: HTTP libraries have classes of their own for the same things."""
    reason = getattr(error, "reason", None)
    inner = reason if isinstance(reason, BaseException) else error
    said = " ".join(str(inner).split()) or type(inner).__name__
    if isinstance(inner, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in said:
        return EnvironmentFault(f"{what}: the server's certificate is not trusted here ({said}); see SSL_CERT_FILE")
    names = {base.__name__ for base in type(inner).__mro__}
    if "TooManyRedirects" in names:
        return EnvironmentFault(f"{what}: redirected in a loop")
    if names & {"TimeoutError", "TimeoutException", "Timeout"}:
        return Transient(f"{what}: the server did not answer in time (HF_HUB_DOWNLOAD_TIMEOUT sets how many seconds)")
    return Transient(f"{what}: the server cannot be reached ({said})")


# --- what a file should be ----------------------------------------------------------------------------------


class Expected(NamedTuple):
    """What is known of a file before it comes, and who says so."""

    size_bytes: int | None = None
    sha256: str | None = None
    git_oid: str | None = None
    """Git's name of the content, in place of a SHA-256; needs the size."""
    says: str = ""

    @property
    def is_known(self) -> bool:
        """Whether other content would be noticed."""
        return bool(self.sha256 or self.git_oid)


class Hashes:
    """SHA-256 of what passes, and git's name of it where the size is known."""

    def __init__(self, size_bytes: int | None):
        self.sha256 = hashlib.sha256()
        self.git = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False) if size_bytes is not None else None

    def update(self, block: bytes) -> None:
        self.sha256.update(block)
        if self.git is not None:
            self.git.update(block)


def hashes_of(path: Path) -> Hashes:
    hashes = Hashes(path.stat().st_size)
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            hashes.update(block)
    return hashes


def mismatch(size_bytes: int, hashes: Hashes | None, expected: Expected) -> str | None:
    """How a file differs from what it should be, or None. Without hashes only its size is looked at."""
    if expected.size_bytes is not None and size_bytes != expected.size_bytes:
        return f"has {size_bytes:,} bytes, not the {expected.size_bytes:,} of {expected.says}"
    if hashes is None:
        return None
    if expected.sha256 is not None:
        found = hashes.sha256.hexdigest()
        return None if found == expected.sha256 else f"has SHA-256 {found}, not {expected.sha256} of {expected.says}"
    if expected.git_oid is not None and hashes.git is not None:
        found = hashes.git.hexdigest()
        return None if found == expected.git_oid else f"has git hash {found}, not {expected.git_oid} of {expected.says}"
    return None


# --- one request --------------------------------------------------------------------------------------------


class Address(NamedTuple):
    """Where a file is asked for, and what it is called in messages."""

    url: str
    label: str
    timeout_s: float
    authorization: str | None = None
    """A header for the address's own host; it goes to no other, wherever that redirects."""


class _RangeRefused(Exception):
    """The server has nothing from there on."""


def _open(address: Address, start: int, validator: str | None) -> http.client.HTTPResponse:
    """The answer to a request for the bytes from `start` on. Raises what `download` does, Transient, _RangeRefused."""
    import urllib.error
    import urllib.request

    class Redirects(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, request, file, code, message, headers, url):
            following = super().redirect_request(request, file, code, message, headers, url)
            if following is not None and address.authorization and _origin(url) == _origin(address.url):
                following.add_unredirected_header("Authorization", address.authorization)
            return following

    try:
        request = urllib.request.Request(
            address.url, headers={"User-Agent": "mi_ml_gen", "Accept-Encoding": "identity"}
        )
        if address.authorization:
            request.add_unredirected_header("Authorization", address.authorization)
        if start:
            request.add_header("Range", f"bytes={start}-")
            if validator is not None:
                request.add_header("If-Range", validator)
        return urllib.request.build_opener(Redirects).open(request, timeout=address.timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            raise _RangeRefused from None
        if error.code < 400:
            raise EnvironmentFault(f"{address.label}: {address.url} redirects in a loop, or nowhere") from None
        raise status_fault(error.code, address.label, address.url, error.headers) from None
    except (OSError, http.client.HTTPException) as error:
        raise network_fault(error, address.label) from error
    except ValueError as error:
        raise UsageError(f"{address.url}: {error}") from error


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


# --- one file -----------------------------------------------------------------------------------------------


class _Partial:
    """What has come of a file so far, in a file beside it that survives a kill; the next attempt goes on there.

    To go on, the whole file's hash is known, or the server's own mark of it (ETag) was noted and is asked for again.
    Otherwise pieces of two versions might be joined, so it is begun anew.
    """

    def __init__(self, target: Path, expected: Expected):
        self.path = target.with_name(f".{target.name}.incomplete")
        self.note = target.with_name(f".{target.name}.incomplete.from")
        self.expected = expected
        self.hashes = Hashes(expected.size_bytes)
        self.size_bytes = 0

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open to append; what is there is hashed."""
        with contextlib.ExitStack() as stack:
            with disk_faults(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                file = open(self.path, "a+b")  # noqa: SIM115
                stack.callback(self._close, file)
                file.seek(0)
                while block := file.read(BLOCK_BYTES):
                    self._count(block)
            limit = self.expected.size_bytes
            if not self.can_go_on or (limit is not None and self.size_bytes > limit):
                self.restart(file)
            yield file

    def _close(self, file: IO[bytes]) -> None:
        with disk_faults(self.path):  # writes what the file still holds, for which the disk may have no room
            file.close()

    @property
    def can_go_on(self) -> bool:
        return self.expected.is_known or self.validator is not None

    @property
    def validator(self) -> str | None:
        """What If-Range is to hold; not asked for where the hash is known."""
        if self.expected.is_known or not self.note.exists():
            return None
        return self.note.read_text(encoding="latin-1") or None

    def note_validator(self, headers: Any) -> None:
        if not self.expected.is_known:
            etag = headers.get("ETag") or ""
            mark = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified") or ""
            atomic_write(self.note, mark.encode("latin-1", "replace"))

    def append(self, file: IO[bytes], block: bytes) -> None:
        with disk_faults(self.path):
            file.write(block)
            file.flush()
        self._count(block)

    def _count(self, block: bytes) -> None:
        self.hashes.update(block)
        self.size_bytes += len(block)

    def restart(self, file: IO[bytes]) -> None:
        with disk_faults(self.path):
            file.seek(0)
            file.truncate()
        self.hashes, self.size_bytes = Hashes(self.expected.size_bytes), 0

    def finish(self, file: IO[bytes]) -> None:
        with disk_faults(self.path):
            os.fsync(file.fileno())

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def download(address: Address, target: Path, expected: Expected) -> str:
    """Bring a file to `target`; gives its SHA-256. The caller sees to it that no other process does the same.

    Raises Missing where the server knows no such file; EnvironmentFault for anything of network, server or disk, and
    for content that is not what is expected, which is asked for twice. Until all is right nothing bears the final
    name; what has come is kept beside it, for the next call to go on with.
    """
    wrong = None
    for _ in range(2):
        partial = _Partial(target, expected)
        with partial.open() as file, _progress(address.label, expected.size_bytes) as show:
            _fill(address, partial, file, show)
            partial.finish(file)
        wrong = mismatch(partial.size_bytes, partial.hashes, expected)
        if wrong is None:
            with disk_faults(target):
                os.replace(partial.path, target)
            partial.remove()
            return partial.hashes.sha256.hexdigest()
        partial.remove()
    raise EnvironmentFault(f"{address.label}: what {address.url} sends {wrong}; nothing was kept")


Show = Callable[[int], None]
"""Told how many bytes are there."""


def _fill(address: Address, partial: _Partial, file: IO[bytes], show: Show) -> None:
    """Append to what is there until it is the whole file."""
    n_failed, furthest = 0, partial.size_bytes
    while not (partial.size_bytes and partial.size_bytes == partial.expected.size_bytes):
        try:
            return _append(address, partial, file, show)
        except _RangeRefused:
            error = Transient(f"{address.label}: {address.url} refuses to send it (HTTP 416)")
            partial.restart(file)
        except Transient as fault:
            error = fault
        n_failed = 0 if partial.size_bytes > furthest else n_failed + 1
        furthest = max(furthest, partial.size_bytes)
        if n_failed > len(PAUSES_S):
            kept = partial.size_bytes and partial.can_go_on
            more = f"; {in_units(partial.size_bytes)} are kept, and the same command resumes there" if kept else ""
            raise _given_up(error, n_failed, more) from error
        if not partial.can_go_on:
            partial.restart(file)
        _wait(PAUSES_S[max(0, n_failed - 1)] if PAUSES_S else 0.0, error)


def _append(address: Address, partial: _Partial, file: IO[bytes], show: Show) -> None:
    """One request. Raises Transient where it did not bring the rest of the file."""
    with _open(address, partial.size_bytes, partial.validator) as response:
        headers = response.headers
        if response.status != 206:  # the whole file comes, whatever was asked for
            partial.restart(file)
        elif not re.match(rf"bytes {partial.size_bytes}-", headers.get("Content-Range") or ""):
            raise EnvironmentFault(f"{address.label}: {address.url} sends another part than was asked for")
        if headers.get_content_type() == "text/html" and not address.label.endswith((".html", ".htm")):
            raise EnvironmentFault(f"{address.label}: {address.url} sends a web page, not the file")
        length = headers.get("Content-Length") or ""
        total = partial.size_bytes + int(length) if length.isdigit() else partial.expected.size_bytes
        partial.note_validator(headers)
        _check_room(partial, total)
        show(partial.size_bytes)
        most = partial.expected.size_bytes
        while True:
            try:
                block = response.read1(BLOCK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise network_fault(error, address.label) from error
            if not block:
                break
            partial.append(file, block)
            show(partial.size_bytes)
            if most is not None and partial.size_bytes > most:
                return  # it is wrong, however much comes
    if total is not None and partial.size_bytes < total:
        raise Transient(f"{address.label}: the connection broke at {partial.size_bytes:,} of {total:,} bytes")


def _check_room(partial: _Partial, total: int | None) -> None:
    with disk_faults(partial.path):
        free = shutil.disk_usage(partial.path.parent).free
    if total is not None and total - partial.size_bytes > free:
        to_come = in_units(total - partial.size_bytes)
        full = os.strerror(errno.ENOSPC)
        raise EnvironmentFault(f"cannot write {partial.path.parent}: {full}: {to_come} to come, {in_units(free)} free")


@contextlib.contextmanager
def _progress(label: str, total: int | None) -> Iterator[Show]:
    """A bar on a terminal, unless HF_HUB_DISABLE_PROGRESS_BARS."""
    wanted = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").upper() not in ("1", "ON", "YES", "TRUE")
    if not (wanted and sys.stderr.isatty()):
        yield lambda n_bytes: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=label[-40:], unit="B", unit_scale=True, leave=False) as bar:
        yield lambda n_bytes: (bar.update(n_bytes - bar.n), None)[1]


def in_units(n_bytes: int | None) -> str:
    """1,234 B, 56.7 MB; "size unknown" for None."""
    if n_bytes is None:
        return "size unknown"
    if n_bytes < 10_000:
        return f"{n_bytes:,} B"
    exponent = 1 if n_bytes < 999_950 else 2 if n_bytes < 999_950_000 else 3
    return f"{n_bytes / 1000**exponent:,.1f} {('kB', 'MB', 'GB')[exponent - 1]}"
