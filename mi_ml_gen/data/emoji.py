"""Emoji as drawn by three houses, from the npm packages where a user unpacked them: a data set in colour.

    emoji                                           in the usual places (SEARCH_PLACES)
    emoji:FOLDER                                    the packages in FOLDER
    emoji:FOLDER:houses=google,background=random    with options (`EmojiOptions`); the folder may be left out
    emoji-pairs:FOLDER                              the same emoji by several houses: pairs that people made

An emoji is a sequence of code points. Splits go by it: all pictures of an emoji, of every house and skin tone, are in
one split. Pictures are transparent; they are laid over a background of one colour. Nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mi_ml_gen.core import config
from mi_ml_gen.core.errors import MiMlGenError, UsageError
from mi_ml_gen.core.files import NoHome, load_tensors, save_tensors, user_path
from mi_ml_gen.core.texts import TextError, parse_json
from mi_ml_gen.data.folders import cache_folder, read_rgba
from mi_ml_gen.data.framing import center_square
from mi_ml_gen.data.idx import DATA_VARIABLE
from mi_ml_gen.data.resampling import resize_area
from mi_ml_gen.data.source import HeldImages, Request, resized

SEARCH_PLACES = (Path("data/emoji"), Path("node_modules"), Path("~/.cache/mi_ml_gen/emoji"))
DEFAULT_SIZE_PX = 64
N_PARTS = 5
"""One of so many emoji is in the test split."""
_CACHE_FORMAT = "mi_ml_gen emoji 1"
_LEFT_OUT = "Component"
"""The category of what is no emoji by itself: skin tones and hair."""


class House(NamedTuple):
    """Who drew the pictures, and the npm package that brings them."""

    package: str
    version: str
    pictures: str
    """The folder of the pictures in the package; their names are code points."""
    ending: str
    licence: str
    artist: str


HOUSES = {
    "google": House("emoji-datasource-google", "16.0.0", "img/google/64", ".png", "Apache-2.0", "Noto Emoji by Google"),
    "twitter": House("emoji-datasource-twitter", "16.0.0", "img/twitter/64", ".png", "CC-BY-4.0", "Twemoji by Twitter"),
    "fluent": House(
        "@lobehub/fluent-emoji-3d", "1.1.0", "assets", ".webp", "MIT", "Fluent Emoji by Microsoft, packed by LobeHub"
    ),
}
"""The houses by name. The first two packages also bring emoji.json, the table of names and categories."""


@dataclass(frozen=True)
class EmojiOptions:
    """What may follow the folder in a reference, as KEY=VALUE with commas between."""

    houses: str = config.option("all", help="who drew the pictures: google, twitter, fluent, with + between, or all")
    background: str = config.option("white", help="white, black, grey, a colour as #rrggbb, or random for each picture")
    labels: Literal["category", "subcategory"] = config.option("category", help="what the labels say")
    skin_tones: Literal["all", "none"] = config.option(
        "all", help="none: people and hands in their default colour only"
    )


class Emoji(NamedTuple):
    """One emoji, or one of its skin tones."""

    code: str
    """Its code points in small letters, as "1f44b-1f3fb", without the variation selector fe0f."""
    base: str
    """The same without a skin tone: what decides the split."""
    category: str
    subcategory: str


def load_emoji(request: Request) -> HeldImages:
    """The pictures of a reference "emoji...", all houses one after the other for each emoji. Raises UsageError where
    they are not there, or an option is wrong."""
    options, drawn, size = _read(request)
    images, labels = [], []
    classes = _classes(drawn.table, options)
    for emoji in drawn.of_split(request.split):
        for picture in drawn.pictures(emoji, options.background):
            images.append(picture)
            labels.append(classes.index(getattr(emoji, options.labels)))
    if not images:
        raise UsageError(f"{request.reference}: has no pictures of the {request.split} split")
    return HeldImages(
        f"emoji {request.split}", resized(torch.stack(images), size), torch.tensor(labels, dtype=torch.int64), classes
    )


class EmojiPairs:
    """Emoji that two houses or more have drawn; an image is an emoji by the first of them, a pair by two of them."""

    def __init__(
        self, name: str, houses: tuple[str, ...], images: Tensor, n_drawn: Tensor, labels: Tensor,
        classes: tuple[str, ...],
    ) -> None:  # fmt: skip
        self.name = name
        self.houses = houses
        self.images = images  # (n, houses, 3, size, size) uint8; those that there are come first
        self.n_drawn = n_drawn  # int64 (n,): how many there are
        self.labels: Tensor | None = labels
        self.classes = classes
        self.n_images = len(images)
        self.image_size = images.shape[-1]

    def batch(self, indices: Tensor) -> Tensor:
        return self.images[indices, 0]

    def pairs(self, indices: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Two different pictures of each emoji (n,), uint8 (n, 3, size, size) both; draws (n, 2) in [0, 1) choose
        them, each ordered pair with the same probability."""
        n = self.n_drawn[indices]
        first = (draws[:, 0] * n).long().clamp(max=n - 1)
        second = (first + 1 + (draws[:, 1] * (n - 1)).long().clamp(max=n - 2)) % n
        return self.images[indices, first], self.images[indices, second]


def load_emoji_pairs(request: Request) -> EmojiPairs:
    """The emoji of a reference "emoji-pairs..." that several houses have drawn. Raises UsageError as `load_emoji`, and
    where fewer than two houses are found."""
    options, drawn, size = _read(request)
    if len(drawn.sheets) < 2:
        raise UsageError(f"{request.reference}: pairs need two houses, and only {', '.join(drawn.sheets)} is there")
    classes = _classes(drawn.table, options)
    images, n_drawn, labels = [], [], []
    for emoji in drawn.of_split(request.split):
        pictures = drawn.pictures(emoji, options.background)
        if len(pictures) > 1:
            filled = pictures + [torch.zeros_like(pictures[0])] * (len(drawn.sheets) - len(pictures))
            images.append(resized(torch.stack(filled), size))
            n_drawn.append(len(pictures))
            labels.append(classes.index(getattr(emoji, options.labels)))
    if not images:
        raise UsageError(f"{request.reference}: has no emoji of the {request.split} split that two houses have drawn")
    name = f"emoji-pairs {request.split}"
    return EmojiPairs(
        name, tuple(drawn.sheets), torch.stack(images), torch.tensor(n_drawn), torch.tensor(labels), classes
    )


def licences(reference: str = "emoji") -> str:
    """Whose pictures a reference names, and their licences. Raises UsageError for a house that is none."""
    options = [text for part in reference.split(":") if "=" in part for text in part.split(",")]
    houses = next((text.removeprefix("houses=") for text in options if text.startswith("houses=")), "all")
    named = (HOUSES[house] for house in _houses(reference, houses))
    return "; ".join(f"{house.artist} ({house.licence})" for house in named)


def with_option(reference: str, key: str, value: str) -> str:
    """A reference with an option, unless it has that option already."""
    if re.search(rf"[:,]{key}=", reference):
        return reference
    return f"{reference}{',' if '=' in reference.rpartition(':')[2] else ':'}{key}={value}"


def _classes(table: Sequence[Emoji], options: EmojiOptions) -> tuple[str, ...]:
    """Of all splits and houses, in the order of their names."""
    return tuple(sorted({getattr(emoji, options.labels) for emoji in table}))


# --- what is read ---------------------------------------------------------------------------------------------


class _Sheet(NamedTuple):
    """The pictures of one house, at one size."""

    places: dict[str, int]
    """The row of each code."""
    pixels: Tensor
    """uint8 (n, 4, size, size): colours times opacity, and opacity."""


class _Drawn(NamedTuple):
    """What was found."""

    table: list[Emoji]
    sheets: dict[str, _Sheet]

    def of_split(self, split: str) -> Iterator[Emoji]:
        return (emoji for emoji in self.table if split_of_emoji(emoji.base) == split)

    def pictures(self, emoji: Emoji, background: str) -> list[Tensor]:
        """One emoji by each house that has drawn it, uint8 (3, size, size), at the size of the largest sheet."""
        size = max(sheet.pixels.shape[-1] for sheet in self.sheets.values())
        found = []
        for house, sheet in self.sheets.items():
            if (place := sheet.places.get(emoji.code)) is not None:
                whole = laid_over(sheet.pixels[place], background_of(background, f"{house} {emoji.code}"))
                found.append(resized(whole[None], size)[0])
        return found


def split_of_emoji(base: str) -> str:
    """The split of an emoji: test for one of N_PARTS, whatever is installed, else train."""
    return "test" if hashlib.sha256(base.encode()).digest()[0] % N_PARTS == 0 else "train"


def background_of(text: str, key: str) -> Tensor:
    """The colour (3,) in 0 to 255 that an option names; "random" is a function of the key. Raises UsageError."""
    known = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
    if text == "random":
        return torch.tensor(list(hashlib.sha256(f"background {key}".encode()).digest()[:3]))
    if text in known:
        return torch.tensor(known[text])
    if re.fullmatch("#[0-9a-fA-F]{6}", text):
        return torch.tensor([int(text[i : i + 2], 16) for i in (1, 3, 5)])
    raise UsageError(f"background={text}: must be white, black, grey, random, or a colour such as #ffcc00")


def laid_over(picture: Tensor, colour: Tensor) -> Tensor:
    """A picture (4, h, w), colours times opacity and opacity, over a colour (3,): uint8 (3, h, w)."""
    rest = 255 - picture[3].int()
    return (picture[:3].int() + (rest * colour[:, None, None] + 127) // 255).clamp(max=255).byte()


def _read(request: Request) -> tuple[EmojiOptions, _Drawn, int]:
    """Options, pictures, and the size asked for."""
    reference = request.reference
    if request.split not in ("train", "test"):
        raise UsageError(f"{reference}: has no split {request.split!r}, only train, test")
    parts = request.argument.split(":") if request.argument else []
    given = [part for part in parts if "=" in part]
    folders = [part for part in parts if "=" not in part and part]
    if len(given) > 1 or len(folders) > 1:
        raise UsageError(f"{reference}: write emoji:FOLDER:KEY=VALUE,KEY=VALUE")
    pairs = [text for part in given for text in part.split(",")]
    options = EmojiOptions(**config.given(EmojiOptions, pairs, "", f" in {reference}"))
    background_of(options.background, "")
    size = request.image_size or DEFAULT_SIZE_PX
    packages, table = _find(reference, folders[0] if folders else None, _houses(reference, options.houses))
    if options.skin_tones == "none":
        table = [emoji for emoji in table if emoji.code == emoji.base]
    sheets = {house: _sheet(house, folder, size, request.n_workers) for house, folder in packages.items()}
    return options, _Drawn(table, sheets), size


def _houses(reference: str, text: str) -> list[str]:
    """The houses that an option names, in the order of HOUSES."""
    named = list(HOUSES) if text == "all" else text.split("+")
    if wrong := [name for name in named if name not in HOUSES]:
        raise UsageError(f"{reference}: houses={wrong[0]}: must be some of {', '.join(HOUSES)}, with + between, or all")
    return [house for house in HOUSES if house in named]


def _find(reference: str, folder: str | None, wanted: list[str]) -> tuple[dict[str, Path], list[Emoji]]:
    """The package of each house, and the table of emoji. Without a folder, of the first place that has pictures."""
    if folder is not None:
        places = [user_path(folder)]
    else:
        named = os.environ.get(DATA_VARIABLE)
        places = [user_path(named), user_path(named) / "emoji"] if named else []
        for place in SEARCH_PLACES:
            with contextlib.suppress(NoHome):
                places.append(user_path(place))
    for place in places:
        packages = _packages(place)
        found = {house: packages[HOUSES[house].package] for house in wanted if HOUSES[house].package in packages}
        if not found:
            continue
        tables = [package / "emoji.json" for package in packages.values() if (package / "emoji.json").is_file()]
        if not tables:
            raise UsageError(
                f"{reference}: {place} has no emoji.json, the table of categories; unpack {HOUSES['google'].package} "
                "there too"
            )
        return found, _table(tables[0])
    of_npm = " ".join(f"{HOUSES[house].package}@{HOUSES[house].version}" for house in wanted)
    raise UsageError(
        f"{reference}: no pictures in {', '.join(map(str, places))}; run `npm install {of_npm}` in a folder, and give "
        f"emoji:FOLDER, or name the folder in {DATA_VARIABLE}"
    )


def _packages(place: Path) -> dict[str, Path]:
    """The packages of HOUSES in a folder, by name: the folder itself, its subfolders, and where npm puts packages."""
    inner = [place, place / "node_modules", place / "@lobehub", place / "node_modules" / "@lobehub"]
    candidates = [place, *(below for folder in inner if folder.is_dir() for below in sorted(folder.iterdir()))]
    candidates += [folder / "package" for folder in candidates]  # as `tar` unpacks what `npm pack` fetched
    names = {house.package: house for house in HOUSES.values()}
    found: dict[str, Path] = {}
    for folder in candidates:
        try:
            about = parse_json((folder / "package.json").read_bytes())
        except (OSError, TextError):
            continue
        name = about.get("name") if isinstance(about, dict) else None
        if name in names and (folder / names[name].pictures).is_dir():
            found.setdefault(name, folder)
    return found


def _table(path: Path) -> list[Emoji]:
    """The emoji of emoji.json and their skin tones, in its own order of sorting."""
    try:
        rows = parse_json(path.read_bytes())
        rows = sorted((row for row in rows if row["category"] != _LEFT_OUT), key=lambda row: row["sort_order"])
        found = []
        for row in rows:
            base = plain_code(row["unified"])
            about = base, row["category"], row["subcategory"]
            found.append(Emoji(base, *about))
            found += [Emoji(plain_code(tone["unified"]), *about) for tone in row.get("skin_variations", {}).values()]
    except (OSError, TextError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: is no table of emoji ({type(error).__name__}: {error})") from error
    if not found:
        raise UsageError(f"{path}: has no emoji")
    return found


def plain_code(name: str) -> str:
    """Code points as all packages write them the same: "0023-FE0F-20E3" and "23-20e3" are "23-20e3"."""
    points = name.lower().replace("_", "-").split("-")
    return "-".join(point.lstrip("0") for point in points if point != "fe0f")


def _sheet(house: str, package: Path, size: int, n_workers: int) -> _Sheet:
    """The pictures of a house at size x size, or at their own size where that is smaller; read once, then cached."""
    about = HOUSES[house]
    folder = package / about.pictures
    files = sorted(path for path in folder.iterdir() if path.suffix == about.ending)
    if not files:
        raise UsageError(f"{folder}: has no {about.ending} pictures")
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    key = hashlib.sha256(json.dumps([_CACHE_FORMAT, str(folder.resolve()), size, stamps]).encode()).hexdigest()[:24]
    cached = cache_folder() / "emoji" / f"{house}-{size}-{key}.safetensors"
    places = {plain_code(path.stem): place for place, path in enumerate(files)}
    with contextlib.suppress(MiMlGenError, KeyError):  # absent, unreadable or damaged: the pictures are read again
        pixels = load_tensors(cached).tensors["pixels"]
        if pixels.dtype == torch.uint8 and pixels.ndim == 4 and pixels.shape[:2] == (len(files), 4):
            return _Sheet(places, pixels)
    with ThreadPoolExecutor(n_workers) as pool:
        pixels = torch.stack(list(pool.map(lambda path: _picture(path, size), files)))
    with contextlib.suppress(MiMlGenError):  # a cache that cannot be written is done without
        save_tensors(cached, {"pixels": pixels})
    return _Sheet(places, pixels)


def _picture(path: Path, size: int) -> Tensor:
    """The picture in a file: uint8 (4, size, size), colours times opacity and opacity; smaller ones as they are."""
    rgba = center_square(read_rgba(path))
    opacity = rgba[:, :, 3:].astype(np.uint16)
    whole = np.concatenate([((rgba[:, :, :3] * opacity + 127) // 255).astype(np.uint8), rgba[:, :, 3:]], axis=2)
    side = min(size, len(whole))
    return torch.from_numpy(resize_area(whole, side, side)).permute(2, 0, 1).contiguous()


__all__ = ["HOUSES", "EmojiOptions", "EmojiPairs", "licences", "load_emoji", "load_emoji_pairs", "with_option"]
