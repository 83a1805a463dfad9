"""Models as folders and repositories: what is loaded elsewhere is what was saved; the card tells the run's record."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn.modules import module as torch_module

from mi_ml_gen import __version__
from mi_ml_gen.core import files, weights
from mi_ml_gen.core.errors import CheckpointError, CorruptCheckpointError, EnvironmentFault, UsageError
from mi_ml_gen.core.resnet import ResNet
from mi_ml_gen.core.runs import RunFolder
from mi_ml_gen.encoders.base import Architecture
from mi_ml_gen.encoders.byol import BYOL
from mi_ml_gen.encoders.simclr import SimCLR
from mi_ml_gen.encoders.simsiam import SimSiam
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.hub import fetching as hub_client
from mi_ml_gen.hub import model_card, sharing
from mi_ml_gen.hub.downloads import hashes_of
from mi_ml_gen.information.critic import Critic
from mi_ml_gen.latents import Chunks, TruncatedNormal
from mi_ml_gen.mim.images.networks import ImageModel, ModelSpec, build_model
from mi_ml_gen.mim.model import MIM
from mi_ml_gen.probe.classifier import LinearClassifier
from mi_ml_gen.report.images import save_png
from mi_ml_gen.walkers.base import IdentityWalker, Walker
from mi_ml_gen.walkers.files import save_walker
from mi_ml_gen.walkers.grouped import GroupedWalker
from mi_ml_gen.walkers.learned import NonlinearWalker
from mi_ml_gen.walkers.noise import RandomWalker
from tests.conftest import arrays_of_child, make_small_generator
from tests.hub_server import TOKEN, Fault, HubServer, hub  # noqa: F401 - a fixture
from tests.scripts.test_scripts import call

SMALL = Architecture(depth=18, width=4, small_images=True, dim=8, pred=4)


def make_walker(seed: int = 0) -> NonlinearWalker:
    torch.manual_seed(seed)
    return NonlinearWalker(Chunks(0, 1), 4)


def make_grouped() -> GroupedWalker:
    return GroupedWalker([make_walker(), RandomWalker(Chunks(1, 2), TruncatedNormal(0.0, 0.5, 2.0))])


def make_classifier() -> LinearClassifier:
    backbone = ResNet(18, small_images=True, width=4)
    return LinearClassifier(backbone, torch.nn.Linear(backbone.feature_dim, 2), ("cat", "dog"), 16)


MODELS = {
    "walker": make_walker,
    "grouped": make_grouped,
    "random": lambda: RandomWalker(Chunks(0, 2), TruncatedNormal(0.0, 0.5, 2.0)),
    "identity": IdentityWalker,
    "bigbigan": lambda: make_small_generator().to(memory_format=torch.channels_last),
    "linear": lambda: load_generator("linear-gaussian"),
    "simclr": lambda: SimCLR(SMALL),
    "simsiam": lambda: SimSiam(SMALL),
    "byol": lambda: BYOL(SMALL),
    "classifier": make_classifier,
    "critic": lambda: Critic(16, 8, 4),
    "mim": lambda: MIM(x_dim=3, z_dim=2, mid_dim=8),
    "image mim": lambda: build_model(ModelSpec("vae", (1, 8, 8), "binary", z1_size=3, z2_size=2)),
    "binary mim": lambda: MIM(x_dim=3, z_dim=2, mid_dim=8, binary=True, p_z="gmm-marginal", p_z_gmm=4),
}
"""Of every kind at least one, small."""


def outputs(model: torch.nn.Module) -> list[torch.Tensor]:
    """What a model makes of fixed inputs."""
    rng = torch.Generator().manual_seed(7)
    with torch.no_grad():
        if isinstance(model, Walker):
            generator = make_small_generator()
            return list(model(generator, torch.randn(5, generator.noise_dim, generator=rng), rng))
        if isinstance(model, MultiLatentGenerator):
            return [model.decode(model.latents(torch.randn(3, model.noise_dim, generator=rng)), rng)]
        if isinstance(model, MIM):
            half = model.data_half(torch.rand(6, 3, generator=rng).round(), rng)
            return [half.z, half.x_given_z, half.z_given_x, half.p_z]
        if isinstance(model, ImageModel):
            return list(model.encoder_mean(torch.rand(4, 1, 8, 8, generator=rng)).chunk(2))
        views = torch.randn(4, 3, 16, 16, generator=rng)
        if isinstance(model, LinearClassifier | Critic):
            return [model(views)]
        found = model(views[:2], views[2:])
        return [found.features, *found.parts]


# --- round trips


def load_and_run(names_and_sources: str, target: str) -> None:
    """In a process of its own: outputs of each shared model."""
    torch.set_num_threads(1)
    results = {}
    for name, source in json.loads(names_and_sources).items():
        model = sharing.load(source)
        results |= {f"{name}/{i}": value for i, value in enumerate(outputs(model))}
    np.savez(target, **{key: value.numpy() for key, value in results.items()})


def test_models_give_the_same_bits_in_another_process_from_folders_and_from_the_hub(hub, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    torch.set_num_threads(1)
    sources, wanted, pushed = {}, {}, set()
    for name, make in MODELS.items():
        model = make().eval()
        slug = name.replace(" ", "-")
        sources[f"{name}, folder"] = str(model.save_pretrained(tmp_path / slug))
        if (kind := sharing.kind_of(model)) not in pushed:
            pushed.add(kind)
            sources[f"{name}, hub"] = f"me/{slug}"
            upload = model.push_to_hub(f"me/{slug}", dry_run=False, licence="mit")
            assert upload.url is not None and upload.url.startswith(hub.endpoint)
        for key in (f"{name}, folder", f"{name}, hub"):
            if key in sources:
                wanted |= {f"{key}/{i}": value.numpy() for i, value in enumerate(outputs(model))}
    assert pushed == set(weights.KINDS)

    program = "import sys; from tests.hub import test_sharing; test_sharing.load_and_run(*sys.argv[1:])"
    environment = os.environ | hub.environment(tmp_path / "other")
    environment.pop("HF_TOKEN")  # the repositories are public
    words = [json.dumps(sources), str(tmp_path / "found.npz")]
    np.testing.assert_equal(arrays_of_child(program, words, environment, tmp_path / "found.npz"), wanted)


def test_a_class_loads_its_own_kind_only(tmp_path):
    make_walker().save_pretrained(tmp_path / "w")
    assert isinstance(NonlinearWalker.from_pretrained(tmp_path / "w"), NonlinearWalker)
    assert isinstance(Walker.from_pretrained(tmp_path / "w"), NonlinearWalker)
    with pytest.raises(UsageError, match="holds a NonlinearWalker, not a MultiLatentGenerator"):
        MultiLatentGenerator.from_pretrained(tmp_path / "w")
    with pytest.raises(UsageError, match="a Linear cannot be shared; classifier, critic, enc"):
        sharing.save(torch.nn.Linear(2, 2), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_what_a_run_noted_in_its_own_file_comes_along(tmp_path):
    run = make_run(tmp_path)
    folder = sharing.load_from_run(run).save_pretrained(tmp_path / "w", run=run)
    assert (folder / "model.safetensors").read_bytes() == (run / "walker.safetensors").read_bytes()
    assert json.loads((folder / "model.json").read_text())["about"]["samples"] == 3584
    other = make_walker(seed=1)  # not the one that lies there
    assert sharing.load(other.save_pretrained(tmp_path / "o", run=run)).config() == other.config()
    assert torch.equal(sharing.load(tmp_path / "o").walker[0].weight, other.walker[0].weight)


def test_a_model_that_would_not_come_back_is_not_shared(tmp_path):
    model = MIM(x_dim=3, q_x="anchor", anchor=torch.distributions.Normal(0.0, 1.0))
    with pytest.raises(UsageError, match=r"this MIM cannot be shared: .*P\(x\)"):
        model.save_pretrained(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_left_alone(tmp_path):
    (tmp_path / "w").mkdir()
    with pytest.raises(UsageError, match="w: already exists"):
        make_walker().save_pretrained(tmp_path / "w")
    for licence in ("MIT License", "", "-"):
        with pytest.raises(UsageError, match="--license"):
            make_walker().save_pretrained(tmp_path / "v", licence=licence)
    assert [path.name for path in tmp_path.iterdir()] == ["w"] and list((tmp_path / "w").iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    plain, n_writes = sharing.files.atomic_write, [0]

    def filling(path, content):
        n_writes[0] += 1
        if n_writes[0] == full_at:
            raise EnvironmentFault(f"cannot write {path}: No space left on device")
        plain(path, content)

    run = make_run(tmp_path / "runs")
    model = sharing.load_from_run(run)
    monkeypatch.setattr(sharing.files, "atomic_write", filling)
    (tmp_path / "out").mkdir()
    for full_at in range(1, 20):
        n_writes[0] = 0
        try:
            model.save_pretrained(tmp_path / "out" / "w", run=run)
        except EnvironmentFault:
            assert list((tmp_path / "out").iterdir()) == [], full_at
        else:
            break
    assert 6 <= full_at < 19


# --- refusals


def write_description(folder: Path, **changes: object) -> None:
    """config.json with some of its keys changed, and right hashes."""
    description = json.loads((folder / "config.json").read_text())
    description["files"] = {name: hashes_of(folder / name).sha256.hexdigest() for name in description["files"]}
    (folder / "config.json").write_text(json.dumps(description | changes))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def claim(folder: Path, config: str) -> None:
    """Another configuration, JSON, in the head of the weights, and right hashes."""
    path = folder / "model.safetensors"
    tensors = files.load_tensors(path).tensors
    head = '{"kind": "walker", "format_version": 2, "about": {}, "config": ' + config + "}"
    files.save_tensors(path, tensors, {weights.HEAD: head})
    (folder / "model.json").unlink()
    description = json.loads((folder / "config.json").read_text())
    del description["files"]["model.json"]
    (folder / "config.json").write_text(json.dumps(description))
    write_description(folder)


def widen(folder: Path, width: int) -> None:
    claim(folder, json.dumps({"kind": "nonlinear", "chunks": "0_1", "width": width}))


def nest(folder: Path, depth: int) -> None:
    claim(folder, '{"kind": "grouped", "walkers": ' + "[" * depth + "]" * depth + "}")


def many(folder: Path) -> None:
    walkers = [{"kind": "nonlinear", "chunks": f"{i}_{i + 1}", "width": 1} for i in range(60_000)]
    claim(folder, json.dumps({"kind": "grouped", "walkers": walkers}))


def redescribe(folder: Path) -> None:
    """model.json of another walker than the weights', and right hashes."""
    path = folder / "model.json"
    path.write_text(path.read_text().replace("0_1", "1_2"))
    write_description(folder)


REFUSED = {
    "empty": (lambda f: [path.unlink() for path in f.iterdir()], "holds no shared model, there is no config.json"),
    "foreign": (lambda f: (f / "config.json").write_text('{"model_type": "bert"}'), "does not describe a model"),
    "list": (lambda f: (f / "config.json").write_text("[1]"), "does not describe a model of mi_ml_gen"),
    "text": (lambda f: (f / "config.json").write_text("not json"), "config.json: damaged"),
    "binary": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json: damaged"),
    "deep": (lambda f: (f / "config.json").write_text("[" * 200_000), "config.json: damaged"),
    "large": (lambda f: (f / "config.json").write_bytes(b" " * 2_000_000), "not the description of a model: 2,000,000"),
    "later": (lambda f: write_description(f, format_version=2), "has layout 2, this version reads 1; upgrade"),
    "kind": (lambda f: write_description(f, kind="wlaker"), "'wlaker' is not known here; nearest known kind: walker"),
    "odd kind": (lambda f: write_description(f, kind=["walker"]), "is not known here"),
    "outside": (lambda f: write_description(f, files={"model.safetensors": "0", "../x": "0"}), "or other files than"),
    "pickle": (lambda f: write_description(f, files={"model.pkl": "0"}), "names no model.safetensors"),
    "no hashes": (lambda f: write_description(f, files=None), "names no model.safetensors"),
    "missing": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "flipped": (lambda f: flip(f / "model.safetensors"), "model.safetensors: damaged, not what config.json beside"),
    "flipped json": (lambda f: flip(f / "model.json"), "model.json: damaged, not what config.json beside"),
    "cut": (lambda f: [os.truncate(f / "model.safetensors", 300), write_description(f)], "model.safetensors"),
    "another kind": (lambda f: write_description(f, kind="mim"), "holds a walker, not a mim"),
    "another description": (redescribe, "model.json: damaged, or of another walker"),
    "another width": (lambda f: widen(f, 5), "size mismatch"),
    "huge": (lambda f: widen(f, 10**6), "asks for a tensor of 1,000,000,000,000 numbers"),
    "negative": (lambda f: widen(f, -1), "model"),
    "nested": (lambda f: nest(f, 100), "model"),
    "deeply nested": (lambda f: nest(f, 100_000), "model"),
    "many": (many, "names more layers than the file holds"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_damaged_and_foreign_folders_give_one_clear_line(tmp_path, what):
    spoil, says = REFUSED[what]
    folder = make_walker().save_pretrained(tmp_path / "w")
    spoil(folder)
    with pytest.raises(CheckpointError) as refused:
        Walker.from_pretrained(folder)
    message = str(refused.value)
    assert str(folder) in message and says in message and "\n" not in message
    assert not torch_module._global_parameter_registration_hooks and not torch_module._global_module_registration_hooks
    torch.empty(10**7)  # nothing of the bound remains


@pytest.mark.parametrize("source", ["absent", "a/b/c", "../x", "", "me/"])
def test_what_is_neither_folder_nor_repository(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="is neither a folder nor a repository OWNER/NAME"):
        sharing.load(source)


# --- the Hub


def test_a_dry_run_sends_nothing_and_shows_all(hub, tmp_path):  # noqa: F811
    upload = make_walker().push_to_hub("me/w", run=make_run(tmp_path))
    assert hub.requests == [] and upload.url is None
    assert set(upload.files) >= {"config.json", "model.safetensors", "README.md", "images/selected.png"}
    assert upload.card.startswith("---\nlibrary_name: mi_ml_gen\n") and "# w\n" in upload.card
    assert str(upload).startswith("would go to the public repository me/w:\n  config.json")


def test_what_is_pushed_is_what_lies_there(hub, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    run = make_run(tmp_path)
    folder = sharing.save(sharing.load_from_run(run), tmp_path / "w", run, "me/w", "mit")
    (folder / "notes.txt").write_text("mine")  # not ours, so it stays here
    upload = sharing.push(folder, "me/w", dry_run=False, private=True)
    repo = hub.repos["me/w"]
    assert repo.private and repo.messages[-1] == "Share a walker of mi_ml_gen"
    assert {path: file.content for path, file in repo.files.items() if path != ".gitattributes"} == {
        path: (folder / path).read_bytes() for path in upload.files
    }
    # Replaced by a model without pictures: the old ones go.
    IdentityWalker().push_to_hub("me/w", dry_run=False, licence="mit")
    assert not [path for path in repo.files if path.startswith("images/")]
    assert isinstance(Walker.from_pretrained("me/w"), IdentityWalker)
    first = next(sha for sha, files in repo.commits.items() if "images/selected.png" in files)
    assert isinstance(Walker.from_pretrained("me/w", revision=first), NonlinearWalker)


def test_files_of_one_commit_even_while_another_is_pushed(hub, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    old, new = make_walker(0), make_walker(1)
    old.push_to_hub("me/w", dry_run=False, licence="mit")
    plain = hub_client.fetch

    def fetch(reference, revision=None):
        path = plain(reference, revision)
        if reference.endswith("config.json") and hub.repos["me/w"].messages.count("Share a walker of mi_ml_gen") == 1:
            monkeypatch.setattr(sharing.hub, "fetch", plain)
            new.push_to_hub("me/w", dry_run=False, licence="mit")
        return path

    monkeypatch.setattr(sharing.hub, "fetch", fetch)
    found = NonlinearWalker.from_pretrained("me/w")
    assert torch.equal(found.walker[0].weight, old.walker[0].weight)
    assert torch.equal(NonlinearWalker.from_pretrained("me/w").walker[0].weight, new.walker[0].weight)


def test_pushing_refuses_with_a_reason(hub, tmp_path, monkeypatch):  # noqa: F811
    walker = make_walker()
    with pytest.raises(UsageError, match="states no licence; give --license"):
        walker.push_to_hub("me/w", dry_run=False)
    with pytest.raises(EnvironmentFault, match="needs a token that may write"):
        walker.push_to_hub("me/w", dry_run=False, licence="mit")
    for name in ("w", "a/b/c", "hf://me/w", "me/w@main", "/tmp/w"):
        with pytest.raises(UsageError, match="write OWNER/NAME"):
            walker.push_to_hub(name, licence="mit")
    assert hub.requests == []
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(EnvironmentFault, match=r"refuses write access \(HTTP 401\); run `hf auth login`"):
        walker.push_to_hub("me/w", dry_run=False, licence="mit")
    assert hub.repos == {}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.add("me/paper", {"paper.pdf": b"text", "config.json": b'{"model_type": "bert"}'})
    with pytest.raises(UsageError, match=r"--repo me/paper: already holds something else \(config.json, paper.pdf\)"):
        walker.push_to_hub("me/paper", dry_run=False, licence="mit")
    assert set(hub.repos["me/paper"].files) == {"paper.pdf", "config.json"}
    hub.faults.append(Fault("/commit/", status=403))
    with pytest.raises(EnvironmentFault, match=r"--repo me/w: .*HTTP 403"):
        walker.push_to_hub("me/w", dry_run=False, licence="mit")
    hub.faults[:] = [Fault("/commit/", status=500)]
    with pytest.raises(EnvironmentFault, match="HTTP 500"):
        walker.push_to_hub("me/w", dry_run=False, licence="mit")
    hub.faults.clear()
    assert walker.push_to_hub("me/w", dry_run=False, licence="mit").url  # the same call goes on
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentFault, match="HF_HUB_OFFLINE"):
        walker.push_to_hub("me/w", dry_run=False, licence="mit")


def test_repositories_that_hold_no_model(hub, tmp_path, monkeypatch):  # noqa: F811
    hub.add("me/paper", {"config.json": b'{"model_type": "bert"}'})
    hub.add("me/empty", {"paper.pdf": b"text"})
    with pytest.raises(CheckpointError, match="does not describe a model of mi_ml_gen"):
        sharing.load("me/paper")
    with pytest.raises(UsageError, match="me/empty has no such file; known files: paper.pdf"):
        sharing.load("me/empty")
    with pytest.raises(UsageError, match="there is no repository me/absent"):
        sharing.load("me/absent")


def test_a_shared_walker_serves_the_path_flags_too(hub, tmp_path, monkeypatch):  # noqa: F811
    from mi_ml_gen.walkers.spec import load_walker

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    walker = make_walker()
    walker.push_to_hub("me/w", dry_run=False, licence="mit")
    found = load_walker("hf://me/w/model.safetensors")
    assert found.config() == walker.config() and torch.equal(found.walker[0].weight, walker.walker[0].weight)


# --- the card


def make_run(place: Path, **settings: object) -> Path:
    """A run folder of a walker, as training leaves it."""
    path = place / "runs" / "0_small_0_1_none"
    config = {"generator": "/home/someone/g/small.safetensors", "g_use": ["psi=0.7"], "chunks": "0_1", "seed": 3}
    config |= {"mean": 0.0, "std": 1.0, "truncation": 2.0, "save_folder": str(place), **settings}
    with RunFolder.open(path, config) as run:
        for step in range(16, 161, 16):
            loss = 3.0 + (0.1 if step % 32 else -0.1)
            run.log(step, samples=64 * step, loss=loss, smoothed_loss=3.0, delta=1.0, pairs_per_s=50.0, saved=True)
        save_walker(path / "walker", make_walker(), generator="small", samples=3584, seed=3)
        run.write_json("summary.json", {
            "selected_samples": 64 * 80, "selected_because": "it keeps 80% of the rise", "infonce": 3.0625,
            "infonce_standard_error": 0.0125, "sgd": {"top1": 0.8, "top1_interval_95": [0.75, 0.85], "n": 1000},
        })  # fmt: skip
        for name in ("selected", "pairs_000004096", "pairs_000008192", "views_0001", "views_0005", "curves"):
            save_png(run.images / f"{name}.png", np.full((4, 4, 3), 100, np.uint8))
    known = {"torch": "2.9", "python": "3.11"}
    first = {"device": "cpu", "cpu": "A Fast CPU", "threads": 2, "processes": 1, "elapsed_s": 3600.4, **known}
    first |= {"command": f"python scripts/train_navigator.py --save_folder {place}/runs --g_path ~/g/x.pth"}
    second = {"device": "A Large GPU", "processes": 4, "mi_ml_gen": __version__, "elapsed_s": 89.7, **known}
    second |= {"command": "python scripts/train_navigator.py --chunks 0_1", "at": "2025-03-02T10:00:00Z"}
    starts = [first | {"at": "2025-03-01T10:00:00Z"}, second]
    files.write_json(path / "environment.json", {"starts": starts})
    return path


def test_the_card_tells_the_record_of_the_run(tmp_path):
    run = make_run(tmp_path)
    folder = sharing.save(make_walker(), tmp_path / "w", run, "me/walker-0", "mit")
    card = (folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front == {
        "library_name": "mi_ml_gen", "license": "mit", "tags": ["mi_ml_gen", "walker"]
    }  # fmt: skip
    lines = [line for line in card.splitlines() if line.startswith("| ")]
    rows = {name: rest.removesuffix(" |") for name, _, rest in (line[2:].partition(" | ") for line in lines)}
    assert rows["model"] == "NonlinearWalker, 40 parameters"
    assert rows["configuration"] == "kind nonlinear, chunks 0_1, width 4"
    assert rows["data"] == (
        "images that the generator `small.safetensors` (psi=0.7) makes from noise of mean 0 and standard deviation 1, "
        "truncated at 2 of these"
    )
    assert rows["command"] == (
        "`python scripts/train_navigator.py --save_folder runs --g_path x.pth`<br>"
        "`python scripts/train_navigator.py --chunks 0_1`"
    )
    assert rows["seed"] == "3" and rows["licence"] == "mit"
    assert rows["hardware"] == "2 thread(s) of A Fast CPU, then 4 x A Large GPU"
    assert rows["time"] == "1 h 1 min in 2 starts, begun 2025-03-01"
    assert rows["software"] == f"mi_ml_gen {__version__}, torch 2.9, python 3.11"
    assert rows["InfoNCE"] == "3.062 | ± 0.0125 (standard error)"
    assert rows["sgd: top-1 accuracy"] == "0.8 | 95%: 0.75 to 0.85"
    spread = "(standard deviation over 5 rows of metrics around it)"
    assert rows["loss, in training"] == f"3.02 | ± 0.1095 {spread}"  # steps 48 to 112
    assert rows["delta, the length of the perturbation, in training"] == f"1 | ± 0 {spread}"
    assert not [name for name in rows if "pairs per" in name or "smoothed" in name or "standard error" in name]
    assert "- selected because: it keeps 80% of the rise" in card
    assert [line for line in card.splitlines() if line.startswith("![")] == [
        "![anchors, and below each its positive by the selected walker](images/selected.png)",
        "![views that it was trained on, each above its partner](images/views_0005.png)",
        "![the course of training](images/curves.png)",
    ]
    assert {path.name for path in (folder / "images").iterdir()} == {"selected.png", "views_0005.png", "curves.png"}
    assert 'Walker.from_pretrained("me/walker-0")' in card and 'load_generator("small.safetensors")' in card
    assert "@article{serez2025mutual" in card
    assert str(tmp_path) not in card and "someone" not in card and "~" not in card


HOSTILE = (
    "{}\n\n<img src=x>\n",
    "`{} <img src=x>`",
    "{}\\`<img src=x>",
    "{}\\| a | <img src=x>",
    "``` {}\n```\n<img src=x>",
)


@pytest.mark.parametrize("form", HOSTILE)
def test_nothing_that_a_run_recorded_is_markup_of_the_card(tmp_path, form):
    run = make_run(tmp_path, g_use=[form.format("use")], generator=form.format("generator"), note=form.format("note"))
    record = json.loads((run / "environment.json").read_text())
    for start in record["starts"]:
        start |= {key: form.format(key) for key in ("command", "device", "cpu", "threads", "torch", "python", "at")}
    files.write_json(run / "environment.json", record)
    (run / "other.json").write_text(json.dumps({form.format("figure"): 1.5}))
    (run / "summary.json").write_text(json.dumps({form.format("reason"): form.format("because")}))
    (run / "summary.json.sha256").unlink(missing_ok=True)
    card = (sharing.save(make_walker(), tmp_path / "w", run, "me/walker-0", "mit") / "README.md").read_text()
    assert card.count("img src=x") >= 8
    text = re.sub(r"^(`{3,})\w*\n.*?^\1$", "", card.split("---\n", 2)[2], flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\\[`|\\]", "", text)  # escaped, so that they begin nothing
    text = re.sub(r"(?<!`)`[^`\n]+`(?!`)", "", text)
    assert set(re.findall(r"<[^>]*>?", text)) <= {
        "<br>", "<code>", "</code>", "<details>", "<summary>", "</summary>", "</details>"
    }  # fmt: skip
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in rows} <= {3, 4}


@pytest.mark.parametrize("repo", ["me", "../x/y", "me/a\n<b>", "hf://me/x", "me/x/y"])
def test_a_name_that_is_none_is_refused_before_anything_is_written(tmp_path, repo):
    run = make_run(tmp_path)
    for write in (lambda: sharing.prepare(run, repo), lambda: sharing.save(make_walker(), run / "shared", repo=repo)):
        with pytest.raises(UsageError, match="write OWNER/NAME"):
            write()
    assert not (run / "shared").exists()


def test_the_example_of_a_card_runs(tmp_path, monkeypatch):
    make_walker().save_pretrained(tmp_path / "w", repo="me/w")
    for name, kind in sharing.KINDS.items():
        compile(kind.use.replace("{repo}", "me/w"), name, "exec")
    walker = NonlinearWalker(Chunks(0, 1), 20)
    walker.save_pretrained(tmp_path / "t")
    program = sharing.KINDS["walker"].use.replace("{repo}", str(tmp_path / "t")).replace("{generator}", "tiny-bigbigan")
    names: dict[str, torch.Tensor] = {}
    exec(program, names)
    assert names["positives"].shape == (8, 3, 32, 32)


def test_what_is_not_recorded_is_said_to_be_missing(tmp_path):
    folder = make_walker().save_pretrained(tmp_path / "bare")
    card = (folder / "README.md").read_text()
    assert "| record | none was given: how this model was made is not known here |" in card
    assert "license" not in card.split("---")[1] and "| licence | not stated |" in card
    run = make_run(tmp_path)
    (run / "environment.json").unlink()
    for name in ("metrics.jsonl", "summary.json"):
        (run / name).unlink()
    card = (make_walker().save_pretrained(tmp_path / "w", run=run) / "README.md").read_text()
    for name in ("command", "hardware", "time", "software"):
        assert f"| {name} | not recorded |" in card
    assert "None recorded." in card


def test_a_killed_start_makes_the_time_a_least():
    starts = [{"at": "2025-03-01T10:00:00Z"}, {"elapsed_s": 59.6, "at": "2025-03-01T11:00:00Z"}]
    assert model_card.duration(starts) == "at least 1 min 0 s in 2 starts, begun 2025-03-01"
    assert model_card.duration([{"elapsed_s": 5}]) == "5 s" and model_card.duration([{}]) == ""


def test_the_run_of_one_seed_among_several_and_its_table(tmp_path):
    with RunFolder.open(tmp_path, {"dataset": "toy4", "seed": 1}):
        pass
    (tmp_path / "seed_2").mkdir()
    (tmp_path / "seed_2" / "results.csv").write_text("MI,1.25\nname,toy4\nMI_standard_error,0.02\nbad\n")
    record = model_card.RunRecord.read(tmp_path / "seed_2")
    assert record.settings["dataset"] == "toy4" and len(record.starts) == 1
    assert model_card.figures(record) == [("MI", 1.25, "± 0.02 (standard error)")]
    with pytest.raises(UsageError, match="not a run folder"):
        model_card.RunRecord.read(tmp_path / "absent" / "deeper")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(CorruptCheckpointError, match="summary.json: damaged"):
        model_card.RunRecord.read(tmp_path)


def test_a_runs_own_card_speaks_for_itself(tmp_path):
    run = make_run(tmp_path)
    (run / "card.md").write_text("# small\n\n![samples](small.png)\n\n## Quality\n\n| measure | n |\n")
    card = (make_walker().save_pretrained(tmp_path / "w", run=run) / "README.md").read_text()
    assert "*From the run's own card:*\n\n### Quality\n\n| measure | n |" in card and "small.png" not in card


# --- the script


def test_the_script_shows_and_then_pushes_what_was_read(hub, tmp_path, monkeypatch, capsys):  # noqa: F811
    run = make_run(tmp_path)
    code, out, err = call(monkeypatch, capsys, "share_model", run, "--repo", "me/w", "--license", "mit")
    assert code == 0 and err == "" and hub.requests == []
    assert "would go to the public repository me/w" in out and "nothing was sent" in out
    card = run / "shared" / "README.md"
    card.write_text(card.read_text() + "\nEdited by hand.\n")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    code, out, err = call(monkeypatch, capsys, "share_model", run, "--repo", "me/w", "--push")
    assert code == 0 and out.startswith("pushed to the public repository me/w: http") and "error" not in err
    assert hub.repos["me/w"].files["README.md"].content.endswith(b"Edited by hand.\n")
    for folder in (run, run / "shared"):  # whose card tells its readers to load me/w
        code, out, err = call(monkeypatch, capsys, "share_model", folder, "--repo", "me/v", "--push")
        assert code == 2 and "--repo me/v: " in err and "README.md names me/w; edit it there" in err
    card.write_text(card.read_text().replace("me/w", "me/v"))
    code, out, err = call(monkeypatch, capsys, "share_model", run / "shared", "--repo", "me/v", "--push")
    assert code == 0 and "me/v" in hub.repos
    card.write_text(card.read_text().replace("me/v", "me/w"))

    def refused(*argv: object) -> str:
        code, out, err = call(monkeypatch, capsys, "share_model", *argv)
        assert out == "" and err.count("\n") == 1 and err.startswith("error: "), err
        return f"{code} {err}"

    assert "states mit; edit it there" in refused(run, "--repo", "me/w", "--license", "apache-2.0")
    save_walker(run / "walker", make_walker(seed=9))
    assert refused(run, "--repo", "me/w").startswith("2 ") and "holds another model than" in refused(
        run, "--repo", "me/w"
    )
    assert refused(tmp_path, "--repo", "me/w").startswith(f"2 error: {tmp_path}: no trained model is in it")
    flip(run / "shared" / "model.safetensors")
    assert refused(run / "shared", "--repo", "me/w").startswith("3 ")
    assert refused(run).startswith("2 ")
