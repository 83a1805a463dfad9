"""The optimisers without torch.compile against torch's own, bit for bit."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Adam", ADAM),
        ("Adam", ADAM | {"fused": True}),
        ("AdamW", ADAM),
        ("Adamax", ADAM),
        ("SGD", SGD),
        ("SGD", SGD | {"fused": True}),
    ],
)
def test_equal_to_torch(name, options):
    ours, our_state = trained(getattr(optimizers, name), options)
    theirs, their_state = trained(getattr(torch.optim, name), options)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    assert str(our_state) == str(their_state)


@pytest.mark.parametrize(
    ("name", "options", "begun", "goes_on"),
    [
        ("Adam", ADAM, {}, {"fused": True}),  # on the CPU, then on CUDA
        ("Adam", ADAM, {"fused": True}, {}),
        ("Adam", ADAM, {"foreach": False}, {"foreach": True}),
        ("Adamax", ADAM, {"foreach": False}, {"foreach": True}),
        ("SGD", SGD, {}, {"fused": True}),
        ("SGD", SGD, {"fused": True}, {"foreach": True}),
    ],
)
def test_how_a_step_is_computed_is_not_part_of_a_state(name, options, begun, goes_on):
    """A run that goes on elsewhere takes the steps of that machine, with the numbers of the saved state."""
    kind = getattr(optimizers, name)
    torch.manual_seed(0)
    first = nn.Linear(5, 3)
    second = copy.deepcopy(first)
    xs = torch.randn(6, 8, 5)

    def steps(network, optimizer, some):
        for x in some:
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()

    through = kind(first.parameters(), **options | begun)
    steps(first, through, xs[:3])
    second.load_state_dict(first.state_dict())
    after = kind(second.parameters(), **options | goes_on | {"lr": 7.0})
    saved = copy.deepcopy(through.state_dict())
    before = str(saved)
    after.load_state_dict(saved)
    assert str(saved) == before  # what was saved is not changed
    (group,) = after.param_groups
    own = kind([nn.Parameter(torch.ones(1))], **options | goes_on).param_groups[0]
    assert {key: group.get(key) for key in optimizers.IMPLEMENTATION} == {
        key: own.get(key) for key in optimizers.IMPLEMENTATION
    }
    assert group["lr"] == options["lr"]
    steps(first, through, xs[3:])
    steps(second, after, xs[3:])
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_states_of_other_groups_are_refused():
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    state = optimizers.Adam([{"params": [one]} for one in parameters]).state_dict()
    with pytest.raises(ValueError, match="parameter groups"):
        optimizers.Adam(parameters).load_state_dict(state)


def test_whatever_is_resumed_is_one_of_these():
    """torch's own would bring the steps of the machine that saved. quality.py trains a classifier in one go."""
    package = Path(optimizers.__file__).parents[1]
    users = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"torch\.optim\.(?!Optimizer|lr_scheduler)\w+\(", path.read_text(encoding="utf-8"))
    }
    assert users == {"generators/gan/quality.py", "core/loop.py"}  # in loop.py it is the example's, in its docstring


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
        "for kind in (optimizers.Adam, optimizers.Adamax, optimizers.SGD):\n"
        "    p = torch.nn.Parameter(torch.ones(3)); o = kind([p], lr=0.1)\n"
        "    o.zero_grad(); p.sum().backward(); o.step(); o.load_state_dict(o.state_dict())\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "False", done.stderr


PUBLISHED = np.load(Path(__file__).parents[1] / "golden" / "mim_images.npz", allow_pickle=False)


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_adam_on_normalised_gradients(weight_decay):
    """The published trajectory, also where the optimiser is saved and made anew on the way."""
    curvature = torch.from_numpy(PUBLISHED["adamnormgrad/A"])
    a = torch.from_numpy(PUBLISHED["adamnormgrad/a0"]).clone().requires_grad_()
    b = torch.from_numpy(PUBLISHED["adamnormgrad/b0"]).clone().requires_grad_()
    kind, options = optimizers.AdamNormGrad, {"lr": 0.05, "weight_decay": weight_decay}
    optimizer = kind([a, b], **options)
    found = []
    for step in range(5):
        if step == 3:
            saved, optimizer = optimizer.state_dict(), kind([a, b], **options)
            optimizer.load_state_dict(saved)
        optimizer.zero_grad()

        def loss():
            value = 0.5 * a @ curvature @ a + 50 * b.square().sum() + b.sum()
            value.backward()
            return value

        assert optimizer.step(loss) > 0 or step
        found.append(torch.cat((a.detach(), b.detach().ravel())))
    expected = torch.from_numpy(PUBLISHED[f"adamnormgrad/trajectory_wd{weight_decay}"])
    torch.testing.assert_close(torch.stack(found), expected, rtol=1e-9, atol=1e-12)
