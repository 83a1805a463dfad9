"""Views as pictures: the reference's latents and bytes from its seeds, and streams of their own by default."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mi_ml_gen.core import config
from mi_ml_gen.experiments.generated_dataset import to_bytes
from mi_ml_gen.experiments.view_grids import ViewGenerationConfig, draw_variants, generate_views
from mi_ml_gen.generators.bigbigan import from_published
from mi_ml_gen.generators.registry import load_generator, load_latent_space
from mi_ml_gen.walkers.spec import walker_from
from tests.conftest import GOLDEN
from tests.scripts.test_scripts import call


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "pipeline_images.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def published(golden) -> ViewGenerationConfig:
    """The settings of the golden run."""
    about = next(case for case in json.loads(str(golden["meta_json"])) if case["key"] == "view_generation")
    names = ("Tz", "n_images", "batch_size", "augmentations", "starting_seed")
    return config.load(
        ViewGenerationConfig, None, {"generator": "bigbigan", "seeds": "published", **{n: about[n] for n in names}}
    )


def test_published_seeds_give_the_references_latents(golden, published) -> None:
    space = load_latent_space("bigbigan")
    found = [
        latents
        for batch in draw_variants(published, space, walker_from(published.Tz, space))
        for latents in batch.latents
    ]
    expected = golden["view_generation/latents"]  # anchors, positives 1, positives 2 of batch 0, then of batch 1
    assert len(found) == len(expected) == 6
    np.testing.assert_allclose(torch.stack(found).numpy(), expected, rtol=0, atol=1e-6)


def test_published_seeds_share_noise_and_ours_do_not(golden, published) -> None:
    """The reference's positives 1 of batch 0 move by the noise that the anchors of batch 1 are."""
    space = load_latent_space("bigbigan")

    def moved_by(seeds: str) -> torch.Tensor:
        settings = config.load(ViewGenerationConfig, None, {**config.to_dict(published), "seeds": seeds})
        first, second = (batch.latents for batch in draw_variants(settings, space, walker_from(published.Tz, space)))
        return (first[1] - first[0])[:, 20:] - second[0][:, 20:]

    assert moved_by("published").abs().max() < 1e-6
    assert moved_by("own").abs().max() > 1


def test_decoded_bytes_equal_the_references_files(golden, published, published_bigbigan) -> None:
    """One anchor and its positives through a generator of the published size; bytes within one."""
    generator = from_published(published_bigbigan("bigbigan_x1", str(golden["generator_prefix"]))).freeze()
    *_, last = draw_variants(published, generator, walker_from(published.Tz, generator))
    with torch.no_grad():
        decoded = generator.decode(torch.stack([latents[1] for latents in last.latents]))
    for i, image in enumerate(to_bytes(decoded, truncated=True).numpy()):
        expected = golden[f"view_generation/idx={last.first + 1}_var={i}.png"].astype(int)
        difference = np.abs(image[::8, ::8].astype(int) - expected)
        assert difference.max() <= 1 and difference.mean() < 0.02  # at a border between two levels only


def test_bytes_are_rounded_or_rounded_down() -> None:
    image = torch.tensor([0.0, 0.999, 1.0, 0.5]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert to_bytes(image)[0, :, :, 0].flatten().tolist() == [0, 255, 255, 128]
    assert to_bytes(image, truncated=True)[0, :, :, 0].flatten().tolist() == [0, 254, 255, 127]


# --- the script ---------------------------------------------------------------------------------------------

REFERENCE_FORM = """
generator: "tiny-bigbigan" # as the reference's files are written
anchor_params:
  - 0.
  - 1.
  - 2.
Tz:
  "0_1":
    - 0.
    - 0.6
    - 2.
  "2_4":
    - 0
    - 1
    - 2.
n_images: 3
batch_size: 2  # divisible by n_images
augmentations: 2
starting_seed: 42
"""


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_script(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "c.yaml").write_text(REFERENCE_FORM)
    argv = ("--configuration", tmp_path / "c.yaml", "--device", "cpu", "--save_folder")
    code, out, _ = call(monkeypatch, capsys, "view_generation", *argv, tmp_path / "a")
    assert code == 0 and "wrote 9 images to" in out and "3 anchors and their positives" in out
    written = files(tmp_path / "a")
    assert set(written) == {"grid.png", *(f"idx={i}_var={v}.png" for i in range(3) for v in range(3))}
    with Image.open(tmp_path / "a" / "grid.png") as grid, Image.open(tmp_path / "a" / "idx=2_var=1.png") as image:
        assert image.size == (32, 32)
        pixels = np.asarray(grid)
        left, top = grid.size[0] - (3 * 34 - 2), grid.size[1] - (3 * 34 - 2)
        assert (pixels[:top, left:] < 100).any() and (pixels[top:, :left] < 100).any()  # names of columns and rows
        assert np.array_equal(pixels[top + 68 :, left + 34 : left + 66], np.asarray(image))
    assert len(set(written.values())) == 10  # all different

    call(monkeypatch, capsys, "view_generation", *argv, tmp_path / "b")
    assert files(tmp_path / "b") == written
    call(monkeypatch, capsys, "view_generation", *argv, tmp_path / "c", "--seeds", "published")
    assert not set(files(tmp_path / "c").values()) & set(written.values())
    call(monkeypatch, capsys, "view_generation", *argv, tmp_path / "d", "--starting_seed", 43, "--n_images", 1)
    assert len(files(tmp_path / "d")) == 4


def test_latents_of_the_script_are_those_of_its_settings(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(REFERENCE_FORM)
    settings = config.load(ViewGenerationConfig, tmp_path / "c.yaml")
    paths = generate_views(settings, tmp_path / "out")
    generator = load_generator("tiny-bigbigan")
    first, second = draw_variants(settings, generator, walker_from(settings.Tz, generator))
    assert [batch.first for batch in (first, second)] == [0, 2] and len(second.latents[0]) == 1
    moved = first.latents[1] - first.latents[0]
    assert (moved[:, 20:40] == 0).all() and (moved[:, :20] != 0).all() and (moved[:, 40:] != 0).all()
    expected = to_bytes(generator.decode(second.latents[2]))[0].numpy()
    with Image.open(next(path for path in paths if path.name == "idx=2_var=2.png")) as image:
        assert np.abs(np.asarray(image).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({'"0_1"': '"0_9"'}, "0_9"),
        ({"generator: ": "generater: "}, "nearest known key: generator"),
        ({"n_images: 3": "n_images: 0"}, "n_images: 0"),
        ({'"tiny-bigbigan"': "stylegan"}, "weights are not bundled"),
        ({"- 0.6\n": "- wide\n"}, "must be a walker's path"),
        ({'"2_4"': '"0_2"'}, "overlaps"),
    ],
)
def test_wrong_configurations(tmp_path: Path, monkeypatch, capsys, change, complaint) -> None:
    text = REFERENCE_FORM
    for old, new in change.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "c.yaml").write_text(text)
    argv = ("--configuration", tmp_path / "c.yaml", "--save_folder", tmp_path / "out")
    code, _, err = call(monkeypatch, capsys, "view_generation", *argv)
    assert code == 2 and complaint in err and not (tmp_path / "out").exists(), err


@pytest.mark.parametrize(("name", "generator"), [("bigbigan", "bigbigan"), ("stylegan", "stylegan2")])
def test_the_papers_configurations_are_bundled(name: str, generator: str) -> None:
    settings = config.load(ViewGenerationConfig, f"view_generation/{name}")
    assert (settings.generator, settings.n_images, settings.augmentations, settings.starting_seed) == (
        generator, 4, 3, 42,
    )  # fmt: skip
    if generator == "bigbigan":
        space = load_latent_space("bigbigan")
        assert [str(chunks) for chunks in walker_from(settings.Tz, space).chunks] == ["1_6"]
    else:
        assert list(settings.Tz) == ["0_4", "4_8", "8_12", "12_16"] and settings.anchor_params == (0.0, 1.0, 0.9)
