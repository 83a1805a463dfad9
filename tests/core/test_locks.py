"""Disks and systems without file locks, users without a home folder."""

from __future__ import annotations

import errno
import logging
import os
import pwd

import pytest

from mi_ml_gen.core import cli, locks
from mi_ml_gen.core.errors import EnvironmentFault
from mi_ml_gen.core.files import NoHome, user_path
from mi_ml_gen.core.runs import RunFolder


class Locks:
    """A stand-in for fcntl whose locks fail."""

    LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN = 2, 4, 1, 8

    def __init__(self, code: int) -> None:
        self.code = code

    def flock(self, *_: object) -> None:
        raise OSError(self.code, os.strerror(self.code))

    lockf = flock


@pytest.mark.parametrize("code", ["ENOLCK", "ENOSYS", "EOPNOTSUPP", "EINVAL"])
def test_a_disk_without_locks_is_worked_on_with_one_warning(tmp_path, monkeypatch, caplog, code):
    monkeypatch.setattr(locks, "fcntl", Locks(getattr(errno, code)))
    monkeypatch.setattr(locks, "_warned", set())
    for name in "ab":
        with caplog.at_level(logging.WARNING), RunFolder.open(tmp_path / name, {"x": 1}) as run:
            run.log(1, loss=2.0)
            assert run.metrics() == [{"step": 1, "loss": 2.0}]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "has no file locks" in said[0] and str(tmp_path / "a") in said[0]
    with open(tmp_path / "file", "wb") as file:
        assert locks.without_locks(file) == os.strerror(getattr(errno, code))


@pytest.mark.parametrize("code", [errno.EIO, errno.EINTR])
def test_other_faults_of_the_disk_are_faults(tmp_path, monkeypatch, code):
    monkeypatch.setattr(locks, "fcntl", Locks(code))
    with pytest.raises(EnvironmentFault, match="cannot write"):
        RunFolder.open(tmp_path / "run", {})


def test_a_lock_keeps_others_out_or_waiting(tmp_path):
    with open(tmp_path / "lock", "ab") as first, open(tmp_path / "lock", "ab") as second:
        assert locks.take(first, wait=False) and not locks.take(second, wait=False)
        assert locks.without_locks(second) is None
    with open(tmp_path / "lock", "ab") as third:
        assert locks.take(third, wait=True)


def test_a_system_without_fcntl_is_named_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, "fcntl", None)
    with pytest.raises(EnvironmentFault, match=r"Linux and macOS, and on Windows inside WSL$"):
        RunFolder.open(tmp_path / "run", {})
    assert not list(tmp_path.iterdir())
    with pytest.raises(EnvironmentFault, match="no module fcntl"):
        cli.Parser(prog="p").parse_args([])
    cli.Parser(prog="p", works_anywhere=True).parse_args([])
    with pytest.raises(SystemExit) as request:
        cli.Parser(prog="p").parse_args(["--help"])
    assert request.value.code == 0 and "usage: p" in capsys.readouterr().out


def nobody(_: object) -> None:
    raise KeyError("no such user")


def test_a_user_without_a_home_folder_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x") == tmp_path / "x" and user_path("x/~") == user_path("x") / "~"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for path in ("~/x", "~nobody-of-this-name/x"):
        with pytest.raises(NoHome, match=rf"^{path}: no home folder is known for it here; set HOME"):
            user_path(path)
    assert str(user_path("x")) == "x"
