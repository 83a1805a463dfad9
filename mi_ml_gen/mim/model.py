"""The model of a MIM: encoder q(z|x), decoder p(x|z), latent prior p(z), data density q(x), and the anchors P(z), P(x).

Encoding distribution q(z|x) q(x), decoding distribution p(x|z) p(z): the model knows both, and the losses (losses.py)
are functions of the four log-probabilities of a pair (x, z), which `data_half` and `sampling_half` give as `Terms`.

p(z) and q(x) have four modes each:

    anchor         the fixed P(z) = N(0, I), or the data's P(x) where it is known
    prior          learned: a Gaussian (coins for binary x), or a mixture of them
    marginal       whatever makes encoding and decoding distribution agree at the pair: log q(x) = log p(x|z) + log p(z)
                   - log q(z|x), and p(z) = q(z|x)
    gmm-marginal   the mixture of the conditional at K learned pseudo inputs (a VampPrior)

One `MIM` may be S models of the same shape stacked along a leading axis: `MIM.stack`, `member`. Then every tensor has
that axis: x (S, n, x_dim), log-probabilities (S, n).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mi_ml_gen.core import weights
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.core.weights import Content, Kind, register_kind
from mi_ml_gen.hub.sharing import Shared
from mi_ml_gen.mim.distributions import (
    Bernoulli,
    BernoulliLayer,
    BernoulliPrior,
    Distribution,
    Gaussian,
    GaussianLayer,
    GaussianPrior,
    Mixture,
    Rng,
    draw_normal,
    equal_mixture,
)
from mi_ml_gen.mim.stacked import StackedLinear

MODES = ("anchor", "prior", "marginal", "gmm-marginal")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swish": nn.functional.silu,
    "tanh": torch.tanh,
    "relu": torch.relu,
}
FORMAT = "mi_ml_gen.mim/1"
"""Key of the head in files of version 0.1."""


class Density(Protocol):
    """What the data's P(x) must offer."""

    def log_prob(self, value: Tensor) -> Tensor: ...


class Terms(NamedTuple):
    """Pairs (x, z) and their log-probabilities, one for each pair: (n,) or (S, n)."""

    x: Tensor
    """(..., n, x_dim)"""
    z: Tensor
    """(..., n, z_dim)"""
    x_given_z: Tensor
    """a = log p(x|z)"""
    q_x: Tensor
    """b = log q(x)"""
    p_z: Tensor
    """c = log p(z)"""
    z_given_x: Tensor
    """d = log q(z|x)"""


class MIM(Shared):
    """Encoder, decoder, prior and data density. Raises UsageError for combinations that mean nothing.

    x_dim, z_dim, mid_dim: widths of data, latent and hidden layers. layers: affine layers in the encoder and in the
    decoder, the last of them giving the distribution's parameters. min_logvar M: 10**-M is added to every standard
    deviation, and bounds probabilities away from 0 and 1. binary: p(x|z) is Bernoulli. fixed_std: the encoder's
    standard deviation is the floor alone (auto-encoder). *_gmm: components, 0 for a single one. as_published: draws
    of Bernoulli x are their probabilities, and the learned mixture prior is truncated, as in the reference.
    anchor: P(x). rng: of the initial parameters (default: torch's own). n_models: stacked; see `stack`.
    """

    def __init__(
        self,
        x_dim: int,
        z_dim: int = 2,
        mid_dim: int = 400,
        layers: int = 2,
        act: str = "tanh",
        min_logvar: float = 10,
        binary: bool = False,
        p_z: str = "anchor",
        q_x: str = "marginal",
        q_x_gmm: int = 0,
        q_zx_gmm: int = 0,
        p_z_gmm: int = 0,
        p_xz_gmm: int = 0,
        learn_P_z: bool = False,
        fixed_std: bool = False,
        as_published: bool = False,
        *,
        anchor: Density | None = None,
        rng: torch.Generator | None = None,
        n_models: int | None = None,
    ) -> None:
        super().__init__()
        self._config: dict[str, Any] = dict(
            x_dim=x_dim, z_dim=z_dim, mid_dim=mid_dim, layers=layers, act=act, min_logvar=min_logvar, binary=binary,
            p_z=p_z, q_x=q_x, q_x_gmm=q_x_gmm, q_zx_gmm=q_zx_gmm, p_z_gmm=p_z_gmm, p_xz_gmm=p_xz_gmm,
            learn_P_z=learn_P_z, fixed_std=fixed_std, as_published=as_published,
        )  # fmt: skip
        check_modes(p_z, q_x, p_z_gmm, q_x_gmm, learn_P_z)
        if q_x == "anchor" and anchor is None:
            raise UsageError("--q-x anchor: P(x) of this data set is not known; choose marginal, prior or gmm-marginal")
        if act not in ACTIVATIONS:
            raise UsageError(f"--act {act}: must be one of {', '.join(ACTIVATIONS)}")
        if layers < 1:
            raise UsageError(f"--layers {layers}: must be at least 1")
        self.x_dim, self.z_dim, self.binary, self.n_models = x_dim, z_dim, binary, n_models
        self.p_z_mode, self.q_x_mode = p_z, q_x
        self.learn_P_z, self.as_published = learn_P_z, as_published
        self.act = ACTIVATIONS[act]
        self.floor = floor = 10.0**-min_logvar
        self.P_x = anchor

        common: dict[str, Any] = dict(n_models=n_models, rng=rng)
        n_in = mid_dim if layers > 1 else x_dim
        self.encoder = _hidden(x_dim, mid_dim, layers, **common)
        self.q_z_given_x = GaussianLayer(n_in, z_dim, floor, q_zx_gmm, fixed_std, **common)
        n_in = mid_dim if layers > 1 else z_dim
        self.decoder = _hidden(z_dim, mid_dim, layers, **common)
        self.p_x_given_z: GaussianLayer | BernoulliLayer
        if binary:
            self.p_x_given_z = BernoulliLayer(n_in, x_dim, floor, p_xz_gmm, as_published, **common)
        else:
            self.p_x_given_z = GaussianLayer(n_in, x_dim, floor, p_xz_gmm, **common)

        lead = () if n_models is None else (n_models,)
        self.prior_z = GaussianPrior(z_dim, floor, p_z_gmm, as_published, **common) if p_z == "prior" else None
        self.prior_x: GaussianPrior | BernoulliPrior | None = None
        if q_x == "prior" and binary:
            self.prior_x = BernoulliPrior(x_dim, floor, q_x_gmm, as_published, as_published, **common)
        elif q_x == "prior":
            self.prior_x = GaussianPrior(x_dim, floor, q_x_gmm, as_published, **common)
        self.pseudo_x = self.pseudo_z = None
        if p_z == "gmm-marginal":
            self.pseudo_x = nn.Parameter(torch.randn(*lead, p_z_gmm, x_dim, generator=rng))
        if q_x == "gmm-marginal":
            self.pseudo_z = nn.Parameter(torch.randn(*lead, q_x_gmm, z_dim, generator=rng))  # draws of P(z)
        self._standard: Gaussian | None = None

    # --- densities

    def encode(self, x: Tensor) -> Gaussian | Mixture:
        """q(z|x) of x (..., n, x_dim)."""
        for layer in self.encoder:
            x = layer(x, self.act)
        return self.q_z_given_x(x)

    def decode(self, z: Tensor) -> Gaussian | Bernoulli | Mixture:
        """p(x|z) of z (..., n, z_dim)."""
        for layer in self.decoder:
            z = layer(z, self.act)
        return self.p_x_given_z(z)

    @property
    def standard(self) -> Gaussian:
        """The standard normal of the latent space, batch axis of length 1; its standard deviation, too, has the
        floor added."""
        weight = self.q_z_given_x.linear.weight
        made = self._standard
        if made is None or made.loc.device != weight.device or made.loc.dtype != weight.dtype:
            with torch.inference_mode(False):  # it outlives the call, and training may need it
                loc = weight.new_zeros(*weight.shape[:-2], 1, self.z_dim)
                made = self._standard = Gaussian(loc, torch.full_like(loc, 1 + self.floor))
        return made

    def prior(self) -> Distribution | None:
        """p(z) with a batch axis of length 1; None where it is marginal."""
        if self.prior_z is not None:
            return self.prior_z()
        if self.pseudo_x is not None:
            return equal_mixture(self.encode(self.pseudo_x))
        return self.standard if self.p_z_mode == "anchor" else None

    def data_density(self) -> Density | None:
        """q(x); None where it is marginal."""
        if self.prior_x is not None:
            return self.prior_x()
        if self.pseudo_z is not None:
            return equal_mixture(self.decode(self.pseudo_z))
        return self.P_x if self.q_x_mode == "anchor" else None

    @property
    def P_z(self) -> Distribution:
        """The anchor P(z), from which the sampling half draws: N(0, I), or p(z) itself with learn_P_z."""
        prior = self.prior() if self.learn_P_z else self.standard
        assert prior is not None, "check_modes refuses learn_P_z with a marginal p(z)"
        return prior

    # --- pairs and their log-probabilities

    def data_half(self, x: Tensor, rng: Rng, x_in: Tensor | None = None) -> Terms:
        """Data x (..., n, x_dim) and z ~ q(z|x) with gradient. x_in: what the encoder sees, if not x itself."""
        encoding = self.encode(x if x_in is None else x_in)
        z, z_given_x = encoding.sample_with_log_prob(rng)
        return self._terms(x, z, self.decode(z).log_prob(x), z_given_x)

    def sampling_half(self, n: int, rng: Rng) -> Terms:
        """n draws z ~ P(z) without gradient, and x ~ p(x|z): with gradient where p(x|z) allows it (not if Bernoulli).

        A marginal q(x) is estimated with another z' ~ q(z'|x): the z that x was drawn from would bias it.
        """
        with torch.no_grad():
            z = self.P_z.rsample(rng, n)
        decoding = self.decode(z)
        if self.binary:
            x = decoding.rsample(rng).detach()
            x_given_z = decoding.log_prob(x)
        else:
            x, x_given_z = decoding.sample_with_log_prob(rng)
        encoding = self.encode(x)
        z_given_x = encoding.log_prob(z)
        q_x = None
        if self.q_x_mode == "marginal":
            other, other_given_x = encoding.sample_with_log_prob(rng)
            q_x = self._marginal_q_x(x, other, self.decode(other).log_prob(x), other_given_x)
        return self._terms(x, z, x_given_z, z_given_x, q_x, marginal_p_z="decoder")

    def both_halves(self, x: Tensor, rng: Rng, x_in: Tensor | None = None) -> tuple[Terms, Terms]:
        """`data_half` of x and `sampling_half` of as many draws, with the same noise.

        Where both halves need the same of the networks, they share passes: three instead of five.
        """
        n = x.shape[-2]
        if self.binary or self.q_x_mode != "marginal" or self.q_z_given_x.n_components:
            return self.data_half(x, rng, x_in), self.sampling_half(n, rng)
        noise = draw_normal(rng, (*x.shape[:-1], self.z_dim), x)
        with torch.no_grad():
            z_sampled = self.P_z.rsample(rng, n)
        x_sampled, x_given_sampled = self.decode(z_sampled).sample_with_log_prob(rng)
        noise = torch.cat([noise, draw_normal(rng, noise.shape, x)], -2)

        encoding = self.encode(torch.cat([x if x_in is None else x_in, x_sampled], -2))
        prior = self.prior()
        assert isinstance(encoding, Gaussian) and prior is not None
        z, z_given_x = encoding.at(noise)  # of the data, and z' of the draws
        x_given_z = self.decode(z).log_prob(torch.cat([x, x_sampled], -2))
        p_z, p_z_sampled = prior.log_prob(torch.cat([z, z_sampled], -2)).split([2 * n, n], -1)
        q_x = x_given_z + p_z - z_given_x
        sampled_given_x = encoding.rows(n, 2 * n).log_prob(z_sampled)
        data = Terms(x, z[..., :n, :], x_given_z[..., :n], q_x[..., :n], p_z[..., :n], z_given_x[..., :n])
        return data, Terms(x_sampled, z_sampled, x_given_sampled, q_x[..., n:], p_z_sampled, sampled_given_x)

    def densities(self, x: Tensor, z: Tensor) -> Terms:
        """The log-probabilities of given pairs; those of a marginal q(x) hold for z drawn from q(z|x)."""
        return self._terms(x, z, self.decode(z).log_prob(x), self.encode(x).log_prob(z))

    def _terms(
        self,
        x: Tensor,
        z: Tensor,
        x_given_z: Tensor,
        z_given_x: Tensor,
        q_x: Tensor | None = None,
        marginal_p_z: str = "encoder",
    ) -> Terms:
        prior, density = self.prior(), self.data_density()
        p_z = None if prior is None else prior.log_prob(z)
        if q_x is None and density is not None:
            q_x = density.log_prob(x)
        if q_x is None:
            assert p_z is not None, "check_modes refuses both marginal"
            q_x = x_given_z + p_z - z_given_x
        if p_z is None:
            p_z = z_given_x if marginal_p_z == "encoder" else z_given_x + q_x - x_given_z
        return Terms(x, z, x_given_z, q_x, p_z, z_given_x)

    def _marginal_q_x(self, x: Tensor, z: Tensor, x_given_z: Tensor, z_given_x: Tensor) -> Tensor:
        """Importance estimate of log q(x) = log p(x|z) + log p(z) - log q(z|x) with one z ~ q(z|x)."""
        prior = self.prior()
        assert prior is not None, "check_modes refuses both marginal"
        return x_given_z + prior.log_prob(z) - z_given_x

    # --- pseudo inputs, stacking, files

    @torch.no_grad()
    def start_pseudo_inputs(self, x: Tensor) -> None:
        """Set the pseudo inputs of p(z) to the first data items, x (..., n, x_dim). Raises UsageError if too few."""
        if self.pseudo_x is not None:
            k = self.pseudo_x.shape[-2]
            if x.shape[-2] < k:
                raise UsageError(
                    f"--p-z-gmm {k}: pseudo inputs start from data items, of which there are {x.shape[-2]}"
                )
            self.pseudo_x.copy_(x[..., :k, :])

    @classmethod
    def stack(cls, models: Sequence[MIM]) -> MIM:
        """One model that is all of `models` along a leading axis; they must share their configuration."""
        assert models and all(model._config == models[0]._config for model in models)
        whole = cls(**models[0]._config, anchor=models[0].P_x, n_models=len(models))
        states = [model.state_dict() for model in models]
        whole.load_state_dict({name: torch.stack([state[name] for state in states]) for name in states[0]})
        return whole.to(models[0].q_z_given_x.linear.weight)

    def member(self, index: int) -> MIM:
        """Model `index` of a stack, by itself, with parameters of its own."""
        assert self.n_models is not None, "not a stack"
        model = MIM(**self._config, anchor=self.P_x)
        model.load_state_dict({name: value[index] for name, value in self.state_dict().items()})
        return model.to(self.q_z_given_x.linear.weight)

    def resized(self, n_models: int) -> None:
        """Tell a stack that its parameters have been cut to n_models."""
        self.n_models, self._standard = n_models, None

    def config(self) -> dict[str, Any]:
        """What rebuilds it, but for the anchor P(x) and the parameters."""
        return dict(self._config)

    def save(self, path: str | Path, **about: Any) -> None:
        """Write parameters and configuration as safetensors with its hash beside. Not for a stack."""
        save_mim(path, self, **about)


def save_mim(path: str | Path, model: MIM, **about: Any) -> None:
    """As `MIM.save`."""
    assert model.n_models is None, "save its members"
    weights.write(path, MimFiles.name, model.state_dict(), model.config(), about)


def load_mim(path: str | Path, anchor: Density | None = None, device: torch.device | str = "cpu") -> MIM:
    """A model that `MIM.save` wrote. anchor: P(x), which files do not hold.

    Raises CorruptCheckpointError for a damaged file or one that is no MIM model, UsageError for a missing anchor.
    """
    content = weights.read(path, MimFiles.name)
    if content.config.get("q_x") == "anchor" and anchor is None:
        raise UsageError(f"{path}: this model's q(x) is the data's P(x), which files do not hold; give it as anchor")
    model = weights.build(Path(path), content, lambda config, tensors: _built(config, tensors, anchor))
    return model.to(device)


def _built(config: Mapping[str, Any], tensors: dict[str, Tensor], anchor: Density | None) -> MIM:
    model = MIM(**config, anchor=anchor)
    model.load_state_dict(tensors)
    return model


@register_kind
class MimFiles(Kind[MIM]):
    """MIM models in files."""

    name = "mim"
    models = MIM
    file = "best.safetensors"
    about = (
        "A Mutual Information Machine (or the VAE or auto-encoder that it is held against): an encoder and a decoder "
        "with a latent space of few dimensions."
    )
    use = (
        "from mi_ml_gen.mim import MIM\n\n"
        'model = MIM.from_pretrained("{repo}")\n'
        "z = model.encode(x).mean  # x: (n, x_dim)"
    )
    citation = "livne2019mim"

    def build(self, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> MIM:
        return _built(config, tensors, None)

    def older(self, path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> Content | None:
        """0.1 had one key, with config and about as JSON."""
        if FORMAT not in metadata:
            return None
        head = weights.parsed(path, metadata[FORMAT])
        if not isinstance(head, dict) or not isinstance(head.get("config"), dict):
            raise CorruptCheckpointError(f"{path}: its head is damaged")
        return Content(self.name, head["config"], dict(head.get("about", {})), tensors)


def check_modes(p_z: str, q_x: str, p_z_gmm: int, q_x_gmm: int, learn_P_z: bool) -> None:
    """Raise UsageError, with the reason, for modes of p(z) and q(x) that mean nothing together."""
    for flag, mode in (("p-z", p_z), ("q-x", q_x)):
        if mode not in MODES:
            raise UsageError(f"--{flag} {mode}: must be one of {', '.join(MODES)}")
    if p_z == "marginal" and q_x == "marginal":
        raise UsageError("--p-z marginal --q-x marginal: each is defined by the other; give one of them another mode")
    if learn_P_z and p_z == "marginal":
        raise UsageError("--learn-P-z --p-z marginal: a marginal p(z) cannot be sampled; choose another mode")
    for flag, mode, n in (("p-z", p_z, p_z_gmm), ("q-x", q_x, q_x_gmm)):
        if mode == "gmm-marginal" and n == 0:
            raise UsageError(f"--{flag} gmm-marginal: needs --{flag}-gmm, the number of pseudo inputs")
        if mode in ("anchor", "marginal") and n > 0:
            raise UsageError(f"--{flag}-gmm {n}: --{flag} {mode} has no components; choose prior or gmm-marginal")


def _hidden(n_in: int, width: int, layers: int, **common: Any) -> nn.ModuleList:
    """The layers before the one that gives the distribution."""
    return nn.ModuleList(StackedLinear(width if i else n_in, width, **common) for i in range(layers - 1))
