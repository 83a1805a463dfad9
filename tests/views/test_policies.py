"""Policies are registered: the package's, and a user's under a name, in a file, or as an entry point."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mi_ml_gen.core import config
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.encoders.settings import EncoderConfig
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.probe.settings import ProbeConfig
from mi_ml_gen.views.augment import Augment
from mi_ml_gen.views.policies import BUILT_IN, PUBLISHED_CROP, Policy, SimCLR
from mi_ml_gen.views.registry import NAMES, POLICIES, register_policy

ROOT = Path(__file__).parents[2]
FILE = """
from mi_ml_gen.views import Policy

class Dark(Policy):
    n_draws = 1

    def finish(self, views, draws):
        return views * draws[:, :, None, None]

class Other:
    pass
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "dark.py"
    path.write_text(FILE)
    return path


def test_each_name_of_the_package_has_its_class() -> None:
    assert tuple(BUILT_IN) == NAMES == tuple(name for name in POLICIES.names() if name in BUILT_IN)
    assert all(type(POLICIES[name]) is BUILT_IN[name] for name in NAMES)


def test_a_policy_of_a_file_does_its_part_after_the_others(file: Path) -> None:
    augment = Augment(f"{file}:Dark", 8, normalize=False)
    images = torch.rand(5, 3, 8, 8)
    drawn = augment.draw(5, torch.Generator().manual_seed(1), "cpu")
    assert drawn.own is not None and drawn.own.shape == (5, 1)
    expected = Augment("none", 8, normalize=False)(images) * drawn.own[:, :, None, None]
    assert torch.equal(augment.view(images, drawn), expected)
    halves = [augment.view(images[i:j], drawn.rows(i, j)) for i, j in ((0, 2), (2, 5))]
    assert torch.equal(torch.cat(halves), expected)


def test_a_policy_without_a_part_of_its_own_draws_what_it_always_drew() -> None:
    class Copy(SimCLR):
        """The same parts."""

    class WithDraws(SimCLR):
        n_draws = 3

    for cls in (Copy, WithDraws):
        register_policy(cls.__name__)(cls)
    images = torch.rand(4, 3, 16, 16)
    views = [Augment(name, 16)(images, torch.Generator().manual_seed(2)) for name in ("simclr", "Copy", "WithDraws")]
    assert torch.equal(views[0], views[1]) and torch.equal(views[0], views[2])


def test_a_random_crop_without_flips_does_not_mirror() -> None:
    @register_policy("crop-only")
    class CropOnly(Policy):
        crop = PUBLISHED_CROP

    images = torch.linspace(0, 1, 16).expand(64, 3, 16, 16)  # brighter to the right
    views = Augment("crop-only", 16, normalize=False)(images)
    assert (views[..., -1] > views[..., 0]).all()


def test_an_entry_point_adds_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("theirs", "mi_ml_gen.views.policies:SimCLR", "mi_ml_gen.policies")
    monkeypatch.setattr(POLICIES, "points", lambda: {"theirs": point})
    monkeypatch.setattr(POLICIES, "_entries", dict(POLICIES._entries))
    assert "theirs" in POLICIES.names() and type(POLICIES["theirs"]) is SimCLR


def test_what_is_no_policy_is_refused(file: Path) -> None:
    for name, says in (
        ("smclr", r"--Tx smclr: must be one of none, simclr, .*, or FILE.py:CLASS"),
        (f"{file}:Light", "defines no Light"),
        (f"{file}:Other", "must be a class derived from mi_ml_gen.views.Policy"),
        ("absent.py:Dark", "there is no file absent.py"),
    ):
        with pytest.raises(UsageError, match=says):
            Augment(name)


def test_the_commands_choose_from_the_registry(file: Path) -> None:
    own = f"{file}:Dark"
    encoder = {"encoder": "simclr", "generator": "tiny-bigbigan", "samples_per_epoch": 8}
    navigator = {"generator": "tiny-bigbigan", "chunks": "0_1"}
    assert config.load(EncoderConfig, None, encoder | {"Tx": own}).folder.name == "simclr_tiny-bigbigan_Dark_seed0"
    assert config.load(NavigatorConfig, None, navigator | {"Tx": own}).folder.name == "0_tiny-bigbigan_0_1_Dark"
    assert config.load(NavigatorConfig, None, navigator | {"simclr_aug": True}).policy == "simclr"
    assert config.load(NavigatorConfig, None, navigator).policy == "none"
    assert config.load(ProbeConfig, None, {"views": "torchvision"}).views == "torchvision"
    for settings, values, flag in ((EncoderConfig, encoder, "Tx"), (NavigatorConfig, navigator, "Tx"),
                                   (ProbeConfig, {}, "views")):  # fmt: skip
        with pytest.raises(UsageError, match="--Tx smclr: must be one of none, simclr"):
            config.load(settings, None, values | {flag: "smclr"})
    with pytest.raises(UsageError, match="--Tx none and --removeCrop: both name the augmentation"):
        config.load(NavigatorConfig, None, navigator | {"Tx": "none", "removeCrop": True})


def test_names_are_known_without_torch() -> None:
    code = (
        "import sys; from mi_ml_gen.views.registry import POLICIES; POLICIES.check('simclr');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
