"""What only a GPU can show; left out where there is none. `bench/gpu.sh` runs these first."""

from __future__ import annotations

import dataclasses
from unittest import mock

import pytest
import torch

from bench import counting, workloads
from mi_ml_gen.core import kernels, runtime
from mi_ml_gen.data.source import HeldImages
from mi_ml_gen.encoders.training import train_encoder
from mi_ml_gen.mim.training import train_seeds
from mi_ml_gen.navigator.training import train_navigator
from mi_ml_gen.views.augment import POLICIES, Augment
from tests.conftest import StopAt, make_small_generator
from tests.core.test_kernels import kernel_cases
from tests.cuda.test_draws import DRAWS
from tests.encoders.test_training import SETTINGS as ENCODER
from tests.faults import trainers
from tests.mim.test_training import SETTINGS as MIM
from tests.navigator.test_training import SETTINGS as NAVIGATOR


@pytest.fixture(autouse=True)
def full_float32():
    """Torch's convolutions would use TF32."""
    runtime.set_precision("fp32")


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
CUDA = "cuda:0"


@pytest.mark.parametrize("name", [name for name in DRAWS if name not in ("walker", "observation noise", "noise maps")])
def test_draws_equal_the_hosts(name):
    drawn = [DRAWS[name](runtime.stream(0, "x", 0, 0, device), device).cpu() for device in ("cpu", CUDA)]
    torch.testing.assert_close(*drawn, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_views_equal_the_hosts(policy):
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    views = []
    for device in ("cpu", CUDA):
        augment = Augment(policy, 32).to(device)
        views.append(augment(images.to(device), runtime.stream(0, "x", 0, 0, device)).cpu())
    torch.testing.assert_close(*views, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in workloads.GENERATORS if name.startswith("small-")])
def test_images_equal_the_hosts(name):
    torch.manual_seed(0)
    generator = workloads.GENERATORS[name]().freeze()
    z = torch.randn(4, generator.noise_dim, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    here = generator.decode(generator.latents(z), runtime.stream(0, "x", 0, 0))
    generator.to(CUDA).to(memory_format=torch.channels_last)
    there = generator.decode(generator.latents(z.to(CUDA)), runtime.stream(0, "x", 0, 0, CUDA))
    torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_equal_torchs_operators(dtype):
    assert kernels.triton_works()
    for what, function, inputs in kernel_cases(CUDA, dtype):
        found = []
        for by_kernel in (True, False):
            with mock.patch.object(kernels, "usable", kernels.usable if by_kernel else lambda *_, **__: False):
                taken = [one.detach().clone().requires_grad_() for one in inputs]
                made = function(*taken)
                rng = torch.Generator().manual_seed(1)
                direction = torch.randn(made.shape, generator=rng).to(made)
                found.append([made.detach(), *torch.autograd.grad(made, taken, direction)])
        for ours, plain in zip(*found, strict=True):
            size = plain.abs().max().item()
            off = ((ours - plain).abs() > (0.02 if dtype == torch.bfloat16 else 1e-4) * size).float().mean().item()
            # bfloat16 may round to the other side of a bend, where the gradient is another one.
            assert off <= (0.02 if dtype == torch.bfloat16 else 0), f"{what}: {off:.3f} of the values differ"


@pytest.mark.parametrize("name", ["small-bigbigan", "small-stylegan2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pairs_and_their_gradients_equal_those_without_kernels(name, precision):
    torch.manual_seed(0)
    generator = workloads.GENERATORS[name]().freeze().to(CUDA).to(memory_format=torch.channels_last).hold(precision)
    chunks = generator.chunks("1_2")
    anchor = generator.latents(torch.randn(4, generator.noise_dim, device=CUDA))
    found = []
    for by_kernel in (True, False):
        with mock.patch.object(kernels, "usable", kernels.usable if by_kernel else lambda *_, **__: False):
            positive = (anchor + 0.3).requires_grad_()
            with runtime.autocast(torch.device(CUDA), precision):
                pair = generator.decode_pair(anchor, positive, chunks, runtime.stream(0, "x", 0, 0, CUDA))
            (slope,) = torch.autograd.grad(pair.positive.float().square().sum(), positive)
            found.append((pair.anchor.detach(), pair.positive.detach(), slope))
    for ours, plain in zip(*found, strict=True):
        scale = plain.float().abs().max().item()
        tolerance = 0.05 if precision == "bf16" else 1e-3
        torch.testing.assert_close(ours, plain, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("method", ["simclr", "simsiam", "byol"])
def test_cuda_graphs_change_nothing(method, tmp_path, caplog):
    settings = dataclasses.replace(
        ENCODER, encoder=method, device=CUDA, samples_per_epoch=96, max_epochs=1, base_lr=0.01
    )
    losses = []
    for cuda_graphs in (False, True):
        rows = []
        how = dataclasses.replace(settings, cuda_graphs=cuda_graphs)
        generator = make_small_generator().to(CUDA)
        train_encoder(how, generator, path=tmp_path / str(cuda_graphs), progress=False, on_row=rows.append)
        losses.append(torch.tensor([row["loss"] for row in rows]))
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)
    assert "without one" not in caplog.text


def test_noise_that_is_drawn_while_decoding_is_not_recorded(tmp_path, caplog):
    torch.manual_seed(0)
    generator = workloads.GENERATORS["small-stylegan2"]().freeze().to(CUDA).use(["noise_mode=random"])
    settings = dataclasses.replace(ENCODER, device=CUDA, samples_per_epoch=64, max_epochs=1, cuda_graphs=True)
    train_encoder(settings, generator, path=tmp_path / "run", progress=False)
    assert "draws noise while it decodes" in caplog.text


def test_every_trainer(tmp_path):
    """To the end, pictures, tables and states included."""
    with mock.patch.object(trainers, "make_small_generator", lambda: make_small_generator().to(CUDA)):
        for name in ("navigator", "encoder", "probe", "gan", "nvae", "calibration"):
            trainers.TRAINERS[name].train(tmp_path / name / "run", device=CUDA)
    train_seeds(dataclasses.replace(MIM, device=CUDA), [1, 2], tmp_path / "mim", neighbours=False, progress=False)


def test_grey_stored_images(tmp_path):
    grey = HeldImages("grey", torch.randint(256, (32, 16, 16), dtype=torch.uint8), torch.arange(32) % 2, ("a", "b"))
    settings = dataclasses.replace(ENCODER, Tz=None, samples_per_epoch=None, max_epochs=1, device=CUDA)
    train_encoder(settings, source=grey, path=tmp_path / "run", progress=False)


def test_a_run_that_was_begun_on_the_cpu_takes_the_steps_of_a_gpu(monkeypatch, tmp_path):
    settings = dataclasses.replace(NAVIGATOR, num_samples=64, save_freq=8, state_interval_s=0.0)
    with monkeypatch.context() as stopped, pytest.raises(Exception, match="is saved at"):
        StopAt(stopped, 3)
        train_navigator(dataclasses.replace(settings, device="cpu"), make_small_generator(), tmp_path, progress=False)
    with counting.Counted() as counted, counted.step() as counts:
        goes_on = dataclasses.replace(settings, device=CUDA)
        train_navigator(goes_on, make_small_generator().to(CUDA), tmp_path, progress=False)
    assert counts.by_operator["_fused_adam_"] > 0 and counts.by_operator["_foreach_addcdiv_"] == 0


def test_a_fault_of_the_device_is_told_as_one():
    from mi_ml_gen.core import cli

    with pytest.raises(torch.OutOfMemoryError) as raised:
        torch.empty(2**50, dtype=torch.uint8, device=CUDA)
    known = cli.as_known(raised.value)
    assert known is not None and known.exit_code == 4
