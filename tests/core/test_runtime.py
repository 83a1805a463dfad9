from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from mi_ml_gen.core import runtime
from mi_ml_gen.core.counting import Counted
from mi_ml_gen.core.errors import EnvironmentFault, NonFiniteError, UsageError
from mi_ml_gen.core.loop import FiniteGuard
from tests.distributed import run_processes

# --- device and precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA", "", "cpu:", "cuda:0:1"])
def test_malformed_devices(name):
    with pytest.raises(UsageError, match=f"^--device {name}: must be auto, cpu, cuda, cuda:N or mps"):
        runtime.resolve_device(name)


def test_devices_of_this_machine(monkeypatch):
    assert runtime.resolve_device("cpu") == torch.device("cpu")
    assert runtime.resolve_device(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert runtime.resolve_device(None) == runtime.resolve_device("auto") == torch.device("cpu")
    for name in ("cuda", "cuda:1"):
        with pytest.raises(EnvironmentFault, match=f"^--device {name}: no CUDA device is visible"):
            runtime.resolve_device(name)


def test_cuda_devices_go_by_local_rank(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert runtime.resolve_device("auto") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert runtime.resolve_device("cuda") == torch.device("cuda", 1)
    assert runtime.resolve_device("cuda:0") == torch.device("cuda", 0)
    assert runtime.resolve_device("cuda:1") == torch.device("cuda", 1)
    # Events, names and memory are those of the current card, so it becomes the current one.
    assert current == [torch.device("cuda", index) for index in (0, 1, 0, 1)]
    with pytest.raises(EnvironmentFault, match=r"^--device cuda:2: no such CUDA device, 2 visible"):
        runtime.resolve_device("cuda:2")
    assert len(current) == 4


def test_a_numbered_card_is_refused_under_torchrun(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    message = "^--device cuda:1: each process of torchrun has a card of its own; write --device cuda$"
    with pytest.raises(UsageError, match=message):
        runtime.resolve_device("cuda:1")
    assert runtime.resolve_device("cuda") == torch.device("cuda", 1)
    assert runtime.resolve_device(torch.device("cuda", 1)) == torch.device("cuda", 1)  # resolved before
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert runtime.resolve_device("cuda:1") == torch.device("cuda", 1)


def test_precision():
    product = torch.ones(2, 2) @ torch.ones(2, 2)
    with runtime.autocast(torch.device("cpu"), "bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with runtime.autocast(torch.device("cpu"), "fp32"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == product.dtype == torch.float32
    for call in (runtime.set_precision, lambda name: runtime.autocast(torch.device("cpu"), name)):
        with pytest.raises(UsageError, match=r"^--precision fp8: must be one of fp32, tf32, bf16"):
            call("fp8")


def test_set_precision_allows_and_forbids_tf32():
    for precision in ("tf32", "bf16", "tf32", "fp32"):
        runtime.set_precision(precision)
        allowed = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
        assert allowed == (precision == "tf32",) * 2


# --- random streams -----------------------------------------------------------------------------------------


def test_a_stream_is_a_function_of_its_arguments():
    arguments = (1, "z", 2, 3)
    first = torch.randn(5, generator=runtime.stream(*arguments))
    assert torch.equal(first, torch.randn(5, generator=runtime.stream(*arguments)))
    for other in ((2, "z", 2, 3), (1, "y", 2, 3), (1, "z", 3, 3), (1, "z", 2, 4), (1, "z", 3, 2)):
        assert not torch.equal(first, torch.randn(5, generator=runtime.stream(*other)))


def test_a_stream_does_not_touch_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    torch.rand(3, generator=runtime.stream(0, "z", 0, 0))
    assert torch.equal(before, torch.get_rng_state())


def test_streams_never_meet():
    draws = np.empty(8_000, dtype=np.int64)
    for i in range(len(draws)):
        generator = runtime.stream(0, "z", i // 8, i % 8)
        draws[i] = torch.empty((), dtype=torch.int64).random_(generator=generator)
    assert len(np.unique(draws)) == len(draws)


def test_a_stream_holds_more_than_32_bits():
    """The generator's state is the one that SeedSequence asks for, word by word."""
    sequence = np.random.SeedSequence((5, 0x62D277AF, 6, 7))  # CRC-32 of "z"
    words = sequence.generate_state(624, np.uint32)
    words[0] = 0x80000000
    twin = np.random.MT19937()
    twin.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    drawn = torch.empty(700, dtype=torch.int64).random_(0, 2**20, generator=runtime.stream(5, "z", 6, 7))
    assert drawn.tolist() == [raw % 2**20 for raw in twin.random_raw(700).tolist()]


def test_first_draws_of_streams_are_uniform():
    first = torch.stack([torch.rand(3, generator=runtime.stream(0, "z", step, 0)) for step in range(4000)])
    assert (first.mean(dim=0) - 0.5).abs().max() < 5 * (1 / 12 / 4000) ** 0.5
    assert (torch.corrcoef(first.T) - torch.eye(3)).abs().max() < 5 / 4000**0.5
    assert abs(float(torch.corrcoef(torch.stack([first[1:, 0], first[:-1, 0]]))[0, 1])) < 5 / 4000**0.5


# --- processes ----------------------------------------------------------------------------------------------


def test_alone_everything_is_a_no_op():
    runtime.setup_distributed(torch.device("cpu"))
    assert (runtime.rank(), runtime.world_size(), runtime.is_main()) == (0, 1, True)
    runtime.barrier()
    values = torch.ones(2, requires_grad=True)
    assert runtime.gather(values) is values
    assert torch.equal(runtime.all_reduce_mean(values), torch.ones(2))
    assert [float(mean) for mean in runtime.all_reduce_mean([values[0], 2 * values[1]])] == [1.0, 2.0]
    assert runtime.broadcast_flag(True) is True and runtime.broadcast_flag(False) is False
    assert runtime.on_main(lambda: "result") == "result"
    runtime.average_gradients(nn.Linear(2, 2))
    runtime.broadcast_module(nn.Linear(2, 2))
    runtime.teardown()


def batch_loss(features: torch.Tensor) -> torch.Tensor:
    """A loss in which every sample meets every other, as in InfoNCE."""
    return torch.logsumexp(features @ features.T / 0.3, dim=1).mean() + features.std()


def model_and_batch() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    return model, torch.randn(12, 5, dtype=torch.float64)


def train(shared_loss: bool) -> dict[str, torch.Tensor]:
    """Twenty steps of this rank, on its share of the batch; the parameters at the end."""
    model, batch = model_and_batch()
    n = len(batch) // runtime.world_size()
    share = batch[runtime.rank() * n : (runtime.rank() + 1) * n]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        features = model(share)
        loss = batch_loss(runtime.gather(features)) if shared_loss else features.square().mean()
        loss.backward()
        runtime.average_gradients(model)
        optimizer.step()
    return {name: value.detach() for name, value in model.named_parameters()}


def collectives() -> dict[str, object]:
    """What each rank sees of everything that travels between ranks."""
    rank = runtime.rank()
    seen: dict[str, object] = {"rank": rank, "size": runtime.world_size(), "main": runtime.is_main()}
    mixed = [torch.tensor([1.0, 2.0]) * rank, torch.tensor(rank, dtype=torch.float64), torch.ones(2, 2)]
    seen["means"] = runtime.all_reduce_mean(mixed)
    seen["untouched"] = mixed[0]
    seen["any"] = [runtime.broadcast_flag(rank == 1), runtime.broadcast_flag(False)]
    seen["on_main"] = runtime.on_main(lambda: [rank, "text"])
    try:
        runtime.on_main(lambda: runtime.resolve_device("abacus"))
    except UsageError as error:
        seen["error"] = str(error)

    torch.manual_seed(rank)
    module = nn.BatchNorm1d(3)
    nn.init.normal_(module.weight)
    module.running_mean.fill_(rank + 1.0)
    module.weight.data = module.weight.data.expand(2, 3).T[:, 0]  # not contiguous
    runtime.broadcast_module(module)
    seen["module"] = {name: value.clone() for name, value in module.state_dict().items()}

    frozen = nn.Linear(2, 1)
    frozen.bias.requires_grad_(False)
    (frozen(torch.full((1, 2), rank + 1.0)).sum()).backward()
    runtime.average_gradients([frozen.weight, frozen.bias])
    seen["gradient"] = frozen.weight.grad

    features = torch.full((2, 3), float(rank), requires_grad=True)
    gathered = runtime.gather(features)
    (gathered * torch.arange(4.0)[:, None] * (rank + 1)).sum().backward()  # ranks whose losses differ
    seen["gathered"], seen["of gathered"] = gathered.detach(), features.grad

    guard = FiniteGuard()
    guard.watch("loss", torch.tensor(1.0))
    guard.watch("gradient", torch.tensor([1.0, float("nan") if rank == 1 else 2.0]))
    try:
        guard.check(7)
    except NonFiniteError as error:
        seen["guard"] = str(error)
    runtime.barrier()
    return seen


def all_of_it() -> dict[str, object]:
    return {"shared": train(True), "own": train(False), "collectives": collectives()}


@pytest.fixture(scope="module")
def ranks() -> list[dict]:
    return run_processes(all_of_it, 2)


@pytest.mark.parametrize(("kind", "shared_loss"), [("shared", True), ("own", False)])
def test_two_processes_train_as_one(ranks, kind, shared_loss):
    alone = train(shared_loss)
    start = dict(model_and_batch()[0].named_parameters())
    for name, value in alone.items():
        assert not torch.allclose(value, start[name], atol=1e-3)
        assert (ranks[0][kind][name] - value).abs().max() < 1e-12
        assert torch.equal(ranks[0][kind][name], ranks[1][kind][name])


def test_collectives(ranks):
    first, second = ranks[0]["collectives"], ranks[1]["collectives"]
    assert [seen["rank"] for seen in (first, second)] == [0, 1] and first["size"] == second["size"] == 2
    assert first["main"] and not second["main"]
    for seen in (first, second):
        assert [mean.tolist() for mean in seen["means"]] == [[0.5, 1.0], 0.5, [[1.0, 1.0], [1.0, 1.0]]]
        assert [mean.dtype for mean in seen["means"]] == [torch.float32, torch.float64, torch.float32]
        assert seen["any"] == [True, False]
        assert seen["on_main"] == [0, "text"]
        assert seen["error"].startswith("--device abacus:")
        assert seen["gradient"].tolist() == [[1.5, 1.5]]
        assert seen["gathered"].tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2
        assert seen["guard"].startswith("gradient became nan or infinite at or before step 7; there is no")
        for name, value in seen["module"].items():
            assert torch.equal(value, first["module"][name])
    assert second["untouched"].tolist() == [1.0, 2.0]
    assert second["module"]["running_mean"].tolist() == [1.0, 1.0, 1.0]
    # The losses of rank 0 and 1 weigh row i by i and 2 i: backward sums both, for the rank's own rows.
    assert first["of gathered"][:, 0].tolist() == [0.0, 3.0]
    assert second["of gathered"][:, 0].tolist() == [6.0, 9.0]


TORCHRUN_SCRIPT = """
import sys
import torch
from mi_ml_gen.core import runtime
runtime.setup_distributed(torch.device("cpu"))
mean = float(runtime.all_reduce_mean(torch.tensor(float(runtime.rank()))))
runtime.barrier()
open(f"{sys.argv[1]}/rank_{runtime.rank()}", "w").write(str(mean))
runtime.teardown()
assert runtime.world_size() == 1
"""


def test_under_torchrun(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(TORCHRUN_SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(script), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"rank_{rank}").read_text() for rank in (0, 1)] == ["0.5", "0.5"]


def test_others_that_never_come(monkeypatch):
    environment = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EnvironmentFault, match=r"^cannot join the other processes: "):
        runtime.setup_distributed(torch.device("cpu"), timeout_s=0.5)


# --- non-finite values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_guard_names_the_first_bad_quantity(value):
    guard = FiniteGuard()
    tensors = [torch.ones(3, 4), torch.zeros(5), torch.tensor(-1.0)]
    guard.watch("loss", torch.tensor(3e38))
    guard.watch("gradients", *tensors)
    guard.watch("later", torch.tensor(float("nan")))
    tensors[1][2] = value
    guard.watch("gradients", *tensors)
    tensors[1][2] = 0.0
    guard.watch("gradients", *tensors)  # a good step does not wash a bad one away
    message = "^gradients became nan or infinite at or before step 9; the last good checkpoint is a/b.pt$"
    with pytest.raises(NonFiniteError, match=message):
        guard.check(9, last_good="a/b.pt")


def test_guard_remembers_each_step_and_each_rows_type():
    """One value of many steps, of several types and under several names, is enough; the order is that of watching."""
    for at in range(5):
        guard = FiniteGuard()
        for step in range(5):
            guard.watch("fine", torch.tensor(1.0), torch.tensor(float(step), dtype=torch.float64))
            guard.watch("half", torch.tensor(float("inf") if step == at else -2.0, dtype=torch.bfloat16))
            if step % 2:
                guard.watch("sometimes", torch.tensor(float("nan") if at == 4 else 0.0))
            guard.gather()
        assert guard.first_bad() == "half"
        with pytest.raises(NonFiniteError, match="^half became"):
            guard.check(5)


def test_guard_costs_two_kernels_a_step():
    guard = FiniteGuard()
    losses = [torch.tensor(float(i)) for i in range(3)]

    def step():
        guard.watch("loss", *losses[:2])
        guard.watch("delta", losses[2])
        guard.gather()

    step()
    with Counted("cpu") as counted, counted.step() as counts:
        step()
    assert counts.launches == 2, dict(counts.by_operator)
    guard.check(2)


def test_guard_gathers_before_it_holds_much_and_refuses_changed_values():
    guard = FiniteGuard()
    for _ in range(1000):
        guard.watch("loss", torch.tensor(1.0))
    assert len(guard._waiting) < guard.MOST_WAITING
    total = torch.tensor(float("nan"))
    guard.watch("total", total)
    total.zero_()
    with pytest.raises(RuntimeError, match="^total was changed in place after it was watched"):
        guard.gather()


def test_guard_lets_finite_values_pass():
    guard = FiniteGuard()
    guard.check(0)
    guard.watch("large", torch.full((100,), 3.4e38))
    guard.watch("half", torch.tensor([1.0], dtype=torch.bfloat16), torch.ones(2, dtype=torch.float64))
    guard.check(1)
