"""The toy distributions of Livne, Swersky and Fleet (2019), section 5.1: mixtures of Gaussians on a circle, mixtures
drawn from a word, and pairs of one component (self-supervision).

    toyN      N on the unit circle and one at the origin: N + 1 components of standard deviation 1.25 / (N + 1)
    toy-N     the N on the circle alone, standard deviation 1.25 / N
    toyN_D    either of them in D dimensions
    toyTEXT   a component for every lit pixel of the text in a small bitmap font
    Toy...    any of these; the encoder sees another draw from the component of the point to be explained

Components are equally likely. Two oddities of the published distributions are kept, as all published figures rest on
them: the angles of toyN are 2 pi i / (N + 1), so that its N modes leave a gap in the circle; and in D
dimensions the components stand 20 (N + 1) / D apart or more along each further axis, far more than their width.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mi_ml_gen.core import runtime
from mi_ml_gen.core.errors import UsageError

SPREAD = 0.25 * 5
"""Standard deviation of a component times the number of components."""
TEXT_SCALE, TEXT_CENTER = 3.6, 0.45
LONGEST_TEXT = 64

_MODES = re.compile(r"(-?)(\d+)(?:_(-?\d+))?")


class Draw(NamedTuple):
    """Points (n, d) and the component of each (n,)."""

    x: Tensor
    labels: Tensor


class Mixture:
    """Equally likely Gaussians with locs (k, d) and standard deviations scales (k, d)."""

    def __init__(self, locs: Tensor, scales: Tensor) -> None:
        assert locs.ndim == 2 and locs.shape == scales.shape and len(locs) > 0
        self.locs, self.scales = locs, scales

    @property
    def n_components(self) -> int:
        return self.locs.shape[0]

    @property
    def dim(self) -> int:
        return self.locs.shape[1]

    def to(self, device: torch.device | str) -> Mixture:
        return Mixture(self.locs.to(device), self.scales.to(device))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of points (..., d), in nats: (...)."""
        locs, scales = self.locs.to(x.dtype), self.scales.to(x.dtype)
        log_peak = -scales.log().sum(1) - self.dim * 0.5 * math.log(2 * math.pi) - math.log(self.n_components)
        standard = (x[..., None, :] - locs) / scales  # (..., k, d)
        return torch.logsumexp(log_peak - 0.5 * standard.square().sum(-1), -1)

    def draw(self, n: int, rng: torch.Generator) -> Draw:
        """n independent draws; `rng` may live on another device than the mixture."""
        labels = self._labels(n, rng)
        return Draw(self.draw_from(labels, rng), labels)

    def draw_from(self, labels: Tensor, rng: torch.Generator) -> Tensor:
        """A draw from the component that each of labels (n,) names: (n, d)."""
        noise = runtime.normal((len(labels), self.dim), rng, self.locs.device)
        return self.locs[labels] + self.scales[labels] * noise

    def _labels(self, n: int, rng: torch.Generator) -> Tensor:
        return runtime.drawn(
            lambda place: torch.randint(self.n_components, (n,), generator=rng, device=place), rng, self.locs.device
        )


def mixture(text: str) -> Mixture:
    """The distribution that the rest of a name after "toy" stands for: "4", "-4", "4_20" or a text, in float32.

    Raises UsageError for a distribution that cannot be, saying what can.
    """
    found = _MODES.fullmatch(text)
    if found is None:
        return text_mixture(text)
    n_modes, dim = int(found[2]), 2 if found[3] is None else int(found[3])
    with_origin = not found[1]
    if n_modes == 0 and not with_origin:
        raise UsageError(f"toy{text}: no component is left; toy-1 has one on the circle, toy0 one at the origin")
    if dim < 1:
        raise UsageError(f"toy{text}: {dim} dimensions; write toy{found[1]}{n_modes}_D with D at least 1")
    return circle_mixture(n_modes, with_origin, dim)


def circle_mixture(n_modes: int, with_origin: bool, dim: int = 2) -> Mixture:
    """n_modes components on the unit circle, one more at the origin if `with_origin`; in `dim` dimensions.

    Axes from the third on have fixed, evenly spaced places: component c has the numbers c dim + axis of
    linspace(-10 k, 10 k, k dim), for k components.
    """
    k = n_modes + with_origin
    angles = 2 * math.pi * torch.arange(n_modes, dtype=torch.float64) / k
    on_circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    locs = torch.linspace(-10 * k, 10 * k, k * dim).view(k, dim)  # in float32, whose rounding was published, too
    locs[:, :2] = 0
    locs[k - n_modes :, :2] = on_circle[:, : min(dim, 2)].float()
    return Mixture(locs, torch.full((k, dim), SPREAD / k))


def text_mixture(text: str) -> Mixture:
    """A component for every lit pixel of `text`, as wide as a pixel, scaled to about [-1.6, 2] on both axes."""
    if re.fullmatch(r".*_-?\d+", text):
        raise UsageError(f"toy{text}: a text has two dimensions; leave out the _D, or use a number: toy4_20")
    lit = bitmap(text)
    height, width = lit.shape
    column, row = np.nonzero(lit[::-1].T)  # rows counted from below, column after column
    places = np.stack([column / width, row / height], axis=1)
    locs = torch.from_numpy((places - TEXT_CENTER) * TEXT_SCALE).float()
    return Mixture(locs, torch.tensor([1 / width, 1 / height]).expand_as(locs).contiguous())


def bitmap(text: str) -> np.ndarray:
    """`text` in Pillow's old bitmap font: bool (height, width), the first row on top. Its glyphs have been the
    same in all versions; later ones have another default font beside it."""
    if not 1 <= len(text) <= LONGEST_TEXT:
        raise UsageError(f"toy: a text has 1 to {LONGEST_TEXT} letters, not {len(text)}; for example toyMIM, or toy4")
    font = getattr(ImageFont, "load_default_imagefont", ImageFont.load_default)()
    try:
        left, top, right, bottom = font.getbbox(text)
    except UnicodeEncodeError:
        raise UsageError(f"toy{text}: the font has only the letters of Latin-1") from None
    image = Image.new("1", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(image).text((0, 0), text, font=font, fill=1)
    lit = np.asarray(image, dtype=bool)
    if not lit.any():
        raise UsageError(f"toy{text}: none of the pixels of that text are lit; for example toyMIM")
    return lit
