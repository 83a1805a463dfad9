"""Typed settings: a dataclass whose fields are options, read from defaults, then a YAML file, then flags.

    @dataclass
    class NavigatorConfig:
        num_samples: int = option(1_024_000, help="anchors to train on", positive=True)
        lr_walk: float = option(8e-5, help="learning rate of the walker", positive=True)
        precision: Literal["fp32", "bf16"] = option("fp32", help="of the networks")

    config.add_arguments(parser, NavigatorConfig)              # --num_samples N --lr_walk X --precision ...
    settings = config.from_arguments(NavigatorConfig, parser.parse_args(argv))

Types of fields: int, float, str, bool, Path, Literal, any of these `| None`, and list or tuple of them.
Whatever is wrong with a value is a UsageError that says where the value came from: `--num_samples -5: must be
at least 1`.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import math
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from mi_ml_gen.core.errors import UsageError, nearest

C = TypeVar("C")

REQUIRED: Any = dataclasses.MISSING
NOTHING = ("none", "null", "~", "")  # the ways to write None where a field allows it
BUNDLED = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True)
class Rule:
    """What a value of one option must satisfy, beside its type; bounds apply to each item of a list."""

    help: str = ""
    choices: tuple[Any, ...] | None = None
    flag: str | None = None  # where it is not the field's name
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None


def option(
    default: Any = REQUIRED,
    *,
    help: str = "",
    choices: Collection[Any] | None = None,
    flag: str | None = None,
    positive: bool = False,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field that is also a flag and a YAML key; without a default it must be given.

    `positive` is short for above=0. `flag` names the flag where it differs from the field ("--lr_MI" or
    "lr_MI").
    """
    rule = Rule(
        help=help,
        choices=None if choices is None else tuple(choices),
        flag=None if flag is None else flag.lstrip("-"),
        at_least=at_least,
        at_most=at_most,
        above=0 if positive else above,
        below=below,
    )
    metadata = {"rule": rule}
    if isinstance(default, (list, dict, set)):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata, kw_only=True)
    return dataclasses.field(default=default, metadata=metadata, kw_only=True)


# --- from the command line, a file, and overrides -----------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser, config_class: type) -> None:
    """Declare one flag per field, named as the field, and --config FILE.yaml. A dash may stand for each
    underscore.

    A bool is a bare flag, and --no_NAME turns off what a file has turned on. A list takes several values.
    """
    group = parser.add_argument_group("settings (defaults, then --config, then flags)")
    group.add_argument("--config", metavar="FILE.yaml", help="settings from a file, or a bundled one by name")
    for spec in _specs(config_class):
        description = _description(spec)
        if spec.kind is bool:
            for value, name in ((True, spec.flag), (False, f"no_{spec.flag}")):
                shown = value is not (spec.default is True)  # the one that changes something
                _add_flag(group, spec, name, shown and description, action="store_const", const=value)
        else:
            several = {"nargs": "+"} if spec.many else {}
            _add_flag(group, spec, spec.flag, description, metavar=_metavar(spec), **several)


def from_arguments(config_class: type[C], namespace: argparse.Namespace) -> C:
    """The configuration that a parsed command line means: defaults < the file of --config < flags actually
    given."""
    values = _read_file(config_class, getattr(namespace, "config", None))
    for spec in _specs(config_class):
        given = getattr(namespace, spec.name, None)
        if given is not None:
            text = " ".join(map(str, given)) if isinstance(given, list) else given
            values[spec.name] = _convert(spec, given, f"--{spec.flag} {text}")
    return _build(config_class, values)


def load(
    config_class: type[C],
    path: str | Path | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> C:
    """The configuration of a YAML file (or bundled name) with overrides: a mapping, or a list of
    "key=value"."""
    return _build(config_class, _read_file(config_class, path) | given(config_class, overrides))


def given(
    config_class: type, overrides: Mapping[str, Any] | Sequence[str], flag: str = "", where: str = ""
) -> dict[str, Any]:
    """The values of those settings alone that `overrides` name: a mapping, or a list of "key=value".

    Raises UsageError as the readers above do. For its messages: `flag` gave the overrides, `where` tells more of
    where an unknown key was met.
    """
    values = {}
    for key, value in _pairs(overrides):
        spec = _known(config_class, key, where)
        values[spec.name] = _convert(spec, value, f"{flag} {key}={value}".lstrip())
    return values


def validate(config: Any) -> None:
    """Check the values of a configuration made in Python. Raises UsageError as the readers above do."""
    for spec in _specs(type(config)):
        value = getattr(config, spec.name)
        if value != spec.default:
            _convert(spec, value, f"{spec.name}={value}")


def to_dict(config: Any) -> dict[str, Any]:
    """All settings by name, in values that YAML and JSON know: paths as text, tuples as lists."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def to_yaml(config: Any) -> str:
    """All settings as the text of a YAML file that `load` reads back to an equal configuration."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def _read_file(config_class: type, path: str | Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    path = _find(path)
    try:
        # Every scalar as text: YAML's own guesses take the chunks 1_6 for the number 16, and 8e-5 for text.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UsageError(f"{path}: must hold lines of the form key: value")
    values: dict[str, Any] = {}
    for key, value in _entries(content, {name for spec in _specs(config_class) for name in (spec.name, spec.flag)}):
        spec = _known(config_class, str(key), f" in {path}")
        if spec.name in values:
            raise UsageError(f"{path}: {key} is given twice")
        values[spec.name] = _convert(spec, value, f"{key}: {value} in {path}")
    return values


def _entries(content: dict[Any, Any], settings: Collection[str]) -> Iterator[tuple[Any, Any]]:
    """The settings of a file; a section (a key that is no setting, and whose value is a mapping) only groups those that
    are in it."""
    for key, value in content.items():
        if isinstance(value, dict) and key not in settings:
            yield from _entries(value, settings)
        else:
            yield key, value


def _known(config_class: type, key: str, where: str) -> _Spec:
    """The field that `key` means, by its own name or its flag's."""
    specs = _specs(config_class)
    for spec in specs:
        if key in (spec.name, spec.flag):
            return spec
    raise UsageError(f"unknown key {key}{where}{nearest(key, [spec.flag for spec in specs], 'key')}")


def _find(path: str | Path) -> Path:
    """The file itself, or the bundled configuration of that name (also where a folder has the same one)."""
    bundled = BUNDLED / f"{path}.yaml"
    return bundled if not Path(path).is_file() and bundled.is_file() else Path(path)


def _build(config_class: type[C], values: dict[str, Any]) -> C:
    for spec in _specs(config_class):
        if spec.default is REQUIRED and spec.name not in values:
            raise UsageError(f"--{spec.flag} must be given{': ' + spec.rule.help if spec.rule.help else ''}")
    return config_class(**values)


def _pairs(overrides: Mapping[str, Any] | Sequence[str]) -> list[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        return list(overrides.items())
    for text in overrides:
        if "=" not in text:
            raise UsageError(f"override {text!r}: must have the form key=value")
    return [(key.strip(), value.strip()) for key, _, value in (text.partition("=") for text in overrides)]


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


# --- one field and its value --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Spec:
    """One field, its type taken apart: `list[int] | None` is kind int, many list, optional."""

    name: str
    flag: str
    rule: Rule
    kind: Any  # int, float, str, bool, Path or Any
    default: Any
    many: type | None  # list or tuple
    length: int | None  # of a tuple of fixed length
    optional: bool
    choices: tuple[Any, ...] | None


def _specs(config_class: type) -> list[_Spec]:
    hints = typing.get_type_hints(config_class)
    return [_spec(field, hints[field.name]) for field in dataclasses.fields(config_class)]


def _spec(field: dataclasses.Field, hint: Any) -> _Spec:
    rule = field.metadata.get("rule", Rule())
    optional, many, length, choices = False, None, None, rule.choices
    if typing.get_origin(hint) in (Union, types.UnionType):
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        optional = len(members) < len(typing.get_args(hint))
        hint = members[0] if len(members) == 1 else Any
    if typing.get_origin(hint) in (list, tuple):
        many, items = typing.get_origin(hint), typing.get_args(hint)
        length = len(items) if many is tuple and Ellipsis not in items else None
        hint = items[0]
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        hint = type(choices[0])
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return _Spec(field.name, rule.flag or field.name, rule, hint, default, many, length, optional, choices)


def _convert(spec: _Spec, value: Any, where: str) -> Any:
    """`value`, text of a flag or a value of YAML, as the field's type. Raises UsageError that begins with
    `where`."""
    try:
        if spec.optional and (value is None or value in NOTHING or value in [[word] for word in NOTHING]):
            return None
        if spec.many is None:
            return _checked(spec, _scalar(spec.kind, value))
        items = [_checked(spec, _scalar(spec.kind, item)) for item in _split(value)]
        if spec.length is not None and len(items) != spec.length:
            raise ValueError(f"must be {spec.length} values, not {len(items)}")
        return spec.many(items)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None


def _split(value: Any) -> list[Any]:
    """The items of a list that came as YAML, as several words of a flag, or with commas between."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, (list, tuple)):
        return [part for item in value for part in (_split(item) if isinstance(item, str) else [item])]
    return [value]


def _scalar(kind: Any, value: Any) -> Any:
    """One value as `kind`: from text, or from a value of that kind already."""
    if kind is Any:
        return value
    if kind is bool:
        return _truth(value)
    if kind is int:
        return _whole(value)
    if kind is float:
        return _real(value)
    if isinstance(value, (str, Path)):
        return kind(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and kind is str:
        return str(value)
    raise ValueError("must be text")


def _truth(value: Any) -> bool:
    text = str(value).lower()
    if text not in ("true", "yes", "on", "1", "false", "no", "off", "0"):
        raise ValueError("must be true or false")
    return text in ("true", "yes", "on", "1")


def _whole(value: Any) -> int:
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            return int(value)
    raise ValueError("must be a whole number")


def _real(value: Any) -> float:
    number = math.nan
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            number = float(value)
    if not math.isfinite(number):
        raise ValueError("must be a finite number")
    return number


def _checked(spec: _Spec, value: Any) -> Any:
    rule = spec.rule
    if spec.choices is not None and value not in spec.choices:
        raise ValueError(f"must be one of {', '.join(map(str, spec.choices))}")
    if spec.kind is int and rule.above is not None and value <= rule.above:
        raise ValueError(f"must be at least {math.floor(rule.above) + 1}")
    if rule.above is not None and value <= rule.above:
        raise ValueError(f"must be above {rule.above}")
    if rule.at_least is not None and value < rule.at_least:
        raise ValueError(f"must be at least {rule.at_least}")
    if rule.at_most is not None and value > rule.at_most:
        raise ValueError(f"must be at most {rule.at_most}")
    if rule.below is not None and value >= rule.below:
        raise ValueError(f"must be below {rule.below}")
    return value


def _add_flag(group: Any, spec: _Spec, name: str, description: str | bool, **settings: Any) -> None:
    """Declare --name, shown with `description` or hidden without one, and its hidden twin with dashes."""
    settings |= {"dest": spec.name, "default": None}
    group.add_argument(f"--{name}", help=description or argparse.SUPPRESS, **settings)
    if "_" in name:
        group.add_argument(f"--{name.replace('_', '-')}", help=argparse.SUPPRESS, **settings)


def _metavar(spec: _Spec) -> str:
    if spec.choices is not None and not spec.many:
        return "{" + ",".join(map(str, spec.choices)) + "}"
    return {int: "N", float: "X", Path: "PATH"}.get(spec.kind, "TEXT")


def _description(spec: _Spec) -> str:
    default = _plain(spec.default)
    if spec.kind is bool or default in (None, ""):
        note = ""
    elif spec.default is REQUIRED:
        note = " (must be given)"
    else:
        note = f" (default {default})"
    return (spec.rule.help + note).strip().replace("%", "%%") or spec.name
