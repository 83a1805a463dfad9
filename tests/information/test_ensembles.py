"""Members that are trained side by side."""

import torch
from torch import nn

from mi_ml_gen.information.ensembles import FULL, HALF, N_MEMBERS, Linear, Split, Training, fit

CPU = torch.device("cpu")


def test_splits_are_disjoint_and_whole():
    split = Split.of(1000, 0)
    assert [len(part) for part in split] == [600, 150, 250]
    assert torch.equal(torch.cat(split).sort().values, torch.arange(1000))
    assert torch.equal(split.of_member(0), split.train) and len(split.of_member(HALF)) == 300
    assert torch.isin(split.of_member(HALF), split.train).all()
    assert not torch.equal(Split.of(1000, 1).test, split.test)


class Slope(nn.Module):
    """y = w x, a w for each member."""

    def __init__(self):
        super().__init__()
        self.layer = Linear(1, 1, torch.Generator().manual_seed(0))

    def forward(self, x):
        return self.layer(x)


def trained(seed=0, n_steps=400, training=None):
    rng = torch.Generator().manual_seed(7)
    x = torch.randn(400, 1, generator=rng)
    y = 3 * x + 0.01 * torch.randn(400, 1, generator=rng)
    split, model = Split.of(400, 0), Slope()

    def loss(model, rows, rng):
        return (model(x[rows]) - y[rows]).square().mean((1, 2))

    def valid(model):
        rows = split.valid.expand(N_MEMBERS, -1)
        return -(model(x[rows]) - y[rows]).square().mean((1, 2))

    training = training or Training(n_steps, 32, lr=0.05, most_every=20)
    course = fit(model, loss, valid, split, training, seed, CPU, "slope", False)
    return model, course, valid


def test_each_member_learns_and_keeps_its_best():
    model, course, valid = trained()
    assert torch.allclose(model.layer.weight.flatten(), torch.full((N_MEMBERS,), 3.0), atol=0.05)
    best = torch.tensor(course.curve).max(0).values
    assert torch.allclose(valid(model), best, atol=1e-6)
    assert torch.allclose(torch.tensor(course.best), best)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_training_stops_where_nothing_improves_any_more():
    _, course, _ = trained(training=Training(5000, 32, lr=0.05, most_every=20, patience=3))
    assert course.n_steps < 5000
    assert course.up_to_best() == sorted(course.up_to_best())


def test_the_same_seed_gives_the_same_members():
    first, again, other = (trained(seed, 40)[0].layer.weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_members_start_apart():
    weight = Linear(3, 4, torch.Generator().manual_seed(0)).weight
    assert not torch.equal(weight[0], weight[1]) and not torch.equal(weight[FULL][1], weight[HALF])
