"""The noise processes, and the steps of their stochastic samplers.

A process says how an image x0 becomes noise, x_t = alpha_t x0 + sigma_t noise, and what its network predicts. All
samplers here are of one form: from the prediction follows the image that the network expects, and the next noisy image
is a weighted sum of that, of the present one, of the prediction, and of fresh noise. So a sampler is a list of weights
(`Step`), and whatever differs between DDPM, DDIM and flow matching is in these numbers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.diffusion.settings import check_kinds

TRAINING_STEPS = 1000
"""Networks of this package are told times from 0, the image, to this, the noise."""
MOST_TRAINING_STEPS = 100_000
"""A file that speaks of more is refused."""


class Step(NamedTuple):
    """One step of a sampler, from a noisy image x to the next one:

    expected = clean_x x + clean_out prediction, clipped to +-bound
    next = next_clean expected + next_x x + next_out prediction + fresh noise
    """

    time: float
    """What the network is told."""
    clean_x: float
    clean_out: float
    bound: float | None
    next_clean: float
    next_x: float
    next_out: float
    fresh: float
    """Standard deviation of the fresh noise."""


class Path(NamedTuple):
    """alpha and sigma at a time: x_t = alpha x0 + sigma noise."""

    alpha: float
    sigma: float


class Process(ABC):
    """A noise process with its network's prediction. A subclass is a frozen dataclass of plain values."""

    kind: ClassVar[str]

    @abstractmethod
    def steps(self, n: int, eta: float) -> list[Step]:
        """The steps of the sampler: n of them, with eta times the noise of DDPM (Song et al., 2021, equation 16).

        Raises UsageError where the process does not have as many.
        """

    def to_file(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]


PROCESSES: dict[str, type[Process]] = {}
"""By the names that files have. No `core.registry.Registry`: what a file names is looked up, and never imported."""
P = TypeVar("P", bound="type[Process]")


def register(kind: str) -> Callable[[P], P]:
    """Class decorator: make a process known under a name."""

    def add(cls: P) -> P:
        cls.kind = kind
        PROCESSES[kind] = cls
        return cls

    return add


def from_file(values: Mapping[str, Any]) -> Process:
    """The inverse of `to_file`. Raises UsageError, KeyError or TypeError for what it does not write."""
    own = {key: value for key, value in values.items() if key != "kind"}
    cls = PROCESSES[values["kind"]]
    if unknown := set(own) - {field.name for field in fields(cls)}:  # type: ignore[arg-type]
        raise UsageError(f"process {values['kind']}: unknown key {min(unknown)}")
    return cls(**own)


def ancestral_std(now: Path, then: Path) -> float:
    """Standard deviation of the normal q(x_s | x_t, x0), s before t.

    For Gaussian paths of any alpha and sigma (Kingma et al., 2021, appendix A.2); DDPM's equation 7 is the case
    alpha^2 + sigma^2 = 1.
    """
    variance = now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2  # of q(x_t | x_s)
    return math.sqrt(max(0.0, variance)) * then.sigma / now.sigma


def toward(now: Path, then: Path, std: float) -> tuple[float, float]:
    """(weight of x0, weight of x_t) of the mean of x_s whose fresh noise has `std` (DDIM, equation 7): what noise is
    left of x_t keeps its direction."""
    kept = math.sqrt(max(0.0, then.sigma**2 - std**2)) / now.sigma
    return then.alpha - kept * now.alpha, kept


# --- our own networks, in continuous time -------------------------------------------------------------------


class Objective(Process):
    """Time t from 0, the image, to 1, the noise; images in [-1, 1]. The sampler's times lie evenly."""

    @abstractmethod
    def path(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at times t of any shape, in [0, 1]."""

    @abstractmethod
    def target(self, clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network learns to predict, of images and noise (n, c, h, w), alpha and sigma (n, 1, 1, 1)."""

    @abstractmethod
    def clean(self, at: Path) -> tuple[float, float]:
        """Weights of x_t and of the prediction in the image that a prediction means."""

    def at(self, t: float) -> Path:
        alpha, sigma = self.path(torch.tensor(t, dtype=torch.float64))
        return Path(alpha.item(), sigma.item())

    def steps(self, n: int, eta: float) -> list[Step]:
        found = []
        for i in range(n):
            t, now, then = 1 - i / n, self.at(1 - i / n), self.at(1 - (i + 1) / n)
            if i == n - 1:  # the image that is expected is the result
                next_clean, next_x, std = 1.0, 0.0, 0.0
            else:
                std = eta * ancestral_std(now, then)
                next_clean, next_x = toward(now, then, std)
            found.append(Step(TRAINING_STEPS * t, *self.clean(now), 1.0, next_clean, next_x, 0.0, std))
        return found


class _Cosine(Objective):
    """The cosine schedule (Nichol and Dhariwal, 2021, equation 17), which stops short of noise alone."""

    def path(self, t: Tensor) -> tuple[Tensor, Tensor]:
        first, last = 0.008 / 1.008 * math.pi / 2, math.pi / 2 - 0.01
        angle = first + (last - first) * t
        return angle.cos(), angle.sin()


@register("v")
@dataclass(frozen=True)
class Velocity(_Cosine):
    """Predicts v = alpha noise - sigma x0 (Salimans and Ho, 2022, appendix D)."""

    def target(self, clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * noise - sigma * clean

    def clean(self, at: Path) -> tuple[float, float]:
        return at.alpha, -at.sigma


@register("epsilon")
@dataclass(frozen=True)
class Epsilon(_Cosine):
    """Predicts the noise (Ho et al., 2020, equation 14)."""

    def target(self, clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return noise

    def clean(self, at: Path) -> tuple[float, float]:
        return 1 / at.alpha, -at.sigma / at.alpha


@register("flow")
@dataclass(frozen=True)
class Flow(Objective):
    """Flow matching on straight lines, x_t = (1 - t) x0 + t noise; predicts noise - x0 (Lipman et al., 2023).

    The sampler is stochastic: it has the marginals of the flow's differential equation, as the interpolants of Albergo
    et al. (2023) have with any amount of noise.
    """

    def path(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def target(self, clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return noise - clean

    def clean(self, at: Path) -> tuple[float, float]:
        return 1.0, -at.sigma


# --- networks of diffusers, in discrete time ----------------------------------------------------------------


@dataclass(frozen=True)
class Discrete(Process):
    """A chain of training steps with betas (Ho et al., 2020), as the schedulers of diffusers have it.

    The fields are those of scheduler_config.json. Raises UsageError for values that have no meaning here.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: Sequence[float] | None = None
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False

    def __post_init__(self) -> None:
        check_kinds(self)
        for name, known in (
            ("beta_schedule", tuple(BETAS)),
            ("prediction_type", ("epsilon", "sample", "v_prediction")),
            ("timestep_spacing", ("leading", "trailing", "linspace")),
        ):
            if getattr(self, name) not in known:
                raise UsageError(f"{name} {getattr(self, name)}: must be one of {', '.join(known)}")
        if not 2 <= self.num_train_timesteps <= MOST_TRAINING_STEPS:
            raise UsageError(f"num_train_timesteps {self.num_train_timesteps}: must lie within 2 and "
                             f"{MOST_TRAINING_STEPS:,}")  # fmt: skip
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise UsageError(f"trained_betas: {len(self.trained_betas)} for {self.num_train_timesteps} training steps")
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise UsageError("rescale_betas_zero_snr: noise alone has no image by prediction_type epsilon")

    def alphas(self) -> list[float]:
        """The product of 1 - beta up to each training step, computed in float32 as in training."""
        n = self.num_train_timesteps
        if self.trained_betas is not None:
            betas = torch.tensor(self.trained_betas, dtype=torch.float32)
        else:
            betas = BETAS[self.beta_schedule](n, self.beta_start, self.beta_end)
        products = torch.cumprod(1 - betas, dim=0)
        if self.rescale_betas_zero_snr:  # Lin et al., 2024, algorithm 1
            roots = products.sqrt()
            roots = (roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))
            products = roots.square()
        return products.double().tolist()

    def times(self, n: int) -> list[int]:
        """The training steps at which n steps of a sampler look (Lin et al., 2024, table 2), the noisiest first."""
        of = self.num_train_timesteps
        if not 1 <= n <= of:
            raise UsageError(f"steps={n}: must lie within 1 and the {of} steps of training")
        if self.timestep_spacing == "leading":
            found = [i * (of // n) + self.steps_offset for i in reversed(range(n))]
        elif self.timestep_spacing == "trailing":
            found = [round(of - i * (of / n)) - 1 for i in range(n)]
        else:
            found = [round(i * (of - 1) / max(1, n - 1)) for i in reversed(range(n))]
        if found[0] >= of:
            raise UsageError(f"steps={n}: with steps_offset {self.steps_offset}, step {found[0]} was not trained")
        return found

    def prediction(self, at: Path) -> tuple[float, float]:
        """Weights of x_t and of the prediction in the image that a prediction means."""
        if self.prediction_type == "sample":
            return 0.0, 1.0
        if self.prediction_type == "v_prediction":
            return at.alpha, -at.sigma
        return 1 / at.alpha, -at.sigma / at.alpha

    @property
    def bound(self) -> float | None:
        return self.clip_sample_range if self.clip_sample else None


def _at(product: float) -> Path:
    return Path(math.sqrt(product), math.sqrt(1 - product))


@register("ddpm")
@dataclass(frozen=True)
class DDPM(Discrete):
    """Ancestral sampling, `DDPMScheduler`. With eta < 1 what noise is left keeps its direction, as with
    `use_clipped_model_output` of `DDIMScheduler`."""

    variance_type: str = "fixed_small"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variance_type not in ("fixed_small", "fixed_small_log", "fixed_large"):
            raise UsageError(
                f"variance_type {self.variance_type}: must be fixed_small, fixed_small_log or fixed_large; a learned "
                "variance is not read"
            )

    def steps(self, n: int, eta: float) -> list[Step]:
        products, times = self.alphas(), self.times(n)
        found = []
        for time, before in zip(times, [*times[1:], -1], strict=True):
            now, then = _at(products[time]), _at(products[before] if before >= 0 else 1.0)
            small = eta * ancestral_std(now, then)
            next_clean, next_x = toward(now, then, small)
            large = eta * math.sqrt(max(0.0, 1 - (now.alpha / then.alpha) ** 2))
            fresh = 0.0 if time == 0 else large if self.variance_type == "fixed_large" else small
            found.append(Step(time, *self.prediction(now), self.bound, next_clean, next_x, 0.0, fresh))
        return found


@register("ddim")
@dataclass(frozen=True)
class DDIM(Discrete):
    """`DDIMScheduler` (Song et al., 2021, equation 12): the direction is that of the prediction, before clipping."""

    set_alpha_to_one: bool = True

    def steps(self, n: int, eta: float) -> list[Step]:
        products, times = self.alphas(), self.times(n)
        found = []
        for time in times:
            before = time - self.num_train_timesteps // n
            last = 1.0 if self.set_alpha_to_one else products[0]
            now, then = _at(products[time]), _at(products[before] if before >= 0 else last)
            fresh = eta * ancestral_std(now, then)
            kept = math.sqrt(max(0.0, then.sigma**2 - fresh**2))
            clean_x, clean_out = self.prediction(now)
            # noise = (x - alpha clean) / sigma, by the prediction
            next_x, next_out = (
                (0.0, kept) if self.prediction_type == "epsilon"
                else (kept * (1 - now.alpha * clean_x) / now.sigma, -kept * now.alpha * clean_out / now.sigma)
            )  # fmt: skip
            found.append(Step(time, clean_x, clean_out, self.bound, then.alpha, next_x, next_out, fresh))
        return found


def _linear(n: int, start: float, end: float) -> Tensor:
    return torch.linspace(start, end, n, dtype=torch.float32)


def _scaled_linear(n: int, start: float, end: float) -> Tensor:
    return torch.linspace(start**0.5, end**0.5, n, dtype=torch.float32) ** 2


def _cosine(n: int, start: float, end: float) -> Tensor:
    def product(i: int) -> float:
        return math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2

    return torch.tensor([min(1 - product(i + 1) / product(i), 0.999) for i in range(n)], dtype=torch.float32)


def _sigmoid(n: int, start: float, end: float) -> Tensor:
    return torch.sigmoid(torch.linspace(-6, 6, n)) * (end - start) + start


BETAS = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _cosine,
    "sigmoid": _sigmoid,
}
"""Schedules by the names of diffusers: betas (n,) of n training steps."""
