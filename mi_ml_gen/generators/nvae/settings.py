"""The sizes of an NVAE, in the words of its configuration files, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from mi_ml_gen.core.errors import UsageError, nearest

MOST = 10_000
"""The largest of each size: so that a file cannot ask for more than a machine can hold."""


class Group(NamedTuple):
    """One latent variable: group `index` of scale `scale`. Scale 0 is the deepest one and is decoded first."""

    scale: int
    index: int  # type: ignore[assignment]  # of the group, not a tuple's method

    def __str__(self) -> str:
        return f"{self.scale}:{self.index}"


@dataclass(frozen=True)
class NVAEConfig:
    """Sizes of an NVAE; the defaults are those of the published configuration file `base_conf.yaml`.

    In files two names have a dash: num_pre-post_process_blocks and num_pre-post_process_cells.
    """

    resolution: tuple[int, int, int] = (3, 32, 32)
    """Channels (1 or 3), height and width of an image; a square."""
    num_scales: int = 3
    """Number of latent resolutions."""
    num_groups_per_scale: int = 1
    """Groups of each scale; of the largest scale if adaptive."""
    is_adaptive: bool = False
    """Halve the number of groups from each scale to the next deeper one."""
    min_groups_per_scale: int = 1
    """Least number of groups of a scale, if adaptive."""
    num_cells_per_group: int = 2
    """Residual cells of a group, in the encoder and in the decoder."""
    num_latent_per_group: int = 16
    """Channels of each latent variable."""
    num_nf_cells: int | None = None
    """Blocks of a normalising flow behind each posterior; None: no flow."""
    initial_channels: int = 128
    """Channels at the resolution of the image; each halving of the resolution doubles them."""
    num_pre_post_process_blocks: int = 1
    """Halvings before the first scale of the encoder, and doublings after the last one of the decoder."""
    num_pre_post_process_cells: int = 2
    """Residual cells of each of these blocks."""
    num_logistic_mixtures: int = 10
    """Components of the output distribution of a pixel."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolution", tuple(self.resolution))
        if len(self.resolution) != 3 or not all(type(n) is int and n >= 1 for n in self.resolution):
            raise UsageError(f"resolution {list(self.resolution)}: must be channels, height and width")
        channels, height, width = self.resolution
        if channels not in (1, 3):
            raise UsageError(f"resolution {list(self.resolution)}: images have 1 or 3 channels")
        for field in fields(self):
            value, optional = getattr(self, field.name), field.name == "num_nf_cells"
            if field.name == "resolution" or (optional and value is None):
                continue
            if field.name == "is_adaptive":
                if type(value) is not bool:
                    raise UsageError(f"is_adaptive {value}: must be true or false")
            elif type(value) is not int or not 1 <= value <= MOST:
                raise UsageError(f"{_written(field.name)} {value}: must be a whole number from 1 to {MOST:,}")
        if 2 ** min(self.num_pre_post_process_blocks + self.num_scales, 64) > 2 * height:
            raise UsageError(f"num_scales {self.num_scales}: an image of {height} px cannot be halved that often")
        if height != width or height % self.scaling_factor:
            raise UsageError(
                f"resolution {list(self.resolution)}: must be a square whose side {self.scaling_factor} divides, "
                f"for {self.num_scales} scales and {self.num_pre_post_process_blocks} pre-processing blocks"
            )

    @classmethod
    def from_file(cls, autoencoder: Mapping[str, Any], resolution: Any) -> NVAEConfig:
        """From the section "autoencoder" of a configuration file, and its "resolution".

        Raises UsageError for an unknown name or a value that makes no sense.
        """
        known = {_written(field.name): field.name for field in fields(cls) if field.name != "resolution"}
        for key in autoencoder:
            if key not in known:
                raise UsageError(f"unknown key {key} in autoencoder{nearest(str(key), known, 'key')}")
        if not isinstance(resolution, (list, tuple)):
            raise UsageError(f"resolution {resolution}: must be channels, height and width")
        return cls(resolution=tuple(resolution), **{known[key]: value for key, value in autoencoder.items()})

    def to_file(self) -> dict[str, Any]:
        """{"resolution": ..., "autoencoder": {...}}, as a configuration file has them."""
        values = {_written(name): value for name, value in asdict(self).items()}
        return {"resolution": list(values.pop("resolution")), "autoencoder": values}

    @property
    def scaling_factor(self) -> int:
        """The side of an image over the side of the deepest feature map."""
        return 2 ** (self.num_pre_post_process_blocks + self.num_scales - 1)

    @property
    def groups_per_scale(self) -> tuple[int, ...]:
        """Number of groups of each scale, deepest scale first."""
        if not self.is_adaptive:
            return (self.num_groups_per_scale,) * self.num_scales
        most, least = self.num_groups_per_scale, self.min_groups_per_scale
        return tuple(max(least, most // 2**i) for i in reversed(range(self.num_scales)))

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups, in the order in which they are decoded."""
        return tuple(Group(scale, i) for scale, n in enumerate(self.groups_per_scale) for i in range(n))

    def channels(self, scale: int) -> int:
        """Channels of the feature maps of a scale."""
        return self.initial_channels * 2 ** (self.num_pre_post_process_blocks + self.num_scales - 1 - scale)

    def side(self, scale: int) -> int:
        """Height and width of the feature maps and latent variables of a scale, in pixels."""
        return self.resolution[1] // self.scaling_factor * 2**scale

    @property
    def latent_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(channels, height, width) of the latent variable of each group."""
        return tuple((self.num_latent_per_group, *(self.side(group.scale),) * 2) for group in self.groups)


def _written(name: str) -> str:
    return name.replace("pre_post", "pre-post")
