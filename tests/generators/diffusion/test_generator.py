"""A diffusion model as a generator: gradients, memory, pairs, and what its use changes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import CorruptCheckpointError, UsageError
from mi_ml_gen.generators.checking import check_generator
from mi_ml_gen.generators.diffusion import generator as module
from mi_ml_gen.generators.diffusion.generator import Diffusion
from mi_ml_gen.generators.diffusion.network import UNet
from mi_ml_gen.generators.diffusion.processes import DDIM, PROCESSES
from mi_ml_gen.generators.diffusion.settings import UNetConfig
from mi_ml_gen.generators.registry import load_generator, save_generator
from mi_ml_gen.latents import Chunks

SIZES = UNetConfig(
    sample_size=8, in_channels=1, patch=2, block_out_channels=(4, 8), norm_num_groups=2, down=("plain", "attention"),
    up=("attention", "plain"),
)  # fmt: skip


def small(process: str = "v", **use) -> Diffusion:
    torch.manual_seed(0)
    made = Diffusion(SIZES, PROCESSES[process](), "small", {"steps": 5, "block": 2, **use})
    made.freeze()
    return made


def noise(generator: Diffusion, n: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(n, generator.noise_dim, generator=rng, dtype=torch.float64).to(dtype)


def test_keeps_the_promises_of_the_interface():
    check_generator(small())


@pytest.mark.parametrize("process", ["v", "epsilon", "flow", "ddpm", "ddim"])
def test_gradients_equal_finite_differences(process):
    """In float64, along random directions, of every noise by itself; the clipping has a kink, which none is near."""
    generator = small(process).double()
    z = noise(generator, dtype=torch.float64).requires_grad_()
    weights = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def value(z: torch.Tensor) -> torch.Tensor:
        return (generator.synthesize(z) * weights[:, :1]).sum()

    slope = torch.autograd.grad(value(z), z)[0]
    for part in torch.arange(generator.noise_dim).split(SIZES.sample_size**2):
        way = torch.zeros_like(z)
        way[:, part] = torch.randn(2, len(part), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            expected = (value(z + 1e-6 * way) - value(z - 1e-6 * way)) / 2e-6
        assert (slope * way).sum().item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)


def test_the_gradient_is_that_of_plain_backpropagation():
    """A network in training keeps everything, which is the slow twin; the same in bf16, whose autocast comes back."""
    for precision in ("fp32", "bf16"):
        slopes = []
        for is_trained in (False, True):
            generator = small()
            generator.unet.requires_grad_(is_trained)
            z = noise(generator).requires_grad_()
            with runtime.autocast(torch.device("cpu"), precision):
                images = generator.decode(z)
            slopes.append(torch.autograd.grad(images.square().sum(), z)[0])
        torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-5, atol=1e-6)


def test_memory_does_not_grow_by_the_networks_maps_with_the_steps():
    """What a backward pass keeps for each further step is one image and no map of the network."""

    def kept(steps: int) -> int:
        generator, found = small(steps=steps), []
        z = noise(generator).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t.nbytes), lambda _: None):
            generator.decode(z)
        return sum(found)

    image = 2 * SIZES.sample_size**2 * 4
    assert kept(13) - kept(5) == 8 * image
    generator, maps = small(), []
    generator.unet.requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: maps.append(t.nbytes), lambda _: None):
        generator.decode(noise(generator).requires_grad_())
    assert sum(maps) > 20 * kept(5)


@pytest.mark.parametrize("process", ["v", "flow", "ddim"])
def test_a_pair_equals_two_decodings_and_runs_what_is_shared_once(process):
    generator = small(process)
    calls: list[int] = []
    generator.unet.register_forward_hook(lambda *_: calls.append(1))
    z = noise(generator)
    for i in range(generator.layout.n_chunks):
        chunks, moved, other = Chunks(i, i + 1), z.clone(), z.clone()
        at = generator.layout.slice(chunks)
        moved[:, at], other[:, at] = moved[:, at].flip(0) + 1, 0.5 * moved[:, at]
        with torch.no_grad():
            expected = [generator.decode(part) for part in (z, moved, other)]
            calls.clear()
            pair = generator.decode_pair(z, moved, chunks)
            assert len(calls) == 5 + (5 - 2 * i)
            variants = generator.decode_variants(z, [moved, other], chunks)
        for found, wanted in zip((*pair, *variants.variants), (*expected[:2], *expected[1:]), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
        assert not torch.equal(expected[0], expected[1])


def test_gradients_of_a_pair_reach_the_perturbed_chunk():
    generator = small()
    z = noise(generator)
    chunks = Chunks(1, 2)
    at = generator.layout.slice(chunks)
    moved = z.clone()
    moved[:, at] += 0.1
    slopes = []
    for decode in (generator.decode, lambda rows: generator.decode_pair(z, rows, chunks).positive):
        rows = moved.clone().requires_grad_()
        slopes.append(torch.autograd.grad(decode(rows).square().sum(), rows)[0][:, at])
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-5, atol=1e-7)
    assert slopes[0].abs().sum() > 0


def test_each_chunk_is_a_block_of_noises():
    generator = small()
    assert generator.layout.sizes == (128, 128, 64) and generator.layout.shapes == ((2, 8, 8), (2, 8, 8), (1, 8, 8))
    generator.use(["steps=6", "block=1", "eta=0.5"])
    assert generator.layout.sizes == (64,) * 6 and generator.noise_dim == 384


def test_the_factor_scales_the_noise_and_eta_the_noise_of_the_steps():
    generator = small()
    z = noise(generator)
    expected = generator.decode(z)
    torch.testing.assert_close(generator.use({"scale": 2.0}).decode(z / 2), expected, rtol=0, atol=1e-5)
    generator.use({"scale": 1.0, "eta": 1e-4, "block": 1})
    moved = z.clone()
    moved[:, 64:] = moved[:, 64:].flip(0)
    assert (generator.decode(moved) - generator.decode(z)).abs().max() < 1e-2
    moved[:, :64] = moved[:, :64].flip(0)
    assert (generator.decode(moved) - generator.decode(z)).abs().max() > 0.05


@pytest.mark.parametrize(
    ("use", "says"),
    [
        (["eta=0"], "eta=0: must be above 0"),
        (["eta=1.5"], "must be at most 1"),
        (["block=6"], "block=6: 5 steps of small have 5 noises"),
        (["steps=0"], "must be at least 1"),
        (["psi=1"], "unknown key psi"),
    ],
)
def test_uses_without_meaning_are_refused(use, says):
    generator = small()
    with pytest.raises(UsageError, match=says):
        generator.use(use)
    assert generator.how.steps == 5 and generator.layout.n_chunks == 3


def test_a_file_brings_back_the_same_generator(tmp_path):
    for process in (PROCESSES["flow"](), DDIM(num_train_timesteps=50, prediction_type="v_prediction")):
        generator = Diffusion(SIZES, process, "mine", {"steps": 4, "block": 3, "scale": 1.1})
        generator.freeze()
        save_generator(tmp_path / "g.safetensors", generator)
        again = load_generator("diffusion", tmp_path / "g.safetensors")
        z = noise(generator)
        assert again.name == "mine" and again.layout == generator.layout and again.how == generator.how
        torch.testing.assert_close(again.decode(z), generator.decode(z), rtol=0, atol=1e-6)  # other memory layouts


def test_damaged_configurations_are_refused():
    generator = small()
    state = generator.state_dict()
    good = generator.config()
    assert module.build(good, state, "g").layout == generator.layout
    for part, value in (
        ("process", {"kind": "path/to/file.py:Class"}),
        ("process", {"kind": "v", "x": 1}),
        ("network", good["network"] | {"block_out_channels": [4]}),
        ("network", good["network"] | {"act_fn": "os.system"}),
        ("network", good["network"] | {"colour": 1}),
        ("use", {"steps": 10**6, "block": 0}),
    ):
        with pytest.raises(CorruptCheckpointError):
            module.build(good | {part: value}, state, "g")
    with pytest.raises(CorruptCheckpointError, match="shape"):
        module.build(good | {"network": good["network"] | {"block_out_channels": [8, 8]}}, state, "g")


def test_colours_and_patches():
    """Three colours; a network with patches sees the same pixels, as channels."""
    for patch in (1, 2):
        sizes = dataclasses.replace(SIZES, in_channels=3, patch=patch)
        generator = Diffusion(sizes, PROCESSES["v"](), use={"steps": 2, "block": 1})
        generator.freeze()
        images = generator.decode(noise(generator))
        assert images.shape == (2, 3, 8, 8) and not torch.equal(images[:, 0], images[:, 1])
        assert generator.unet.conv_in.in_channels == 3 * patch**2


def test_a_time_for_all_is_a_time_for_each():
    torch.manual_seed(0)
    network, x = UNet(SIZES).eval(), torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network(x, torch.tensor([7.0])), network(x, torch.full((3,), 7.0)))
        mixed = network(x, torch.tensor([7.0, 300.0, 900.0]))
        alone = torch.cat([network(x[i : i + 1], torch.tensor([t])) for i, t in enumerate((7.0, 300.0, 900.0))])
    torch.testing.assert_close(mixed, alone, rtol=0, atol=1e-6)
