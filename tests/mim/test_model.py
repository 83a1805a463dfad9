"""The MIM model: both halves against published numbers, the modes of p(z) and q(x), stacking, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mi_ml_gen.core import files, runtime
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.mim import losses
from mi_ml_gen.mim.distributions import Noise
from mi_ml_gen.mim.model import MIM, Terms, load_mim

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


# --- modes


class Uniform:
    """A P(x) for tests: flat."""

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.full(value.shape[:-1], -1.5)


MODEL = dict(x_dim=3, z_dim=2, mid_dim=6, min_logvar=3)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_of(**changes) -> MIM:
    return MIM(**(MODEL | changes), anchor=Uniform(), rng=rng(5))


def test_marginal_q_x_of_the_data_half_makes_both_distributions_agree():
    terms = model_of().data_half(torch.rand(9, 3), rng())
    torch.testing.assert_close(terms.q_x + terms.z_given_x, terms.x_given_z + terms.p_z)


def test_marginal_p_z_makes_both_distributions_agree_on_draws_of_the_decoder():
    model = model_of(p_z="marginal", q_x="anchor")
    terms = model.sampling_half(9, rng())
    torch.testing.assert_close(terms.q_x + terms.z_given_x, terms.x_given_z + terms.p_z)
    data = model.data_half(torch.rand(9, 3), rng())
    assert torch.equal(data.p_z, data.z_given_x) and model.prior() is None


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("mode, n", [("prior", 0), ("prior", 3), ("gmm-marginal", 4)])
def test_modes_of_p_z_and_q_x_are_densities_of_their_own(mode, n, binary):
    torch.manual_seed(0)
    model = model_of(p_z=mode, p_z_gmm=n, q_x=mode, q_x_gmm=n, binary=binary)
    x, z = torch.rand(5, 3), torch.randn(5, 2)
    terms = model.densities(x, z)
    torch.testing.assert_close(terms.p_z, model.prior().log_prob(z))
    torch.testing.assert_close(terms.q_x, model.data_density().log_prob(x))
    if mode == "gmm-marginal":
        slow_z = torch.stack([model.encode(model.pseudo_x[i : i + 1]).log_prob(z) for i in range(n)]).exp().mean(0)
        slow_x = torch.stack([model.decode(model.pseudo_z[i : i + 1]).log_prob(x) for i in range(n)]).exp().mean(0)
        torch.testing.assert_close(terms.p_z, slow_z.log())
        torch.testing.assert_close(terms.q_x, slow_x.log(), rtol=1e-4, atol=1e-4)


def test_the_sampling_half_draws_from_p_z_without_gradient_and_x_with():
    model = model_of(p_z="prior", learn_P_z=True)
    with torch.no_grad():
        model.prior_z.loc.fill_(50.0)
        model.prior_z.log_scale.fill_(-3.0)
    terms = model.sampling_half(400, rng())
    assert terms.z.mean().item() == pytest.approx(50, abs=0.1)
    assert not terms.z.requires_grad and terms.x.requires_grad
    fixed = model_of(p_z="prior").sampling_half(400, rng())
    assert fixed.z.mean().item() == pytest.approx(0, abs=0.2)


def test_binary_draws_are_coins_and_as_published_their_probabilities():
    drawn = model_of(binary=True).sampling_half(50, rng()).x
    published = model_of(binary=True, as_published=True).sampling_half(50, rng()).x
    assert set(drawn.unique().tolist()) <= {0.0, 1.0} and len(published.unique()) > 50
    assert not drawn.requires_grad and not published.requires_grad


def test_the_encoder_may_see_something_else_than_the_data():
    model = model_of()
    x, x_in = torch.rand(7, 3), torch.rand(7, 3)
    terms = model.data_half(x, rng(), x_in)
    torch.testing.assert_close(terms.z, model.encode(x_in).rsample(rng()))
    torch.testing.assert_close(terms.x_given_z, model.decode(terms.z).log_prob(x))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(p_z="prior", p_z_gmm=3, learn_P_z=True, p_xz_gmm=2),
        dict(p_z="gmm-marginal", p_z_gmm=3),
        dict(q_zx_gmm=2),
        dict(q_x="prior"),
        dict(binary=True),
    ],
)
def test_both_halves_together_are_the_halves_one_after_the_other(changes):
    model = model_of(**changes).double()
    x, x_in = torch.rand(2, 9, 3, dtype=torch.float64)
    one, other = rng(4), rng(4)
    apart = model.data_half(x, one, x_in), model.sampling_half(9, one)
    together = model.both_halves(x, other, x_in)
    gradients = []
    for halves in (apart, together):
        model.zero_grad()
        (losses.a_mim(halves[0], 0.7) * torch.arange(9)).sum().backward(retain_graph=True)
        (losses.mim_minus_entropy(halves[1]) * torch.arange(9)).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip((*apart[0], *apart[1], *gradients[0]), (*together[0], *together[1], *gradients[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_the_auto_encoders_encoder_has_the_floor_for_its_standard_deviation():
    encoding = model_of(fixed_std=True).encode(torch.rand(4, 3))
    assert torch.equal(encoding.stddev, torch.full((4, 2), 1e-3))


def test_pseudo_inputs_start_from_data():
    model = model_of(p_z="gmm-marginal", p_z_gmm=4)
    data = torch.rand(9, 3)
    model.start_pseudo_inputs(data)
    assert torch.equal(model.pseudo_x, data[:4])
    with pytest.raises(UsageError, match="start from data items, of which there are 3"):
        model.start_pseudo_inputs(data[:3])


@pytest.mark.parametrize(
    "changes, reason",
    [
        (dict(p_z="marginal"), "each is defined by the other"),
        (dict(p_z="marginal", q_x="anchor", learn_P_z=True), "cannot be sampled"),
        (dict(p_z="gmm-marginal"), "needs --p-z-gmm"),
        (dict(q_x="gmm-marginal"), "needs --q-x-gmm"),
        (dict(p_z_gmm=3), "has no components"),
        (dict(q_x_gmm=3), "has no components"),
        (dict(q_x="posterior"), "must be one of"),
        (dict(act="gelu"), "must be one of swish, tanh, relu"),
        (dict(layers=0), "must be at least 1"),
    ],
)
def test_what_means_nothing_is_refused_with_the_reason(changes, reason):
    with pytest.raises(UsageError, match=reason):
        model_of(**changes)


def test_an_unknown_P_x_cannot_be_q_x():
    with pytest.raises(UsageError, match=r"P\(x\) of this data set is not known"):
        MIM(**MODEL, q_x="anchor")


# --- the public face, stacks, files


def test_the_package_offers_models_losses_and_data():
    from mi_ml_gen import mim
    from mi_ml_gen.mim import model as model_module

    assert model_module.MIM is MIM and mim.losses is losses and model_module.load_mim is load_mim
    assert mim.datasets.load("toy4").x_dim == 2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(layers=3, act="swish", p_z="prior", p_z_gmm=3, q_zx_gmm=2, p_xz_gmm=2),
        dict(p_z="gmm-marginal", p_z_gmm=3, q_x="gmm-marginal", q_x_gmm=2, q_zx_gmm=2),
        dict(layers=1, p_z="prior", q_x="prior", q_x_gmm=2, learn_P_z=True),
        dict(binary=True, q_x="prior", p_xz_gmm=3, act="relu"),
    ],
)
def test_a_stack_is_its_models_one_by_one(changes):
    models = [MIM(**(MODEL | changes), rng=rng(seed)).double() for seed in (1, 2, 3)]
    whole = MIM.stack(models).double()
    x = torch.rand(3, 8, 3, dtype=torch.float64)

    def streams(kind: str, seeds) -> Noise:
        return Noise([runtime.stream(seed, kind, 0, 0) for seed in seeds])

    halves = [whole.data_half(x, streams("d", range(3))), whole.sampling_half(8, streams("s", range(3)))]
    losses.symmetric(losses.a_mim(halves[0]), losses.a_mim(halves[1])).mean(-1).sum().backward()
    for i, model in enumerate(models):
        one = MIM.stack([model]).double()
        own = [one.data_half(x[i : i + 1], streams("d", [i])), one.sampling_half(8, streams("s", [i]))]
        for together, alone in zip(halves, own, strict=True):
            for a, b in zip(together, alone, strict=True):
                torch.testing.assert_close(a[i : i + 1], b, rtol=1e-9, atol=1e-9)
        losses.symmetric(losses.a_mim(own[0]), losses.a_mim(own[1])).mean(-1).sum().backward()
        for a, b in zip(whole.parameters(), one.parameters(), strict=True):
            if b.grad is not None:
                torch.testing.assert_close(a.grad[i : i + 1], b.grad, rtol=1e-8, atol=1e-9)
        member = whole.member(i)
        torch.testing.assert_close(member.encode(x[i]).mean, whole.encode(x).mean[i])
        assert all(torch.equal(a, b) for a, b in zip(member.parameters(), model.parameters(), strict=True))


def test_a_model_comes_back_from_its_file(tmp_path):
    model = model_of(p_z="gmm-marginal", p_z_gmm=3, layers=3)
    model.save(tmp_path / "m.safetensors", dataset="toy4")
    back = load_mim(tmp_path / "m.safetensors", anchor=model.P_x)
    assert back.config() == model.config() and back.P_x is model.P_x
    x, z = torch.rand(4, 3), torch.randn(4, 2)
    assert all(torch.equal(a, b) for a, b in zip(back.densities(x, z), model.densities(x, z), strict=True))


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    model_of().save(path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptCheckpointError, match="damaged"):
        load_mim(path)
    files.save_tensors(path, {"weight": torch.zeros(2)}, {"format": "something else"})
    with pytest.raises(CorruptCheckpointError, match="its head describes no mim"):
        load_mim(path)
    config = '{"config": {"x_dim": 3, "z_dim": 9}}'
    tensors = {name: value for name, value in model_of().state_dict().items()}
    files.save_tensors(path, tensors, {"mi_ml_gen.mim/1": config})
    with pytest.raises(CorruptCheckpointError, match="do not fit"):
        load_mim(path)
