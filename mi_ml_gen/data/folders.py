"""Folders of images: looked through before they are used, and decoded by a pool of threads.

What an image is brought to, always uint8 RGB:

    grey                the same value three times
    16-bit grey         v / 257, rounded (not clipped at 255)
    16-bit colour       the upper byte
    with transparency   laid over white: RGBA, grey with alpha, palettes with a transparent colour
    CMYK, YCbCr, Lab    Pillow's conversion
    EXIF orientation    applied
    several frames      the first

What is refused, by name and before any work is done: files that are cut short or damaged, that are no image in spite
of their name, whose pixels are 32-bit numbers of unknown range, and that unpack into more than Pillow's limit of
pixels. Files with another ending than IMAGE_ENDINGS are no candidates and are only counted; hidden ones are ignored.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from mi_ml_gen.core.errors import MiMlGenError, UsageError
from mi_ml_gen.core.files import atomic_write
from mi_ml_gen.data.framing import Framing

logger = logging.getLogger(__name__)

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif")
CACHE_VARIABLE = "MI_ML_GEN_CACHE"
DEFAULT_CACHE = Path("~/.cache/mi_ml_gen")
N_LISTED = 20
"""Bad files that an error names; where there are more, it names a file that lists them all."""

_CACHE_FORMAT = "mi_ml_gen scan 1"
_SAVE_EVERY = 100_000  # files, so that a long scan that is stopped goes on where it was
_WHITE = (255, 255, 255)


# --- one image ----------------------------------------------------------------------------------------------


def read_rgb(path: str | os.PathLike[str]) -> np.ndarray:
    """The image in a file as uint8 (H, W, 3); see the module's header. Raises UsageError that names the file."""
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except MiMlGenError as error:
        raise UsageError(f"{path}: {error}") from None
    except Exception as error:  # Pillow's readers raise anything on damaged files
        raise UsageError(f"{path}: {_reason(error)}") from error


def to_rgb(image: Image.Image) -> np.ndarray:
    """An open image as uint8 (H, W, 3); see the module's header. Raises UsageError for pixels of unknown range, or too
    many of them."""
    _check_size(image)
    image.load()
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
    return np.array(image.convert("RGB"))


def _check_size(image: Image.Image) -> None:
    """Pillow itself only warns up to twice its limit."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise UsageError(f"{image.width} x {image.height} pixels, more than the {limit} that may be unpacked")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "cannot identify" in text:
        return "not an image"
    if "truncated" in text or isinstance(error, EOFError):
        return f"cut short or damaged ({text})"
    return f"{text or type(error).__name__} ({type(error).__name__})" if not isinstance(error, OSError) else text


def _problem(path: Path) -> str | None:
    """What keeps a file from being read, or None. JPEGs are unpacked at an eighth of their size, which reads all of
    their data, but takes less time."""
    try:
        with Image.open(path) as image:
            _check_size(image)
            if image.format == "JPEG":
                image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
                image.load()
            else:
                to_rgb(image)
    except UsageError as error:
        return str(error)
    except Exception as error:  # as in read_rgb
        return _reason(error)
    return None


# --- a folder, looked through -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scan:
    """What is in a folder.

    files: paths of good images relative to the folder, in order of their names, folder by folder.
    bad: (path, what is wrong with it). n_other: files that are no candidates. list_path: where a list of the bad ones
    may be written.
    """

    folder: Path
    files: tuple[str, ...]
    bad: tuple[tuple[str, str], ...]
    n_other: int
    list_path: Path


def scan_folder(folder: str | os.PathLike[str], n_workers: int = 4, progress: bool = True) -> Scan:
    """Look at every image in a folder and below it, with a progress bar.

    What was found good or bad is remembered by path, size and time of change in ~/.cache/mi_ml_gen (or the folder that
    MI_ML_GEN_CACHE names), so a second scan looks only at what is new.
    Raises UsageError where there is no such folder, or no image in it.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of images")
    candidates, n_other = _candidates(folder)
    if not candidates:
        others = f", only {n_other} other files" if n_other else ""
        raise UsageError(f"{folder}: no images in it ({', '.join(IMAGE_ENDINGS)}){others}")
    memory = _Memory(folder)
    new = [name for name, stamp in candidates.items() if not memory.knows(name, stamp)]
    try:
        with (
            warnings.catch_warnings(),  # here and not in the threads: filters are one for all of them
            tqdm(total=len(new), desc=f"scan {folder.name}", unit=" images", disable=not progress or not new) as bar,
        ):
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            for name, problem in _map_unordered(lambda name: (name, _problem(folder / name)), new, n_workers):
                memory.add(name, candidates[name], problem)
                bar.update()
    finally:
        memory.save(candidates)
    found = {name: memory.problem(name) for name in candidates}
    good = tuple(name for name, problem in found.items() if problem is None)
    bad = tuple((name, problem) for name, problem in found.items() if problem is not None)
    return Scan(folder, good, bad, n_other, memory.path.with_suffix(".bad.txt"))


def _candidates(folder: Path) -> tuple[dict[str, tuple[int, int]], int]:
    """Relative path -> (size, time of change in ns) of files with an image's ending, in order; how many others."""
    found: dict[str, tuple[int, int]] = {}
    n_other = 0
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        about = os.stat(place)
        if (about.st_dev, about.st_ino) in seen:  # links that lead back
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.startswith("."):
                continue
            path = Path(place, name)
            if not name.lower().endswith(IMAGE_ENDINGS):
                n_other += 1
                continue
            try:
                status = path.stat()
                stamp = status.st_size, status.st_mtime_ns
            except OSError:  # a link to nothing: found bad when it is opened
                stamp = -1, 0
            found[path.relative_to(folder).as_posix()] = stamp
    return {name: found[name] for name in sorted(found, key=lambda name: name.split("/"))}, n_other


def _map_unordered(work, items: Iterable[str], n_workers: int) -> Iterator[tuple[str, str | None]]:
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
        cache = Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE).expanduser()
        key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:24]
        self.path = cache / "scans" / f"{key}.jsonl"
        self._rows: dict[str, tuple[tuple[int, int], str | None]] = {}
        self._n_unsaved = 0
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
            if lines and json.loads(lines[0]) == [_CACHE_FORMAT, _pillow_version()]:
                rows = [json.loads(line) for line in lines[1:]]
                self._rows = {name: ((int(size), int(time)), problem) for name, size, time, problem in rows}
        except (OSError, ValueError, TypeError):  # absent, or not ours: everything is looked at again
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
            self._write({name: self._rows[name] for name in candidates if name in self._rows})

    def _write(self, rows: dict[str, tuple[tuple[int, int], str | None]]) -> None:
        lines = [json.dumps([_CACHE_FORMAT, _pillow_version()])]
        lines += [json.dumps([name, *stamp, problem]) for name, (stamp, problem) in rows.items()]
        try:
            atomic_write(self.path, ("\n".join(lines) + "\n").encode())
        except MiMlGenError as error:
            logger.warning("the scan is not remembered: %s", error)


def _pillow_version() -> str:
    return Image.__version__  # type: ignore[attr-defined]


# --- the source ---------------------------------------------------------------------------------------------


class FolderImages:
    """The images of a folder, decoded when they are asked for.

    Where images lie in subfolders, the subfolder just below `folder` is the class of an image; with_labels=False
    takes them as they lie, in whatever folders. skip_bad: leave out what cannot be read, with a warning, in place of
    an error.
    Raises UsageError for a folder without images, with bad ones, or with images beside the class folders.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        framing: Framing,
        *,
        skip_bad: bool = False,
        with_labels: bool = True,
        n_workers: int = 4,
        progress: bool = True,
    ) -> None:
        scan = scan_folder(folder, n_workers, progress)
        _judge(scan, skip_bad)
        self.folder = scan.folder
        self.files = scan.files
        self.framing = framing
        self.name = str(folder)
        self.n_images = len(scan.files)
        self.image_size = framing.size_px
        self.labels, self.classes = _labels(scan) if with_labels else (None, ())
        self._pool = ThreadPoolExecutor(n_workers, thread_name_prefix="decode")

    def batch(self, indices: Tensor) -> Tensor:
        squares = list(self._pool.map(self._square, indices.tolist()))
        side = self.framing.cut_px
        pixels = torch.from_numpy(np.stack(squares)) if squares else torch.empty(0, side, side, 3, dtype=torch.uint8)
        return self.framing.finish(pixels.permute(0, 3, 1, 2)).contiguous()

    def image(self, index: int) -> np.ndarray:
        """One image as it is stored, uint8 (H, W, 3) of its own size. Raises UsageError where it changed since the
        scan and can no longer be read."""
        return read_rgb(self.folder / self.files[index])

    def _square(self, index: int) -> np.ndarray:
        return self.framing.cut(self.framing.store(self.image(index)))


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
    """Class indices in order of the class folders' names. A class all of whose images are bad keeps its index."""
    everything = [*scan.files, *(name for name, _ in scan.bad)]
    loose = [name for name in everything if "/" not in name]
    if len(loose) == len(everything):
        return None, ()
    if loose:
        raise UsageError(
            f"{scan.folder}: {len(loose)} images ({loose[0]} ...) lie beside the class folders; "
            "move them into one, or name a folder without them"
        )
    classes = tuple(sorted({name.split("/")[0] for name in everything}))
    index = {name: i for i, name in enumerate(classes)}
    return torch.tensor([index[name.split("/")[0]] for name in scan.files], dtype=torch.int64), classes
