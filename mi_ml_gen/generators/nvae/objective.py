"""What NVAE minimises: reconstruction, warmed-up and balanced KL divergences, and two regularisers of the weights.

    loss = mean over images of (-log p(x | z) + beta KL) + lambda (spectral norms + largest batch-norm gains)

Vahdat and Kautz (2020), section 3.2 and appendix A.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mi_ml_gen.generators.nvae.network import NormedConv
from mi_ml_gen.generators.nvae.settings import NVAEConfig


def warm_up(step: int, n_steps: int, anneal_portion: float, const_portion: float, const_coeff: float) -> float:
    """beta of a step: `const_coeff` at first, then a linear rise to 1 during `anneal_portion` of all steps."""
    rise = (step - const_portion * n_steps) / max(anneal_portion * n_steps, 1e-12)
    return max(min(1.0, rise), const_coeff)


def balancing(config: NVAEConfig) -> Tensor:
    """alpha of each group, (groups,), least 1: proportional to the area of a scale over its number of groups.

    (In the published code the entries belong to other groups than they are used for if the groups are adaptive.)
    """
    n_groups = config.groups_per_scale
    alpha = torch.tensor([4.0**group.scale / n_groups[group.scale] for group in config.groups])
    return alpha / alpha.min()


def balanced_kl(kl: Tensor, beta: float, alpha: Tensor) -> Tensor:
    """beta KL, averaged over a batch; kl: (n, groups). A scalar.

    During the warm-up a group counts the more, the larger its KL divergence is for its size: so that no group is
    switched off early, since a group that says little is pushed less. The weights have mean 1.
    """
    mean = kl.mean(0)
    if beta >= 1:
        return beta * mean.sum()
    weights = mean.detach().abs() / alpha
    return beta * (weights / weights.mean() * mean).sum()


def bits_per_dimension(nats: Tensor, config: NVAEConfig) -> Tensor:
    """Nats of whole images as bits for each of their colour values."""
    return nats / (math.prod(config.resolution) * math.log(2))


class SpectralNorms(nn.Module):
    """The sum of the largest singular values of all convolutions, each weight as a matrix (filters, all else).

    By power iteration from where the last step left off; weights of equal shape share one batched product.
    """

    FIRST, ITERATIONS = 40, 4

    def __init__(self, network: nn.Module, rng: torch.Generator):
        super().__init__()
        shapes: dict[tuple[int, int], list[NormedConv | nn.Conv2d]] = {}
        for module in network.modules():
            if isinstance(module, (NormedConv, nn.Conv2d)):
                matrix = module.weight.detach().flatten(1)
                shapes.setdefault((matrix.shape[0], matrix.shape[1]), []).append(module)
        self._convs = list(shapes.values())
        for i, ((rows, columns), convs) in enumerate(shapes.items()):
            for side, length in (("u", rows), ("v", columns)):
                draw = torch.randn(len(convs), length, 1, generator=rng)
                self.register_buffer(f"{side}{i}", F.normalize(draw, dim=1))
        self.register_buffer("is_warm", torch.tensor(False))
        self._warm = False

    def load_state_dict(self, *arguments, **options):
        loaded = super().load_state_dict(*arguments, **options)
        self._warm = bool(self.is_warm)
        return loaded

    def forward(self) -> Tensor:
        n_iterations = self.ITERATIONS if self._warm else self.FIRST
        total = []
        for i, convs in enumerate(self._convs):
            weights = torch.stack([conv.weight.flatten(1) for conv in convs])  # (convolutions, rows, columns)
            u, v = getattr(self, f"u{i}"), getattr(self, f"v{i}")
            # Rows times matrices: batched products of a matrix and a column are several times slower on CPUs.
            with torch.no_grad():
                for _ in range(n_iterations):
                    v.copy_(F.normalize((u.mT @ weights).mT, dim=1, eps=1e-3))
                    u.copy_(F.normalize((v.mT @ weights.mT).mT, dim=1, eps=1e-3))
            total.append(((u.clone().mT @ weights) * v.clone().mT).sum())
        if not self._warm:
            self._warm = True
            self.is_warm.fill_(True)  # type: ignore[operator]
        return torch.stack(total).sum()


def largest_gains(network: nn.Module) -> Tensor:
    """The sum over batch norms of the largest gain's magnitude."""
    return torch.stack([m.weight.abs().max() for m in network.modules() if isinstance(m, nn.BatchNorm2d)]).sum()
