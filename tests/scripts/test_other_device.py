"""Whole commands on a device other than the CPU: a tensor that stays behind on the host is an error, as on a GPU.

The device is pretended (tests/pretended_mps.py): its tensors have values, and operators refuse to mix them with the
host's. Trainings are held to this on fake CUDA tensors (tests/cuda).
"""

from __future__ import annotations

import functools

import pytest
import torch

from mi_ml_gen.core import runtime
from mi_ml_gen.generators.registry import load_generator
from mi_ml_gen.latents import TruncatedNormal
from mi_ml_gen.navigator.marginals import marginal_divergence
from mi_ml_gen.walkers import budget
from mi_ml_gen.walkers.files import save_walker
from mi_ml_gen.walkers.learned import learned_walker
from mi_ml_gen.walkers.spec import load_walker, walker_from
from tests.pretended_mps import pretended_mps
from tests.scripts.test_scripts import call

TINY = ("--generator", "tiny-bigbigan")
MAP = ("--ranges", "single", "--n_train", 64, "--n_eval", 64, "--n_labels", 2, "--n_images", 2)
COMMANDS = {
    "map": ("map_generator", "--generator", "linear-gaussian", *MAP, "--out", "{out}"),
    "data set": ("generate_dataset", *TINY, "--Tz", "1_2={walker}", "--n_images", 8, "--save_folder", "{out}"),
    "view generation": ("view_generation", *TINY, "--Tz", "1_2={walker}", "--save_folder", "{out}"),
    "pictures": ("visualize_generator", *TINY, "--out", "{out}"),
}


@pytest.fixture
def device(monkeypatch):
    """What `--device mps` then is."""
    is_available = functools.wraps(torch.backends.mps.is_available)(lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", is_available)
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with pretended_mps() as device:
        monkeypatch.setattr(runtime, "resolve_device", lambda *_: device)
        yield device
    torch.__future__.set_overwrite_module_params_on_conversion(before)


@pytest.fixture(scope="module")
def walker(tmp_path_factory):
    """The file of a learned walker."""
    path = tmp_path_factory.mktemp("walker") / "w"
    return save_walker(path, learned_walker(load_generator("tiny-bigbigan"), "1_2"), generator="tiny-bigbigan")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_works_on_another_device(name, device, walker, monkeypatch, capsys, tmp_path):
    script, *arguments = (str(one).format(out=tmp_path / "out", walker=walker) for one in COMMANDS[name])
    code, _, err = call(monkeypatch, capsys, script, *arguments, "--device", "mps", "--debug")
    assert code == 0, err[-3000:]


@pytest.mark.parametrize("Tz", ["1_2={walker}", "1_2=0.5", "0_2=ganspace:2,0.5"])
def test_what_pairs_share_is_measured_on_another_device(Tz, device, walker, monkeypatch):
    monkeypatch.setattr(budget, "CHECK", budget.SEARCH)
    generator = load_generator("tiny-bigbigan", device=device)
    with torch.no_grad():
        found = budget.measured(generator, walker_from(Tz.format(walker=walker), generator))
    assert found.nats > 0.5


def test_positives_are_compared_with_anchors_on_another_device(device, walker):
    generator = load_generator("tiny-bigbigan", device=device)
    found = marginal_divergence(generator, load_walker(walker, device), TruncatedNormal(), 256)
    assert 0 <= found.nats <= 0.7


def test_a_walker_that_stays_behind_is_an_error(device, walker, monkeypatch):
    monkeypatch.setattr(budget, "CHECK", budget.SEARCH)
    generator = load_generator("tiny-bigbigan", device=device)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        budget.measured(generator, load_walker(walker))
