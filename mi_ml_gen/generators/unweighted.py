"""Generators without their weights: the network of a published size, for counting what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mi_ml_gen.core.costs import emptied
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.base import MultiLatentGenerator
from mi_ml_gen.generators.families import FAMILIES, bundled, canonical
from mi_ml_gen.generators.registry import load_generator


def unweighted_generator(name: str, g_path: str | None, g_use: Sequence[str]) -> MultiLatentGenerator:
    """The network that `load_generator` would give, its tensors without numbers; within `costs.without_numbers`.

    Weights that are bundled, or a file that is there, tell the size; else it is the published network's. Raises
    UsageError where neither is known, and as `load_generator`.
    """
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    name = canonical(name)
    family = FAMILIES.get(name)
    is_there = g_path is not None and Path(g_path).exists()
    if name in bundled() or is_there or family is None or family.make is not None:
        with unset_fake_temporarily():
            generator = load_generator(name, g_path if is_there else None, "cpu", g_use)
        emptied(generator)
        return generator
    if family.network is None:
        raise UsageError(f"--generator {name}: its size is known from its weights alone; give --g_path, a file")
    return family.network().use(g_use).freeze()
