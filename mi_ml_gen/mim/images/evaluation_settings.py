"""Settings of the evaluation of image models, without torch."""

from __future__ import annotations

from dataclasses import dataclass

from mi_ml_gen.core.config import option, redefined
from mi_ml_gen.core.settings import OnDevice, Seeded


@dataclass
class ImageEvaluationConfig(OnDevice, Seeded):
    """What `scripts/eval_mim_image.py` takes."""

    S: int = option(5000, at_least=2, help="importance samples for each image")
    n_likelihood: int | None = option(None, at_least=2, help="test images whose likelihood is estimated (default: all)")
    n_embedded: int | None = option(
        None, at_least=50, help="training and test images whose embeddings are measured (default: all)"
    )
    seed: int = redefined(Seeded, "seed", 0, help="random seed for draws of latents and images")
    data_path: str | None = option(None, help="folder with the files of the data set (default: the run's own)")
    as_published: bool = option(
        False,
        help="also report what the published code reported: readouts of embeddings that are drawn, and KSG with the "
        "largest distance of any pixel, which says nothing about binary images",
    )
    again: bool = option(False, help="measure again what is measured already")


__all__ = ["ImageEvaluationConfig"]
