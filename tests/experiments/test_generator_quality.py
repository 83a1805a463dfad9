"""Quality in features, through the command; and labels of a map that features give."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from mi_ml_gen.data.loading import load_source
from mi_ml_gen.encoders.base import Architecture
from mi_ml_gen.encoders.loading import save_encoder
from mi_ml_gen.encoders.simclr import SimCLR
from mi_ml_gen.experiments.map_labels import cluster_label, feature_label, label_kind
from mi_ml_gen.experiments.settings import MapConfig
from mi_ml_gen.features.base import FeatureNetwork
from tests.scripts.test_scripts import call


class Identity(FeatureNetwork):
    """The first channel's pixels."""

    title, feature_dim = "pixels", 64

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0].flatten(1)

    @classmethod
    def load(cls, path: str | None = None) -> Identity:
        return cls()


def test_any_generator_in_the_features_of_an_encoder(monkeypatch, capsys, tmp_path):
    torch.manual_seed(0)
    save_encoder(tmp_path / "e.safetensors", SimCLR(Architecture(depth=18, width=1, small_images=True, dim=2)))
    argv = ["--generator", "tiny-bigbigan", "--data_path", "digits", "--device", "cpu", "--out", tmp_path / "out"]
    argv += ["--features", tmp_path / "e.safetensors", "--n_images", 40]
    code, out, err = call(monkeypatch, capsys, "measure_quality", *argv)
    assert code == 0 and "kernel (KID)" in out and "40 images on each side" in out, err
    assert "Fréchet, without its bias" in out  # 8 features
    found = json.loads((tmp_path / "out" / "quality.json").read_text())
    # Fashion is no digits: the distance is told from the floor, which may be 0.
    assert found["kernel"][1] > found["floor_kernel"][2] and found["floor_kernel"][1] < 0 < found["floor_kernel"][2]
    assert found["settings"]["n_images"] == 40 and (tmp_path / "out" / "table.md").exists()
    code, _, err = call(monkeypatch, capsys, "measure_quality", *argv, "--features", "imagenett")
    assert code == 2 and "imagenett: no such file" in err.splitlines()[-1], err


def test_labels_of_a_map_by_features():
    label = feature_label("digits", Identity(), 8, 0, torch.device("cpu"))
    test = load_source("digits", "test", 8)
    images = test.batch(torch.arange(200)).float() / 255
    assert (label(images) == test.labels[:200]).float().mean() > 0.85
    clusters = cluster_label(images, 10, 0, Identity())(images)
    pixels = cluster_label(images[:, :1], 10, 0)(images[:, :1])
    assert clusters.equal(pixels)  # of grey images both measure the same distances
    settings = MapConfig(generator="tiny-bigbigan", features="imagenet")
    assert label_kind(settings) == "k-means, 10, in features of imagenet"
    settings.label_data = "digits"
    assert label_kind(settings) == "classes of digits, by ridge regression on features of imagenet"
