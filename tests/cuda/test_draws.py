"""The device does not change what is drawn: every draw is the host's, and travels.

Here the numbers are wanted on the meta device, and what is sent there is looked at. tests/cuda/test_steps.py holds
every trainer to drawing nothing on the pretended device, and test_gpu.py compares with a GPU where there is one.
"""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.bigbigan import BigBiGAN, BigBiGANConfig
from mi_ml_gen.generators.linear_gaussian import GaussianPerturbation, LinearGaussian
from mi_ml_gen.generators.nvae.train_settings import NVAETrainConfig
from mi_ml_gen.generators.nvae.training import posterior_noise
from mi_ml_gen.generators.stylegan2.network import NoiseSource, Window
from mi_ml_gen.latents import TruncatedNormal
from mi_ml_gen.mim.distributions import Noise, draw_normal, draw_uniform
from mi_ml_gen.mim.toy import mixture
from mi_ml_gen.views.augment import POLICIES, Augment
from mi_ml_gen.walkers.noise import OccasionalNormal, RandomWalker

NVAE = NVAETrainConfig(
    resolution=(1, 8, 8), num_scales=2, num_groups_per_scale=1, num_latent_per_group=2, cumulative_bs=4
)


class Own:
    """A distribution of a user's own, which draws where it is told to."""

    def sample(self, shape, generator, device):
        return torch.randint(9, shape, generator=generator, device=device).float()


def walked(distribution):
    def draw(rng, device):
        settings = BigBiGANConfig(resolution=8, width=4, multipliers=(1,), chunk_dim=4, attention_resolution=None)
        with torch.device(device):
            generator = BigBiGAN(settings)
        return RandomWalker("1_2", distribution)(generator, torch.zeros(3, 8, device=device), rng).positive

    return draw


def observed(rng, device):
    return LinearGaussian().to(device).draw_pair(3, GaussianPerturbation(0.5), rng=rng).positive


def noise_maps(rng, device):
    layer = SimpleNamespace(noise_const=torch.zeros(8, 8, device=device), resolution=8)
    return NoiseSource("random", rng).map(layer, 2, Window(0, 8))


DRAWS = {
    "normal": lambda rng, device: runtime.normal((3, 4), rng),
    "uniform": lambda rng, device: runtime.uniform((3, 4), rng, device, torch.float64),
    "truncated normal": lambda rng, device: TruncatedNormal(1, 2, 1.5).sample((3, 4), rng),
    "occasional normal": lambda rng, device: OccasionalNormal(0.1, 0.5).sample((3, 4), rng, device),
    "walker": walked(TruncatedNormal()),
    "walker, occasional": walked(OccasionalNormal(0.1, 0.5)),
    "walker, own": walked(Own()),
    "observation noise": observed,
    "noise maps": noise_maps,
    "posterior noise": lambda rng, device: torch.cat([one.flatten() for one in posterior_noise(NVAE, 3, device)]),
    "mim": lambda rng, device: draw_normal(rng, (3, 4), torch.empty(1, device=device)),
    "mim, coins": lambda rng, device: draw_uniform(rng, (3, 4), torch.empty(1, device=device)),
    "mim, stacked": lambda rng, device: Noise([rng, runtime.stream(1, "x", 0, 0, device)]).normal((2, 3)),
    "mim, mixture": lambda rng, device: mixture("toy4").to(device).draw(5, rng).x,
    **{
        f"T_x, {policy}": lambda rng, device, policy=policy: Augment(policy, 32).to(device).draw(5, rng, device).top
        for policy in sorted(POLICIES)
    },
}


def sent(draw, device: str) -> list[torch.Tensor]:
    """What a draw brings to the device."""
    found: list[torch.Tensor] = []
    real = runtime.to_device

    def to_device(tensor, where):
        if torch.device(where).type == device:
            found.append(tensor)
        return real(tensor, where)

    with mock.patch.object(runtime, "to_device", to_device):
        result = draw(runtime.stream(0, "x", 0, 0, device), device)
    assert result.device.type == device
    return found


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_the_hosts(name):
    here, there = sent(DRAWS[name], "cpu"), sent(DRAWS[name], "meta")
    assert there
    for a, b in zip(here[-len(there) :], there, strict=True):
        assert a.device.type == b.device.type == "cpu"
        assert torch.equal(a, b)


def test_a_stream_is_the_same_wherever_it_is_wanted():
    states = [runtime.stream(3, "x", 4, 5, device).get_state() for device in ("cpu", "cuda:1", "meta")]
    assert all(torch.equal(state, states[0]) for state in states)
    assert [runtime.wanted_on(runtime.stream(0, "x", 0, 0, d)).type for d in ("cpu", "cuda")] == ["cpu", "cuda"]
    assert runtime.wanted_on(torch.Generator()) == torch.device("cpu")


def test_without_a_generator_the_device_draws():
    assert runtime.normal((2,), None, "meta").is_meta
    torch.manual_seed(0)
    first = runtime.uniform((2,))
    torch.manual_seed(0)
    assert torch.equal(first, torch.rand(2))


def test_parameters_of_views_survive_their_journey():
    """They travel as one matrix of float32, and come out as what was drawn."""
    drawn = Augment("simclr", 128).draw(1000, runtime.stream(0, "x", 0, 0), "cpu")
    assert drawn.flip.dtype == drawn.jitter.dtype == drawn.grayscale.dtype == torch.bool
    assert drawn.blend_order.dtype == drawn.hue_position.dtype == torch.int64
    assert torch.equal(drawn.blend_order.sort(dim=1).values, torch.arange(3).expand(1000, -1))
    assert drawn.hue_position.min() >= 0 and drawn.hue_position.max() <= 3
    for share, wanted in ((drawn.flip, 0.5), (drawn.jitter, 0.8), (drawn.grayscale, 0.2)):
        assert abs(share.float().mean().item() - wanted) < 0.06
    assert (drawn.top + drawn.height).max() <= 128 and (drawn.left + drawn.width).max() <= 128


def device_named_in(call: ast.Call) -> ast.expr | None:
    """The device that a call with a generator draws on, where that is not the generator's own."""
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    if not {"generator", "device"} <= set(named) or ast.unparse(call.func).rpartition(".")[2][0].isupper():
        return None
    device = named["device"]
    own = f"{ast.unparse(named['generator'])}.device"
    return None if ast.unparse(device) in ("place", own) else device


def test_no_file_draws_past_this():
    """A draw on another device than its generator's fails, but on a GPU alone. `place` is what `drawn` hands in."""
    package = Path(runtime.__file__).parents[1]
    found = [
        f"{path.relative_to(package)}:{node.lineno}: {ast.unparse(node)}"
        for path in sorted(package.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and device_named_in(node) is not None
    ]
    assert found == [], "draw with runtime.normal, runtime.uniform or runtime.drawn"
    planted = ast.parse("torch.randn(3, generator=rng, device=z.device)").body[0].value  # type: ignore[attr-defined]
    assert device_named_in(planted) is not None


# --- what travels


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).view(3, 4),
        torch.arange(4)[:, None, None, None].expand(-1, 3, 2, 2),
        torch.arange(3.0).expand(5, 3),
        torch.ones(()).expand(4),
        torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.arange(24.0).view(4, 6)[:, ::2],
        torch.arange(6.0).unfold(0, 3, 1),
        torch.empty(0, 3),
    ],
    ids=["plain", "grey", "rows", "scalar", "channels last", "strided", "overlapping", "empty"],
)
def test_what_goes_to_a_gpu_is_page_locked_once(monkeypatch, tensor):
    """Page-locked memory takes no tensor whose values share their place; on the device the axis is expanded again."""
    pinned = []

    def pin(self):
        assert torch._debug_has_internal_overlap(self) != 1
        assert 0 not in [stride for size, stride in zip(self.shape, self.stride(), strict=True) if size > 1]
        pinned.append(self.clone())
        return self

    class There(torch.Tensor):
        def to(self, device, non_blocking=False):
            assert non_blocking and torch.device(device).type == "cuda"
            return self.as_subclass(torch.Tensor)

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pin(self).as_subclass(There))
    there = runtime.to_device(tensor, "cuda:0")
    assert torch.equal(there, tensor) and there.shape == tensor.shape
    assert len(pinned) == 1 and pinned[0].numel() <= tensor.numel()
    if tensor.shape == (4, 3, 2, 2):
        assert pinned[0].numel() == 4  # a grey image once, not three times


def test_a_generator_on_another_device_is_refused():
    class Elsewhere(torch.Generator):
        device = torch.device("cuda", 1)

    with pytest.raises(UsageError, match="generator on cuda:1"):
        Augment("simclr", 32).draw(2, Elsewhere(), "cpu")
