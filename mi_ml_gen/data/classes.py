"""Classes are known by their names: the same name is the same class, in every kind of source.

Two names are the same if they are equal in Unicode's composed form (NFC), or if both are whole numbers of the same
value: folder "007", folder "7" and label 7 are one class. Classes that are all numbers are in the order of the numbers,
all others in the order of their names as text. Numbers of classes never decide anything.
"""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Iterable, Sequence

import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.data.source import ImageSource

_N_SHOWN = 10


def class_key(name: str) -> str:
    """What two names of one class have in common."""
    name = unicodedata.normalize("NFC", name)
    return str(int(name)) if name.isascii() and name.isdigit() else name


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """The names of classes, one for each class, in the order that their labels have."""
    classes: dict[str, str] = {}
    for name in sorted(names):
        classes.setdefault(class_key(name), unicodedata.normalize("NFC", name))
    if all(key.isascii() and key.isdigit() for key in classes):
        return tuple(classes[key] for key in sorted(classes, key=int))
    return tuple(sorted(classes.values()))


def aligned(source: ImageSource, classes: Sequence[str], whose: str) -> ImageSource:
    """The same images with labels that count `classes`, matched by name; the source itself where they do already.

    whose: what messages call the owner of the list. A source without names of its own keeps its labels.
    Raises UsageError, with both lists, where the source has a class that the list lacks.
    """
    if source.labels is None or not source.classes or source.classes == tuple(classes):
        return source
    places = {class_key(name): i for i, name in enumerate(classes)}
    if missing := [name for name in _present(source) if class_key(name) not in places]:
        raise UsageError(
            f"{source.name}: has {len(source.classes)} classes, {whose} {len(classes)}; these are different classes, "
            f"since {_listed(missing)} {'is' if len(missing) == 1 else 'are'} not among those of {whose}. "
            f"{source.name}: {_listed(source.classes)}; {whose}: {_listed(classes)}"
        )
    to = torch.tensor([places.get(class_key(name), -1) for name in source.classes], dtype=torch.int64)
    same = copy.copy(source)  # shares everything but what is set here
    same.labels, same.classes = to[source.labels], tuple(classes)
    return same


def _present(source: ImageSource) -> list[str]:
    """The classes of a source that must be matched: all that have a name of their own, and every number that labels
    an image. A file without names knows no more than its largest label."""
    assert source.labels is not None
    if not all(name == str(i) for i, name in enumerate(source.classes)):
        return list(source.classes)
    return [source.classes[i] for i in source.labels.unique().tolist()]


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - _N_SHOWN} more" if len(names) > _N_SHOWN else ""
    return f"({', '.join(names[:_N_SHOWN])}{more})"


__all__ = ["aligned", "class_key", "in_order"]
