"""Published weights, with the real client of the Hub against a Hub on loopback."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, hf_hub_download, scan_cache_dir

from mi_ml_gen.core import locks
from mi_ml_gen.core.errors import CorruptCheckpointError, EnvironmentFault, UsageError
from mi_ml_gen.core.files import NoHome
from mi_ml_gen.generators.registry import load_generator, save_generator
from mi_ml_gen.hub import assets as table_of_assets
from mi_ml_gen.hub import catalogue, downloads
from mi_ml_gen.hub import fetching as weights
from mi_ml_gen.hub.assets import HubFile, WebFile
from mi_ml_gen.hub.downloads import Missing, Unreachable
from mi_ml_gen.hub.fetching import NotCached, fetch, fetch_folder, local_path
from mi_ml_gen.latents import Chunks
from mi_ml_gen.walkers.files import save_walker
from mi_ml_gen.walkers.learned import NonlinearWalker
from mi_ml_gen.walkers.spec import load_groups, load_walker
from tests.conftest import GOLDEN, make_small_generator
from tests.hub_server import TOKEN, Fault, HubServer, hub, point_client_at, stored, use_in_this_process

__all__ = ["hub"]  # the fixture

ROOT = Path(__file__).parents[2]
IS_OLD_CLIENT = huggingface_hub.__version__.startswith("0.")
A, B = b"a" * 50_000, b"b" * 50_000
SMALL = b'{"a": 1}'


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSES_S", (0.01,) * 4)


@pytest.fixture
def repo(hub: HubServer) -> HubServer:
    hub.add("me/r", {"runs/a.pth": A, "about.json": SMALL})
    return hub


@pytest.fixture
def table(monkeypatch):
    """table(text): a table of known artifacts in place of the package's."""

    def use(text: str) -> None:
        content = table_of_assets.read_table(text)
        for module in (table_of_assets, weights, catalogue):
            monkeypatch.setattr(module, "assets", lambda: content)

    return use


def artifact(where: str, **more: object) -> str:
    fields = {"name": "known", "kind": "walker", "family": "f", "where": where, "licence": "L-1", "what": "w", **more}
    return "[[artifact]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items())


def gets(server: HubServer) -> int:
    """Requests for content."""
    return server.count("/cdn/", "GET") + server.count("/resolve/", "GET") + server.count("/web/", "GET")


def set_offline(monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def leftovers(home: Path) -> list[str]:
    return [str(path) for path in home.rglob("*") if ".incomplete" in path.name or path.name.endswith(".partial")]


# --- the Hub's cache


def test_what_is_fetched_is_in_the_hubs_own_cache(repo, tmp_path):
    paths = {name: fetch(f"hf://me/r/{name}") for name in ("runs/a.pth", "about.json")}
    assert paths["runs/a.pth"].read_bytes() == A and paths["about.json"].read_bytes() == SMALL
    n_gets = gets(repo)
    for name, path in paths.items():
        assert hf_hub_download("me/r", name) == str(path)
        assert hf_hub_download("me/r", name, local_files_only=True) == str(path)
        assert fetch(f"hf://me/r/{name}") == path
    assert gets(repo) == n_gets
    (cached,) = scan_cache_dir(constants.HF_HUB_CACHE).repos
    assert cached.repo_id == "me/r" and cached.size_on_disk == len(A) + len(SMALL)
    assert [set(revision.refs) for revision in cached.revisions] == [{"main"}]
    assert leftovers(tmp_path) == []


def test_what_the_client_fetched_is_used(repo):
    path = hf_hub_download("me/r", "runs/a.pth")
    n_gets = gets(repo)
    assert fetch("hf://me/r/runs/a.pth") == Path(path) and gets(repo) == n_gets


def test_revisions(repo, monkeypatch):
    old = repo.repos["me/r"].refs["main"]
    first = fetch("hf://me/r/runs/a.pth")
    new = repo.add("me/r", {"runs/a.pth": B})
    repo.add("me/r", {"runs/a.pth": SMALL}, branch="v1")
    assert fetch("hf://me/r/runs/a.pth").read_bytes() == B
    assert fetch(f"hf://me/r/runs/a.pth@{old}") == first and first.read_bytes() == A
    assert fetch("hf://me/r@v1/runs/a.pth").read_bytes() == SMALL
    assert fetch("hf://me/r/runs/a.pth", revision="v1").read_bytes() == SMALL
    n_requests = len(repo.requests)
    assert fetch(f"hf://me/r/runs/a.pth@{new}").read_bytes() == B
    assert len(repo.requests) == n_requests  # a commit does not change
    set_offline(monkeypatch)
    assert fetch("hf://me/r/runs/a.pth").read_bytes() == B
    assert fetch("hf://me/r/runs/a.pth@v1").read_bytes() == SMALL


def test_offline_uses_the_cache_and_nothing_else(repo, monkeypatch):
    path = fetch("hf://me/r/runs/a.pth")
    set_offline(monkeypatch)
    n_requests = len(repo.requests)
    assert fetch("hf://me/r/runs/a.pth") == path
    for reference in ("hf://me/r/about.json", "https://host/file.pth", "hf://me/r/runs/a.pth@v2"):
        with pytest.raises(NotCached, match="not in the cache, and cannot be fetched, because HF_HUB_OFFLINE is set"):
            fetch(reference)
    with pytest.raises(EnvironmentFault, match="HF_HUB_OFFLINE is set, so it cannot be listed"):
        weights.list_files("me/r")
    assert fetch_folder("hf://me/r") == path.parents[1]
    assert len(repo.requests) == n_requests


@pytest.mark.parametrize("fault", [Fault("/", status=503), Fault("/", stall_s=3), Fault("/", cut_after=0)], ids=str)
def test_the_cache_serves_where_the_hub_does_not(repo, monkeypatch, caplog, fault):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    path = fetch("hf://me/r/runs/a.pth")
    repo.add("me/r", {"runs/a.pth": B})
    fault.methods = ("HEAD",)
    if fault.cut_after is not None:  # no body of a HEAD can be cut
        fault.cut_after, fault.status = None, 500
    repo.faults.append(fault)
    n_requests = repo.count("/me/r/")
    assert fetch("hf://me/r/runs/a.pth") == path and path.read_bytes() == A
    assert repo.count("/me/r/") == n_requests + 1  # one attempt is enough
    assert "is used" in caplog.text


@pytest.mark.parametrize("rot", [b"", A[:-1], A[:-1] + b"x"], ids=["empty", "cut", "flipped"])
def test_a_file_that_rots_in_the_cache_is_noticed(repo, monkeypatch, caplog, rot):
    path = fetch("hf://me/r/runs/a.pth")
    path.resolve().write_bytes(rot)
    set_offline(monkeypatch)
    with pytest.raises(CorruptCheckpointError, match=r"a.pth: has .*HF_HUB_OFFLINE is set"):
        fetch("hf://me/r/runs/a.pth")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert fetch("hf://me/r/runs/a.pth").read_bytes() == A
    assert "it is fetched again" in caplog.text


def test_a_folder_comes_as_one_commit(repo, tmp_path):
    folder = fetch_folder("hf://me/r")
    assert (folder / "runs/a.pth").read_bytes() == A and (folder / "about.json").read_bytes() == SMALL
    assert folder.name == repo.repos["me/r"].refs["main"]
    assert fetch_folder("hf://me/r/runs/") == folder / "runs"
    assert fetch_folder("hf://me/r", local_dir=tmp_path / "here") == tmp_path / "here"
    assert (tmp_path / "here/runs/a.pth").read_bytes() == A
    with pytest.raises(Missing, match="has no such folder"):
        fetch_folder("hf://me/r/nothing/")
    with pytest.raises(UsageError, match="write hf://owner/repo"):
        fetch_folder("hf://me/r/about.json")


# --- a folder of the user's


def test_a_folder_in_place_of_the_cache(repo, tmp_path, monkeypatch):
    repo.web["w.pth"] = B
    home = tmp_path / "weights"
    path = fetch("hf://me/r/runs/a.pth", local_dir=home)
    web = fetch(f"{repo.endpoint}/web/w.pth", local_dir=home)
    assert (path, web) == (home / "runs/a.pth", home / "w.pth")
    assert (path.read_bytes(), web.read_bytes()) == (A, B)
    for file in (path, web):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert Path(f"{file}.sha256").read_text() == f"{digest}  {file.name}\n"
    assert weights.in_cache(HubFile("me/r", "runs/a.pth")) is None
    n_gets = gets(repo)
    fetch("hf://me/r/runs/a.pth", local_dir=home)
    fetch(f"{repo.endpoint}/web/w.pth", local_dir=home)
    set_offline(monkeypatch)
    assert fetch("hf://me/r/runs/a.pth", local_dir=home) == path
    assert gets(repo) == n_gets


def test_what_is_in_the_way_stays(repo, tmp_path, monkeypatch):
    path = tmp_path / "runs/a.pth"
    path.parent.mkdir()
    path.write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"a.pth: already exists, but has 4 bytes, not the 50,000 of the Hub"):
        fetch("hf://me/r/runs/a.pth", local_dir=tmp_path)
    assert path.read_bytes() == b"mine"
    path.unlink()
    fetch("hf://me/r/runs/a.pth", local_dir=tmp_path)
    path.write_bytes(B)
    set_offline(monkeypatch)
    with pytest.raises(UsageError, match=r"not [0-9a-f]{64} of a.pth.sha256; remove it, or choose another folder"):
        fetch("hf://me/r/runs/a.pth", local_dir=tmp_path)
    for no_hash in (b"\xff\xfe" * 40, b""):
        (tmp_path / "runs/a.pth.sha256").write_bytes(no_hash)
        with pytest.raises(UsageError, match=r"not the hash of a.pth.sha256; remove it"):
            fetch("hf://me/r/runs/a.pth", local_dir=tmp_path)


# --- faults


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("hf://me/r/runs/b.pth", "me/r has no such file; nearest known file: runs/a.pth"),
        ("hf://me/q/runs/a.pth", "there is no repository me/q, or it is private; set HF_TOKEN"),
        ("hf://me/r/runs/a.pth@v9", "me/r has no revision v9"),
    ],
)
def test_what_is_not_there(repo, reference, says):
    with pytest.raises(Missing) as refused:
        fetch(reference)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_private_and_gated_repositories(repo, monkeypatch):
    repo.add("me/secret", {"a.pth": A, "b.txt": SMALL}, private=True)
    repo.add("me/gated", {"a.pth": A}, gated=True)
    with pytest.raises(Missing, match="or it is private; set HF_TOKEN, or run `hf auth login`"):
        fetch("hf://me/secret/a.pth")
    with pytest.raises(EnvironmentFault, match=r"must be requested; ask for it at http://.*/me/gated; set HF_TOKEN"):
        fetch("hf://me/gated/a.pth")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetch("hf://me/secret/a.pth").read_bytes() == fetch("hf://me/gated/a.pth").read_bytes() == A
    assert fetch("hf://me/secret/b.txt").read_bytes() == SMALL
    sent = {request.authorization for request in repo.requests if "/cdn/" in request.path}
    assert sent == {None}  # the token is not for the CDN
    with pytest.raises(Missing, match="there is no repository me/q$"):
        fetch("hf://me/q/a.pth")


@pytest.mark.parametrize(
    ("fault", "error", "n_requests", "says"),
    [
        (Fault("/resolve/", status=429), Unreachable, 5, "too many requests from here (HTTP 429) (5 attempts)"),
        (Fault("/resolve/", status=429, headers={"Retry-After": "900"}), Unreachable, 1, "to wait for 900 s"),
        (Fault("/resolve/", status=500), Unreachable, 5, "reports an error of its own (HTTP 500) (5 attempts)"),
        (Fault("/resolve/", status=403), EnvironmentFault, 1, "refuses access (HTTP 403)"),
        (Fault("/resolve/", stall_s=3.0), Unreachable, 5, "did not answer in time"),
        (Fault("/resolve/", redirect_to="/me/r/resolve/main/runs/a.pth"), EnvironmentFault, 25, "redirected in a loop"),
        (Fault("/resolve/", status=200), EnvironmentFault, 1, "does not answer as a Hub; look at HF_ENDPOINT"),
        (Fault("/cdn/", status=500), Unreachable, 11, "reports an error of its own (HTTP 500) (5 attempts)"),
        (Fault("/cdn/", cut_after=0), Unreachable, 11, "broke at 0 of 50,000 bytes (5 attempts)"),
        (Fault("/cdn/", stall_s=3.0), Unreachable, 11, "did not answer in time"),
        (Fault("/cdn/", replace=B), EnvironmentFault, 5, "of the Hub; nothing was kept"),
        (Fault("/cdn/", replace=A[:-1]), EnvironmentFault, 5, "has 49,999 bytes, not the 50,000 of the Hub"),
        (Fault("/cdn/", status=404), Missing, 3, "there is no such file at http"),
        (Fault("/cdn/", redirect_to="/cdn/" + "0" * 64), EnvironmentFault, 15, "redirects in a loop"),
    ],
    ids=["429", "429 for long", "500", "403", "silent", "loop", "no hub", "CDN 500", "CDN cut", "CDN silent",
         "CDN other", "CDN short", "CDN 404", "CDN loop"],
)  # fmt: skip
def test_faults_of_the_hub_end_in_clear_words(repo, tmp_path, monkeypatch, fault, error, n_requests, says):
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.setattr(constants, name, 0.15)
    repo.faults.append(fault)
    with pytest.raises(error) as refused:
        fetch("hf://me/r/runs/a.pth")
    assert says in str(refused.value) and "\n" not in str(refused.value)
    assert type(refused.value) is error
    if not (IS_OLD_CLIENT and "in a loop" in says):  # it goes round until Python stops it
        assert repo.count("/me/r/") + repo.count("/cdn/") <= n_requests
    assert not [path for path in (tmp_path / "home").rglob("*") if path.name in ("a.pth", stored("a", A).sha256)]
    repo.faults.clear()
    assert fetch("hf://me/r/runs/a.pth").read_bytes() == A


def test_small_files_are_held_against_their_git_hash(repo):
    repo.faults.append(Fault("/resolve/", methods=("GET",), replace=SMALL[::-1]))
    with pytest.raises(EnvironmentFault, match="has git hash .* of the Hub; nothing was kept"):
        fetch("hf://me/r/about.json")


def test_a_cut_is_taken_up(repo):
    repo.faults.append(Fault("/cdn/", times=2, cut_after=20_000))
    assert fetch("hf://me/r/runs/a.pth").read_bytes() == A
    assert [r.range for r in repo.requests if "/cdn/" in r.path] == [None, "bytes=20000-", "bytes=40000-"]


def test_what_only_the_client_can_carry_is_checked_too(repo, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "CLIENT_ONLY_FROM_BYTES", 1000)
    repo.faults.append(Fault("/cdn/", times=1, replace=B))
    with pytest.raises(EnvironmentFault, match="what came from the Hub has SHA-256 .*; nothing was kept"):
        fetch("hf://me/r/runs/a.pth")
    assert not [path for path in tmp_path.rglob("*") if path.name == "a.pth"]
    assert fetch("hf://me/r/runs/a.pth").read_bytes() == A


def test_no_hub_at_all(repo, monkeypatch):
    point_client_at("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(Unreachable, match=r"cannot be reached .*\(5 attempts\)"):
        fetch("hf://me/r/runs/a.pth")


def test_a_cache_that_cannot_be_written_is_named(repo, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "taken"))
    with pytest.raises(UsageError, match="cannot write .*taken/.* is a file, not a folder"):
        fetch("hf://me/r/runs/a.pth")


def as_reader(action) -> str:
    """What an action gives, or raises, in a process whose user may write nothing of ours."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            if os.getuid() == 0:  # root may write anything
                os.setgroups([])
                os.setgid(54321)
                os.setuid(54321)
            said = str(action())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as file:
        return file.read().decode()


@pytest.fixture
def shared_home(repo, monkeypatch):
    """A cache with runs/a.pth in it, which other users may read."""
    with tempfile.TemporaryDirectory() as place:  # not below tmp_path, which is closed to others
        use_in_this_process(repo, Path(place) / "home", monkeypatch)
        repo.add("me/r", {"runs/a.pth": A, "about.json": SMALL})
        fetch("hf://me/r/runs/a.pth")
        (Path(place) / "home" / "mi_ml_gen" / "seen.json").unlink()  # as where the Hub's own client fetched it
        folders = [Path(place), *(path for path in Path(place).rglob("*") if path.is_dir())]
        for path in Path(place).rglob("*"):
            if path.is_file():
                path.chmod(0o444)
        for folder in folders:
            folder.chmod(0o555)
        yield Path(place) / "home"
        for folder in folders:
            folder.chmod(0o755)


def test_a_shared_cache_that_may_only_be_read_serves_what_is_in_it(shared_home, repo, tmp_path, monkeypatch):
    path = as_reader(lambda: local_path("hf://me/r/runs/a.pth"))
    assert path.startswith(str(shared_home)) and Path(path).read_bytes() == A
    assert "cannot be written; set HF_HOME" in as_reader(lambda: fetch("hf://me/r/about.json"))
    repo.add("me/r", {"runs/a.pth": A, "new.json": SMALL})  # another commit, the same file
    assert as_reader(lambda: fetch("hf://me/r/runs/a.pth")) == path
    with tempfile.TemporaryDirectory() as own:
        os.chmod(own, 0o777)
        there = as_reader(lambda: fetch("hf://me/r/about.json", local_dir=own))
        assert there == f"{own}/about.json" and Path(there).read_bytes() == SMALL
    set_offline(monkeypatch)
    assert as_reader(lambda: fetch("hf://me/r/runs/a.pth")) == path


def test_without_a_home_folder_there_is_one_line_and_nothing_is_written(repo, tmp_path, monkeypatch, capsys):
    def nobody(_: object) -> None:
        raise KeyError("no such user")

    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "MI_ML_GEN_CACHE", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(constants, "HF_HOME", "~/.cache/huggingface")  # as the client has it then
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "~/.cache/huggingface/hub")
    before = sorted(tmp_path.rglob("*"))
    for reference in ("hf://me/r/runs/a.pth", f"{repo.endpoint}/web/a.bin"):
        with pytest.raises(NoHome, match="set HF_HOME to a folder"):
            fetch(reference)
    assert "bigbigan" in catalogue.to_text(catalogue.catalogue(online=False).entries)
    assert sorted(tmp_path.rglob("*")) == before
    assert fetch("hf://me/r/runs/a.pth", local_dir=tmp_path / "own").read_bytes() == A


def test_a_disk_without_locks_serves_addresses_and_folders(repo, tmp_path, monkeypatch, caplog):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    monkeypatch.setattr(locks, "_warned", set())
    assert fetch("hf://me/r/runs/a.pth", local_dir=tmp_path / "own").read_bytes() == A
    assert caplog.text.count("has no file locks") == 1
    if IS_OLD_CLIENT:  # it has locks of another kind to fall back on
        assert fetch("hf://me/r/runs/a.pth").read_bytes() == A
        return
    with pytest.raises(EnvironmentFault, match="set HF_HOME to a folder on another disk"):
        fetch("hf://me/r/runs/a.pth")


@pytest.mark.parametrize("name", ["%2e%2e", "..", ".", "a%2F..", "a/", "%2e%2e%5C%2e%2e"])
def test_the_name_of_an_address_stays_inside_its_folder(name, tmp_path):
    target = tmp_path / WebFile(f"https://host/x/{name}").name
    assert target.resolve().parent == tmp_path and target != tmp_path


@pytest.mark.parametrize("path", ["../../out.pth", "/out.pth", "a/../../out.pth"])
def test_a_listing_cannot_lead_out_of_the_folder(repo, tmp_path, monkeypatch, path):
    listed = {path: weights.Listed(path, 1, None)}
    monkeypatch.setattr(weights, "list_files", lambda *_, **__: listed)
    for get in (lambda: fetch("hf://me/r/*out.pth", local_dir=tmp_path / "a" / "b"),
                lambda: fetch_folder("hf://me/r", local_dir=tmp_path / "a" / "b")):  # fmt: skip
        with pytest.raises(UsageError, match="is not a path inside a repository"):
            get()
    assert not list(tmp_path.rglob("*out.pth"))


EIGHT = """
import os, sys
import huggingface_hub.file_download  # once, not in each of the eight
from mi_ml_gen.hub import fetching as hub

def fetch():
    paths = [str(hub.fetch(reference)) for reference in sys.argv[1:]]
    os.write(1, (" ".join(paths) + chr(10)).encode())

children = []
for _ in range(8):
    if (child := os.fork()) == 0:
        try:
            fetch()
        finally:
            os._exit(1 if sys.exc_info()[0] else 0)
    children.append(child)
sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""


def test_eight_processes_fetch_each_file_once(repo, tmp_path):
    repo.web["w.pth"] = B
    for name in ("/cdn/", "/web/"):
        repo.faults.append(Fault(name, pause_s=0.05, piece=5000))  # long enough for all to want it
    command = [sys.executable, "-c", EIGHT, "hf://me/r/runs/a.pth", f"{repo.endpoint}/web/w.pth"]
    environment = {**os.environ, **repo.environment(tmp_path / "home", HF_HUB_DOWNLOAD_TIMEOUT="60")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 8 and len(set(lines)) == 1
    path, web = lines[0].split()
    assert Path(path).read_bytes() == A and Path(web).read_bytes() == B
    assert repo.count("/cdn/", "GET") == repo.count("/web/", "GET") == 1
    assert leftovers(tmp_path) == []


# --- the table


def test_the_tables_hash_is_held_against_the_hub_before_anything_comes(repo, table, capsys):
    table(artifact("hf://me/r/runs/a.pth", sha256=hashlib.sha256(B).hexdigest(), size_bytes=len(B)))
    with pytest.raises(EnvironmentFault, match=r"on the Hub, not [0-9a-f]{64} of the table of known .*; do not use it"):
        fetch("known")
    assert gets(repo) == 0
    table(artifact("hf://me/r/runs/a.pth", sha256=hashlib.sha256(A).hexdigest(), size_bytes=len(A)))
    assert fetch("known").read_bytes() == A
    assert "fetching known, hf://me/r/runs/a.pth (50.0 kB); licence: L-1" in capsys.readouterr().err
    repo.add("me/r", {"runs/a.pth": B}, branch="v1")
    assert fetch("known", revision="v1").read_bytes() == B  # another revision is another file


def test_a_hash_is_recorded_at_first_sight(repo, table):
    table(artifact("hf://me/r/runs/a.pth"))
    assert fetch("known").read_bytes() == A
    repo.add("me/r", {"runs/a.pth": B})
    with pytest.raises(EnvironmentFault, match=r"not [0-9a-f]{64} of the record of .*accept it with --accept-change"):
        fetch("known")
    assert fetch("hf://me/r/runs/a.pth").read_bytes() == B  # a branch may move
    assert fetch("known", accept_change=True).read_bytes() == B
    assert fetch("known").read_bytes() == B


def test_a_small_file_of_the_table_is_recorded_too(repo, table):
    table(artifact("hf://me/r/about.json"))
    assert fetch("known").read_bytes() == SMALL
    repo.add("me/r", {"about.json": SMALL[::-1]})  # its listing has no SHA-256: the content tells
    with pytest.raises(EnvironmentFault, match="of the record of .*nothing was kept"):
        fetch("known")


def test_files_of_addresses(repo, table, capsys, caplog, monkeypatch):
    repo.web["w.pth"] = A
    url = f"{repo.endpoint}/web/w.pth"
    table(artifact(url))
    path = fetch("known")
    assert path.read_bytes() == A and path.name == "w.pth"
    assert "fetching known, http" in capsys.readouterr().err
    repo.web["w.pth"] = B
    assert fetch("known") == path and path.read_bytes() == A and gets(repo) == 1  # what is here is not asked for
    path.write_bytes(A[:-1])
    with pytest.raises(EnvironmentFault, match="of the record of .*nothing was kept"):  # rotten here, changed there
        fetch("known")
    assert "it is fetched again" in caplog.text and not path.exists()
    assert fetch("known", accept_change=True).read_bytes() == B
    set_offline(monkeypatch)
    assert fetch("known").read_bytes() == B
    path.write_bytes(A)
    with pytest.raises(CorruptCheckpointError, match="HF_HUB_OFFLINE is set"):
        fetch("known")


def test_second_sources(repo, table):
    repo.web["w.pth"] = A
    missing, there = f"{repo.endpoint}/web/gone.pth", f"{repo.endpoint}/web/w.pth"
    table(artifact(missing, also=[there], by_hand="ask the authors"))
    assert fetch("known").read_bytes() == A
    del repo.web["w.pth"]
    table(artifact(missing, also=[there], by_hand="ask the authors", name="other"))
    with pytest.raises(EnvironmentFault) as refused:
        fetch("other")
    assert str(refused.value).count("HTTP 404") == 2 and str(refused.value).endswith("; by hand: ask the authors")


def test_a_pattern_means_one_file_and_is_remembered(repo, table, monkeypatch):
    table(artifact("hf://me/r/runs/*enc*/last.ckpt"))
    with pytest.raises(EnvironmentFault, match="one file should match, found none"):
        fetch("known")
    repo.add("me/r", {"runs/x_enc_1/last.ckpt": A})
    assert fetch("known").read_bytes() == A
    with monkeypatch.context() as context:
        set_offline(context)
        assert fetch("known").read_bytes() == A
    repo.add("me/r", {"runs/y_enc_2/last.ckpt": B})
    with pytest.raises(EnvironmentFault, match="found hf://me/r/runs/x_enc_1/last.ckpt, hf://me/r/runs/y_enc_2/last"):
        fetch("known")


def test_a_broken_record_is_named(repo, tmp_path):
    (tmp_path / "home/mi_ml_gen").mkdir(parents=True)
    (tmp_path / "home/mi_ml_gen/seen.json").write_text('{"a": ')
    with pytest.raises(CorruptCheckpointError, match=r"seen.json: cannot be read .*; move it away to start again"):
        fetch("hf://me/r/runs/a.pth")


# --- path flags


def test_a_path_is_a_path(repo, tmp_path, table, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table(artifact("hf://me/r/runs/a.pth"))
    assert local_path("absent/file.pth") == Path("absent/file.pth")
    assert local_path("known").read_bytes() == A
    (tmp_path / "known").write_bytes(SMALL)
    assert local_path("known") == Path("known") == local_path(Path("known"))  # what is here goes first
    (tmp_path / "folder").mkdir()
    assert local_path("folder") == Path("folder")
    with pytest.raises(UsageError, match="^knwon: no such file, and no known artifact; nearest known artifact: known$"):
        local_path("knwon")
    with pytest.raises(UsageError, match="^no\0pe: no such file, and no known artifact"):
        local_path("no\0pe")


def test_a_path_costs_no_import(tmp_path):
    (tmp_path / "file.pth").write_bytes(A)
    code = (
        "import sys; from mi_ml_gen.hub import fetching as hub; hub.local_path(sys.argv[1]); hub.local_path('x/y');"
        "sys.exit(bool({'torch', 'huggingface_hub', 'urllib.request', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "file.pth"], cwd=ROOT).returncode == 0


def test_the_loaders_take_references(repo, tmp_path, capsys):
    generator = make_small_generator()
    save_generator(tmp_path / "g.safetensors", generator, "bigbigan")
    walker = save_walker(tmp_path / "w", NonlinearWalker.on(generator, Chunks(0, 1)))
    published = GOLDEN / "fixtures" / "walker_bigbigan_1_6.pth"
    files = [*tmp_path.glob("[gw].*"), published]
    repo.add("me/models", {path.name: path.read_bytes() for path in files})
    assert load_generator("bigbigan", "hf://me/models/g.safetensors").config() == generator.config()
    fetched = load_walker("hf://me/models/w.safetensors")
    assert fetched.config() == load_walker(walker).config()
    assert {"w.json", "w.safetensors.sha256"} <= set(os.listdir(local_path("hf://me/models/w.safetensors").parent))
    assert load_walker(Path(f"hf://me/models/{published.name}")).chunks == (Chunks(1, 6),)
    grouped = load_groups({"0_1": "hf://me/models/w.safetensors", "1_2": [0, 1, 2]}, generator)
    assert grouped.chunks == (Chunks(0, 1), Chunks(1, 2))
    with pytest.raises(UsageError, match="walker-bigbigan-1_7: no such file, and no known artifact; nearest known art"):
        load_walker("walker-bigbigan-1_7")


def test_a_hostile_file_is_refused_by_the_reader(repo):
    repo.add("me/models", {"evil.pth": b"\x80\x04cos\nsystem\nX\x04\x00\x00\x00trueR."})
    with pytest.raises(CorruptCheckpointError.__mro__[1]):
        load_walker("hf://me/models/evil.pth")
