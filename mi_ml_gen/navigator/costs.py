"""What training a walker will cost: see `core/costs.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from mi_ml_gen.core import costs, fixed, runtime
from mi_ml_gen.core.costs import RunCost, StepCost, bytes_of, without_numbers
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.unweighted import unweighted_generator
from mi_ml_gen.information.critic import Critic
from mi_ml_gen.information.infonce import infonce_loss
from mi_ml_gen.navigator.settings import NavigatorConfig
from mi_ml_gen.navigator.setup import views_of
from mi_ml_gen.walkers.learned import learned_walker


def count_step(settings: NavigatorConfig, n: int) -> tuple[StepCost, dict[str, int]]:
    """A step of n pairs on one device, and the bytes of the files that a run writes. T_x is the centre crop."""
    cpu = torch.device("cpu")
    rng = runtime.stream(0, "costs", 0, 0)
    with without_numbers() as counted:
        generator = unweighted_generator(settings.generator, settings.g_path, settings.g_use)
        chunks = generator.chunks(settings.chunks)
        crop = views_of(settings, generator).crop_size
        walker = learned_walker(generator, chunks)
        critic = Critic(crop, width=settings.critic_width).train()

        def loss_of(views: Tensor) -> Tensor:
            return infonce_loss(torch.stack(critic(views).chunk(2), dim=1), settings.temp)

        with counted.step() as forward:
            pair = walker(generator, torch.empty(n, generator.noise_dim), rng)
            with runtime.autocast(cpu, settings.precision):
                images = generator.decode_pair(pair.anchor, pair.positive, chunks, rng)
        with counted.step() as rest:
            both = torch.cat([images.anchor.float(), images.positive.float()])
            at = (both.shape[-1] - crop) // 2
            views = both[..., at : at + crop, at : at + crop].contiguous()
            with runtime.autocast(cpu, settings.precision):
                loss = loss_of(views.detach())
            loss.backward()
            with runtime.autocast(cpu, settings.precision), fixed.without_gradients(critic):
                torch.autograd.grad(-loss_of(views), list(walker.parameters()))
        flops = {"generator, forward": forward.flops, "its backward pass and the critic": rest.flops}
        learned = bytes_of(walker)
        trained = learned + bytes_of(critic)
        peak = max(forward.peak_bytes, rest.peak_bytes)
        # Adam's two moments come with the first step, and stay.
        cost = StepCost(n, flops, peak + 2 * trained, bytes_of(generator) + 4 * trained)
        return cost, {"walker": learned, "state": 3 * trained}


def navigator_cost(settings: NavigatorConfig) -> RunCost:
    """The cost of a run to its last sample; the stopping rules may end it earlier.

    Raises UsageError where the size of the generator is not known, and for several walkers.
    """
    if settings.walkers > 1 or settings.micro_batches > 1:
        raise UsageError("counted for one walker and for whole batches only")
    n = settings.batch_size
    step, files = count_step(settings, n)
    n_saved = settings.num_samples // settings.save_freq
    notes = (
        f"a walker is saved {n_saved:,} times; not counted: T_x but the centre crop, what is measured before the first "
        "step, and what the stopping rules save",
        "each GPU has a whole batch, so several GPUs make larger steps and fewer of them: not the published training",
    )
    return RunCost(settings.num_samples, n, step, files, False, settings.precision, notes)


def cost_lines(settings: NavigatorConfig) -> list[str]:
    """The sheet, or why there is none, in lines."""
    return costs.lines_or_reason(lambda: navigator_cost(settings))
