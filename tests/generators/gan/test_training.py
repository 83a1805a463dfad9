"""Adversarial training at sizes that take a second: resuming, the average, the penalty, the recipes' parts."""

from __future__ import annotations

import copy
import dataclasses
import signal

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mi_ml_gen.core import config, runs, runtime
from mi_ml_gen.core.errors import NonFiniteError, Preempted, UsageError
from mi_ml_gen.core.files import load_tensors
from mi_ml_gen.generators.bigbigan import ModulatedNorm
from mi_ml_gen.generators.gan import training
from mi_ml_gen.generators.gan.recipes import RECIPES, Discriminator, StyleGANRecipe, augmented
from mi_ml_gen.generators.gan.training import GanConfig, RealImages, train_generator
from mi_ml_gen.generators.registry import load_generator, save_generator

FAMILIES = sorted(RECIPES)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(256, (40, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def short_finish(monkeypatch):
    """The last touch on 2 batches of noise for 100."""
    for recipe in RECIPES.values():
        finish = recipe.finish

        def short(self, generator, seed, n_batches=2, finish=finish):
            finish(self, generator, seed, min(n_batches, 3))

        monkeypatch.setattr(recipe, "finish", short)


def tiny(folder, family: str, **settings) -> GanConfig:
    sizes = dict(width=4, discriminator_width=4, batch_size=4, device="cpu", save_folder=str(folder))
    return GanConfig(family=family, **(sizes | settings))


def last_state(path) -> dict:
    """The newest state of a run, without its clock and settings."""
    newest = max((path / "checkpoints").glob("state_*.pt"))
    state = torch.load(newest, weights_only=True)
    state["state"]["course"].pop("elapsed_s")
    state.pop("settings")
    return state


def assert_equal(a, b, where: str = "state") -> None:
    """Nested dicts and lists with equal numbers, bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}.{i}")
    else:
        assert a == b, where


@pytest.mark.parametrize("family", FAMILIES)
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, images, family):
    """In bf16, with the grid of samples; tests/faults has the other faults."""
    settings = tiny(tmp_path, family, steps=3, precision="bf16")
    whole = train_generator(dataclasses.replace(settings, run_name="whole"), images, progress=False)

    def batch_with_signal(self, step):
        if step == 1:
            signal.raise_signal(signal.SIGTERM)
        return batch(self, step)

    batch = RealImages.batch
    monkeypatch.setattr(RealImages, "batch", batch_with_signal)
    with pytest.raises(Preempted, match="saved at step 2 of 3"):
        train_generator(dataclasses.replace(settings, run_name="halves"), images, progress=False)
    halves = tmp_path / "halves"
    assert last_state(halves)["step"] == 2 and not (halves / "generator.safetensors").exists()
    monkeypatch.setattr(RealImages, "batch", batch)
    assert train_generator(dataclasses.replace(settings, run_name="halves"), images, progress=False) == halves

    assert_equal(last_state(whole), last_state(halves))
    finished = [load_tensors(path / "generator.safetensors") for path in (whole, halves)]
    assert_equal(finished[0].tensors, finished[1].tensors)
    assert finished[0].metadata == finished[1].metadata
    grids = [(path / "images" / "samples_00000003.png").read_bytes() for path in (whole, halves)]
    assert grids[0] == grids[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_learns_and_the_result_is_an_ordinary_generator(tmp_path, images, family):
    path = train_generator(tiny(tmp_path, family, steps=2), images, progress=False)
    trained = last_state(path)["state"]
    torch.manual_seed(0)
    fresh = RECIPES[family](4, 4)
    for part in ("generator", "discriminator"):
        for name, before in getattr(fresh, part).named_parameters():
            if name != "head.bias":  # where no margin is reached, real and fake pull it equally in the hinge loss
                assert not torch.equal(trained[part][name], before), name

    generator = load_generator(family, path / "generator.safetensors")
    assert generator.name == RECIPES[family].defaults.run_name == path.name
    z = torch.randn(3, generator.noise_dim, generator=torch.Generator().manual_seed(1))
    shown = generator.decode(generator.latents(z))
    assert shown.shape == (3, 3, 32, 32) and 0 <= shown.min() < shown.max() <= 1
    save_generator(tmp_path / "again.safetensors", generator, family)
    again = load_generator(family, tmp_path / "again.safetensors")
    assert torch.equal(again.decode(again.latents(z)), shown)


@pytest.mark.parametrize("family", FAMILIES)
def test_colour_is_learned_in_colour_with_the_same_bits_after_a_stop(tmp_path, monkeypatch, family):
    """Augmented, as few images need it; the discriminator sees nothing else."""
    coloured = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    settings = tiny(tmp_path, family, steps=2, augment=True, dataset="emoji")
    whole = train_generator(dataclasses.replace(settings, run_name="whole"), coloured, progress=False)
    halves = dataclasses.replace(settings, run_name="halves")
    train_generator(dataclasses.replace(halves, steps=1), coloured, progress=False)
    train_generator(halves, coloured, progress=False)
    assert_equal(last_state(whole), last_state(tmp_path / "halves"))
    generator = load_generator(family, whole / "generator.safetensors")
    z = torch.randn(2, generator.noise_dim, generator=torch.Generator().manual_seed(1))
    shown = generator.decode(generator.latents(z))
    assert generator.name == "whole" and (shown[:, 0] - shown[:, 1]).abs().max() > 0.01


def test_the_data_set_and_its_folder():
    settings = GanConfig(dataset="emoji", family="stylegan")
    assert settings.reference == "emoji" and settings.resolved().run_name == "tiny-stylegan-emoji"
    assert dataclasses.replace(settings, data_path="there").reference == "emoji:there"
    given = dataclasses.replace(settings, dataset="emoji:background=random", data_path="there")
    assert given.reference == "emoji:there:background=random"
    assert GanConfig(data_path="there").reference == "fashion-mnist:there"
    with pytest.raises(UsageError, match="--data_path there: belongs to fashion-mnist or emoji; leave it out"):
        GanConfig(dataset="digits", data_path="there").check()
    with pytest.raises(UsageError, match="--dataset emojis: no such file or folder; sets by name are .*emoji"):
        GanConfig(dataset="emojis").check()
    with pytest.raises(UsageError, match="--data_path nowhere: no such folder"):
        GanConfig(dataset="emoji", data_path="nowhere").check()
    assert "dataset" not in config.to_dict(GanConfig()) and "augment" not in config.to_dict(GanConfig())


# --- augmentation


def test_augmented_images_are_moved_and_lose_a_square():
    """With colours as they were: draws of 1/2 change none."""
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    for down, right in ((0, 0), (2, 0), (-1, 2), (-2, -2)):
        draws = torch.tensor([[0.5, 0.5, 0.5, (down + 2.5) / 5, (right + 2.5) / 5, 0.0, 0.0]])
        found = augment_by(images, draws)
        moved = torch.roll(images, (down, right), (2, 3))
        for axis, by in ((2, down), (3, right)):
            came_in = slice(0, by) if by >= 0 else slice(16 + by, 16)
            moved.narrow(axis, came_in.start, came_in.stop - came_in.start).zero_()
        moved[:, :, :5, :5] = 0  # the square around the first pixel, as far as it is in the image
        torch.testing.assert_close(found, moved)


def augment_by(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "uniform", lambda shape, rng, device: draws)
        return augmented(images, torch.Generator())


def test_augmented_colours():
    images = torch.rand(2, 3, 8, 8)
    middle = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5, 0.99, 0.99]).repeat(2, 1)
    kept = (slice(None), slice(None), slice(0, 4), slice(0, 4))  # outside of the square
    for place, value in ((0, 0.75), (1, 0.0), (2, 1.0)):
        draws = middle.clone()
        draws[:, place] = value
        x = images.double()
        if place == 0:
            x = x + 0.25
        if place == 1:
            x = x.mean(1, keepdim=True).expand_as(x)
        if place == 2:
            x = x.mean((1, 2, 3), keepdim=True) + 1.5 * (x - x.mean((1, 2, 3), keepdim=True))
        torch.testing.assert_close(augment_by(images, draws)[kept], x.float()[kept])


def test_gradients_pass_through_the_augmentation():
    images = torch.rand(2, 3, 8, 8, dtype=torch.float32).requires_grad_()
    rng = runtime.stream(0, "augment", 0, 0)
    assert augmented(images, rng).square().sum().backward() is None
    assert images.grad is not None and (images.grad.abs().sum(dim=(1, 2, 3)) > 0).all()


def test_defaults_follow_the_family_and_given_values_stay():
    style, big = GanConfig(family="stylegan").resolved(), GanConfig().resolved()
    assert style == GanConfig(family="stylegan2").resolved() and style.family == "stylegan2"
    assert (style.run_name, big.run_name) == ("tiny-stylegan", "tiny-bigbigan")
    assert (big.lr, big.lr_discriminator, big.width, big.discriminator_width) == (2e-4, 4e-4, 32, 32)
    assert style.lr == StyleGANRecipe.defaults.lr != big.lr
    assert GanConfig(family="stylegan", lr=1.0, run_name="mine").resolved() == dataclasses.replace(
        style, lr=1.0, run_name="mine"
    )


def test_another_family_or_rate_in_the_same_folder_is_refused(tmp_path, images):
    train_generator(tiny(tmp_path, "stylegan", run_name="run", steps=1), images, progress=False)
    with pytest.raises(UsageError, match="made with lr 0.002, not 0.001"):
        train_generator(tiny(tmp_path, "stylegan2", run_name="run", steps=1, lr=1e-3), images, progress=False)
    with pytest.raises(UsageError, match="made with family stylegan2, not bigbigan"):
        train_generator(tiny(tmp_path, "bigbigan", run_name="run", steps=1), images, progress=False)


def test_fewer_images_than_a_batch_are_refused(tmp_path, images):
    with pytest.raises(UsageError, match="--batch_size 41: there are only 40 images"):
        train_generator(tiny(tmp_path, "bigbigan", batch_size=41, steps=1), images, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_a_number_stops_the_run_before_anything_is_saved(tmp_path, monkeypatch, images):
    monkeypatch.setattr(StyleGANRecipe, "generator_loss", lambda self, fake: fake.mean() * float("nan"))
    with pytest.raises(NonFiniteError, match="generator loss"):
        train_generator(tiny(tmp_path, "stylegan", steps=1), images, progress=False)
    assert list((tmp_path / "tiny-stylegan" / "checkpoints").iterdir()) == []


# --- the parts of a step


def test_the_average_follows_its_formula():
    torch.manual_seed(0)
    average, generator = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    before = copy.deepcopy(average)
    training._update_average(average, generator, 0.9)
    for kept, old, new in zip(average.parameters(), before.parameters(), generator.parameters(), strict=True):
        torch.testing.assert_close(kept, 0.9 * old + 0.1 * new, rtol=0, atol=1e-15)


def test_the_half_life_is_counted_in_images(tmp_path, images):
    """Batches of 4 at a half-life of 4 images: half of the way at each step."""
    states = []
    for steps in (1, 2):
        path = train_generator(tiny(tmp_path, "stylegan", steps=steps, ema_halflife=4.0), images, progress=False)
        states.append(last_state(path)["state"])
    for name in dict(RECIPES["stylegan2"](4, 4).generator.named_parameters()):
        expected = (states[0]["average"][name] + states[1]["generator"][name]) / 2
        torch.testing.assert_close(states[1]["average"][name], expected, rtol=1e-6, atol=1e-7)


class Quadratic(nn.Module):
    """x -> a . x + b |x|^2 / 2, whose gradient is a + b x."""

    def __init__(self, a: torch.Tensor, b: float):
        super().__init__()
        self.a, self.b = nn.Parameter(a), nn.Parameter(torch.tensor(b, dtype=a.dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.a * x).sum(dim=(1, 2, 3)) + self.b * x.square().sum(dim=(1, 2, 3)) / 2


@pytest.mark.parametrize("b", [0.0, 0.7], ids=["linear", "quadratic"])
def test_gradient_penalty_equals_its_closed_form(b):
    torch.manual_seed(0)
    a, x = torch.randn(3, 4, 4, dtype=torch.float64), torch.randn(5, 3, 4, 4, dtype=torch.float64)
    model = Quadratic(a, b)
    penalty = training._gradient_penalty(model, x)
    torch.testing.assert_close(penalty, (a + b * x).square().sum(dim=(1, 2, 3)).mean())
    penalty.backward()
    torch.testing.assert_close(model.a.grad, 2 * (a + b * x).mean(dim=0))
    torch.testing.assert_close(model.b.grad, 2 * ((a + b * x) * x).sum(dim=(1, 2, 3)).mean())


def test_the_penalty_is_in_float32_whatever_the_precision(tmp_path, monkeypatch, images):
    """At bf16 the discriminator's first convolution works in bf16, except within the penalty."""
    dtypes = {True: set(), False: set()}  # by whether the penalty is being computed
    inside = [False]
    plain = training._gradient_penalty

    def penalty(discriminator, real):
        inside[0] = True
        discriminator.first.register_forward_hook(lambda m, i, y: dtypes[inside[0]].add(y.dtype))
        value = plain(discriminator, real)
        inside[0] = False
        return value

    monkeypatch.setattr(training, "_gradient_penalty", penalty)
    train_generator(tiny(tmp_path, "stylegan", steps=1, precision="bf16"), images, progress=False)
    assert dtypes == {True: {torch.float32}, False: {torch.bfloat16}}


def test_losses_of_the_recipes():
    real, fake = torch.tensor([0.5, -2.0, 3.0]), torch.tensor([1.5, -0.25])
    style, big = RECIPES["stylegan2"](4, 4), RECIPES["bigbigan"](4, 4)
    logistic = -(torch.sigmoid(real).log().mean() + torch.sigmoid(-fake).log().mean())
    torch.testing.assert_close(style.discriminator_loss(real, fake), logistic)
    torch.testing.assert_close(style.generator_loss(fake), -torch.sigmoid(fake).log().mean())
    torch.testing.assert_close(big.discriminator_loss(real, fake), torch.tensor((0.5 + 3) / 3 + (2.5 + 0.75) / 2))
    torch.testing.assert_close(big.generator_loss(fake), torch.tensor(-0.625))


def test_styles_are_mixed_from_a_crossover_on():
    torch.manual_seed(0)
    recipe = StyleGANRecipe(4, 4)
    generator, n = recipe.generator, 2000
    z = recipe.noise(n, torch.Generator().manual_seed(1))
    ws = recipe.mixed_styles(generator, z, torch.Generator().manual_seed(2))
    assert ws.shape == (n, 8, 64)
    of_first = (ws == generator.mapping(z)[:, None]).all(dim=2)  # (n, rows)
    assert of_first[:, 0].all()
    assert (of_first[:, :-1] >= of_first[:, 1:]).all()  # the first noise's rows, then the other's
    assert (ws == torch.where(of_first[..., None], ws[:, :1], ws[:, -1:])).all()  # two styles, no third
    n_first = torch.bincount(of_first.sum(dim=1), minlength=9).float() / n
    torch.testing.assert_close(n_first[8], torch.tensor(0.1), rtol=0, atol=0.03)
    torch.testing.assert_close(n_first[1:8], torch.full((7,), 0.9 / 7), rtol=0, atol=0.03)


def test_fakes_carry_fresh_noise_and_equal_channels():
    torch.manual_seed(0)
    recipe = StyleGANRecipe(4, 4)
    for name, parameter in recipe.generator.named_parameters():
        if name.endswith("noise_strength"):
            nn.init.ones_(parameter)
    recipe.mixing_probability = 0.0
    z = recipe.noise(2, torch.Generator().manual_seed(1))
    first, again, other = (recipe.fakes(recipe.generator, z, torch.Generator().manual_seed(s)) for s in (2, 2, 3))
    assert first.shape == (2, 3, 32, 32) and torch.equal(first, again)
    assert (first - other).abs().mean() > 0.01
    assert torch.equal(first[:, 0], first[:, 2])


def test_finish_makes_w_avg_the_mean_style():
    torch.manual_seed(0)
    recipe = StyleGANRecipe(4, 4)
    generator = recipe.generator.requires_grad_(False)
    generator.mapping.w_avg.fill_(100.0)  # what was there must not count
    noise = [recipe.noise(256, runtime.stream(7, "mean style", i, 0)) for i in range(3)]
    recipe.finish(generator, 7, n_batches=3)
    torch.testing.assert_close(generator.mapping.w_avg, generator.mapping(torch.cat(noise)).mean(dim=0))
    assert generator.mapping.w_avg_beta == generator.settings.w_avg_beta


def test_finish_makes_stored_statistics_those_of_fresh_batches():
    torch.manual_seed(0)
    recipe = RECIPES["bigbigan"](4, 4)
    generator = recipe.generator.requires_grad_(False)
    norm = next(module for module in generator.modules() if isinstance(module, ModulatedNorm))
    seen = []
    hook = norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    recipe.finish(generator, 7, n_batches=3)
    hook.remove()
    torch.testing.assert_close(norm.stored_mean, torch.cat(seen).mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-6)
    variances = torch.stack([x.transpose(0, 1).flatten(1).var(dim=1) for x in seen])
    torch.testing.assert_close(norm.stored_var, variances.mean(dim=0), rtol=1e-4, atol=1e-6)
    assert norm.momentum == 0.1


@pytest.mark.parametrize("normalise", [True, False], ids=["spectral norm", "fan-in"])
def test_discriminator_sees_repetition_and_starts_at_the_scale_of_one(normalise):
    torch.manual_seed(0)
    model = Discriminator(8, normalise)
    x = torch.randn(16, 3, 32, 32)
    logits = model(x)
    assert logits.shape == (16,)
    alone, repeated = model(x[:1].repeat(16, 1, 1, 1)), model(x)[0]
    assert (alone[0] - repeated).abs() > 1e-6  # the same image, in a batch of copies and in a varied one
    torch.testing.assert_close(alone, alone[:1].expand(16))
    if not normalise:
        assert 0.1 < logits.square().mean().sqrt() < 10


def test_logits_of_the_logistic_loss_are_float32():
    torch.manual_seed(0)
    model, x = Discriminator(8, normalise=False), torch.randn(32, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())  # more digits than bfloat16 holds


def test_real_images_are_padded_scaled_and_each_epoch_holds_all(images):
    data = RealImages(images[:12], 32, 4, torch.device("cpu"), seed=3)
    batches = [data.batch(step) for step in range(6)]
    expected = F.pad(images[:12].float() / 127.5 - 1, (2, 2, 2, 2), value=-1.0)
    for epoch in (batches[:3], batches[3:]):
        found = torch.cat(epoch)
        assert torch.equal(found[:, 0], found[:, 1]) and torch.equal(found[:, 0], found[:, 2])
        order = torch.cdist(found[:, 0].flatten(1), expected.flatten(1)).argmin(dim=1)
        assert sorted(order.tolist()) == list(range(12))
        torch.testing.assert_close(found[:, 0], expected[order], rtol=0, atol=1e-6)
    assert not torch.equal(torch.cat(batches[:3]), torch.cat(batches[3:]))
    again = RealImages(images[:12], 32, 4, torch.device("cpu"), seed=3)
    assert torch.equal(again.batch(4), batches[4])


def test_the_course_is_logged(tmp_path, monkeypatch, images):
    monkeypatch.setattr(training, "LOG_INTERVAL", 1)
    path = train_generator(tiny(tmp_path, "stylegan", steps=2), images, progress=False)
    rows = runs.read_metrics(path)
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["loss_discriminator"] > 0 and row["loss_generator"] > 0 for row in rows)
