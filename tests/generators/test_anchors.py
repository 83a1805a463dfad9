"""Anchors that are real images: drawn, recorded in runs, used by what reads runs, refused where nothing can encode."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import yaml

from mi_ml_gen.core import config, runs
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.data.loading import load_source
from mi_ml_gen.delta import DeltaEstimate, estimate_delta, independent_delta
from mi_ml_gen.encoders.settings import EncoderConfig
from mi_ml_gen.experiments.generated_dataset import export_images
from mi_ml_gen.experiments.settings import (
    ExportConfig,
    GeneratorPicturesConfig,
    Table1Config,
    ViewGenerationConfig,
    WalkerPicturesConfig,
)
from mi_ml_gen.experiments.view_grids import draw_variants
from mi_ml_gen.generators import anchors
from mi_ml_gen.generators.anchors import EncodedImages, anchor_distribution, encoded_images
from mi_ml_gen.generators.checking import check_generator
from mi_ml_gen.generators.nvae.generator import NVAE
from mi_ml_gen.generators.nvae.settings import NVAEConfig
from mi_ml_gen.generators.registry import save_generator
from mi_ml_gen.latents import Chunks, TruncatedNormal
from mi_ml_gen.navigator.records import Flags, RunRecord, circumstances
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.navigator.training import train_navigator
from mi_ml_gen.views.sampler import GeneratedImages, ViewSampler
from mi_ml_gen.walkers.base import IdentityWalker
from mi_ml_gen.walkers.noise import RandomWalker
from mi_ml_gen.walkers.origins import differences
from mi_ml_gen.walkers.spec import load_walker
from tests.conftest import make_small_generator

CONFIG = NVAEConfig(
    (1, 8, 8), num_scales=2, num_groups_per_scale=1, num_cells_per_group=1, num_latent_per_group=2,
    initial_channels=4, num_pre_post_process_cells=1, num_logistic_mixtures=2,
)  # fmt: skip
CPU = torch.device("cpu")
REAL = {"anchors": "real", "anchors_data": "digits"}
SETTINGS = NavigatorConfig(
    generator="nvae", chunks="0_1", num_samples=32, save_freq=16, batch_size=8, critic_width=4, device="cpu", **REAL
)


def small() -> NVAE:
    torch.manual_seed(0)
    return NVAE(CONFIG, "small").freeze()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("nvae") / "g.safetensors"
    save_generator(path, small(), "nvae")
    return path


@pytest.fixture(scope="module")
def run(weights, tmp_path_factory):
    """A walker on real anchors, in the only subfolder of a folder."""
    folder = tmp_path_factory.mktemp("runs")
    train_navigator(dataclasses.replace(SETTINGS, g_path=str(weights)), None, folder / "chunk0", progress=False)
    return folder / "chunk0"


def has_row(table: torch.Tensor, row: torch.Tensor) -> bool:
    return bool((table - row).abs().amax(1).min() < 1e-5)


def test_draws_are_rows_of_encoded_images():
    generator = small()
    found = encoded_images(generator, "digits")
    images = load_source("digits", "train", 8).images.expand(-1, 3, -1, -1).float() / 255
    assert found.n_distinct == len(images) and found.noise.shape[1] == generator.noise_dim
    assert has_row(generator.encode(images[:50]), found.noise[3])
    z = found.sample((40, generator.noise_dim), torch.Generator().manual_seed(1))
    assert torch.equal(z, found.sample((40, generator.noise_dim), torch.Generator().manual_seed(1)))
    assert not torch.equal(z, found.sample((40, generator.noise_dim), torch.Generator().manual_seed(2)))
    assert len(z.unique(dim=0)) == len(found.noise[:40].unique(dim=0)) == 40
    assert all(has_row(found.noise, row) for row in z[:5])
    assert encoded_images(generator, "digits") is found
    assert encoded_images(generator.use({"temperature": 0.5}), "digits") is not found
    with pytest.raises(UsageError, match="noise of length 3: the encoded images have"):
        found.sample((2, 3))


def test_more_draws_than_images_repeat_images():
    table = EncodedImages(torch.arange(6.0).view(3, 2), "three")
    z = table.sample((100, 2), torch.Generator().manual_seed(0))
    assert len(z.unique(dim=0)) == 3


def test_of_a_large_set_a_fixed_choice_is_encoded(monkeypatch):
    monkeypatch.setattr(anchors, "MAX_IMAGES", 20)
    assert len(encoded_images(small(), "digits").noise) == 20
    assert torch.equal(encoded_images(small(), "digits").noise, encoded_images(small(), "digits").noise)
    monkeypatch.setattr(anchors, "MAX_VALUES", 5 * small().noise_dim)
    assert len(encoded_images(small(), "digits").noise) == 5


def test_the_error_of_delta_counts_the_images():
    """With a walker that moves each image by its own length, means over other sets of images scatter this much."""
    assert DeltaEstimate(1.0, 2.0, 100).standard_error == pytest.approx(0.2)
    assert DeltaEstimate(1.0, 2.0, 100, 400).standard_error == pytest.approx(2.0 * math.sqrt(1 / 100 + 1 / 400))
    generator = small()
    noise = encoded_images(generator, "digits")
    apart = independent_delta(generator, "0_1", 500, noise)
    assert apart.n_anchors == noise.n_distinct and apart.standard_error > apart.std / math.sqrt(500)
    at = generator.layout.slice(Chunks(0, 1))
    exact = torch.pdist(noise.noise[:, at]).mean().item() * (1 - 1 / len(noise.noise))
    assert apart.mean == pytest.approx(exact, abs=5 * apart.standard_error)
    assert estimate_delta(generator, IdentityWalker(), 10, noise).mean == 0


def test_a_generator_that_cannot_encode_is_refused(tmp_path):
    settings = dataclasses.replace(SETTINGS, generator="small")
    with pytest.raises(UsageError, match="^--anchors real: small cannot encode images; use --anchors prior$"):
        train_navigator(settings, make_small_generator(), tmp_path / "run", progress=False)
    assert not any(tmp_path.iterdir())


def test_wrong_encodings_are_refused():
    class Wrong(NVAE):
        def encode(self, images):
            return super().encode(images)[:, 1:]

    generator = Wrong(CONFIG, "wrong").freeze()
    with pytest.raises(UsageError, match="wrong encodes .* it must give finite numbers"):
        encoded_images(generator, "digits")
    with pytest.raises(UsageError, match="encode gives shape"):
        check_generator(generator)


def test_runs_record_their_anchors(run, caplog):
    assert runs.read_config(run).items() >= REAL.items()
    record = RunRecord.read(run)
    assert record.anchors_data == "digits"
    found = circumstances([record], Flags(), CPU)
    assert isinstance(found.noise, EncodedImages) and found.noise.data == "digits" and not found.notes
    other = circumstances([record], Flags(anchors="prior"), CPU)
    assert other.noise == TruncatedNormal()
    assert other.notes == ["anchors of the prior where the runs had anchors of digits"]
    with pytest.raises(UsageError, match="--mean 0.5: has no effect on anchors that are real images"):
        circumstances([record], Flags(mean=0.5), CPU)
    walker = load_walker(run / "walker.safetensors")
    assert walker.about.items() >= REAL.items() and "mean" not in walker.about
    generator = found.generator
    assert differences(walker.about, generator, found.noise) == []
    assert differences(walker.about, generator, TruncatedNormal()) == [
        "anchors of the prior where the walker had anchors of digits"
    ]
    assert differences(TruncatedNormal().record(), generator, found.noise) == [
        "anchors of digits where the walker had anchors of the prior"
    ]


def test_runs_that_disagree_are_refused(run, tmp_path):
    prior = tmp_path / "prior"
    prior.mkdir()
    settings = {key: value for key, value in runs.read_config(run).items() if key not in REAL}
    (prior / "config.yaml").write_text(yaml.safe_dump(settings))
    records = [RunRecord.read(run), RunRecord.read(prior)]
    assert records[1].anchors_data is None  # as every run before there was a choice
    with pytest.raises(UsageError, match="was made with anchors_data digits"):
        circumstances(records, Flags(), CPU)
    assert circumstances(records, Flags(anchors="prior"), CPU).noise == TruncatedNormal()
    with pytest.raises(UsageError, match="--anchors real: name the images"):
        circumstances(records[1:], Flags(anchors="real"), CPU)


def test_table_1_is_measured_on_the_anchors_of_its_runs(run, weights, tmp_path, capsys):
    from scripts.monte_carlo_simulation import main

    main(["--walkers_base_path", str(run.parent), "--n_samples", "64", "--device", "cpu", "--out", str(tmp_path)])
    walker, noise = load_walker(run / "walker.safetensors"), encoded_images(small(), "digits")
    expected = estimate_delta(small(), walker, 64, noise, 0)
    assert f"{expected.mean:.3f}" in capsys.readouterr().out
    others = ["--walkers_base_path", str(tmp_path / "new"), "--generator", "nvae", "--g_path", str(weights)]
    training = ["--all_chunks", "--train", "num_samples=16", "save_freq=16", "batch_size=8", "critic_width=4"]
    real = ["--anchors", "real", "--anchors_data", "digits", "--n_samples", "16", "--device", "cpu"]
    main([*others, *training, *real])
    assert RunRecord.read(tmp_path / "new" / "chunk1").anchors_data == "digits"


def test_a_run_on_the_prior_says_nothing_of_anchors():
    """So that the folders of older versions, which had no such setting, go on."""
    prior = dataclasses.replace(SETTINGS, anchors="prior", anchors_data=None)
    assert not {"anchors", "anchors_data"} & set(config.to_dict(prior))
    assert config.to_dict(SETTINGS).items() >= REAL.items()


def test_views_data_sets_and_grids_have_real_anchors(tmp_path, weights):
    generator = small()
    noise = anchor_distribution(SETTINGS, generator)
    pair = ViewSampler(GeneratedImages(generator, RandomWalker("0_1", 0.5), noise), "none", 3).images(0)
    images = generator.decode(generator.latents(noise.noise))
    assert all(has_row(images.flatten(1), image.flatten()) for image in pair.anchor)
    settings = ViewGenerationConfig(generator="nvae", g_path=str(weights), Tz="0_1=0.5", n_images=2, **REAL)
    (first, *_) = draw_variants(settings, generator, RandomWalker("0_1", 0.5))
    assert has_row(noise.noise, first.latents[0][0])
    export = ExportConfig(
        generator="nvae", g_path=str(weights), n_images=2, save_folder=tmp_path / "set", n_workers=1, **REAL
    )
    assert export_images(export).n_images == 2
    about = yaml.safe_load(next((tmp_path / "set").rglob("config.yaml")).read_text())
    assert about.items() >= REAL.items()


NAVIGATOR = (NavigatorConfig, {"generator": "tiny-nvae", "chunks": "0_1"})


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (*NAVIGATOR, "--anchors real: name the images by --anchors_data"),
        (NAVIGATOR[0], NAVIGATOR[1] | {"anchors_data": "digitz"}, "--anchors_data digitz: no such file"),
        (NAVIGATOR[0], NAVIGATOR[1] | REAL | {"std": 0.5}, "--std 0.5: has no effect with --anchors real"),
        (NAVIGATOR[0], NAVIGATOR[1] | REAL | {"anchors": "prior"}, "--anchors_data digits: has no effect without"),
        (EncoderConfig, {"encoder": "simclr", "data_path": "digits"}, "--anchors real: the anchors are those of a gen"),
        (GeneratorPicturesConfig, {"generator": "tiny-nvae"}, "name the images"),
        (Table1Config, {"walkers_base_path": ".", "anchors_data": "digitz"}, "no such file"),
        (WalkerPicturesConfig, {"run": ".", "anchors_data": "digitz"}, "no such file"),
        (
            ExportConfig,
            {"generator": "tiny-nvae", "n_images": 1, "save_folder": "x", "published_seeds": True} | REAL,
            "leave out --published_seeds",
        ),
        (ViewGenerationConfig, {"generator": "tiny-nvae", "Tz": "none", "seeds": "published"} | REAL, "--seeds publ"),
        (ViewGenerationConfig, {"generator": "tiny-nvae", "Tz": "none", "anchor_params": "0 1 1"} | REAL, "anchor_par"),
    ],
)
def test_flags_that_make_no_sense_are_refused(kind, given, message):
    with pytest.raises(UsageError, match=message):
        config.load(kind, None, {"anchors": "real"} | given).check()
