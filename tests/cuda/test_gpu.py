"""What only a GPU can show; left out where there is none. `bench/gpu.sh` runs these first."""

from __future__ import annotations

import dataclasses
from unittest import mock

import pytest
import torch

from bench import workloads
from mi_ml_gen.core import counting, kernels, runs, runtime
from mi_ml_gen.data.source import HeldImages
from mi_ml_gen.encoders.training import train_encoder
from mi_ml_gen.mim.training import train_seeds
from mi_ml_gen.navigator.training import train_navigator
from mi_ml_gen.views.augment import POLICIES, Augment
from tests.conftest import StopAt, make_small_generator
from tests.core.test_kernels import kernel_cases, results, view_cases, without_gradients
from tests.cuda.test_draws import DRAWS
from tests.encoders.test_training import SETTINGS as ENCODER
from tests.faults import trainers
from tests.mim.test_training import SETTINGS as MIM
from tests.mim.test_training import TinyData
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


def no_kernels():
    return mock.patch.object(kernels, "usable", lambda *_, **__: False)


def assert_as_good(ours, plain, exact, what):
    """Results in bfloat16 may differ, as each rounds elsewhere; ours must not be further off than torch's."""
    for one, other, truth in zip(ours, plain, exact, strict=True):
        errors = [(each.float() - truth.float()).abs().mean().item() for each in (one, other)]
        assert errors[0] <= 1.5 * errors[1] + 1e-3 * truth.float().abs().mean().item(), f"{what}: {errors}"


def test_kernels_equal_torchs_operators():
    assert kernels.triton_works()
    for what, function, inputs in kernel_cases(CUDA):
        ours = results(function, inputs)
        with no_kernels():
            plain = results(function, inputs)
        for one, other in zip(ours, plain, strict=True):
            scale = other.abs().max().item()
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * scale, msg=lambda t, what=what: f"{what}: {t}")


def test_views_by_kernels_equal_those_by_torchs_operators():
    for what, view, images in view_cases(CUDA):
        ours = [*without_gradients(view, images), *results(view, images)]
        with no_kernels():
            plain = [*without_gradients(view, images), *results(view, images)]
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4, msg=lambda text, what=what: f"{what}: {text}")


def test_kernels_in_bfloat16_are_as_exact_as_torchs_operators():
    for what, function, inputs in kernel_cases(CUDA, torch.bfloat16):
        ours = results(function, inputs)
        with no_kernels():
            plain, exact = results(function, inputs), results(function, [one.float() for one in inputs])
        assert_as_good(ours, plain, exact, what)


@pytest.mark.parametrize("name", ["small-bigbigan", "small-stylegan2"])
def test_pairs_and_their_gradients_equal_those_without_kernels(name):
    torch.manual_seed(0)
    generator = workloads.GENERATORS[name]().freeze().to(CUDA).to(memory_format=torch.channels_last)
    chunks = generator.chunks("1_2")
    anchor = generator.latents(torch.randn(64, generator.noise_dim, device=CUDA))

    def pair(precision):
        positive = (anchor + 0.3).requires_grad_()
        generator.hold(precision)
        with runtime.autocast(torch.device(CUDA), precision):
            made = generator.decode_pair(anchor, positive, chunks, runtime.stream(0, "x", 0, 0, CUDA))
        (slope,) = torch.autograd.grad(made.positive.float().square().sum(), positive)
        return made.anchor.detach(), made.positive.detach(), slope

    ours, ours_in_bf16 = pair("fp32"), pair("bf16")
    with no_kernels():
        plain, plain_in_bf16 = pair("fp32"), pair("bf16")
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3 * other.abs().max().item())
    assert_as_good(ours_in_bf16, plain_in_bf16, plain, name)


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


@pytest.mark.parametrize("name", ["small-bigbigan", "small-stylegan2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_graphs_change_nothing_in_the_navigator(name, precision, tmp_path, caplog):
    found = []
    for cuda_graphs in (False, True):
        torch.manual_seed(0)
        generator = workloads.GENERATORS[name]().freeze().to(CUDA).to(memory_format=torch.channels_last)
        settings = dataclasses.replace(
            NAVIGATOR, device=CUDA, num_samples=512, save_freq=512, lr_walk=1e-4, lr_MI=1e-4, cuda_graphs=cuda_graphs,
            precision=precision,
        )  # fmt: skip
        path = tmp_path / str(cuda_graphs)
        train_navigator(settings, generator, path, progress=False)
        found.append([[row["loss"], row["delta"]] for row in runs.read_metrics(path)])
    rate = 1e-3 if precision == "fp32" else 2e-2
    torch.testing.assert_close(*map(torch.tensor, found), rtol=rate, atol=rate)
    assert len(found[0]) == 4 and "recorded" not in caplog.text


def test_noise_that_is_drawn_while_decoding_is_not_recorded(tmp_path, caplog):
    torch.manual_seed(0)
    generator = workloads.GENERATORS["small-stylegan2"]().freeze().to(CUDA).use(["noise_mode=random"])
    settings = dataclasses.replace(ENCODER, device=CUDA, samples_per_epoch=64, max_epochs=1, cuda_graphs=True)
    train_encoder(settings, generator, path=tmp_path / "run", progress=False)
    assert "draws noise while it decodes" in caplog.text


def test_every_trainer(tmp_path):
    """To the end, pictures, tables and states included."""
    for name in ("navigator", "several", "encoder", "probe", "mim image", "gan", "nvae", "diffusion", "calibration"):
        trainers.TRAINERS[name].train(tmp_path / name / "run", device=CUDA)
    toy = dataclasses.replace(MIM, device=CUDA)
    train_seeds(toy, [1, 2], tmp_path / "mim", TinyData(), neighbours=False, progress=False)


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
