"""The optimisers without torch.compile against torch's own, bit for bit."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from mi_ml_gen.core import optimizers

ADAM = {"lr": 1e-2, "betas": (0.5, 0.9), "weight_decay": 0.1}
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}


def trained(kind: type[torch.optim.Optimizer], options: dict) -> tuple[nn.Module, dict]:
    """A small network after 12 steps, in the middle of which the optimiser is saved and made anew."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 1))
    optimizer = kind(network.parameters(), **options)
    for i, x in enumerate(torch.randn(12, 8, 5)):
        if i == 6:
            saved, optimizer = optimizer.state_dict(), kind(network.parameters(), **options)
            optimizer.load_state_dict(saved)
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()
    assert torch.is_grad_enabled()
    return network, optimizer.state_dict()


@pytest.mark.parametrize(("name", "options"), [("Adam", ADAM), ("Adam", ADAM | {"fused": True}), ("SGD", SGD)])
def test_equal_to_torch(name, options):
    ours, our_state = trained(getattr(optimizers, name), options)
    theirs, their_state = trained(getattr(torch.optim, name), options)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    assert str(our_state) == str(their_state)


def test_parameter_groups_are_added_and_checked():
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = optimizers.SGD([{"params": [a], "lr": 1.0}, {"params": [b]}], lr=0.5)
    (a.sum() + b.sum()).backward()
    optimizer.step()
    assert a.tolist() == [0.0, 0.0] and b.tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [a]})


def test_steps_do_not_import_the_compiler():
    code = (
        "import sys, torch; from mi_ml_gen.core import optimizers\n"
        "for kind in (optimizers.Adam, optimizers.SGD):\n"
        "    p = torch.nn.Parameter(torch.ones(3)); o = kind([p], lr=0.1)\n"
        "    o.zero_grad(); p.sum().backward(); o.step(); o.load_state_dict(o.state_dict())\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "False", done.stderr
