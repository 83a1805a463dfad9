"""The quality of any generator in the features of any network: a table, and its numbers as JSON."""

from __future__ import annotations

import json

from mi_ml_gen.core import config, files, runtime
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.data.source import held
from mi_ml_gen.encoders.features import load_features
from mi_ml_gen.experiments.quality_settings import QualityConfig
from mi_ml_gen.generators.quality import FeatureQuality, measure_in_features
from mi_ml_gen.generators.registry import load_generator


def measure_generator(settings: QualityConfig, progress: bool = True) -> FeatureQuality:
    """Measure the generator of the settings; writes table.md, .csv, .json and .tex and quality.json into the folder.

    Raises UsageError where generator, images or network are not there, and for too few images.
    """
    device = runtime.resolve_device(settings.device)
    network = load_features(settings.features, device)
    generator = load_generator(settings.generator, settings.g_path, device, settings.g_use)
    train, held_out = (
        held(load_source(settings.data_path, split, generator.resolution)) for split in ("train", "test")
    )
    found = measure_in_features(
        generator, network, train, held_out, settings.n_images, settings.seed, settings.distribution, progress
    )
    found.to_table().write(settings.folder, "table")
    content = {"settings": config.to_dict(settings), "generator": generator.name, **found.as_dict()}
    files.atomic_write(settings.folder / "quality.json", (json.dumps(content, indent=2) + "\n").encode())
    return found
