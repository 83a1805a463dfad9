"""CUDA graphs on the CPU: operations are noted as they are recorded, and replayed on the same memory."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack, contextmanager

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mi_ml_gen.core import graphs
from mi_ml_gen.core.errors import EnvironmentFault, UsageError
from mi_ml_gen.generators.stylegan2.config import StyleGAN2Config
from mi_ml_gen.generators.stylegan2.generator import StyleGAN2
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.navigator.training import train_navigator
from tests.conftest import make_small_generator
from tests.navigator.test_training import SETTINGS, rows_of


@contextmanager
def as_before(tensors):
    """What is written into these is unseen by autograd. (Before torch 2.7, its context takes one tensor alone.)"""
    with ExitStack() as stack:
        for tensor in tensors:
            stack.enter_context(torch.autograd._unsafe_preserve_version_counter(tensor))
        yield


class Noted(TorchDispatchMode):
    """Notes operations with their tensors; what they change that was there before is set back at the end."""

    def __init__(self):
        super().__init__()
        self.operations = []
        self._made = set()
        self._before = {}

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        named = named or {}
        if function in (torch.ops.aten._local_scalar_dense.default,):
            raise RuntimeError("operation not permitted when stream is capturing")
        for at, argument in zip(function._schema.arguments, arguments, strict=False):
            is_written = at.alias_info is not None and at.alias_info.is_write
            if is_written or at.name in ("running_mean", "running_var"):  # which batch norms change without saying so
                for tensor in tree_flatten(argument)[0]:
                    if tensor.untyped_storage()._cdata not in self._made:
                        self._before.setdefault((tensor.data_ptr(), tensor.shape), (tensor, tensor.clone()))
        results = function(*arguments, **named)
        given = {t.untyped_storage()._cdata for t in tree_flatten((arguments, named))[0] if isinstance(t, torch.Tensor)}
        new = [t for t in tree_flatten(results)[0] if isinstance(t, torch.Tensor)]
        fresh = [t.untyped_storage()._cdata not in given for t in new]
        self._made |= {t.untyped_storage()._cdata for t, is_fresh in zip(new, fresh, strict=True) if is_fresh}
        self.operations.append((function, arguments, named, new, fresh))
        return results

    @torch.no_grad()
    def set_back(self):
        with as_before(tensor for tensor, _ in self._before.values()):
            for tensor, before in self._before.values():
                tensor.copy_(before)


class Graph:
    def __init__(self):
        self.operations = []

    def pool(self):
        return None

    @torch.no_grad()
    def replay(self):
        """On the same memory, and unseen by autograd."""
        every = tree_flatten([operation[1:4] for operation in self.operations])[0]
        with as_before({id(one): one for one in every if isinstance(one, torch.Tensor)}.values()):
            self._replay()

    def _replay(self):
        for function, arguments, named, noted, fresh in self.operations:
            results = [t for t in tree_flatten(function(*arguments, **named))[0] if isinstance(t, torch.Tensor)]
            for before, now, is_fresh in zip(noted, results, fresh, strict=True):
                if is_fresh:
                    before.detach().copy_(now)


@pytest.fixture
def recording(monkeypatch):
    """Graphs that work on the CPU."""
    made = []

    @contextmanager
    def graph_of(graph, pool=None, capture_error_mode=None):
        with Noted() as noted:
            yield
        noted.set_back()
        graph.operations = noted.operations
        made.append(graph)

    monkeypatch.setattr(graphs, "DEVICE_TYPE", "cpu")
    monkeypatch.setattr(graphs, "N_EAGER", 0)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph_of)
    return made


def networks():
    torch.manual_seed(0)
    walker = nn.Linear(4, 4)
    critic = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    return walker, critic, [torch.optim.SGD(one.parameters(), lr=0.1) for one in (walker, critic)]


def test_two_parts_of_a_step_replay_what_a_step_does(recording):
    """The second goes back through a graph that the first has left, by weights changed between them."""

    def losses(is_recorded):
        walker, critic, optimizers = networks()
        left = []

        def first(x):
            moved = walker(x)
            left.append(moved)
            loss = critic(moved.detach()).square().mean()
            loss.backward()
            return loss.detach()

        def second():
            loss = critic(left.pop()).mean()
            return [loss.detach(), *torch.autograd.grad(loss, list(walker.parameters()))]

        run, after = first, second
        if is_recorded:
            run = graphs.Recorded(first, "it", critic.parameters(), then=second)
            after = run.after
        found = []
        for step in range(5):
            x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
            optimizers[1].zero_grad(set_to_none=True)
            loss = run(x)
            optimizers[1].step()
            minus, *gradients = after()
            for parameter, gradient in zip(walker.parameters(), gradients, strict=True):
                parameter.grad = gradient
            optimizers[0].step()
            found.append(torch.stack([loss, minus]))
        assert not is_recorded or run.is_recorded
        return torch.stack(found), critic[1].running_mean, critic[1].num_batches_tracked

    torch.testing.assert_close(losses(True), losses(False))
    assert len(recording) == 2


def test_results_stay_when_the_next_call_replays(recording):
    double = graphs.Recorded(lambda x: 2 * x, "it")
    first, second = double(torch.ones(3)), double(torch.zeros(3))
    assert first.tolist() == [2, 2, 2] and second.tolist() == [0, 0, 0] and double.is_recorded


def test_a_second_part_that_cannot_be_recorded_is_an_error(recording):
    step = graphs.Recorded(lambda x: 2 * x, "a step", then=lambda: torch.ones(2).sum().item())
    step(torch.ones(2))
    with pytest.raises(EnvironmentFault, match="a step cannot be recorded to its end; leave --cuda_graphs out"):
        step.after()


def test_other_shapes_run_as_ever(recording):
    calls = []
    double = graphs.Recorded(lambda x: (calls.append(len(x)), 2 * x)[1], "it")
    assert double(torch.ones(3)).tolist() == [2, 2, 2]
    assert double(torch.ones(2)).tolist() == [2, 2] and double(torch.ones(3)).tolist() == [2, 2, 2]
    assert calls == [3, 2]


def test_what_cannot_be_recorded_runs_and_says_so_once(recording, caplog):
    read = graphs.Recorded(lambda x: x * x.sum().item(), "a sum")
    assert read(torch.ones(2)).tolist() == [2, 2] and read(torch.ones(3)).tolist() == [3, 3, 3]
    assert caplog.text.count("a sum cannot be recorded as a CUDA graph and runs without one") == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_navigators_steps_are_the_same_with_graphs(recording, precision, tmp_path):
    changes = dict(num_samples=64, precision=precision)
    for name, cuda_graphs in (("plain", False), ("recorded", True)):
        settings = dataclasses.replace(SETTINGS, cuda_graphs=cuda_graphs, **changes)
        train_navigator(settings, make_small_generator(), tmp_path / name, progress=False)
    assert len(recording) == 2
    plain, recorded = rows_of(tmp_path / "plain"), rows_of(tmp_path / "recorded")
    assert len(plain) == len(recorded) >= 2
    for one, other in zip(plain, recorded, strict=True):
        assert other == pytest.approx(one, rel=1e-5)
    assert plain[0]["loss"] != plain[1]["loss"]


def test_noise_that_is_drawn_while_decoding_is_not_recorded(recording, tmp_path, caplog):
    torch.manual_seed(0)
    sizes = StyleGAN2Config(z_dim=8, w_dim=8, img_resolution=16, channel_base=64, channel_max=8)
    generator = StyleGAN2(sizes).freeze()
    assert not generator.draws_to_decode()
    generator = generator.use(["noise_mode=random"])
    assert generator.draws_to_decode()
    settings = dataclasses.replace(SETTINGS, num_samples=16, cuda_graphs=True)
    train_navigator(settings, generator, tmp_path / "run", progress=False)
    assert not recording and "draws noise while it decodes, so no step is recorded" in caplog.text


def test_without_a_gpu_the_flag_says_that_it_does_nothing(tmp_path, caplog):
    train_navigator(
        dataclasses.replace(SETTINGS, num_samples=16, cuda_graphs=True), make_small_generator(), tmp_path / "run",
        progress=False,
    )  # fmt: skip
    assert "--cuda_graphs: the run is on cpu, so no step is recorded" in caplog.text


def test_graphs_and_what_they_cannot_be_with():
    for other in (dict(compile=True), dict(micro_batches=2)):
        with pytest.raises(UsageError, match="choose one of them"):
            NavigatorConfig(generator="tiny-bigbigan", chunks="0_1", cuda_graphs=True, **other)
