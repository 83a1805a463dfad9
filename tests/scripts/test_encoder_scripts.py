"""scripts/train_encoder.py as a user calls it, and the bundled configurations."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from mi_ml_gen.core import config, runs
from mi_ml_gen.encoders import costs, training
from mi_ml_gen.encoders.loading import load_encoder
from mi_ml_gen.encoders.settings import EncoderConfig, named_configuration
from mi_ml_gen.views.augment import POLICIES
from tests.image_files import folder
from tests.scripts.test_scripts import call

FOLDER = config.BUNDLED / "encoders"
PUBLISHED = {
    f"{family}/encoder_{data}_{row}"
    for family, data in (("simsiam_bigbigan", "imagenet"), ("simsiam_stylegan", "lsun"), ("byol_stylegan", "lsun"))
    for row in (
        "baseline_real",
        "baseline_synth",
        "baseline_random",
        "baseline_learned",
        "chunks_random",
        "chunks_learned",
    )
}
TINY = (
    *("--generator", "tiny-bigbigan", "--depth", 18, "--width", 2, "--dim", 4, "--pred", 2, "--cumulative_bs", 4),
    *("--samples_per_epoch", 8, "--max_epochs", 2, "--device", "cpu", "--state_interval_s", 0, "--seed", 1),
)


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr(training, "report_run", lambda *arguments: None)


def names() -> list[str]:
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))


def test_a_run_from_the_command_line(monkeypatch, capsys, tmp_path):
    code, out, _ = call(
        monkeypatch, capsys, "train_encoder", "--encoder", "simsiam", *TINY, "--Tz", "0_1=0,0.2,2 2_4=0,1,2",
        "--Tx", "no_color", "--save_folder", tmp_path, "--run_name", "run",
    )  # fmt: skip
    assert code == 0 and "trained on 16 samples" in out
    loaded = load_encoder(tmp_path / "run")
    assert loaded.method == "simsiam" and loaded.about["Tz"] == "0_1=0,0.2,2 2_4=0,1,2"

    # --resume_from takes the run's own settings, and flags on top
    code, out, _ = call(monkeypatch, capsys, "train_encoder", "--resume_from", tmp_path / "run", "--save_freq", 9)
    assert code == 0 and "trained on 16 samples" in out
    assert runs.read_config(tmp_path / "run")["save_freq"] == 9
    code, _, err = call(monkeypatch, capsys, "train_encoder", "--resume_from", tmp_path / "run", "--width", 3)
    assert code == 2 and "width 2, not 3" in err


@pytest.mark.parametrize(
    "argv, code, message",
    [
        ((), 2, "--encoder must be given"),
        (("--encoder", "moco"), 2, "must be one of simclr, simsiam, byol"),
        (("--encoder", "byol"), 2, "give --generator NAME, or --data_path"),
        (("--conf", "simsiam_bigbigan/encoder_imagenet_baseline_reel"), 2, "baseline_real"),
        (("--conf", "x", "--config", "y"), 2, "give one of them"),
        (("--resume_from", "nowhere"), 2, "not a run folder"),
        (("--encoder", "byol", *TINY, "--truncated", "2"), 2, "--truncation"),
        (("--encoder", "byol", *TINY, "--Tz", "walker.pth"), 2, "walker.pth: no such file"),
        (("--encoder", "byol", *TINY, "--logging", "tensorboard"), 4, "mi_ml_gen[track]"),
        (("--encoder", "byol", *TINY, "--logging"), 4, "mi_ml_gen[track]"),
    ],
)
def test_wrong_calls_get_one_line(monkeypatch, capsys, tmp_path, argv, code, message):
    monkeypatch.chdir(tmp_path)
    for package in ("tensorboard", "wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    found, _, err = call(monkeypatch, capsys, "train_encoder", *argv)
    assert found == code and message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_tracker_gets_every_row(monkeypatch, capsys, tmp_path):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            written.append(folder)

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            return None

        def add_scalar(self, name, value, step):
            written.append((name, step))

    stand_in = type(sys)("torch.utils.tensorboard")
    stand_in.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    argv = ("--encoder", "simclr", *TINY, "--save_folder", tmp_path, "--run_name", "run", "--logging", "tensorboard")
    assert call(monkeypatch, capsys, "train_encoder", *argv)[0] == 0
    assert written[0] == str(tmp_path / "run" / "tensorboard")
    assert {("loss", 2), ("loss", 4), ("effective_rank", 4)} <= set(written[1:])


# --- the bundled configurations


def test_the_papers_configurations_are_all_there():
    assert set(names()) >= PUBLISHED
    assert len(PUBLISHED) == 18 and any(name.startswith("simclr") for name in names())


def test_hours_of_published_configurations_are_those_of_the_cost_sheet():
    sheet = (Path(__file__).parents[2] / "bench" / "results" / "costs.md").read_text()
    counted = {cells[1]: cells[4] for line in sheet.splitlines() if len(cells := line.replace(" ", "").split("|")) > 4}
    for name in PUBLISHED:
        text = Path(named_configuration(name)).read_text()
        assert f"# Hours      {counted[name]} on one GPU at 180 TFLOP/s" in text, name


@pytest.mark.parametrize("name", names())
def test_a_bundled_configuration_resolves(name):
    path = Path(named_configuration(name))
    settings = config.load(EncoderConfig, path)
    text = path.read_text()
    for word in ("Expected", "Hardware", "Hours", "Command", f"--config {name}"):
        assert f"{word}" in text
    assert "/home" not in text and max(map(len, text.splitlines())) <= 120
    assert settings.policy in POLICIES
    assert (settings.generator is None) == ("real" in name)
    assert (settings.Tz in (None, "null")) == ("real" in name or "synth" in name)
    expected = "no_color" if "chunks" in name else "simclr"
    if name.startswith("small/"):  # their documented results were measured with torchvision's conventions
        expected = {"no_color": "torchvision_no_color", "simclr": "torchvision"}[expected]
    assert settings.policy == expected
    again = config.load(EncoderConfig, None, yaml.safe_load(config.to_yaml(settings)))
    assert config.to_dict(again) == config.to_dict(settings)


def test_hyperparameters_of_the_paper():
    for name in PUBLISHED:
        settings = config.load(EncoderConfig, named_configuration(name))
        is_bigbigan = "bigbigan" in name
        assert settings.encoder == name.split("_")[0]
        assert (settings.dim, settings.pred, settings.max_epochs, settings.base_lr) == (2048, 512, 100, 0.05)
        assert (settings.cumulative_bs, settings.warmup) == ((1024, True) if is_bigbigan else (512, False))
        assert settings.decay and settings.depth == 50 and settings.width == 64
        if "real" not in name:
            assert settings.distribution.truncation == (2 if is_bigbigan else 0.9) and settings.distribution.std == 1


def test_flags_win_over_a_configuration(monkeypatch, capsys):
    monkeypatch.setattr(costs, "cost_lines", lambda settings: ["cost: counted elsewhere"])  # takes a while here
    name = "byol_stylegan/encoder_lsun_chunks_random"
    argv = ("--conf", name, "--max_epochs", 3, "--Tz", "0_4=0,0.5,2", "--dry-run")
    code, out, _ = call(monkeypatch, capsys, "train_encoder", *argv)
    shown = yaml.safe_load(out)
    assert code == 0 and shown["max_epochs"] == 3 and shown["Tz"] == "0_4=0,0.5,2" and shown["encoder"] == "byol"
    argv = ("--conf", name, "--dry-run")
    shown = yaml.safe_load(call(monkeypatch, capsys, "train_encoder", *argv)[1])
    assert shown["Tz"]["12_16"] == ["0", "0.8", "1"]


@pytest.mark.parametrize(
    "flags, code, message",
    [
        (("--generator", "tiny-bigbigan"), 0, "# generator: tiny-bigbigan, 32 px, can be loaded"),
        (("--generator", "stylegan2", "--g_path", "stylegan2-car-config-f"), 0, "whose weights stylegan2-car-config-f"),
        (("--generator", "bigbigan", "--g_path", "absent.pth"), 2, "absent.pth"),
        (("--data_path", "set"), 0, "4 images, train split, not opened"),
        (("--data_path", "absent"), 2, "absent: no such file or folder"),
        (("--data_path", "set", "--knn_data", "absent"), 2, "absent: no such file or folder"),
        (("--data_path", "mixed"), 2, "this can be read in two ways"),
        ((), 2, "give --generator NAME, or --data_path"),
    ],
)
def test_a_dry_run_looks_for_generator_and_data(monkeypatch, capsys, tmp_path, flags, code, message):
    folder(tmp_path / "set" / "train", n=4)
    folder(tmp_path / "mixed" / "train", n=4)
    folder(tmp_path / "mixed", n=4)
    monkeypatch.chdir(tmp_path)
    found, out, err = call(monkeypatch, capsys, "train_encoder", "--encoder", "simsiam", *flags, "--dry-run")
    assert found == code and message in (err if code else out), err
    assert not (tmp_path / "encoder_runs").exists()


def test_bad_images_can_be_left_out_as_advised(monkeypatch, capsys, tmp_path):
    folder(tmp_path / "set", n=8)
    (tmp_path / "set" / "ant" / "bad.png").write_text("x")
    flags = ["--encoder", "simsiam", "--data_path", tmp_path / "set", "--save_folder", tmp_path / "runs"]
    flags += [
        "--img_size",
        16,
        "--depth",
        18,
        "--width",
        2,
        "--dim",
        4,
        "--pred",
        2,
        "--cumulative_bs",
        4,
        "--max_epochs",
        1,
    ]
    code, _, err = call(monkeypatch, capsys, "train_encoder", *flags, "--device", "cpu")
    assert code == 2 and "leave them out with --skip_bad" in err
    code, out, err = call(monkeypatch, capsys, "train_encoder", *flags, "--device", "cpu", "--skip_bad")
    assert code == 0 and "trained on 8 samples" in out and "bad.png" in err, err
