"""What --compile hands to torch.compile: one graph each, and no second one in five steps. Random numbers are drawn
outside of it. The graphs run as they are (backend "eager"), so this compiles nothing."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mi_ml_gen.core import fixed
from mi_ml_gen.encoders.base import Architecture
from mi_ml_gen.encoders.byol import BYOL
from mi_ml_gen.encoders.simclr import SimCLR
from mi_ml_gen.encoders.simsiam import SimSiam
from mi_ml_gen.generators.bigbigan import BigBiGAN, BigBiGANConfig
from mi_ml_gen.generators.nvae.generator import NVAE
from mi_ml_gen.generators.nvae.settings import NVAEConfig
from mi_ml_gen.generators.stylegan2.config import StyleGAN2Config
from mi_ml_gen.generators.stylegan2.generator import StyleGAN2
from mi_ml_gen.information.critic import Critic
from mi_ml_gen.latents import Chunks
from mi_ml_gen.views.augment import Augment

N_STEPS = 5
_NVAE = dict(
    num_scales=1, num_groups_per_scale=2, num_cells_per_group=1, num_latent_per_group=2, initial_channels=4,
    num_pre_post_process_cells=1, num_logistic_mixtures=2,
)  # fmt: skip
GENERATORS = {
    "bigbigan": lambda: BigBiGAN(
        BigBiGANConfig(resolution=16, width=4, multipliers=(2, 1), chunk_dim=3, attention_resolution=8)
    ),
    "stylegan2": lambda: StyleGAN2(
        StyleGAN2Config(
            z_dim=6, w_dim=6, mapping_layers=1, img_resolution=16, channel_base=64, channel_max=8, crop=12, size=9
        )
    ),
    "nvae": lambda: NVAE(NVAEConfig((3, 8, 8), **_NVAE)),
}
SMALL = Architecture(18, 2, True, 8, 4)


@pytest.fixture(autouse=True)
def one_graph():
    """A second graph is an error from here on."""
    from torch import _dynamo

    _dynamo.reset()
    with _dynamo.config.patch(error_on_recompile=True, suppress_errors=False):
        yield
    _dynamo.reset()


def whole(function):
    """In one graph, or an error."""
    return torch.compile(function, backend="eager", fullgraph=True)


@pytest.mark.parametrize(("name", "precision"), [("bigbigan", "bf16"), ("stylegan2", "bf16"), ("nvae", "fp32")])
def test_generators(name, precision):
    torch.manual_seed(0)
    generator = GENERATORS[name]().freeze().to(memory_format=torch.channels_last).hold(precision)
    chunks = Chunks(1, 2)
    decode, decode_pair = whole(generator.decode), whole(generator.decode_pair)
    for _ in range(N_STEPS):
        anchor = generator.latents(torch.randn(2, generator.noise_dim))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            positive = (anchor + 0.1).detach().requires_grad_()
            pair, plain = decode_pair(anchor, positive, chunks), generator.decode_pair(anchor, positive, chunks)
            with torch.no_grad():
                assert torch.equal(decode(anchor), generator.decode(anchor))
        assert all(map(torch.equal, pair, plain))
        slopes = [torch.autograd.grad(one.positive.float().square().sum(), positive)[0] for one in (pair, plain)]
        torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-6)


def test_views():
    augment = Augment("simclr", 16)
    view = whole(augment.view)
    rng = torch.Generator().manual_seed(0)
    for _ in range(N_STEPS):
        images = torch.rand(4, 3, 16, 16, requires_grad=True)
        drawn = augment.draw_pair(2, rng, "cpu")
        assert torch.equal(view(images, drawn), augment.view(images, drawn))


@pytest.mark.parametrize("method", [SimCLR, SimSiam, BYOL])
def test_encoders(method):
    torch.manual_seed(0)
    encoder = method(SMALL).train()
    run = whole(encoder)
    for _ in range(N_STEPS):
        first, second = torch.rand(2, 4, 3, 8, 8)
        encoder.loss(run(first, second).parts).backward()
    counts = [value for key, value in encoder.state_dict().items() if key.endswith("encoder.bn1.num_batches_tracked")]
    n_passes = 1 if method is SimCLR else 2  # of a step; SimCLR's takes both views at once
    assert counts and all(count == n_passes * N_STEPS for count in counts)


class WeightGradients(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name == "aten::convolution_backward":
            self.n += args[-1][1]
        return function(*args, **(kwargs or {}))


def test_the_critic_computes_no_gradient_of_its_weights_in_the_walkers_pass():
    """A graph for each of the two passes, at the first step, and no third one."""
    from torch import _dynamo

    torch.manual_seed(0)
    critic = Critic(8, 4, width=2).train()
    score = torch.compile(critic, backend="aot_eager", fullgraph=True)

    def step() -> tuple[int, int]:
        views = torch.rand(4, 3, 8, 8, requires_grad=True)
        loss = score(views.detach())[:, 0].sum()
        with WeightGradients() as of_critic:
            loss.backward()
        with fixed.without_gradients(critic):
            loss = score(views)[:, 0].sum()
        with WeightGradients() as of_walker:
            (slope,) = torch.autograd.grad(loss, views)
        assert slope.abs().sum() > 0
        return of_critic.n, of_walker.n

    with _dynamo.config.patch(error_on_recompile=False):
        assert step() == (20, 0)
    for _ in range(N_STEPS - 1):
        assert step() == (20, 0)
    assert all(weight.requires_grad for weight in critic.parameters())
