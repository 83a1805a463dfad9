"""Synchronised batch normalisation: two processes give what one with the whole batch gives."""

from __future__ import annotations

import torch
from torch import nn

from mi_ml_gen.core import norms, runtime
from mi_ml_gen.core.resnet import ResNet
from tests.distributed import run_processes


def network() -> nn.Module:
    """Norms of maps and of vectors, with and without weights, after which something depends on each channel."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Tanh(), nn.Flatten()),
        *(nn.Linear(80, 7), nn.BatchNorm1d(7, affine=False), nn.Tanh(), nn.Linear(7, 2)),
    ).double()


def batches(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, with halves of other means, and what the outputs are to be."""
    torch.manual_seed(10 + step)
    images = torch.randn(8, 3, 6, 6, dtype=torch.float64)
    images += torch.linspace(-1, 2, 8, dtype=torch.float64)[:, None, None, None]
    return images, torch.randn(8, 2, dtype=torch.float64)


def steps(net: nn.Module, rows: slice) -> dict[str, torch.Tensor]:
    """Two steps of descent on a process's rows; outputs, gradients of inputs and weights, and the state after it."""
    found: dict[str, torch.Tensor] = {}
    for step in range(2):
        images, wanted = batches(step)
        images = images[rows].requires_grad_()
        outputs = net(images)
        net.zero_grad()
        (outputs - wanted[rows]).square().mean().backward()
        runtime.average_gradients(net)
        found[f"outputs {step}"], found[f"to images {step}"] = outputs.detach(), images.grad
        found |= {f"to {name} {step}": one.grad.clone() for name, one in net.named_parameters()}
        with torch.no_grad():
            for parameter in net.parameters():
                parameter -= 0.1 * parameter.grad
    net.eval()
    return found | {"evaluated": net(batches(3)[0])} | net.state_dict()


def on_half() -> dict[str, torch.Tensor]:
    net = norms.synchronise(network())
    assert sum(isinstance(part, norms.SynchronisedBatchNorm) for part in net.modules()) == 2
    half = slice(4 * runtime.rank(), 4 * runtime.rank() + 4)
    found = steps(net, half)
    # float32 maps of bfloat16 keep their type, and statistics stay in float32.
    layer, plain = norms.synchronise(nn.Sequential(nn.BatchNorm2d(3))), nn.BatchNorm2d(3)
    torch.manual_seed(1)
    x = (torch.randn(4, 3, 6, 6) + 3).bfloat16()  # the same in both processes
    assert layer(x).dtype == torch.bfloat16 and layer[0].running_mean.dtype == torch.float32
    plain(x)
    torch.testing.assert_close(layer(x), plain(x), rtol=0.01, atol=0.01)
    torch.testing.assert_close(layer[0].running_mean, plain.running_mean, rtol=0.001, atol=0)
    torch.testing.assert_close(layer[0].running_var, plain.running_var, rtol=0.01, atol=0)
    resnet = norms.synchronise(ResNet(18, small_images=True, width=4))
    resnet(torch.randn(2, 3, 8, 8))
    counts = [value for key, value in resnet.state_dict().items() if key.endswith("num_batches_tracked")]
    assert len(counts) == 20 and all(count == 1 for count in counts)
    return {key: value.detach() for key, value in found.items()}


def test_two_processes_equal_one_with_the_whole_batch():
    whole = steps(network(), slice(0, 8))
    halves = run_processes(on_half, 2)
    assert halves[0].keys() == halves[1].keys() == whole.keys()  # those of the state dict among them
    for key, value in whole.items():
        if key.startswith("outputs"):
            ours = torch.cat([half[key] for half in halves])
        elif key.startswith("to images"):  # of the mean loss of the whole batch, which is half of each process's
            ours = torch.cat([half[key] for half in halves]) / 2
        else:
            ours = halves[0][key]
            torch.testing.assert_close(halves[1][key], ours, rtol=0, atol=0, msg=key)
        torch.testing.assert_close(ours, value, rtol=0, atol=1e-12, msg=key)


def test_in_one_process_nothing_changes():
    net = network()
    layers = list(net)
    assert norms.synchronise(net) is net and list(net) == layers
    torch.manual_seed(0)
    x = torch.randn(4, 5, 3, 3)
    one, other = nn.BatchNorm2d(5), norms.SynchronisedBatchNorm(5)
    assert torch.equal(one(x), other(x)) and one.state_dict().keys() == other.state_dict().keys()


def test_a_resnet_counts_its_batches():
    net = ResNet(18, small_images=True, width=4)
    for _ in range(3):
        net(torch.randn(2, 3, 8, 8))
    net.eval()(torch.randn(2, 3, 8, 8))
    counts = [value.item() for key, value in net.state_dict().items() if key.endswith("num_batches_tracked")]
    assert counts == [3] * 20
