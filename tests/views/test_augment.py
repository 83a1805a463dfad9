"""T_x against kornia and torchvision, sample by sample; the distribution of its draws; its gradients.

Tolerances: float32 results may differ from a library's by the order of additions, about 1e-6 after one
operation. In float64 they agree to 1e-12, which shows that the formulas are the same and the rest is
rounding, but for the hue shift, which torchvision always works out in float32.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.views import augment as module
from mi_ml_gen.views.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    POLICIES,
    Augment,
    ViewParameters,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    center_crop,
    draw_parameters,
    grayscale,
    jitter,
    policy_from_flags,
    resized_crop,
)
from mi_ml_gen.views.colors import KORNIA

GOLDEN = Path(__file__).parents[1] / "golden"


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(n: int = 6, size: int = 24, dtype: torch.dtype = torch.float32) -> Tensor:
    """Smooth parts, noise, and exact greys, blacks and whites, where hue has no value."""
    images = torch.rand(n, 3, size, size, generator=stream(1), dtype=torch.float64)
    images[0, :, : size // 2] = 0.0
    images[0, :, size // 2 :, : size // 2] = 1.0
    images[1] = images[1, :1]
    images[2:3, 1] = images[2:3, 0]  # two channels tie for the largest or the smallest
    return images.to(dtype)


def torchvision_jitter(image: Tensor, parameters: ViewParameters, i: int) -> Tensor:
    """The slow twin of views.jitter for sample i of a batch: torchvision, one operation after another."""
    if not parameters.jitter[i]:
        return image
    operations = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation]
    order = [int(kind) for kind in parameters.blend_order[i]]
    order.insert(int(parameters.hue_position[i]), 3)
    for kind in order:
        if kind == 3:
            image = F.adjust_hue(image, float(parameters.hue[i]))
        else:
            image = operations[kind](image, float(parameters.blends[i, kind]))
    return image


def torchvision_view(image: Tensor, parameters: ViewParameters, i: int, augment: Augment) -> Tensor:
    """The slow twin of Augment.view for sample i."""
    size = [augment.crop_size, augment.crop_size]
    if augment.policy.crop:
        box = [int(getattr(parameters, side)[i]) for side in ("top", "left", "height", "width")]
        image = F.resized_crop(image, *box, size, InterpolationMode.BILINEAR, antialias=augment.antialias)
    else:
        image = F.center_crop(image, size)
    if augment.policy.flip and parameters.flip[i]:
        image = F.hflip(image)
    if augment.policy.color:
        image = torchvision_jitter(image, parameters, i)
        if parameters.grayscale[i]:
            image = F.rgb_to_grayscale(image, num_output_channels=3)
    return F.normalize(image, IMAGENET_MEAN, IMAGENET_STD)


# Against the reference and torchvision


def test_centre_crop_and_normalisation_equal_the_reference() -> None:
    golden = np.load(GOLDEN / "view_none.npz")
    spec = importlib.util.spec_from_file_location("golden_fill", GOLDEN / "fill.py")
    assert spec is not None and spec.loader is not None
    golden_fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(golden_fill)
    images = torch.from_numpy(golden_fill.fill(str(golden["real_name"]), (2, 3, 128, 128)))
    view = Augment("none", image_size=128)(images)
    assert view.shape == (2, 3, 112, 112)
    np.testing.assert_allclose(view[:, :, ::8, ::8].numpy(), golden["real_view_grid"], atol=1e-5)


@pytest.mark.parametrize("size", [(32, 28), (33, 28), (32, 27), (31, 31), (30, 1)])
def test_centre_crop_equals_torchvision(size: tuple[int, int]) -> None:
    images = random_images(size=size[0])
    assert torch.equal(center_crop(images, size[1]), F.center_crop(images, [size[1], size[1]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (adjust_brightness, F.adjust_brightness, (0.0, 0.6, 1.0, 1.4, 3.0, 0.83)),
        (adjust_contrast, F.adjust_contrast, (0.0, 0.6, 1.0, 1.4, 3.0, 0.83)),
        (adjust_saturation, F.adjust_saturation, (0.0, 0.6, 1.0, 1.4, 3.0, 0.83)),
        (adjust_hue, F.adjust_hue, (0.0, -0.1, 0.1, 0.5, -0.5, 0.03)),
    ],
)
def test_each_colour_operation_equals_torchvision(ours, theirs, factors, dtype) -> None:
    images = random_images(len(factors), dtype=dtype)
    result = ours(images, torch.tensor(factors, dtype=dtype))
    for image, factor, view in zip(images, factors, result, strict=True):
        in_float64 = dtype == torch.float64 and ours is not adjust_hue
        torch.testing.assert_close(view, theirs(image, factor), atol=1e-12 if in_float64 else 2e-6, rtol=0)


def test_grayscale_equals_torchvision() -> None:
    images = random_images()
    torch.testing.assert_close(grayscale(images), F.rgb_to_grayscale(images, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [7, 28, 40])
def test_resized_crop_equals_torchvision(antialias: bool, size: int) -> None:
    """Shrinking, keeping and enlarging; boxes at each border, of one pixel, of the whole image."""
    boxes = [(0, 0, 32, 32), (3, 5, 20, 11), (0, 21, 13, 11), (19, 0, 13, 17), (31, 31, 1, 1), (2, 2, 28, 28)]
    images = random_images(len(boxes), 32)
    top, left, height, width = torch.tensor(boxes, dtype=torch.float32).T
    drawn = draw_parameters(len(boxes), 32, stream(), torch.device("cpu"))
    flip = torch.tensor([False, True, False, True, False, True])
    given = dataclasses.replace(drawn, top=top, left=left, height=height, width=width, flip=flip)
    result = resized_crop(images, given, size, antialias)
    for i, box in enumerate(boxes):
        expected = F.resized_crop(images[i], *box, [size, size], InterpolationMode.BILINEAR, antialias=antialias)
        expected = F.hflip(expected) if flip[i] else expected
        torch.testing.assert_close(result[i], expected, atol=2e-6, rtol=0)


def test_jitter_equals_torchvision_in_all_orders() -> None:
    orders = list(itertools.product(itertools.permutations(range(3)), range(4)))
    n = len(orders)
    drawn = draw_parameters(n, 16, stream(3), torch.device("cpu"))
    given = dataclasses.replace(
        drawn,
        blend_order=torch.tensor([order for order, _ in orders]),
        hue_position=torch.tensor([position for _, position in orders]),
        jitter=torch.ones(n, dtype=torch.bool),
    )
    images = random_images(n, 16, torch.float64)
    result = jitter(images, given)
    expected = torch.stack([torchvision_jitter(images[i], given, i) for i in range(n)])
    torch.testing.assert_close(result, expected, atol=5e-6, rtol=0)  # float32 hue, then up to 1.4 squared
    swapped = jitter(images, dataclasses.replace(given, blend_order=given.blend_order.flip(1)))
    assert (swapped - expected).abs().amax() > 0.01  # the order is seen: the test can fail


@pytest.mark.parametrize("policy", ["none", "torchvision", "torchvision_no_color", "torchvision_no_crop"])
@pytest.mark.parametrize("antialias", [False, True])
def test_views_equal_torchvision_sample_by_sample(policy: str, antialias: bool) -> None:
    augment = Augment(policy, image_size=32, antialias=antialias)
    images = random_images(40, 32)
    parameters = augment.draw(40, stream(5), "cpu")
    result = augment.view(images, parameters)
    expected = torch.stack([torchvision_view(images[i], parameters, i, augment) for i in range(40)])
    torch.testing.assert_close(result, expected, atol=2e-4, rtol=0)  # hue after a crop, divided by std of 0.225
    assert (result - expected).abs().mean() < 1e-6


# Against kornia: tests/golden/kornia_views.npz, which bench/kornia_golden.py writes


@pytest.fixture(scope="module")
def kornia() -> dict[str, Tensor]:
    with np.load(GOLDEN / "kornia_views.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file if file[name].dtype.kind != "U"}


def kornia_order(order: Tensor) -> tuple[list[int], int]:
    """kornia's permutation of brightness, contrast, saturation and hue as our order of blends and place of the hue."""
    place = order.tolist().index(3)
    return [kind for kind in order.tolist() if kind != 3], place


@pytest.mark.parametrize("call", range(4))
def test_the_published_chain_equals_kornias(kornia: dict[str, Tensor], call: int) -> None:
    drawn = {name.partition("/")[2]: value for name, value in kornia.items() if name.startswith(f"call{call}/")}
    images = kornia["images"]
    n = len(images)
    blend_order, hue_position = kornia_order(drawn["order"])
    parameters = ViewParameters(
        **{name: drawn[name] for name in ("top", "left", "height", "width", "flip", "jitter", "hue", "grayscale")},
        blends=torch.stack([drawn["brightness"], drawn["contrast"], drawn["saturation"]], dim=1),
        blend_order=torch.tensor(blend_order).expand(n, -1),
        hue_position=torch.tensor(hue_position).expand(n),
    )
    augment = Augment("simclr", images.shape[-1], drawn["views"].shape[-1])
    found = augment.view(images, parameters) * augment.std + augment.mean
    torch.testing.assert_close(found, drawn["views"] * augment.std + augment.mean, atol=1e-5, rtol=0)
    other = Augment("torchvision", images.shape[-1], drawn["views"].shape[-1]).view(images, parameters)
    assert (other - drawn["views"]).abs().amax() > 0.3  # the conventions differ: the test can fail


def test_jitter_equals_kornias_in_all_orders(kornia: dict[str, Tensor]) -> None:
    images, factors = kornia["small"], kornia["jiggle/factors"]
    n = len(images)
    drawn = draw_parameters(n, 8, stream(), torch.device("cpu"))
    for order, expected in zip(kornia["jiggle/orders"], kornia["jiggle/images"], strict=True):
        blend_order, hue_position = kornia_order(order)
        given = dataclasses.replace(
            drawn,
            jitter=torch.ones(n, dtype=torch.bool),
            blends=factors[:, :3],
            hue=factors[:, 3],
            blend_order=torch.tensor(blend_order).expand(n, -1),
            hue_position=torch.tensor(hue_position).expand(n),
        )
        torch.testing.assert_close(jitter(images, given, KORNIA), expected, atol=1e-5, rtol=0)


def test_a_black_pixel_becomes_grey_in_the_published_convention() -> None:
    black = torch.zeros(1, 3, 2, 2)
    brightness, factor = torch.tensor([0]), torch.tensor([1.4])
    torch.testing.assert_close(KORNIA.blend(black, brightness, factor), torch.full_like(black, 0.4))
    assert torch.equal(adjust_brightness(black, factor), black)


def test_a_neutral_factor_changes_no_bit() -> None:
    images = random_images(6)
    kinds = torch.tensor([0, 1, 2, 0, 1, 2])
    for colors in {policy.color for policy in POLICIES.values() if policy.color is not None}:
        assert torch.equal(colors.blend(images, kinds, torch.ones(6)), images)


@pytest.mark.parametrize("policy", ["simclr", "no_crop"])
def test_the_order_is_drawn_for_each_call_and_shared_by_its_samples(policy: str) -> None:
    augment, rng = Augment(policy, 32), stream()
    orders = []
    for _ in range(200):
        drawn = augment.draw(5, rng, "cpu")
        assert (drawn.blend_order == drawn.blend_order[0]).all() and (drawn.hue_position == drawn.hue_position[0]).all()
        assert len(drawn.blends.unique()) == 15 and len(drawn.hue.unique()) == 5  # the factors are each sample's own
        orders.append((*drawn.blend_order[0].tolist(), int(drawn.hue_position[0])))
    assert len(set(orders)) == 24
    own = Augment("torchvision", 32).draw(40, rng, "cpu")
    assert len(own.blend_order.unique(dim=0)) > 1


# The distribution of the draws


def test_draws_follow_torchvisions_distribution() -> None:
    n = 20_000
    drawn = draw_parameters(n, 128, stream(), torch.device("cpu"))

    def near(values: Tensor, expected: float, sd: float) -> None:
        assert abs(values.double().mean() - expected) < 5 * sd / n**0.5

    near(drawn.flip, 0.5, 0.5)
    near(drawn.jitter, 0.8, 0.4)
    near(drawn.grayscale, 0.2, 0.4)
    near(drawn.hue, 0.0, 0.2 / 12**0.5)
    assert drawn.hue.abs().amax() <= 0.1 and drawn.hue.abs().amax() > 0.099
    for column in range(3):
        near(drawn.blends[:, column], 1.0, 0.8 / 12**0.5)
    assert 0.6 <= drawn.blends.amin() < 0.602 and 1.398 < drawn.blends.amax() <= 1.4

    orders = drawn.blend_order @ torch.tensor([16, 4, 1]) * 4 + drawn.hue_position
    counts = orders.unique(return_counts=True)[1]
    assert len(counts) == 24
    expected = n / 24
    assert float(((counts - expected) ** 2 / expected).sum()) < 50  # chi squared, 23 degrees of freedom: p < 1e-3


def test_boxes_follow_torchvisions_distribution() -> None:
    """Against torchvision's own RandomResizedCrop.get_params: means and quantiles of position and size."""
    from torchvision.transforms import RandomResizedCrop

    n = 4000
    drawn = draw_parameters(n, 128, stream(), torch.device("cpu"))
    ours = torch.stack([drawn.top, drawn.left, drawn.height, drawn.width], dim=1)
    torch.manual_seed(0)
    image = torch.empty(3, 128, 128)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(n)],
        dtype=torch.float32,
    )
    standard_error = theirs.std(dim=0) * (2 / n) ** 0.5
    assert ((ours.mean(dim=0) - theirs.mean(dim=0)).abs() < 4 * standard_error).all()
    levels = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    assert (ours.quantile(levels, dim=0) - theirs.quantile(levels, dim=0)).abs().amax() <= 5  # pixels

    assert torch.equal(ours, ours.round()) and (ours >= 0).all()
    assert (drawn.top + drawn.height <= 128).all() and (drawn.left + drawn.width <= 128).all()
    assert (drawn.height >= 1).all() and (drawn.width >= 1).all()
    assert (drawn.top + drawn.height == 128).any() and (drawn.top == 0).any()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_tiny_images_get_boxes_inside(size: int) -> None:
    drawn = draw_parameters(500, size, stream(), torch.device("cpu"))
    assert ((drawn.height >= 1) & (drawn.top + drawn.height <= size)).all()
    assert ((drawn.width >= 1) & (drawn.left + drawn.width <= size)).all()


def test_a_policy_has_a_scale_of_its_own(monkeypatch) -> None:
    areas = {}
    for scale in ((0.2, 1.0), (0.6, 0.9)):
        augment = Augment("no_color", image_size=128)
        monkeypatch.setattr(augment.policy, "scale", scale)
        drawn = augment.draw(4000, stream(), torch.device("cpu"))
        areas[scale] = drawn.height * drawn.width / 128**2
    for (low, high), found in areas.items():
        assert low - 0.02 < found.min() < low + 0.05 and high - 0.05 < found.max() < high + 0.02


def test_samples_are_drawn_each_for_itself() -> None:
    augment = Augment("simclr", image_size=32)
    view = augment(random_images(4, 32)[3:].expand(8, -1, -1, -1), stream())
    assert all(not torch.equal(view[i], view[j]) for i, j in itertools.combinations(range(8), 2))


def test_randomness_is_the_generators_alone() -> None:
    augment, images = Augment("simclr", image_size=32), random_images(6, 32)
    torch.manual_seed(1)
    first = augment(images, stream(7))
    torch.manual_seed(2)
    assert torch.equal(first, augment(images, stream(7)))
    assert not torch.equal(first, augment(images, stream(8)))
    torch.manual_seed(1)
    default = augment(images)
    torch.manual_seed(1)
    assert torch.equal(default, augment(images))


def test_groups_on_the_cpu_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    augment, images = Augment("torchvision", image_size=32), random_images(11, 32)
    whole = augment(images, stream())
    monkeypatch.setattr(module, "_CPU_GROUP_VALUES", 3 * 32 * 32 * 4)
    torch.testing.assert_close(augment(images, stream()), whole, atol=1e-5, rtol=0)


# Gradients and numbers


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_gradients_reach_the_images(policy: str) -> None:
    """Against finite differences in float64, at images without ties or values to clamp."""
    augment = Augment(policy, image_size=8)
    images = (0.3 + 0.4 * torch.rand(3, 3, 8, 8, generator=stream(2), dtype=torch.float64)).requires_grad_()
    parameters = augment.draw(3, stream(4), "cpu")
    assert torch.autograd.gradcheck(lambda x: augment.view(x, parameters), (images,), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("policy", ["simclr", "torchvision"])
def test_gradients_are_finite_where_hue_is_not(policy: str) -> None:
    """Black, white, grey and almost grey pixels: a chroma of 1e-30, squared, is no divisor."""
    values = torch.tensor([[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1e-30, 0, 0], [0.5, 0.5 + 6e-8, 0.5]])
    images = values.T.reshape(1, 3, 1, 5).expand(4, 3, 5, 5).clone().requires_grad_()
    augment = Augment(policy, image_size=5)
    parameters = dataclasses.replace(augment.draw(4, stream(), "cpu"), jitter=torch.ones(4, dtype=torch.bool))
    augment.view(images, parameters).square().sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.abs().sum() > 0


def test_values_that_are_not_numbers_are_not_hidden() -> None:
    images = random_images(4, 32)
    images[2, :, 8:24, 8:24] = float("nan")
    view = Augment("simclr", image_size=32)(images, stream())
    assert view[2].isnan().any() and view[[0, 1, 3]].isfinite().all()


def test_half_precision_and_autocast_work_in_float32() -> None:
    augment, images = Augment("simclr", image_size=32), random_images(6, 32).bfloat16()
    view = augment(images, stream())
    assert view.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment(images, stream()), view)


def test_unnormalised_views_stay_in_range() -> None:
    view = Augment("simclr", image_size=32, normalize=False)(random_images(30, 32), stream())
    assert view.amin() >= -1e-6 and view.amax() <= 1 + 1e-6


# Use


def test_sizes() -> None:
    assert Augment("none", 128).crop_size == 112 and Augment("none", 32).crop_size == 28
    assert Augment("simclr", 32, crop_size=48)(random_images(2, 32), stream()).shape == (2, 3, 48, 48)
    assert Augment("simclr", 32)(random_images(2, 32)[:0], stream()).shape == (0, 3, 28, 28)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(UsageError, match="none, simclr, no_crop, no_color, torchvision"):
        Augment("simclr_aug")
    with pytest.raises(UsageError, match="crop_size 40"):
        Augment("none", image_size=32, crop_size=40)
    with pytest.raises(UsageError, match=r"shape \(2, 3, 16, 16\)"):
        Augment("none", image_size=32)(random_images(2, 16))

    class Elsewhere(torch.Generator):
        device = torch.device("cuda", 0)

    with pytest.raises(UsageError, match="generator on cuda:0: must be on the CPU or on the images' device, cpu"):
        Augment("simclr", image_size=32).draw(2, Elsewhere(), "cpu")


def test_the_references_flags() -> None:
    assert policy_from_flags() == "none"
    assert policy_from_flags(simclr_aug=True) == "simclr"
    assert policy_from_flags(remove_crop=True) == "no_crop"
    assert policy_from_flags(remove_color=True) == "no_color"
    assert policy_from_flags(True, True, True) == "simclr"


def test_the_module_moves_as_others_do() -> None:
    parent = torch.nn.Sequential(Augment("none", 32)).to("meta")
    assert {buffer.device.type for buffer in parent.buffers()} == {"meta"}
    assert not parent.state_dict()


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_nothing_is_read_by_the_host(policy: str) -> None:
    """Tensors on the meta device have no values: whatever would wait for one from a GPU fails here."""
    augment = Augment(policy, image_size=32).to("meta")
    parameters = augment.draw(4, None, "meta")
    images = torch.empty(4, 3, 32, 32, device="meta", requires_grad=True)
    view = augment._view_group(images, parameters)
    view.sum().backward()
    assert view.shape == (4, 3, 28, 28) and images.grad is not None
    with pytest.raises((RuntimeError, NotImplementedError)):
        view.sum().item()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("n", [1, 7])
def test_a_pair_equals_its_halves_one_after_the_other(policy, n, monkeypatch):
    """Bit for bit, on a CPU that works on groups of three samples."""
    monkeypatch.setattr(module, "_CPU_GROUP_VALUES", 3 * 3 * 12 * 12)
    augment = Augment(policy, 12)
    torch.manual_seed(0)
    first, second = torch.rand(2, n, 3, 12, 12)
    rng = torch.Generator().manual_seed(1)
    halves = torch.cat([augment(first, rng), augment(second, rng)])
    state = rng.get_state()
    rng.manual_seed(1)
    assert torch.equal(augment.pair(first, second, rng), halves)
    assert torch.equal(rng.get_state(), state)


def test_a_pair_of_wrong_images_is_refused_as_any():
    with pytest.raises(UsageError, match="images of shape"):
        Augment("simclr", 12).pair(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8))
