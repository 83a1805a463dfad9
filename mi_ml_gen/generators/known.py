"""What is known of generators without torch: enough to refuse a wrong command line at once.

A test holds these names and numbers against the generators themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.generators.families import canonical, check_name
from mi_ml_gen.hub.assets import check_path
from mi_ml_gen.latents import Chunks

NEED_WEIGHTS = ("bigbigan", "diffusion", "nvae", "stylegan2")
"""Families whose weights are neither bundled nor unneeded."""
SIZES = {
    "tiny-bigbigan": (4, 32),
    "tiny-diffusion": (5, 32),
    "tiny-emoji": (8, 32),
    "tiny-nvae": (6, 32),
    "tiny-stylegan": (8, 32),
}
"""Number of chunks, and side of the images in pixels, of the bundled generators."""
CUT_BY_USE = ("tiny-diffusion",)
"""Bundled generators whose number of chunks --g_use may change."""


def check_generator_settings(
    generator: str,
    g_path: str | None = None,
    g_use: Sequence[str] = (),
    chunks: str | None = None,
    needs_weights: bool = True,
) -> None:
    """Refuse by UsageError what is wrong with these settings and can be seen before torch and weights are loaded.

    An unknown name, weights that are missing (where they are needed) or not there, a use that is no KEY=VALUE, chunks
    that are not of the form START_STOP or that a bundled generator does not have. What only the network knows, and a
    name with a colon, file.py:Class, is left to the loader.
    """
    check_name(generator)
    if g_path is not None:
        check_path("--g_path", g_path)
    elif needs_weights and canonical(generator) in NEED_WEIGHTS:
        raise UsageError(f"--generator {generator}: its weights are not bundled; give --g_path, a file or a known name")
    for use in g_use:
        if "=" not in use:
            raise UsageError(f"--g_use: override {use!r}: must have the form key=value")
    if chunks is not None and generator in SIZES and g_path is None and not (g_use and generator in CUT_BY_USE):
        Chunks.parse(chunks, SIZES[generator][0], generator)
    elif chunks is not None and re.fullmatch(r"\s*-?\d+_-?\d+\s*", chunks, re.ASCII) is None:
        raise UsageError(f"--chunks {chunks}: write START_STOP, first included, last excluded, such as 0_1 for chunk 0")
