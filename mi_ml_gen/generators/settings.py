"""Groups of settings that name a generator and the noise it gets; see `mi_ml_gen.core.settings`. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from mi_ml_gen.core.config import option, redefined
from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.core.settings import OnDevice, Seeded
from mi_ml_gen.data.known import check_data_path
from mi_ml_gen.latents import TruncatedNormal


@dataclass
class FromGenerator:
    """A pretrained generator."""

    SECTION: ClassVar[str] = "generator"

    generator: str = option(help="name of the generator: tiny-bigbigan, tiny-stylegan, bigbigan, stylegan2 ...")
    g_path: str | None = option(
        None, free=True, aliases=("generator_path",),
        help="the generator's weights, a file or a folder that was saved; needed unless they come with the package",
    )  # fmt: skip
    g_use: list[str] = option(
        [], help="options of the generator, as KEY=VALUE: psi=0.7 crop=256 size=128 label=3 noise_mode=random"
    )


@dataclass
class CheckConfig(OnDevice, Seeded):
    """What `scripts/check_generator.py` takes beside the generator's name."""

    g_path: str | None = redefined(FromGenerator, "g_path", None)
    g_use: list[str] = redefined(FromGenerator, "g_use", [])
    n: int = option(2, at_least=2, aliases=("n_images",), help="images that are decoded at a time")
    skip: list[str] = option([], help="promises to leave out, by the names that the command prints")


@dataclass
class Anchors:
    """Whether anchors are drawn from the prior, or are real images."""

    SECTION: ClassVar[str] = "noise of the anchors"
    RECORDED: ClassVar[bool] = False
    """Whether runs say what is not given here."""

    anchors: Literal["prior", "real"] = option(
        "prior", later=True,
        help="prior: random noise; real: the noise of encoded images, for a generator that can encode (NVAE)",
    )  # fmt: skip
    anchors_data: str | None = option(
        None, later=True, help="images for --anchors real, from the training split: fashion-mnist, a folder ..."
    )

    def check_anchors(self) -> None:
        """Refuse by UsageError images that are missing, not there, or of no use."""
        if self.anchors_data is not None:
            check_data_path("--anchors_data", self.anchors_data)
            if self.anchors == "prior":
                raise UsageError(f"--anchors_data {self.anchors_data}: has no effect without --anchors real")
        elif self.anchors == "real" and not self.RECORDED:
            raise UsageError(NO_IMAGES)


NO_IMAGES = "--anchors real: name the images by --anchors_data, such as fashion-mnist or a folder"


@dataclass
class AnchorNoise(Anchors):
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

    def check_anchors(self) -> None:
        """As above; with real images nothing may be said of random noise."""
        super().check_anchors()
        for field in fields(AnchorNoise) if self.anchors == "real" and not self.RECORDED else ():
            value, default = getattr(self, field.name), getattr(type(self), field.name)
            if field.name in ("mean", "std", "truncation") and value != default:
                raise UsageError(f"--{field.name} {value:g}: has no effect with --anchors real; leave it out")

    def check_prior(self) -> None:
        """Refuse --anchors real, where only the prior's noise can be used."""
        if self.anchors == "real":
            raise UsageError("--anchors real: this script draws its anchors from the prior; leave it out")

    @property
    def distribution(self) -> TruncatedNormal:
        """Of the prior's noise; `generators.anchors.anchor_distribution` also knows real images."""
        self.check_prior()
        return TruncatedNormal(self.mean, self.std, self.truncation)
