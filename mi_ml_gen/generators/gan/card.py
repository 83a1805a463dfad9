"""The card of a trained generator: what it is, how it was made, how good it is. Markdown, beside its weights."""

from __future__ import annotations

from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.gan.quality import Quality


def generator_card(
    generator: MultiLatentGenerator,
    *,
    family: str,
    data: str,
    command: str,
    facts: dict[str, str],
    quality: Quality,
    classes: tuple[str, ...],
    picture: str,
) -> str:
    """Markdown text; `facts` are further rows of the first table (steps, seeds, time, machine ...)."""
    sizes = ", ".join(map(str, generator.layout.sizes))
    n_parameters = sum(parameter.numel() for parameter in generator.parameters())
    about = {
        "network": f"{family}, {n_parameters:,} parameters, {generator.resolution} px",
        "latents": f"{generator.layout.n_chunks} chunks ({sizes} numbers)",
        "data": data,
        "command": f"`{command}`",
        **facts,
    }
    q = quality
    measured = [
        ("Fréchet distance (lower is better)", q.frechet, q.floor_frechet, q.n),
        ("precision", q.precision, q.floor_precision, q.n_neighbours),
        ("recall", q.recall, q.floor_recall, q.n_neighbours),
        ("classifier's mean confidence", q.confidence, q.floor_confidence, q.n),
    ]
    lines = [
        f"# {generator.name}",
        "",
        f"![samples]({picture})",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {key} | {value} |" for key, value in about.items()),
        "",
        "## Quality",
        "",
        "In the 128 features of a small classifier trained on the same training images "
        f"({100 * q.classifier_accuracy:.1f}% accurate on the {q.n:,} held-out test images); noise is a standard "
        "normal truncated at 2. The floor is what as many real training images get against the held-out ones.",
        "",
        "| measure | generated | floor (real) | n |",
        "| --- | ---: | ---: | ---: |",
        *(f"| {name} | {value:.3f} | {floor:.3f} | {n:,} |" for name, value, floor, n in measured),
        "",
        "Share of each class among the generated images, as the classifier sees them (10% each in the data):",
        "",
        "| " + " | ".join(classes) + " |",
        "| " + " | ".join("---:" for _ in classes) + " |",
        "| " + " | ".join(f"{100 * share:.1f}%" for share in q.class_shares) + " |",
        "",
    ]
    return "\n".join(lines)
