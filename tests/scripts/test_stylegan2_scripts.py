"""The scripts on StyleGAN2, from a published pickle: W+ in groups of layers, both layouts of walkers, its use."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.latents import Chunks, TruncatedNormal
from mi_ml_gen.report.images import image_grid
from mi_ml_gen.walkers import pictures
from mi_ml_gen.walkers.base import Walker
from mi_ml_gen.walkers.files import save_walker
from mi_ml_gen.walkers.learned import NonlinearWalker
from mi_ml_gen.walkers.spec import load_walker
from tests.conftest import GOLDEN
from tests.scripts.test_scripts import assert_refused, call
from tests.stylegan2_files import named

PICKLE = GOLDEN / "fixtures" / "stylegan2_tiny_torch.pkl"
STYLEGAN2 = ["--generator", "stylegan2", "--g_path", PICKLE]
TRAINING = ["num_samples=16", "save_freq=16", "batch_size=8", "critic_width=4"]


def brute_force_delta(walker: Walker, psi: float, n: int = 4000) -> float:
    """Mean length of positive minus anchor over all of W+."""
    generator = load_generator("stylegan2", PICKLE, use={"psi": psi})
    z = TruncatedNormal().sample((n, generator.noise_dim), torch.Generator().manual_seed(5))
    with torch.no_grad():
        pair = walker(generator, z)
    return (pair.positive - pair.anchor).norm(dim=1).mean().item()


def test_table_1_in_groups_of_layers_and_pictures_of_a_run(monkeypatch, capsys, tmp_path):
    base = tmp_path / "t1"
    use = ["--g_use", "psi=0.7", "size=16"]
    code, out, err = call(
        monkeypatch, capsys, "monte_carlo_simulation", *STYLEGAN2, *use, "--walkers_base_path", base, "--all-chunks",
        "--groups", 4, "--train", *TRAINING, "lr_walk=1e-2", "--n_samples", 4000, "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    assert sorted(path.name for path in base.iterdir() if path.is_dir()) == ["group_0", "group_1"]
    for i, chunks in enumerate(("0_4", "4_8")):
        walker = load_walker(base / f"group_{i}" / "walker.safetensors")
        assert walker.chunks == (Chunks.parse(chunks, 8),) and walker.width == 64
        line = next(line for line in out.splitlines() if line.startswith(chunks))
        assert float(line.split()[1]) == pytest.approx(brute_force_delta(walker, 0.7), rel=0.05)
        assert float(line.split()[1]) < 0.9 * brute_force_delta(walker, 1.0)

    code, out, err = call(monkeypatch, capsys, "visualize_walker", "--run", base / "group_1", "--n_images", 3)
    assert code == 0, err
    with Image.open(base / "group_1" / "images" / "strength.png") as shown:
        at_least_24_px = 2 * 16  # the size that the run was trained at, enlarged for the labels
        assert shown.height == 5 * at_least_24_px + 4 * 2 and shown.width > 3 * at_least_24_px + 2 * 2
    argv = ["--run", base / "group_1", "--n_images", 3, "--g_use", "size=8", "--out", tmp_path / "small"]
    code, out, err = call(monkeypatch, capsys, "visualize_walker", *argv)
    assert code == 0, err
    with Image.open(tmp_path / "small" / "strength.png") as shown:
        at_least_24_px = 3 * 8
        assert shown.height == 5 * at_least_24_px + 4 * 2 and shown.width > 3 * at_least_24_px + 2 * 2


def test_table_1_of_published_walkers(monkeypatch, capsys, tmp_path):
    """group_0 and group_2 as the authors' folders have them: no walker for some layers, numbers left out."""
    walkers = {}
    for i, (start, stop) in ((0, (0, 2)), (2, (4, 8))):
        walkers[f"{start}_{stop}"] = walker = NonlinearWalker(Chunks(start, stop), 64)
        for parameter in walker.parameters():
            nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(i))
        (tmp_path / f"group_{i}").mkdir()
        published = type("NonlinearWalker", (nn.Module,), {})
        with named(published, "src.noise_maker.walkers", "NonlinearWalker"):
            module = published()
            module.walker, module.start, module.stop = walker.walker, start, stop
            torch.save({"nn_walker": module}, tmp_path / f"group_{i}" / "w_COPGen_2048.pth")
    argv = [*STYLEGAN2, "--walkers_base_path", tmp_path, "--walkers_iter", 2048, 2048, "--device", "cpu"]
    code, out, err = call(monkeypatch, capsys, "monte_carlo_simulation", *argv, "--n_samples", 4000)
    assert code == 0, err
    for chunks, walker in walkers.items():
        line = next(line for line in out.splitlines() if line.startswith(chunks))
        assert float(line.split()[1]) == pytest.approx(brute_force_delta(walker, 1.0), rel=0.05)


def test_pictures_of_a_generator(monkeypatch, capsys, tmp_path):
    argv = [*STYLEGAN2, "--groups", 2, "--n_images", 3, "--device", "cpu", "--out", tmp_path]
    code, _, err = call(monkeypatch, capsys, "visualize_generator", *argv)
    assert code == 0, err
    with Image.open(tmp_path / "samples.png") as samples, Image.open(tmp_path / "swaps.png") as swaps:
        assert samples.size == (3 * 32 + 2 * 2, 3 * 32 + 2 * 2)
        assert swaps.height == 6 * 32 + 5 * 2 and swaps.width > 3 * 32 + 2 * 2  # labels to the left
    refused = [*STYLEGAN2, "--groups", 3, "--out", tmp_path / "none"]
    says = "--groups 3: must divide the 8 chunks of stylegan2"
    assert_refused(monkeypatch, capsys, "visualize_generator", refused, 2, says)
    assert not (tmp_path / "none").exists()


def test_swaps_take_a_group_at_a_time_from_the_donors():
    """Rows of the picture: anchors, anchors with each group of the donors' W+, donors."""
    generator = load_generator("stylegan2", PICKLE)
    z, donors = torch.randn(2, 3, generator.noise_dim, generator=torch.Generator().manual_seed(0))
    shown = pictures.swaps(generator, z, donors, generator.groups(4))
    anchor, donor = (generator.latents(noise).unflatten(1, (8, 64)) for noise in (z, donors))
    rows = [anchor, torch.cat([donor[:, :4], anchor[:, 4:]], 1), torch.cat([anchor[:, :4], donor[:, 4:]], 1), donor]
    expected = image_grid(torch.cat([generator.decode(row.flatten(1)) for row in rows]).detach(), n_columns=3)
    assert len(shown) == len(expected) and np.array_equal(shown[:, -expected.shape[1] :], expected)  # beside labels


def test_pictures_of_a_yaml_of_groups(monkeypatch, capsys, tmp_path):
    generator = load_generator("stylegan2", PICKLE)
    save_walker(tmp_path / "coarse", NonlinearWalker.on(generator, generator.chunks("0_2")))
    (tmp_path / "groups.yaml").write_text("0_2: coarse.safetensors\n2_4: null\n4_8: [0, 1, 2]\n")
    argv = [*STYLEGAN2, "--walker", tmp_path / "groups.yaml", "--n_images", 2, "--device", "cpu"]
    code, _, err = call(monkeypatch, capsys, "visualize_walker", *argv)
    assert code == 0, err
    with Image.open(tmp_path / "strength.png") as shown:
        assert shown.height == 5 * 32 + 4 * 2 and shown.width > 2 * 32 + 2  # labels to the left


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--all-chunks", "--groups", 3], "--groups 3: must divide the 8 chunks of stylegan2"),
        (["--all-chunks", "--groups", 16], "--groups 16: must divide the 8 chunks of stylegan2"),
        (["--g_use", "pis=0.5"], "unknown key pis in --g_use of stylegan2; nearest known key: psi"),
        (["--g_use", "crop=384"], "crop 384: must be at most 32, the side of the image"),
        (["--g_use", "psi"], "override 'psi': must have the form key=value"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_settings_that_do_not_fit_the_network(monkeypatch, capsys, tmp_path, flags, says):
    (tmp_path / "t1").mkdir()
    argv = [*STYLEGAN2, "--walkers_base_path", tmp_path / "t1", "--device", "cpu", *flags]
    assert_refused(monkeypatch, capsys, "monte_carlo_simulation", argv, 2, says)
    assert not list((tmp_path / "t1").iterdir())
