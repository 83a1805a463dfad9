"""Every command of README and docs/ is one that its script takes: names, flags, values and bundled configurations.

Every link between these pages leads to a file, and to a headline in it.
"""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from mi_ml_gen.core import cli, config

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"\b(?:python|torchrun\b[^\n`]*) scripts/(\w+)\.py([^\n`]*)")
OF_THE_READER = {"mine.yaml", "FILE.yaml"}
"""Files that stand for the reader's own."""


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """(script, its words) of each whole command; those with an ellipsis or a choice are left out."""
    for name, rest in COMMAND.findall(text.replace("\\\n", " ")):
        rest = rest.split("  #")[0].split(" (")[0]
        if "..." in rest or re.search(r"[\[<…]", rest):
            continue
        words = [word for word in shlex.split(rest) if word not in ("|", ")")]
        if not OF_THE_READER & set(words) and not (rest and not rest.startswith(" ")):
            yield name, words


class Taken(Exception):
    """The command line has been read, and its settings were accepted."""


def take(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a script until its flags and settings have been read. Raises UsageError for those that it does not take."""
    script = importlib.import_module(f"scripts.{name}")
    text = Path(script.__file__ or "").read_text(encoding="utf-8")
    uses_settings = "config.from_arguments" in text or "cli.begin" in text
    read, parse = config.from_arguments, cli.Parser.parse_args

    def from_arguments(*arguments, **options):
        read(*arguments, **options)
        raise Taken

    def parse_args(self, *arguments, **options):
        found = parse(self, *arguments, **options)
        if uses_settings:
            return found
        raise Taken

    monkeypatch.setattr(config, "from_arguments", from_arguments)
    monkeypatch.setattr(cli.Parser, "parse_args", parse_args)
    with pytest.raises(Taken):
        script.main(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_taken(page, monkeypatch):
    for name, words in commands(page.read_text(encoding="utf-8")):
        with monkeypatch.context() as patch:
            try:
                take(name, words, patch)
            except Exception as error:
                raise AssertionError(f"{page.name}: scripts/{name}.py {shlex.join(words)}: {error}") from error


def test_there_are_commands_and_wrong_ones_are_seen(monkeypatch):
    found = [name for page in PAGES for name, _ in commands(page.read_text(encoding="utf-8"))]
    assert len(found) > 60 and {"train_navigator", "monte_carlo_simulation", "quickstart"} - set(found) <= {
        "quickstart"
    }
    for words in ("--chunks 0_1 --no_such_flag 3", "--generator tiny-bigbigan --chunks", "--config no/such/file"):
        with monkeypatch.context() as patch, pytest.raises(Exception, match="no_such_flag|expected one|no/such/file"):
            take("train_navigator", words.split(), patch)


def anchors(page: Path) -> set[str]:
    """What a link can name in a page: its headlines, in the form that GitHub gives them."""
    outside_of_code = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", outside_of_code, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    """Links (and pictures) of a page that lead nowhere in this checkout."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        place, _, anchor = link.partition("#")
        if "://" in place:
            continue
        target = page.parent / place if place else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


def test_broken_links_are_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A title, of two\n[a](#a-title-of-two) [b](#other) [c](none.md) [d](https://example.org)\n")
    assert broken_links(page) == ["#other", "none.md"]
