"""How a folder becomes splits, classes and images. This is the one rule; docs/data.md states it for users.

Hidden folders and files (see `is_hidden`) and files that are not images never count. A folder counts if an image lies
in it or anywhere below it.

1. **.beton files.** If ROOT, or ROOT/ffcv, holds .beton files named after splits, they are the splits. Folders of
   images with the names of splits may lie beside them.
2. **Splits.** Otherwise, if all folders of ROOT that count have the names of splits, they are the splits. What lies
   below a split is never a split again.
3. **Classes.** If none of them has the name of a split, each is a class. The class of an image is the folder just below
   ROOT (or below the split), however deep the image lies in it.
4. **One folder that holds everything.** If only one folder counts, and it holds no images itself but folders of
   images, the rule starts again inside it.
5. **A class with the name of a split.** If images lie directly in all the folders, and just one of three or more has
   the name of a split, it is a class like the others.
6. **Everything else is ambiguous** and is an error that names both readings and how to choose one: some folders have
   the names of splits and some do not; two folders, or two .beton files, are the same split; all folders hold
   subfolders of the same names, so that they look like splits under other names; images lie beside folders of images;
   the folders are the anchors and positives of a generated set of pairs.
7. **No folders.** Images that lie directly in ROOT are one set without labels.

The names of splits are those in SPLITS. Capitals, digits, punctuation and the words in FILLERS do not matter:
"Train", "train2017", "training_set" and "train-images" are all the training split.
"""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mi_ml_gen.core.errors import EnvironmentFault, UsageError

IMAGE_ENDINGS = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
"""Only files with one of these endings are taken for images; capitals do not matter."""

SPLITS = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing", "tst"),
    "predict": ("predict",),
}
"""The splits, and the names that their folders and files may have."""

FILLERS = frozenset("set sets split data dataset image images img imgs folder".split())
"""Words beside the name of a split that do not matter."""

PAIRS = frozenset({"anchor", "positive"})
"""Folders of a generated set of pairs: neither splits nor classes."""

_HIDDEN = frozenset(
    "@eadir @recycle @__thumb @tmp #recycle #snapshot __macosx __pycache__ lost+found $recycle.bin thumbs.db "
    "ehthumbs.db desktop.ini _vti_cnf".split()
) | {"system volume information", "icon\r"}
_BELOW = ("ffcv",)
"""Subfolders in which .beton files are looked for: published data sets keep them in DATASET/ffcv."""
_N_SHOWN = 5


def is_hidden(name: str) -> bool:
    """Whether a file or folder belongs to the system or to another program: names that begin with a dot, thumbnails,
    waste bins, snapshots."""
    return name.startswith(".") or name.casefold() in _HIDDEN


def is_image_name(name: str) -> bool:
    """Whether the ending of a file's name is one of an image."""
    return name.lower().endswith(IMAGE_ENDINGS)


def split_of(name: str) -> str | None:
    """The split that a file or folder of this name (without ending) is, or None."""
    words = re.findall(r"[^\W\d_]+", unicodedata.normalize("NFC", name).casefold())
    telling = [word for word in words if word not in FILLERS]
    if len(telling) != 1:
        return None
    (word,) = telling
    for filler in ("dataset", "set", "data"):  # "trainset"
        word = word.removesuffix(filler) or word
    return next((split for split, names in SPLITS.items() if word in names), None)


def split_named(name: str) -> str:
    """The split that a user means by a name in SPLITS. Raises UsageError for any other name."""
    found = next((split for split, names in SPLITS.items() if name in names), None)
    if found is None:
        raise UsageError(f"split {name!r}: must be one of {', '.join(SPLITS)}")
    return found


@dataclass(frozen=True)
class Layout:
    """What `read_layout` found.

    root: the folder whose subfolders are splits or classes. folders, betons: the folder of images and the .beton file
    of each split. Where both are empty, the folder is not divided into splits.
    """

    root: Path
    folders: Mapping[str, Path] = field(default_factory=dict)
    betons: Mapping[str, Path] = field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that there are, in the order of SPLITS."""
        return tuple(split for split in SPLITS if split in self.folders or split in self.betons)


def read_layout(path: Path) -> Layout:
    """Apply the rule of this module to a folder. Only names are looked at; no image is opened.

    Raises UsageError where the folder can be read in two ways, EnvironmentFault where it cannot be listed.
    """
    for place in (path, *(path / name for name in _BELOW)):
        if betons := _betons(place):
            folders = [found for found in _subfolders(place) if split_of(found.name)]
            return Layout(place, _by_split(place, folders), betons)
    root = _innermost(path)
    level = _level(root)
    splits = [found for found in level.folders if split_of(found.name)]
    classes = [found for found in level.folders if not split_of(found.name)]
    if splits and not classes:
        if level.n_loose:
            raise _loose(root, level)
        return Layout(root, _by_split(root, splits))
    if splits and split_of(root.name) is None:
        _check_class_of_that_name(root, splits, classes)
    _check_misnamed_splits(root, level.folders)
    return Layout(root)


def class_root(path: Path) -> Path:
    """The folder whose subfolders are the classes, for a folder that holds no splits: itself, or one further in.

    Raises UsageError for a folder that is divided into splits, and as `read_layout`.
    """
    layout = read_layout(path)
    if len(layout.folders) > 1:
        names = ", ".join(folder.name for folder in layout.folders.values())
        raise UsageError(f"{path}: is divided into the splits {names}; give the folder of one of them")
    return next(iter(layout.folders.values()), layout.root)


def split_root(path: Path) -> Path:
    """The folder whose subfolders are the classes of a split that lies in `path`."""
    return _innermost(path)


def holds_images(path: Path, with_betons: bool = True) -> bool:
    """Whether an image, or a .beton file, lies in a folder or anywhere below it."""
    return _find_any(path, lambda name: is_image_name(name) or (with_betons and name.lower().endswith(".beton")))


# --- one folder ---------------------------------------------------------------------------------------------


class _Level(NamedTuple):
    """folders: those that hold images somewhere. n_loose, loose: images directly in the folder, and one of them."""

    folders: list[Path]
    n_loose: int
    loose: str


def _level(path: Path) -> _Level:
    loose = [name for name in _file_names(path) if is_image_name(name)]
    return _Level(
        [found for found in _subfolders(path) if _find_any(found, is_image_name)], len(loose), min(loose, default="")
    )


def _innermost(path: Path) -> Path:
    """The folder that is left when folders that hold nothing but one folder of folders are opened (rule 4)."""
    seen = {path.resolve()}
    while True:
        level = _level(path)
        if len(level.folders) != 1 or level.n_loose or split_of(level.folders[0].name):
            return path
        (inner,) = level.folders
        below = _level(inner)
        if below.n_loose or not below.folders or inner.resolve() in seen:
            return path
        seen.add(inner.resolve())
        path = inner


@contextlib.contextmanager
def _listing(path: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    """os.scandir; EnvironmentFault where a folder cannot be listed, nothing where there is none."""
    try:
        with os.scandir(path) as found:
            yield found
    except (NotADirectoryError, FileNotFoundError):
        yield iter(())
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be listed: {error.strerror or error}") from error


def _entries(path: Path) -> list[os.DirEntry[str]]:
    with _listing(path) as found:
        return sorted((entry for entry in found if not is_hidden(entry.name)), key=lambda entry: entry.name)


def _subfolders(path: Path) -> list[Path]:
    return [path / entry.name for entry in _entries(path) if entry.is_dir()]


def _file_names(path: Path) -> list[str]:
    return [entry.name for entry in _entries(path) if not entry.is_dir()]


def _find_any(path: Path, wanted: Callable[[str], bool]) -> bool:
    """Whether a file whose name is wanted lies in a folder or below it; links that lead back end."""
    waiting, seen = [path], set()
    while waiting:
        place = waiting.pop()
        with _listing(place) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if not entry.is_dir():
                    if wanted(entry.name):
                        return True
                    continue
                about = entry.stat()
                if (about.st_dev, about.st_ino) not in seen:
                    seen.add((about.st_dev, about.st_ino))
                    waiting.append(place / entry.name)
    return False


def _betons(path: Path) -> dict[str, Path]:
    found = [path / name for name in _file_names(path) if name.lower().endswith(".beton") and split_of(name[:-6])]
    return _by_split(path, found, stem=lambda file: file.name[:-6])


def _by_split(root: Path, paths: list[Path], stem: Callable[[Path], str] = lambda path: path.name) -> dict[str, Path]:
    """Split -> path. Raises UsageError where two paths are one split, or two splits are one place."""
    found: dict[str, Path] = {}
    places: dict[Path, Path] = {}
    for path in paths:
        split = split_of(stem(path))
        assert split is not None
        if split in found:
            raise UsageError(
                f"{root}: {found[split].name} and {path.name} both have the name of the {split} split; "
                "rename one of them, or give the one that you mean"
            )
        if (twin := places.get(path.resolve())) is not None:
            raise UsageError(f"{root}: the splits {twin.name} and {path.name} are one and the same place, by a link")
        found[split] = places[path.resolve()] = path
    return found


# --- two readings -------------------------------------------------------------------------------------------


def _check_class_of_that_name(root: Path, splits: list[Path], classes: list[Path]) -> None:
    """Rules 5 and 6: a class may have the name of a split where it looks like all the others."""
    everything = splits + classes
    is_flat = all(_level(folder).n_loose and not _level(folder).folders for folder in everything)
    if is_flat and len(splits) == 1 and len(classes) >= 2:
        return
    own, others = _names(splits), _names(classes)
    one = splits[0].name
    raise UsageError(
        f"{root}: {own} {'has the name of a split' if len(splits) == 1 else 'have the names of splits'}, {others} "
        f"{'has' if len(classes) == 1 else 'have'} not, so this can be read in two ways. As splits: give {root / one}, "
        f"or move {others} elsewhere. As {len(everything)} classes: rename the class {one}, for example to the_{one}"
    )


def _check_misnamed_splits(root: Path, folders: list[Path]) -> None:
    """Rule 6: folders that all hold the same subfolders look like splits under other names."""
    if {folder.name for folder in folders} == PAIRS:
        raise UsageError(f"{root}: holds pairs of images; give {root / 'anchor'} or {root / 'positive'}")
    if len(folders) < 2:
        return
    first = _level(folders[0])
    names = {folder.name for folder in first.folders}
    if first.n_loose or len(names) < 2:
        return
    for folder in folders[1:]:
        level = _level(folder)
        if level.n_loose or {below.name for below in level.folders} != names:
            return
    raise UsageError(
        f"{root}: {_names(folders)} all hold the same folders ({_names(first.folders)}), so this can be read in two "
        f"ways. As splits: rename them to train, validation, test, or give one of them ({folders[0]}). As "
        f"{len(folders)} classes: put the images of each directly into its folder"
    )


def _loose(root: Path, level: _Level) -> UsageError:
    return UsageError(
        f"{root}: {level.n_loose} images ({level.loose} ...) lie beside the folders {_names(level.folders)}; "
        "move them into one, or name a folder without them"
    )


def _names(paths: list[Path]) -> str:
    names = [path.name for path in paths]
    more = f" and {len(names) - _N_SHOWN} more" if len(names) > _N_SHOWN else ""
    return ", ".join(names[:_N_SHOWN]) + more


__all__ = ["IMAGE_ENDINGS", "SPLITS", "Layout", "class_root", "holds_images", "is_hidden", "read_layout", "split_of"]
