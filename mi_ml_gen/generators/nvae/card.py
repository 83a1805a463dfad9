"""The card of a trained NVAE: what it is, how it was made, how well it describes images. Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mi_ml_gen.generators.nvae.evaluation import NVAEQuality
from mi_ml_gen.generators.nvae.generator import NVAE


def nvae_card(
    generator: NVAE,
    quality: NVAEQuality,
    facts: Mapping[str, str],
    data: str,
    temperatures: Sequence[float] = (1.0,),
    samples: Mapping[str, Any] | None = None,
) -> str:
    """Markdown text.

    facts: rows of the first table (data, command, steps, time ...). data: what the numbers were measured on.
    temperatures: of the samples in the picture, from above. samples: `gan.quality.Quality` as a dict, where it was
    measured.
    """
    sizes = ", ".join(map(str, generator.layout.sizes))
    n_parameters = sum(parameter.numel() for parameter in generator.parameters())
    about = {
        "network": f"nvae, {n_parameters:,} parameters, {generator.resolution} px",
        "latents": f"{generator.layout.n_chunks} chunks, one for each group ({sizes} numbers)",
        **facts,
    }
    q = quality
    measured = {
        f"bits per dimension, {q.n_samples} importance samples": (q.bits_per_dimension, q.bits_per_dimension_error),
        "bits per dimension, ELBO": (q.bits_per_dimension_elbo, None),
        "L2 reconstruction error": (q.l2, q.l2_error),
    }
    lines = [f"# {generator.name}", "", f"![samples and reconstructions]({generator.name}.png)", ""]
    rows_shown = " and ".join(f"temperature {temperature:g}" for temperature in temperatures)
    lines += [
        f"From above: samples at {rows_shown}, from the same noise, not chosen; then {data}, each row above its "
        "reconstruction. Images are means of the output distribution.",
        "",
    ]
    lines += _table(("", ""), about.items())
    lines += [f"Measured on {data}, {q.n_images:,} images. An error is the standard error over these images.", ""]
    rows = [
        (name, f"{value:.5f}", "" if error is None else f"{error:.5f}") for name, (value, error) in measured.items()
    ]
    lines += _table(("measure (lower is better)", "value", "error"), rows)
    lines += ["How much each group tells about an image, as its KL divergence:", ""]
    of_groups = zip(generator.settings.groups, generator.settings.latent_shapes, q.kl_nats, q.kl_errors, strict=True)
    kls = [
        (str(i), str(group), " x ".join(map(str, shape)), f"{kl:.2f}", f"{error:.2f}")
        for i, (group, shape, kl, error) in enumerate(of_groups)
    ]
    lines += _table(("chunk", "group", "channels x height x width", "KL (nats)", "error"), kls)
    if samples is not None:
        lines += [
            f"Samples at temperature {generator.temperature:g}, in the features of a small classifier trained on the "
            f"same training images ({100 * samples['classifier_accuracy']:.1f}% accurate on test images). "
            "The noise is a standard normal truncated at 2. The floor is what as many real training images get.",
            "",
        ]
        names = {"frechet": "Fréchet distance (lower is better)", "precision": "precision", "recall": "recall"}
        rows = [(text, f"{samples[key]:.3f}", f"{samples[f'floor_{key}']:.3f}") for key, text in names.items()]
        lines += _table(("measure", "samples", "floor (real)"), rows)
    return "\n".join(lines)


def _table(head: tuple[str, ...], rows: Any) -> list[str]:
    """The lines of a Markdown table, and an empty one."""
    lines = [" | ".join(map(str, row)) for row in (head, ["---"] * len(head), *rows)]
    return [*(f"| {line} |" for line in lines), ""]
