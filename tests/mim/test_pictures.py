"""Pictures: what is in a frame, that frames fit each other, and the files of an animation."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mi_ml_gen.core.errors import EnvironmentFault, UsageError
from mi_ml_gen.mim import datasets, pictures
from mi_ml_gen.mim.datasets import Items
from mi_ml_gen.mim.model import MIM
from mi_ml_gen.report.tables import Estimate

RED = np.array([0xC8, 0x20, 0x1E])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def redness(frame: np.ndarray) -> int:
    return int((np.abs(frame.astype(int) - RED).max(-1) < 20).sum())


def test_a_frame_shows_reconstructions_above_and_latents_below():
    data, model = datasets.load("toyMIM"), MIM(2, mid_dim=8, rng=seeded())
    frame = pictures.progress_frame(model, data, seeded(), "epoch 1")
    height, width, channels = frame.shape
    assert (channels, frame.dtype) == (3, np.uint8) and height == 2 * width
    upper, lower = frame[: height // 2], frame[height // 2 :]
    assert redness(upper) > 50 > 5 * redness(lower)
    same = pictures.progress_frame(model, data, seeded(), "epoch 1")
    assert np.array_equal(frame, same)
    with torch.no_grad():
        model.p_x_given_z.linear.bias += 0.3
    moved = pictures.progress_frame(model, data, seeded(), "epoch 1")
    assert not np.array_equal(upper, moved[: height // 2])
    border = 20  # pixels, where the panels' own edges lie
    assert np.array_equal(lower[border:], moved[height // 2 + border :])  # the encoder is as it was
    assert len(np.unique(lower.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize(("name", "z_dim"), [("toy4_1", 1), ("toy4", 1), ("toy2_5", 7), ("Toy4", 2)])
def test_any_dimensions_can_be_shown(name, z_dim):
    data = datasets.load(name)
    frame = pictures.progress_frame(MIM(data.x_dim, z_dim, mid_dim=4), data, seeded(), n_shown=20, width_px=120)
    assert frame.shape[2] == 3


def test_images_are_shown_as_themselves():
    class Binary(datasets.ToyDataset):
        binary = True

    data = Binary("toy1", datasets.toy.mixture("1"), False, False)
    data.test = Items(torch.rand(12, 784), None, torch.zeros(12).long())
    frame = pictures.progress_frame(MIM(784, mid_dim=4, binary=True), data, seeded())
    assert frame.ndim == 3 and frame.shape[1] == 8 * 28 + 7 * 2


def frames(n: int) -> list[np.ndarray]:
    made = [np.full((41, 31, 3), 255, np.uint8) for _ in range(n)]
    for i, frame in enumerate(made):
        frame[5 * i : 5 * i + 5] = (200, 40, 0)
    return made


def test_an_animation_holds_all_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures.shutil, "which", lambda name: None)
    written = pictures.animate(tmp_path / "a", frames(5), frame_s=0.2, hold_s=3)
    assert written == [tmp_path / "a.gif"]
    with Image.open(written[0]) as movie:
        assert movie.n_frames == 5 and movie.info["loop"] == 0
        for i, frame in enumerate(frames(5)):
            movie.seek(i)
            assert movie.info["duration"] == (3000 if i == 4 else 200)
            shown = np.asarray(movie.convert("RGB")).astype(int)
            assert np.abs(shown - frame).max() < 12


def fake_ffmpeg(folder: Path, text: str) -> None:
    folder.mkdir()
    program = folder / "ffmpeg"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_mp4_where_ffmpeg_is(tmp_path, monkeypatch):
    """A stand-in keeps what it is given: sizes are even, the last frame is held."""
    fake_ffmpeg(tmp_path / "bin", 'for last; do :; done; echo "$@" > "$last"; cat >> "$last"')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    written = pictures.animate(tmp_path / "a", frames(3), frame_s=0.5, hold_s=2)
    assert written[1] == tmp_path / "a.mp4"
    command, _, raw = written[1].read_bytes().partition(b"\n")
    assert b"-s 30x40" in command and b"-r 2 " in command
    assert len(raw) == (3 + 3) * 40 * 30 * 3
    assert raw[: 30 * 3] == frames(3)[0][0, :30].tobytes()


def test_a_failing_ffmpeg_is_named(tmp_path, monkeypatch):
    fake_ffmpeg(tmp_path / "bin", "cat > /dev/null; echo no such codec >&2; exit 3")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    with pytest.raises(EnvironmentFault, match="no such codec"):
        pictures.animate(tmp_path / "a", frames(2))
    assert not list(tmp_path.glob("*.mp4"))


def test_what_cannot_be_animated(tmp_path):
    with pytest.raises(UsageError, match="at least one frame"):
        pictures.animate(tmp_path / "a", [])
    with pytest.raises(UsageError, match="one size"):
        pictures.animate(tmp_path / "a", [frames(1)[0], np.zeros((9, 9, 3), np.uint8)])
    assert not list(tmp_path.iterdir())


def test_bands():
    series = {
        name: {value: {"MI": Estimate(value / 10 + shift, 0.2)} for value in (5, 20, 50)}
        for name, shift in (("MIM", 1), ("VAE", 0))
    }
    figure = pictures.band_figure(series, {"MI": "Mutual information", "absent": "Nothing"}, "hidden units")
    full, empty = figure.axes
    lines = {line.get_label(): line.get_xydata() for line in full.lines}
    assert lines["MIM"].tolist() == [[5, 1.5], [20, 3], [50, 6]] and lines["VAE"][2, 1] == 5
    band = full.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(1.3) and band[:, 1].max() == pytest.approx(6.2)
    assert empty.get_title("left") == "Nothing" and not empty.collections
    assert full.get_yscale() == "linear"
    series["VAE"][5]["MI"] = Estimate(1e12, 1.0)
    assert pictures.band_figure(series, {"MI": "Mutual information"}, "x").axes[0].get_yscale() == "symlog"
    with pytest.raises(UsageError):
        pictures.band_figure({"MIM": {}}, {"MI": "x"}, "x")
