"""Folders of images as .beton files."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.progress import Bar
from mi_ml_gen.data.beton.format import MAX_SIDE_PX, Encoded, encode_jpeg, write_beton
from mi_ml_gen.data.folders import FolderImages
from mi_ml_gen.data.framing import Framing, shrink


class Written(NamedTuple):
    """One .beton file that was written."""

    path: Path
    n_images: int
    classes: tuple[str, ...]
    n_bytes: int


def write_splits(
    folders: Mapping[str, Path],
    output_folder: Path,
    *,
    max_resolution: int = 256,
    with_labels: bool = False,
    skip_bad: bool = False,
    n_workers: int = 4,
    progress: bool = True,
) -> Iterator[Written]:
    """Write a folder of images per split, train -> FOLDER, to output_folder/train.beton; gives each when it is done.

    Images stand in the order of their names. max_resolution: those whose longer side exceeds it are brought down to
    it. with_labels: store the class folders' indices too. skip_bad: as for `FolderImages`, which says how images of all
    kinds become RGB.
    All folders are looked through first. Raises UsageError where one does not fit, or where the splits' classes
    differ, before anything is written.
    """
    if not folders:
        raise UsageError("no folder of images was named")
    if not 1 <= max_resolution <= MAX_SIDE_PX:
        raise UsageError(f"--max_resolution {max_resolution}: must lie between 1 and {MAX_SIDE_PX}")
    options = {"skip_bad": skip_bad, "with_labels": with_labels, "n_workers": n_workers, "progress": progress}
    sources = {split: FolderImages(folder, Framing(), **options) for split, folder in folders.items()}  # type: ignore[arg-type]
    if with_labels:
        _check_classes(folders, sources)
    for split, source in sources.items():
        path = write_source(source, output_folder / f"{split}.beton", max_resolution, n_workers, progress)
        yield Written(path, source.n_images, source.classes, path.stat().st_size)


def _check_classes(folders: Mapping[str, Path], sources: Mapping[str, FolderImages]) -> None:
    """Label 3 must be the same class in every split."""
    first, *_ = sources
    for split, source in sources.items():
        if source.labels is None:
            raise UsageError(f"{folders[split]}: has no class folders; leave out --with_labels, or make them")
        if different := sorted(set(source.classes) ^ set(sources[first].classes)):
            raise UsageError(
                f"{folders[first]} and {folders[split]}: {len(different)} classes are in one of them alone: "
                f"{', '.join(different[:5])}"
            )


def write_source(
    source: FolderImages, path: Path, max_resolution: int, n_workers: int = 4, progress: bool = True
) -> Path:
    """Write the images of a folder, and their labels where it has them, to a .beton file."""
    labels = None if source.labels is None else source.labels.tolist()

    def encoded(index: int) -> Encoded:
        pixels = shrink(source.image(index), max_resolution)
        height, width = pixels.shape[:2]
        return Encoded(encode_jpeg(pixels), height, width, 0 if labels is None else labels[index])

    def in_order() -> Iterator[Encoded]:
        waiting: deque[Future[Encoded]] = deque()
        with (
            ThreadPoolExecutor(n_workers, thread_name_prefix="encode") as pool,
            Bar(total=source.n_images, desc=f"write {path.name}", unit=" images", disable=not progress) as bar,
        ):
            try:
                for index in range(source.n_images):
                    waiting.append(pool.submit(encoded, index))
                    if len(waiting) > 4 * n_workers:
                        yield waiting.popleft().result()
                        bar.update()
                while waiting:
                    yield waiting.popleft().result()
                    bar.update()
            finally:
                for future in waiting:
                    future.cancel()

    return write_beton(path, in_order(), source.n_images, None if labels is None else source.classes)
