"""Cases of downloads, from a server on loopback that fails as it is told."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import random
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mi_ml_gen.core.errors import EnvironmentFault
from mi_ml_gen.hub import downloads
from mi_ml_gen.hub.downloads import Address, Expected, download
from mi_ml_gen.hub.fetching import fetch
from tests.faults.cases import Check, family
from tests.faults.children import Child
from tests.hub_server import Fault, HubServer, stored, use_in_this_process

Cases = Iterator[tuple[str, Check]]

CONTENT = random.Random(0).randbytes(200_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
KNOWN = {
    "size and hash": Expected(len(CONTENT), SHA256, says="the case"),
    "hash": Expected(None, SHA256, says="the case"),
    "size": Expected(len(CONTENT), says="the case"),
    "nothing": Expected(),
}
"""What is known of a file before it comes."""
WAYS = ("an address", "a hub")
BODY = {"an address": "/web/", "a hub": "/cdn/"}
"""Where the content comes from, in the server's paths."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[HubServer]:
    with pytest.MonkeyPatch.context() as patch, HubServer() as server:
        patch.setattr(downloads, "PAUSES_S", (0.01,) * len(downloads.PAUSES_S))
        server.web["file.pth"] = CONTENT
        server.add("me/r", {"file.pth": CONTENT})
        use_in_this_process(server, folder / "home", patch)
        from huggingface_hub import constants

        for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
            patch.setattr(constants, name, 0.5)
        yield server


def get(server: HubServer, way: str, folder: Path, expected: Expected = KNOWN["size and hash"]) -> Path:
    if way == "a hub":
        return fetch("hf://me/r/file.pth")
    target = folder / "got" / "file.pth"
    download(Address(f"{server.endpoint}/web/file.pth", "file.pth", 0.5), target, expected)
    return target


def under_its_name(folder: Path) -> list[Path]:
    """The file under the names that readers look for: its own, and that of the hub's cache."""
    names = ("file.pth", stored("file.pth", CONTENT).sha256)
    return [path for path in folder.rglob("*") if path.name in names and not path.is_dir()]


def assert_goes_on(server: HubServer, way: str, folder: Path, expected: Expected = KNOWN["size and hash"]) -> None:
    server.faults.clear()
    path = get(server, way, folder, expected)
    assert path.read_bytes() == CONTENT
    left = [str(found) for found in folder.rglob("*") if ".incomplete" in found.name or ".partial" in found.name]
    assert not left, left


PASSING = {
    **{f"cut after {share:.0%}": Fault("", cut_after=int(share * len(CONTENT))) for share in
       (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)},
    **{f"silent after {share:.0%}": Fault("", stall_after=int(share * len(CONTENT))) for share in (0.0, 0.3, 0.9)},
    **{f"HTTP {code}": Fault("", status=code) for code in (429, 500, 502, 503, 504)},
    "silent at first": Fault("", stall_s=1.5),
}  # fmt: skip
"""Faults that pass."""


@family("downloads", sample=1)
def a_fault_that_passes(seed: int) -> Cases:
    for way in WAYS:
        for what in PASSING:
            for times in (1, 3):
                yield f"{way}, {what}, {times} times", functools.partial(_passes, way, what, times)


def _passes(way: str, what: str, times: int, folder: Path) -> None:
    with served(folder) as server:
        server.faults.append(dataclasses.replace(PASSING[what], match=BODY[way], times=times, methods=("GET",)))
        assert get(server, way, folder).read_bytes() == CONTENT


LASTING = {
    "cut at once": Fault("", cut_after=0),
    "cut after the half, without ranges": Fault("", cut_after=len(CONTENT) // 2, no_range=True),
    "silent": Fault("", stall_s=2.0),
    "silent after a while": Fault("", stall_after=0),
    **{f"HTTP {code}": Fault("", status=code) for code in (401, 403, 418, 429, 500, 502, 503)},
    "429, to come again in an hour": Fault("", status=429, headers={"Retry-After": "3600"}),
    "a loop": Fault("", redirect_to="loop"),
    "another part": Fault("", status=206, headers={"Content-Range": "bytes 7-9/10"}),
    "a web page": Fault("", status=200, headers={"Content-Type": "text/html"}),
    "other content": Fault("", replace=CONTENT[::-1]),
    "one byte less": Fault("", replace=CONTENT[:-1]),
    "one bit other": Fault("", replace=CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])),
    "much more": Fault("", replace=CONTENT + bytes(3_000_000)),
    "nothing": Fault("", replace=b""),
}
"""Faults that stay."""


@family("downloads", sample=2)
def a_fault_that_stays(seed: int) -> Cases:
    for way in WAYS:
        for what in LASTING:
            yield f"{way}, {what}", functools.partial(_stays, way, what)


def _stays(way: str, what: str, folder: Path) -> None:
    with served(folder) as server:
        fault = dataclasses.replace(LASTING[what], match=BODY[way], methods=("GET", "HEAD"))
        if fault.redirect_to:
            fault.redirect_to = "/web/file.pth" if way == "an address" else f"/cdn/{stored('file.pth', CONTENT).sha256}"
        server.faults.append(fault)
        try:
            get(server, way, folder)
        except EnvironmentFault as error:
            assert "\n" not in str(error) and error.exit_code == 4
        else:
            raise AssertionError("came")
        assert len(server.requests) <= 25, f"{len(server.requests)} requests"
        assert not under_its_name(folder)
        assert_goes_on(server, way, folder)


@family("downloads", sample=1)
def wrong_content(seed: int) -> Cases:
    sent = {"other": CONTENT[::-1], "shorter": CONTENT[:-7], "longer": CONTENT + b"x"}
    for known, expected in KNOWN.items():
        for what, content in sent.items():
            if expected.is_known or (expected.size_bytes and len(content) != len(CONTENT)):
                yield f"{what}, known: {known}", functools.partial(_wrong, expected, content)


def _wrong(expected: Expected, content: bytes, folder: Path) -> None:
    with served(folder) as server:
        server.faults.append(Fault("/web/", replace=content))
        with pytest.raises(EnvironmentFault, match="file.pth"):
            get(server, "an address", folder, expected)
        assert not under_its_name(folder)
        assert_goes_on(server, "an address", folder, expected)


@family("downloads", sample=1)
def killed_while_it_comes(seed: int) -> Cases:
    for way in WAYS:
        for i in range(8):
            share = random.Random(f"{seed} {way} {i}").uniform(0.02, 0.95)
            yield f"{way}, {i}", functools.partial(_killed, way, share)


def _killed(way: str, share: float, folder: Path) -> None:
    with served(folder) as server:
        server.faults.append(Fault(BODY[way], times=1, methods=("GET",), pause_s=0.01, piece=4000))
        child = Child(lambda: get(server, way, folder))
        deadline_s = time.monotonic() + 30
        while not child.has_ended() and time.monotonic() < deadline_s:
            sizes = [path.stat().st_size for path in folder.rglob("*incomplete")]
            if max(sizes, default=0) > share * len(CONTENT):
                break
            time.sleep(0.002)
        child.signal(signal.SIGKILL)
        child.wait()
        assert all(path.read_bytes() == CONTENT for path in under_its_name(folder))
        assert_goes_on(server, way, folder)


@family("downloads", sample=1)
def a_full_disk(seed: int) -> Cases:
    for way in WAYS:
        for n_bytes in (199_999, 0, 10_000, 100_000):  # at the first, nothing but the last byte finds no room
            yield f"{way}, {n_bytes:,} bytes", functools.partial(_full, way, n_bytes)


def _full(way: str, n_bytes: int, folder: Path) -> None:
    with served(folder) as server:

        def work() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.RLIM_INFINITY))
            get(server, way, folder)

        Child(work).wait().check(4, "cannot write")
        assert not under_its_name(folder)
        assert_goes_on(server, way, folder)


@family("downloads", sample=0)
def eight_at_once(seed: int) -> Cases:
    for way in WAYS:
        for i in range(3):
            yield f"{way}, {i}", functools.partial(_together, way)


def _together(way: str, folder: Path) -> None:
    with served(folder) as server:
        server.faults.append(Fault(BODY[way], times=1, cut_after=50_000, methods=("GET",)))
        go, start = os.pipe()

        def work() -> None:
            os.read(go, 1)
            target = get(server, way, folder) if way == "a hub" else fetch(f"{server.endpoint}/web/file.pth")
            assert target.read_bytes() == CONTENT

        children = [Child(work) for _ in range(8)]
        os.write(start, b"x" * 8)
        for child in children:
            child.wait().check(0)
