"""Settings of the measurement of a generator's quality, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mi_ml_gen.core.config import option, redefined
from mi_ml_gen.core.registry import short_name
from mi_ml_gen.core.settings import InFolder, OnDevice, Seeded
from mi_ml_gen.data.known import check_data_path
from mi_ml_gen.features.registry import check_features
from mi_ml_gen.generators.known import check_generator_settings
from mi_ml_gen.generators.settings import AnchorNoise, FromGenerator


@dataclass
class QualityConfig(OnDevice, Seeded, InFolder, AnchorNoise, FromGenerator):
    """What `scripts/measure_quality.py` takes."""

    data_path: str = option("fashion-mnist", help="real images with a training and a test split to compare with")
    features: str = option(
        "imagenet",
        help="network in whose features distances are measured: imagenet, inception:FILE, or the file or run folder "
        "of an encoder or classifier",
    )
    n_images: int = option(5_000, at_least=20, help="images on each side, at most")
    save_folder: Path | None = redefined(
        InFolder, "save_folder", None, flag="out", help="folder of the results (default: quality/ and the generator)"
    )

    @property
    def folder(self) -> Path:
        return Path(self.save_folder) if self.save_folder is not None else Path("quality") / short_name(self.generator)

    def check(self) -> None:
        """Refuse by UsageError what is wrong and can be seen without torch."""
        check_generator_settings(self.generator, self.g_path, self.g_use)
        check_data_path("--data_path", self.data_path)
        check_features("--features", self.features)
        self.check_prior()
