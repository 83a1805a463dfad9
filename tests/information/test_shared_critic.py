"""The critic of many questions: it starts at the canonical bound, finds what is not linear, and is given up where it is
worse."""

from __future__ import annotations

import math

import pytest
import torch

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.information.canonical import CanonicalCritic, Whitening, matching_bound
from mi_ml_gen.information.shared_critic import Question, SharedCritic

SIDE = 4


def groups(n: int, name: int) -> torch.Tensor:
    """uint8 (n, 3, 3, 4, 4). Places 0 and 1 share a number that each shows with a sign and noise of its own, so they
    are uncorrelated; places 0 and 2 share the sign, so they are correlated."""
    rng = torch.Generator().manual_seed(name)
    size = 0.2 + 1.3 * torch.rand(n, 1, generator=rng)
    other = 0.2 + 1.3 * torch.rand(n, 1, generator=rng)
    first, second = (2.0 * torch.randint(2, (n, 1), generator=rng) - 1 for _ in range(2))
    shown = torch.stack([size * first, size * second, other * first], 1)  # (n, 3, 1)
    values = shown + 0.05 * torch.randn(n, 3, 1, generator=rng)
    clean = 127.5 + 60 * values[..., None, None].expand(n, 3, 3, SIDE, SIDE)
    return (clean + 2 * torch.randn(clean.shape, generator=rng)).clamp(0, 255).round().byte()


def made(exchangeable: bool = True) -> SharedCritic:
    train = groups(1024, 0)
    whitening = Whitening.of(train[:512].flatten(0, 1).float() / 255)
    inputs = whitening(train.flatten(0, 1).float() / 255).view(1024, 3, -1)
    questions = [Question(((0, j),), CanonicalCritic.of(inputs[:, 0], inputs[:, j], exchangeable)) for j in (1, 2)]
    torch.manual_seed(0)
    return SharedCritic(whitening, questions, SIDE, 4, exchangeable)


def trained(critic: SharedCritic, n_steps: int = 80) -> SharedCritic:
    critic.train()
    optimizer = torch.optim.Adam(critic.parameters(), lr=3e-3)
    for step in range(n_steps):
        losses = critic.losses(critic(groups(128, 100 + step)))
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
    return critic.eval()


def canonical_bounds(critic: SharedCritic, held: torch.Tensor) -> list[float]:
    components = critic.see(held).components
    return [
        matching_bound(one.canonical.scores(*(components[:, place] for place in one.pairs[0]))).nats
        for one in critic.questions
    ]


@pytest.mark.parametrize("exchangeable", [True, False])
def test_it_starts_at_the_canonical_bound(exchangeable):
    critic, held = made(exchangeable).eval(), groups(512, 1)
    begun, canonical = critic.bounds(critic.see(held)), canonical_bounds(critic, held)
    assert canonical[0] == 0.0 and canonical[1] > 0.3  # nothing linear in the first question
    assert begun == pytest.approx(canonical, abs=0.1)


@pytest.mark.parametrize("exchangeable", [True, False])
def test_it_finds_what_is_not_linear_and_is_a_bound(exchangeable):
    critic, held = trained(made(exchangeable)), groups(512, 1)
    critic.settle(critic.see(groups(512, 2)))
    assert critic.uses_network.all()
    seen = critic.see(held)
    first, second = (matching_bound(critic.final_scores(seen, index)) for index in (0, 1))
    canonical = canonical_bounds(critic, held)
    assert first.nats > 0.6 and canonical[0] == 0.0
    # A sign has log 2 nats, and nothing else is shared.
    assert canonical[1] - 0.02 <= second.nats <= math.log(2) + 3 * second.standard_error_nats
    assert second.nats > math.log(2) - 0.15


def test_a_network_that_is_worse_is_not_used():
    critic, held = made().eval(), groups(512, 1)
    with torch.no_grad():
        critic.vectors.copy_(torch.randn(critic.vectors.shape, generator=torch.Generator().manual_seed(1)))
    critic.settle(critic.see(groups(512, 2)))
    found = matching_bound(critic.final_scores(critic.see(held), 1)).nats
    assert not critic.uses_network[1] and found == pytest.approx(canonical_bounds(critic, held)[1], abs=1e-6)


def test_no_question_is_refused():
    critic = made()
    with pytest.raises(UsageError, match="no question"):
        SharedCritic(critic.whitening, [], SIDE, 4, True)
