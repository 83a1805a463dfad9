"""MINDE: mutual information as the distance of two denoisers, one that knows x and one that does not.

Let y_t = alpha y + sigma e with standard normal e, alpha**2 = sigmoid(t), sigma**2 = sigmoid(-t), so that t is the log
of the signal-to-noise ratio, and let e(y_t) and e(y_t, x) be the best guesses of e without and with x. Then

    I(x; y) = 1/2 integral over t of E || e(y_t) - e(y_t, x) ||**2 dt

(Franzese, Bounoua and Michiardi 2024, equation 17, whose scores are -e / sigma; for the best guesses it equals half the
difference of their squared errors, the I-MMSE relation of Guo, Shamai and Verdu 2005.) It has no ceiling, and is no
bound: errors of the two denoisers that are alike cancel, others are counted as information.

In canonical coordinates (copula.py) a Gaussian pair has both guesses in closed form. One network, which is told whether
it sees x, learns what they lack; it starts at 0. The estimate is the closed form of the Gaussian copula plus the
integral of what the network changes, by Monte Carlo on held-out pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information import copula
from mi_ml_gen.information.copula import Canonical
from mi_ml_gen.information.ensembles import FULL, HALF, N_MEMBERS, Course, Mlp, Split, Training, fit
from mi_ml_gen.information.estimate import Estimate, MonteCarloMean
from mi_ml_gen.information.estimator import Estimator, quantile
from mi_ml_gen.information.floors import floors
from mi_ml_gen.information.normality import not_normal
from mi_ml_gen.information.verdicts import findings

NOISIEST, BEYOND = -6.0, 7.0
"""The log signal-to-noise ratio runs from the first to `BEYOND` above that at which the closest y_i is told from x."""
_DRAWS = 32  # noise levels for each held-out pair
_ROWS_AT_ONCE = 4096


class Denoiser(nn.Module):
    """What the Gaussian guess of the noise lacks, of members: y_t (members, n, d), x (members, n, d_x), t and is_shown
    (members, n, 1) -> (members, n, d). is_shown: 1 where it sees x, 0 where not."""

    def __init__(self, d_x: int, dim: int, hidden: int, rng: torch.Generator) -> None:
        super().__init__()
        self.net = Mlp(dim + d_x + 6, dim, hidden, rng, last_gain=0.0)

    def forward(self, y_t: Tensor, x: Tensor, t: Tensor, is_shown: Tensor) -> Tensor:
        phase = t / 4
        level = torch.cat([phase / 2, phase.sin(), phase.cos(), (2 * phase).sin(), (2 * phase).cos()], 2)
        return self.net(torch.cat([y_t, x * is_shown, is_shown, level], 2))


class Noised(NamedTuple):
    """Rows at one noise level each."""

    y_t: Tensor
    noise: Tensor
    t: Tensor
    guess_alone: Tensor
    """The Gaussian guess of the noise without x."""
    guess_given_x: Tensor


def noised(y: Tensor, expected: Tensor, variance: Tensor, t: Tensor, noise: Tensor) -> Noised:
    """Noise y (..., d) at log signal-to-noise t (..., 1). expected, variance (d,): the mean of y given x, rho x, and
    its variance, 1 - rho**2. For y ~ N(m, v) the best guess of the noise is sigma (y_t - alpha m) / (alpha**2 v +
    sigma**2)."""
    signal = t.sigmoid()
    alpha, sigma = signal.sqrt(), (-t).sigmoid().sqrt()
    y_t = alpha * y + sigma * noise
    alone = sigma * y_t  # alpha**2 + sigma**2 = 1
    given_x = sigma * (y_t - alpha * expected) / (signal * variance + sigma.square())
    return Noised(y_t, noise, t, alone, given_x)


@dataclass(frozen=True)
class Minde(Estimator):
    """MINDE's formula around the closed form of the Gaussian copula: see diffusion.py."""

    name: ClassVar[str] = "minde"
    hidden: int = 128
    n_steps: int = 1500

    assumes: ClassVar[str] = "The two denoisers have learned what the Gaussian ones lack."
    fewest: ClassVar[int] = 200

    def __post_init__(self) -> None:
        for name in ("hidden", "n_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)}: must be at least 1")

    def estimate(self, x: Tensor, y: Tensor, seed: int, device: torch.device, progress: bool) -> Estimate:
        if x.shape[1] < y.shape[1]:
            x, y = y, x
        pairs = copula.canonical(x, y)
        part = copula.gaussian_part(pairs)
        split = Split.of(len(x), seed)
        least = floors(x, y, pairs, part)
        rho = pairs.rho
        k = len(pairs.correlations)
        expected = torch.zeros_like(pairs.y)
        expected[:, :k] = pairs.x[:, :k] * pairs.correlations
        a, b, expected, variance = (
            values.float().to(device) for values in (pairs.x, pairs.y, expected, 1 - rho.square())
        )
        clearest = BEYOND - math.log(variance.min().item())
        width = clearest - NOISIEST
        model = Denoiser(a.shape[1], b.shape[1], self.hidden, runtime.stream(seed, "denoiser weights", 0, 0))

        def noise(rows: Tensor, rng: torch.Generator) -> Noised:
            """Rows (members, n) -> draws (members, n, ...), levels spread evenly over the rows."""
            n = rows.shape[1]
            first = runtime.uniform((len(rows), 1, 1), rng, device)
            places = runtime.uniform((len(rows), n, 1), rng, device).argsort(1)
            t = NOISIEST + width * ((places + first) / n)
            fresh = runtime.normal((len(rows), n, b.shape[1]), rng, device)
            return noised(b[rows], expected[rows], variance, t, fresh)

        def loss(model: nn.Module, rows: Tensor, rng: torch.Generator) -> Tensor:
            drawn = noise(rows, rng)
            is_shown = (runtime.uniform(drawn.t.shape, rng, device) < 0.5).float()
            base = torch.where(is_shown > 0, drawn.guess_given_x, drawn.guess_alone)
            return (drawn.noise - base - model(drawn.y_t, a[rows], drawn.t, is_shown)).square().sum(2).mean(1)

        def gain(model: nn.Module, rows: Tensor, rng: torch.Generator) -> Tensor:
            """By how much the network lowers both squared errors, times the width: (members, n), in nats."""
            drawn = noise(rows, rng)
            total = torch.zeros_like(drawn.t[..., 0])
            for shown, base in ((0.0, drawn.guess_alone), (1.0, drawn.guess_given_x)):
                lacking = model(drawn.y_t, a[rows], drawn.t, torch.full_like(drawn.t, shown))
                total += ((drawn.noise - base).square() - (drawn.noise - base - lacking).square()).sum(2)
            return 0.5 * width * total

        def change(model: nn.Module, rows: Tensor, rng: torch.Generator) -> Tensor:
            """What the network changes of the integrand: (members, n), in nats."""
            drawn = noise(rows, rng)
            gaussian = drawn.guess_alone - drawn.guess_given_x
            alone = model(drawn.y_t, a[rows], drawn.t, torch.zeros_like(drawn.t))
            given_x = model(drawn.y_t, a[rows], drawn.t, torch.ones_like(drawn.t))
            return 0.5 * width * ((gaussian + alone - given_x).square() - gaussian.square()).sum(2)

        def repeated(
            function: Callable[..., Tensor], model: nn.Module, rows: Tensor, name: str, n_draws: int
        ) -> Tensor:
            """Mean over draws of noise, the same for all members: (members, n)."""
            parts = []
            for i, some in enumerate(rows.to(device).split(_ROWS_AT_ONCE)):
                draws = []
                for draw in range(n_draws):
                    rng = runtime.stream(seed, f"{name} {i}", draw, 0, device)
                    draws.append(function(model, some.expand(N_MEMBERS, -1), rng))
                parts.append(torch.stack(draws).mean(0))
            return torch.cat(parts, 1)

        def valid(model: nn.Module) -> Tensor:
            return repeated(gain, model, split.valid, "valid", 4).mean(1)

        training = Training(self.n_steps, 256)
        course = fit(model, loss, valid, split, training, seed, device, self.name, progress)
        gains = repeated(gain, model, split.valid, "valid", 4)[FULL].mean(0)
        is_used = bool(gains.mean() > 2 * gains.std() / math.sqrt(len(gains)))
        test = repeated(change, model, split.test, "test", _DRAWS).cpu().double() * is_used
        learned = [
            repeated(gain, model, rows, "gap", 4)[FULL].mean().item() * is_used
            for rows in (split.train[: len(split.test)], split.test)
        ]
        return self._result(pairs, part, split, test, learned, course, is_used, least)

    def _result(
        self, pairs: Canonical, part: copula.GaussianPart, split: Split, test: Tensor, learned: list[float],
        course: Course, is_used: bool, least: dict[str, MonteCarloMean],
    ) -> Estimate:  # fmt: skip
        n, n_test = len(pairs.x), len(split.test)
        by_member = part.nats + test.mean(1)
        nats = by_member[FULL].mean().item()
        share = (part.terms - part.terms.mean()) / n
        share[split.test] += (test[FULL].mean(0) - test[FULL].mean()) / n_test
        error = math.hypot(share.square().sum().sqrt().item(), part.fit_error_nats)
        half_width = quantile(n_test) * error
        low, high = nats - half_width, nats + half_width
        noise = (test[FULL].mean(0) - test[HALF]).std().item() / math.sqrt(n_test)
        found = copula.base_findings(pairs) + findings(
            nats, low, high,
            curve_nats=course.up_to_best() if is_used else [],
            at_half_n=MonteCarloMean(by_member[HALF].item(), noise),
            other_seeds_nats=by_member[FULL].tolist(),
            train_nats=nats + learned[0] - learned[1],
            floors=least,
        )  # fmt: skip
        if not is_used:
            found += not_normal(pairs, nats)
        return self.result(
            nats, low, high, n_test, found, gaussian_nats=part.nats, standard_error_nats=error,
            members_nats=by_member.tolist(), n_steps=course.n_steps, gains_nats=learned, curve_nats=course.of_full,
        )  # fmt: skip
