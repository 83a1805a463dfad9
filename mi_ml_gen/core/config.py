"""Typed settings: a dataclass whose fields are options, read from defaults, then a YAML file, then flags.

    @dataclass
    class NavigatorConfig:
        num_samples: int = option(1_024_000, help="anchors to train on", positive=True)
        lr_walk: float = option(8e-5, help="learning rate of the walker", positive=True)
        precision: Literal["fp32", "bf16"] = option("fp32", help="of the networks")

    config.add_arguments(parser, NavigatorConfig)              # --num_samples N --lr_walk X --precision ...
    settings = config.from_arguments(NavigatorConfig, parser.parse_args(argv))

Types of fields: int, float, str, bool, Path, Literal, any of these `| None`, and list or tuple of them. A type beside
a Literal, `int | Literal["random"]`, also takes those words.
Whatever is wrong with a value is a UsageError that says where the value came from: `--num_samples -5: must be
at least 1`.

Options that several commands share are declared once, in the groups of `mi_ml_gen.core.settings`. A class inherits the
groups that it needs, and `redefined` changes a default. `free(NavigatorConfig)` names the options that may change when
a run is resumed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from mi_ml_gen.core.errors import UsageError, nearest
from mi_ml_gen.core.texts import TextError, parse_yaml

C = TypeVar("C")

REQUIRED: Any = dataclasses.MISSING
NOTHING = ("none", "null", "~", "")  # the ways to write None where a field allows it
BUNDLED = Path(__file__).parents[1] / "configs"
LARGEST_FLOAT32 = 3.4028234663852886e38
LARGEST_INT64 = 2**63 - 1


@dataclass(frozen=True)
class Rule:
    """What a value of one option must satisfy, beside its type; bounds apply to each item of a list."""

    help: str = ""
    choices: tuple[Any, ...] | None = None
    flag: str | None = None  # where it is not the field's name
    aliases: tuple[str, ...] = ()  # further spellings, which work and are not shown
    free: bool = False  # may differ when a run is resumed
    inside: bool = False  # part of a path that must stay inside the folder it is joined to
    later: bool = False  # younger than the first run folders: left out of records while it has its default
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
    aliases: Collection[str] = (),
    free: bool = False,
    inside: bool = False,
    later: bool = False,
    positive: bool = False,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field that is also a flag and a YAML key; without a default it must be given.

    flag: its name on the command line, where it differs from the field's ("--lr_MI" or "lr_MI"). The field's own name
    then still works, and so do the `aliases`; the help shows none of them. free: the value may change when a run is
    resumed. inside: the text becomes part of a path and must not lead out of its folder. later: the option came when
    there were run folders already; `to_dict` leaves it out while it has its default, so that those can be resumed.
    positive: short for above=0.
    """
    rule = Rule(
        help=help,
        choices=None if choices is None else tuple(choices),
        flag=None if flag is None else flag.lstrip("-"),
        aliases=tuple(alias.lstrip("-") for alias in aliases),
        free=free,
        inside=inside,
        later=later,
        at_least=at_least,
        at_most=at_most,
        above=0 if positive else above,
        below=below,
    )
    return _field(default, rule)


def redefined(group: type, name: str, default: Any = REQUIRED, **changes: Any) -> Any:
    """The option `name` of a shared group of settings with another default, and other parts of its rule:

    save_folder: str = redefined(InFolder, "save_folder", "./walker_runs")
    """
    rule = next(field for field in dataclasses.fields(group) if field.name == name).metadata["rule"]
    return _field(default, dataclasses.replace(rule, **changes))


def free(config_class: type) -> tuple[str, ...]:
    """Names of the settings that may change when a run is resumed."""
    return tuple(field.name for field in dataclasses.fields(config_class) if _rule(field).free)


def resuming(config_class: type) -> dict[str, Any]:
    """What `RunFolder.open` and `Session.open` must know of the settings to reopen a run: `free`, the names of those
    that may change, and `defaults`, the default of each that has one."""
    specs = _specs(config_class)
    with_default = {spec.name: _plain(spec.default) for spec in specs if spec.default is not REQUIRED}
    return {"free": free(config_class), "defaults": with_default}


def leads_out(text: str) -> bool:
    """Whether a part of a path is absolute or climbs out of the folder that it is joined to."""
    return text.startswith("/") or ".." in text.replace("\\", "/").split("/") or not text.isprintable()


def inside(folder: str | Path, name: str) -> Path:
    """folder/name. Raises UsageError where the name leads out of the folder, as "../x" and "/x" do."""
    if leads_out(name):
        raise UsageError(f"the folder's name {name!r} leads out of {folder}; give a plain name")
    return Path(folder) / name


def _field(default: Any, rule: Rule) -> Any:
    metadata = {"rule": rule}
    if isinstance(default, (list, dict, set)):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata, kw_only=True)
    return dataclasses.field(default=default, metadata=metadata, kw_only=True)


def _rule(field: dataclasses.Field) -> Rule:
    return field.metadata.get("rule", Rule())


# --- from the command line, a file, and overrides -----------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser, config_class: type, file: bool = True) -> None:
    """Declare one flag per field, named as the field, and with `file` --config FILE.yaml; the flags of a shared group
    stand under its title.

    A bool is a bare flag, and --no_NAME turns off what a file has turned on. A list takes several values.
    """
    groups: dict[str, Any] = {}

    def group(title: str) -> Any:
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        return groups[title]

    main = "settings (defaults, then --config, then flags)" if file else "further settings"
    if file:
        about = "YAML file of settings, or the name of a bundled one"
        group(main).add_argument("--config", metavar="FILE.yaml", help=about)
    for spec in _specs(config_class):
        where, description = group(_section(config_class, spec.name) or main), _description(spec)
        if spec.kind is bool:
            for value, prefix in ((True, ""), (False, "no_")):
                shown = value is not (spec.default is True)  # the one that changes something
                _add_flags(where, spec, prefix, shown and description, const=value)
        else:
            several = {"nargs": "+"} if spec.many else {}
            _add_flags(where, spec, "", description, metavar=_metavar(spec), **several)


def from_arguments(config_class: type[C], namespace: argparse.Namespace, file: bool = True) -> C:
    """The configuration that a parsed command line means: defaults < the file of --config < flags actually given."""
    values = _read_file(config_class, getattr(namespace, "config", None) if file else None)
    spelled = getattr(namespace, _Set.SPELLED, {})
    for spec in _specs(config_class):
        given = getattr(namespace, spec.name, None)
        if given is not None:
            text = " ".join(map(str, given)) if isinstance(given, list) else given
            values[spec.name] = _convert(spec, given, f"{spelled.get(spec.name, f'--{spec.flag}')} {text}")
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
    """All settings by name, in values that YAML and JSON know: paths as text, tuples as lists.

    Those that are `later` are left out while they have their defaults.
    """
    values = _values(config)
    unset = {f.name for f in dataclasses.fields(config) if _rule(f).later and getattr(config, f.name) == f.default}
    return {name: value for name, value in values.items() if name not in unset}


def _values(config: Any) -> dict[str, Any]:
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def to_yaml(config: Any, as_flags: bool = False) -> str:
    """All settings as the text of a YAML file that `load` reads back to an equal configuration; with `as_flags` under
    the names that the command line shows."""
    values = _values(config)
    if as_flags:
        values = {spec.flag: values[spec.name] for spec in _specs(type(config))}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def named(folder: str, name: str | None, other: str | None = None) -> str | None:
    """What --config takes for what --conf, its published spelling, names: a configuration in a bundled folder
    ("encoders"), or a file.

    Without a name that is `other`, what --config was given. Raises UsageError where both are given, and where there is
    no such configuration.
    """
    if name is None:
        return other
    if other is not None:
        raise UsageError(f"--conf {name} and --config {other}: give one of them")
    bundled = BUNDLED / folder
    for path in (bundled / f"{name}.yaml", Path(name), Path(f"{name}.yaml")):
        if path.is_file():
            return str(path)
    near = nearest(name, _bundled(folder), "configuration")
    raise UsageError(f"--conf {name}: no bundled configuration of that name, and no file{near}")


def _read_file(config_class: type, path: str | Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    path = _find(config_class, path)
    try:
        # Every scalar as text: YAML's own guesses take the chunks 1_6 for the number 16, and 8e-5 for text.
        content = parse_yaml(path.read_bytes(), as_text=True)
    except TextError as error:
        raise UsageError(f"{path}: {error}") from error
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise UsageError(f"{path}: must hold lines of the form key: value")
    flat: dict[str, Any] = {}
    for key, value in _entries(config_class, content):
        if key in flat:
            raise UsageError(f"{path}: {key} is given twice")
        flat[key] = value
    values: dict[str, Any] = {}
    for key, value in getattr(config_class, "from_published", dict)(flat).items():
        spec = _known(config_class, key, f" in {path}")
        if spec.name in values:
            raise UsageError(f"{path}: {key} is given twice")
        values[spec.name] = _convert(spec, value, f"{key}: {value} in {path}")
    return values


def in_file(path: str | Path | None, name: str) -> str | None:
    """The text that a file of --config, or a bundled one of that name, has for a setting at its top; None where it has
    none, and for a file that cannot be read, of which its reader will complain."""
    if path is None:
        return None
    found = next((file for file in (Path(path), BUNDLED / f"{path}.yaml") if file.is_file()), None)
    try:
        content = None if found is None else parse_yaml(found.read_bytes(), as_text=True)
    except (TextError, OSError):
        return None
    value = content.get(name) if isinstance(content, dict) else None
    return value if isinstance(value, str) else None


def _entries(config_class: type, content: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """The settings of a file. A section (a key that is no setting, with a mapping) only groups those that are in it."""
    names = {name for spec in _specs(config_class) for name in (spec.name, *spec.spellings)}
    for key, value in content.items():
        if isinstance(value, dict) and str(key).replace("-", "_") not in names:
            yield from _entries(config_class, value)
        else:
            yield str(key), value


def _known(config_class: type, key: str, where: str) -> _Spec:
    """The field that `key` means, by its own name or a flag's, with underscores or dashes."""
    specs = _specs(config_class)
    for spec in specs:
        if key.replace("-", "_") in (spec.name, *spec.spellings):
            return spec
    raise UsageError(f"unknown key {key}{where}{nearest(key, [spec.flag for spec in specs], 'key')}")


def _find(config_class: type, path: str | Path) -> Path:
    """The file itself, or the bundled configuration of that name (also where a folder has the same one), which may
    leave out the folder that the class names as its own, `CONFIGS`."""
    own = getattr(config_class, "CONFIGS", "")
    found = [Path(path), BUNDLED / own / f"{path}.yaml", BUNDLED / f"{path}.yaml"]
    for file in found:
        if file.is_file():
            return file
    near = nearest(str(path), _bundled(own), "configuration")
    raise UsageError(f"--config {path}: no such file, and no bundled configuration of that name{near}")


def _bundled(folder: str) -> list[str]:
    """The names of the configurations in a bundled folder."""
    own = BUNDLED / folder
    return sorted(path.relative_to(own).with_suffix("").as_posix() for path in own.rglob("*.yaml"))


def _build(config_class: type[C], values: dict[str, Any]) -> C:
    for spec in _specs(config_class):
        if spec.default is REQUIRED and spec.name not in values:
            about = f": {spec.rule.help.strip()}" if spec.rule.help else ""
            raise UsageError(f"--{spec.flag} must be given{about}")
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
    words: tuple[str, ...] = ()  # taken as they are, beside values of the kind

    @property
    def spellings(self) -> tuple[str, ...]:
        """The flag that is shown, then those that work, too."""
        return tuple(dict.fromkeys((self.flag, self.name, *self.rule.aliases)))


def _specs(config_class: Any) -> list[_Spec]:
    return _specs_of(config_class)


@functools.cache
def _specs_of(config_class: Any) -> list[_Spec]:
    hints = typing.get_type_hints(config_class)
    return [_spec(field, hints[field.name]) for field in dataclasses.fields(config_class)]


def _section(config_class: type, name: str) -> str | None:
    """The title of the shared group that declares a field, or None for a field of the class itself."""
    declaring = next(c for c in reversed(config_class.__mro__) if name in getattr(c, "__dataclass_fields__", {}))
    return declaring.__dict__.get("SECTION")


def _spec(field: dataclasses.Field, hint: Any) -> _Spec:
    rule = _rule(field)
    optional, many, length, choices, words = False, None, None, rule.choices, ()
    if typing.get_origin(hint) in (Union, types.UnionType):
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        optional = len(members) < len(typing.get_args(hint))
        literals = [member for member in members if typing.get_origin(member) is Literal]
        if len(members) == 2 and len(literals) == 1:
            members.remove(literals[0])
            words = typing.get_args(literals[0])
        hint = members[0] if len(members) == 1 else Any
    if typing.get_origin(hint) in (list, tuple):
        many, items = typing.get_origin(hint), typing.get_args(hint)
        length = len(items) if many is tuple and Ellipsis not in items else None
        hint = items[0]
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        hint = type(choices[0])
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return _Spec(field.name, rule.flag or field.name, rule, hint, default, many, length, optional, choices, words)


def _convert(spec: _Spec, value: Any, where: str) -> Any:
    """`value`, text of a flag or a value of YAML, as the field's type. Raises UsageError that begins with
    `where`."""
    try:
        if spec.optional and (value is None or value in NOTHING or value in [[word] for word in NOTHING]):
            return None
        if isinstance(value, str) and value in spec.words:
            return value
        if spec.many is None:
            return _checked(spec, _scalar(spec.kind, value))
        items = [_checked(spec, _scalar(spec.kind, item)) for item in _split(value)]
        if spec.length is not None and len(items) != spec.length:
            raise ValueError(f"must be {spec.length} values, not {len(items)}")
        return spec.many(items)
    except ValueError as error:
        raise UsageError(" or ".join([f"{where}: {error}", *spec.words])) from None


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
        number = None
        with contextlib.suppress(ValueError):
            number = int(value)
        if number is not None and abs(number) > LARGEST_INT64:
            raise ValueError(f"must lie within {LARGEST_INT64} of 0 (64 bits)")
        if number is not None:
            return number
    raise ValueError("must be a whole number")


def _real(value: Any) -> float:
    number = math.nan
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            number = float(value)
    if not math.isfinite(number):
        raise ValueError("must be a finite number")
    if abs(number) > LARGEST_FLOAT32:
        raise ValueError(f"must be at most {LARGEST_FLOAT32:.2g} in size, the largest 32-bit number")
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
    if rule.inside and leads_out(value):
        raise ValueError("must not lead out of the folder: give a plain name, without .. and not an absolute path")
    return value


class _Set(argparse.Action):
    """Store a value, and how its flag was spelled, for messages."""

    SPELLED = "_spelled"

    def __init__(self, option_strings: Sequence[str], dest: str, const: Any = None, **options: Any) -> None:
        super().__init__(option_strings, dest, const=const, **({"nargs": 0} if const is not None else {}) | options)

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values if self.const is None else self.const)
        vars(namespace).setdefault(self.SPELLED, {})[self.dest] = option_string


def _add_flags(group: Any, spec: _Spec, prefix: str, description: str | bool, **settings: Any) -> None:
    """Declare --flag, shown with `description` or hidden without one, and its other spellings, hidden."""
    for i, name in enumerate(spec.spellings):
        shown = description if i == 0 and description else argparse.SUPPRESS
        group.add_argument(f"--{prefix}{name}", help=shown, dest=spec.name, action=_Set, **settings)


def _metavar(spec: _Spec) -> str:
    if spec.choices is not None and not spec.many:
        return "{" + ",".join(map(str, spec.choices)) + "}"
    return {int: "N", float: "X", Path: "PATH"}.get(spec.kind, "TEXT")


def _description(spec: _Spec) -> str:
    default = _plain(spec.default)
    if spec.kind is bool or default in (None, "", [], ()):
        note = ""
    elif spec.default is REQUIRED:
        note = " (must be given)"
    else:
        shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else default
        note = f" (default {shown})"
    return (spec.rule.help + note).strip().replace("%", "%%") or spec.name
