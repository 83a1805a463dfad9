"""Registries: names, lazy entries, users' files, entry points, and one line for what is wrong."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys

import pytest

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.registry import Registry, load_object, short_name


@pytest.fixture
def colours() -> Registry:
    registry = Registry("colour", "--colour", "tests.colours", adapt=lambda name, found: found)
    registry.add("red", 1)

    @registry.lazily("blue")
    def blue():
        return 2

    return registry


def test_entries_by_name(colours):
    @colours.register("green")
    class Green:
        pass

    assert colours["green"] is Green and colours["blue"] == 2 and dict(colours)["red"] == 1
    assert list(colours) == ["red", "blue", "green"] and len(colours) == 3 and "grey" not in colours
    assert colours.get("grey") is None and colours.get("red") == 1
    colours.check("red")
    colours.check("file.py:Class")  # believed
    for ask in (colours.__getitem__, colours.check):
        with pytest.raises(UsageError, match=r"--colour grey: must be one of red, blue, green, or FILE.py:CLASS"):
            ask("grey")
    with pytest.raises(UsageError, match="colour 'a/b': a name has letters"):
        colours.add("a/b", 3)


def test_lazy_entries_are_made_when_they_are_asked_for(colours):
    made = []
    colours.lazily("late")(lambda: made.append(1) or "entry")
    assert "late" in colours and colours.names() and made == []
    assert colours["late"] == colours["late"] == "entry" and made == [1]


def test_a_class_in_a_file(colours, tmp_path, monkeypatch):
    (tmp_path / "beside.py").write_text("VALUE = 7\n")
    path = tmp_path / "mine.py"
    path.write_text("import beside\n\n\nclass Mine:\n    value = beside.VALUE\n")
    before = list(sys.path)
    found = colours[f"{path}:Mine"]
    assert found.value == 7 and colours[f"{path}:Mine"] is found and sys.path == before
    monkeypatch.chdir(tmp_path)
    assert load_object("mine.py:Mine") is found  # the same file is run once
    assert short_name(f"{path}:Mine") == "Mine" and short_name("red") == "red"
    assert load_object("mi_ml_gen.core.registry:Registry") is Registry


def test_a_file_and_its_import_are_one_module(tmp_path, monkeypatch):
    """Whichever comes first; a file of another folder with the same name is another."""
    monkeypatch.syspath_prepend(tmp_path)
    for stem, text in (("first_16", "class Mine: pass\n"), ("later_16", "class Mine: pass\n")):
        (tmp_path / f"{stem}.py").write_text(text)
    first = importlib.import_module("first_16")
    assert load_object(f"{tmp_path / 'first_16.py'}:Mine") is first.Mine
    found = load_object(f"{tmp_path / 'later_16.py'}:Mine")
    assert importlib.import_module("later_16").Mine is found
    other = tmp_path / "other"
    other.mkdir()
    (other / "first_16.py").write_text("class Mine: pass\n")
    assert load_object(f"{other / 'first_16.py'}:Mine") is not first.Mine
    for stem in ("first_16", "later_16"):
        del sys.modules[stem]


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        (None, "x.py:Mine", "there is no file"),
        ("class Mine: pass\n", "x.py:Mein", "defines no Mein; nearest known class: Mine"),
        ("import nothing_such\n", "x.py:Mine", "No module named 'nothing_such'"),
        ("class Mine(\n", "x.py:Mine", "SyntaxError"),
        ("def f():\n    return 1 / 0\nf()\n", "x.py:Mine", "ZeroDivisionError: division by zero ("),
        ("", "x.txt:Mine", "write FILE.py:CLASS"),
        ("", "x=3:Mine", "write FILE.py:CLASS"),
        ("", "no_such_module:Mine", "there is no module no_such_module"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, monkeypatch, text, name, says):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "x.py").write_text(text)
    with pytest.raises(UsageError) as refused:
        load_object(name, "--colour")
    assert str(refused.value).startswith(f"--colour {name}: ") and says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_entry_points_of_installed_packages(colours, monkeypatch):
    point = importlib.metadata.EntryPoint("violet", "mi_ml_gen.core.registry:Registry", "tests.colours")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if group == "tests.colours" else [])
    assert "violet" in colours and colours["violet"] is Registry


def test_names_are_listed_without_torch():
    program = (
        "import sys\n"
        "from mi_ml_gen.generators.families import bundled, check_name, names\n"
        "from mi_ml_gen.encoders.registry import method_names\n"
        "assert 'tiny-bigbigan' in bundled() and 'bigbigan' in names() and 'byol' in method_names()\n"
        "check_name('stylegan')\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
