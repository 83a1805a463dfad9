"""Cases of files: hostile ones, damaged ones, such as ask for too much, and weights that are no numbers."""

from __future__ import annotations

import functools
import random
import resource
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mi_ml_gen.core import config, files, runs, weights
from mi_ml_gen.core.errors import CheckpointError, CorruptCheckpointError, MiMlGenError, NonFiniteError, UsageError
from mi_ml_gen.core.runs import RunFolder
from mi_ml_gen.data.beton.format import Encoded, classes_file, encode_jpeg, read_index, write_beton
from mi_ml_gen.data.folders import read_rgb
from mi_ml_gen.data.idx import read_idx
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.hub import sharing
from mi_ml_gen.navigator.settings import NavigatorConfig
from tests import audited, hostile
from tests.checkpoints import test_reading as published
from tests.faults.acts import flat, poison
from tests.faults.cases import Check, family
from tests.generators.stylegan2 import test_published as stylegan2
from tests.hub.test_sharing import MODELS, outputs

Cases = Iterator[tuple[str, Check]]

READERS = [
    "mi_ml_gen.checkpoints.reading:read_checkpoint",
    "mi_ml_gen.checkpoints.reading:read_state_dict",
    "mi_ml_gen.walkers.published:read_walker",
    "mi_ml_gen.walkers.files:load_walker_file",
    "mi_ml_gen.generators.bigbigan:read_published",
    "mi_ml_gen.generators.nvae.published:read_published",
    "mi_ml_gen.generators.stylegan2.published:read_stylegan2",
    "mi_ml_gen.encoders.loading:load_encoder",
    "mi_ml_gen.probe.classifier:load_classifier",
    "mi_ml_gen.mim.model:load_mim",
    "mi_ml_gen.information.critic:load_critic",
]
"""Everything that opens a file of weights from outside."""
STYLEGAN2 = ["mi_ml_gen.generators.stylegan2.published:read_stylegan2"]
HARMLESS = ("name made of numbers", "build with slots")
"""Payloads that are odd, but would do nothing."""


# --- hostile


@family("hostile", sample=4)
def payloads_in_files_of_weights(seed: int) -> Cases:
    for carrier in hostile.CARRIERS:
        for payload in hostile.payloads(Path("canary")):
            yield f"{carrier}, {payload}", functools.partial(_hostile, hostile.CARRIERS[carrier], payload, READERS)


@family("hostile", sample=4)
def payloads_in_files_of_stylegan2(seed: int) -> Cases:
    for carrier, wrap in stylegan2.CARRIERS.items():
        for payload in hostile.payloads(Path("canary")):
            check = functools.partial(_hostile, lambda value, wrap=wrap: hostile.bare(wrap(value)), payload, STYLEGAN2)
            yield f"{carrier}, {payload}", check


def _hostile(wrap: Callable[[bytes], bytes], payload: str, readers: list[str], folder: Path) -> None:
    canary, path = folder / "canary", folder / "weights.pth"
    path.write_bytes(wrap(hostile.payloads(canary)[payload]))
    error = _refused(path, readers)
    assert not canary.exists(), "the payload was run"
    if payload not in HARMLESS:  # readers of one layout may refuse a file for its layout, before they look further
        assert error == "UnsafeCheckpointError", error


def _refused(path: Path, readers: list[str]) -> str:
    """Read a file with each reader, under an audit hook and with 256 MB. Each must raise an error of ours; the name of
    the first."""
    unknown = published._write(path.with_name("unknown.pth"), {"a": torch.zeros(2)}, "zip")
    sound = [str(published.WALKER), str(stylegan2.TORCH_FILE), str(unknown)]
    outcomes = list(audited.read_here([str(path)], readers, sound))
    for outcome in outcomes:
        assert not outcome.events, outcome
        assert outcome.error in ("UnsafeCheckpointError", "CorruptCheckpointError"), outcome
        assert path.name in outcome.message and outcome.message.isprintable() and len(outcome.message) < 2000, outcome
        assert outcome.cpu_seconds < 10, outcome
    return outcomes[0].error


# --- too much


@functools.cache
def _greedy_files() -> dict[str, tuple[bytes, list[str]]]:
    with tempfile.TemporaryDirectory() as folder:
        found = {f"weights, {what}": (data, READERS) for what, data in published._broken(Path(folder)).items()}
        more = {f"stylegan2, {what}": (data, STYLEGAN2) for what, data in stylegan2._broken(Path(folder)).items()}
    return found | more


@family("bombs", sample=2)
def files_of_weights_that_lie_or_exhaust(seed: int) -> Cases:
    for what, (data, readers) in _greedy_files().items():
        yield what, functools.partial(_greedy, data, readers)


def _greedy(data: bytes, readers: list[str], folder: Path) -> None:
    (path := folder / "weights.pth").write_bytes(data)
    _refused(path, readers)


def _yaml_aliases(n: int) -> str:
    rows = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else ', '.join(['x'] * 9)}]" for i in range(n)]
    return "\n".join(rows)


TEXTS = {
    "aliases": _yaml_aliases(9),
    "deep lists": "a: " + "[" * 20_000 + "]" * 20_000,
    "deep dicts": "a: " + '{"a":' * 20_000 + "1" + "}" * 20_000,
    "5 MB": "a: " + "x" * 5_000_000,
    "many values": "a: [" + "1," * 400_000 + "1]",
    "many keys": "\n".join(f"k{i}: 1" for i in range(100_000)),
    "a number of many digits": "a: " + "9" * 900_000,
    "not text": "\x00\x01",
}
"""For readers of settings; those of JSON get the part behind the colon."""
TEXT_READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "settings of a run": ("config.yaml", lambda path: runs.read_config(path.parent)),
    "settings of a user": ("mine.yaml", lambda path: config.load(NavigatorConfig, path)),
    "results": ("summary.json", runs.read_json),
    "rows of metrics": ("metrics.jsonl", lambda path: runs.read_metrics(path.parent, whole=True)),
    "class names": ("train.classes.json", lambda path: load_source(path.parent / "train.beton", loader="torch")),
}


@family("bombs", sample=1)
def texts_that_exhaust(seed: int) -> Cases:
    for reader in TEXT_READERS:
        for what in TEXTS:
            yield f"{reader}, {what}", functools.partial(_text, reader, what)


def _text(reader: str, what: str, folder: Path) -> None:
    name, read = TEXT_READERS[reader]
    text = TEXTS[what] if name.endswith(".yaml") else TEXTS[what].partition(": ")[2] or TEXTS[what]
    _limit_memory(512 << 20)
    write_beton(folder / "train.beton", [_picture(0)], 1)
    (folder / name).write_text(text)
    _refuses_or_reads(read, folder / name)


def _refuses_or_reads(read: Callable[[Path], object], path: Path) -> None:
    """No error but ours, naming the file, within the limits; a text may also be what it seems."""
    resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
    try:
        read(path)
    except MiMlGenError as error:
        assert path.name in str(error) or str(path.parent) in str(error), error
        assert len(str(error)) < 1000, len(str(error))


def _limit_memory(n_bytes: int) -> None:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + n_bytes, resource.RLIM_INFINITY))


def _png(width: int, height: int) -> bytes:
    """A picture of one colour: few bytes, many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    rows = zlib.compressobj(9)
    body = b"".join(rows.compress(bytes(1 + width)) for _ in range(height)) + rows.flush()
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


DATA = {
    "picture of 14,000 x 14,000": ("a.png", lambda: _png(14_000, 14_000), read_rgb),
    "picture of 200,000 x 1,000": ("a.png", lambda: _png(200_000, 1_000), read_rgb),
    "idx of 4 GB in 100 bytes": ("a-ubyte", lambda: bytes.fromhex("00000803ffffffff") + bytes(92), read_idx),
    "idx of 255 axes": ("a-ubyte", lambda: bytes.fromhex("000008ff") + b"\x7f\xff\xff\xff" * 255, read_idx),
    "beton of 2**60 images": ("a.beton", lambda: _bent_beton("<Q", 8, 1 << 60), read_index),
    "beton with a table beyond its end": ("a.beton", lambda: _bent_beton("<Q", 16, 1 << 62), read_index),
    "beton with pages of 2**63": ("a.beton", lambda: _bent_beton("<Q", 4, 1 << 63), read_index),
}  # fmt: skip


@family("bombs", sample=1)
def images_that_exhaust(seed: int) -> Cases:
    for what, (name, make, read) in DATA.items():
        yield what, functools.partial(_image_bomb, name, make, read)


def _image_bomb(name: str, make: Callable[[], bytes], read: Callable[[Path], object], folder: Path) -> None:
    (path := folder / name).write_bytes(make())
    _limit_memory(256 << 20)
    resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
    try:
        read(path)
    except (MiMlGenError, ValueError, OSError) as error:  # folders.py reports what Pillow says of a single image
        assert not isinstance(error, MemoryError), error
    else:
        raise AssertionError("was read")


def _bent_beton(form: str, at: int, value: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        data = bytearray(write_beton(Path(folder) / "a.beton", [_picture(0)], 1).read_bytes())
    data[at : at + 8] = value.to_bytes(8, "little")
    return bytes(data)


# --- damaged


def _picture(i: int) -> Encoded:
    pixels = np.random.default_rng(i).integers(256, size=(16, 16, 3), dtype=np.uint8)
    return Encoded(encode_jpeg(pixels), 16, 16, i % 2)


class Format(NamedTuple):
    """One kind of file that the package writes."""

    make: Callable[[Path], Path]
    """make(folder): the file that will be damaged."""
    read: Callable[[Path], Any]
    """What the package makes of it; plain values."""


def _model(name: str) -> Format:
    def make(folder: Path) -> Path:
        torch.manual_seed(0)
        weights.save(folder / "model.safetensors", MODELS[name]().eval(), note="of this case")
        return folder / "model.safetensors"

    return Format(make, lambda path: [value.tolist() for value in outputs(weights.load(path).eval())])


def _beside(of: Format, suffix: str) -> Format:
    """A file that lies beside another one."""

    def make(folder: Path) -> Path:
        path = of.make(folder)
        found = path.with_suffix(suffix) if suffix == ".json" else Path(f"{path}{suffix}")
        assert found.exists()
        return found

    return Format(make, lambda path: of.read(path.parent / "model.safetensors"))


def _run(name: str) -> Format:
    settings = {"lr": 0.1, "name": "a", "widths": [1, 2]}

    def make(folder: Path) -> Path:
        with RunFolder.open(folder / "run", settings) as run:
            for step in (1, 2, 3):
                run.log(step, loss=step / 7, text="t")
            run.write_json("summary.json", {"delta": 1.25, "names": ["a", "b"]})
            run.save_state(3, {"weight": torch.randn(20, generator=torch.Generator().manual_seed(0)), "n": 3})
        return folder / "run" / name

    def read(path: Path) -> Any:
        if name.startswith("checkpoints/"):
            with RunFolder.open(path.parents[1], settings) as run:
                step, state = run.load_latest() or (0, {})
            return step, flat(state)
        run = path.parent
        rows = functools.partial(runs.read_metrics, whole=True)
        found = {"config.yaml": runs.read_config, "metrics.jsonl": rows, "metrics.rows": rows}
        return found[name](run) if name in found else runs.read_json(path)

    return Format(make, read)


def _features() -> Format:
    def make(folder: Path) -> Path:
        files.save_tensors(folder / "features.safetensors", {"values": torch.arange(40.0).view(8, 5)}, {"source": "a"})
        return folder / "features.safetensors"

    return Format(make, lambda path: flat(files.load_tensors(path).tensors))


def _shared(name: str) -> Format:
    def make(folder: Path) -> Path:
        torch.manual_seed(0)
        MODELS["walker"]().save_pretrained(folder / "shared")
        return folder / "shared" / name

    return Format(make, lambda path: [value.tolist() for value in outputs(sharing.load(path.parent).eval())])


def _beton(suffix: str) -> Format:
    def make(folder: Path) -> Path:
        path = write_beton(folder / "train.beton", [_picture(i) for i in range(6)], 6, ("cat", "dog"), 1 << 21)
        return path if suffix == ".beton" else classes_file(path)

    def read(path: Path) -> Any:
        source = load_source(path.parent / "train.beton", loader="torch")
        assert source.labels is not None
        return source.n_images, source.labels.tolist(), list(source.classes)

    return Format(make, read)


FORMATS: dict[str, Format] = {
    **{f"weights of {name}": _model(name) for name in MODELS},
    "hash of weights": _beside(_model("walker"), ".sha256"),
    "description of a walker": _beside(_model("walker"), ".json"),
    "state": _run("checkpoints/state_000000000003.pt"),
    "hash of a state": _run("checkpoints/state_000000000003.pt.sha256"),
    "settings": _run("config.yaml"),
    "metrics": _run("metrics.jsonl"),
    "number of metrics": _run("metrics.rows"),
    "results": _run("summary.json"),
    "kept features": _features(),
    "shared model": _shared("model.safetensors"),
    "shared model's config.json": _shared("config.json"),
    "class names of a .beton file": _beton(".classes.json"),
}


def _truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _flipped(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _zeroed(data: bytes, rng: random.Random) -> bytes:
    size = min(4096, max(1, len(data) // 2))
    at = rng.randrange(len(data))
    return data[:at] + bytes(len(data[at : at + size])) + data[at + size :]


def _overwritten(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(len(data[at : at + 64])) + data[at + 64 :]


def _swapped(data: bytes, rng: random.Random) -> bytes:
    """Two pieces of 16 bytes in each other's place."""
    one, other = sorted(rng.sample(range(0, max(32, len(data) - 16)), 2))
    other = max(other, one + 16)
    return data[:one] + data[other : other + 16] + data[one + 16 : other] + data[one : one + 16] + data[other + 16 :]


DAMAGE = {"cut": (_truncated, 6), "bit flipped": (_flipped, 10), "page zeroed": (_zeroed, 3),
          "64 bytes overwritten": (_overwritten, 3), "pieces swapped": (_swapped, 3)}  # fmt: skip
"""Kinds, and how often each is tried on a format."""


@family("rot", sample=5)
def damage_to_what_we_write(seed: int) -> Cases:
    for name in FORMATS:
        for kind, (_, n) in DAMAGE.items():
            for i in range(n):
                yield f"{name}, {kind}, {i}", functools.partial(_damaged, name, kind, f"{seed} {name} {kind} {i}")


def _damaged(name: str, kind: str, seed: str, folder: Path) -> None:
    path, read = FORMATS[name].make(folder), FORMATS[name].read
    data, rng = path.read_bytes(), random.Random(seed)
    expected = read(path)
    damaged = DAMAGE[kind][0](data, rng)
    if damaged == data:  # zeros that were zeros
        damaged = _flipped(data, rng)
    path.write_bytes(damaged)
    try:
        found = read(path)
    except (CheckpointError, UsageError) as error:
        assert str(path.parent) in str(error) or path.name in str(error), error
    else:
        assert found == expected, "read, but not as it was written"


PUBLISHED = ("zip", "stream", "pickle")


@family("rot", sample=1)
def damage_to_published_files(seed: int) -> Cases:
    for carrier in PUBLISHED:
        for kind, (_, n) in DAMAGE.items():
            for i in range(2 * n):
                yield (
                    f"{carrier}, {kind}, {i}",
                    functools.partial(_published, carrier, kind, f"{seed} {carrier} {kind} {i}"),
                )


def _published(carrier: str, kind: str, seed: str, folder: Path) -> None:
    """No hash lies beside them: zip files have checksums; the other two must not crash a reader or make it act."""
    path = folder / "weights.pth"
    if carrier == "pickle":
        tensor = hostile.tensor(hostile.nested(published._nested_storage()), (2, 2), (2, 1))
        path.write_bytes(hostile.bare(hostile.entries(a=tensor)))
    else:
        published._write(path, {"a": torch.arange(50.0), "b": torch.arange(9.0).view(3, 3)}, carrier)
    read = published.read_checkpoint
    expected = flat(read(path))
    path.write_bytes(DAMAGE[kind][0](path.read_bytes(), random.Random(seed)))
    (outcome,) = audited.read_here([str(path)], READERS[:1], [str(published.WALKER)])
    assert not outcome.events, outcome
    if outcome.error:
        assert outcome.error in ("UnsafeCheckpointError", "CorruptCheckpointError"), outcome
    elif carrier == "zip":
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        found = flat(read(path))
        assert {key: value for key, value in found.items()} == expected, "read, but not as it was written"


@family("rot", sample=1)
def damage_to_beton_files(seed: int) -> Cases:
    """FFCV's format has no checksum. Its labels and tables have one beside; damage to an image must not lead astray."""
    for kind, (_, n) in DAMAGE.items():
        for i in range(3 * n):
            yield f"{kind}, {i}", functools.partial(_beton_damaged, kind, f"{seed} beton {kind} {i}")


def _beton_damaged(kind: str, seed: str, folder: Path) -> None:
    path = _beton(".beton").make(folder)
    expected = _beton(".beton").read(path)
    data, rng = path.read_bytes(), random.Random(seed)
    used = [(0, 512), (1 << 21, (1 << 21) + 6000), (len(data) - 24 * 6, len(data))]  # zeros fill up what lies between
    start, stop = rng.choice(used)
    path.write_bytes(data[:start] + DAMAGE[kind][0](data[start:stop], rng) + data[stop:])
    try:
        source = load_source(path, loader="torch")
        batch = source.batch(torch.arange(source.n_images))
        assert batch.shape[0] == source.n_images and _beton(".beton").read(path) == expected
    except (CheckpointError, UsageError) as error:
        assert path.name in str(error), error


# --- weights that are no numbers

VALUES = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf"), "1e38": 1e38}
WITHOUT_TENSORS = ("random", "identity", "linear")


@family("finite", sample=2)
def in_files_of_weights(seed: int) -> Cases:
    for name in MODELS:
        if name not in WITHOUT_TENSORS:
            for value in VALUES:
                for act in (_not_written, _not_read):
                    what = act.__name__.removeprefix("_").replace("_", " ")
                    yield f"{name}, {value}, {what}", functools.partial(act, name, VALUES[value])


def _not_written(name: str, value: float, folder: Path) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    poison(model, value)
    try:
        weights.save(folder / "model.safetensors", model)
    except NonFiniteError as error:
        assert "model.safetensors is not written: " in str(error)
    else:
        raise AssertionError("was written")
    assert not list(folder.iterdir())


def _not_read(name: str, value: float, folder: Path) -> None:
    path = _model(name).make(folder)
    tensors, metadata = files.load_tensors(path)
    poison(tensors, value)
    files.save_tensors(path, tensors, metadata)
    try:
        weights.load(path)
    except CorruptCheckpointError as error:
        assert str(path) in str(error)
    else:
        raise AssertionError("was read")
