"""Groups of settings that name a generator and the noise it gets; see `mi_ml_gen.core.settings`. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mi_ml_gen.core.config import option
from mi_ml_gen.latents import TruncatedNormal


@dataclass
class FromGenerator:
    """A pretrained generator."""

    SECTION: ClassVar[str] = "generator"

    generator: str = option(help="name of the generator: tiny-bigbigan, tiny-stylegan, bigbigan, stylegan2 ...")
    g_path: str | None = option(
        None, free=True, aliases=("generator_path",),
        help="file with the generator's weights; needed unless they come with the package",
    )  # fmt: skip
    g_use: list[str] = option(
        [], help="how the generator is used, as KEY=VALUE: psi=0.7 crop=256 size=128 label=3 noise_mode=random"
    )


@dataclass
class AnchorNoise:
    """The distribution that anchors are drawn from."""

    SECTION: ClassVar[str] = "noise of the anchors"

    mean: float = option(0.0, help="mean of the anchors' noise")
    std: float = option(1.0, above=0, help="standard deviation of the anchors' noise")
    truncation: float = option(
        2.0,
        above=0,
        aliases=("trunc",),
        help="largest distance of the anchors' noise from its mean, in standard deviations",
    )

    @property
    def distribution(self) -> TruncatedNormal:
        return TruncatedNormal(self.mean, self.std, self.truncation)
