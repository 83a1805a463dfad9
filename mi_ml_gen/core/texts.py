"""YAML and JSON from outside, with bounds: a small file must not take a minute, a gigabyte or the whole stack."""

from __future__ import annotations

import json
from typing import Any

import yaml

MOST_BYTES = 1_000_000
MOST_VALUES = 100_000
MOST_LEVELS = 50


class TextError(ValueError):
    """Why a text is not read; the message goes on from the file's name."""


def parse_yaml(content: str | bytes, as_text: bool = False, unique: bool = False) -> Any:
    """The values of a YAML text of plain types; with `as_text` every scalar stays the text that is written there.

    Raises TextError for what is not YAML, for more than 1 MB, more than 50 levels, and more than 100,000 values with
    every alias counted as what it stands for; with `unique` also where the outer mapping has a key twice.
    """
    loader = yaml.BaseLoader if as_text else yaml.SafeLoader
    try:
        text = _bounded(content)
        _check_size(text)
        if unique:
            _check_keys(yaml.compose(text, Loader=yaml.BaseLoader))
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, TextError):
            raise
        raise TextError(f"not a YAML file: {' '.join(str(error).split())}") from error


def parse_json(content: str | bytes) -> Any:
    """The values of a JSON text. Raises TextError for what is not JSON, and for values nested too deeply."""
    try:
        return json.loads(content)
    except RecursionError as error:
        raise TextError("its values are nested too deeply") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are such
        raise TextError(f"not JSON: {error}") from error


def _check_keys(root: yaml.Node | None) -> None:
    seen: set[str] = set()
    for key, _ in root.value if isinstance(root, yaml.MappingNode) else ():
        if str(key.value) in seen:
            raise TextError(f"{key.value} is given twice")
        seen.add(str(key.value))


def _bounded(content: str | bytes) -> str:
    if len(content) > MOST_BYTES:
        raise TextError(f"larger than {MOST_BYTES // 1000} kB, too large for settings")
    return content if isinstance(content, str) else content.decode("utf-8")


def _check_size(text: str) -> None:
    """Count levels and values from the parser's events, before any value is made."""
    sizes: dict[str, int] = {}  # of what each anchor stands for
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and the count at its start
    n_values = 0
    for event in yaml.parse(text, Loader=yaml.BaseLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, n_values))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, start = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = n_values - start
        elif isinstance(event, yaml.AliasEvent):
            n_values += sizes.get(event.anchor or "", 1)
        elif isinstance(event, yaml.ScalarEvent):
            n_values += 1
        if len(open_nodes) > MOST_LEVELS:
            raise TextError(f"more than {MOST_LEVELS} levels deep, too deep for settings")
        if n_values > MOST_VALUES:
            raise TextError(f"more than {MOST_VALUES:,} values, aliases counted, too many for settings")
