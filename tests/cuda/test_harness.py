"""The pretended device finds what it is for: each kind of fault is planted once, in a real loop or beside it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from bench import pretended, workloads
from bench.pretended import CUDA, IS_POSSIBLE, pretended_cuda
from mi_ml_gen.core import counting
from mi_ml_gen.generators.base import ImagePair
from mi_ml_gen.generators.bigbigan import BigBiGAN

pytestmark = pytest.mark.skipif(not IS_POSSIBLE, reason="fake CUDA tensors need torch 2.11")


def planted(monkeypatch, fault) -> counting.Counts:
    """A step of the navigator whose generator does `fault(images)` with its positives."""
    decode_pair = BigBiGAN.decode_pair

    def decode(self, anchor, positive, chunks, rng=None):
        images = decode_pair(self, anchor, positive, chunks, rng)
        changed = fault(images.positive)
        return images if changed is None else ImagePair(images.anchor, changed)

    monkeypatch.setattr(BigBiGAN, "decode_pair", decode)
    with pretended_cuda() as counted:
        return workloads.navigator_step(counted, "small-bigbigan", "1_2", **workloads.SMALL)


def beside(fault) -> counting.Counts:
    """The same fault outside of a loop."""
    with pretended_cuda() as counted:
        images = torch.empty(4, 3, 8, 8, device=CUDA, requires_grad=True)
        with counted.step() as counts:
            fault(images)
    return counts


def test_no_fault(monkeypatch):
    found = planted(monkeypatch, lambda images: None)
    assert found.launches > 100 and found.traffic_bytes > 0 and found.flops > 0 and found.peak_bytes > 0
    assert not found.waits and not found.float64 and not found.device_draws


WRONG_DEVICE = "(?s)device.*(cpu.*cuda|cuda.*cpu)"


def test_a_tensor_on_the_wrong_device(monkeypatch):
    with pytest.raises(RuntimeError, match=WRONG_DEVICE):
        planted(monkeypatch, lambda images: images + torch.zeros(3, 1, 1))
    with pytest.raises(RuntimeError, match=WRONG_DEVICE):
        beside(lambda images: torch.cat([images, torch.zeros(4, 3, 8, 8)]))


READS = {
    "float": lambda images: images * float(images.detach().mean()),
    "if": lambda images: images if images.detach().max() > 0 else 2 * images,
    "item": lambda images: images * images.detach().mean().item(),
    "tolist": lambda images: images + images.detach().flatten()[:1].tolist()[0],
}
MASKS = {
    "mask": lambda images: images[images[:, 0, 0, 0] > 0],
    "nonzero": lambda images: images[images[:, 0, 0, 0].nonzero()[:, 0]],
    "unique": lambda images: images.detach().unique(),
}


def test_a_value_that_the_host_reads(monkeypatch):
    with pytest.raises(DataDependentOutputException):
        planted(monkeypatch, READS["item"])


@pytest.mark.parametrize("read", READS)
def test_ways_of_reading(read):
    with pytest.raises(DataDependentOutputException):
        beside(READS[read])


def test_a_mask_as_an_index(monkeypatch):
    with pytest.raises(DynamicOutputShapeException):
        planted(monkeypatch, MASKS["mask"])


@pytest.mark.parametrize("read", MASKS)
def test_ways_of_waiting_for_a_shape(read):
    with pytest.raises(DynamicOutputShapeException):
        beside(MASKS[read])


def test_a_value_of_the_host_may_be_read():
    """A step counter, or a learning rate: no device is waited for. It has no value here, so it reads as one."""
    read = []
    assert not beside(lambda images: read.append(torch.full((), 3.0).add_(1).item())).waits
    assert read == [1.0]


COPIES = {
    "to": (lambda images: images * torch.ones(3, 1, 1).to(CUDA), "_to_copy: from the host"),
    "pageable": (lambda images: images * torch.ones(3, 1, 1).to(CUDA, non_blocking=True), "_to_copy: from the host"),
    "cpu": (lambda images: images.detach().cpu(), "_to_copy: from the device"),
    "index": (lambda images: images.detach()[torch.arange(len(images)).flip(0)], "index: indices on the host"),
    "copy": (lambda images: torch.empty(3, device=CUDA).copy_(torch.ones(3)), "copy_: from the host"),
}


def test_a_copy_that_the_host_waits_for(monkeypatch):
    copy, name = COPIES["to"]
    assert planted(monkeypatch, copy).waits == {name: 1}


@pytest.mark.parametrize("way", COPIES)
def test_ways_of_waiting_for_a_copy(way):
    """Even a copy without waiting waits where the host's memory is not page-locked."""
    copy, name = COPIES[way]
    assert beside(copy).waits == {name: 1}


def test_a_copy_without_waiting():
    assert not beside(lambda images: torch.ones(3, 1, 1).pin_memory().to(CUDA, non_blocking=True)).waits


def test_a_backward_pass_inside_autocast():
    """Its products would be in half precision, whatever those of the forward pass were in."""

    def backward(images):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            torch.autograd.grad((images * 2).sum(), images)

    with pytest.raises(RuntimeError, match="a backward pass inside autocast"):
        beside(backward)


def test_a_gradient_that_is_given_to_autograd_grad():
    made = []
    beside(lambda images: made.append(torch.autograd.grad(images * 2, images, torch.ones_like(images))))
    assert made[0][0].shape == (4, 3, 8, 8)


def test_float64(monkeypatch):
    found = planted(monkeypatch, lambda images: images + images.detach().double().mean().float())
    assert found.float64 == {"_to_copy": 1, "mean": 1}


def test_a_draw_on_the_device(monkeypatch):
    found = planted(monkeypatch, lambda images: images + torch.randn(images.shape, device=CUDA))
    assert found.device_draws == {"randn": 1}


@pytest.mark.parametrize(
    "overlapping", [lambda: torch.zeros(4, 1, 2, 2).expand(-1, 3, -1, -1), lambda: torch.ones(1).expand(4)]
)
def test_page_locked_memory_for_an_expanded_tensor(overlapping):
    with pretended_cuda(), pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        overlapping().pin_memory()


def test_a_graph_break():
    """What is compiled whole must be one graph; the compiled ways of the package are held to it by this check."""

    def broken(x):
        y = x + 1
        print("a side effect")
        return y * 2

    assert workloads.graph_breaks(lambda x: (x + 1) * 2, torch.ones(3)) == 0
    assert workloads.graph_breaks(broken, torch.ones(3)) > 0


# --- the walk in place of autograd's engine


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3))
        self.head = nn.Linear(4, 2)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x):
        h = self.convs(x) * self.convs[0].bias[:, None, None]  # a parameter that is used twice
        h = nn.functional.interpolate(h, scale_factor=2.0, mode="nearest").mean((2, 3))
        first, second = self.head(torch.cat([h, h.flip(0)])).chunk(2)
        return (first.softmax(1) * second.exp()).sum()


def test_gradients_are_those_of_autograd():
    torch.manual_seed(0)
    net, x = Net(), torch.randn(5, 3, 8, 8)
    net(x).backward()
    expected = {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pretended._Saved, pretended._Saved.unpack):
        pretended.gradients(net(x))
        for name, parameter in net.named_parameters():
            assert (parameter.grad is None) == (expected[name] is None)
            if parameter.grad is not None:
                torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=0)
        wanted = [net.convs[0].weight, net.head.bias]
        given = pretended.gradients(net(x), wanted)
    for gradient, parameter in zip(given, torch.autograd.grad(net(x), wanted), strict=True):
        torch.testing.assert_close(gradient, parameter, rtol=0, atol=0)
    assert net.unused.grad is None


# --- the counts, by hand


def test_counts_of_a_product():
    with pretended_cuda() as counted:
        a, b = torch.empty(8, 4, device=CUDA), torch.empty(4, 16, device=CUDA, dtype=torch.float32)
        before = counted.live_bytes
        with counted.step() as counts:
            c = (a @ b).view(-1)
            del c
            d = a.expand(2, -1, -1) + 1.0
        assert before == 4 * (32 + 64)
        assert counts.launches == 2 and counts.flops == 2 * 8 * 4 * 16
        assert counts.traffic_bytes == 4 * (32 + 64 + 128) + 4 * (32 + 64)  # an expanded axis is read once
        assert counts.peak_bytes == before + 4 * 128
        assert counted.live_bytes == before + 4 * d.numel()


def test_what_backward_saved_is_freed_as_it_runs():
    with pretended_cuda() as counted:
        x = torch.empty(1000, device=CUDA, requires_grad=True)
        h = x
        for _ in range(10):
            h = h.sigmoid()
        loss = h.sum()
        del h
        with counted.step() as counts:
            loss.backward()
        # Ten saved outputs, and never more than a few gradients besides: each output goes when its node has run.
        assert counts.peak_bytes <= 4 * 1000 * (1 + 10 + 3)
        del loss
        assert counted.live_bytes == 2 * 4 * 1000
