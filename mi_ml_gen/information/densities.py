"""The difference of two entropies, both by density models: an estimator that is not limited by log of a batch.

    I(x; y) = h(y) - h(y | x)                      McAllester and Stratos 2020, section 4, "difference of entropies"

Both entropies are measured against Gaussians of the same covariance. In canonical coordinates (copula.py), with z the
residual of y after its regression on x, and phi the standard normal density,

    I(x; y) = I_G + J(z | x) - J(y)      I_G = -1/2 sum_i log(1 - rho_i**2)
    J(z | x) = E log p(z | x) / phi(z)   J(y) = E log p(y) / phi(y)

I_G is the closed form, without its bias for few pairs. The two corrections are 0 for Gaussian pairs, and small where
smooth scores make them nearly Gaussian. Each is the held-out log likelihood of an autoregressive model (one network
whose weights are masked so that output i sees the context and the coordinates before i only: Germain et al. 2015) with
a mixture of Gaussians for each coordinate (Uria, Murray and Larochelle 2013). Both models start at phi. Where one does
not beat phi on the validation pairs by two standard errors, its correction is 0.

The number is no bound: J(z | x) comes out too low and J(y) too low, and the two errors partly cancel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information import copula
from mi_ml_gen.information.copula import Canonical
from mi_ml_gen.information.ensembles import FULL, HALF, N_MEMBERS, Course, Linear, Split, Training, fit
from mi_ml_gen.information.estimate import Estimate, MonteCarloMean
from mi_ml_gen.information.estimator import Estimator, quantile
from mi_ml_gen.information.floors import floors
from mi_ml_gen.information.normality import not_normal
from mi_ml_gen.information.verdicts import findings

_ROWS_AT_ONCE = 4096


class Autoregressive(nn.Module):
    """log p(z | context) / phi(z) of members: context (members, n, c), z (members, n, d) -> (members, n)."""

    def __init__(self, n_context: int, dim: int, hidden: int, n_components: int, rng: torch.Generator) -> None:
        super().__init__()
        self.dim, self.n_components = dim, n_components
        degree_in = torch.cat([torch.zeros(n_context), torch.arange(1, dim + 1)])
        degree_hidden = torch.arange(hidden) % dim  # 0: sees the context alone
        degree_out = torch.arange(1, dim + 1).repeat(3 * n_components)
        between = (degree_hidden[:, None] <= degree_hidden[None]).float()
        self.first = Linear(n_context + dim, hidden, rng, math.sqrt(2), (degree_in[:, None] <= degree_hidden).float())
        self.second = Linear(hidden, hidden, rng, math.sqrt(2), between)
        self.last = Linear(hidden, 3 * n_components * dim, rng, 0.02, (degree_hidden[:, None] < degree_out).float())

    def forward(self, context: Tensor, z: Tensor) -> Tensor:
        hidden = functional.silu(self.first(torch.cat([context, z], 2)))
        hidden = functional.silu(self.second(hidden)) + hidden
        parts = self.last(hidden).unflatten(2, (3, self.n_components, self.dim))
        logits, means, log_scales = parts.unbind(2)  # (members, n, components, d) each
        log_scales = log_scales.clamp(-9, 4)
        error = (z[:, :, None] - means) * (-log_scales).exp()
        log_components = functional.log_softmax(logits, 2) - log_scales - 0.5 * error.square()
        return (log_components.logsumexp(2) + 0.5 * z.square()).sum(2)


class Correction(NamedTuple):
    """One of the two corrections. All in nats."""

    test: Tensor
    """Terms of the held-out pairs: (members, n_test); 0 where the model is not used."""
    train: float
    """Mean over training pairs."""
    course: Course
    is_used: bool


@dataclass(frozen=True)
class DifferenceOfEntropies(Estimator):
    """Closed form of the Gaussian copula, corrected by two autoregressive density models: see densities.py."""

    name: ClassVar[str] = "doe"
    hidden: int = 128
    n_components: int = 6
    n_steps: int = 2000

    assumes: ClassVar[str] = "The density models leave out equally much of the entropy of y and of y given x."
    fewest: ClassVar[int] = 200

    def __post_init__(self) -> None:
        for name in ("hidden", "n_components", "n_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)}: must be at least 1")

    def estimate(self, x: Tensor, y: Tensor, seed: int, device: torch.device, progress: bool) -> Estimate:
        if x.shape[1] < y.shape[1]:
            x, y = y, x  # fewer coordinates to model
        pairs = copula.canonical(x, y)
        part = copula.gaussian_part(pairs)
        split = Split.of(len(x), seed)
        least = floors(x, y, pairs, part)
        nothing = pairs.x[:, :0]
        conditional = self._correction("J(z | x)", pairs.x, pairs.residual, split, seed, device, progress)
        if pairs.y.shape[1] == 1:  # smooth scores have made it Gaussian; one model less
            marginal = Correction(torch.zeros_like(conditional.test), 0.0, Course(), False)
        else:
            marginal = self._correction("J(y)", nothing, pairs.y, split, seed, device, progress)
        return self._result(pairs, part, split, conditional, marginal, least)

    def _correction(
        self, title: str, context: Tensor, z: Tensor, split: Split, seed: int, device: torch.device, progress: bool
    ) -> Correction:
        context, z = context.float().to(device), z.float().to(device)
        rng = runtime.stream(seed, f"{title} weights", 0, 0)
        model = Autoregressive(context.shape[1], z.shape[1], self.hidden, self.n_components, rng)

        def loss(model: nn.Module, rows: Tensor, rng: torch.Generator) -> Tensor:
            return -model(context[rows], z[rows]).mean(1)

        def terms(model: nn.Module, rows: Tensor) -> Tensor:
            chunks = [part.expand(N_MEMBERS, -1) for part in rows.to(device).split(_ROWS_AT_ONCE)]
            return torch.cat([model(context[part], z[part]) for part in chunks], 1)

        training = Training(n_steps=self.n_steps, batch_size=256 if z.shape[1] <= 20 else 128)
        course = fit(
            model, loss, lambda m: terms(m, split.valid).mean(1), split, training, seed, device, title, progress
        )
        valid = terms(model, split.valid)[FULL].mean(0)
        is_used = bool(valid.mean() > 2 * valid.std() / math.sqrt(len(valid)))
        test = terms(model, split.test).cpu().double() * is_used
        some = split.train[: len(split.test)]
        return Correction(test, terms(model, some)[FULL].mean().item() * is_used, course, is_used)

    def _result(
        self, pairs: Canonical, part: copula.GaussianPart, split: Split, conditional: Correction, marginal: Correction,
        least: dict[str, MonteCarloMean],
    ) -> Estimate:  # fmt: skip
        n, n_test = len(pairs.x), len(split.test)
        correction = conditional.test - marginal.test  # (members, n_test)
        by_member = part.nats + correction.mean(1)
        nats = by_member[FULL].mean().item()
        # The closed form rests on all pairs, the correction on the held-out ones, which are among them.
        terms = part.terms - part.terms.mean()
        share = terms / n
        share[split.test] += (correction[FULL].mean(0) - correction[FULL].mean()) / n_test
        error = math.hypot(share.square().sum().sqrt().item(), part.fit_error_nats)
        half_width = quantile(n_test) * error
        low, high = nats - half_width, nats + half_width

        difference = correction[FULL].mean(0) - correction[HALF]
        noise = difference.std().item() / math.sqrt(n_test)
        gaps = [c.train - c.test[FULL].mean().item() for c in (conditional, marginal)]
        found = copula.base_findings(pairs) + findings(
            nats, low, high,
            curve_nats=_difference_of_curves(conditional, marginal),
            at_half_n=MonteCarloMean(by_member[HALF].item(), noise),
            other_seeds_nats=by_member[FULL].tolist(),
            train_nats=nats + max(gaps),
            floors=least,
        )  # fmt: skip
        if not conditional.is_used:
            found += not_normal(pairs, nats)
        return self.result(
            nats, low, high, n_test, found, gaussian_nats=part.nats, standard_error_nats=error,
            conditional_nats=conditional.test[FULL].mean().item(), marginal_nats=marginal.test[FULL].mean().item(),
            members_nats=by_member.tolist(),
            n_steps=[conditional.course.n_steps, marginal.course.n_steps], gaps_nats=gaps,
            curve_nats=_difference_of_curves(conditional, marginal),
        )  # fmt: skip


def _difference_of_curves(conditional: Correction, marginal: Correction) -> list[float]:
    """The correction over training on the validation pairs; the shorter curve goes on at its end."""
    first, second = (c.course.up_to_best() if c.is_used else [0.0] for c in (conditional, marginal))
    length = max(len(first), len(second))
    first, second = (curve + [curve[-1]] * (length - len(curve)) for curve in (first, second))
    return [a - b for a, b in zip(first, second, strict=True)]
