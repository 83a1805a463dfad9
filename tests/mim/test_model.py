"""The MIM model: both halves against published numbers, the modes of p(z) and q(x), stacking, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mi_ml_gen.mim import losses
from mi_ml_gen.mim.model import MIM, Terms

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "mim_model.npz", allow_pickle=False)


def golden(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name])


class Given:
    """Noise that is given: each request gets the next array."""

    def __init__(self, *normals: Tensor) -> None:
        self.normals = list(normals)

    def normal(self, shape) -> Tensor:
        assert self.normals[0].shape == tuple(shape)
        return self.normals.pop(0)

    def uniform(self, shape) -> Tensor:
        raise AssertionError("no uniform numbers were foreseen")


class GoldenModel(MIM):
    """The model of the published numbers: 3 -> 4 -> 4 -> 2 with tanh, and 2 -> 4 -> 3 with swish."""

    def __init__(self) -> None:
        super().__init__(x_dim=3, z_dim=2, mid_dim=4, layers=3, min_logvar=6)
        shallow = MIM(x_dim=3, z_dim=2, mid_dim=4, layers=2, min_logvar=6)
        self.decoder, self.p_x_given_z = shallow.decoder, shallow.p_x_given_z
        self.double()
        for name, module in self.published().items():
            with torch.no_grad():
                for kind in ("weight", "bias"):
                    keys = [f"forward/weights/{key}.{kind}" for key in name.split("|")]
                    getattr(module, kind).copy_(torch.cat([golden(key) for key in keys]))

    def published(self) -> dict:
        q, p = "q_z_given_x", "p_x_given_z"
        return {
            f"{q}.0": self.encoder[0],
            f"{q}.2": self.encoder[1],
            f"{q}.4.fc_loc|{q}.4.fc_logscale": self.q_z_given_x.linear,
            f"{p}.0": self.decoder[0],
            f"{p}.2.fc_loc|{p}.2.fc_logscale": self.p_x_given_z.linear,
        }

    def decode(self, z: Tensor):
        return self.p_x_given_z(torch.nn.functional.silu(self.decoder[0](z)))


def assert_terms(terms: Terms, path: str) -> None:
    names = dict(x_given_z="lp_x_given_z", q_x="lp_x", p_z="lp_z", z_given_x="lp_z_given_x")
    for field, name in names.items():
        torch.testing.assert_close(getattr(terms, field), golden(f"forward/{path}/{name}"), rtol=1e-8, atol=1e-10)


class FixedZ(GoldenModel):
    @property
    def P_z(self):
        z = golden("forward/z_obs")

        class At:
            def rsample(self, rng, n=None):
                return z

        return At()


def halves() -> tuple[FixedZ, Terms, Terms]:
    model = FixedZ()
    data = model.data_half(golden("forward/x_obs"), Given(golden("forward/x_path_eps_z")))
    noise = Given(golden("forward/z_path_eps_x"), golden("forward/z_path_eps_z"))
    return model, data, model.sampling_half(5, noise)


def test_both_halves_are_the_published_numbers():
    _, data, sampled = halves()
    torch.testing.assert_close(data.z, golden("forward/x_path/z"), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(sampled.x, golden("forward/z_path/x"), rtol=1e-8, atol=1e-10)
    assert_terms(data, "x_path")
    assert_terms(sampled, "z_path")


@pytest.mark.parametrize(
    "case, loss",
    [
        ("vae/beta0.0", losses.vae),
        ("vae/beta0.3", losses.vae),
        ("vae_H/beta1.0", losses.vae_plus_entropy),
        ("mim/beta0.3", losses.a_mim),
        ("mim/beta1.0/samp", losses.a_mim),
        ("mim_noH/beta1.0/samp", losses.mim_minus_entropy),
    ],
)
def test_losses_and_gradients_of_the_parameters_are_the_published_numbers(case, loss):
    model, data, sampled = halves()
    beta = float(case.split("beta")[1].split("/")[0])
    half = loss(data, beta).mean()
    torch.testing.assert_close(half, golden(f"forward/{case}/x_path/loss"), rtol=1e-8, atol=1e-10)
    total = half
    if case.endswith("samp"):
        half = loss(sampled, beta).mean()
        torch.testing.assert_close(half, golden(f"forward/{case}/z_path/loss"), rtol=1e-8, atol=1e-10)
        total = losses.symmetric(total, half, beta)
    total.backward()
    for name, module in model.published().items():
        for kind in ("weight", "bias"):
            expected = torch.cat([golden(f"forward/{case}/grad/{key}.{kind}") for key in name.split("|")])
            found = getattr(module, kind).grad
            found = torch.zeros_like(expected) if found is None else found
            torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
