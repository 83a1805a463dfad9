"""One file from an address: whatever the server does, the file is whole under its name, or the name is not there."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mi_ml_gen.core.errors import EnvironmentFault
from mi_ml_gen.hub import downloads
from mi_ml_gen.hub.downloads import PAUSES_S, Address, Expected, Missing, Unreachable, download, in_units
from tests.hub_server import Fault, HubServer

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WHOLE = Expected(len(CONTENT), SHA256, says="the test")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSES_S", (0.01,) * len(PAUSES_S))
    with HubServer() as running:
        running.web["file.pth"] = CONTENT
        yield running


def get(server: HubServer, target: Path, expected: Expected = WHOLE, timeout_s: float = 5.0, **address) -> str:
    return download(Address(f"{server.endpoint}/web/file.pth", "file.pth", timeout_s, **address), target, expected)


def ranges(server: HubServer) -> list[str | None]:
    return [request.range for request in server.requests]


def assert_whole(target: Path, content: bytes = CONTENT) -> None:
    assert target.read_bytes() == content
    assert os.listdir(target.parent) == [target.name]  # nothing beside it


@pytest.mark.parametrize(
    "expected", [WHOLE, WHOLE._replace(size_bytes=None), Expected(len(CONTENT)), Expected()], ids=str
)
def test_a_file_comes_with_its_hash(server, tmp_path, expected):
    assert get(server, tmp_path / "file.pth", expected) == SHA256
    assert_whole(tmp_path / "file.pth")
    assert ranges(server) == [None]


def test_a_git_hash_is_held_against_the_content(server, tmp_path):
    oid = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
    get(server, tmp_path / "file.pth", Expected(len(CONTENT), git_oid=oid))
    with pytest.raises(EnvironmentFault, match="has git hash"):
        get(server, tmp_path / "other.pth", Expected(len(CONTENT), git_oid=oid[::-1], says="the test"))


@pytest.mark.parametrize("expected", [WHOLE, Expected()], ids=["hash known", "by its ETag"])
def test_cuts_are_taken_up_where_they_were(server, tmp_path, expected):
    server.faults.append(Fault("file.pth", times=3, cut_after=70_000))
    assert get(server, tmp_path / "file.pth", expected) == SHA256
    assert_whole(tmp_path / "file.pth")
    assert ranges(server) == [None, "bytes=70000-", "bytes=140000-", "bytes=210000-"]


def test_a_server_without_ranges_is_asked_for_all_again(server, tmp_path):
    server.faults += [Fault("file.pth", times=1, cut_after=70_000), Fault("file.pth", no_range=True)]
    get(server, tmp_path / "file.pth")
    assert_whole(tmp_path / "file.pth")


def test_a_server_that_cuts_without_ranges_is_given_up(server, tmp_path):
    server.faults.append(Fault("file.pth", cut_after=70_000, no_range=True))
    with pytest.raises(Unreachable, match="broke at 70,000 of 300,000 bytes"):
        get(server, tmp_path / "file.pth")
    assert len(server.requests) == 1 + 1 + len(PAUSES_S)  # the first brought something new
    assert not (tmp_path / "file.pth").exists()


def test_an_unmarked_file_is_not_pieced_together(server, tmp_path):
    server.web_has_etags = False
    server.faults.append(Fault("file.pth", times=1, cut_after=70_000))
    get(server, tmp_path / "file.pth", Expected())
    assert ranges(server) == [None, None]
    assert_whole(tmp_path / "file.pth")


def test_a_file_that_changes_half_way_is_not_pieced_together(server, tmp_path):
    server.faults += [Fault("file.pth", times=1, cut_after=70_000), Fault("file.pth", status=500)]
    with pytest.raises(Unreachable):
        get(server, tmp_path / "file.pth", Expected())
    server.faults.clear()
    server.web["file.pth"] = new = CONTENT[::-1]
    assert get(server, tmp_path / "file.pth", Expected()) == hashlib.sha256(new).hexdigest()
    assert_whole(tmp_path / "file.pth", new)


def test_the_next_call_goes_on(server, tmp_path):
    server.faults.append(Fault("file.pth", times=1, cut_after=70_000))
    server.faults.append(Fault("file.pth", status=503))
    with pytest.raises(
        EnvironmentFault, match=r"HTTP 503.*\(5 attempts\); 70.0 kB are kept, and the same command resumes"
    ):
        get(server, tmp_path / "file.pth")
    assert os.listdir(tmp_path) == [".file.pth.incomplete"]
    server.faults.clear()
    server.requests.clear()
    get(server, tmp_path / "file.pth")
    assert ranges(server) == ["bytes=70000-"]
    assert_whole(tmp_path / "file.pth")


@pytest.mark.parametrize("start", [b"", b"x" * 1000, CONTENT[:-1] + b"x", CONTENT, CONTENT + b"x", b"x" * len(CONTENT)])
def test_left_overs_of_any_kind_do_no_harm(server, tmp_path, start):
    (tmp_path / ".file.pth.incomplete").write_bytes(start)
    assert get(server, tmp_path / "file.pth") == SHA256
    assert_whole(tmp_path / "file.pth")


def test_a_left_over_of_nobody_knows_what_is_begun_anew(server, tmp_path):
    (tmp_path / ".file.pth.incomplete").write_bytes(b"x" * 1000)
    assert get(server, tmp_path / "file.pth", Expected()) == SHA256
    assert ranges(server) == [None]


def test_a_killed_download_goes_on(server, tmp_path):
    target = tmp_path / "file.pth"
    server.faults.append(Fault("file.pth", times=1, pause_s=0.05, piece=1000))
    call = f"download(Address({server.endpoint + '/web/file.pth'!r}, 'f', 5.0), Path({str(target)!r}), {WHOLE!r})"
    code = f"from pathlib import Path\nfrom mi_ml_gen.hub.downloads import *\n{call}"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    partial, stop = tmp_path / ".file.pth.incomplete", time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size > 5000):
        assert child.poll() is None and time.monotonic() < stop
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    came = partial.stat().st_size
    assert not target.exists() and came < len(CONTENT)
    server.requests.clear()
    get(server, target)
    assert ranges(server) == [f"bytes={came}-"]
    assert_whole(target)


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (CONTENT[:-1] + b"x", f"not {SHA256} of the test; nothing was kept"),
        (CONTENT[:-1], "has 299,999 bytes, not the 300,000 of the test"),
        (CONTENT + b"x" * 5_000_000, "bytes, not the 300,000 of the test"),
        (b"", "has 0 bytes"),
    ],
    ids=["other", "shorter", "longer", "empty"],
)
def test_wrong_content_never_gets_the_name(server, tmp_path, sent, says):
    server.faults.append(Fault("file.pth", replace=sent))
    with pytest.raises(EnvironmentFault) as refused:
        get(server, tmp_path / "file.pth")
    assert says in str(refused.value)
    assert os.listdir(tmp_path) == []
    assert len(server.requests) <= 2


def test_wrong_content_once_is_asked_for_again(server, tmp_path):
    server.faults.append(Fault("file.pth", times=1, replace=CONTENT[::-1]))
    get(server, tmp_path / "file.pth")
    assert_whole(tmp_path / "file.pth")


@pytest.mark.parametrize(
    ("fault", "error", "n_requests", "says"),
    [
        (Fault("file", status=404), Missing, 1, "there is no such file at http"),
        (Fault("file", status=401), EnvironmentFault, 1, "refuses access (HTTP 401); set HF_TOKEN"),
        (Fault("file", status=403), EnvironmentFault, 1, "refuses access (HTTP 403)"),
        (Fault("file", status=429), Unreachable, 5, "too many requests from here (HTTP 429) (5 attempts)"),
        (Fault("file", status=429, headers={"Retry-After": "3600"}), Unreachable, 1, "to wait for 3600 s"),
        (Fault("file", status=500), Unreachable, 5, "reports an error of its own (HTTP 500) (5 attempts)"),
        (Fault("file", status=418), EnvironmentFault, 1, "answers HTTP 418"),
        (Fault("file", redirect_to="/web/file.pth"), EnvironmentFault, 11, "redirects in a loop"),
        (Fault("file", stall_s=3.0), Unreachable, 5, "did not answer in time (HF_HUB_DOWNLOAD_TIMEOUT"),
        (Fault("file", cut_after=0), Unreachable, 5, "broke at 0 of 300,000 bytes (5 attempts)"),
        (Fault("file", stall_after=0), Unreachable, 5, "did not answer in time"),
        (Fault("file", status=206, headers={"Content-Range": "bytes 7-9/10"}), EnvironmentFault, 1, "another part"),
        (Fault("file", status=200, headers={"Content-Type": "text/html"}), EnvironmentFault, 1, "sends a web page"),
    ],
    ids=["404", "401", "403", "429", "429 for long", "500", "418", "loop", "silent", "cut", "stalled", "part", "page"],
)
def test_faults_of_a_server_end_in_clear_words(server, tmp_path, fault, error, n_requests, says):
    server.faults.append(fault)
    with pytest.raises(error) as refused:
        get(server, tmp_path / "file.pth", timeout_s=0.15)
    assert says in str(refused.value) and "\n" not in str(refused.value)
    assert type(refused.value) is error
    assert len(server.requests) <= n_requests if "loop" in says else len(server.requests) == n_requests
    assert not (tmp_path / "file.pth").exists()


def test_passing_faults_pass(server, tmp_path):
    server.faults += [
        Fault("file.pth", times=1, status=500),
        Fault("file.pth", times=1, status=429, headers={"Retry-After": "0"}),
        Fault("file.pth", times=1, stall_after=50_000),
        Fault("file.pth", times=1, stall_s=1.0),
        Fault("file.pth", times=1, cut_after=0),
    ]
    get(server, tmp_path / "file.pth", timeout_s=0.2)
    assert_whole(tmp_path / "file.pth")


def test_slow_but_steady_arrives(server, tmp_path):
    server.faults.append(Fault("file.pth", pause_s=0.05, piece=30_000))  # twice the time-out in all
    get(server, tmp_path / "file.pth", timeout_s=0.25)
    assert ranges(server) == [None]
    assert_whole(tmp_path / "file.pth")


def test_no_server_at_all(server, tmp_path):
    address = Address("http://127.0.0.1:9/file.pth", "file.pth", 1.0)
    with pytest.raises(Unreachable, match=r"file.pth: the server cannot be reached \(.*refused.*\) \(5 attempts\)"):
        download(address, tmp_path / "file.pth", WHOLE)


def test_the_token_stays_with_its_host(server, tmp_path):
    server.web["moved.pth"] = CONTENT
    server.faults += [
        Fault("/web/file.pth", times=1, redirect_to="/web/moved.pth"),
        Fault("/web/moved.pth", times=1, redirect_to=f"{server.cdn}/web/moved.pth"),
    ]
    get(server, tmp_path / "file.pth", authorization="Bearer secret")
    assert_whole(tmp_path / "file.pth")
    assert [request.authorization for request in server.requests] == ["Bearer secret", "Bearer secret", None]


def test_a_full_disk_ends_it_and_leaves_no_file_of_the_name(server, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(EnvironmentFault, match=r"cannot write .*file.pth.incomplete: File too large"):
            get(server, tmp_path / "file.pth")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "file.pth").exists() and len(server.requests) == 1
    get(server, tmp_path / "file.pth")
    assert_whole(tmp_path / "file.pth")


def test_what_does_not_fit_is_not_begun(server, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 200_000})
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(EnvironmentFault, match=r"No space left on device: 300.0 kB to come, 200.0 kB free"):
        get(server, tmp_path / "file.pth")
    assert not (tmp_path / "file.pth").exists()


def test_a_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="taken is a file, not a folder"):
        get(server, tmp_path / "taken" / "file.pth")


def test_units():
    shown = [in_units(n) for n in (None, 0, 9_999, 10_000, 999_949, 1_000_000, 381_673_535, 2_000_000_000_000)]
    assert shown == ["size unknown", "0 B", "9,999 B", "10.0 kB", "999.9 kB", "1.0 MB", "381.7 MB", "2,000.0 GB"]
