from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from mi_ml_gen.core import config
from mi_ml_gen.core.cli import Parser
from mi_ml_gen.core.config import option
from mi_ml_gen.core.errors import UsageError


@dataclass
class Settings:
    num_samples: int = option(1000, help="100% of the anchors", positive=True)
    lr_walk: float = option(8e-5, positive=True)
    lr_mi: float = option(5e-5, flag="--lr_MI", at_least=0)
    dropout: float = option(0.0, at_least=0, below=1)
    precision: Literal["fp32", "bf16"] = option("fp32", help="of the networks")
    simclr_aug: bool = option(False, help="augment")
    compile: bool = option(True, help="compile the step")
    widths: list[int] = option([64, 128], positive=True)
    betas: tuple[float, float] = option((0.5, 0.999))
    seed: int | None = option(None)
    out: Path | None = option(None)
    name: str = option("run")


@dataclass
class Needy:
    folder: str = option(help="where the walkers are")
    plain: int = 3


def parse(*argv: str, of: type = Settings):
    parser = Parser(prog="train")
    config.add_arguments(parser, of)
    return config.from_arguments(of, parser.parse_args(argv))


def test_defaults_then_file_then_flags(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("num_samples: 5\nlr_walk: 1e-3\nsimclr_aug: true\nlr_MI: 0.25\n")
    settings = parse("--config", str(path), "--num_samples", "7")
    assert settings == Settings(num_samples=7, lr_walk=1e-3, simclr_aug=True, lr_mi=0.25)
    assert parse() == Settings()


def test_every_type_from_flags():
    line = "--widths 1 2,3 --betas 0 1 --seed 4 --out a/b --simclr_aug --no_compile --lr_MI 1e-3"
    settings = parse(*line.split())
    assert settings == Settings(
        widths=[1, 2, 3], betas=(0, 1), seed=4, out=Path("a/b"), simclr_aug=True, compile=False, lr_mi=1e-3
    )
    assert isinstance(settings.betas, tuple)
    assert parse("--seed", "none").seed is None
    assert parse("--num-samples", "3", "--no-compile") == Settings(num_samples=3, compile=False)


def test_a_flag_turns_off_what_a_file_turned_on(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("simclr_aug: yes\n")
    assert parse("--config", str(path)).simclr_aug is True
    assert parse("--config", str(path), "--no_simclr_aug").simclr_aug is False


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--num_samples", "-5"], "--num_samples -5: must be at least 1"),
        (["--num_samples", "0"], "--num_samples 0: must be at least 1"),
        (["--num_samples", "1.5"], "--num_samples 1.5: must be a whole number"),
        (["--lr_walk", "-1e-3"], "--lr_walk -1e-3: must be above 0"),
        (["--lr_walk", "0"], "--lr_walk 0: must be above 0"),
        (["--lr_walk", "nan"], "--lr_walk nan: must be a finite number"),
        (["--lr_walk", "fast"], "--lr_walk fast: must be a finite number"),
        (["--lr_MI", "-1"], "--lr_MI -1: must be at least 0"),
        (["--dropout", "1"], "--dropout 1: must be below 1"),
        (["--precision", "fp8"], "--precision fp8: must be one of fp32, bf16"),
        (["--widths", "4", "-2"], "--widths 4 -2: must be at least 1"),
        (["--betas", "0.5"], "--betas 0.5: must be 2 values, not 1"),
        (["--lr_wakl", "1"], "unknown flag --lr_wakl; nearest known flag: --lr_walk"),
        (["--lr_w", "1"], "unknown flag --lr_w"),
        (["--name"], "argument --name: expected one argument"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_wrong_flags(argv, message):
    with pytest.raises(UsageError) as caught:
        parse(*argv)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr_wakl: 1", "unknown key lr_wakl in {path}; nearest known key: lr_walk"),
        ("num_samples: -5", "num_samples: -5 in {path}: must be at least 1"),
        ("num_samples: 5.5", "num_samples: 5.5 in {path}: must be a whole number"),
        ("num_samples: true", "num_samples: true in {path}: must be a whole number"),
        ("num_samples: null", "num_samples: null in {path}: must be a whole number"),
        ("lr_walk: .inf", "lr_walk: .inf in {path}: must be a finite number"),
        ("name: [1]", "name: ['1'] in {path}: must be text"),
        ("simclr_aug: 2", "simclr_aug: 2 in {path}: must be true or false"),
        ("- 1", "{path}: must hold lines of the form key: value"),
        ("a: [", "{path}: not a YAML file: "),
        ("!!python/object/apply:os.getcwd []", "{path}: must hold lines of the form"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        config.load(Settings, path)
    assert str(caught.value).startswith(message.format(path=path))
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UsageError, match=str(path)):
            config.load(Settings, path)


def test_overrides():
    wanted = Settings(num_samples=3, lr_walk=1e-4, seed=None, widths=[1, 2])
    words = ["num_samples=3", "lr_walk = 1e-4", "seed=none", "widths=1,2"]
    assert config.load(Settings, None, words) == wanted
    assert config.load(Settings, None, {"num_samples": 3, "lr_walk": 1e-4, "widths": (1, 2)}) == wanted
    for overrides, message in (
        (["num_samples"], "must have the form key=value"),
        (["num_samples=x"], "^num_samples=x: must be a whole number"),
        ({"num_sample": 1}, "nearest known key: num_samples"),
    ):
        with pytest.raises(UsageError, match=message):
            config.load(Settings, None, overrides)


def test_yaml_round_trip(tmp_path):
    settings = Settings(lr_walk=1e-7, out=Path("x"), name="1_6", seed=3, betas=(0.1, 1e-9), simclr_aug=True)
    path = tmp_path / "saved.yaml"
    path.write_text(config.to_yaml(settings))
    assert config.load(Settings, path) == settings


def test_values_of_a_file_are_read_by_the_type_of_their_field(tmp_path):
    """YAML 1.1 by itself reads 1_6 as the number 16, 8e-5 as text, and no as false."""
    path = tmp_path / "x.yaml"
    path.write_text("name: 1_6\nlr_walk: 8e-5\nwidths: [1, 2]\nseed: null\nout: ~\nsimclr_aug: on\n")
    assert config.load(Settings, path) == Settings(name="1_6", lr_walk=8e-5, widths=[1, 2], simclr_aug=True)
    path.write_text("name: no\nseed:\n")
    assert config.load(Settings, path) == Settings(name="no", seed=None)


def test_required_and_plain_fields():
    assert parse("--folder", "x", "--plain", "4", of=Needy) == Needy(folder="x", plain=4)
    with pytest.raises(UsageError, match="--folder must be given: where the walkers are"):
        parse(of=Needy)


def test_defaults_are_not_shared():
    first = Settings()
    first.widths.append(1)
    assert Settings().widths == [64, 128]


def test_validate():
    config.validate(Settings(widths=[1]))
    with pytest.raises(UsageError, match=r"^num_samples=-5: must be at least 1"):
        config.validate(Settings(num_samples=-5))


def test_bundled_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "BUNDLED", tmp_path)
    (tmp_path / "paper.yaml").write_text("num_samples: 12\n")
    assert config.load(Settings, "paper").num_samples == 12


def test_help_names_every_flag_once():
    parser = Parser(prog="train")
    config.add_arguments(parser, Settings)
    text = parser.format_help()
    for flag in ("--num_samples N", "--lr_MI X", "--precision {fp32,bf16}", "--simclr_aug", "--no_compile"):
        assert flag in text
    assert "--num-samples" not in text and "--no_simclr_aug" not in text
    assert "100% of the anchors (default 1000)" in text


def test_a_folder_of_the_name_of_a_bundled_file_does_not_hide_it(tmp_path, monkeypatch):
    """A run's folder of the name of a bundled configuration is not taken for it."""
    monkeypatch.setattr(config, "BUNDLED", tmp_path / "bundled")
    (tmp_path / "bundled").mkdir()
    (tmp_path / "bundled" / "quick.yaml").write_text("num_samples: 7\n")
    (tmp_path / "quick").mkdir()
    monkeypatch.chdir(tmp_path)
    assert config._find(Settings, "quick") == tmp_path / "bundled" / "quick.yaml"


def test_a_setting_that_is_a_mapping_is_no_section(tmp_path):
    @dataclass
    class Grouped:
        Tz: Any = option(None)
        seed: int = option(0)

    (tmp_path / "c.yaml").write_text("data:\n  Tz:\n    0_1: none\n    1_4: [0, 1, 2]\nmodel:\n  seed: 3\n")
    assert config.load(Grouped, tmp_path / "c.yaml") == Grouped(Tz={"0_1": "none", "1_4": ["0", "1", "2"]}, seed=3)
