"""SimCLR, SimSiam and BYOL against the reference's numbers, slow twins and identities."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import CheckpointError, UsageError
from mi_ml_gen.core.schedules import LearningRate, peak_rate, warmup_steps
from mi_ml_gen.encoders.base import Architecture, accumulate_gradients
from mi_ml_gen.encoders.byol import BYOL, byol_loss
from mi_ml_gen.encoders.loading import backbone_of, layout_of
from mi_ml_gen.encoders.simclr import SimCLR
from mi_ml_gen.encoders.simsiam import SimSiam, simsiam_loss
from tests.conftest import GOLDEN, load_helper
from tests.distributed import run_processes

SMALL = Architecture(depth=18, width=4, small_images=True, dim=12, pred=6)
METHODS = (SimCLR, SimSiam, BYOL)


def make(method, seed: int = 0):
    """A small encoder in float64 whose norms use fixed statistics, so that a batch may be cut anywhere."""
    torch.manual_seed(seed)
    encoder = method(SMALL).double()
    for name, buffer in encoder.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    for name, parameter in encoder.named_parameters():
        if name.endswith("bn2.weight"):  # SimSiam's blocks start as shortcuts, which hides their convolutions
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return encoder.eval()


def views(n: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    first = torch.randn(n, 3, 12, 12, generator=rng, dtype=torch.float64)
    return first, first + 0.5 * torch.randn(first.shape, generator=rng, dtype=torch.float64)


def gradients(encoder) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


# --- losses


@pytest.fixture(scope="module")
def golden_losses():
    with np.load(GOLDEN / "encoder_losses.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.mark.parametrize("case", ["simsiam/B6_D32", "simsiam/B1_D16", "byol/B6_D32", "byol/B1_D16"])
def test_losses_and_gradients_equal_the_reference(golden_losses, case):
    is_byol = case.startswith("byol")
    names = ("pred1", "pred2", "target_of_x1", "target_of_x2") if is_byol else ("p1", "p2", "z1", "z2")
    inputs = [torch.from_numpy(golden_losses[f"{case}/{name}"]).requires_grad_() for name in names]
    loss = (byol_loss if is_byol else simsiam_loss)(*inputs)
    np.testing.assert_allclose(loss.item(), golden_losses[f"{case}/loss"], rtol=1e-5)
    loss.backward()
    for name, tensor in zip(names[:2], inputs[:2], strict=True):
        np.testing.assert_allclose(tensor.grad, golden_losses[f"{case}/grad_{name}"], atol=2e-6)
    if not is_byol:
        assert inputs[2].grad is None and inputs[3].grad is None  # the gradient stops at the projections


def test_ntxent_equals_its_slow_twin():
    """Chen et al. 2020, equation 1, written out."""
    points = torch.nn.functional.normalize(torch.randn(5, 2, 7, dtype=torch.float64), dim=2)
    flat = [points[i, j] for j in range(2) for i in range(5)]
    total = 0.0
    for i, query in enumerate(flat):
        scores = [math.exp(float(query @ other) / 0.2) for other in flat]
        total -= math.log(scores[(i + 5) % 10] / (sum(scores) - scores[i]))
    assert SimCLR(SMALL, temperature=0.2).loss((points,)).item() == pytest.approx(total / 10, rel=1e-9)
    scaled = SimCLR(SMALL, temperature=0.2, base_temperature=0.1).loss((points,))
    assert scaled.item() == pytest.approx(2 * total / 10, rel=1e-9)


# --- learning rates


def test_learning_rates_equal_the_reference(golden_losses):
    cases = [case for case in json.loads(str(golden_losses["meta_json"]))["lr"] if case["model"] in ("SimSiam", "Byol")]
    assert len(cases) == 7
    for case in cases:
        n_epochs, n_batches = case["max_epochs"], case["batches_per_epoch"]
        warm_up = warmup_steps(n_epochs, n_batches) if case["warmup"] else 0
        rate = LearningRate(case["lr"], n_epochs * n_batches, warm_up, case["decay"])
        mine = np.array([rate.at(step) for step in range(n_epochs * n_batches)])
        if case["key"] is None:  # fewer than ten epochs with a warm-up: the reference fails
            assert mine[0] == 0 and mine.max() == pytest.approx(case["lr"], rel=1e-9) and mine.argmax() == 2
            continue
        wanted = golden_losses[case["key"]]
        np.testing.assert_allclose(mine, wanted[:, 0], rtol=1e-9, atol=1e-15)
        if case["model"] == "SimSiam":  # the predictor's
            np.testing.assert_allclose(wanted[:, 1], case["lr"], rtol=1e-9)


@pytest.mark.parametrize("n_epochs", [1, 2, 9])
def test_few_epochs_with_warm_up(n_epochs):
    rate = LearningRate(0.4, n_epochs * 20, warmup_steps(n_epochs, 20))
    rates = [rate.at(step) for step in range(n_epochs * 20)]
    assert rates[0] == 0 and max(rates) == 0.4 and rates.index(0.4) == 2 * n_epochs
    assert rates[-1] < 0.06


def test_rates_of_no_use_are_refused():
    assert peak_rate(0.05, 1024) == pytest.approx(0.2)
    with pytest.raises(UsageError, match="warm-up"):
        LearningRate(0.1, 5, 6)


# --- the published networks


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "encoders.npz") as file:
        return {key: file[key] for key in file.files}


def published(name: str, prefix: str) -> dict[str, torch.Tensor]:
    layout = json.loads((GOLDEN / f"{name}.json").read_text())["state_dict"]
    arrays = load_helper("fill").fill_state_dict(layout, prefix)
    return {key: torch.from_numpy(np.asarray(value)) for key, value in arrays.items()}


def golden_inputs(golden) -> list[torch.Tensor]:
    n, _, size, _ = golden["input_shape"]
    fill = load_helper("fill").fill
    blocks = [fill(str(golden[name]), (n, 3, 4, 4)) for name in ("x1_name", "x2_name")]
    return [torch.from_numpy(block).repeat_interleave(size // 4, 2).repeat_interleave(size // 4, 3) for block in blocks]


def close(found, wanted, tolerance):
    np.testing.assert_allclose(found.detach().numpy(), wanted, atol=tolerance, rtol=0)


def test_published_simsiam(golden):
    state = published("encoder_simsiam_ckpt", str(golden["prefix_simsiam"]))
    encoder = SimSiam.from_published(state).eval()
    assert encoder.architecture == Architecture(50, 64, False, 2048, 512)
    first, second = golden_inputs(golden)
    with torch.no_grad():
        outputs = encoder(first, second)
        for name, part in zip(("p1", "p2", "z1", "z2"), outputs.parts, strict=True):
            close(part[:2], golden[f"simsiam/eval/{name}"], 1e-5)
        close(encoder.loss(outputs.parts), golden["simsiam/eval/loss"], 1e-5)
        outputs = encoder.train()(first, second)
    close(outputs.parts[2][:2], golden["simsiam/train/z1"], 5e-3)
    close(encoder.loss(outputs.parts), golden["simsiam/train/loss"], 1e-4)
    close(encoder.encoder.bn1.running_mean, golden["simsiam/after_train/encoder.bn1.running_mean"], 1e-5)
    close(encoder.projector[7].running_var, golden["simsiam/after_train/encoder.fc.7.running_var"], 1e-4)

    groups = encoder.parameter_groups()  # 167 in the reference, whose optimiser holds the frozen bias, too
    assert [len(group["params"]) for group in groups] == [166, 5] and [g["fix_lr"] for g in groups] == [False, True]
    assert len(backbone_of(state, layout_of(state))) == 318
    state["encoder.layer1.0.bn1.weight"] = state["encoder.layer1.0.bn1.weight"][:5]
    with pytest.raises(CheckpointError, match="layer1.0.bn1.weight"):
        SimSiam.from_published(state)


def test_published_byol(golden):
    state = published("encoder_byol_ckpt", str(golden["prefix_byol"]))
    encoder = BYOL.from_published(state).eval()
    first, second = golden_inputs(golden)
    target = "byol/after_momentum/target_network."
    with torch.no_grad():
        outputs = encoder(first, second)
        close(encoder.online(first)[:2], golden["byol/eval/online_x1"], 1e-5)
        close(outputs.parts[0][:2], golden["byol/eval/pred_x1"], 1e-5)
        close(outputs.parts[2][:2], golden["byol/eval/target_x1"], 1e-5)
        close(encoder.loss(outputs.parts), golden["byol/eval/loss"], 1e-4)
        encoder.after_step()
        close(encoder.target.encoder.conv1.weight, golden[f"{target}encoder.0.weight"], 1e-6)
        close(encoder.target.encoder.bn1.bias, golden[f"{target}encoder.1.bias"], 1e-6)
        close(encoder.target.projector[3].bias, golden[f"{target}projection.net.3.bias"], 1e-6)
        close(encoder.target.encoder.bn1.running_mean, golden[f"{target}encoder.1.running_mean"], 0)
    [group] = encoder.parameter_groups()
    assert len(group["params"]) == 169
    assert len(backbone_of(state, layout_of(state))) == 318


# --- what a step does


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_reaches_what_is_trained_and_nothing_else(method):
    encoder = make(method)
    accumulate_gradients(encoder, *views(), 1, nullcontext())
    trained = {id(p) for group in encoder.parameter_groups() for p in group["params"]}
    for name, parameter in encoder.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert reached == (id(parameter) in trained), name


def test_the_target_starts_equal_and_follows_slowly():
    encoder = BYOL(SMALL, momentum=0.9)
    pairs = list(zip(encoder.target.parameters(), encoder.online.parameters(), strict=True))
    assert pairs and all(torch.equal(target, online) for target, online in pairs)
    before = [target.clone() for target, _ in pairs]
    with torch.no_grad():
        for _, online in pairs:
            online += 1
    encoder.after_step()
    for old, (target, online) in zip(before, pairs, strict=True):
        torch.testing.assert_close(target, 0.9 * old + 0.1 * online.detach())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_parts", [2, 4])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(method, n_parts):
    whole, parts = make(method), make(method)
    wanted = accumulate_gradients(whole, *views(), 1, nullcontext())
    found = accumulate_gradients(parts, *views(), n_parts, nullcontext())
    torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.features, wanted.features, rtol=1e-12, atol=1e-12)
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(gradients(parts)[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_parts_count_once_in_the_running_statistics():
    """The first of SimCLR's two passes leaves no trace."""
    encoder = SimCLR(SMALL).train()
    first, second = (half.float() for half in views())
    accumulate_gradients(encoder, first, second, 4, nullcontext())
    assert int(encoder.encoder.bn1.num_batches_tracked) == 4
    twin = SimCLR(SMALL).train()
    twin.load_state_dict(SimCLR(SMALL).state_dict() | {k: v for k, v in encoder.state_dict().items() if "conv" in k})
    for one, other in zip(first.chunk(4), second.chunk(4), strict=True):
        twin.encoder(torch.cat([one, other]))
    torch.testing.assert_close(encoder.encoder.bn1.running_mean, twin.encoder.bn1.running_mean)


# --- two processes


def _step(name: str, n: int, n_parts: int) -> dict:
    encoder = make(next(method for method in METHODS if method.method == name))
    first, second = views(n)
    mine = slice(runtime.rank() * n // runtime.world_size(), (runtime.rank() + 1) * n // runtime.world_size())
    loss, _ = accumulate_gradients(encoder, first[mine], second[mine], n_parts, nullcontext())
    runtime.average_gradients(encoder)
    return {"loss": runtime.all_reduce_mean(loss)} | gradients(encoder)


def _all_steps(n: int) -> dict:
    return {f"{m.method} {parts}": _step(m.method, n, parts) for m in METHODS for parts in (1, 2)}


def test_two_processes_equal_one():
    """Loss and gradients of every method; SimCLR with the negatives of both."""
    alone = {method.method: _step(method.method, 8, 1) for method in METHODS}
    for together in run_processes(_all_steps, 2, 8):
        assert len(together) == 6
        for key, found in together.items():
            wanted = alone[key.split()[0]]
            assert found.keys() == wanted.keys()
            for name in wanted:
                torch.testing.assert_close(found[name], wanted[name], rtol=1e-10, atol=1e-12, msg=f"{key} {name}")
