"""Checkpoints of NVAE-from-scratch: read with their statistics, refused in one line where they differ, never run."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch

from mi_ml_gen.core.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError
from mi_ml_gen.generators.registry import family_of, load_generator, save_generator
from mi_ml_gen.hub.convert import convert
from tests.conftest import load_helper

golden = load_helper("nvae")
SCRIPT = "from scripts.train_navigator import main; from mi_ml_gen.core import cli; cli.run(main)"


@pytest.fixture(scope="module")
def checkpoint():
    return golden.checkpoint()


def saved(path, content):
    torch.save(content, path)
    return path


def flat_noise(numbers, config) -> torch.Tensor:
    return torch.cat([torch.from_numpy(numbers[f"a/eps/{group}"]).flatten(1) for group in config.groups], 1)


def test_a_published_file_decodes_as_the_reference(tmp_path, checkpoint):
    generator = load_generator("nvae", saved(tmp_path / "last.pt", checkpoint), use=["temperature=0.6"])
    numbers = golden.numbers()
    assert generator.layout.sizes == (256, 256, 1024, 1024) and generator.resolution == 32
    images = generator.decode(flat_noise(numbers, generator.settings))
    np.testing.assert_allclose(images.numpy(), numbers["a/t0.6/image_mean"], rtol=0, atol=1e-4)


def test_flows_are_read_with_their_masks(tmp_path):
    content = golden.checkpoint("flow")
    generator = load_generator("nvae", saved(tmp_path / "last.pt", content))
    numbers = golden.numbers()
    images = generator.reconstruct(torch.from_numpy(numbers["a/x_uint8"]).float() / 255)
    np.testing.assert_allclose(images.numpy(), numbers["b/reconstruct_mean"], rtol=0, atol=1e-4)


def test_names_of_old_checkpoints_are_understood(tmp_path, checkpoint):
    renamed = OrderedDict()
    for key, value in checkpoint["state_dict"].items():
        key = key.replace("parametrizations.weight.original0", "weight_g")
        renamed[key.replace("parametrizations.weight.original1", "weight_v")] = value
    assert any(key.endswith("weight_g") for key in renamed)
    old = load_generator("nvae", saved(tmp_path / "old.pt", checkpoint | {"state_dict": renamed}))
    new = load_generator("nvae", saved(tmp_path / "new.pt", checkpoint))
    z = torch.randn(1, new.noise_dim, generator=torch.Generator().manual_seed(0))
    assert torch.equal(old.decode(z), new.decode(z))


def with_statistics(checkpoint):
    """Two temperatures whose decoder statistics differ from those of training."""
    content = dict(checkpoint)
    for temperature, factor in ((0.6, 1.3), (0.8, 0.8)):
        state = copy.deepcopy(checkpoint["state_dict"])
        for key in state:
            if key.startswith(("decoder_tower", "postprocessing")) and key.endswith("running_var"):
                state[key] *= factor
        content[f"state_dict_temp={temperature}"] = state
    return content


def test_statistics_of_a_temperature_are_used_and_kept(tmp_path, checkpoint, caplog):
    content = with_statistics(checkpoint)
    path = saved(tmp_path / "last.pt", content)
    plain = saved(tmp_path / "plain.pt", checkpoint | {"state_dict": content["state_dict_temp=0.6"]})
    z = torch.randn(2, 2560, generator=torch.Generator().manual_seed(0))
    expected = load_generator("nvae", plain, use=["temperature=0.6"]).decode(z)
    generator = load_generator("nvae", path, use=["temperature=0.6"])
    assert torch.equal(generator.decode(z), expected) and not caplog.records
    assert not torch.equal(generator.use({"temperature": 0.8}).decode(z), expected)
    assert torch.equal(generator.use({"temperature": 0.6}).decode(z), expected)

    save_generator(tmp_path / "own.safetensors", generator, "nvae")
    again = load_generator("nvae", tmp_path / "own.safetensors")
    assert again.temperature == 0.6 and torch.equal(again.decode(z), expected)

    with caplog.at_level(logging.WARNING):
        other = load_generator("nvae", path, use=["temperature=0.7"])
        assert not caplog.records
        for _ in range(2):
            other.decode(z)
    assert len(caplog.records) == 1 and "temperature 0.6, 0.8, not for 0.7" in caplog.text
    base = load_generator("nvae", saved(tmp_path / "base.pt", checkpoint), use=["temperature=0.7"])
    assert torch.equal(other.decode(z), base.decode(z))


def test_a_published_file_is_known_and_converted(tmp_path, checkpoint):
    path = saved(tmp_path / "last.pt", checkpoint)
    assert family_of(checkpoint) == "nvae"
    conversion = convert(path, tmp_path / "own.safetensors")
    assert conversion.what.startswith("nvae generator: 4 chunks of 256 or 1024 numbers, 32 px, 756,684 parameters")
    z = torch.randn(1, 2560, generator=torch.Generator().manual_seed(0))
    images = [load_generator("nvae", file).decode(z) for file in (path, tmp_path / "own.safetensors")]
    assert torch.equal(*images)


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


def faults(checkpoint):
    """What is wrong with a file, and what its message says."""
    state, about = checkpoint["state_dict"], checkpoint["configuration"]
    key = "enc_sampler.sampler_1:0.bias"
    larger = about | {"autoencoder": about["autoencoder"] | {"num_groups_per_scale": 3}}
    wider = about | {"autoencoder": about["autoencoder"] | {"num_latent_per_group": 5}}
    unknown = about | {"autoencoder": about["autoencoder"] | {"num_groups": 3}}
    huge = about | {"autoencoder": about["autoencoder"] | {"num_groups_per_scale": 9_999, "num_cells_per_group": 9_999}}
    bad = with_statistics(checkpoint)
    bad["state_dict_temp=0.6"] = without(bad["state_dict_temp=0.6"], key)
    return {
        "wrong key": ({"state_dict": without(state, key) | {key + "es": state[key]}}, f"{key} is missing"),
        "one key too many": ({"state_dict": state | {"extra": torch.zeros(1)}}, "unknown keys autoencoder.extra"),
        "missing group": (
            {"state_dict": {name: value for name, value in state.items() if "1:1" not in name}},
            r"1:1\S* is missing",
        ),
        "more groups configured": ({"configuration": larger}, r"0:2\S* is missing|group_2\S* is missing"),
        "wider latents configured": ({"configuration": wider}, r"has shape .*, the network's is"),
        "unknown size configured": ({"configuration": unknown}, "unknown key num_groups in autoencoder"),
        "endless sizes configured": ({"configuration": huge}, "sizes for more tensors than"),
        "another resolution configured": (
            {"configuration": about | {"resolution": [3, 64, 64]}},
            "const_prior has shape",
        ),
        "no configuration": ({"configuration": None}, "no section autoencoder"),
        "a number for a tensor": ({"state_dict": state | {key: 3}}, f"{key} is .*, not a tensor"),
        "no state dict": ({"state_dict": [1, 2]}, "not a state dict"),
        "statistics without a key": (bad, f"its state_dict_temp=0.6 .*{key} is missing"),
    }  # fmt: skip


@pytest.mark.parametrize("fault", faults(golden.checkpoint()))
def test_what_differs_is_refused_in_one_line(tmp_path, checkpoint, fault):
    change, message = faults(checkpoint)[fault]
    path = saved(tmp_path / "last.pt", checkpoint | change)
    with pytest.raises(CorruptCheckpointError, match=message) as refusal:
        load_generator("nvae", path)
    assert str(refusal.value).startswith(str(path)) and "\n" not in str(refusal.value)


class Acting:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return open, (str(self.canary), "w")


@pytest.mark.parametrize("place", ["configuration", "state_dict", "optimizer"])
def test_code_inside_is_refused_and_not_run(tmp_path, checkpoint, place):
    content = dict(checkpoint)
    content[place] = dict(content[place]) | {"x": Acting(tmp_path / "canary")}
    path = saved(tmp_path / "last.pt", content)
    with pytest.raises(UnsafeCheckpointError):
        load_generator("nvae", path)
    assert not (tmp_path / "canary").exists()


def test_a_script_ends_with_exit_code_3(tmp_path, checkpoint):
    path = saved(tmp_path / "last.pt", checkpoint | {"state_dict": {}})
    command = [sys.executable, "-c", SCRIPT, "--generator", "nvae", "--g_path", str(path), "--chunks", "0_1"]
    done = subprocess.run([*command, "--save_folder", str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == CheckpointError.exit_code == 3, done.stderr
    assert done.stderr.count("\n") == 1 and str(path) in done.stderr
