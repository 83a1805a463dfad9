"""The grammar of T_z: what each form means wherever it is written, and what a wrong part is told."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
import yaml

from mi_ml_gen.core.errors import MiMlGenError, UsageError
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.hub import assets
from mi_ml_gen.latents import Chunks, LatentLayout, TruncatedNormal
from mi_ml_gen.walkers import spec
from mi_ml_gen.walkers.base import IdentityWalker
from mi_ml_gen.walkers.files import save_walker
from mi_ml_gen.walkers.grouped import GroupedWalker
from mi_ml_gen.walkers.learned import NonlinearWalker
from mi_ml_gen.walkers.noise import OccasionalNormal, RandomWalker
from mi_ml_gen.walkers.spec import is_groups, load_groups, load_walker, read_groups, walker_from


class Four(MultiLatentGenerator):
    name, layout, noise_dim, resolution = "four", LatentLayout((3,) * 4), 12, 8


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a walker on chunk 0 in a run folder, and under names that are hard to write."""
    monkeypatch.chdir(tmp_path)
    walker = NonlinearWalker("0_1", 3)
    for place in ("run/walker", "my runs/walker", "lr=0.1/w", "a 1_2=b/w", "0_1=x/w", "one,two/w"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        save_walker(tmp_path / place, walker)
    return walker.config()


NOISE = [
    ("0.5", TruncatedNormal(0, 0.5, 2)),
    (".5", TruncatedNormal(0, 0.5, 2)),
    ("5e-1", TruncatedNormal(0, 0.5, 2)),
    ("0.1,0.5,1.5", TruncatedNormal(0.1, 0.5, 1.5)),
    ("-0.1, 0.5 , inf", TruncatedNormal(-0.1, 0.5, math.inf)),
    ("[0, 0.5, 2]", TruncatedNormal(0, 0.5, 2)),
    ("0.1,0.5", OccasionalNormal(0.1, 0.5)),
]


@pytest.mark.parametrize(("text", "distribution"), NOISE, ids=[text for text, _ in NOISE])
def test_noise_means_the_same_wherever_it_is_written(tmp_path, text, distribution):
    (tmp_path / "groups.yaml").write_text(f"1_3: {text}\n")
    written = [f"1_3={text}", {"1_3": text}, {Chunks(1, 3): text}, tmp_path / "groups.yaml"]
    for one in written:
        (member,) = walker_from(one, Four()).members
        assert isinstance(member, RandomWalker) and member.chunks == (Chunks(1, 3),)
        assert member.distribution == distribution, one


def test_a_number_alone_is_a_standard_deviation():
    for one in ("0_1=0.5", {"0_1": 0.5}, {"0_1": "0.5"}, {"0_1": (0, 0.5, 2)}):
        assert walker_from(one, Four()).members[0].distribution == TruncatedNormal(0, 0.5, 2)


@pytest.mark.parametrize("nothing", ["none", "null", "~", "", "  none ", None])
def test_nothing_is_no_perturbation(nothing):
    assert isinstance(walker_from(nothing, Four()), IdentityWalker)
    groups = walker_from({"0_1": nothing, "1_2": "0.5"}, Four())
    assert groups.chunks == (Chunks(1, 2),)


FILES = [
    "run",
    "run/walker.safetensors",
    "run/walker.json",
    "my runs",
    "my runs/walker.safetensors",
    "lr=0.1/w.safetensors",
    "one,two/w.json",
    '"a 1_2=b/w.safetensors"',
    "'a 1_2=b/w.safetensors'",
    "./0_1=x/w.safetensors",
]


@pytest.mark.parametrize("text", FILES)
def test_files_are_read_wherever_they_are_written(here, tmp_path, text):
    """Alone, in groups first and last, in a mapping, and in a file of groups of another folder."""
    (tmp_path / "groups.yaml").write_text(yaml.safe_dump({"0_1": text, "1_2": None}))
    assert walker_from(text, Four()).config() == here
    written = [f"0_1={text} 2_3=0.5", f"2_3=0.5 0_1={text}", {"0_1": text, "2_3": 0.5}, f"0_1={text}"]
    for one in [*written, "groups.yaml", tmp_path / "groups.yaml"]:
        found = [member.config() for member in walker_from(one, Four()).members if isinstance(member, NonlinearWalker)]
        assert found == [here], one


def test_paths_in_a_file_of_groups_count_from_the_file(here, tmp_path, monkeypatch):
    (tmp_path / "groups.yaml").write_text("0_1: my runs\n1_2: 0.5\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for walker in (walker_from("../groups.yaml", Four()), load_groups(tmp_path / "groups.yaml", Four())):
        assert walker.members[0].config() == here


def test_references_go_to_the_reader_of_references(here, tmp_path, monkeypatch):
    """A name of the table, addresses and folders of the Hub, alone and in groups."""
    asked = []

    def local_path(reference):
        asked.append(str(reference))
        return tmp_path / "run" / "walker.safetensors"

    monkeypatch.setattr(spec.hub, "local_path", local_path)
    name = next(iter(assets.assets().artifacts))
    for text in ("hf://me/w/walker.safetensors@v1", name, "https://a.org/w.safetensors?x=1"):
        for one in (text, f"0_1={text} 1_2=0.5", {"0_1": text}):
            asked.clear()
            walker = walker_from(one, Four())
            member = walker.members[0] if isinstance(walker, GroupedWalker) else walker
            assert asked[0] == text and member.config() == here
    asked.clear()
    walker_from("hf://me/w", Four())
    assert assets.parse(asked[0]) == assets.parse("hf://me/w/walker.safetensors")


def test_a_walker_of_python_is_taken_as_it_is():
    own = RandomWalker("0_1", 0.5)
    assert walker_from(own, Four()) is own
    assert walker_from({"0_1": own}, Four()).members == (own,)


def test_groups_are_cut_at_chunks_alone():
    text = "0_1=my runs/a 1_2=0, 1, 2 2_3=\"x 3_4=y\" 3_4='z'"
    assert read_groups(text) == {"0_1": "my runs/a", "1_2": "0, 1, 2", "2_3": '"x 3_4=y"', "3_4": "'z'"}
    assert is_groups("0_1=x") and is_groups("  10_12=x") and not is_groups("./0_1=x") and not is_groups("lr=0.1/0_1")


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("0_5=0.5", "--Tz 0_5=0.5: group 0_5: stop must be at most 4; four has chunks 0_4"),
        ("2_1=0.5", "group 2_1: start must be below stop"),
        ("-1_2=0.5", "group -1_2: start must be at least 0"),
        ("0_1=0.5 0_1=0.7", "group 0_1 is given twice"),
        ("0_2=0.5 1_3=0.5", "1_3 overlaps another group"),
        ("0_1= 1_2=0.5", "nothing follows 0_1=; write for example 0_1=0.5"),
        ("0_1=0.5 nonsense", "group 0_1: '0.5 nonsense' is neither noise (mean,std,truncation) nor a file"),
        ("0_1=0,x,2", "group 0_1: '0,x,2' is neither noise (mean,std,truncation) nor a file"),
        ("0_1=0.5,1_2=0.5", "group 0_1: '0.5,1_2=0.5' is neither noise"),
        ("0_1=1_0", "group 0_1: 1_0: no such file"),
        ("0_1=0,1,2,3", "group 0_1: noise [0.0, 1.0, 2.0, 3.0]: give std, [mean, std, truncation] or [low, high]"),
        ("0_1=[1]", "group 0_1: noise [1.0]: give std, [mean, std, truncation] or [low, high]"),
        ("0_1=-0.5", "group 0_1: std -0.5: must be a finite number of at least 0"),
        ("0_1=0,1,0", "group 0_1: truncation 0.0: must be above 0"),
        ("0_1=nan", "group 0_1: nan: no such file"),
        ("1_2=run", "1_2: its walker was trained on chunks 0_1"),
        ("0_1=gone/w.safetensors", "group 0_1: gone/w.safetensors: no such file"),
        ("0_1=empty", "group 0_1: empty: holds no walker.safetensors"),
        ("0_1=groups.yaml", "group 0_1: groups.yaml: is a file of groups, but the file of a single walker is needed"),
        ("0.5", "--Tz 0.5: names no chunks; for noise on all of four write 0_4=0.5"),
        ("0,0.5,2", "for noise on all of four write 0_4=0,0.5,2"),
        ("a_b=0.5", "--Tz a_b=0.5: no such file; groups begin with CHUNKS=, START_STOP from 0_4: 0_1=0.5 1_4="),
        ("3=0.5", "--Tz 3=0.5: no such file; groups begin with CHUNKS="),
        ("nowhere", "nowhere: no such file"),
        ({"0_1": {"std": 1}}, "groups: group 0_1: {'std': 1}: must be a walker's path"),
        ({"0_1": True}, "groups: group 0_1: True: must be a walker's path"),
        ({"0_1": []}, "groups: group 0_1: []: must be a walker's path"),
        ({4: 0.5}, "groups: group 4: write START_STOP"),
        (["0_1=0.5"], "--Tz ['0_1=0.5']: give text such as '0_1=0.5 1_4=0,0.8,2 4_6=walker_runs/fine'"),
        (0.5, "--Tz 0.5: give text such as"),
        (RandomWalker("3_5", 0.5), "a walker on chunks 3_5: stop must be at most 4"),
        (NonlinearWalker("0_1", 5), "a walker of width 5 on chunks 0_1 does not fit four"),
        ({"0_1": NonlinearWalker("0_1", 5)}, "a walker of width 5 on chunks 0_1 does not fit four"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_the_wrong_part_is_named(here, tmp_path, written, says):
    (tmp_path / "empty").mkdir()
    (tmp_path / "groups.yaml").write_text("0_1: 0.5\n")
    with pytest.raises(MiMlGenError) as refused:
        walker_from(written, Four(), flag="--Tz")
    assert says in str(refused.value) and "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: RandomWalker("0-1", 0.5), "chunks '0-1': give Chunks"),
        (lambda: RandomWalker(0, 0.5), "chunks 0: give Chunks"),
        (lambda: RandomWalker("0_1"), "RandomWalker on chunks 0_1: give its noise"),
        (lambda: RandomWalker("0_1", "much"), "noise 'much': give std"),
        (lambda: RandomWalker("0_1", {"std": 1}), "give std, [mean, std, truncation]"),
        (lambda: GroupedWalker.from_groups({"0_1": "run"}, 4), "noise 'run': give std"),
    ],
)
def test_random_walkers_refuse_what_is_no_noise(make, says):
    with pytest.raises(UsageError) as refused:
        make()
    assert says in str(refused.value)


def test_the_former_name_of_the_noise_still_works():
    walker = RandomWalker(Chunks(0, 1), law=TruncatedNormal(0, 0.3, 2))
    assert walker.law is walker.distribution and walker.distribution.std == 0.3


def test_noise_of_the_users_own_is_drawn_but_not_saved(tmp_path):
    class Ones:
        def sample(self, shape, generator=None, device=None):
            return torch.ones(shape, device=device)

    walker = RandomWalker("1_2", Ones())
    pair = walker(Four(), torch.zeros(2, 12))
    assert pair.positive.sum() == 6
    with pytest.raises(UsageError, match="only truncated normal noise can be saved"):
        save_walker(tmp_path / "w", walker)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_has_not_ended_is_named(tmp_path):
    (tmp_path / "walkers").mkdir()
    with pytest.raises(UsageError, match=r"no walker.safetensors, which every finished run of train_navigator.py has"):
        load_walker(tmp_path)


# --- the documentation


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "navigator.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(example, names)
    assert names["anchors"].shape == (8, 3, 32, 32) and names["chunks"] == Chunks(1, 4)
    assert (tmp_path / "pairs.png").read_bytes().startswith(b"\x89PNG")
    assert names["same"].members[0].config() == names["walker"].config()


def test_every_form_of_the_documentation_is_groups_or_a_file():
    """The table of docs/navigator.md: texts of groups are read as groups of valid chunks, all others as files."""
    text = (Path(__file__).parents[2] / "docs" / "navigator.md").read_text(encoding="utf-8")
    rows = re.search(r"\| T_z \| meaning \|\n\| --- \| --- \|\n(.*?)\n\n", text, re.DOTALL)[1].splitlines()
    forms = [form.strip('"') for row in rows for form in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    groups = [form for form in forms if is_groups(form)]
    files = set(forms) - set(groups)
    assert {"0_1=0.5", "0_6=0.1,0.5"} <= set(groups) and {"none", "walker_runs/coarse", "groups.yaml"} <= files
    for form in groups:
        assert all(Chunks.parse(chunks, 6) for chunks in read_groups(form))
