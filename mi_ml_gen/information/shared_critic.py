"""One critic network for many questions about the same images, which starts where the canonical critics stand.

A question names places in a group of images: how much do the images at places i and j tell of each other? The map of a
generator asks dozens of questions of one group (experiments/generator_map.py).

The network sees each image once, and answers all questions from what it saw. For question q, with c the principal
components of an image and h what the network makes of it,

    s_q(x, y) = sum_k w_qk u_qk(x) v_qk(y) - b_qk u_qk(x)^2 - d_qk v_qk(y)^2  +  p_q(x) . r_q(y) + e_q(x) + f_q(y)

where u_q and v_q are linear in c, and p_q, r_q, e_q and f_q are linear in c and h. The first part is the critic of
`canonical.py` in the beginning, with its strongest axes; the rest begins near 0. So training begins near the canonical
bound. It improves the axes, of which the canonical critic has only an estimate, and adds what is not linear.

Training minimises the matching loss, summed over the questions, on pairs that no canonical critic was made from. What
is used is an average of the weights over about the last tenth of the steps.

At the end `settle` chooses for each question, on pairs kept for that, the network with a factor, or the canonical
critic alone. Whatever it chooses, the bound on further pairs holds, as it does for any critic.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.resnet import resnet
from mi_ml_gen.information.canonical import CanonicalCritic, Whitening, best_factor, matching_loss

HIDDEN = 256
"""Numbers that the network makes of an image, from which all questions take their vectors."""
POINTS = 64
"""Length of these vectors."""
AXES = 64
"""The most canonical axes that a question begins with."""
SMALL = 0.15
"""Size of the vectors at the beginning: their products are near 0, but at 0 nothing would be learned."""
AT_ONCE = 1024
"""Images that are seen at once where nothing is learned."""


class Question(NamedTuple):
    """A kind of pair, and the critic that it starts with."""

    pairs: tuple[tuple[int, int], ...]
    """Places of the two images in a group. All pairs are trained on, the first is measured."""
    canonical: CanonicalCritic


class Seen(NamedTuple):
    """What the critic has of groups of images, from which it answers every question."""

    values: Tensor
    """What the network makes of the images, and their components, (n_groups, n_places, HIDDEN + n_components)."""
    components: Tensor
    """Principal components of the images, (n_groups, n_places, n_components)."""


class SharedCritic(nn.Module):
    """See the module's header.

    whitening: gives the components of which the canonical critics were made. side: of the images, in px. width:
    channels of the network's first stage. exchangeable: whether (y, x) is distributed as (x, y) is; then both sides
    share their weights. Raises UsageError where there is no question.
    """

    centres: Tensor
    factors: Tensor
    uses_network: Tensor

    def __init__(
        self, whitening: Whitening, questions: Sequence[Question], side: int, width: int, exchangeable: bool
    ) -> None:
        super().__init__()
        if not questions:
            raise UsageError("no question for a critic to answer")
        self.questions = tuple(questions)
        self.whitening = copy.deepcopy(whitening)  # which may stay on another device
        n, n_sides, n_components = len(questions), 1 if exchangeable else 2, whitening.projection.shape[1]
        self.trunk = resnet(10, side, width, zero_init_residual=True, halves=True)
        self.enter = nn.Linear(self.trunk.feature_dim + n_components, HIDDEN)
        self.norm = nn.BatchNorm1d(HIDDEN)
        self.deeper = nn.Linear(HIDDEN, HIDDEN)

        # --- The canonical part
        centres, axes = torch.zeros(n, n_sides, n_components), torch.zeros(n, n_sides, n_components, AXES)
        weights, squares = torch.zeros(n, AXES), torch.zeros(n, n_sides, AXES)
        for index, question in enumerate(questions):
            one = question.canonical
            top = one.correlations.argsort(descending=True)[:AXES]
            k, correlation = len(top), one.correlations[top]
            both = ((one.mean_x, one.axes_x), (one.mean_y, one.axes_y))
            for side_index in range(n_sides):
                mean, side_axes = both[side_index]
                centres[index, side_index] = mean
                axes[index, side_index, :, :k] = side_axes[:, top]
            strength = one.factor * correlation / (1 - correlation.square())
            squares[index, :, :k] = 0.5 * correlation * strength
            if exchangeable:  # axes of the two sides are the same, or opposite
                strength = strength * (one.axes_x[:, top] * one.axes_y[:, top]).sum(0).sign()
            weights[index, :k] = strength
        self.register_buffer("centres", centres)
        self.axes, self.weights, self.squares = (nn.Parameter(value) for value in (axes, weights, squares))

        # --- What the network adds
        n_values = HIDDEN + n_components
        self.vectors = nn.Parameter(torch.randn(n, n_sides, n_values, POINTS) * (SMALL / math.sqrt(n_values)))
        self.terms = nn.Parameter(torch.zeros(n, n_sides, n_values))
        self.register_buffer("factors", torch.ones(n))
        self.register_buffer("uses_network", torch.ones(n, dtype=torch.bool))

    def forward(self, images: Tensor) -> Seen:
        """uint8 images (n_groups, n_places, 3, side, side) -> what all questions need of them."""
        flat = images.flatten(0, 1).float() / 255
        components = self.whitening(flat)
        hidden = functional.relu(self.norm(self.enter(torch.cat([self.trunk(2 * flat - 1), components], 1))))
        hidden = hidden + functional.relu(self.deeper(hidden))
        values = torch.cat([hidden, components], 1)
        return Seen(values.view(*images.shape[:2], -1), components.view(*images.shape[:2], -1))

    @torch.no_grad()
    def see(self, images: Tensor) -> Seen:
        """The same in parts, without gradients; on the device of the critic, wherever the images are."""
        n = max(1, AT_ONCE // images.shape[1])
        parts = [self(part.to(self.weights.device)) for part in images.split(n)]
        return Seen(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def scores(self, seen: Seen, index: int, pair: tuple[int, int]) -> Tensor:
        """Scores (n_groups, n_groups) of question `index`, before its factor: images at place i of all groups, as rows,
        against those at place j."""
        points, sums = zip(*(self._points(seen, index, place, side) for place, side in zip(pair, (0, -1), strict=True)),
                           strict=True)  # fmt: skip
        weights = torch.cat([self.weights[index], self.weights.new_ones(POINTS)])
        return (points[0] * weights) @ points[1].T + sums[0][:, None] + sums[1]

    def _points(self, seen: Seen, index: int, place: int, side: int) -> tuple[Tensor, Tensor]:
        """Vectors (n_groups, AXES + POINTS) of the images at a place, and a term of each image (n_groups,)."""
        values = seen.values[:, place]
        coordinates = (seen.components[:, place] - self.centres[index, side]) @ self.axes[index, side]
        term = values @ self.terms[index, side] - coordinates.square() @ self.squares[index, side]
        return torch.cat([coordinates, values @ self.vectors[index, side]], 1), term

    def losses(self, seen: Seen) -> Tensor:
        """The matching loss of each question in nats, (n_questions,): the mean over its pairs."""
        found = []
        for index, question in enumerate(self.questions):
            found.append(torch.stack([matching_loss(self.scores(seen, index, pair)) for pair in question.pairs]).mean())
        return torch.stack(found)

    def final_scores(self, seen: Seen, index: int) -> Tensor:
        """Scores (n_groups, n_groups) of the pair that is measured, as `settle` left them; on the CPU, where bounds are
        computed in float64."""
        return self.factors[index].cpu() * self._chosen(seen, index, bool(self.uses_network[index])).cpu()

    def _chosen(self, seen: Seen, index: int, network: bool) -> Tensor:
        i, j = pair = self.questions[index].pairs[0]
        if network:
            return self.scores(seen, index, pair)
        return self.questions[index].canonical.scores(seen.components[:, i], seen.components[:, j])

    @torch.no_grad()
    def bounds(self, seen: Seen) -> list[float]:
        """The network's bound in nats on these groups, for each question."""
        n = len(seen.components)
        return [math.log(n) - matching_loss(self._chosen(seen, index, True)).item()
                for index in range(len(self.questions))]  # fmt: skip

    @torch.no_grad()
    def settle(self, seen: Seen) -> None:
        """Choose network or canonical critic for each question, and a factor, on groups that nothing was trained on."""
        for index in range(len(self.questions)):
            scores = self._chosen(seen, index, True).cpu()
            factor = best_factor(scores)
            canonical = matching_loss(self._chosen(seen, index, False).cpu())
            network = bool(matching_loss(factor * scores) < canonical)
            self.uses_network[index] = network
            self.factors[index] = factor if network else 1.0
