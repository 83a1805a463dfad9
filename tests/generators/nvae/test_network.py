"""NVAE's network against the reference implementation's numbers, and its fast paths against plain ones."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.nvae.likelihood import LogisticMixture
from mi_ml_gen.generators.nvae.network import AutoEncoder, BatchNorm, DecoderCell, Normal, NormedConv, UpSkip
from mi_ml_gen.generators.nvae.settings import Group, NVAEConfig
from tests.conftest import load_helper

golden = load_helper("nvae")


@pytest.fixture(scope="module")
def numbers():
    return golden.numbers()


@pytest.fixture(scope="module", params=["plain", "folded"])
def networks(request):
    """Both variants, as trained and folded."""
    made = {variant: golden.network(variant) for variant in golden.VARIANTS}
    if request.param == "folded":
        for network in made.values():
            network.fold()
    return made


def noise(numbers, config) -> list[torch.Tensor]:
    return [torch.from_numpy(numbers[f"a/eps/{group}"]) for group in config.groups]


def close(found: torch.Tensor, expected: np.ndarray, rtol: float = 1e-4) -> None:
    """Within rtol of the largest number expected."""
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=rtol * max(np.abs(expected).max(), 1e-9))


@pytest.mark.parametrize("variant", golden.VARIANTS)
def test_names_and_shapes_are_those_of_the_checkpoints(variant):
    network = AutoEncoder(golden.settings(variant))
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == golden.shapes(variant)
    assert sum(p.numel() for p in network.parameters()) == golden.LAYOUT[variant]["num_parameters"]


@pytest.mark.parametrize("n_flows", [None, 2])
def test_the_published_cifar_network_has_the_published_size(n_flows):
    layout = golden.LAYOUT["cifar10"]
    config = NVAEConfig.from_file(layout["autoencoder"] | {"num_nf_cells": n_flows}, layout["resolution"])
    with torch.device("meta"):
        network = AutoEncoder(config)
    suffix = "" if n_flows is None else "_nf"
    assert sum(p.numel() for p in network.parameters()) == layout[f"num_parameters{suffix}"]
    assert len(network.state_dict()) == layout[f"number_of_state_dict_keys{suffix}"]
    found = [[str(group), list(shape)] for group, shape in zip(config.groups, config.latent_shapes, strict=True)]
    assert found == layout["latents"]


@pytest.mark.parametrize("temperature", ["0.6", "1.0"])
@torch.no_grad()
def test_decoding_equals_the_reference(numbers, networks, temperature):
    network = networks["plain"]
    logits = network.decode(noise(numbers, network.config), float(temperature))
    close(logits, numbers[f"a/t{temperature}/logits"])
    mixture = LogisticMixture.of(logits, 3, 3)
    close(mixture.mean() * 0.5 + 0.5, numbers[f"a/t{temperature}/image_mean"])


@torch.no_grad()
def test_every_stage_equals_the_reference(numbers, networks):
    """Latent variables, means and scales of each group at temperature 0.6."""
    network, eps = networks["plain"], noise(numbers, networks["plain"].config)
    x = network.start(2)
    for i, group in enumerate(network.config.groups):
        prior = network.prior(i, x)
        normal = prior.normal(eps[i])
        z = normal.at(eps[i], 0.6)
        x = network.absorb(i, prior.features, z)
        close(normal.mean, numbers[f"a/t0.6/mu/{group}"])
        close(0.6 * normal.sigma, numbers[f"a/t0.6/sigma/{group}"])
        close(z, numbers[f"a/t0.6/z/{group}"])


@torch.no_grad()
def test_sampled_pixels_equal_the_reference(numbers, networks):
    network = networks["plain"]
    mixture = LogisticMixture.of(network.decode(noise(numbers, network.config)), 3, 3)
    u_mix, u_px = (torch.from_numpy(numbers[f"a/{name}"]).unflatten(2, (32, 32)) for name in ("u_mix", "u_px"))
    found = (mixture.sample(u_mix, u_px) * 0.5 + 0.5).numpy()
    differing = np.abs(found - numbers["a/t1.0/image_sampled"]) > 1e-4
    assert differing.mean() < 1e-3  # near ties of the largest logit


@pytest.mark.parametrize(("variant", "letter"), golden.VARIANTS.items())
@torch.no_grad()
def test_posterior_and_likelihood_equal_the_reference(numbers, networks, variant, letter):
    network = networks[variant]
    images = torch.from_numpy(numbers["a/x_uint8"]).float() / 255
    out = network(images, noise(numbers, network.config))
    close(out.logits, numbers[f"{letter}/fwd/logits"])
    np.testing.assert_allclose(out.kl.numpy(), numbers[f"{letter}/fwd/kl"], rtol=1e-4)
    log_prob = LogisticMixture.of(out.logits, 3, 3).log_prob(images * 2 - 1, as_published=True)
    np.testing.assert_allclose(-log_prob.numpy(), numbers[f"{letter}/fwd/rec_loss"], rtol=1e-5)


@pytest.mark.parametrize(("variant", "letter"), golden.VARIANTS.items())
@pytest.mark.parametrize("temperature", [0.7, 1.0])
@torch.no_grad()
def test_reconstruction_comes_back_from_its_noise(numbers, networks, variant, letter, temperature):
    network = networks[variant]
    out = network(torch.from_numpy(numbers["a/x_uint8"]).float() / 255, None, temperature)
    expected = numbers[f"{letter}/reconstruct_mean"]
    for logits in (out.logits, network.decode(out.noise, temperature)):
        close(LogisticMixture.of(logits, 3, 3).mean() * 0.5 + 0.5, expected)


@torch.no_grad()
def test_samples_change_the_statistics_of_the_decoder_alone(numbers):
    network = golden.network("plain").train()
    before = copy.deepcopy(network.state_dict())
    eps = noise(numbers, network.config)
    for sign in (1, -1):
        network.decode([sign * part for part in eps], 0.6)
    after = network.state_dict()
    changed = [key for key in after if not torch.equal(before[key], after[key])]
    assert len(changed) == numbers["a/bn2/n_changed"] == 3 * len(network.decoder_norms())
    name = "decoder_tower.scale_0.group_1.cell_0.residual.0"  # the first one: its input is that of group 0:0
    mean = before[f"{name}.running_mean"]
    for sign in (1, -1):
        x = network.absorb(0, network.start(2), sign * 0.6 * eps[0])
        mean = 0.95 * mean + 0.05 * x.mean((0, 2, 3))
    torch.testing.assert_close(after[f"{name}.running_mean"], mean)


# What is computed otherwise than it is written down


def test_folding_leaves_the_function_and_repeats_itself():
    torch.manual_seed(0)
    layer = NormedConv(5, 7, 3).double()
    with torch.no_grad():
        layer.parametrizations["weight"].original0.mul_(3)
    x = torch.randn(2, 5, 6, 6, dtype=torch.float64)
    before = layer(x)
    reference = nn.utils.parametrizations.weight_norm(nn.Conv2d(5, 7, 3, padding=1).double(), dim=0)
    reference.load_state_dict(layer.state_dict())
    torch.testing.assert_close(before, reference(x), rtol=0, atol=1e-12)
    layer.fold()
    torch.testing.assert_close(layer(x), before, rtol=0, atol=1e-12)
    once = layer.parametrizations["weight"].original1.clone()
    layer.fold()
    assert torch.equal(layer.parametrizations["weight"].original1, once)


class SlowUpCell(nn.Module):
    """`DecoderCell` as the contract has it: first the doubling, then everything at the doubled resolution."""

    def __init__(self, cell: DecoderCell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        skip = self.cell.skip_connection
        assert isinstance(skip, UpSkip)
        bilinear = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        h = x
        for layer in self.cell.residual:
            if isinstance(layer, BatchNorm):
                momentum, eps = layer.momentum, layer.eps
                statistics = layer.running_mean, layer.running_var
                h = F.batch_norm(h, *statistics, layer.weight, layer.bias, self.training, momentum, eps)
            else:
                h = layer(h)
        return skip.conv(bilinear) + 0.1 * h


@pytest.mark.parametrize("training", [True, False])
def test_doubling_late_equals_doubling_first(training):
    torch.manual_seed(0)
    cell = DecoderCell(8, expansion=3, up=True).double().train(training)
    slow = SlowUpCell(copy.deepcopy(cell)).train(training)
    x = torch.randn(4, 8, 5, 5, dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        torch.testing.assert_close(cell(x), slow(x), rtol=0, atol=1e-11)
    weights = torch.randn(4, 4, 10, 10, dtype=torch.float64)
    gradients = [torch.autograd.grad((network(x) * weights).sum(), x)[0] for network in (cell, slow)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)
    for name, buffer in slow.cell.named_buffers():
        if "running" in name:
            torch.testing.assert_close(cell.get_buffer(name), buffer, rtol=0, atol=1e-12)


@pytest.mark.parametrize("up", [True, False])
def test_a_folded_cell_equals_itself(up):
    torch.manual_seed(0)
    cell = DecoderCell(8, expansion=6, up=up).double()
    x = torch.randn(4, 8, 5, 5, dtype=torch.float64)
    for _ in range(3):
        cell(x + 1)  # so that the statistics are not those of the start
    cell.eval()
    expected = cell(x)
    cell.fold()
    torch.testing.assert_close(cell(x), expected, rtol=0, atol=1e-12)


# Distributions


def test_kl_equals_torchs():
    torch.manual_seed(0)
    q, p = (Normal.clamped(*torch.randn(2, 50, dtype=torch.float64)) for _ in range(2))
    pair = [torch.distributions.Normal(*normal) for normal in (q, p)]
    torch.testing.assert_close(q.kl_to(p), torch.distributions.kl_divergence(*pair))
    z = q.at(torch.randn(50, dtype=torch.float64))
    torch.testing.assert_close(q.log_prob(z), pair[0].log_prob(z))
    torch.testing.assert_close(q.noise_of(q.at(z, 0.3), 0.3), z)


@pytest.mark.parametrize("n_colours", [1, 3])
def test_probabilities_of_all_values_of_the_last_colour_sum_to_that_of_the_others(n_colours):
    torch.manual_seed(0)
    parameters = torch.randn(1, {1: 5 * 3, 3: 5 * 10}[n_colours], 1, 1, dtype=torch.float64)
    mixture = LogisticMixture.of(parameters, 5, n_colours)
    grid = torch.full((256, n_colours, 1, 1), 1 / 5, dtype=torch.float64)
    grid[:, -1, 0, 0] = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    every = LogisticMixture(*(part.expand(256, *part.shape[1:]) for part in vars(mixture).values()))
    expected = torch.zeros(1, dtype=torch.float64)[0] if n_colours == 1 else _two_colours(mixture, 1 / 5)
    torch.testing.assert_close(every.log_prob(grid).logsumexp(0), expected, rtol=0, atol=1e-6)
    assert every.log_prob(grid, as_published=True).logsumexp(0) > expected + 0.01


def _two_colours(mixture: LogisticMixture, value: float) -> torch.Tensor:
    """log p(red = green = value), slowly, from the logistic distribution itself."""
    terms = []
    for k in range(mixture.logits.shape[1]):
        log_p = torch.log_softmax(mixture.logits, 1)[0, k, 0, 0]
        shift = {0: 0.0, 1: mixture.couplings[0, k, 0, 0, 0] * value}
        for colour in range(2):
            mean = mixture.means[0, k, colour, 0, 0] + shift[colour]
            scale = mixture.log_scales[0, k, colour, 0, 0].exp()
            edges = torch.stack([value + 1 / 255 - mean, value - 1 / 255 - mean]) / scale
            log_p = log_p + torch.log(torch.sigmoid(edges[0]) - torch.sigmoid(edges[1]))
        terms.append(log_p)
    return torch.stack(terms).logsumexp(0)


# Sizes


def test_adaptive_groups():
    config = NVAEConfig(num_groups_per_scale=8, is_adaptive=True, min_groups_per_scale=3)
    assert config.groups_per_scale == (3, 4, 8)
    assert config.groups[:4] == (Group(0, 0), Group(0, 1), Group(0, 2), Group(1, 0))
    assert config.latent_shapes[0] == (16, 4, 4) and config.latent_shapes[-1] == (16, 16, 16)


def test_a_configuration_comes_back_from_its_file_form():
    config = NVAEConfig((1, 64, 64), num_pre_post_process_blocks=2, num_nf_cells=2)
    written = json.loads(json.dumps(config.to_file()))
    assert written["autoencoder"]["num_pre-post_process_blocks"] == 2
    assert NVAEConfig.from_file(written["autoencoder"], written["resolution"]) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_scales": 0}, "num_scales 0: must be a whole number"),
        ({"num_scales": 40}, "num_scales 40: an image of 32 px cannot be halved"),
        ({"num_groups_per_scale": 10**9}, "num_groups_per_scale 1000000000: must be"),
        ({"num_nf_cells": 0}, "num_nf_cells 0"),
        ({"is_adaptive": 1}, "is_adaptive 1: must be true or false"),
        ({"num_scale": 2}, "unknown key num_scale .*num_scales"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(change, message):
    layout = golden.LAYOUT["cifar10"]
    with pytest.raises(UsageError, match=message):
        NVAEConfig.from_file(layout["autoencoder"] | change, layout["resolution"])


@pytest.mark.parametrize("resolution", [[3, 32], [3, 32, 48], [4, 32, 32], "3232", None, [3, 48, 48.0], [3, 36, 36]])
def test_resolutions_that_make_no_sense_are_refused(resolution):
    with pytest.raises(UsageError, match="resolution"):
        NVAEConfig.from_file(golden.LAYOUT["cifar10"]["autoencoder"], resolution)
