"""The map of a generator: what every range of its chunks says about the image, in nats.

For a range of chunks, with z and z' independent draws of the noise:

- *shared*: I(x; x') of an image x and of x', the same image with the range redrawn: what is left when the range goes.
- *carried*: I(x; x') where everything but the range is redrawn: what the range brings alone.
- *class lost*: H(L(x) | L(x')), what the label L of an image loses when the range is redrawn, in nats. The label is a
  classifier's (of a run, or trained here on a labelled set), or the number of the image's k-means cluster.
- *delta*: the length of the redrawing in the latents of the range.

How. Images are decoded once, for all ranges together: each group of images mixes the chunks of two draws a and b in
every way that is needed, and each pair of images in it whose mixtures differ in a range, and nowhere else, is a pair
for that range (`Mixtures`). Each kind of pair then gets a critic in closed form (`information/canonical.py`), whose
bound is taken on groups that it was not made from. Where the settings ask for it, one network for all kinds of pairs
starts from these critics and is trained (`map_critic.py`). bench/map.py compares cost and numbers of both with those of
a network that is trained from scratch for each range.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mi_ml_gen import delta
from mi_ml_gen.core import config, loop, runtime
from mi_ml_gen.core.progress import Bar
from mi_ml_gen.experiments.map_critic import LOOKS, Trained, train_map_critic
from mi_ml_gen.experiments.map_labels import Labeller, label_kind, labeller
from mi_ml_gen.experiments.settings import MapConfig
from mi_ml_gen.generators.base import MultiLatentGenerator, device_of
from mi_ml_gen.generators.fingerprint import fingerprint_record
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.information import discrete
from mi_ml_gen.information.canonical import CanonicalCritic, Whitening, matching_bound, matching_estimate, measure
from mi_ml_gen.information.estimate import Estimate, MonteCarloMean, Verdict
from mi_ml_gen.information.shared_critic import Question, Seen
from mi_ml_gen.latents import Chunks
from mi_ml_gen.report import tables as report
from mi_ml_gen.report.figures import triangle
from mi_ml_gen.report.images import image_grid, save_png
from mi_ml_gen.report.page import Page
from mi_ml_gen.walkers.pictures import decode_shown

BLOCK = 64
"""Groups that are drawn and decoded together; part of what a seed means."""
N_WHITENED = 1024
"""Images to which the critic's inputs and the clusters are fitted."""
N_VALIDATION = 512
"""Groups on which a network's training is looked at, and its factors are chosen."""
MOST_ROWS = 12
"""Ranges whose images are shown; beyond that single chunks only."""

Mask = frozenset[int]
"""Chunks that are redrawn."""


# ---------------------------------------------------------------------------------------------------------------
# Ranges and mixtures


def ranges_of(n_chunks: int, which: str) -> list[Chunks]:
    """The ranges of a map: `all` K(K+1)/2, a binary `tree` of halves, or `single` chunks; the whole is always the last.

    auto: all up to 8 chunks, else the tree.
    """
    if which == "auto":
        which = "all" if n_chunks <= 8 else "tree"
    if which == "all":
        found = [Chunks(i, i + size) for size in range(1, n_chunks + 1) for i in range(n_chunks - size + 1)]
    elif which == "single":
        found = [Chunks(i, i + 1) for i in range(n_chunks)]
    else:
        found, waiting = [], [Chunks(0, n_chunks)]
        for chunks in waiting:
            found.append(chunks)
            if len(chunks) > 1:
                middle = (chunks.start + chunks.stop + 1) // 2
                waiting += [Chunks(chunks.start, middle), Chunks(middle, chunks.stop)]
        found.sort(key=lambda chunks: (len(chunks), chunks.start))
    whole = Chunks(0, n_chunks)
    return [chunks for chunks in found if chunks != whole] + [whole]


class Mixtures(NamedTuple):
    """Which mixtures of two draws a and b are decoded, and which pairs of them belong to which redrawn chunks."""

    from_b: tuple[Mask, ...]
    """For each mixture the chunks that come from b; the first is a itself."""
    pairs: dict[Mask, tuple[tuple[int, int], ...]]
    """For each set of redrawn chunks the pairs of mixtures that differ in it and nowhere else."""


def mixtures(n_chunks: int, masks: Sequence[Mask], independent: bool) -> Mixtures:
    """The mixtures for these sets of redrawn chunks.

    independent: whether the chunks of a draw are independent of one another. Then a mixture is distributed as a draw
    is, so that all pairs of mixtures count, and the 2 K mixtures of beginnings and ends are enough for every range and
    its complement. Otherwise (StyleGAN2, whose layers share one w) one of a pair must be a draw itself, a or b.
    """
    everything = frozenset(range(n_chunks))
    beginnings = [frozenset(range(i)) for i in range(n_chunks + 1)]
    if independent:
        from_b = [*beginnings, *(everything - part for part in beginnings[1:-1])]
    else:
        from_b = [frozenset(), everything]
        for mask in masks:
            if mask not in from_b and everything - mask not in from_b:
                from_b.append(mask)
    pairs: dict[Mask, list[tuple[int, int]]] = {mask: [] for mask in masks}
    for i, j in combinations(range(len(from_b)), 2):
        redrawn = from_b[i] ^ from_b[j]
        if redrawn in pairs and (independent or from_b[i] in (frozenset(), everything)):
            pairs[redrawn].append((i, j))
    assert all(pairs.values())
    return Mixtures(tuple(from_b), {mask: tuple(found) for mask, found in pairs.items()})


def has_independent_chunks(generator: MultiLatentGenerator) -> bool:
    """Whether the latents are the noise itself, whose numbers are independent of one another."""
    z = torch.randn(2, generator.noise_dim, generator=torch.Generator().manual_seed(0)).to(device_of(generator))
    latents = generator.latents(z)
    return latents.shape == z.shape and torch.equal(latents, z)


# ---------------------------------------------------------------------------------------------------------------
# Images


class Pool(NamedTuple):
    """Decoded groups of mixtures."""

    images: Tensor
    """uint8 (n_groups, n_mixtures, 3, side, side)."""
    labels: Tensor
    """int64 (n_groups, n_mixtures); of no columns where no label was asked for."""


def decode_pool(
    generator: MultiLatentGenerator,
    mixed: Mixtures,
    n_groups: int,
    settings: MapConfig,
    name: str,
    label: Labeller | None = None,
    progress: bool = True,
    stop: Callable[[], None] = lambda: None,
) -> Pool:
    """n_groups groups, rounded up to whole blocks. Block i of a name has random streams of its own.

    stop: called before each block. The images are kept at settings.critic_size px at most: a bound from smaller images
    is one for the larger ones too.
    """
    images, labels = [], []
    bar = Bar(total=n_groups, unit="group", desc=f"images to {name}", disable=not progress, leave=False)
    for i in range(-(-n_groups // BLOCK)):
        stop()
        block = decode_block(generator, mixed, settings, name, i, label)
        images.append(block.images)
        labels.append(block.labels)
        bar.update(BLOCK)
    bar.close()
    return Pool(torch.cat(images), torch.cat(labels))


@torch.no_grad()
def decode_block(
    generator: MultiLatentGenerator,
    mixed: Mixtures,
    settings: MapConfig,
    name: str,
    i: int,
    label: Labeller | None = None,
) -> Pool:
    """Block i of a name: BLOCK groups, the images on the generator's device."""
    device = device_of(generator)
    from_b = _columns(generator, mixed.from_b).to(device)
    side = _side(generator, settings)
    rng = runtime.stream(settings.seed, f"map: {name}", i, 0, device)
    a, b = (settings.distribution.sample((BLOCK, generator.noise_dim), rng) for _ in range(2))
    latents_a, latents_b = generator.latents(a), generator.moved_latents(a, b)
    latents = torch.where(from_b[:, None], latents_b, latents_a)  # (n_mixtures, BLOCK, dim)
    decoded = torch.cat([generator.decode(part, rng) for part in latents])
    labels = torch.zeros(BLOCK, 0, dtype=torch.long)
    if label is not None:
        labels = label(decoded).view(len(latents), BLOCK).T.cpu()
    if side < generator.resolution:
        decoded = functional.interpolate(decoded, (side, side), mode="bilinear", antialias=True)
    stored = (decoded.clamp(0, 1) * 255).round().byte()
    return Pool(stored.view(len(latents), BLOCK, 3, side, side).transpose(0, 1), labels)


def _side(generator: MultiLatentGenerator, settings: MapConfig) -> int:
    """Of the images that the critics see, in px."""
    return min(generator.resolution, settings.critic_size)


def _columns(generator: MultiLatentGenerator, masks: Sequence[Mask]) -> Tensor:
    """Which latents each mask holds, bool (n_masks, layout.dim)."""
    found = torch.zeros(len(masks), generator.layout.dim, dtype=torch.bool)
    for row, mask in zip(found, masks, strict=True):
        for chunk in mask:
            row[generator.layout.slice(Chunks(chunk, chunk + 1))] = True
    return found


def whitened(whitening: Whitening, images: Tensor) -> Tensor:
    """uint8 (n_groups, n_mixtures, 3, side, side) -> (n_groups, n_mixtures, n_inputs)."""
    parts = [whitening(part.flatten(0, 1).float() / 255) for part in images.split(BLOCK)]
    return torch.cat(parts).view(len(images), images.shape[1], -1)


# ---------------------------------------------------------------------------------------------------------------
# The map


@dataclass(frozen=True)
class GeneratorMap:
    """A finished map."""

    path: Path
    """The run folder; map.json, map.html and the table's files are in it."""
    content: dict[str, Any]
    """What map.json holds."""


def map_generator(
    settings: MapConfig, generator: MultiLatentGenerator | None = None, progress: bool = True
) -> GeneratorMap:
    """Measure and write the map of a generator; the same settings resume an interrupted run.

    generator: loaded from the settings where it is not given. Raises UsageError for settings that make no sense or
    differ from the folder's, Preempted when a signal asked to stop (ranges that are measured stay).
    """
    device = runtime.resolve_device(settings.device)
    runtime.set_precision("fp32")
    if generator is None:
        generator = load_generator(settings.generator, settings.g_path, device, settings.g_use)
    asked = ranges_of(generator.layout.n_chunks, settings.ranges)
    path = settings.folder
    described = config.to_dict(settings) | fingerprint_record(path, generator)
    with loop.Session.open(path, described, **config.resuming(MapConfig)) as session:
        session.resume()
        pairs: Pairs | None = None
        for step in session.steps(len(asked), unit="range", title="map", progress=progress):
            if pairs is None:
                pairs = draw_pairs(generator, asked, settings, device, progress, session)
                if settings.critic == "network":
                    pairs = with_network(pairs, generator, settings, described, device, progress, session)
            cell = _cell(generator, pairs, asked[step], settings)
            about = {} if pairs.network is None else {"critic_steps": pairs.network.trained.n_steps}
            session.log(
                cell=cell, n_images=pairs.n_images, label_entropy_nats=discrete.entropy(pairs.labels[:, 0]), **about
            )
            session.show(chunks=str(asked[step]))
            session.end_of_step(save=True)
        content = _content(generator, settings, session.rows)
        session.run.write_json("map.json", content)
        to_table(content).write(session.run.path, "table")
        write_page(path / "map.html", generator, settings, content)
        save_redrawn(path / "images" / "redrawn.png", generator, settings, content)
    return GeneratorMap(path, content)


@dataclass(frozen=True)
class Pairs:
    """What the ranges are measured on."""

    mixed: Mixtures
    exchangeable: bool
    whitening: Whitening
    training: Tensor
    """Inputs of the critics, (n_train, n_mixtures, n_inputs)."""
    held_out: Tensor
    """(n_eval, n_mixtures, n_inputs)"""
    held_out_images: Tensor
    """uint8 (n_eval, n_mixtures, 3, side, side)"""
    labels: Tensor
    """Of the held-out images, (n_eval, n_mixtures)."""
    n_images: int
    """How many were decoded."""
    network: Network | None = None


@dataclass(frozen=True)
class Network:
    """The trained network of a map, and what it has of the held-out groups."""

    trained: Trained
    order: tuple[Mask, ...]
    """What each of its questions is about."""
    seen: Seen


def draw_pairs(
    generator: MultiLatentGenerator,
    asked: Sequence[Chunks],
    settings: MapConfig,
    device: torch.device,
    progress: bool,
    session: loop.Session,
) -> Pairs:
    """Decode all groups, and bring their images to inputs and labels."""
    everything = frozenset(range(generator.layout.n_chunks))
    masks = list(dict.fromkeys(mask for chunks in asked for mask in _masks(chunks, everything) if mask))
    independent = has_independent_chunks(generator)
    mixed = mixtures(generator.layout.n_chunks, masks, independent)

    def stop() -> None:
        session.stop_if_asked("the ranges that are measured are safe")

    def pool(name: str, n_groups: int, label: Labeller | None = None) -> Pool:
        return decode_pool(generator, mixed, n_groups, settings, name, label, progress, stop)

    n_fit = -(-N_WHITENED // len(mixed.from_b))
    sample = pool("fit", n_fit).images.flatten(0, 1)[:N_WHITENED].float().cpu() / 255
    whitening = Whitening.of(sample, settings.n_inputs)
    keep = session.run.path / "label_classifier.safetensors"
    label = labeller(settings, sample, generator.resolution, device, progress, stop, keep)
    training = pool("train", settings.n_train)
    held_out = pool("measure", settings.n_eval, label)
    return Pairs(
        mixed,
        independent,
        whitening,
        whitened(whitening, training.images.cpu())[: settings.n_train],
        whitened(whitening, held_out.images.cpu())[: settings.n_eval],
        held_out.images[: settings.n_eval],
        held_out.labels[: settings.n_eval],
        sum(-(-n // BLOCK) * BLOCK for n in (n_fit, settings.n_train, settings.n_eval)) * len(mixed.from_b),
    )


def with_network(
    pairs: Pairs,
    generator: MultiLatentGenerator,
    settings: MapConfig,
    described: Mapping[str, Any],
    device: torch.device,
    progress: bool,
    session: loop.Session,
) -> Pairs:
    """The same pairs, and the network that is trained for all their questions; finished ones are read."""
    order = tuple(pairs.mixed.pairs)
    questions = [Question(pairs.mixed.pairs[mask], _canonical(pairs, mask).to(device)) for mask in order]

    def stop() -> None:
        session.stop_if_asked("the images are decoded anew when it goes on")

    validation = decode_pool(generator, pairs.mixed, N_VALIDATION, settings, "validate", None, progress, stop)
    trained = train_map_critic(
        session.run.path / "critic",
        described,
        questions,
        pairs.whitening,
        lambda i: decode_block(generator, pairs.mixed, settings, "critic", i).images,
        validation.images,
        settings,
        pairs.exchangeable,
        device,
        progress,
    )
    n_images = (N_VALIDATION + BLOCK * trained.n_blocks) * len(pairs.mixed.from_b)
    network = Network(trained, order, trained.critic.see(pairs.held_out_images))
    return dataclasses.replace(pairs, n_images=pairs.n_images + n_images, network=network)


def _masks(chunks: Chunks, everything: Mask) -> tuple[Mask, Mask]:
    """What is redrawn for `shared`, and for `carried`."""
    redrawn = frozenset(range(chunks.start, chunks.stop))
    return redrawn, everything - redrawn


def _cell(generator: MultiLatentGenerator, pairs: Pairs, chunks: Chunks, settings: MapConfig) -> dict[str, Any]:
    """All that the map says of a range, as plain values; None for what its complement, which is empty, would give."""
    length = delta.independent_delta(
        generator, chunks, distribution=settings.distribution, seed=settings.seed, device=device_of(generator)
    )
    cell: dict[str, Any] = {
        "chunks": str(chunks),
        "delta": {"mean": length.mean, "std": length.std, "standard_error": length.standard_error},
    }
    everything = frozenset(range(generator.layout.n_chunks))
    redrawn, others = _masks(chunks, everything)
    for name, mask in (("shared", redrawn), ("carried", others)):
        cell[name] = _measured(pairs, mask).to_json() if mask else None
    i, j = pairs.mixed.pairs[redrawn][0]
    cell["class_lost"] = discrete.label_loss(pairs.labels[:, i], pairs.labels[:, j]).to_json()
    return cell


def _training_pairs(pairs: Pairs, mask: Mask) -> tuple[Tensor, Tensor]:
    found = pairs.mixed.pairs[mask]
    x, y = (torch.cat([pairs.training[:, pair[side]] for pair in found]) for side in (0, 1))
    return x, y


def _canonical(pairs: Pairs, mask: Mask) -> CanonicalCritic:
    return CanonicalCritic.of(*_training_pairs(pairs, mask), pairs.exchangeable)


LEAST_STEPS = 2 * LOOKS
"""Training steps of the network from which on its course shows whether a bound still rises."""


def _measured(pairs: Pairs, mask: Mask) -> Estimate:
    """The information that two images share when the chunks of `mask` are redrawn."""
    i, j = pairs.mixed.pairs[mask][0]  # one pair of each group, so that the held-out pairs are independent
    canonical = measure(*_training_pairs(pairs, mask), pairs.held_out[:, i], pairs.held_out[:, j], pairs.exchangeable)
    if pairs.network is None:
        return canonical
    critic, index = pairs.network.trained.critic, pairs.network.order.index(mask)
    if not critic.uses_network[index]:
        return canonical
    with torch.no_grad():
        bound = matching_bound(critic.final_scores(pairs.network.seen, index))
    floor = MonteCarloMean(canonical.nats, bound.standard_error_nats)
    trained = pairs.network.trained
    curve = [look[index] for look in trained.course]
    found = matching_estimate(
        bound, estimator="network critic", curve_nats=curve, floors={"canonical correlations": floor}
    )
    if trained.n_steps >= LEAST_STEPS or found.verdict.is_warning:
        return found
    reason = f"{trained.n_steps} training steps are too few to tell whether more would find more"
    return dataclasses.replace(found, verdict=Verdict.NOT_CONVERGED, reason=reason)


def _content(generator: MultiLatentGenerator, settings: MapConfig, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    noise = settings.distribution
    truncation = noise.truncation if math.isfinite(noise.truncation) else None  # JSON has no infinity
    return {
        "generator": generator.name,
        "n_chunks": generator.layout.n_chunks,
        "chunk_sizes": list(generator.layout.sizes),
        "noise": {"mean": noise.mean, "std": noise.std, "truncation": truncation},
        "seed": settings.seed,
        "label": {"kind": label_kind(settings), "entropy_nats": rows[0]["label_entropy_nats"]},
        "critic": {"kind": settings.critic, "n_steps": rows[0].get("critic_steps", 0)},
        "n_decoded_images": rows[0]["n_images"],
        "n_train_groups": settings.n_train,
        "n_pairs": settings.n_eval,
        "ranges": [row["cell"] for row in rows],
    }


# ---------------------------------------------------------------------------------------------------------------
# The table and the page


def to_table(content: Mapping[str, Any]) -> report.Table:
    """One line per range."""
    columns = ["chunks", "delta", "shared", "interval", "verdict"]
    columns += ["carried", "its interval", "its verdict", "class lost", "interval of it", "verdict of it"]
    has_network = _has_network(content)
    if has_network:
        columns.append("critics")
    rows: list[list[report.Cell]] = []
    for cell in content["ranges"]:
        row: list[report.Cell] = [cell["chunks"], cell["delta"]["mean"]]
        for name in ("shared", "carried"):
            found = cell[name]
            row += [None, None, None] if found is None else [found["nats"], _interval(found), found["verdict"]]
        row += [cell["class_lost"]["nats"], _interval(cell["class_lost"]), cell["class_lost"]["verdict"]]
        if has_network:
            row.append(", ".join(_critic_of(cell[name]) for name in ("shared", "carried") if cell[name] is not None))
        rows.append(row)
    entropy = content["label"]["entropy_nats"]
    deltas = [cell["delta"] for cell in content["ranges"] if cell["delta"]["mean"]]
    error = max((delta["standard_error"] / delta["mean"] for delta in deltas), default=0.0)
    caption = (
        "In nats, with 95% intervals. shared: what image and image have in common when the range is redrawn; carried: "
        f"when all else is. class lost: of the {entropy:.2f} nats of the label ({content['label']['kind']}). "
        f"delta: mean distance of the latents when the range is redrawn, with a standard error of at most {error:.1%}."
    )
    caption += " critics: of shared, and of carried." if has_network else " Both by canonical critics."
    formats = {"delta": ".2f", "shared": ".2f", "carried": ".2f", "class lost": ".2f"}
    return report.Table(columns, rows, caption, formats)


def _has_network(content: Mapping[str, Any]) -> bool:
    """Whether a network was trained for the map; maps of earlier versions do not say, and had none."""
    return bool(content.get("critic", {}).get("kind") == "network")


def _critic_of(found: Mapping[str, Any]) -> str:
    """The critic that gave a number, in a word."""
    return str(found["estimator"]).removesuffix(" critic")


def _interval(found: Mapping[str, Any]) -> str:
    low, high = found["interval_nats"]
    return f"at least {low:.2f}" if high is None else f"{low:.2f} to {high:.2f}"


FIGURES = {
    "shared": "shared (nats)",
    "carried": "carried (nats)",
    "class_lost": "class lost (nats)",
}


def heat_map(content: Mapping[str, Any], name: str) -> Any:
    """One quantity of the map as a triangle."""
    values = {}
    for cell in content["ranges"]:
        if cell[name] is not None:
            chunks = Chunks.of(cell["chunks"])
            values[chunks.start, chunks.stop] = cell[name]["nats"], _mark(cell[name])
    return triangle(values, content["n_chunks"], FIGURES[name])


def _mark(found: Mapping[str, Any]) -> str:
    if found["verdict"] == "lower bound, saturated":
        return ">"
    return "" if found["verdict"] == "consistent" else "*"


def write_page(path: Path, generator: MultiLatentGenerator, settings: MapConfig, content: Mapping[str, Any]) -> Path:
    """The map as one self-contained HTML page."""
    page = Page(
        f"Map of {content['generator']}",
        "What every range of the generator's latent variables (chunks) says about the image, in nats.",
    )
    cells = content["ranges"]
    page.section("The map")
    page.figure(
        [heat_map(content, name) for name in FIGURES],
        f"Triangles of all ranges of chunks of {content['generator']}",
        "shared: left when the range is redrawn. carried: brought by the range alone. class lost: what the label loses "
        "when the range is redrawn. A row for the first chunk of a range, a column for its last; the diagonal holds "
        "single chunks. > marks a lower bound that is saturated: the information may be much higher. * marks another "
        "warning, which the table names.",
    )
    page.text(
        "1 nat is 1.44 bits. `shared` and `carried` are lower bounds by a critic, on pairs that it was not trained on. "
        "`shared` is low where the range matters, `carried` is high. The label is that of "
        f"{content['label']['kind']}, and has {content['label']['entropy_nats']:.2f} nats."
    )
    n_chunks = content["n_chunks"]
    if any(cell["chunks"] == f"0_{n}" for cell in cells for n in range(2, n_chunks)):
        page.section("From the first chunk and from the last").figure(
            _curves(content, "shared"),
            "What is left when the first chunks are redrawn, and when the last ones are",
            "The line of the first chunks falls early where the first chunks decide the image.",
        )
    page.section("What each range does").text(
        "The same images in every block. `redrawn` has only the range drawn anew, `all else` everything but the range."
    )
    shown = [Chunks.of(cell["chunks"]) for cell in cells]
    shown = [chunks for chunks in shown if len(chunks) < n_chunks]
    if len(shown) > MOST_ROWS:
        shown = [chunks for chunks in shown if len(chunks) == 1]
    images = _shown_images(generator, settings, shown)
    scale = max(1.0, 64 / generator.resolution)
    by_chunks = {cell["chunks"]: cell for cell in cells}
    for chunks in shown:
        cell = by_chunks[str(chunks)]
        said = ", ".join(
            f"{name.replace('_', ' ')} {_mark(cell[name])}{cell[name]['nats']:.2f}" for name in FIGURES if cell[name]
        )
        page.rows(
            {"image": images["anchor"], "redrawn": images[f"{chunks}"], "all else": images[f"all but {chunks}"]},
            f"images of {content['generator']}, chunks {chunks}",
            f"chunks {chunks}: {said} nats",
            scale=scale,
        )
    page.section("All numbers").table(to_table(content))
    network = ""
    if _has_network(content):
        numbers = [cell[name] for cell in cells for name in ("shared", "carried") if cell[name] is not None]
        n_network = sum(_critic_of(found) == "network" for found in numbers)
        network = (
            f"One network for all ranges started from these critics and was trained for "
            f"{content['critic']['n_steps']:,} steps on further images. It gave {n_network} of the {len(numbers)} "
            "numbers, those where it did better on pairs kept for that choice. "
        )
    page.section("How it was measured").text(
        f"{content['n_decoded_images']:,} images were decoded. For each range a critic in closed form (canonical "
        f"correlations of principal components) was made from {settings.n_train:,} groups of images. {network}"
        f"The bounds were taken on {settings.n_eval:,} other groups, so {math.log(settings.n_eval):.2f} nats are the "
        "most that they can show. Intervals are the jackknife's, one-sided for `shared` and `carried`."
    )
    return page.write(path)


def _curves(content: Mapping[str, Any], name: str) -> Any:
    from mi_ml_gen.report.figures import curves

    n_chunks = content["n_chunks"]
    by_chunks = {cell["chunks"]: cell[name] for cell in content["ranges"]}
    label = "nats left"
    lines: dict[str, list[dict[str, float]]] = {"first chunks redrawn": [], "last chunks redrawn": []}
    for n in range(1, n_chunks + 1):
        for line, key in zip(lines.values(), (f"0_{n}", f"{n_chunks - n}_{n_chunks}"), strict=True):
            if by_chunks.get(key) is not None:
                line.append({"n": n, label: by_chunks[key]["nats"]})
    return curves(lines, [label], x="n", x_label="chunks redrawn", span=1)


@torch.no_grad()
def _shown_images(generator: MultiLatentGenerator, settings: MapConfig, shown: Sequence[Chunks]) -> dict[str, Tensor]:
    """Images of the page: the anchors, and for each range the two mixtures."""
    shape = (settings.n_images, generator.noise_dim)
    a, b = (
        settings.distribution.sample(shape, runtime.stream(settings.seed, f"map: {name}", 0, 0, device_of(generator)))
        for name in ("page", "page, redrawn")
    )
    first, second = generator.latents(a), generator.moved_latents(a, b)
    images = {"anchor": decode_shown(generator, first).cpu()}
    for chunks in shown:
        at = torch.zeros(generator.layout.dim, dtype=torch.bool, device=first.device)
        at[generator.layout.slice(chunks)] = True
        images[f"{chunks}"] = decode_shown(generator, torch.where(at, second, first)).cpu()
        images[f"all but {chunks}"] = decode_shown(generator, torch.where(at, first, second)).cpu()
    return images


def save_redrawn(path: Path, generator: MultiLatentGenerator, settings: MapConfig, content: Mapping[str, Any]) -> Path:
    """Images, and below them the same with each chunk redrawn, a row for each chunk with what is left in nats."""
    left = {cell["chunks"]: cell["shared"] for cell in content["ranges"]}
    singles = [Chunks(i, i + 1) for i in range(generator.layout.n_chunks)]
    images = _shown_images(generator, settings, singles)
    rows = {"image": images["anchor"]}
    for chunks in singles:
        found = left[str(chunks)]
        rows[f"chunk {chunks.start}: {_mark(found)}{found['nats']:.2f} nats left"] = images[str(chunks)]
    return save_png(path, image_grid(torch.cat(list(rows.values())), n_rows=len(rows), row_labels=list(rows)))
