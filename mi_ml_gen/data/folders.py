"""Folders of images: looked through before they are used, and decoded by a pool of threads.

What an image is brought to, always uint8 RGB:

    grey                the same value three times
    16-bit grey         v / 257, rounded (not clipped at 255)
    16-bit colour       the upper byte
    with transparency   laid over white: RGBA, grey with alpha, palettes with a transparent colour
    CMYK, YCbCr, Lab    Pillow's conversion
    EXIF orientation    applied
    several frames      the first

Refused, by name and before any work is done: files that are cut short, damaged, or not an image in spite of their
name; pixels that are 32-bit numbers of unknown range; more than MAX_PIXELS pixels; links to nothing. Files with another
ending than IMAGE_ENDINGS are passed by and counted; hidden ones are ignored. `layout` says which folders are classes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import stat
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mi_ml_gen.core.errors import EnvironmentFault, MiMlGenError, UsageError
from mi_ml_gen.core.files import NoHome, atomic_write, read_with_hash, remove_unfinished, user_path, write_with_hash
from mi_ml_gen.core.progress import Bar
from mi_ml_gen.data.classes import class_key, in_order
from mi_ml_gen.data.framing import Framing
from mi_ml_gen.data.layout import IMAGE_ENDINGS, class_root, is_hidden, is_image_name, split_of, split_root

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "MI_ML_GEN_CACHE"
DEFAULT_CACHE = Path("~/.cache/mi_ml_gen")
N_LISTED = 20
"""Bad files that an error names; where there are more, it names a file that lists them all."""

UNREAD_ENDINGS = frozenset(
    ".heic .heif .avif .jp2 .j2k .jxl .dng .cr2 .cr3 .nef .arw .orf .raf .psd .svg .exr .hdr .tga .dcm .npy".split()
) | {""}
"""Endings of files that may be images, but are not read here; the empty one is of names without an ending."""
MAX_PIXELS = 2**26
"""Larger images are refused: one of 8192 x 8192 pixels takes half a gigabyte while it is decoded."""

_LARGE = 2**24  # pixels of images that are decoded one at a time, however many threads there are
_one_large = threading.Lock()
_STRIP = 2**22  # pixels that are copied out of Pillow at a time
_CACHE_FORMAT = "mi_ml_gen scan 2"
_SAVE_EVERY = 100_000  # files, so that a long scan that is stopped goes on where it was
_WHITE = (255, 255, 255)
_ORIENTATION = 0x0112  # of EXIF


# --- one image ----------------------------------------------------------------------------------------------


def read_rgb(path: str | os.PathLike[str]) -> np.ndarray:
    """The image in a file as uint8 (H, W, 3); see the module's header. Raises UsageError that names the file."""
    with _opened(path) as image:
        return to_rgb(image)


def read_rgba(path: str | os.PathLike[str]) -> np.ndarray:
    """The image in a file as uint8 (H, W, 4), with the opacity last: 255 where it is not transparent. Raises as
    `read_rgb`."""
    with _opened(path) as image:
        _check_size(image)
        return np.asarray(image.convert("RGBA"))


def read_square(path: str | os.PathLike[str], framing: Framing) -> np.ndarray:
    """The image in a file as the square that a framing cuts, uint8 (cut_px, cut_px, 3). Raises as `read_rgb`."""
    with _opened(path) as image:
        return framing.cut(framing.store(to_rgb(image)))


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """A file opened by Pillow, and what goes wrong with it as errors that name it."""
    try:
        with Image.open(path) as image, _turn(image):
            yield image
    except EnvironmentFault:
        raise
    except MiMlGenError as error:
        raise UsageError(f"{path}: {error}") from None
    except Exception as error:  # Pillow's readers raise anything on damaged files
        if _is_momentary(error):
            raise EnvironmentFault(f"{path}: cannot be read: {_reason(error)}") from error
        raise UsageError(f"{path}: {_reason(error)}") from error


def _turn(image: Image.Image) -> contextlib.AbstractContextManager:
    """Large images wait for one another, so that the memory does not grow with the number of threads."""
    return _one_large if image.width * image.height > _LARGE else contextlib.nullcontext()


def to_rgb(image: Image.Image) -> np.ndarray:
    """An open image as uint8 (H, W, 3); see the module's header. Raises UsageError for pixels of unknown range, or too
    many of them."""
    _check_size(image)
    image.load()
    if image.getexif().get(_ORIENTATION, 1) != 1:  # otherwise exif_transpose would copy the image
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise UsageError(f"pixels are 32-bit ({image.mode}), of unknown range; convert them to 8 or 16 bits")
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint32)
        return np.repeat(((grey + 128) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        above = image.convert("RGBA")
        image = Image.new("RGBA", above.size, (*_WHITE, 255))
        image.alpha_composite(above)
    return _rgb_array(image)


def _rgb_array(image: Image.Image) -> np.ndarray:
    """A loaded image as uint8 (H, W, 3), copied in strips: Pillow holds two more copies of what is read at a time."""
    step = max(1, _STRIP // image.width)
    strips = (image.crop((0, top, image.width, min(top + step, image.height))) for top in range(0, image.height, step))
    out = np.empty((image.height, image.width, 3), np.uint8)
    top = 0
    for strip in strips:
        out[top : top + strip.height] = np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))
        top += strip.height
    return out


def _check_size(image: Image.Image) -> None:
    """Pillow itself only warns up to twice its limit."""
    limit = min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
    if image.width * image.height > limit:
        raise UsageError(f"{image.width} x {image.height} pixels, more than the {limit} that may be unpacked")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "cannot identify" in text:
        return "not an image"
    if isinstance(error, MemoryError):
        return "out of memory"
    if "truncated" in text or isinstance(error, EOFError):
        return f"cut short or damaged ({text})"
    if isinstance(error, OSError):
        return error.strerror or text
    return f"{text or type(error).__name__} ({type(error).__name__})"


def _is_momentary(error: Exception) -> bool:
    """Whether an error is of the machine at this moment (memory, disk, network), and says nothing about the file.
    Pillow's own OSErrors have no errno."""
    if isinstance(error, MemoryError):
        return True
    about_the_file = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL,
                      errno.EACCES, errno.EPERM)  # fmt: skip
    return isinstance(error, OSError) and error.errno not in about_the_file


class _Finding(NamedTuple):
    """What keeps a file from being read, None where nothing does, and whether that may be remembered."""

    problem: str | None
    is_lasting: bool = True


def _look_at(path: Path) -> _Finding:
    """Whether a file can be read. Rights and links may change while the file does not, so they are not remembered.

    Raises EnvironmentFault where the machine failed and nothing is known about the file."""
    try:
        return _Finding(_problem(path))
    except (PermissionError, FileNotFoundError) as error:
        return _Finding(error.strerror or str(error), is_lasting=False)
    except (OSError, MemoryError) as error:
        raise EnvironmentFault(f"{path}: cannot be read: {_reason(error)}; the scan stopped there") from error


def _problem(path: Path) -> str | None:
    """What keeps a file from being read, or None. JPEGs are unpacked at an eighth of their size, which reads all of
    their data, but takes less time. Raises what is not a fault of the file's content."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        return "not a regular file"  # opening a pipe would wait for ever
    if about.st_size == 0:
        return "not an image: the file is empty"
    try:
        with Image.open(path) as image, _turn(image):
            _check_size(image)
            if image.format == "JPEG":
                image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
                image.load()
            else:
                to_rgb(image)
    except UsageError as error:
        return str(error)
    except Exception as error:  # as in read_rgb
        if _is_momentary(error) or isinstance(error, (PermissionError, FileNotFoundError)):
            raise
        return _reason(error)
    return None


# --- a folder, looked through -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scan:
    """What is in a folder.

    files: paths of good images relative to the folder, in order of their names, folder by folder.
    bad: (path, what is wrong with it). list_path: where a list of the bad ones may be written.
    passed_by: how many files there are with each other ending, of any folder. empty: the folders just below without
    an image, and the endings of the files in each. twins: (folder, the folder that it is a link to), read once only.
    shared: (file, the file of another subfolder that it is a link to).
    """

    folder: Path
    files: tuple[str, ...]
    bad: tuple[tuple[str, str], ...]
    list_path: Path
    passed_by: Counter[str] = field(default_factory=Counter)
    empty: tuple[tuple[str, frozenset[str]], ...] = ()
    twins: tuple[tuple[str, str], ...] = ()
    shared: tuple[tuple[str, str], ...] = ()


def scan_folder(folder: str | os.PathLike[str], n_workers: int = 4, progress: bool = True) -> Scan:
    """Look at every image in a folder and below it, with a progress bar.

    What was found good or bad is remembered by path, size and time of change in ~/.cache/mi_ml_gen (or the folder that
    MI_ML_GEN_CACHE names), so a second scan looks only at what is new. Errors of the moment (rights, memory, a disk
    that does not answer) are not remembered.
    Raises UsageError where there is no such folder, or no image in it; EnvironmentFault where a folder cannot be
    listed, or the machine fails while a file is read.
    """
    folder = user_path(folder)
    listing = list_folder(folder)
    memory = _Memory(folder)
    stamps = listing.stamps
    new = [name for name, stamp in stamps.items() if not memory.knows(name, stamp)]
    passing: dict[str, str] = {}
    try:
        with (
            warnings.catch_warnings(),  # here and not in the threads: filters are one for all of them
            Bar(total=len(new), desc=f"scan {folder.name}", unit=" images", disable=not progress or not new) as bar,
        ):
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            for name, found in _map_unordered(lambda name: (name, _look_at(folder / name)), new, n_workers):
                if found.is_lasting:
                    memory.add(name, stamps[name], found.problem)
                else:
                    assert found.problem is not None
                    passing[name] = found.problem
                bar.update()
    finally:
        memory.save(stamps)
    problems = {name: passing[name] if name in passing else memory.problem(name) for name in stamps}
    good = tuple(name for name, problem in problems.items() if problem is None)
    bad = tuple((name, problem) for name, problem in problems.items() if problem is not None)
    bad += tuple((name, "a link to nothing") for name in listing.dead_links)
    return Scan(
        folder, good, bad, memory.path.with_suffix(".bad.txt"), listing.passed_by,
        empty=listing.empty, twins=listing.twins, shared=listing.shared,
    )  # fmt: skip


Stamp = tuple[int, int]


class Listing(NamedTuple):
    """The names in a folder and below it, before any file is opened.

    stamps: relative path -> (size, time of change in ns) of files with an image's ending, in order. The others are as
    in `Scan`. dead_links: links to nothing that have no ending, so that they may have been class folders.
    """

    stamps: dict[str, Stamp]
    passed_by: Counter[str]
    empty: tuple[tuple[str, frozenset[str]], ...]
    twins: tuple[tuple[str, str], ...]
    shared: tuple[tuple[str, str], ...]
    dead_links: tuple[str, ...]


def list_folder(folder: Path) -> Listing:
    """List a folder without opening a file. Raises as `scan_folder`."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of images")
    walk = _Walk(folder)
    if not walk.stamps:
        others = f", only {sum(walk.passed_by.values())} other files" if walk.passed_by else ""
        dead = f"; {len(walk.dead_links)} links lead nowhere ({walk.dead_links[0]} ...)" if walk.dead_links else ""
        raise UsageError(f"{folder}: no images in it ({', '.join(IMAGE_ENDINGS)}){others}{dead}")
    stamps = {name: walk.stamps[name] for name in sorted(walk.stamps, key=lambda name: name.split("/"))}
    with_images = {_top(name) for name in stamps}
    empty = tuple((name, frozenset(seen)) for name, seen in sorted(walk.below.items()) if name not in with_images)
    found = walk.passed_by, empty, tuple(walk.twins), tuple(walk.shared), tuple(sorted(walk.dead_links))
    return Listing(stamps, *found)


def _top(name: str) -> str:
    """The folder just below the root that a file lies in, "" for none."""
    return name.split("/")[0] if "/" in name else ""


class _Walk:
    """Every visible name below a folder; links are followed, each folder is read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stamps: dict[str, Stamp] = {}
        self.passed_by: Counter[str] = Counter()
        self.below: dict[str, set[str]] = {}  # folder just below the root -> endings of what was passed by in it
        self.twins: list[tuple[str, str]] = []
        self.shared: list[tuple[str, str]] = []
        self.dead_links: list[str] = []
        self._folders: dict[tuple[int, int], str] = {}
        self._files: dict[tuple[int, int], str] = {}
        about = folder.stat()
        waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ((about.st_dev, about.st_ino),))]
        while waiting:
            place, above = waiting.pop()
            for name, ids in reversed(self._read(place, above)):
                waiting.append((name, ids))

    def _read(self, place: str, above: tuple[tuple[int, int], ...]) -> list[tuple[str, tuple[tuple[int, int], ...]]]:
        """One folder; gives the folders below it, each with the identities of all folders above."""
        try:
            with os.scandir(self.folder / place) as found:
                entries = sorted((entry for entry in found if not is_hidden(entry.name)), key=lambda entry: entry.name)
        except OSError as error:
            raise EnvironmentFault(f"{self.folder / place}: cannot be listed: {error.strerror or error}") from error
        below = []
        for entry in entries:
            name = f"{place}/{entry.name}" if place else entry.name
            if entry.is_dir():
                about = entry.stat()
                own = about.st_dev, about.st_ino
                if not place:
                    self.below.setdefault(name, set())
                if own in above:  # a link that leads back
                    continue
                if own in self._folders:
                    self.twins.append((name, self._folders[own]))
                    continue
                self._folders[own] = name
                below.append((name, (*above, own)))
            else:
                self._file(name, entry)
        return below

    def _file(self, name: str, entry: os.DirEntry[str]) -> None:
        try:
            about = entry.stat()
        except OSError:  # a link to nothing: found bad when it is opened
            about = None
        ending = Path(entry.name).suffix.lower()
        if about is None and not ending:
            self.dead_links.append(name)
        elif not is_image_name(entry.name):
            self.passed_by[ending] += 1
            self.below.setdefault(_top(name), set()).add(ending)
        else:
            self.stamps[name] = (about.st_size, about.st_mtime_ns) if about is not None else (-1, 0)
            # Only links and files with several names can be in two folders.
            if about is not None and (entry.is_symlink() or about.st_nlink > 1):
                twin = self._inside(entry.path) if entry.is_symlink() else None
                twin = twin or self._files.setdefault((about.st_dev, about.st_ino), name)
                if _top(twin) != _top(name):
                    self.shared.append((name, twin))

    def _inside(self, link: str) -> str | None:
        """What a link is called where it leads to a file in this very folder."""
        target, root = os.path.realpath(link), os.path.realpath(self.folder)
        return Path(target).relative_to(root).as_posix() if target.startswith(root + os.sep) else None


def _map_unordered(
    work: Callable[[str], tuple[str, _Finding]], items: Iterable[str], n_workers: int
) -> Iterator[tuple[str, _Finding]]:
    """work(item) of each item as it is done; a few wait at a time, however many there are."""
    waiting = iter(items)
    with ThreadPoolExecutor(n_workers, thread_name_prefix="scan") as pool:
        running: set[Future] = {pool.submit(work, item) for item in islice(waiting, 4 * n_workers)}
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {pool.submit(work, item) for item in islice(waiting, len(done))}
                for future in done:
                    yield future.result()
        finally:
            for future in running:
                future.cancel()


class _Memory:
    """Earlier findings about the files of one folder: a JSON line per file, [path, size, time, problem]."""

    def __init__(self, folder: Path) -> None:
        key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:24]
        self._rows: dict[str, tuple[tuple[int, int], str | None]] = {}
        self._n_unsaved = 0
        self.path = cache_folder() / "scans" / f"{key}.jsonl"
        try:
            lines = read_with_hash(self.path, hash_required=True).decode().splitlines()
            if lines and json.loads(lines[0]) == [_CACHE_FORMAT, _pillow_version()]:
                rows = [json.loads(line) for line in lines[1:]]
                self._rows = {name: ((int(size), int(time)), problem) for name, size, time, problem in rows}
        except (MiMlGenError, ValueError, TypeError):  # absent, damaged or not ours: everything is looked at again
            self._rows = {}

    def knows(self, name: str, stamp: tuple[int, int]) -> bool:
        return name in self._rows and self._rows[name][0] == stamp

    def problem(self, name: str) -> str | None:
        return self._rows[name][1]

    def add(self, name: str, stamp: tuple[int, int], problem: str | None) -> None:
        self._rows[name] = stamp, problem
        self._n_unsaved += 1
        if self._n_unsaved % _SAVE_EVERY == 0:
            self._write(self._rows)

    def save(self, candidates: Iterable[str]) -> None:
        """Write the findings about files that are still there; a cache that cannot be written is done without."""
        if self._n_unsaved:
            remove_unfinished(self.path)
            self._write({name: self._rows[name] for name in candidates if name in self._rows})

    def _write(self, rows: dict[str, tuple[tuple[int, int], str | None]]) -> None:
        lines = [json.dumps([_CACHE_FORMAT, _pillow_version()])]
        lines += [json.dumps([name, *stamp, problem]) for name, (stamp, problem) in rows.items()]
        try:
            write_with_hash(self.path, ("\n".join(lines) + "\n").encode())
        except MiMlGenError as error:
            logger.warning("the scan is not remembered: %s", error)


def cache_folder() -> Path:
    """Where what was found out about images is remembered: MI_ML_GEN_CACHE, or ~/.cache/mi_ml_gen."""
    try:
        return user_path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE)
    except NoHome:
        return Path(tempfile.gettempdir()) / f"mi_ml_gen-{os.getuid()}"


def _pillow_version() -> str:
    return Image.__version__  # type: ignore[attr-defined]


# --- the source ---------------------------------------------------------------------------------------------


class FolderImages:
    """The images of a folder, decoded when they are asked for.

    Which folders are classes: see `layout`. is_split: the folder is a split, and what is below it can only be classes.
    with_labels=False takes the images as they lie, in whatever folders. skip_bad: leave out what cannot be read, with a
    warning, in place of an error.
    Raises UsageError for a folder without images, with bad ones, with images beside the class folders, that is divided
    into splits, or that can be read in two ways; EnvironmentFault where the machine fails.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        framing: Framing,
        *,
        skip_bad: bool = False,
        with_labels: bool = True,
        is_split: bool = False,
        n_workers: int = 4,
        progress: bool = True,
    ) -> None:
        given = user_path(folder)
        root = find_root(given, with_labels, is_split)
        scan = scan_folder(root, n_workers, progress)
        _judge(scan, skip_bad)
        self.folder = scan.folder
        self.files = scan.files
        self.framing = framing
        self.name = str(folder)
        self.n_images = len(scan.files)
        self.image_size = framing.size_px
        self.labels, self.classes = _labels(scan) if with_labels else (None, ())
        self.passed_by = passed_by(scan.passed_by)
        if self.labels is not None:
            _check_class_folders(scan, skip_bad)
        if scan.passed_by.keys() & (UNREAD_ENDINGS - {""}):
            logger.warning("%s: %s; they are not read as images", self.name, self.passed_by)
        self._pool = ThreadPoolExecutor(n_workers, thread_name_prefix="decode")

    def batch(self, indices: Tensor) -> Tensor:
        return self.framing.batch(list(self._pool.map(self._square, indices.tolist())))

    def image(self, index: int) -> np.ndarray:
        """One image as it is stored, uint8 (H, W, 3) of its own size. Raises UsageError where it changed since the
        scan and can no longer be read."""
        return read_rgb(self.folder / self.files[index])

    def _square(self, index: int) -> np.ndarray:
        return read_square(self.folder / self.files[index], self.framing)


def find_root(folder: Path, with_labels: bool = True, is_split: bool = False) -> Path:
    """The folder whose subfolders are the classes; see `layout`. Raises UsageError as `FolderImages`."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of images")
    if is_split:
        root = split_root(folder)
    elif with_labels:
        root = class_root(folder)
    else:
        class_root(folder)  # one that is divided into splits is refused
        return folder
    if root != folder and split_of(root.name) is None:
        logger.warning(
            "%s: all images lie below its folder %s, so the folders in that are the classes, and it is not one class",
            folder, root.relative_to(folder),
        )  # fmt: skip
    return root


def passed_by(endings: Mapping[str, int]) -> str:
    """ "3 files passed by: 2 .heic, 1 .txt", or "" where there are none."""
    if not endings:
        return ""
    n = sum(endings.values())
    shown = ", ".join(f"{count:,} {ending or 'without an ending'}" for ending, count in Counter(endings).most_common())
    return f"{n:,} file{'s' if n > 1 else ''} passed by: {shown}"


def _judge(scan: Scan, skip_bad: bool) -> None:
    if not scan.bad:
        return
    shown = "; ".join(f"{name}: {problem}" for name, problem in scan.bad[:N_LISTED])
    more = ""
    if len(scan.bad) > N_LISTED:
        atomic_write(scan.list_path, "".join(f"{name}: {problem}\n" for name, problem in scan.bad).encode())
        more = f"; and {len(scan.bad) - N_LISTED} more, all of them in {scan.list_path}"
    line = f"{scan.folder}: {len(scan.bad)} of {len(scan.bad) + len(scan.files)} images cannot be read: {shown}{more}"
    if not skip_bad:
        raise UsageError(f"{line}. Remove or repair them, or leave them out with --skip_bad")
    logger.warning("%s; they are left out", line)
    if not scan.files:
        raise UsageError(f"{scan.folder}: none of its images can be read")


def _labels(scan: Scan) -> tuple[Tensor | None, tuple[str, ...]]:
    """Class indices in the order of `classes.in_order`. A class all of whose images are bad keeps its index."""
    everything = [*scan.files, *(name for name, _ in scan.bad)]
    loose = [name for name in scan.files if "/" not in name]
    if not any("/" in name for name in everything):
        return None, ()
    if loose:
        raise UsageError(
            f"{scan.folder}: {len(loose)} images ({loose[0]} ...) lie beside the class folders; "
            "move them into one, or name a folder without them"
        )
    classes = in_order(name.split("/")[0] for name in everything if "/" in name)
    index = {class_key(name): i for i, name in enumerate(classes)}
    return torch.tensor([index[class_key(name.split("/")[0])] for name in scan.files], dtype=torch.int64), classes


def _check_class_folders(scan: Scan, skip_bad: bool) -> None:
    """No class vanishes or appears twice without a word."""
    for twin, first in scan.twins:
        if twin.split("/")[0] != first.split("/")[0]:
            raise UsageError(
                f"{scan.folder}: {twin} and {first} are one and the same folder, by a link, so its images would be of "
                "two classes; remove one of them"
            )
    for name, endings in scan.empty:
        kinds = ", ".join(sorted(ending or "without an ending" for ending in endings))
        if endings & UNREAD_ENDINGS and not skip_bad:
            raise UsageError(
                f"{scan.folder}: the class folder {name} holds no image that can be read here, only {kinds}; convert "
                "them to one of "
                f"{', '.join(IMAGE_ENDINGS)}, move the folder elsewhere, or leave it out with --skip_bad"
            )
        logger.warning("%s: the folder %s holds no images%s; it is not a class", scan.folder, name,
                       f", only {kinds}" if kinds else "")  # fmt: skip
    if scan.shared:
        name, twin = scan.shared[0]
        logger.warning(
            "%s: %d images are in two classes, by links: %s is %s", scan.folder, len(scan.shared), name, twin
        )
    seen: dict[str, str] = {}
    for name in sorted({name.split("/")[0] for name in scan.files}):
        other = seen.setdefault(class_key(name).casefold(), name)
        if other != name:
            are = "are one class" if class_key(other) == class_key(name) else "differ in capitals only"
            logger.warning("%s: the folders %s and %s %s", scan.folder, other, name, are)
