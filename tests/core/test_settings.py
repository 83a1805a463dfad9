"""Settings that are shared, what they are called on the command line, and what is refused before torch is loaded."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import io
import os
import pkgutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import mi_ml_gen
from mi_ml_gen.core import cli, config, threads
from mi_ml_gen.core.config import option, redefined
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.core.settings import InFolder, InNamedFolder, OnDevice
from mi_ml_gen.core.texts import TextError, parse_json, parse_yaml
from mi_ml_gen.data import known as known_data
from mi_ml_gen.data.loading import NAMED
from mi_ml_gen.encoders.settings import EncoderConfig
from mi_ml_gen.experiments.comparison_settings import ComparisonConfig
from mi_ml_gen.experiments.settings import BenchmarkConfig, CalibrationConfig, ExportConfig
from mi_ml_gen.generators import known
from mi_ml_gen.generators.diffusion.train_settings import DiffusionTrainConfig
from mi_ml_gen.generators.families import FAMILIES, bundled
from mi_ml_gen.generators.gan import settings as gan
from mi_ml_gen.generators.gan.recipes import RECIPES
from mi_ml_gen.generators.nvae.train_settings import NVAETrainConfig
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.mim.settings import MimConfig
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.probe.settings import ProbeConfig

PACKAGE = Path(config.__file__).parents[1]


@dataclass
class Shared(OnDevice, InNamedFolder):
    save_folder: str = redefined(InFolder, "save_folder", "./mine")
    size: int | None = option(None, flag="image_size", aliases=("px",), at_least=8, free=True)
    is_fast: bool = option(False, aliases=("quick",))


def parse(*argv: str) -> Shared:
    parser = cli.Parser(prog="x")
    config.add_arguments(parser, Shared)
    return config.from_arguments(Shared, parser.parse_args(argv))


def test_aliases_work_and_are_not_shown(tmp_path):
    for flag in ("--image_size", "--image-size", "--size", "--px"):
        assert parse(flag, "9").size == 9
        with pytest.raises(UsageError, match=f"^{flag.replace('image-size', 'image_size')} 7: must be at least 8"):
            parse(flag, "7")
    assert parse("--quick").is_fast and not parse("--quick", "--no_is_fast").is_fast
    parser = cli.Parser(prog="x")
    config.add_arguments(parser, Shared)
    shown = parser.format_help()
    assert "--image_size" in shown and "--px" not in shown and "--size " not in shown and "--quick" not in shown
    for key in ("size", "image_size", "image-size", "px"):
        (tmp_path / "a.yaml").write_text(f"{key}: 12\n")
        assert config.load(Shared, tmp_path / "a.yaml").size == 12


def test_a_redefined_option_keeps_its_rule_and_place():
    assert (parse().save_folder, parse().run_name) == ("./mine", "0")
    assert set(config.free(Shared)) == {"device", "save_folder", "run_name", "size"}
    assert InNamedFolder().save_folder == "./runs"


@pytest.mark.parametrize(
    ("settings", "free"),
    [
        (NavigatorConfig, "num_samples g_path device compile state_interval_s image_freq save_folder run_name "
         "early_stopping_min_steps early_stopping_threshold patience keep_going micro_batches keep cuda_graphs"),
        (EncoderConfig, "g_path device compile state_interval_s save_freq save_folder run_name workers loader "
         "skip_bad decode_at_once knn_freq abort_on_collapse cuda_graphs views_ahead"),
        (ProbeConfig, "save_folder run_name loader skip_bad device batch_size state_interval_s"),
        (MimConfig, "epochs log_interval show_detailed plot_x_recon_err vis_progress mi_interval save_folder "
         "data_root device no_cuda state_interval_s"),
        (gan.GanConfig, "steps device data_path save_every state_interval_s save_folder run_name"),
        (DiffusionTrainConfig, "steps device data save_every state_interval_s save_folder run_name sampler_steps block "
         "scale quality_images compare_samplers"),
        (CalibrationConfig, "device save_folder save_freq state_interval_s estimator pairs n_pairs"),
        (BenchmarkConfig, "source batch_sizes g_path data_path skip_bad energy save_folder"),
        (NVAETrainConfig, "epochs device log_every save_every state_interval_s save_folder run_name"),
        (ComparisonConfig, "rows seeds budgets budget_chunks against retry g_path device compile cuda_graphs skip_bad "
         "views_ahead save_folder"),
    ],
)  # fmt: skip
def test_what_may_change_when_a_run_is_resumed(settings, free):
    assert set(config.free(settings)) == set(free.split())


def test_what_may_change_when_a_data_set_goes_on():
    given = {"generator": "tiny-bigbigan", "n_images": 1, "save_folder": "x"}
    assert set(config.load(ExportConfig, None, given).free) == {"device", "n_workers", "batch_size"}
    own = config.load(ExportConfig, None, given | {"published_seeds": True})
    assert set(own.free) == {"device", "n_workers"}


def test_names_known_without_torch_are_those_of_the_registries():
    assert set(known_data.NAMES) == set(NAMED) and set(gan.FAMILIES) == set(RECIPES)
    assert set(known.NEED_WEIGHTS) == {name for name in FAMILIES if FAMILIES[name].make is None}
    assert set(known.SIZES) == set(bundled())
    for name, size in known.SIZES.items():
        generator = load_generator(name)
        assert (generator.layout.n_chunks, generator.resolution) == size


# --- names that lead out of a folder ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "../../x", "a/../../x", "/tmp/x", "..", "a\\..\\..\\x", "a\nb"])
def test_names_that_lead_out_of_a_folder_are_refused(name):
    for cls, given in (
        (NavigatorConfig, {"generator": "tiny-bigbigan", "chunks": "0_1", "run_name": name}),
        (EncoderConfig, {"encoder": "simclr", "run_name": name}),
        (ProbeConfig, {"dataset": name}),
        (ProbeConfig, {"run_name": name}),
        (MimConfig, {"dataset": name}),
        (MimConfig, {"tag": f"/{name}" if not name.startswith("/") else name}),
        (gan.GanConfig, {"run_name": name}),
        (DiffusionTrainConfig, {"run_name": name}),
    ):
        with pytest.raises(UsageError, match="must not lead out of the folder"):
            config.load(cls, None, given)
    with pytest.raises(UsageError, match="leads out of"):  # made in Python, where nothing was parsed
        _ = EncoderConfig(encoder="simclr", run_name=name).folder


def test_plain_names_and_subfolders_stay(tmp_path):
    settings = NavigatorConfig(
        generator="tiny-bigbigan", chunks="0_1", run_name="a=b c/d..e", save_folder=str(tmp_path)
    )
    assert settings.folder == tmp_path / "a=b c" / "d..e_tiny-bigbigan_0_1_none"
    own = NavigatorConfig(generator="models/mine.py:Mine", chunks="0_1", save_folder=str(tmp_path))
    assert own.folder == tmp_path / "0_Mine_0_1_none"


# --- numbers and texts without bounds -----------------------------------------------------------------------


@pytest.mark.parametrize("value", ["1e39", "-1e39", "3.5e38", "1e400", "nan"])
def test_no_number_beyond_float32(value):
    with pytest.raises(UsageError, match=r"^--lr_walk .*: must be"):
        parser = cli.Parser(prog="x")
        config.add_arguments(parser, NavigatorConfig)
        argv = ["--generator", "tiny-bigbigan", "--chunks", "0_1", "--lr_walk", value]
        config.from_arguments(NavigatorConfig, parser.parse_args(argv))


@pytest.mark.parametrize("value", ["9223372036854775808", "1" * 5000])
def test_no_whole_number_beyond_int64(value):
    with pytest.raises(UsageError, match="seed"):
        config.load(EncoderConfig, None, {"encoder": "simclr", "seed": value})


def settings_classes() -> list[type]:
    """Every class of settings in the package's files of that name."""
    names = [module.name for module in pkgutil.walk_packages(mi_ml_gen.__path__, "mi_ml_gen.")]
    modules = [importlib.import_module(name) for name in names if name.rpartition(".")[2].endswith("settings")]
    found = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    classes = [one for one in found if dataclasses.is_dataclass(one)]
    with_options = [one for one in classes if any("rule" in field.metadata for field in dataclasses.fields(one))]
    return sorted(with_options, key=lambda one: one.__qualname__)


NUMBERS = [
    (one, spec) for one in settings_classes() for spec in config._specs(one) if spec.kind in (int, float)
]  # fmt: skip
MAY_BE_NEGATIVE = {"mean", "anchor_params", "strengths", "pseudoinputs_mean"}
"""Settings that have no least value."""


@pytest.mark.parametrize("value", ["nan", "-inf", "1e39", "1e400", "9" * 25, "1" * 5000, "0x10", "1,", "[1", "\x00"])
def test_every_number_of_every_command_is_refused_in_one_line_or_finite(value):
    assert len(NUMBERS) > 200
    for one, spec in NUMBERS:
        try:
            found = config.given(one, {spec.name: value})[spec.name]
        except UsageError as error:
            assert "\n" not in str(error) and spec.name in str(error)
        else:
            numbers = found if isinstance(found, list | tuple) else [found]
            assert all(abs(number) <= config.LARGEST_FLOAT32 for number in numbers), (one, spec.name)


def test_every_number_of_every_command_has_a_least_value():
    for one, spec in NUMBERS:
        if spec.name not in MAY_BE_NEGATIVE and spec.choices is None:
            with pytest.raises(UsageError, match=f"{spec.name}=.*: must be"):
                config.given(one, {spec.name: ", ".join(["-7"] * (spec.length or 1))})


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BOMB, "too many"),
        ("a: " + "[" * 3000 + "]" * 3000, "too deep"),
        ("".join(" " * i + "a:\n" for i in range(200)), "too deep"),
        ("a: b\n" * 300_000, "too large"),
        ("a: [", "not a YAML file"),
        (b"\xff\xfe\xff", "not a YAML file"),
        ("? &a [*a]\n: 1\n", "YAML|key"),
    ],
)
def test_yaml_without_bounds_is_refused(tmp_path, text, why):
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=why):
        config.load(NavigatorConfig, path)


def test_yaml_with_aliases_is_read():
    assert parse_yaml("a: &n [1, 2]\nb: *n\n") == {"a": [1, 2], "b": [1, 2]}
    assert parse_yaml("a: 1_6\nb: no\n", as_text=True) == {"a": "1_6", "b": "no"}
    assert parse_yaml(b"") is None


def test_deep_json_is_refused():
    assert parse_json("[1]") == [1]
    for text, why in (("[" * 100_000, "deeply"), ("{", "not JSON"), (b"\xff", "not JSON")):
        with pytest.raises(TextError, match=why):
            parse_json(text)
    try:
        yaml.safe_load("[" * 5000)
    except RecursionError as error:
        assert isinstance(cli.as_known(error), CorruptCheckpointError)

    def endless():
        return endless()

    with pytest.raises(RecursionError) as caught:
        endless()
    assert cli.as_known(caught.value) is None  # a fault of ours stays one


# --- published configurations -------------------------------------------------------------------------------

GENERATED = """\
data:
  data_type: "stylegan" # bigbigan or stylegan
  generator_path: "/home/user/runs/car.pkl"
  anchor_params:
    - 0.
    - 1.
    - 0.9
  Tz:
    "0_4": "/home/user/w_COPGen_12288.pth"
    "4_8": null
  Tx: no_color
train:
  max_epochs: 100
  cumulative_bs: 512
  base_lr: 0.05
  decay: True
  warmup: False
model:
  dim: 2048
  pred: 512
"""
REAL = """\
data: {data_type: bigbigan, generator_path: null, anchor_params: null, Tz: null, Tx: simclr}
train: {max_epochs: 100, cumulative_bs: 1024, base_lr: 0.05, decay: True, warmup: True}
model: {dim: 2048, pred: 512}
"""


def test_published_configurations_of_encoders_are_read(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(GENERATED)
    given = {"encoder": "byol", "seed": 3}
    found = config.load(EncoderConfig, path, given)
    ours = config.load(EncoderConfig, "encoders/byol_stylegan/encoder_lsun_chunks_learned", given)
    same = (
        "generator",
        "samples_per_epoch",
        "truncation",
        "Tx",
        "max_epochs",
        "cumulative_bs",
        "warmup",
        "dim",
        "pred",
    )
    assert [getattr(found, name) for name in same] == [getattr(ours, name) for name in same]
    assert found.g_path == "/home/user/runs/car.pkl"
    assert found.Tz == {"0_4": "/home/user/w_COPGen_12288.pth", "4_8": "null"}

    path.write_text(REAL)
    found = config.load(EncoderConfig, path, {"encoder": "simsiam"})
    ours = config.load(EncoderConfig, "encoders/simsiam_bigbigan/encoder_imagenet_baseline_real")
    assert found == ours


def test_published_configurations_of_classifiers_are_read(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("train:\n  max_epochs: 100\n  cumulative_bs: 256\n  base_lr: 30.0\n  decay: True\n")
    found = config.load(ProbeConfig, path)
    assert (found.max_epochs, found.cumulative_bs, found.base_lr, found.decay) == (100, 256, 30.0, True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data: {data_type: biggan}", "data_type biggan: must be one of bigbigan, stylegan"),
        ("train: {max_epochs: 3}\nmax_epochs: 4", "max_epochs is given twice"),
        ("data: {data_type: bigbigan, generator_path: x, anchor_params: [0, 1]}", "anchor_params"),
        ("train: {epoch: 3}", "unknown key epoch"),
    ],
)
def test_wrong_published_configurations(tmp_path, text, says):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        config.load(EncoderConfig, path, {"encoder": "simclr"})


# --- threads ------------------------------------------------------------------------------------------------


def test_threads_follow_the_affinity_and_are_never_changed_where_the_user_chose():
    environment: dict[str, str] = {}
    threads.prepare(environment)
    assert environment == {"OMP_NUM_THREADS": str(threads.available()), "OMP_WAIT_POLICY": "PASSIVE"}
    for name, value in (("OMP_NUM_THREADS", "7"), ("MKL_NUM_THREADS", "7"), ("OMP_WAIT_POLICY", "ACTIVE"),
                        ("GOMP_SPINCOUNT", "3"), ("KMP_BLOCKTIME", "1")):  # fmt: skip
        environment = {name: value}
        threads.prepare(environment)
        kind = threads.NUMBERS if name in threads.NUMBERS else threads.WAITING
        assert {key: text for key, text in environment.items() if key in kind} == {name: value}
    environment = {"MI_ML_GEN_THREADS": "3", "OMP_NUM_THREADS": "7"}
    threads.prepare(environment)
    assert environment["OMP_NUM_THREADS"] == "3"
    for wrong in ("0", "many", "-1", ""):
        with pytest.raises(UsageError, match="MI_ML_GEN_THREADS"):
            threads.prepare({"MI_ML_GEN_THREADS": wrong})
    assert threads.chosen({"LOCAL_WORLD_SIZE": "1000"}) == 1


def test_available_is_within_the_affinity():
    assert 1 <= threads.available() <= (os.cpu_count() or 1)


def cgroup(tmp_path, group: str, files: dict[str, str]) -> float | None:
    (tmp_path / "process").write_text(group)
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return threads.cgroup_quota(tmp_path / "cgroup", tmp_path / "process")


@pytest.mark.parametrize(
    ("group", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"cpu.max": "max 100000\n", "a/cpu.max": "300000 100000", "a/b/cpu.max": "400000 100000"}, 3.0),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("3:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "50000", "cpu/x/cpu.cfs_period_us": "100000"}, 0.5),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/../..\nnonsense\n", {"cpu.max": "nonsense"}, None),
    ],
)  # fmt: skip
def test_quota_of_a_container(tmp_path, group, files, quota):
    assert cgroup(tmp_path, group, files) == quota


def test_no_control_groups_at_all(tmp_path):
    assert threads.cgroup_quota(tmp_path / "none", tmp_path / "absent") is None


# --- the first sign of life ---------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_loading_is_said_on_a_terminal_where_the_module_is_not_there_yet(monkeypatch):
    def said(stream: io.StringIO, what: str = "no_such_module") -> str:
        monkeypatch.setattr(sys, "stderr", stream)
        cli.loading(what)
        return stream.getvalue()

    assert said(Terminal()) == "loading no_such_module ...\n"
    assert said(io.StringIO()) == "" and said(Terminal(), "torch") == ""
    monkeypatch.setenv("RANK", "1")
    assert said(Terminal()) == ""


# --- what is written once -----------------------------------------------------------------------------------


def test_shared_settings_are_declared_once():
    """No class but the shared groups declares these with `option`; others inherit or redefine them."""
    shared = {"device", "precision", "compile", "seed", "generator", "g_path", "g_use", "mean", "std", "truncation",
              "save_folder", "run_name", "state_interval_s", "loader"}  # fmt: skip
    places: dict[str, list[str]] = {name: [] for name in shared}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
                continue
            declares = isinstance(node.value, ast.Call) and ast.unparse(node.value.func).endswith("option")
            if declares and node.target.id in shared:
                places[node.target.id].append(path.stem)
    assert {name: len(found) for name, found in places.items() if len(found) != 1} == {}
