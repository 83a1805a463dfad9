"""An epoch of MIM on toy4 with the sampling half, and ten seeds at once: the reference's manner against ours.

    python -m bench.mim
    python -m bench.mim --mid_dim 500 --repeats 1
    OMP_NUM_THREADS=1 python -m bench.mim --processor       where the machine has other work, too

10,000 points, batches of 128, two layers of `mid_dim` units. Plain, as the reference does it: points drawn one at a
time, an object of torch.distributions for every density, two backward passes a step, a loss read at every step, and
the KSG estimate of an epoch with a Python loop over points. Lean: what mi_ml_gen.mim does.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.special import digamma
from torch import nn
from torch.distributions import Independent, Normal

from bench import timing
from mi_ml_gen.core import runtime
from mi_ml_gen.information.ksg import ksg_mutual_information
from mi_ml_gen.mim import datasets, losses, training
from mi_ml_gen.mim.distributions import Noise
from mi_ml_gen.mim.model import MIM
from mi_ml_gen.mim.settings import MimConfig

FLOOR = 1e-6


# --- the plain way ------------------------------------------------------------------------------------------


class PlainPoints:
    """The mixture of toy4: whatever the index, an item is a fresh draw."""

    def __init__(self, distribution: datasets.toy.Mixture) -> None:
        locs, scales = distribution.locs.cpu(), distribution.scales.cpu()
        self.components = [Normal(loc, scale) for loc, scale in zip(locs, scales, strict=True)]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        label = int(torch.randint(len(self.components), (1,)))
        return self.components[label].sample(), label

    def __len__(self) -> int:
        return datasets.N_TOY_ITEMS


class PlainHead(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.loc, self.log_scale = nn.Linear(n_in, n_out), nn.Linear(n_in, n_out)

    def forward(self, h: torch.Tensor) -> Independent:
        return Independent(Normal(self.loc(h), self.log_scale(h).exp() + FLOOR), 1)


class PlainMIM(nn.Module):
    def __init__(self, mid_dim: int) -> None:
        super().__init__()
        self.q = nn.Sequential(nn.Linear(2, mid_dim), nn.Tanh(), PlainHead(mid_dim, 2))
        self.p = nn.Sequential(nn.Linear(2, mid_dim), nn.Tanh(), PlainHead(mid_dim, 2))

    def prior(self, z: torch.Tensor) -> Independent:
        return Independent(Normal(torch.zeros_like(z), torch.ones_like(z) + FLOOR), 1)

    def data_half(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q(x)
        z = q.rsample()
        a, c, d = self.p(z).log_prob(x), self.prior(z).log_prob(z), q.log_prob(z)
        return (-0.5 * (a + c + d + (a + c - d))).mean()

    def sampling_half(self, n: int) -> torch.Tensor:
        z = self.prior(torch.zeros(n, 2)).sample()
        p = self.p(z)
        x = p.rsample()
        q = self.q(x)
        other = q.rsample()
        a, c, d = p.log_prob(x), self.prior(z).log_prob(z), q.log_prob(z)
        b = self.p(other).log_prob(x) + self.prior(other).log_prob(other) - q.log_prob(other)
        return (-0.5 * (a + c + d + b)).mean()


def plain_ksg(x: np.ndarray, z: np.ndarray, k: int = 5) -> float:
    """KSG-1, a query a point."""
    both = cKDTree(np.concatenate([x, z], 1))
    trees = cKDTree(x), cKDTree(z)
    total = 0.0
    for i in range(len(x)):
        radius = both.query(both.data[i], k + 1, p=math.inf)[0][-1] - 1e-15
        total += sum(digamma(len(t.query_ball_point(t.data[i], radius, p=math.inf))) for t in trees)
    return float(digamma(k) + digamma(len(x)) - total / len(x))


# --- the bench ----------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mid_dim", type=int, default=50)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--seed_epochs", type=int, default=3, help="epochs in the comparison of ten seeds")
    parser.add_argument("--processor", action="store_true", help="seconds of the processor instead of the wall's")
    options = parser.parse_args()
    clock = time.process_time if options.processor else time.perf_counter
    settings = MimConfig(
        dataset="toy4", mid_dim=options.mid_dim, batch_size=options.batch, min_logvar=6, warmup_steps=1, mim_loss=True,
        mim_samp=True, device="cpu", mi_interval=0, epochs=options.seed_epochs,
    )  # fmt: skip
    data = datasets.load("toy4")
    what = f"toy4, {datasets.N_TOY_ITEMS:,} points, batch {options.batch}, {options.mid_dim} units, sampling half"
    what += ", seconds of the processor" if options.processor else ""

    # --- An epoch of training
    plain = PlainMIM(options.mid_dim)
    plain_adam = torch.optim.Adam(plain.parameters(), 1e-3)
    assert data.anchor is not None
    points = PlainPoints(data.anchor)
    loader = torch.utils.data.DataLoader(points, options.batch, shuffle=True, drop_last=True)

    def train_plain() -> None:
        shown = 0.0
        for x, _ in loader:
            plain_adam.zero_grad()
            loss = plain.data_half(x)
            loss.backward()
            sampled = plain.sampling_half(options.batch)
            sampled.backward()
            plain_adam.step()
            shown += loss.item() + sampled.item()

    lean = MIM.stack([training.build(settings, data, seed=1)])
    lean_adam = torch.optim.Adam(lean.parameters(), 1e-3, fused=True)

    def train_lean() -> None:
        items = training.stacked([data.draw_epoch(runtime.stream(1, "mim data", 1, 0))])
        noise = Noise([runtime.stream(1, "mim noise", 0, 0)])
        total = torch.zeros(1)
        for x in items.x.split(options.batch, 1):
            if x.shape[1] < options.batch:
                break
            loss = training.batch_loss(lean, x, noise, losses.a_mim, 1.0, sampling=True)
            lean_adam.zero_grad(set_to_none=True)
            loss.sum().backward()
            lean_adam.step()
            total += loss.detach()

    seconds = timing.compare({"plain": train_plain, "lean": train_lean}, options.repeats, clock=clock)
    of: dict = dict(n=datasets.N_TOY_ITEMS, unit="points", clock=clock)
    gflop = timing.gflop_of(train_lean)
    timing.write(f"mim_train_{options.mid_dim}", f"an epoch of training, {what}", seconds, "plain", gflop=gflop, **of)

    # --- A test, with the KSG estimate of all pairs
    @torch.no_grad()
    def test_plain() -> None:
        shown, pairs = 0.0, []
        for x, _ in loader:
            shown += plain.data_half(x).item() + plain.sampling_half(options.batch).item()
            pairs.append((x, plain.q(x).rsample()))
        x, z = (torch.cat(parts).double().numpy() for parts in zip(*pairs, strict=True))
        plain_ksg(x, z)

    def test_lean() -> None:
        training.epoch_test(lean, data, settings, losses.a_mim, 1, [1])

    def test_and_ksg_lean() -> None:
        test_lean()
        with torch.no_grad():
            z = lean.member(0).encode(data.test.x).rsample(runtime.stream(1, "mim test noise", 0, 1))
        ksg_mutual_information(data.test.x, z, k=5)

    ways = {"plain, with KSG": test_plain, "lean, with KSG": test_and_ksg_lean, "lean, without": test_lean}
    seconds = timing.compare(ways, options.repeats, clock=clock)
    here = "lean, with KSG"
    timing.write(f"mim_test_{options.mid_dim}", f"a test, {what}", seconds, "plain, with KSG", here=here, **of)

    # --- Ten seeds: whole runs through the public entry
    def runs_of(groups: list[list[int]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for seeds in groups:
                own = dataclasses.replace(settings, save_folder=folder)
                training.train_seeds(own, seeds, dataset=data, measure=False, progress=False)

    seeds = list(range(1, options.seeds + 1))
    ways = {"one after the other": lambda: runs_of([[s] for s in seeds]), "as one model": lambda: runs_of([seeds])}
    seconds = timing.compare(ways, options.repeats, warm_up=0, clock=clock)
    what = f"{options.seeds} seeds, {options.seed_epochs} epochs each with test, {what}"
    of["n"] = datasets.N_TOY_ITEMS * options.seeds * options.seed_epochs
    timing.write(f"mim_seeds_{options.mid_dim}", what, seconds, "one after the other", **of)
    for path in sorted(Path(timing.RESULTS).glob(f"mim_*_{options.mid_dim}.json")):
        print(path)


if __name__ == "__main__":
    main()
