"""One critic network for many questions about the same images, which starts where the canonical critics stand.

A question names places in a group of images: how much do the images at places i and j tell of each other? The map of a
generator asks dozens of questions of one group (experiments/generator_map.py).

The network sees each image once, and answers all questions from what it saw. For question q, with h what the network
makes of an image,

    s_q(x, y) = a_q canonical_q(x, y) + p_q(h(x)) . r_q(h(y)) + b_q(h(x)) + c_q(h(y))

where canonical_q is the critic of `canonical.py`, p_q, r_q, b_q and c_q are linear, and a_q is a number. At first a_q
is 1 and the rest near 0, so training begins at the bound of the canonical critic. Training minimises the matching loss,
summed over the questions, on pairs that no canonical critic was made from. What is used is an average of the weights
over about the last tenth of the steps.

At the end `settle` chooses for each question, on pairs kept for that, the network with a factor, or the canonical
critic alone. Whatever it chooses, the bound on further pairs holds, as it does for any critic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information.canonical import CanonicalCritic, Whitening, best_factor, matching_loss
from mi_ml_gen.information.image_critic import ImageTrunk

HIDDEN = 256
"""Numbers of an image from which every question takes its vectors."""
POINTS = 64
"""Length of these vectors."""
AT_ONCE = 1024
"""Images that are seen at once where nothing is learned."""


class Question(NamedTuple):
    """A kind of pair, and the critic that it starts with."""

    pairs: tuple[tuple[int, int], ...]
    """Places of the two images in a group. All pairs are trained on, the first is measured."""
    canonical: CanonicalCritic


class Seen(NamedTuple):
    """What the critic has of groups of images, from which it answers every question."""

    hidden: Tensor
    """(n_groups, n_places, HIDDEN)"""
    components: Tensor
    """Principal components of the images, (n_groups, n_places, n_components)."""


class SharedCritic(nn.Module):
    """See the module's header.

    whitening: gives the components of which the canonical critics were made. side: of the images, in px. width:
    channels of the network's first stage. exchangeable: whether (y, x) is distributed as (x, y) is; then both sides
    share p and r, and b and c. Raises UsageError where there is no question.
    """

    factors: Tensor
    uses_network: Tensor

    def __init__(
        self, whitening: Whitening, questions: Sequence[Question], side: int, width: int, exchangeable: bool
    ) -> None:
        super().__init__()
        if not questions:
            raise UsageError("no question for a critic to answer")
        self.questions = tuple(questions)
        self.whitening = whitening
        n, n_sides = len(questions), 1 if exchangeable else 2
        self.trunk = ImageTrunk(side, width)
        self.enter = nn.Linear(self.trunk.n_features + whitening.projection.shape[1], HIDDEN)
        self.norm = nn.BatchNorm1d(HIDDEN)
        self.deeper = nn.Linear(HIDDEN, HIDDEN)
        # So short that their products begin near 0; at 0 nothing would be learned.
        self.vectors = nn.Parameter(torch.randn(n, n_sides, HIDDEN, POINTS) * (0.15 / math.sqrt(HIDDEN)))
        self.terms = nn.Parameter(torch.zeros(n, n_sides, HIDDEN))
        self.gains = nn.Parameter(torch.ones(n))
        self.register_buffer("factors", torch.ones(n))
        self.register_buffer("uses_network", torch.ones(n, dtype=torch.bool))

    def forward(self, images: Tensor) -> Seen:
        """uint8 images (n_groups, n_places, 3, side, side) -> what all questions need of them."""
        flat = images.flatten(0, 1).float() / 255
        components = self.whitening(flat)
        hidden = functional.relu(self.norm(self.enter(torch.cat([self.trunk.features(flat), components], 1))))
        hidden = hidden + functional.relu(self.deeper(hidden))
        return Seen(*(values.view(*images.shape[:2], -1) for values in (hidden, components)))

    @torch.no_grad()
    def see(self, images: Tensor) -> Seen:
        """The same in parts, without gradients; on the device of the critic, wherever the images are."""
        n = max(1, AT_ONCE // images.shape[1])
        parts = [self(part.to(self.gains.device)) for part in images.split(n)]
        return Seen(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def scores(self, seen: Seen, index: int, pair: tuple[int, int]) -> Tensor:
        """Scores (n_groups, n_groups) of question `index`, before its factor: images at place i of all groups, as rows,
        against those at place j."""
        i, j = pair
        canonical = self.questions[index].canonical.scores(seen.components[:, i], seen.components[:, j])
        vectors, terms = self.vectors[index], self.terms[index]
        x, y = seen.hidden[:, i], seen.hidden[:, j]
        product = (x @ vectors[0]) @ (y @ vectors[-1]).T
        return self.gains[index] * canonical + product + (x @ terms[0])[:, None] + y @ terms[-1]

    def losses(self, seen: Seen) -> Tensor:
        """The matching loss of each question in nats, (n_questions,): the mean over its pairs."""
        found = []
        for index, question in enumerate(self.questions):
            found.append(torch.stack([matching_loss(self.scores(seen, index, pair)) for pair in question.pairs]).mean())
        return torch.stack(found)

    def final_scores(self, seen: Seen, index: int) -> Tensor:
        """Scores (n_groups, n_groups) of the pair that is measured, as `settle` left them."""
        return self.factors[index] * self._chosen(seen, index, bool(self.uses_network[index]))

    def _chosen(self, seen: Seen, index: int, network: bool) -> Tensor:
        i, j = pair = self.questions[index].pairs[0]
        if network:
            return self.scores(seen, index, pair)
        return self.questions[index].canonical.scores(seen.components[:, i], seen.components[:, j])

    @torch.no_grad()
    def bounds(self, seen: Seen) -> list[float]:
        """The network's bound in nats on these groups, for each question."""
        n = len(seen.hidden)
        return [math.log(n) - matching_loss(self._chosen(seen, index, True)).item()
                for index in range(len(self.questions))]  # fmt: skip

    @torch.no_grad()
    def settle(self, seen: Seen) -> None:
        """Choose network or canonical critic for each question, and a factor, on groups that nothing was trained on."""
        for index in range(len(self.questions)):
            scores = self._chosen(seen, index, True)
            factor = best_factor(scores)
            canonical = matching_loss(self._chosen(seen, index, False))
            network = bool(matching_loss(factor * scores) < canonical)
            self.uses_network[index] = network
            self.factors[index] = factor if network else 1.0
