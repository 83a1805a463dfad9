"""Folders of diffusers: equal to the library's own pipelines in the same noise, and refused where they are not read.

The comparisons need the extra (pip install 'mi_ml_gen[diffusers]'); the models are made on the spot.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.core.files import load_tensors, save_tensors
from mi_ml_gen.generators.diffusion import processes
from mi_ml_gen.generators.diffusion.generator import Diffusion
from mi_ml_gen.generators.diffusion.settings import UNetConfig
from mi_ml_gen.generators.registry import load_generator, save_generator

UNET = {
    "_class_name": "UNet2DModel", "_diffusers_version": "0.42.1", "sample_size": 8, "in_channels": 3,
    "out_channels": 3, "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 8,
}  # fmt: skip
INDEX = {
    "_class_name": "DDPMPipeline", "_diffusers_version": "0.42.1", "scheduler": ["diffusers", "DDPMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}  # fmt: skip
SCHEDULER = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "clip_sample": True}


def write(folder: Path, name: str, content: dict) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder as diffusers writes it, made without the library."""
    path = tmp_path / "pipeline"
    write(path, "model_index.json", INDEX)
    write(path, "unet/config.json", UNET)
    write(path, "scheduler/scheduler_config.json", SCHEDULER)
    sizes = UNetConfig(
        sample_size=8, in_channels=3, block_out_channels=(8, 16), norm_num_groups=4, down=("plain", "attention"),
        up=("attention", "plain"), attention_head_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    state = Diffusion(sizes, processes.DDPM()).unet.state_dict()
    save_tensors(path / "unet/diffusion_pytorch_model.safetensors", state)
    return path


def loaded(path: Path, **use) -> Diffusion:
    generator = load_generator("diffusion", path, use=use)
    assert isinstance(generator, Diffusion)
    return generator


# --- the library's own pipelines


def pipeline(scheduler: str, network: dict | None = None, **options):
    """A small pipeline of the library with random weights, all of them changed from their first values."""
    diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    torch.manual_seed(1)
    sizes = {key: value for key, value in UNET.items() if not key.startswith("_")} | (network or {})
    unet = diffusers.UNet2DModel(**sizes).eval()
    with torch.no_grad():
        for weight in unet.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    kind = "DDPM" if scheduler == "DDPMScheduler" else "DDIM"
    pipe = getattr(diffusers, f"{kind}Pipeline")(unet, getattr(diffusers, scheduler)(**options))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images_of(pipe, noise: torch.Tensor, steps: int, **options) -> torch.Tensor:
    """What the pipeline makes of noise (n, noises, 3, side, side), which it gets in the order in which it asks."""
    waiting = [part.clone() for part in noise.unbind(1)]

    def next_noise(shape, **_):
        found = waiting.pop(0) if waiting else torch.zeros(tuple(shape))  # DDIM draws once more, and weighs it by 0
        assert found.shape == tuple(shape)
        return found

    modules = [sys.modules[type(part).__module__] for part in (pipe, pipe.scheduler)]
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, "randn_tensor", next_noise)
        with torch.no_grad():
            found = pipe(batch_size=len(noise), num_inference_steps=steps, output_type="np", **options).images
    assert not waiting
    return torch.from_numpy(found).permute(0, 3, 1, 2)


NETWORKS = {
    "plain": {},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift", "act_fn": "gelu", "attention_head_dim": 4},
    "many layers": {"layers_per_block": 2, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1,
                    "norm_eps": 1e-6, "attention_head_dim": None, "mid_block_scale_factor": 1.4},
    "three levels": {"block_out_channels": [8, 8, 16], "down_block_types": ["AttnDownBlock2D", "DownBlock2D"] * 1
                     + ["DownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D"],
                     "add_attention": False, "center_input_sample": True, "attn_norm_num_groups": 2},
}  # fmt: skip
SCHEDULERS = [
    ("DDPMScheduler", {}, 7, "plain"),
    ("DDPMScheduler", {"variance_type": "fixed_large", "beta_schedule": "squaredcos_cap_v2"}, 5, "scale and shift"),
    ("DDPMScheduler", {"variance_type": "fixed_small_log", "timestep_spacing": "trailing", "clip_sample": False,
                       "prediction_type": "sample"}, 6, "many layers"),
    ("DDPMScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
                       "timestep_spacing": "trailing"}, 4, "three levels"),
    ("DDPMScheduler", {"variance_type": "fixed_large", "steps_offset": 3, "beta_schedule": "sigmoid"}, 4, "plain"),
    ("DDIMScheduler", {}, 7, "plain"),
    ("DDIMScheduler", {"set_alpha_to_one": False, "steps_offset": 1, "beta_schedule": "scaled_linear"}, 5, "plain"),
    ("DDIMScheduler", {"prediction_type": "v_prediction", "timestep_spacing": "linspace"}, 5, "three levels"),
    ("DDIMScheduler", {"prediction_type": "sample", "trained_betas": [0.01, 0.02, 0.1, 0.2, 0.3, 0.5],
                       "num_train_timesteps": 6, "clip_sample_range": 0.5}, 3, "plain"),
]  # fmt: skip


@pytest.mark.parametrize(("scheduler", "options", "steps", "network"), SCHEDULERS)
def test_equals_the_pipeline_of_the_library(tmp_path, scheduler, options, steps, network):
    pipe = pipeline(scheduler, NETWORKS[network], **options)
    pipe.save_pretrained(tmp_path / "saved")
    for eta in (1.0, 0.4) if scheduler == "DDIMScheduler" else (1.0,):
        own = loaded(tmp_path / "saved", steps=steps, block=2, eta=eta)
        z = torch.randn(3, own.noise_dim, generator=torch.Generator().manual_seed(0))
        expected = images_of(
            pipe, z.unflatten(1, (-1, 3, 8, 8)), steps, **({"eta": eta} if scheduler == "DDIMScheduler" else {})
        )
        found = own.decode(own.latents(z))
        assert expected.std() > 0.05
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


# --- without the library


def test_a_folder_is_read_and_saved_as_our_own_file(folder, tmp_path):
    generator = loaded(folder)
    assert (generator.how.steps, generator.layout.n_chunks, generator.resolution) == (20, 5, 8)
    z = torch.randn(2, generator.noise_dim, generator=torch.Generator().manual_seed(0))
    expected = generator.decode(z)
    assert torch.equal(loaded(folder / "model_index.json").decode(z), expected)
    save_generator(tmp_path / "own.safetensors", generator)
    torch.testing.assert_close(loaded(tmp_path / "own.safetensors").decode(z), expected, rtol=0, atol=1e-6)


def test_attention_of_the_first_versions_is_read_by_its_old_names(folder):
    expected = loaded(folder).state_dict()
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    state = load_tensors(file).tensors
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        state = {key.replace(f".{new}.", f".{old}."): value for key, value in state.items()}
    assert any(".query." in key for key in state)
    save_tensors(file, state)
    found = loaded(folder).state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def test_half_precision_becomes_float32(folder):
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    save_tensors(file, {key: value.half() for key, value in load_tensors(file).tensors.items()})
    assert {value.dtype for value in loaded(folder).state_dict().values()} == {torch.float32}


WRONG = [
    ("model_index.json", {"unet": ["diffusers", "UNet2DConditionModel"]}, UsageError, "UNet2DConditionModel"),
    ("model_index.json", {"vae": ["diffusers", "AutoencoderKL"]}, UsageError, "a pipeline of DDPMScheduler.*vae"),
    ("model_index.json", {"scheduler": ["diffusers", "PNDMScheduler"]}, UsageError, "PNDMScheduler.*must have"),
    ("model_index.json", {"scheduler": "DDPMScheduler"}, UsageError, "must have an unconditional UNet2DModel"),
    ("unet/config.json", {"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, UsageError, "block SkipDown"),
    ("unet/config.json", {"time_embedding_type": "fourier"}, UsageError, "type fourier: only positional"),
    ("unet/config.json", {"num_class_embeds": 10}, UsageError, "num_class_embeds 10"),
    ("unet/config.json", {"out_channels": 6}, UsageError, "3 in_channels and 6 out_channels"),
    ("unet/config.json", {"sample_size": [8, 16]}, UsageError, "images are square"),
    ("unet/config.json", {"rotation": 3}, UsageError, "rotation 3: this setting is not known here"),
    ("unet/config.json", {"block_out_channels": [8, "x"]}, UsageError, "must be of the kind of"),
    ("unet/config.json", {"block_out_channels": [8, 32]}, CorruptCheckpointError, "has shape"),
    ("unet/config.json", {"block_out_channels": [8, 2**24]}, CorruptCheckpointError, "asks for a tensor"),
    ("unet/config.json", {"layers_per_block": 10**6}, CorruptCheckpointError, "more layers than the file holds"),
    ("scheduler/scheduler_config.json", {"thresholding": True}, UsageError, "thresholding is not read"),
    ("scheduler/scheduler_config.json", {"variance_type": "learned"}, UsageError, "variance_type learned"),
    ("scheduler/scheduler_config.json", {"noise_warp": 0.5}, UsageError, "noise_warp 0.5: this setting is not known"),
    ("scheduler/scheduler_config.json", {"beta_start": "x"}, UsageError, "beta_start x: must be of the kind of 0.0001"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changed", "error", "says"), WRONG, ids=[f"{w[0][:9]} {w[1]}"[:60] for w in WRONG])
def test_what_is_not_read_is_refused(folder, name, changed, error, says):
    write(folder, name, json.loads((folder / name).read_text()) | changed)
    with pytest.raises(error, match=says):
        loaded(folder)


def test_settings_that_change_nothing_are_passed_over(folder):
    quiet = {"thresholding": False, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.0, "lu_lambdas": None}
    write(folder, "scheduler/scheduler_config.json", SCHEDULER | quiet)
    assert loaded(folder).layout.n_chunks == 5


def test_missing_and_damaged_parts_are_named(folder):
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    state = load_tensors(weights).tensors
    save_tensors(weights, {key: value * float("nan") for key, value in state.items()})
    with pytest.raises(CorruptCheckpointError, match="holds nan"):
        loaded(folder)
    save_tensors(weights, {key: value for key, value in state.items() if key != "conv_in.bias"})
    with pytest.raises(CorruptCheckpointError, match="conv_in.bias is missing"):
        loaded(folder)
    weights.unlink()
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UsageError, match="safe_serialization=True"):
        loaded(folder)
    for content, says in ((b"{", "not JSON"), (b"[]", "one object"), (b"[" * 10**5, "nested too deeply|not JSON")):
        (folder / "unet/config.json").unlink(missing_ok=True)
        (folder / "model_index.json").write_bytes(content)
        with pytest.raises(CorruptCheckpointError, match=says):
            loaded(folder)
    (folder / "model_index.json").unlink()
    with pytest.raises(UsageError, match=r"model_index.json: no such file; a folder of diffusers has"):
        loaded(folder)
    with pytest.raises(UsageError, match=r"reads .safetensors files of this package and folders of diffusers"):
        loaded(folder / "scheduler/scheduler_config.json")
