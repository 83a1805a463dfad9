"""Registries: what can come in kinds (families of generators, methods of encoders, walkers ...) stands under a name,
and users add theirs without touching the package.

    METHODS: Registry[type[Encoder]] = Registry("encoder", group="mi_ml_gen.encoders")

    @METHODS.register("mine")            # in a file of the user's
    class Mine(Encoder): ...

    METHODS["mine"]                      # the class
    METHODS["path/to/file.py:Mine"]      # the class of that name in a file, which is run
    METHODS["package.module:Mine"]       # the same in an installed module

The package's own entries are functions that import the class when it is asked for (`lazily`), so a registry lists its
names without importing torch. An installed package adds entries by entry points of the registry's group.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from mi_ml_gen.core.errors import UsageError, nearest

T = TypeVar("T")
E = TypeVar("E")

_importers: list[Callable[[], object]] = []


def rooms_are(importer: Callable[[], object]) -> None:
    """Set the function that imports every file of the package that registers a kind of model.

    The package's own `__init__` sets it, which stands above all rooms; nothing in core names one.
    """
    _importers[:] = [importer]


def import_rooms() -> None:
    """Have every kind of model registered, at the price of importing the whole package."""
    for importer in _importers:
        importer()


class Registry(Mapping[str, T], Generic[T]):
    """Entries by name.

    noun: what an entry is, for messages. flag: the flag that names one ("--encoder"). group: of entry points. adapt:
    makes an entry of what an entry point or FILE.py:CLASS gave, (name, object) -> entry; it may raise UsageError.
    rooms: whether entries come by importing the package's rooms, which an unknown name and listing then do.
    """

    def __init__(
        self,
        noun: str,
        flag: str = "",
        group: str | None = None,
        adapt: Callable[[str, Any], T] | None = None,
        rooms: bool = False,
    ) -> None:
        self.noun = noun
        self.flag = flag or noun
        self.group = group
        self._adapt: Callable[[str, Any], Any] = adapt or (lambda name, found: found)
        self._rooms = rooms
        self._entries: dict[str, T] = {}
        self._lazy: dict[str, Callable[[], T]] = {}
        self._order: dict[str, None] = {}

    # --- adding

    def add(self, name: str, entry: T) -> None:
        """Put an entry under a name. The same name again replaces it, as running a file again does."""
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise UsageError(f"{self.noun} {name!r}: a name has letters, digits, and - _ . between them")
        self._entries[name] = entry
        self._order.setdefault(name)

    def register(self, name: str) -> Callable[[E], E]:
        """Decorator: put a class, or whatever stands below, under a name."""

        def add(entry: E) -> E:
            self.add(name, entry)  # type: ignore[arg-type]
            return entry

        return add

    def lazily(self, name: str) -> Callable[[Callable[[], T]], Callable[[], T]]:
        """Decorator of a function that imports the entry when it is asked for."""

        def add(function: Callable[[], T]) -> Callable[[], T]:
            self._lazy[name] = function
            self._order.setdefault(name)
            return function

        return add

    # --- asking

    def names(self) -> list[str]:
        """All names, in the order in which they came; imports none of the entries."""
        if self._rooms:  # which come in an order that depends on who imported them first
            import_rooms()
            return sorted(self._order)
        return list(dict.fromkeys([*self._order, *sorted(self.points())]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._lazy or name in self.names()

    def loaded(self) -> dict[str, T]:
        """The entries that have been imported so far."""
        return dict(self._entries)

    def __getitem__(self, name: str) -> T:
        """The entry of a name, of FILE.py:CLASS, or of MODULE:CLASS. Raises UsageError where there is none."""
        if name in self._entries:
            return self._entries[name]
        if name in self._lazy:
            self._entries[name] = self._lazy[name]()
        elif (point := self.points().get(name)) is not None:
            self._entries[name] = self._adapt(name, _run(f"{self.flag} {name}", point.load))
        elif ":" in name:
            return self._adapt(name, load_object(name, self.flag))
        else:
            known = self.names()  # the rooms are imported now
            if name not in self._entries:
                raise UsageError(f"{self.flag} {name}: must be one of {', '.join(known)}, or FILE.py:CLASS")
        return self._entries[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The entry of a name that is registered; unlike [], nothing is run for FILE.py:CLASS."""
        return self[name] if name in self else default  # noqa: SIM401 - it would call itself

    def check(self, name: str) -> None:
        """Raise UsageError where a name can be no entry; imports nothing, so FILE.py:CLASS is believed."""
        if ":" not in name and name not in self:
            raise UsageError(f"{self.flag} {name}: must be one of {', '.join(self.names())}, or FILE.py:CLASS")

    def points(self) -> dict[str, importlib.metadata.EntryPoint]:
        """The entry points of installed packages, by name, not imported."""
        if self.group is None:
            return {}
        return {point.name: point for point in importlib.metadata.entry_points(group=self.group)}


def short_name(name: str) -> str:
    """A name as part of a file's name: CLASS of FILE.py:CLASS, everything else as it is."""
    return name.rpartition(":")[2]


def load_object(reference: str, flag: str = "") -> Any:
    """What FILE.py:NAME or MODULE:NAME names. A file is run once, whatever the number of calls. Where `import` finds it
    too, both give the same module, and so the same class.

    Raises UsageError where there is no such file, module or name, and where running it fails, with the line at fault.
    """
    said = f"{flag} {reference}".strip()
    place, _, name = reference.rpartition(":")
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise UsageError(f"{said}: there is no file {place}")
        module = _run(said, lambda: _module_of(path.resolve(), name))
    elif re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", place):
        if _is_absent(place):
            raise UsageError(f"{said}: there is no module {place}; write FILE.py:CLASS")
        module = _run(said, lambda: importlib.import_module(place))
    else:
        raise UsageError(f"{said}: write FILE.py:CLASS")
    if not hasattr(module, name):
        public = [word for word, value in vars(module).items() if isinstance(value, type) and word[:1] != "_"]
        raise UsageError(f"{said}: {place} defines no {name}{nearest(name, public, 'class')}")
    return getattr(module, name)


def _is_absent(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except ImportError:  # of a package on the way
        return True


def _module_of(path: Path, wanted: str) -> ModuleType:
    """The module of a file, run at most once, with its folder's other files to import.

    It is the module that was imported from this file and has the name that is wanted; else the one that `import` finds
    by the file's name, where that is this file; else one of its own.
    """
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", {})
        if wanted in names and _is_file(names.get("__file__"), path):
            return module
    if _is_file(_origin(path.stem), path):
        return importlib.import_module(path.stem)
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module


def _is_file(place: Any, path: Path) -> bool:
    return isinstance(place, str) and Path(place).name == path.name and Path(place).resolve() == path


def _origin(module: str) -> str | None:
    """The file that `import` of a module would run, or None where it has been imported or is not found."""
    if module in sys.modules or not module.isidentifier():
        return None
    spec = importlib.util.find_spec(module)
    return None if spec is None else spec.origin


def _run(said: str, function: Callable[[], E]) -> E:
    """What a function gives that runs a user's file; its exceptions become one line with the place at fault."""
    try:
        return function()
    except UsageError:
        raise
    except SystemExit as error:
        raise UsageError(
            f"{said}: ends the program when it is imported (exit {error.code}); put what only a script should do under "
            'if __name__ == "__main__"'
        ) from error
    except Exception as error:
        raise UsageError(f"{said}: {fault(error)}") from error


_NOT_THEIRS = ("torch", "numpy", "json", "importlib")
"""Modules in whose lines a fault of a user's file often shows."""


def fault(error: BaseException) -> str:
    """An exception of a user's code in one line: what it says, and in which line of which file, theirs if it can be."""
    places = [place for place in traceback.extract_tb(error.__traceback__) if not place.filename.startswith("<")]
    known = [Path(__file__).parents[1], *(Path(sys.modules[name].__file__ or "").parent for name in _NOT_THEIRS
                                          if name in sys.modules)]  # fmt: skip
    own = [place for place in places if not any(Path(place.filename).is_relative_to(folder) for folder in known)]
    own = own or places
    if isinstance(error, SyntaxError):
        where = f" ({error.filename}, line {error.lineno})"
    else:
        where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    message = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())[:300]
    return f"{type(error).__name__}: {message}{where}"
