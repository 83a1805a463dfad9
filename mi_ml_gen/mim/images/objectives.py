"""What the image models are trained for: one formula a loss, for every family.

With a = log p(x|z), b = log q(x), c = log p(z), d = log q(z|x), and beta the warm-up:

    vae          -a + beta (d - c)
    amim         -1/2 [a + c + beta (d + b)] on z ~ q(z|x): A-MIM, the MIM loss on the data alone
    smim         amim + beta times the same on x ~ p(x|z), z ~ p(z): S-MIM
    amim_x       amim with q(x) = p(x|z), b = a: -[a + 1/2 (c + d)] at beta 1, what is left of cMIM without its contrast
    cmim         amim_x + weight times `self_contrast`: cMIM (Livne, arXiv 2509.21511)
    infonce_mim  amim_x + weight times InfoNCE of two views of each image: the baseline with positive pairs

As published, the upper latent's prior enters c as beta log p(z2), and q(x) is the decoder's own marginal, estimated
with the one z that is there: b = a + c - d on the data, so that A-MIM equals -(1 + beta) / 2 [a + c], and b = a on
draws from the decoder. Livne, Swersky and Fleet (arXiv 1910.03175), sections 3 and 4.

The text of the cMIM paper was not at hand. The formula is that of its authors' laboratory for molecules
(github.com/NVIDIA-BioNeMo/KERMT, compute_cmim_loss): all factors have the weight 1, and the temperature is 0.1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mi_ml_gen.core import runtime
from mi_ml_gen.information.infonce import infonce_loss
from mi_ml_gen.mim import losses
from mi_ml_gen.mim.images.base import Components, Drawn, Features, ImageModel, Latents, PriorNoise


class LogProbs(NamedTuple):
    """a, b, c and d of pairs (x, z), (n,) each, as `mi_ml_gen.mim.losses` takes them."""

    x_given_z: Tensor
    q_x: Tensor
    p_z: Tensor
    z_given_x: Tensor


class Terms(NamedTuple):
    """The log-probabilities of pairs (x, z), (n,) each."""

    x_given_z: Tensor
    p_lower: Tensor | float
    """log p(z1|z2); 0 where there is one latent."""
    p_top: Tensor
    """log p of the upper latent."""
    z_given_x: Tensor

    @property
    def kl(self) -> Tensor:
        """log q(z|x) - log p(z): one draw of the divergence of q(z|x) from the prior."""
        return self.z_given_x - (self.p_lower + self.p_top)


class Outcome(NamedTuple):
    """The loss of a batch, and what it is made of: means over the batch, in nats, and scalars all."""

    loss: Tensor
    reconstruction: Tensor
    """-log p(x|z)."""
    kl: Tensor
    contrast: Tensor
    """The contrastive term, before its weight; 0 where there is none."""
    sampled: Tensor
    """The loss of the sampling half; 0 where there is none."""


class Sampled(NamedTuple):
    """Draws of the decoding distribution: z ~ p(z), which is made anew from its noise, and x ~ p(x|z)."""

    noise: PriorNoise
    x: Tensor | None = None
    """(n, C, H, W); None for the decoder's mean images, as published."""


# --- the parts of a loss ------------------------------------------------------------------------------------


def terms_of(model: ImageModel, x: Tensor, seen: Features, drawn: Drawn, components: Components | None) -> Terms:
    """The terms of images and draws z ~ q(z|x)."""
    z = drawn.z
    return Terms(model.log_p_x(x, z), model.log_p_lower(z), model.log_p_top(z.top, components), drawn.log_q)


def vae_loss(terms: Terms, beta: float = 1.0) -> Tensor:
    """Negative evidence bound, (n,)."""
    return losses.vae(_log_probs(terms, terms.p_lower + terms.p_top, terms.x_given_z), beta)


def mim_loss(terms: Terms, beta: float = 1.0, q_x: Tensor | None = None) -> Tensor:
    """The MIM loss of pairs from the data, (n,). q_x: log q(x); default the decoder's marginal."""
    c = terms.p_lower + beta * terms.p_top
    return losses.a_mim(_log_probs(terms, c, terms.x_given_z + c - terms.z_given_x if q_x is None else q_x), beta)


def sampled_loss(terms: Terms, beta: float = 1.0, q_x: Tensor | None = None) -> Tensor:
    """The MIM loss of pairs from the decoder, (n,). q_x: log q(x); default log p(x|z) of the one z that is there."""
    c = terms.p_lower + beta * terms.p_top
    return losses.a_mim(_log_probs(terms, c, terms.x_given_z if q_x is None else q_x), beta)


def _log_probs(terms: Terms, p_z: Tensor, q_x: Tensor) -> LogProbs:
    return LogProbs(terms.x_given_z, q_x, p_z, terms.z_given_x)


def sampling_half(
    model: ImageModel,
    sampled: Sampled,
    beta: float,
    components: Components | None,
    score_function: bool = False,
    as_published: bool = False,
) -> Tensor:
    """The sampling half of S-MIM, (n,): gradients go through z, not through what was drawn as x.

    score_function: add the term that stands for the gradient through x. A draw's weight in it is its loss less the mean
    loss of all others, of all processes, which leaves the expectation of the gradient as it is. The gradient is then
    unbiased, but noisier by far than that of the data half. as_published: the term without that mean, on mean images.
    There it has no effect, as the gradient of log p(x|z) at its own mean x is 0. Grey mean images carry a gradient.

    An autoregressive decoder has batch norms. Its draws are made with their running statistics, so log p(x|z) of these
    draws is, too; and the draws leave the running statistics, with which images are measured, to the data alone.
    """
    z = model.from_prior(sampled.noise, components)
    x = sampled.x
    if x is None:
        mean = model.p_x(z).mean
        x = mean.detach() if model.binary else mean
    # At draws x, the gradient of log p(x|z) itself has the expectation 0: it would only add noise, and take time.
    has_gradient = torch.is_grad_enabled() and (score_function or as_published)
    with torch.set_grad_enabled(has_gradient), model.with_running_statistics():
        log_p_x = model.log_p_x(x, z)
    log_q = model.log_q(model.features(x), z)
    terms = Terms(log_p_x, model.log_p_lower(z), model.log_p_top(z.top, components), log_q)
    q_x = model.log_q_x_mixture(x) if model.spec.q_x_prior == "vampprior" else None
    loss = sampled_loss(terms, beta, q_x)
    if as_published:
        return losses.with_score(loss, terms.x_given_z) if model.binary else loss
    if not score_function:
        return loss
    n = len(loss) * runtime.world_size()
    total = runtime.all_reduce_mean(loss.mean()) * n
    baseline = (total - loss.detach()) / max(1, n - 1)
    return losses.with_score(loss, terms.x_given_z, baseline)


def self_contrast(z: Tensor, temperature: float, alone: bool = False) -> Tensor:
    """The contrastive term of cMIM without positive pairs, -log p(k = 1|x, z), one number for each draw z (n, d) of
    q(z|x), in nats.

    With s = cosine similarity / temperature, each latent is its own positive, at s = 1 / temperature, and is told from
    the latents of other images: -log( e^s(i,i) / (e^s(i,i) + mean over j != i of e^s(i,j)) ). The mean, where InfoNCE
    has a sum, makes it depend little on the size of the batch. Source: see the head of this file. The latents of all
    processes are compared, those of this one where it is `alone`.
    """
    with runtime.full_precision(z.device):
        points = functional.normalize(z.float(), dim=1)
        everyone = points if alone else runtime.gather(points)
        scores = points @ everyone.T / temperature
    own = torch.arange(len(points), device=z.device)
    place = own if alone else own + runtime.rank() * len(points)
    scores = scores.index_put((own, place), scores.new_full((), -math.inf))
    others = torch.logsumexp(scores, 1) - math.log(max(1, len(everyone) - 1))
    return functional.softplus(others - 1 / temperature)


def view_contrast(first: Tensor, second: Tensor, temperature: float, alone: bool = False) -> Tensor:
    """InfoNCE of the latents (n, d) of two views of each image, a scalar in nats: symmetric, as in SimCLR."""
    points = functional.normalize(torch.stack((first, second), 1).float(), dim=2)
    return infonce_loss(points if alone else runtime.gather(points), temperature, temperature)


def shifted_views(x: Tensor, rng: torch.Generator, reach: int = 3) -> Tensor:
    """Each image (n, C, H, W) moved by up to `reach` pixels along both axes, zeros coming in."""
    n, _, height, width = x.shape
    moves = runtime.drawn(
        lambda place: torch.randint(2 * reach + 1, (2, n), generator=rng, device=place), rng, x.device
    )
    padded = functional.pad(x, (reach,) * 4)
    rows = moves[0][:, None] + torch.arange(height, device=x.device)
    columns = moves[1][:, None] + torch.arange(width, device=x.device)
    index = torch.arange(n, device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


# --- the loss of a batch ------------------------------------------------------------------------------------


class Objective(NamedTuple):
    """A loss by name."""

    name: str
    text: str
    is_mim: bool = True
    samples: bool = False
    """Whether it has a sampling half."""
    contrast: str = ""
    """self: `self_contrast`; views: `view_contrast`."""
    has_decoder_as_q_x: bool = False
    """Whether q(x) is p(x|z) of the z that is there, not the decoder's marginal."""


OBJECTIVES = {
    own.name: own
    for own in (
        Objective("vae", "VAE", is_mim=False),
        Objective("amim", "A-MIM"),
        Objective("smim", "S-MIM", samples=True),
        Objective("amim_x", "A-MIM, q(x) = p(x|z)", has_decoder_as_q_x=True),
        Objective("cmim", "cMIM", contrast="self", has_decoder_as_q_x=True),
        Objective("infonce_mim", "InfoNCE + MIM", contrast="views", has_decoder_as_q_x=True),
    )
}


def batch_loss(
    model: ImageModel,
    objective: Objective,
    x: Tensor,
    noise: Latents,
    beta: float = 1.0,
    sampled: Sampled | None = None,
    views: tuple[Tensor, Tensor] | None = None,
    contrast_weight: float = 1.0,
    temperature: float = 0.1,
    score_function: bool = False,
    as_published: bool = False,
    components: Components | None = None,
    alone: bool = False,
) -> Outcome:
    """The loss of a batch of images (n, C, H, W), by `objective`.

    noise: standard normal, of n latents. sampled: draws for the sampling half; without them there is none. views: two
    of each image, where the objective compares them. score_function, as_published: see `sampling_half`. components: of
    the VampPrior, where they are known already. alone: compare the latents of this process only.
    """
    if components is None:
        seen, components = model.features_and_components(x)
    else:
        seen = model.features(x)
    drawn = model.q_z(seen, noise)
    terms = terms_of(model, x, seen, drawn, components)
    zero = x.new_zeros(())
    contrast = half = zero
    if objective.is_mim:
        q_x = terms.x_given_z if objective.has_decoder_as_q_x else None
        if model.spec.q_x_prior == "vampprior":
            q_x = model.log_q_x_mixture(x)
        loss = mim_loss(terms, beta, q_x).mean()
    else:
        loss = vae_loss(terms, beta).mean()
    if objective.contrast == "self":
        contrast = self_contrast(drawn.z.flat, temperature, alone).mean()
    elif objective.contrast == "views" and views is not None:
        first, second = (model.mean_latents(view).flat for view in views)
        contrast = view_contrast(first, second, temperature, alone)
    loss = loss + contrast_weight * contrast
    if sampled is not None:
        half = sampling_half(model, sampled, beta, components, score_function, as_published).mean()
        loss = losses.symmetric(loss, half, beta)
    return Outcome(loss, *(part.detach() for part in (-terms.x_given_z.mean(), terms.kl.mean(), contrast, half)))


__all__ = ["OBJECTIVES", "Objective", "Outcome", "Sampled", "Terms", "batch_loss", "self_contrast", "view_contrast"]
