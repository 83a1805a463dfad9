"""The one format of weight files: round trips of every kind, and what is noticed when a file is damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_ml_gen.core import files, weights
from mi_ml_gen.core.errors import CheckpointError, CorruptCheckpointError, EnvironmentFault, NonFiniteError, UsageError
from mi_ml_gen.encoders.loading import load_encoder, save_encoder
from mi_ml_gen.generators.registry import load_generator, save_generator
from mi_ml_gen.information.critic import Critic, load_critic, save_critic
from mi_ml_gen.latents import Chunks
from mi_ml_gen.mim.model import load_mim
from mi_ml_gen.probe.classifier import load_classifier, save_classifier
from mi_ml_gen.walkers.files import load_walker_file, read_about, save_walker
from mi_ml_gen.walkers.learned import NonlinearWalker
from tests.conftest import GOLDEN, arrays_of_child, make_small_generator
from tests.hub.test_sharing import MODELS, outputs
from tests.scripts.test_scripts import call

LOADERS = {
    "walker": load_walker_file,
    "bigbigan": lambda path: load_generator("bigbigan", path),
    "simclr": load_encoder,
    "classifier": load_classifier,
    "mim": load_mim,
    "critic": load_critic,
}
"""Of every kind, by the name of a model in MODELS: the function that the package reads it with."""


def write(folder: Path, name: str, add: float = 0.0) -> Path:
    torch.manual_seed(0)
    path = folder / f"{name}.safetensors"
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += add
    weights.save(path, model, note="of this test", n=3)
    return path


def read_elsewhere(folder: str) -> None:
    """In a process of its own, which has imported no kind: outputs of each file's model."""
    torch.set_num_threads(1)
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        model = weights.load(path).eval()
        found |= {f"{path.stem}/{i}": value.numpy() for i, value in enumerate(outputs(model))}
    np.savez(Path(folder) / "found.npz", **found)


def test_every_kind_comes_back_bit_for_bit_in_another_process(tmp_path):
    torch.set_num_threads(1)
    wanted = {}
    for name in MODELS:
        path = write(tmp_path, name)
        model = weights.load(path).eval()
        wanted |= {f"{name}/{i}": value.numpy() for i, value in enumerate(outputs(model))}
    program = "import sys; from tests.core.test_weights import read_elsewhere; read_elsewhere(sys.argv[1])"
    found = arrays_of_child(program, [str(tmp_path)], os.environ, tmp_path / "found.npz")
    np.testing.assert_equal(found, wanted)


def test_kinds_are_found_by_a_process_that_imported_none(tmp_path):
    path = write(tmp_path, "walker")
    program = "import sys\nfrom mi_ml_gen.hub import load\nfrom mi_ml_gen.core import weights\n"
    program += "print(type(weights.load(sys.argv[1])).__name__, *weights.KINDS)"
    words = [sys.executable, "-c", program, str(path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "NonlinearWalker classifier critic encoder generator mim mim_image walker\n", done.stderr


@pytest.mark.parametrize("name", MODELS)
def test_the_head_and_what_was_noted(tmp_path, name):
    path = write(tmp_path, name)
    content = weights.read(path)
    assert content.about == {"note": "of this test", "n": 3} and content.kind == weights.kind_of(MODELS[name]()).name
    (head,) = files.load_tensors(path).metadata.values()
    assert json.loads(head)["format_version"] == weights.VERSION
    first = path.read_bytes()
    weights.save(path, weights.load(path), note="of this test", n=3)
    assert path.read_bytes() == first  # the same model is the same bytes
    other = "mim" if content.kind != "mim" else "walker"
    with pytest.raises(CorruptCheckpointError, match=f"holds an? {content.kind}, not an? {other}"):
        weights.read(path, other)


# --- damage


@pytest.mark.parametrize("name", LOADERS)
def test_damage_is_one_line_wherever_it_is(tmp_path, name):
    """Each file of each kind, flipped and cut at many places."""
    path = write(tmp_path, name)
    beside = sorted(tmp_path.iterdir())
    assert [file.suffix for file in beside] == ([".json"] if name == "walker" else []) + [".safetensors", ".sha256"]
    rng = np.random.default_rng(0)
    for file in beside:
        whole = file.read_bytes()
        places = rng.integers(0, len(whole), 20)
        flipped = [whole[:i] + bytes([whole[i] ^ (1 << int(rng.integers(8)))]) + whole[i + 1 :] for i in places]
        if file.suffix == ".sha256":  # the hash itself, not the name after it
            flipped = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in rng.integers(0, 64, 10)]
        cut = [whole[:i] for i in (0, 1, 40, len(whole) // 2, len(whole) - 1) if file.suffix != ".sha256" or i < 64]
        for content in [*flipped, *cut]:
            file.write_bytes(content)
            with pytest.raises(CheckpointError) as refused:
                LOADERS[name](path)
            assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)
        file.write_bytes(whole)
    LOADERS[name](path)


@pytest.mark.parametrize("name", LOADERS)
def test_swapped_files_are_noticed(tmp_path, name):
    """The hash, or the description, of another file of the same kind."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    path = write(tmp_path / "a", name)
    write(tmp_path / "b", "grouped" if name == "walker" else name, add=1.0)
    for other in sorted((tmp_path / "b").iterdir()):
        if other.suffix != ".safetensors":
            mine = path.with_suffix(".json") if other.suffix == ".json" else files.hash_file(path)
            whole = mine.read_bytes()
            shutil.copy(other, mine)
            with pytest.raises(CorruptCheckpointError, match="damaged"):
                LOADERS[name](path)
            mine.write_bytes(whole)
    LOADERS[name](path)


@pytest.mark.parametrize(
    "head",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"kind": "walker"}',
        '{"kind": ["walker"], "format_version": 2, "config": {}, "about": {}}',
        '{"kind": "walker", "format_version": "2", "config": {}, "about": {}}',
        '{"kind": "walker", "format_version": 3, "config": {}, "about": {}}',
        '{"kind": "wlaker", "format_version": 2, "config": {}, "about": {}}',
        '{"kind": "walker", "format_version": 2, "config": {}, "about": {}}',
        '{"kind": "walker", "format_version": 2, "config": {"kind": "nonlinear", "chunks": "9"}, "about": {}}',
        '{"kind": "walker", "format_version": 2, "config": {"kind": ["x"]}, "about": {}}',
        '{"kind": "generator", "format_version": 2, "config": {}, "about": {}}',
        '{"kind": "generator", "format_version": 2, "config": {"family": ["x"], "settings": 1}, "about": {}}',
        '{"kind": "generator", "format_version": 2, "config": {"family": "x", "settings": {}}, "about": {}}',
        '{"kind": "generator", "format_version": 2, "config": {"family": "bigbigan", "settings": 5, "name": "n"}, '
        '"about": {}}',
        '{"kind": "encoder", "format_version": 2, "config": {"method": "byol", "architecture": 4}, "about": {}}',
        '{"kind": "encoder", "format_version": 2, "config": {"method": {}}, "about": {}}',
        '{"kind": "classifier", "format_version": 2, "config": {"classes": 3, "image_size": "x"}, "about": {}}',
        '{"kind": "mim", "format_version": 2, "config": {"x_dim": -3}, "about": {}}',
        '{"kind": "mim", "format_version": 2, "config": {"x_dim": 1000000000}, "about": {}}',
        '{"kind": "critic", "format_version": 2, "config": {"width": "w"}, "about": {}}',
    ],
)
def test_heads_that_make_no_sense_are_one_line(tmp_path, head):
    path = tmp_path / "x.safetensors"
    files.save_tensors(path, {"weight": torch.zeros(2)}, {weights.HEAD: head})
    with pytest.raises(CheckpointError) as refused:
        weights.load(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    for loader in LOADERS.values():
        with pytest.raises((CheckpointError, UsageError)) as refused:
            loader(path)
        assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_header_out_of_all_proportion_is_not_parsed(tmp_path):
    path = tmp_path / "h.safetensors"
    path.write_bytes((5 << 20).to_bytes(8, "little") + b"{" + b" " * (5 << 20))
    with pytest.raises(CorruptCheckpointError, match="announces a header of 5,242,880 bytes"):
        files.load_tensors(path)


# --- numbers that are none


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_weights_that_are_no_finite_numbers_are_neither_written_nor_read(tmp_path, value):
    for name, load in LOADERS.items():
        model = MODELS[name]().eval()
        path = tmp_path / f"{name}.safetensors"
        weights.save(path, model)
        content, whole = weights.read(path), path.read_bytes()
        key = next(key for key, tensor in content.tensors.items() if tensor.is_floating_point())
        content.tensors[key].view(-1)[0] = value
        with pytest.raises(NonFiniteError, match=f"{name}.safetensors is not written: {key} holds nan, infinity"):
            weights.write(path, content.kind, content.tensors, content.config, {})
        assert path.read_bytes() == whole
        metadata = files.load_tensors(path).metadata
        files.save_tensors(path, content.tensors, metadata)
        with pytest.raises(CorruptCheckpointError, match=f"{name}.safetensors: {key} holds nan, infinity"):
            load(path)


def test_the_writers_of_each_kind_refuse_them_too(tmp_path):
    walker = NonlinearWalker(Chunks(0, 1), 2)
    torch.nn.init.constant_(walker.walker[0].weight, torch.nan)
    generator, encoder, classifier = make_small_generator(), MODELS["byol"](), MODELS["classifier"]()
    critic, mim = Critic(16, 8, 4), MODELS["mim"]()
    for model in (generator, encoder, classifier, critic, mim):
        with torch.no_grad():
            next(model.parameters()).view(-1)[-1] = torch.inf
    for save in (
        lambda: save_walker(tmp_path / "w", walker),
        lambda: save_generator(tmp_path / "g.safetensors", generator, "bigbigan"),
        lambda: save_encoder(tmp_path / "e.safetensors", encoder),
        lambda: save_classifier(tmp_path / "c.safetensors", classifier),
        lambda: save_critic(tmp_path / "f.safetensors", critic),
        lambda: mim.save(tmp_path / "m.safetensors"),
    ):
        with pytest.raises(NonFiniteError):
            save()
    assert list(tmp_path.iterdir()) == []


def test_published_files_with_such_weights_are_refused(tmp_path, published_bigbigan):
    with np.load(GOLDEN / "bigbigan_tiny.npz") as golden:
        state = published_bigbigan("bigbigan_tiny", str(golden["prefix"]))
    state["linear.bias"][0] = torch.nan
    torch.save(state, tmp_path / "in.pth")
    with pytest.raises(CorruptCheckpointError, match="in.pth: stem.bias holds nan"):
        load_generator("bigbigan", tmp_path / "in.pth")
    backbone = {key.removeprefix("encoder."): value for key, value in MODELS["simclr"]().encoder.state_dict().items()}
    backbone["bn1.running_var"][0] = torch.inf
    torch.save(backbone, tmp_path / "resnet.pth")
    with pytest.raises(CorruptCheckpointError, match="resnet.pth: bn1.running_var holds nan"):
        load_encoder(tmp_path / "resnet.pth")


def test_a_script_ends_with_exit_3_and_one_line(tmp_path, monkeypatch, capsys):
    path = write(tmp_path, "bigbigan")
    content = weights.read(path)
    content.tensors["stem.bias"][0] = torch.nan
    files.save_tensors(path, content.tensors, files.load_tensors(path).metadata)
    argv = ["--generator", "bigbigan", "--g_path", path, "--n_images", 2, "--save_folder", tmp_path / "images"]
    code, out, err = call(monkeypatch, capsys, "generate_dataset", *argv)
    assert code == 3 and out == "" and err.count("\n") == 1 and "stem.bias holds nan" in err
    assert not (tmp_path / "images").exists()


# --- a process that dies while it writes


def test_a_walker_is_readable_whenever_its_writing_stops(tmp_path, monkeypatch):
    """Each write in turn is the last: what is there then is the old walker or the new one."""
    old, new = NonlinearWalker(Chunks(0, 1), 4), NonlinearWalker(Chunks(1, 2), 3)
    plain, n_writes, last = files.atomic_write, [0], [0]

    def dying(path, content):
        n_writes[0] += 1
        if n_writes[0] == last[0]:
            raise EnvironmentFault("killed")
        plain(path, content)

    monkeypatch.setattr(files, "atomic_write", dying)
    found = []
    for last[0] in range(1, 9):
        n_writes[0] = -100
        path = save_walker(tmp_path / "w", old, n=1)
        n_writes[0] = 0
        try:
            save_walker(path, new, n=2)
        except EnvironmentFault:
            pass
        else:
            break
        found.append((load_walker_file(path).config()["chunks"], read_about(path)["n"]))
    assert found[0] == ("0_1", 1) and found[-1] == ("1_2", 2) and set(found) == {("0_1", 1), ("1_2", 2)}


def test_what_has_no_kind_is_refused(tmp_path):
    with pytest.raises(UsageError, match="a Linear cannot be shared"):
        weights.save(tmp_path / "x.safetensors", torch.nn.Linear(1, 1))
    with pytest.raises(UsageError, match="No such file"):
        weights.load(tmp_path / "x.safetensors")
