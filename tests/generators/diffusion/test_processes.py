"""Noise processes and samplers against what is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.diffusion import processes, sampler
from mi_ml_gen.generators.diffusion.processes import DDIM, DDPM, PROCESSES, Objective, Path
from mi_ml_gen.generators.diffusion.train_settings import OBJECTIVES

MEAN, STD = 0.1, 0.2


class Exact(torch.nn.Module):
    """The best prediction for images whose pixels are independent normals of MEAN and STD."""

    def __init__(self, process: processes.Process):
        super().__init__()
        self.process = process
        self.products = None if isinstance(process, Objective) else process.alphas()

    def at(self, time: float) -> Path:
        if self.products is None:
            return self.process.at(time / processes.TRAINING_STEPS)
        product = self.products[round(time)]
        return Path(math.sqrt(product), math.sqrt(1 - product))

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        alpha, sigma = at = self.at(time.item())
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        clean = MEAN + gain * (x - alpha * MEAN)
        to_clean = self.process.clean(at) if self.products is None else self.process.prediction(at)
        return (clean - to_clean[0] * x) / to_clean[1]


SAMPLERS = [
    *((PROCESSES[name](), eta) for name in OBJECTIVES for eta in (1.0, 0.3)),
    (DDPM(), 1.0), (DDPM(timestep_spacing="trailing", prediction_type="v_prediction"), 1.0),
    (DDIM(), 1.0), (DDIM(prediction_type="sample"), 0.3),
]  # fmt: skip


@pytest.mark.parametrize(("process", "eta"), SAMPLERS, ids=lambda value: getattr(value, "kind", value))
def test_an_exact_network_gives_samples_of_the_distribution(process, eta):
    """With many steps, whose own error in the standard deviation is about 1%, and 20,000 draws, whose error is 0.5%.

    The schedules of diffusers have less noise near the image, where steps must be shorter.
    """
    steps = process.steps(250 if isinstance(process, Objective) else 1000, eta)
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(sampler.noises_of(steps), 20_000, 1, 1, 1, generator=rng)
    with torch.no_grad():
        found = sampler.run(Exact(process), steps, noise[0], noise[1:])
    assert found.mean().item() == pytest.approx(MEAN, abs=0.006)
    assert found.std().item() == pytest.approx(STD, rel=0.03)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_image_and_noise_follow_from_what_is_predicted(name):
    process = PROCESSES[name]()
    clean, noise = torch.randn(2, 5, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    alpha, sigma = process.path(t[:, None, None, None])
    prediction, x = process.target(clean, noise, alpha, sigma), alpha * clean + sigma * noise
    for i, time in enumerate(t.tolist()):
        at = process.at(time)
        assert at == pytest.approx((alpha[i].item(), sigma[i].item()))
        from_x, from_prediction = process.clean(at)
        torch.testing.assert_close(from_x * x[i] + from_prediction * prediction[i], clean[i], rtol=0, atol=1e-9)


def test_the_noise_grows_along_each_path_from_image_to_noise():
    for name in OBJECTIVES:
        alpha, sigma = PROCESSES[name]().path(torch.linspace(0, 1, 11))
        assert (alpha.diff() < 0).all() and (sigma.diff() > 0).all() and alpha[0] > 0.99 and sigma[-1] > 0.99


def test_the_first_step_replaces_the_starting_noise():
    """What of it stays in the noisy image is nothing for a flow, and little for the cosine schedule."""
    kept = {n: {name: PROCESSES[name]().steps(n, 1.0)[0].next_x for name in OBJECTIVES} for n in (5, 20)}
    assert kept[5]["flow"] == kept[20]["flow"] == 0
    assert kept[5]["v"] == kept[5]["epsilon"] == pytest.approx(0.029, abs=5e-4)
    assert kept[20]["v"] == pytest.approx(0.114, abs=5e-4)
    assert all(PROCESSES[name]().steps(5, 0.1)[0].next_x > 0.75 for name in OBJECTIVES)  # as in DDIM


@pytest.mark.parametrize(("n", "share"), [(5, 0.43), (10, 0.61), (20, 0.75)])
def test_few_steps_give_less_variance_than_the_images_have(n, share):
    """Of the cosine schedule, for normal images of deviation 0.5 and the network that is best for them."""
    process, variance, of_data = PROCESSES["v"](), 1.0, 0.25
    for i, step in enumerate(process.steps(n, 1.0)):
        at = process.at(1 - i / n)
        gain = at.alpha * of_data / (at.alpha**2 * of_data + at.sigma**2)
        variance = (step.next_clean * gain + step.next_x) ** 2 * variance + step.fresh**2
    assert variance / of_data == pytest.approx(share, abs=0.005)


def test_ancestral_std_is_that_of_ddpm():
    """Equation 7 of Ho et al. (2020), with beta of one training step."""
    products = torch.tensor(DDPM().alphas(), dtype=torch.float64)
    for t in (1, 10, 500, 999):
        beta = 1 - products[t] / products[t - 1]
        expected = ((1 - products[t - 1]) / (1 - products[t]) * beta).sqrt().item()
        now, then = (Path(math.sqrt(p), math.sqrt(1 - p)) for p in (products[t].item(), products[t - 1].item()))
        assert processes.ancestral_std(now, then) == pytest.approx(expected, rel=1e-9)


def test_files_hold_processes_and_nothing_else():
    for process in (DDPM(beta_end=0.01), DDIM(trained_betas=(0.1, 0.2), num_train_timesteps=2), PROCESSES["flow"]()):
        again = processes.from_file(process.to_file())
        assert type(again) is type(process) and again == process
    with pytest.raises(KeyError):
        processes.from_file({"kind": "os:system"})
    with pytest.raises(UsageError, match="unknown key colour"):
        processes.from_file({"kind": "v", "colour": 1})


@pytest.mark.parametrize(
    ("cls", "given", "says"),
    [
        (DDPM, {"beta_schedule": "quadratic"}, "beta_schedule quadratic: must be one of"),
        (DDPM, {"variance_type": "learned_range"}, "a learned variance is not read"),
        (DDIM, {"prediction_type": "score"}, "prediction_type score: must be one of"),
        (DDIM, {"timestep_spacing": "log"}, "timestep_spacing log"),
        (DDIM, {"num_train_timesteps": 10**9}, "must lie within 2 and 100,000"),
        (DDIM, {"trained_betas": [0.1]}, "1 for 1000 training steps"),
        (DDIM, {"rescale_betas_zero_snr": True}, "noise alone has no image"),
    ],
)
def test_settings_without_meaning_are_refused(cls, given, says):
    with pytest.raises(UsageError, match=says):
        cls(**given)


def test_more_steps_than_were_trained_are_refused():
    with pytest.raises(UsageError, match="steps=1001: must lie within 1 and the 1000"):
        DDPM().steps(1001, 1.0)
    with pytest.raises(UsageError, match="step 1000 was not trained"):
        DDPM(steps_offset=1).steps(1000, 1.0)
