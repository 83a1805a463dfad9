"""Checkpoints are read bit for bit, and nothing in them is ever run."""

from __future__ import annotations

import importlib.util
import io
import os
import struct
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from mi_ml_gen.checkpoints.reading import module_state_dict, read_checkpoint, read_state_dict
from mi_ml_gen.checkpoints.values import Record
from mi_ml_gen.core.errors import (
    CheckpointError,
    CorruptCheckpointError,
    EnvironmentFault,
    UnsafeCheckpointError,
    UsageError,
)
from mi_ml_gen.walkers.published import read_walker
from tests import audited, hostile

GOLDEN = Path(__file__).parents[1] / "golden"
WALKER = GOLDEN / "fixtures" / "walker_bigbigan_1_6.pth"
READERS = [
    "mi_ml_gen.checkpoints.reading:read_checkpoint",
    "mi_ml_gen.checkpoints.reading:read_state_dict",
    "mi_ml_gen.walkers.published:read_walker",
]


def _fill():
    spec = importlib.util.spec_from_file_location("golden_fill", GOLDEN / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.fill


FILL = _fill()


def _filled_walker(width, stem, prefix=""):
    """state dict of the golden walkers"""
    shapes = {f"walker.{i}.{leaf}": (width,) * n for i in (0, 2) for leaf, n in (("weight", 2), ("bias", 1))}
    return {key: torch.from_numpy(FILL(f"fixtures/{stem}/{prefix}{key}", shape)) for key, shape in shapes.items()}


@pytest.fixture
def save_module(monkeypatch, tmp_path):
    """Save a module as if its class stood in a module that is not there when the file is read."""

    def save(module_name, class_name, width, attributes, state, wrap=None, **options):
        cls = type(class_name, (nn.Module,), {"__module__": module_name, "__qualname__": class_name})
        with monkeypatch.context() as patch:
            parts = module_name.split(".")
            for i in range(len(parts)):
                place = ".".join(parts[: i + 1])
                if place != "__main__":
                    patch.setitem(sys.modules, place, types.ModuleType(place))
            patch.setattr(sys.modules[module_name], class_name, cls, raising=False)
            walker = cls()
            walker.walker = nn.Sequential(nn.Linear(width, width), nn.ReLU(True), nn.Linear(width, width))
            walker.load_state_dict(state)
            walker.__dict__.update(attributes)
            path = tmp_path / "walker.pth"
            torch.save({"nn_walker": wrap(walker) if wrap else walker}, path, **options)
        return path

    return save


# ----------------------------------------------------------------------------------------------------------
# What is read


def _assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key


def test_published_bigbigan_walker():
    walker = read_walker(WALKER)
    _assert_equal(walker.state, _filled_walker(100, "walker_bigbigan_1_6"))
    assert walker.class_name == "NonlinearWalker"
    assert walker.attributes == {
        "training": True,
        "g_type": "bigbigan",
        "z_chunk_dim": 20,
        "z_dim": 120,
        "w_chunk_dim": None,
        "start": 1,
        "stop": 6,
        "n_chunks": 5,
    }


@pytest.mark.parametrize("zip_format", [True, False])
def test_published_stylegan_walker(save_module, zip_format):
    attributes = {"g_type": "stylegan", "start": 4, "stop": 8, "z_dim": 512}
    state = _filled_walker(512, "walker_stylegan_4_8")
    path = save_module(
        "src.noise_maker.walkers",
        "NonlinearWalker",
        512,
        attributes,
        state,
        _use_new_zipfile_serialization=zip_format,
    )
    walker = read_walker(path)
    _assert_equal(walker.state, state)
    assert walker.attributes == {"training": True, **attributes}


def test_copgen_walker(save_module):
    state = _filled_walker(120, "copgen")

    def wrap(walker):
        wrapped = nn.DataParallel(walker)
        wrapped.device_ids, wrapped.output_device = [0, 1, 2, 3], 0
        wrapped.src_device_obj = torch.device("cuda", 0)
        return wrapped

    walker = read_walker(save_module("__main__", "NonlinearWalk", 120, {}, state, wrap))
    _assert_equal(walker.state, state)
    assert walker.class_name == "NonlinearWalk" and walker.attributes == {"training": True}


def _tensors():
    channels_last = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    shared = torch.randn(6, 6)
    return OrderedDict(
        conv=channels_last,
        transposed=torch.randn(3, 7).T,
        row=shared[2],
        shared=shared,
        empty=torch.empty(0, 3),
        scalar=torch.tensor(3.5),
        half=torch.randn(3).half(),
        brain=torch.randn(3).bfloat16(),
        double=torch.randn(3).double(),
        flags=torch.tensor([True, False, True]),
        **{str(dtype)[6:]: torch.arange(5).to(dtype) for dtype in (torch.int64, torch.int32, torch.int16)},
        **{str(dtype)[6:]: torch.arange(5).to(dtype) for dtype in (torch.int8, torch.uint8)},
        parameter=nn.Parameter(torch.randn(2, 2)),
    )


def _write(path, value, carrier):
    if carrier == "safetensors":
        content = safetensors.torch.save({key: tensor.contiguous().clone() for key, tensor in value.items()})
        path.write_bytes(content)
    else:
        torch.save(value, path, _use_new_zipfile_serialization=carrier == "zip")
    return path


@pytest.mark.parametrize("carrier", ["zip", "stream", "safetensors"])
@pytest.mark.parametrize("reader", [read_state_dict, read_checkpoint])
def test_state_dict(tmp_path, carrier, reader):
    state = _tensors()
    found = reader(_write(tmp_path / "state.pth", state, carrier))
    _assert_equal(found, {key: tensor.detach() for key, tensor in state.items()})
    assert all(type(tensor) is torch.Tensor and not tensor.requires_grad for tensor in found.values())


def test_state_dict_equals_torch_load(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    path = _write(tmp_path / "model.pth", model.state_dict(), "zip")
    _assert_equal(read_state_dict(path), torch.load(path, weights_only=True))


def test_storages_are_read_once(tmp_path):
    shared = torch.randn(1000)
    path = _write(tmp_path / "shared.pth", {"a": shared, "b": shared[10:20]}, "zip")
    found = read_checkpoint(path)
    assert found["a"].untyped_storage().data_ptr() == found["b"].untyped_storage().data_ptr()


def test_training_checkpoint(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimiser.step()
    value = {
        "epoch": 3,
        "state_dict": model.state_dict(),
        "optimizer": optimiser.state_dict(),
        "best": np.float64(0.25),
        "curve": np.arange(6.0).reshape(2, 3),
        "size": torch.Size((1, 2)),
        "names": ("a", b"b", None, -1.5, True, 2**70, {"c"}),
        "device": torch.device("cuda:1"),
        "dtype": torch.float16,
        "model": model,
    }
    path = tmp_path / "last.ckpt"
    torch.save(value, path)
    found = read_checkpoint(path)
    _assert_equal(found["state_dict"], model.state_dict())
    assert found["optimizer"]["param_groups"] == optimiser.state_dict()["param_groups"]
    _assert_equal(found["optimizer"]["state"][0], optimiser.state_dict()["state"][0])
    assert (found["epoch"], found["best"], found["size"]) == (3, 0.25, (1, 2))
    assert found["names"] == value["names"]
    assert (found["device"], found["dtype"]) == ("cuda:1", torch.float16)
    assert np.array_equal(found["curve"].numpy(), value["curve"])
    assert isinstance(found["model"], Record)
    assert found["model"].class_name == "torch.nn.modules.container.Sequential"
    _assert_equal(module_state_dict(found["model"]), model.state_dict())
    assert read_checkpoint(path, keys=("epoch", "absent")) == {"epoch": 3}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_numpy_arrays_of_every_protocol(tmp_path, protocol):
    import pickle

    arrays = {
        "c": np.random.default_rng(0).normal(size=(3, 4)).astype("f4"),
        "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "big": np.arange(5, dtype=">i4"),
        "flags": np.array([True, False]),
        "none": np.empty((0, 3), "f8"),
        "scalar": np.float32(0.1),
    }
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps(arrays, protocol))
    found = read_checkpoint(path)
    for key, array in arrays.items():
        assert np.array_equal(np.asarray(found[key]), array), key


def test_a_safetensors_file_that_is_not_what_its_hash_says(tmp_path):
    path = _write(tmp_path / "state.safetensors", {"a": torch.zeros(8)}, "safetensors")
    (tmp_path / "state.safetensors.sha256").write_text("0" * 64 + "  state.safetensors\n")
    with pytest.raises(CorruptCheckpointError, match="state.safetensors"):
        read_state_dict(path)


# ----------------------------------------------------------------------------------------------------------
# What is refused


def _archive_end(n_members, size=0, offset=0):
    return struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, min(n_members, 65535), min(n_members, 65535), size, offset, 0)


def _zip64_of(n_members):
    end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, n_members, n_members, 46 * n_members, 0)
    return b"PK\x03\x04" + bytes(60) + end + struct.pack("<4sLQL", b"PK\x06\x07", 0, 64, 1) + _archive_end(65535)


def _overlapping_zip():
    """Two members that quote the same bytes."""
    content = hostile.zipped(hostile.entries(a=hostile.tensor(hostile.stored("0"), (4,), (1,))), {"0": bytes(16)})
    directory = content.rindex(b"PK\x01\x02")
    entry = bytearray(content[directory:])
    entry_size = 46 + struct.unpack_from("<H", entry, 28)[0]
    entry[46 + 8 : 46 + 9] = b"x"  # another name, the same offset
    end = content.rindex(b"PK\x05\x06")
    fields = list(struct.unpack("<4s4H2LH", content[end:]))
    fields[3] = fields[4] = fields[3] + 1
    fields[5] += entry_size
    return content[:end] + bytes(entry[:entry_size]) + struct.pack("<4s4H2LH", *fields)


def _tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    return file.getvalue()


def _safetensors(header, data=b"", n_header=None):
    header = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(header) if n_header is None else n_header) + header + data


def _nested_modules(levels):
    sequential = hostile.name("torch.nn.modules.container", "Sequential")
    value = b"N"
    for _ in range(levels):
        value = hostile.module(sequential, children=hostile.entries(a=value))
    return value


def _square(levels):
    """A module of `levels` levels, each holding the one below twice: 2**levels paths in few bytes."""
    linear = hostile.name("torch.nn.modules.container", "Sequential")
    value = hostile.module(linear)
    for level in range(levels):
        index = bytes([level])
        value = (
            value
            + b"q"
            + index
            + b"0"
            + hostile.module(linear, children=hostile.entries(**{"a": b"h" + index, "b": b"h" + index}))
        )
    return value


def _broken(tmp_path):
    """Files that ask for nothing forbidden, but are damaged, lie about sizes, or are meant to exhaust."""
    h = hostile
    data = {"0": bytes(16)}

    def of_tensor(*arguments, **options):
        return h.zipped(h.entries(a=h.tensor(*arguments, **options)), data)

    good_zip = of_tensor(h.stored(), (2, 2), (2, 1))
    good_stream = h.stream(h.entries(a=h.tensor(h.stored(), (2, 2), (2, 1))), data)
    good_nested = h.stream(h.stored(), data)
    sizes = {
        "shape beyond its storage": of_tensor(h.stored(), (3, 2), (2, 1)),
        "offset beyond its storage": of_tensor(h.stored(), (2,), (1,), offset=3),
        "stride beyond its storage": of_tensor(h.stored(), (2, 2), (1 << 40, 1)),
        "negative stride": of_tensor(h.stored(), (2,), (-1,), offset=1),
        "negative size": of_tensor(h.stored(), (-2,), (1,)),
        "negative offset": of_tensor(h.stored(), (2,), (1,), offset=-1),
        "one element repeated": of_tensor(h.stored(), (1 << 30,), (0,)),
        "overflowing shape": of_tensor(h.stored(), (1 << 32, 1 << 32), (0, 0)),
        "empty but overflowing shape": of_tensor(h.stored(), (0, 1 << 61), (1, 1)),
        "many axes": of_tensor(h.stored(), (1,) * 70, (1,) * 70),
        "axes without strides": of_tensor(h.stored(), (2, 2), (1,)),
        "storage that lies, zip": of_tensor(h.stored(n_elements=1 << 40), (4,), (1,)),
        "storage that lies, stream": h.stream(h.entries(a=h.tensor(h.stored("0", 1 << 40), (4,), (1,))), data),
        "storage of no size": of_tensor(h.stored(n_elements=-1), (4,), (1,)),
        "storage with two types": h.zipped(
            h.entries(a=h.tensor(h.stored(), (4,), (1,)), b=h.tensor(h.stored(type_name="IntStorage"), (4,), (1,))),
            data,
        ),
        "storage missing": of_tensor(h.stored("7"), (4,), (1,)),
        "storage missing, stream": h.stream(h.entries(a=h.tensor(h.stored(), (2,), (1,)))),
        "storage nested twice": h.bare(h.tensor(h.nested(h.stream(h.nested(good_nested))), (4,), (1,))),
        "storage nested, cut off": h.bare(h.tensor(h.nested(good_nested[:-1]), (4,), (1,))),
        "storage nested, zip": h.bare(h.tensor(h.nested(good_zip), (4,), (1,))),
        "storage nested, not a storage": h.bare(h.tensor(h.nested(h.stream(b"N")), (4,), (1,))),
        "views that add up": h.zipped(
            h.entries(a=b"](" + h.tensor(h.stored("0", 1 << 16), (1 << 16,), (1,)) * 200 + b"e"),
            {"0": bytes(1 << 18)},
        ),
        "array without its bytes": h.bare(
            h.call(
                h.name("numpy.core.multiarray", "_reconstruct"),
                h.name("numpy", "ndarray"),
                h.values(h.whole(0)),
                h.content(b"b"),
            )
            + h.values(
                h.whole(1),
                h.values(h.whole(1 << 40)),
                h.call(h.name("numpy", "dtype"), h.text("f4")),
                b"\x89",
                h.content(b"1234"),
            )
            + b"b"
        ),
    }
    containers = {
        "empty": b"",
        "text": b"hello world\n",
        "web page": b"<!DOCTYPE html><html></html>",
        "git lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        "gzip": b"\x1f\x8b\x08\x00" + bytes(40),
        "tar": _tar(),
        "zip, deflated": h.zipped(h.entries(a=b"N"), method=zipfile.ZIP_DEFLATED),
        "zip, bomb": h.zipped(
            h.tensor(h.stored("0", 1 << 24), (4,), (1,)), {"0": bytes(1 << 26)}, zipfile.ZIP_DEFLATED
        ),
        "zip, lzma": h.zipped(h.entries(a=b"N"), method=zipfile.ZIP_LZMA),
        "zip without a pickle": h.zipped(b"N").replace(b"data.pkl", b"data.txt"),
        "zip, a million members announced": _zip64_of(1_000_000),
        "zip, 65535 members announced": b"PK\x03\x04" + bytes(60) + _archive_end(60_000, 60_000 * 46),
        "zip, overlapping": _overlapping_zip(),
        "zip, wrong checksum": good_zip.replace(bytes(16), b"\1" + bytes(15)),
        "zip, bytes behind": good_zip + b"x",
        "zip, big-endian": h.zipped(h.entries(a=b"N"), more={"archive/byteorder": b"big"}),
        "zip, code": h.zipped(h.entries(a=b"N"), more={"archive/code/__torch__.py": b"import os"}),
        "zip, two pickles": h.zipped(b"N", more={"other/data.pkl": h.bare(b"N")}),
        "zip, cut off": good_zip[: len(good_zip) // 2],
        "stream, cut off": good_stream[:-1],
        "stream, bytes behind": good_stream + b"x",
        "stream, unknown version": good_stream.replace(h.VERSION, b"\x80\x02M\xea\x03."),
        "stream, big-endian": good_stream.replace(b"little_endian\x88", b"little_endian\x89"),
        "safetensors, long header": _safetensors("{}", n_header=1 << 31),
        "safetensors, a header beyond the file": _safetensors("{}", n_header=1 << 20),
        "safetensors, not json": _safetensors("{,"),
        "safetensors, deep": _safetensors("{" + '"a":{' * 30_000),
        "safetensors, outside": _safetensors('{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', bytes(8)),
        "safetensors, lying shape": _safetensors(
            '{"a":{"dtype":"F32","shape":[4000000000,4000000000],"data_offsets":[0,8]}}', bytes(8)
        ),
        "safetensors, a million entries": _safetensors(
            "{" + ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(10**6)) + "}"
        ),
    }
    sequential = h.name("torch.nn.modules.container", "Sequential")
    opcodes = {
        "no end": b"\x80\x04N",
        "protocol 6": b"\x80\x06N.",
        "unknown instruction": b"\x80\x04\xff.",
        "empty stack": b"\x80\x04.",
        "values left over": b"\x80\x04NN.",
        "mark left over": b"\x80\x04N(.",
        "mark missing": b"\x80\x04Nt.",
        "memo never written": b"\x80\x04h\x07.",
        "frame beyond the file": b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
        "bytes beyond the file": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
        "text beyond the file": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.",
        "text that is not UTF-8": b"\x80\x04X\x02\x00\x00\x00\xff\xfe.",
        "number of 2 GB": b"\x80\x04\x8b\xff\xff\xff\x7f.",
        "number of many digits": b"I" + b"9" * 100_000 + b"\n.",
        "line without end": b"c" + b"a" * 1_000_000,
        "list as a key": h.bare(b"}" + b"]" + b"Ns"),
        "nested tuples as a key": h.bare(b"}N" + b"\x85" * 200_000 + b"Ns"),
        "odd number of entries": h.bare(b"}(Nu"),
        "entry of a list": h.bare(b"]NNs"),
        "item of a dict": h.bare(b"}Na"),
        "entry of a record": h.bare(sequential + b")\x81NNs"),
        "second state": h.bare(sequential + b")\x81" + h.entries(a=b"N") + b"b" + h.entries(b=b"N") + b"b"),
        "a million instructions": h.bare(b"N0" * 500_000 + b"N"),
        "a million lists": h.bare(b"](" + b"]" * 1_000_000 + b"e"),
        "a million marks": b"\x80\x04" + b"(" * 1_000_000,
        "deep lists": h.bare(b"]" * 100_000 + b"a" * 99_999),
        "deep tuples": h.bare(b")" + b"\x85" * 100_000),
        "deep dicts": h.bare((b"}" + h.text("a")) * 20_000 + b"N" + b"s" * 20_000),
        "deep modules": h.walker_file(_nested_modules(1000)),
        "list that holds itself": h.bare(b"]q\x00h\x00a"),
        "dict that holds itself": h.bare(b"}q\x00" + h.text("a") + b"h\x00s"),
        "module that holds itself": h.walker_file(
            sequential
            + b")\x81q\x00"
            + h.entries(_parameters=b"}", _buffers=b"}", _modules=h.entries(a=b"h\x00"))
            + b"b"
        ),
        "quadratic sets": h.bare(
            b"]("
            + b"".join(map(h.whole, range(19_000)))
            + b"eq\x00"
            + (b"0" + h.name("builtins", "set") + b"h\x00\x85R") * 10_000
        ),
        "colliding keys": h.bare(b"}(" + b"".join(h.whole(i << 32) + b"N" for i in range(60_000)) + b"u"),
        "a name where a value should be": h.bare(h.entries(a=h.name("torch.nn.modules.linear", "Linear"))),
        "a storage where a value should be": h.zipped(h.entries(a=h.stored()), data),
        "bytes behind the pickle": h.bare(b"N") + b"N.",
    }
    return {**sizes, **containers, **opcodes}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What every reader did with every hostile and broken file, all in one child process."""
    folder = tmp_path_factory.mktemp("hostile")
    canary = folder / "canary"
    files = {}
    for carrier, wrap in hostile.CARRIERS.items():
        for what, value in hostile.payloads(canary).items():
            files[f"unsafe {carrier} {what}"] = wrap(value)
    for what, content in _broken(folder).items():
        files[f"broken {what}"] = content
    paths = []
    for number, (what, content) in enumerate(files.items()):
        paths.append(folder / f"{number:03d} {what.replace('/', ' ')}")
        paths[-1].write_bytes(content)
    warm_up = folder / "warm up"
    warm_up.mkdir()
    sound = [_write(warm_up / carrier, _tensors(), carrier) for carrier in ("zip", "stream", "safetensors")]
    found = audited.read_audited(paths, READERS, [*sound, WALKER])
    assert not canary.exists()
    assert len(found) == len(files) * len(READERS)
    return [outcome._replace(file=Path(outcome.file).name[4:]) for outcome in found]


def test_enough_hostile_files(outcomes):
    kinds = {outcome.file for outcome in outcomes}
    assert len([kind for kind in kinds if kind.startswith("unsafe")]) >= 300
    assert len([kind for kind in kinds if kind.startswith("broken")]) >= 80


def test_nothing_in_a_file_acts(outcomes):
    assert [outcome for outcome in outcomes if outcome.events] == []


def test_every_hostile_file_is_refused_in_one_line(outcomes):
    audited.assert_refused_in_one_line(outcomes)


def test_payloads_are_called_unsafe(outcomes):
    audited.assert_payloads_are_called_unsafe(outcomes)


@pytest.mark.parametrize(
    "payload, met",
    [
        ("reduce os.system", "os.system"),
        ("reduce eval", "builtins.eval"),
        ("inst", "os.system"),
        ("newobj", "subprocess.Popen"),
        ("dotted name", "torch.serialization.os.system"),
        ("newobj of a module class", "torch.nn.modules.linear.Linear"),
        ("extension 1", "extension registry"),
        ("persistent text", "os.system"),
        ("array of objects", "O8"),
    ],
)
def test_the_message_says_what_was_met(outcomes, payload, met):
    messages = [outcome.message for outcome in outcomes if outcome.file == f"unsafe bare {payload}"]
    assert messages and all(met in message and "byte" in message for message in messages)


def _refusal(path):
    """The value read, or the class of the refusal; any other exception comes through."""
    try:
        return read_walker(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        return type(error)


def test_a_flipped_bit_is_never_silently_wrong(tmp_path):
    content = WALKER.read_bytes()
    expected = read_walker(WALKER)
    path = tmp_path / "flipped.pth"
    rng = np.random.default_rng(0)
    positions = np.concatenate([rng.integers(0, len(content), 120), rng.integers(0, 3000, 60)])
    positions = np.concatenate([positions, rng.integers(len(content) - 1500, len(content), 60)])
    refused = 0
    for at in positions:
        damaged = bytearray(content)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        found = _refusal(path)
        if isinstance(found, type):
            refused += 1
        else:
            _assert_equal(found.state, expected.state)
            assert found.attributes == expected.attributes, f"bit flipped at byte {at}"
    assert refused > len(positions) // 2


@pytest.mark.parametrize("carrier", ["zip", "stream", "pickle"])
def test_truncated_anywhere(tmp_path, carrier):
    if carrier == "pickle":
        content = hostile.bare(hostile.entries(a=hostile.tensor(hostile.nested(_nested_storage()), (2, 2), (2, 1))))
    else:
        content = _write(tmp_path / "whole", {"a": torch.randn(50), "b": torch.randn(3, 3)}, carrier).read_bytes()
    path = tmp_path / "short"
    for size in range(0, len(content), max(1, len(content) // 150)):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match="short"):
            read_checkpoint(path)


def _nested_storage():
    return hostile.stream(hostile.stored(), {"0": bytes(16)})


def test_unneeded_storages_are_not_read(tmp_path):
    good = hostile.tensor(hostile.nested(_nested_storage()), (2, 2), (2, 1))
    broken = hostile.tensor(hostile.nested(_nested_storage()[:-4]), (2, 2), (2, 1))
    path = tmp_path / "partly.pkl"
    path.write_bytes(hostile.bare(hostile.entries(good=good, broken=broken)))
    assert torch.equal(read_checkpoint(path, keys=["good"])["good"], torch.zeros(2, 2))
    with pytest.raises(CorruptCheckpointError, match="byte"):
        read_checkpoint(path)


def test_exponentially_many_modules(tmp_path):
    path = tmp_path / "square.pth"
    path.write_bytes(hostile.bare(_square(45)))
    with pytest.raises(CorruptCheckpointError, match="too many parts"):
        module_state_dict(read_checkpoint(path))


@pytest.mark.parametrize(
    "width, change, message",
    [
        (4, {"walker.0.weight": torch.zeros(4, 5)}, "shape"),
        (4, {"walker.2.bias": None}, "no walker.2.bias"),
        (4, {"walker.4.bias": torch.zeros(4)}, "unexpected walker.4.bias"),
        (4, {"walker.2.bias": torch.zeros(4, dtype=torch.int64)}, "floating point"),
    ],
)
def test_walkers_of_another_shape(save_module, tmp_path, width, change, message):
    path = save_module("__main__", "NonlinearWalk", width, {}, _filled_walker(width, "odd"))
    cls = type("NonlinearWalk", (nn.Module,), {"__module__": "__main__", "__qualname__": "NonlinearWalk"})
    setattr(sys.modules["__main__"], "NonlinearWalk", cls)  # noqa: B010
    try:
        value = torch.load(path, weights_only=False)
        for key, tensor in change.items():
            _, index, leaf = key.split(".")
            layers = value["nn_walker"].walker
            if int(index) == len(layers) + 1:
                layers.extend([nn.ReLU(), nn.Identity()])
            layers[int(index)].register_buffer(leaf, None) if leaf not in layers[int(index)]._parameters else None
            store = (
                layers[int(index)]._parameters
                if leaf in layers[int(index)]._parameters
                else layers[int(index)]._buffers
            )
            store[leaf] = tensor
        torch.save(value, path)
    finally:
        delattr(sys.modules["__main__"], "NonlinearWalk")
    with pytest.raises(CorruptCheckpointError, match=message):
        read_walker(path)


@pytest.mark.parametrize("attributes", [{"start": 3, "stop": 3}, {"start": "1", "stop": 6}, {"start": 1}])
def test_walkers_of_impossible_chunks(save_module, attributes):
    state = _filled_walker(4, "odd")
    path = save_module("src.noise_maker.walkers", "NonlinearWalker", 4, attributes, state)
    with pytest.raises(CorruptCheckpointError, match="chunks"):
        read_walker(path)


@pytest.mark.parametrize("value", [{"a": 1}, {}, [torch.zeros(1)], {"a": {"b": torch.zeros(1)}}, {1: torch.zeros(1)}])
def test_what_is_no_state_dict(tmp_path, value):
    with pytest.raises(CorruptCheckpointError, match="state"):
        read_state_dict(_write(tmp_path / "state", value, "zip"))


def test_unknown_names_are_unsafe(tmp_path):
    import fractions

    path = tmp_path / "fraction"
    torch.save({"a": fractions.Fraction(1, 2)}, path)
    with pytest.raises(UnsafeCheckpointError, match=r"fractions\.Fraction"):
        read_checkpoint(path)


@pytest.mark.parametrize("reader", [read_checkpoint, read_state_dict, read_walker])
def test_wrong_paths(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "absent", tmp_path, tmp_path / "pipe", tmp_path / "a\0b", WALKER / "below"):
        with pytest.raises(UsageError):
            reader(path)


def test_an_unreadable_file(tmp_path, monkeypatch):
    path = _write(tmp_path / "state", {"a": torch.zeros(1)}, "zip")

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(EnvironmentFault, match="Permission denied"):
        read_checkpoint(path)
