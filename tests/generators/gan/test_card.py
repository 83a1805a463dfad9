"""The card of a trained generator: of grey and of coloured images, with labels and without."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mi_ml_gen.data.emoji import licences as emoji_licences
from mi_ml_gen.data.source import HeldImages
from mi_ml_gen.generators.gan import card
from mi_ml_gen.generators.gan.recipes import RECIPES
from mi_ml_gen.generators.gan.settings import GanConfig
from mi_ml_gen.generators.gan.training import train_generator


def images(n: int, n_channels: int, seed: int) -> HeldImages:
    """Two classes, told by the brightness of the last channel."""
    labels = torch.arange(n) % 2
    pixels = torch.randint(
        100, (n, n_channels, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    pixels[:, -1] += (150 * labels).byte()[:, None, None]
    return HeldImages("two", pixels, labels, ("dark", "bright"))


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(RECIPES["bigbigan"], "finish", lambda self, generator, seed, n_batches=1: None)
    monkeypatch.setattr(card, "LEAST_CLASSIFIER_IMAGES", 0)


def run(folder, train, **changes) -> tuple[GanConfig, object]:
    given = dict(dataset="emoji", augment=True) | changes
    settings = GanConfig(
        family="bigbigan", width=4, discriminator_width=4, batch_size=4, steps=1, device="cpu",
        save_folder=str(folder), **given,
    ).resolved()  # fmt: skip
    return settings, train_generator(settings, train.images, progress=False)


def test_a_card_of_coloured_images(tmp_path):
    train, held_out = images(64, 3, 0), images(32, 3, 1)
    settings, path = run(tmp_path, train)
    text = card.describe_run(path, settings, train, held_out)
    assert "# tiny-bigbigan-emoji" in text and "64 training images in colour, 32 px (emoji)" in text
    assert "Apache-2.0" in text and "CC-BY-4.0" in text and "MIT" in text
    assert emoji_licences("emoji:there:houses=google") == "Noto Emoji by Google (Apache-2.0)"
    assert "--dataset emoji" in text and "--augment" in text and "--augment True" not in text
    assert "| images | dark | bright |" in text and "| held-out | " in text
    assert {"card.md", "quality.json", "samples.png"} <= {file.name for file in path.iterdir()}


def test_a_card_of_grey_images_and_of_images_without_labels(tmp_path):
    train = images(64, 1, 0)
    settings, path = run(tmp_path, train, dataset="fashion-mnist", augment=False)
    text = card.describe_run(path, settings, train, images(32, 1, 1))
    assert (
        "Fashion-MNIST, 64 training images, grey, padded to 32 px" in text and "the data's licence is MIT too" in text
    )
    assert "--dataset" not in text and "--augment" not in text and "| precision | " in text
    bare = HeldImages("bare", train.images)
    text = card.describe_run(path, dataclasses.replace(settings, dataset="./mine"), bare, None)
    assert "Not measured." in text
    assert "./mine, 64 training images, 32 px" in text and "the data's licence is not known here" in text
