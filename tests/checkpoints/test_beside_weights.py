"""Harmless objects beside weights do not make a file unsafe: they are passed over, and none of them is ever made."""

from __future__ import annotations

import collections
import datetime
import decimal
import functools
import pathlib
import pickle
import re
import sys
import types
import typing
import uuid

import numpy as np
import pytest
import torch
from torch import nn

from mi_ml_gen.checkpoints.reading import read_checkpoint
from mi_ml_gen.checkpoints.values import Record
from mi_ml_gen.core.errors import CorruptCheckpointError, UnsafeCheckpointError
from tests import audited, hostile

OBJECTS = {
    "counter": collections.Counter({80: 1, 120: 1}),
    "counter of texts": collections.Counter("abca"),
    "counter of fractions of an epoch": collections.Counter([0.5, 1.5]),
    "defaultdict": collections.defaultdict(list, a=[1], b=[]),
    "defaultdict of defaultdicts": collections.defaultdict(dict, a=collections.defaultdict(int, x=3)),
    "deque": collections.deque([1.0, 2.0], maxlen=5),
    "path": pathlib.Path("/runs/a b"),
    "pure path": pathlib.PureWindowsPath("C:/runs"),
    "paths as keys": {pathlib.PurePosixPath("a"): 1},
    "date": datetime.date(2024, 2, 29),
    "time": datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.timezone.utc),
    "duration": datetime.timedelta(hours=3),
    "slice": slice(1, None, 2),
    "range": range(3),
    "complex": 1 + 2j,
    "bytearray": bytearray(b"abc"),
    "frozenset": frozenset({1, "a"}),
    "decimal": decimal.Decimal("0.1"),
    "uuid": uuid.UUID(int=7),
    "namespace": types.SimpleNamespace(lr=0.1),
    "pattern": re.compile("a+", re.IGNORECASE),
    "partial": functools.partial(nn.BatchNorm2d, eps=1e-3),
    "types": [int, str, dict, np.float32, typing.Any],
    "function of torch": nn.functional.relu,
    "tuples as keys": {(0, "lr"): 0.1, (): 1, 0.5: 2},
    "layout": torch.strided,
    "random state of numpy": np.random.RandomState(0).get_state(),
    "generators of numpy": [np.random.default_rng(0), np.random.RandomState(0)],
    "texts of numpy": np.array(["cat", "horse"]),
    "dates of numpy": np.array(["2024-02-29"], "datetime64[D]"),
    "complex numbers of numpy": [np.zeros(2, np.complex64), np.complex128(1j)],
    "random state of torch": torch.get_rng_state(),
    "optimiser": torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1),
    "schedule": torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1), [3]),
    "state of a schedule": torch.optim.lr_scheduler.MultiStepLR(
        torch.optim.Adam([nn.Parameter(torch.zeros(2))]), [3, 3, 7]
    ).state_dict(),
    "scaler": torch.amp.GradScaler("cpu"),
}


def _assert_weights(found):
    assert found.keys() == {"before", "object", "weights"}
    assert torch.equal(found["before"], torch.arange(3.0)) and torch.equal(found["weights"], torch.arange(4.0))


def _around(value):
    return {"before": torch.arange(3.0), "object": value, "weights": torch.arange(4.0)}


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("zip_format, protocol", [(True, 2), (True, 4), (False, 2)])
def test_the_weights_beside_an_object_are_read(tmp_path, name, zip_format, protocol):
    path = tmp_path / "last.ckpt"
    options = {"_use_new_zipfile_serialization": zip_format, "pickle_protocol": protocol}
    torch.save(_around(OBJECTS[name]), path, **options)
    _assert_weights(read_checkpoint(path))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_same_in_bare_pickles(tmp_path, protocol):
    arrays = {"before": np.arange(3.0, dtype="f4"), "weights": np.arange(4.0, dtype="f4")}
    plain = {key: value for key, value in OBJECTS.items() if "torch" not in key and not key.startswith(("opt", "sch"))}
    for name, value in plain.items():
        path = tmp_path / f"{name}.pkl"
        path.write_bytes(pickle.dumps({**arrays, "object": value}, protocol))
        _assert_weights(read_checkpoint(path))


def test_containers_keep_their_entries_and_other_objects_what_the_file_said(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save(OBJECTS, path)
    found = read_checkpoint(path)
    assert found["counter"] == {80: 1, 120: 1} and found["deque"] == [1.0, 2.0]
    assert found["defaultdict"] == {"a": [1], "b": []} and found["frozenset"] == {1, "a"}
    assert found["tuples as keys"] == OBJECTS["tuples as keys"]
    assert isinstance(found["path"], Record) and found["path"].state["args"][-1] == "a b"
    assert found["slice"].state == {"args": (1, None, 2)}
    assert found["namespace"].state == {"args": (), "state": {"lr": 0.1}}
    assert found["optimiser"].state["state"]["param_groups"][0]["lr"] == 0.1
    assert found["state of a schedule"]["milestones"] == {3: 2, 7: 1}


@pytest.mark.parametrize(
    "module, name",
    [
        ("easydict", "EasyDict"),
        ("yacs.config", "CfgNode"),
        ("pytorch_lightning.utilities.parsing", "AttributeDict"),
        ("lightning_fabric.utilities.data", "AttributeDict"),
    ],
)
def test_dicts_of_settings(tmp_path, monkeypatch, module, name):
    parts = module.split(".")
    for i in range(len(parts)):
        place = ".".join(parts[: i + 1])
        monkeypatch.setitem(sys.modules, place, types.ModuleType(place))
    cls = type(name, (dict,), {"__module__": module, "__qualname__": name})
    monkeypatch.setattr(sys.modules[module], name, cls, raising=False)
    torch.save(_around(cls(lr=0.1, inner=cls(depth=18))), tmp_path / "last.ckpt")
    found = read_checkpoint(tmp_path / "last.ckpt")
    assert found["object"] == {"lr": 0.1, "inner": {"depth": 18}}


def test_reading_them_does_nothing(tmp_path):
    """Neither files, nor processes, nor imports: the same watch as over hostile files."""
    paths = []
    for number, value in enumerate(OBJECTS.values()):
        paths.append(tmp_path / f"{number}.ckpt")
        torch.save(_around(value), paths[-1])
    reader = "mi_ml_gen.checkpoints.reading:read_checkpoint"
    for outcome in audited.read_audited(paths, [reader], [paths[0]]):
        assert (outcome.error, outcome.events) == ("", [])


def _hostile():
    h = hostile
    command = h.text("touch /tmp/x")
    path = h.call(h.name("pathlib", "PosixPath"), h.text("a"))
    return {
        "factory": h.call(h.name("collections", "defaultdict"), h.name("os", "system")),
        "partial": h.call(h.name("functools", "partial"), h.name("os", "system"), command),
        "argument": h.call(h.name("pathlib", "PosixPath"), h.call(h.name("os", "system"), command)),
        "method": h.call(h.stack_name("pathlib", "Path.unlink"), command),
        "method of an optimiser": h.call(h.stack_name("torch.optim.sgd", "SGD.step.__globals__"), command),
        "call of an object": path + h.values(command) + b"R",
        "object of an object": path + h.values(command) + b"\x81",
        "call of a type": h.call(h.name("builtins", "type"), command, h.values(), b"}"),
        "call of a function of torch": h.call(h.name("torch.nn.functional", "relu"), command),
        "module beside the known ones": h.call(h.name("pathlib.os", "system"), command),
        "class of a program": h.name("__main__", "Settings") + b")\x81" + h.entries(a=b"N") + b"b",
    }


@pytest.mark.parametrize("name", _hostile())
@pytest.mark.parametrize("carrier", ["zip", "stream", "bare"])
def test_what_is_not_harmless_stays_unsafe(tmp_path, name, carrier):
    path = tmp_path / "hostile.ckpt"
    path.write_bytes(hostile.CARRIERS[carrier](hostile.entries(object=_hostile()[name])))
    with pytest.raises(UnsafeCheckpointError):
        read_checkpoint(path)


def _damaged():
    h = hostile
    path = h.call(h.name("pathlib", "PosixPath"), h.text("a"))
    return {
        "a second state": path + b"}b}b",
        "entries of a path": path + h.text("a") + b"Ns",
        "counter of a number": h.call(h.name("collections", "Counter"), h.whole(3)),
        "deque of a text": h.call(h.name("collections", "deque"), h.text("abc")),
        "factory that is a text": h.call(h.name("collections", "defaultdict"), h.text("list")),
        "an object made of no arguments": h.name("pathlib", "PosixPath") + b"N\x81",
        "tuples of tuples as a key": h.bare(b"})\x85Ns"),
        "a long tuple as a key": h.bare(b"}(" + b"N" * 100 + b"tNs"),
        "colliding tuples": b"}(" + b"".join(h.values(h.whole(i << 32)) + b"N" for i in range(25_000)) + b"u",
        "copies without end": b"]("
        + b"".join(map(h.whole, range(19_000)))
        + b"eq\x00"
        + (b"0" + h.name("collections", "deque") + b"h\x00\x85R") * 10_000,
        "an object that holds itself": path + b"q\x00" + h.entries(a=b"h\x00") + b"b",
    }


@pytest.mark.parametrize("name", _damaged())
def test_what_is_damaged_or_meant_to_exhaust(tmp_path, name):
    path = tmp_path / "damaged.ckpt"
    content = _damaged()[name]
    path.write_bytes(content if content.startswith(b"\x80") else hostile.bare(content))
    with pytest.raises(CorruptCheckpointError):
        read_checkpoint(path)
