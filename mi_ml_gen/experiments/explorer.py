"""The explorer: one HTML page with a slider for each latent variable of a generator, to be moved by hand.

Every image that the sliders can reach is decoded beforehand, for all settings of the sliders together (a lattice), and
lies in the page. So the page needs no server and no generator, and shows nothing that the generator did not make.

Two kinds of walks stand on the sliders:

- A random direction turns the noise z of a part towards an independent draw z': cos(a) z + sin(a) z', for angles a from
  -90 to 90 degrees. Each point is distributed as the noise is (for normal noise), so images stay typical. At 90 degrees
  the part is drawn anew.
- A learned walker, or another T_z, moves the latents of its chunks along its own displacement, from none (0) to twice
  (2) as far.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.files import read_json
from mi_ml_gen.core.progress import Bar
from mi_ml_gen.experiments.settings import ExplorerConfig
from mi_ml_gen.generators.base import MultiLatentGenerator, device_of
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.latents import Chunks, NoiseDistribution, TruncatedNormal
from mi_ml_gen.report.page import Page
from mi_ml_gen.walkers import budget
from mi_ml_gen.walkers.base import Walker
from mi_ml_gen.walkers.origins import warn_of_differences
from mi_ml_gen.walkers.spec import walker_from

MOST_BYTES = 10_000_000
"""A page may be this large: it is mailed, and opened on phones."""
MOST_IMAGES = 8000
"""Images of a page where the number of positions is chosen by `positions_for`."""
SHEET_PX = 2048
"""Side of the largest sheet of images: phones refuse much larger ones."""
DECODED_AT_ONCE = 256
JPEG_QUALITY = 90


class Walk(NamedTuple):
    """Where the sliders of one kind of walk can bring one anchor."""

    latents: tuple[torch.Tensor, ...]
    """For each slider the latents of its chunks at each position, (n_positions, width)."""
    deltas: tuple[list[float], ...]
    """For each slider and position the Euclidean distance from the anchor's latents on these chunks."""


@dataclass(frozen=True)
class Kind:
    """A kind of walk, as the page names it."""

    name: str
    marks: tuple[tuple[str, ...], ...]
    """For each slider the name of each position."""
    starts: tuple[int, ...]
    """For each slider the position that is the anchor."""
    anchors: list[dict[str, Any]] = field(default_factory=list)
    """For each anchor its sheets of images, as data, and the deltas of its positions."""


def explore(settings: ExplorerConfig, progress: bool = True) -> Path:
    """Write the explorer of a generator; gives its path.

    Raises UsageError for settings that do not fit the generator, and where the page would be larger than MOST_BYTES.
    Nothing is written then.
    """
    device = runtime.resolve_device(settings.device)
    generator = load_generator(settings.generator, settings.g_path, device, settings.g_use)
    walker = None
    if settings.walkers:
        walker = learned_walkers(settings.walkers, generator, settings.distribution, settings.seed, device)
        warn_of_differences(walker, generator, settings.distribution)
    groups = sliders(generator.layout.n_chunks, settings.sliders, walker.chunks if walker is not None else ())
    n_kinds = 1 + (walker is not None)
    n_positions = settings.positions or positions_for(len(groups), settings.n_anchors * n_kinds)
    n_images = settings.n_anchors * n_kinds * n_positions ** len(groups)
    if n_images > 20 * MOST_IMAGES:
        raise UsageError(
            f"--sliders {len(groups)} with --positions {n_positions}: {n_images:,} images; "
            f"at most {20 * MOST_IMAGES:,} are decoded, so give fewer sliders, positions or --n_anchors"
        )
    facts = {str(group): known_facts(group, settings.map, settings.table) for group in groups}

    kinds = [_random_kind(len(groups), n_positions)]
    if walker is not None:
        kinds.append(_learned_kind(groups, walker, n_positions))
    side = min(settings.image_size, generator.resolution)
    n_bytes, n_lattices = 0, 0
    with Bar(total=n_images, unit="image", desc="lattice", disable=not progress) as bar:
        for i in range(settings.n_anchors):
            for kind in kinds:
                learned = None if kind.name == RANDOM else walker
                walk = walk_of(generator, groups, n_positions, settings.distribution, settings.seed, i, learned)
                anchor = anchor_latents(generator, settings.distribution, settings.seed, i)
                sheets = _sheets(generator, groups, anchor, walk, side, bar)
                kind.anchors.append({"sheets": sheets, "deltas": list(walk.deltas)})
                n_bytes, n_lattices = n_bytes + sum(map(len, sheets)), n_lattices + 1
                expected = n_bytes / n_lattices * settings.n_anchors * n_kinds
                if expected > MOST_BYTES:
                    raise UsageError(
                        f"the page would have {expected / 1e6:.0f} MB for {n_images:,} images of {side} px, and at "
                        f"most {MOST_BYTES / 1e6:.0f} are written; give fewer --n_anchors, --positions or --sliders, "
                        "or a smaller --image_size"
                    )
    page = _page(generator, groups, kinds, facts, side)
    return page.write(settings.out)


# ---------------------------------------------------------------------------------------------------------------
# Sliders and positions


def sliders(n_chunks: int, most: int, learned: Sequence[Chunks] = ()) -> list[Chunks]:
    """The chunks that each slider moves: together all of them, in order.

    With learned walkers a slider for each, and one for what lies between them; else at most `most` ranges of nearly
    equal length.
    """
    if not learned:
        n = min(most, n_chunks)
        edges = [round(i * n_chunks / n) for i in range(n + 1)]
        return [Chunks(start, stop) for start, stop in itertools.pairwise(edges)]
    groups, end = [], 0
    for chunks in sorted(learned, key=lambda one: one.start):
        if chunks.start > end:
            groups.append(Chunks(end, chunks.start))
        groups.append(chunks)
        end = chunks.stop
    return groups if end == n_chunks else [*groups, Chunks(end, n_chunks)]


def positions_for(n_sliders: int, n_lattices: int) -> int:
    """The largest odd number of positions, from 3 to 11, with which all lattices have at most MOST_IMAGES images."""
    return next((n for n in (11, 9, 7, 5) if n_lattices * n**n_sliders <= MOST_IMAGES), 3)


def learned_walkers(
    written: str | Path,
    generator: MultiLatentGenerator,
    noise: NoiseDistribution,
    seed: int,
    device: torch.device,
) -> Walker:
    """The walkers of a T_z, or of a folder with a run folder for each chunk, as Table 1 has them.

    noise, seed: of the anchors, for a T_z with budgets. Raises UsageError for a folder without walkers, and as
    `budget.walker_by`.
    """
    folder = Path(written)
    if not folder.is_dir() or (folder / "walker.safetensors").exists():
        return budget.walker_by(str(written), generator, noise, seed, device, "--walkers")
    found = sorted(path.parent for path in folder.glob("*/walker.safetensors"))
    if not found:
        raise UsageError(f"--walkers {folder}: neither it nor a subfolder holds a walker.safetensors")
    groups: dict[str, Walker] = {}
    for path in found:
        walker = walker_from(path, generator, device, f"--walkers {path}")
        groups[str(walker.chunks[0])] = walker
    return walker_from(groups, generator, device, "--walkers")


LEARNED = "learned walkers"
GIVEN = "given perturbations"
"""Those of --walkers where nothing in them was learned: noise, and fixed directions."""
RANDOM = "random directions"


def _random_kind(n_sliders: int, n_positions: int) -> Kind:
    angles = _angles(n_positions)
    marks = tuple(f"{round(math.degrees(angle))}°".replace("-", "\N{MINUS SIGN}") for angle in angles)
    return Kind(RANDOM, (marks,) * n_sliders, (n_positions // 2,) * n_sliders)


def _learned_kind(groups: Sequence[Chunks], walker: Walker, n_positions: int) -> Kind:
    random = _random_kind(1, n_positions)
    strengths = tuple(f"\N{MULTIPLICATION SIGN} {x:g}" for x in _strengths(n_positions))
    is_learned = [group in walker.chunks for group in groups]
    return Kind(
        LEARNED if any(True for _ in walker.parameters()) else GIVEN,
        tuple(strengths if one else random.marks[0] for one in is_learned),
        tuple(0 if one else random.starts[0] for one in is_learned),
    )


def _angles(n: int) -> list[float]:
    """From -90 to 90 degrees in n steps, in radians; the middle one is exactly 0."""
    return [math.pi * (i - n // 2) / (n - 1) for i in range(n)]


def _strengths(n: int) -> list[float]:
    return [2 * i / (n - 1) for i in range(n)]


def anchor_latents(generator: MultiLatentGenerator, noise: TruncatedNormal, seed: int, index: int) -> torch.Tensor:
    """Latents (1, layout.dim) of an anchor of the page."""
    return generator.latents(_noise(generator, noise, seed, "anchor", index))


@torch.no_grad()
def walk_of(
    generator: MultiLatentGenerator,
    groups: Sequence[Chunks],
    n_positions: int,
    noise: TruncatedNormal,
    seed: int,
    index: int,
    walker: Walker | None = None,
) -> Walk:
    """Where each slider brings anchor `index`: along a learned walker where there is one, else a random direction."""
    z = _noise(generator, noise, seed, "anchor", index)
    anchor = generator.latents(z)
    learned: Mapping[Chunks, torch.Tensor] = {}
    if walker is not None:
        rng = runtime.stream(seed, "explorer: walker", index, 0, z.device)
        learned = dict(walker.moves(generator, z, rng))
    latents, deltas = [], []
    for group in groups:
        at = generator.layout.slice(group)
        if group in learned:
            there = generator.moved_latents(z, learned[group])[:, at]
            strengths = torch.tensor(_strengths(n_positions), device=z.device)[:, None]
            moved = anchor[:, at] + strengths * (there - anchor[:, at])
        else:
            other = _noise(generator, noise, seed, f"direction {group}", index)
            moved = generator.moved_latents(
                z.expand(n_positions, -1), turned(z, other, generator.walk_slice(group), noise, n_positions)
            )[:, at]
        latents.append(moved)
        deltas.append([round(x, 4) for x in torch.linalg.vector_norm(moved - anchor[:, at], dim=1).tolist()])
    return Walk(tuple(latents), tuple(deltas))


def turned(z: torch.Tensor, other: torch.Tensor, at: slice, noise: TruncatedNormal, n_positions: int) -> torch.Tensor:
    """Noise z (1, noise_dim), turned on the slice `at` towards `other` by each angle: (n_positions, noise_dim).

    What leaves the truncation of the noise is set to its edge.
    """
    angles = torch.tensor(_angles(n_positions), device=z.device)[:, None]
    part = noise.mean + angles.cos() * (z[:, at] - noise.mean) + angles.sin() * (other[:, at] - noise.mean)
    edge = noise.truncation * noise.std
    if math.isfinite(edge):
        part = part.clamp(noise.mean - edge, noise.mean + edge)
    moved = z.repeat(n_positions, 1)
    moved[:, at] = part
    return moved


def _noise(generator: MultiLatentGenerator, noise: TruncatedNormal, seed: int, name: str, index: int) -> torch.Tensor:
    rng = runtime.stream(seed, f"explorer: {name}", index, 0, device_of(generator))
    return noise.sample((1, generator.noise_dim), rng)


# ---------------------------------------------------------------------------------------------------------------
# Images


@torch.no_grad()
def _sheets(
    generator: MultiLatentGenerator,
    groups: Sequence[Chunks],
    anchor: torch.Tensor,
    walk: Walk,
    side: int,
    bar: Bar,
) -> list[str]:
    """All images of one walk of one anchor as JPEG sheets in data URLs; the last slider's position changes fastest."""
    places = [generator.layout.slice(group) for group in groups]
    index = torch.cartesian_prod(*(torch.arange(len(part)) for part in walk.latents)).view(-1, len(groups))
    tile = side + (-side) % 8  # a block of JPEG has 8 px: so no image reaches into the next
    per_row = SHEET_PX // tile
    sheets, tiles = [], []
    for n, part in enumerate(index.split(DECODED_AT_ONCE)):
        latents = anchor.repeat(len(part), 1)
        for column, at, moved in zip(part.T, places, walk.latents, strict=True):
            latents[:, at] = moved[column.to(moved.device)]
        images = generator.decode(latents, runtime.stream(0, "explorer: decode", n, 0, latents.device))
        if side < generator.resolution:
            images = functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
        padded = functional.pad(images.clamp(0, 1), (0, tile - side, 0, tile - side), mode="replicate")
        tiles += list((padded * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
        bar.update(len(part))
    for start in range(0, len(tiles), per_row * per_row):
        sheets.append(_jpeg(tiles[start : start + per_row * per_row], per_row))
    return sheets


def _jpeg(tiles: Sequence[np.ndarray], per_row: int) -> str:
    side = len(tiles[0])
    n_rows = -(-len(tiles) // per_row)
    sheet = np.zeros((n_rows * side, min(per_row, len(tiles)) * side, 3), np.uint8)
    for i, tile in enumerate(tiles):
        row, column = divmod(i, per_row)
        sheet[row * side : (row + 1) * side, column * side : (column + 1) * side] = tile
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


# ---------------------------------------------------------------------------------------------------------------
# What was measured


def known_facts(group: Chunks, map_file: Path | None, table_file: Path | None) -> list[str]:
    """Sentences on what was measured of a range of chunks, from the JSON files of a map and of Table 1; empty where
    they hold nothing on it.

    Raises UsageError for a file that is neither, CorruptCheckpointError for a damaged one.
    """
    said: list[str] = []
    for path, flag, kind, of_one in ((map_file, "--map", dict, _of_cell), (table_file, "--table", list, _of_row)):
        if path is None:
            continue
        content = _json(path, flag, kind)
        try:
            for one in content if kind is list else content["ranges"]:
                if one["chunks"] == str(group):
                    said += of_one(one)
        except (KeyError, TypeError, ValueError, IndexError):
            raise _not_such(path, flag) from None
    return said


def _of_cell(cell: Mapping[str, Any]) -> list[str]:
    delta = cell.get("delta") or {}
    said = [f"Redrawn, it moves by {delta['mean']:.2f} on average."] if "mean" in delta else []
    for key, text in (("shared", "Redrawn, it leaves"), ("carried", "Alone, it carries")):
        if cell.get(key):
            said.append(f"{text} {_estimate(cell[key])}.")
    if cell.get("class_lost"):
        said.append(f"Redrawn, it takes {_estimate(cell['class_lost'])} from the label.")
    return said


def _of_row(row: Mapping[str, Any]) -> list[str]:
    said, verdict = [], row.get("verdict") or "no verdict"
    written = row.get("T_z", "learned")
    mover, walker = ("Its learned walker", "The walker") if written == "learned" else (written, written)
    if row.get("delta") is not None:
        interval = row.get("95% interval") or "–"
        over = "one training; no interval over trainings" if interval == "–" else f"{interval}, 95% over trainings"
        over = over if written == "learned" else "nothing was trained"
        said.append(f"{mover} moves it by {row['delta']:.2f} on average ({over}).")
    # The verdict of a row is that of the fresh critic's number where there is one.
    if row.get("remaining (nats)") is not None:
        least = f"at least {row['at least (nats)']:.2f}; " if row.get("at least (nats)") is not None else ""
        said.append(f"{walker} leaves {row['remaining (nats)']:.2f} nats by a fresh critic ({least}{verdict}).")
    elif row.get("bound (nats)") is not None:
        said.append(
            f"{walker} leaves {row['bound (nats)']:.2f} nats by the critic of its training (no interval; {verdict})."
        )
    return said


def _estimate(found: Mapping[str, Any]) -> str:
    low, high = found["interval_nats"]
    interval = f"at least {low:.2f}" if high is None else f"{low:.2f} to {high:.2f}"
    return f"{found['nats']:.2f} nats ({interval}; {found['verdict']})"


def _json(path: Path, flag: str, kind: type) -> Any:
    if not path.is_file():
        raise UsageError(f"{flag} {path}: no such file; map_generator.py writes map.json, and Table 1 table1.json")
    content = read_json(path, object)
    if not isinstance(content, kind):
        raise _not_such(path, flag)
    return content


def _not_such(path: Path, flag: str) -> UsageError:
    return UsageError(f"{flag} {path}: not such a file; map_generator.py writes map.json, and Table 1 table1.json")


# ---------------------------------------------------------------------------------------------------------------
# The page


def _page(
    generator: MultiLatentGenerator,
    groups: Sequence[Chunks],
    kinds: Sequence[Kind],
    facts: Mapping[str, Sequence[str]],
    side: int,
) -> Page:
    page = Page(
        f"Explorer of {generator.name}",
        "Each slider moves one part of the latent vector and leaves the others alone. What changes in the image is "
        "what that part decides.",
    )
    tile = side + (-side) % 8
    data = {
        "side": side,
        "tile": tile,
        "perRow": SHEET_PX // tile,
        "kinds": [vars(kind) | {"n": len(kind.marks[0])} for kind in kinds],
    }
    rows = []
    for i, group in enumerate(groups):
        name = f"chunk {group.start}" if len(group) == 1 else f"chunks {group.start} to {group.stop - 1}"
        said = "".join(f"<li>{html.escape(text)}</li>" for text in facts[str(group)])
        rows.append(
            f'<div class="slider"><label for="slider-{i}">{name}</label>'
            f'<output id="value-{i}" for="slider-{i}"></output>'
            f'<input type="range" id="slider-{i}" min="0" max="{len(kinds[0].marks[0]) - 1}" step="1">'
            + (f"<ul>{said}</ul>" if said else "")
            + "</div>"
        )
    choices = "".join(
        f'<label><input type="radio" name="kind" value="{i}"{" checked" if i == 0 else ""}> '
        f"{html.escape(kind.name)}</label>"
        for i, kind in enumerate(kinds)
    )
    walks = f'<fieldset class="kinds"><legend>The sliders follow</legend>{choices}</fieldset>' if len(kinds) > 1 else ""
    n_anchors = len(kinds[0].anchors)
    next_one = '<button type="button" id="next">Another image</button>' if n_anchors > 1 else ""
    page.widget(
        '<div class="explorer"><div class="pictures">'
        '<figure><canvas id="anchor" role="img" aria-label="the image with all sliders at their start"></canvas>'
        "<figcaption>the image as it was drawn</figcaption></figure>"
        '<figure><canvas id="image" role="img" aria-label="the image where the sliders stand"></canvas>'
        '<figcaption id="caption">where the sliders stand</figcaption></figure></div>'
        f'<div class="controls">{walks}{"".join(rows)}'
        f'<p class="buttons">{next_one}<button type="button" id="back">All back</button>'
        '<button type="button" id="random">Anywhere</button></p></div></div>'
        "<noscript><p>This page needs JavaScript. It fetches nothing: all images are in the file.</p></noscript>",
        _STYLE,
        _SCRIPT,
        data,
    )
    page.section("What is shown")
    page.text(
        "A random direction turns the noise of a part towards an independent draw. At 0° the part is the anchor's, at "
        "90° it is drawn anew, and every point between is as typical as any other. delta is the Euclidean distance "
        "from the anchor in the latents of the part."
    )
    if len(kinds) > 1:
        page.text(
            "A learned walker was trained so that the image and the changed image share as little information as a "
            "critic can find. × 1 is its own step, × 2 is twice as far."
            if kinds[1].name == LEARNED
            else "The given perturbations, noise or fixed directions, are drawn once for each image. × 1 is that draw, "
            "× 2 is twice as far."
        )
    if any(facts.values()):
        page.text(
            "1 nat is 1.44 bits. `at least` gives the lower end of a one-sided 95% interval. Nats and delta under a "
            "slider are averages over many images, and not of the one that is shown."
        )
    page.text("Move a slider by touch, mouse or the arrow keys; Tab goes to the next one.")
    return page


_STYLE = """
.explorer { display: grid; gap: 1.6rem 2.4rem; margin: 1.6rem 0; }
.pictures { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; align-content: start; }
.pictures figure { margin: 0; }
.pictures canvas { display: block; width: 100%; aspect-ratio: 1; background: var(--tint); border-radius: 2px; }
.pictures canvas.sharp { image-rendering: pixelated; }
.controls { font: 0.95rem/1.45 var(--sans); }
.kinds { border: 0; padding: 0; margin: 0 0 1rem; display: flex; flex-wrap: wrap; gap: 0.3rem 1.2rem; }
.kinds legend { padding: 0; color: var(--soft); font-size: 0.86rem; }
.kinds label { min-height: 2.2rem; display: inline-flex; align-items: center; gap: 0.4rem; }
.slider { display: grid; grid-template-columns: 1fr auto; gap: 0 1rem; padding: 0.6rem 0; }
.slider + .slider { border-top: 1px solid var(--line); }
.slider label { font-weight: 600; }
.slider output { color: var(--soft); font-variant-numeric: tabular-nums; }
.slider input { grid-column: 1 / -1; width: 100%; height: 2.4rem; margin: 0; accent-color: var(--accent); }
.slider ul { grid-column: 1 / -1; margin: 0; padding: 0; list-style: none; color: var(--soft); font-size: 0.86rem; }
.buttons { display: flex; flex-wrap: wrap; gap: 0.6rem; margin: 0.8rem 0 0; }
.buttons button {
  font: inherit; color: var(--ink); background: var(--tint); border: 1px solid var(--line); border-radius: 6px;
  padding: 0.5rem 0.9rem; min-height: 2.6rem; cursor: pointer;
}
.buttons button:focus-visible, .slider input:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@media (min-width: 56rem) { .explorer { grid-template-columns: 1.1fr 1fr; } }
@media (max-width: 55.99rem) {
  .pictures {
    position: sticky; top: 0; z-index: 1; background: var(--paper); padding: 0.5rem 0; max-width: 24rem;
  }
}
"""

_SCRIPT = """
const find = (id) => document.getElementById(id);
const inputs = [...document.querySelectorAll(".slider input")];
let kind = data.kinds[0], anchor = 0, drawn = 0;
const loaded = new Map();

function sheet(url) {
  if (!loaded.has(url)) {
    loaded.set(url, new Promise((resolve, reject) => {
      const image = new Image();
      image.onload = () => resolve(image);
      image.onerror = () => reject(new Error("an image of this page is damaged"));
      image.src = url;
    }));
  }
  return loaded.get(url);
}

async function draw(canvas, positions) {
  const index = positions.reduce((sum, position) => sum * kind.n + position, 0);
  const perSheet = data.perRow * data.perRow, tile = data.tile;
  const within = index % perSheet;
  const image = await sheet(kind.anchors[anchor].sheets[Math.floor(index / perSheet)]);
  const x = (within % data.perRow) * tile, y = Math.floor(within / data.perRow) * tile;
  return () => canvas.getContext("2d").drawImage(image, x, y, data.side, data.side, 0, 0, data.side, data.side);
}

async function show() {
  const mine = ++drawn;
  const positions = inputs.map((input) => Number(input.value));
  const deltas = kind.anchors[anchor].deltas;
  positions.forEach((position, i) => {
    const text = kind.marks[i][position] + " \\u00b7 delta " + deltas[i][position].toFixed(2);
    find("value-" + i).textContent = text;
    inputs[i].setAttribute("aria-valuetext", text);
  });
  const moved = Math.hypot(...positions.map((position, i) => deltas[i][position]));
  find("caption").textContent = "where the sliders stand: delta " + moved.toFixed(2);
  const both = await Promise.all([draw(find("anchor"), kind.starts), draw(find("image"), positions)]);
  if (mine === drawn) both.forEach((put) => put());  // a later move has not overtaken this one
}

function back() {
  inputs.forEach((input, i) => { input.value = kind.starts[i]; });
  show();
}

for (const id of ["anchor", "image"]) {
  const canvas = find(id);
  canvas.width = canvas.height = data.side;
  canvas.classList.toggle("sharp", data.side < 128);
}
inputs.forEach((input) => input.addEventListener("input", show));
find("back").addEventListener("click", back);
find("random").addEventListener("click", () => {
  inputs.forEach((input) => { input.value = Math.floor(Math.random() * kind.n); });
  show();
});
if (find("next")) {
  find("next").addEventListener("click", () => { anchor = (anchor + 1) % kind.anchors.length; show(); });
}
document.querySelectorAll("input[name=kind]").forEach((choice) => choice.addEventListener("change", () => {
  kind = data.kinds[Number(choice.value)];
  back();
}));
back();
"""
