"""What a trained model is measured by: divergences, entropies, mutual information, reconstruction, neighbours.

With a = log p(x|z), b = log q(x), c = log p(z), d = log q(z|x) at a pair (x, z), z drawn from q(z|x):

    Dkl_q_p = mean(d - c) at another z ~ q(z|x)       Dkl_p_q = mean(c - d) at z ~ p(z), independent of x
    MI = mean(d - c)     H_q_x = -mean b (the NLL)    H_enc = -mean(b + d)    H_dec = -mean(c + a)
    H_Msamp = -mean log(e^(b+d) / 2 + e^(a+c) / 2)    MI_ksg: from samples, see mi_ml_gen.information
    x_recon_err: mean length of x - x', x' a draw of p(x|z) and not its mean
    clf_acc_KNNk: share of test points whose k nearest training points, in latent space, elect their label

Names are those of the published result files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information.ksg import KsgEstimate, ksg_mutual_information
from mi_ml_gen.mim.datasets import Dataset, Items
from mi_ml_gen.mim.losses import LogProbs
from mi_ml_gen.mim.model import MIM
from mi_ml_gen.report.tables import Estimate

N_KSG = 10_000
"""Pairs that the KSG estimate is made from, at most."""
NEIGHBOURS = (1, 3, 5, 10)
TREE_DIMENSIONS = 8
"""Above it a k-d tree finds Euclidean neighbours no faster than a look at all pairs."""
_DISTANCES_AT_ONCE = 2**24


@dataclass(frozen=True)
class Statistics:
    """One row of results, in nats but for x_recon_err (length) and clf_acc (0 to 1). See the module's header.

    H_P_x is None where P(x) is unknown; epoch and loss are those of the model that was measured, where known.
    """

    Dkl_q_p: float
    Dkl_p_q: float
    Dkl: float
    MI: float
    H_q_x: float
    H_p_z: float
    H_enc: float
    H_dec: float
    H_Msamp: float
    H_mean: float
    MI_ksg: float
    MI_ksg_l2_err: float
    H_P_x: float | None
    H_P_z: float | None
    x_recon_err: float
    epoch: int | None = None
    loss: float | None = None
    clf_acc_KNN1: float | None = None
    clf_acc_KNN3: float | None = None
    clf_acc_KNN5: float | None = None
    clf_acc_KNN10: float | None = None

    def as_dict(self) -> dict[str, float | int]:
        """By name, in the order of the published files, without what is unknown."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if value is not None}


MEANINGS = {
    "Dkl_q_p": "divergence of q(z|x) from p(z), nats",
    "Dkl_p_q": "divergence of p(z) from q(z|x), nats",
    "Dkl": "mean of both divergences, nats",
    "MI": "mutual information by the model's densities, nats",
    "H_q_x": "negative log-likelihood of the data, nats",
    "H_p_z": "negative log of the prior p(z), nats",
    "H_enc": "joint entropy by the encoder, nats",
    "H_dec": "joint entropy by the decoder, nats",
    "H_Msamp": "joint entropy by the sampling mixture, nats",
    "H_mean": "mean of the joint entropies, nats",
    "MI_ksg": "mutual information of x and z by KSG, nats",
    "MI_ksg_l2_err": "published measure of the error of MI_ksg",
    "H_P_x": "entropy of the data where it is known, nats",
    "H_P_z": "negative log of P(z) at the encoded points, nats",
    "x_recon_err": "mean distance of a point from its reconstruction",
    "epoch": "epoch of the model",
    "loss": "its loss on held-out data",
    "clf_acc_KNN1": "accuracy of 1 nearest neighbour in latent space",
    "clf_acc_KNN3": "accuracy of 3 nearest neighbours",
    "clf_acc_KNN5": "accuracy of 5 nearest neighbours",
    "clf_acc_KNN10": "accuracy of 10 nearest neighbours",
}
"""The statistics in a few words, for a terminal; docs/mim.md says more."""


class Densities(LogProbs, Protocol):
    """Pairs and their log-probabilities: `mi_ml_gen.mim.model.Terms`, or anything like it."""

    @property
    def x(self) -> Tensor: ...
    @property
    def z(self) -> Tensor: ...


@torch.no_grad()
def evaluate(
    model: MIM,
    dataset: Dataset,
    rng: torch.Generator,
    *,
    epoch: int | None = None,
    loss: float | None = None,
    n_ksg: int = N_KSG,
    neighbours: bool = True,
) -> Statistics:
    """Measure one model (not a stack) on the test set of its data.

    The latents of the training set, for the neighbours, are those of an epoch's items, of their plain x. epoch, loss:
    of the model, to stand in the row. neighbours: also the KNN accuracies, which take the most time of all.
    """
    assert model.n_models is None, "evaluate the members of a stack one by one"
    test = dataset.draw_test(rng)
    x = test.x
    encoding = model.encode(x)
    z = encoding.rsample(rng)
    terms = model.densities(x, z)
    x_recon = model.decode(z).rsample(rng)

    prior = model.prior()
    if prior is None:  # p(z) is q(z|x)
        forward = backward = torch.zeros(())
    else:
        fresh = encoding.rsample(rng)
        forward = encoding.log_prob(fresh) - prior.log_prob(fresh)
        free = prior.rsample(rng, len(x))
        backward = prior.log_prob(free) - encoding.log_prob(free)

    accuracy: dict[str, float] = {}
    if neighbours:
        train = dataset.draw_epoch(rng)
        codes = Items(model.encode(train.x).rsample(rng), None, train.labels)
        found = neighbour_accuracy(codes.x, codes.labels, z, test.labels)
        accuracy = {f"clf_acc_KNN{k}": share for k, share in found.items()}
    return Statistics(
        **divergences(forward, backward),
        **entropies(terms),
        **information(x, z, n_ksg),
        H_P_x=None if dataset.anchor is None else -_mean(dataset.anchor.log_prob(x)),
        H_P_z=-_mean(model.P_z.log_prob(z)),
        x_recon_err=reconstruction_error(x, x_recon),
        epoch=epoch,
        loss=loss,
        **accuracy,
    )


def divergences(forward: Tensor, backward: Tensor) -> dict[str, float]:
    """From d - c at draws of q(z|x), and c - d at draws of p(z)."""
    q_p, p_q = _mean(forward), _mean(backward)
    return {"Dkl_q_p": q_p, "Dkl_p_q": p_q, "Dkl": (q_p + p_q) / 2}


def entropies(terms: Densities) -> dict[str, float]:
    """What follows from the four log-probabilities alone."""
    a, b, c, d = (runtime.in_float64(t) for t in (terms.x_given_z, terms.q_x, terms.p_z, terms.z_given_x))
    h_enc, h_dec = -_mean(b + d), -_mean(c + a)
    return {
        "MI": _mean(d - c),
        "H_q_x": -_mean(b),
        "H_p_z": -_mean(c),
        "H_enc": h_enc,
        "H_dec": h_dec,
        "H_Msamp": math.log(2) - _mean(torch.logaddexp(b + d, a + c)),
        "H_mean": (h_enc + h_dec) / 2,
    }


def information(x: Tensor, z: Tensor, n_ksg: int = N_KSG) -> dict[str, float]:
    """`published_ksg` of the first n_ksg pairs, and the published, generous measure of its error."""
    n = min(len(x), n_ksg)
    estimate = published_ksg(x[:n], z[:n])
    dims = x.shape[1] + z.shape[1]
    return {"MI_ksg": estimate.nats, "MI_ksg_l2_err": n**-0.5 + n ** (-1 / dims)}


def published_ksg(x: Tensor, z: Tensor) -> KsgEstimate:
    """KSG-1 with k = 5 on distances in the units of x (n, d_x) and z (n, d_z), as published MIM numbers were made. So
    it depends on the scale of the latents against the data: `ksg_mutual_information` by default does not."""
    return ksg_mutual_information(x, z, k=5, scale="none")


def reconstruction_error(x: Tensor, x_recon: Tensor) -> float:
    """Mean Euclidean distance of points (n, d) from their reconstructions."""
    return _mean((x - x_recon).norm(dim=1))


def neighbour_accuracy(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, neighbours: Sequence[int] = NEIGHBOURS
) -> dict[int, float]:
    """For each k, the share of test points (m, d) whose k nearest of the training points (n, d) elect their label.

    Euclidean distances, a vote each, the smallest label where votes are equal. Raises UsageError where there
    are fewer training points than neighbours.
    """
    most = max(neighbours)
    if len(train) < most:
        raise UsageError(f"{most} nearest of {len(train)} training points: there are not so many")
    found = train_labels[nearest_neighbours(train, test, most)]  # (m, most), nearest first
    votes = torch.nn.functional.one_hot(found, int(train_labels.max()) + 1).cumsum(1)  # after 1, 2 ... neighbours
    return {k: _mean(votes[:, k - 1].argmax(1) == test_labels) for k in neighbours}


def nearest_neighbours(points: Tensor, queries: Tensor, k: int) -> Tensor:
    """Indices (m, k) of the k points (n, d) nearest to each of queries (m, d), nearest first."""
    if points.device.type == "cpu" and points.shape[1] <= TREE_DIMENSIONS:
        index = cKDTree(points.numpy()).query(queries.numpy(), range(1, k + 1), workers=-1)[1]
        return torch.from_numpy(np.asarray(index, dtype=np.int64))
    # |p|^2 - 2 p.q orders points as |p - q|^2 does. Centred first: rounding grows with the distance from the origin.
    center = points.mean(0)
    points, queries = points - center, queries - center
    squares = points.square().sum(1)
    rows = max(1, _DISTANCES_AT_ONCE // len(points))
    parts = [torch.addmm(squares, q, points.T, alpha=-2).topk(k, dim=1, largest=False) for q in queries.split(rows)]
    return torch.cat([part.indices for part in parts])


def over_seeds(rows: Iterable[Mapping[str, float | int]]) -> dict[str, Estimate]:
    """Mean and standard error of each quantity over the results of several seeds. Of one seed, the error is not
    a number."""
    rows = list(rows)
    if not rows:
        raise UsageError("over_seeds: no results")
    summary: dict[str, Estimate] = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows if name in row], dtype=float)
        error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        summary[name] = Estimate(float(values.mean()), float(error))
    return summary


def _mean(values: Tensor) -> float:
    return runtime.in_float64(values).mean().item()
