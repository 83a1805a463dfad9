"""Settings of a StyleGAN2 network, and how published files write them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

import numpy as np

from mi_ml_gen.core.errors import UsageError, nearest
from mi_ml_gen.generators.base import Use

RANDOM = "random"
NOISE_MODES = ("const", "random", "none")
_GAINS = {"lrelu": math.sqrt(2), "linear": 1.0}
_DEFAULT_TAPS = (1.0, 3.0, 3.0, 1.0)
_DEFAULT_SIZE = 128


# The paper's data pipeline for the cars: 512 px padded from 512 x 384, cut to 384, reduced to 128.
_CARS_RESOLUTION, _CARS_CROP = 512, 384


@dataclass(frozen=True, kw_only=True)
class StyleGAN2Use(Use):
    """How the network is used: options that every file leaves open."""

    noise_mode: str = "const"
    """const: the stored maps; random: fresh ones at each call; none."""
    psi: float = 1.0
    """Truncation: w_avg + psi (w - w_avg); 1 leaves w as it is."""
    cutoff: int | None = None
    """Number of rows that truncation applies to; None: all."""
    label: int | Literal["random"] = 0
    """Class of a label-conditional network where the caller names none; random: one for each sample, which its noise z
    decides, so that the same seed gives the same classes."""
    crop: int | None = None
    """Side of the centre crop that `decode` keeps, in pixels; None: 384 at 512 px (the paper's cars), else
    all."""
    size: int | None = None
    """Side of decoded images, in pixels; None: 128, or the crop where that is smaller."""
    resampling: str | None = None
    """corners: bilinear between corner pixels, unfiltered, as in the paper; antialias; None: corners for the
    paper's crop, antialias for all else."""


@dataclass(frozen=True)
class StyleGAN2Config(StyleGAN2Use):
    """What the network is, beside its use; the defaults are the LSUN cars network's (config f)."""

    z_dim: int = 512
    c_dim: int = 0
    """Number of classes of a label-conditional network; 0: unconditional."""
    w_dim: int = 512
    img_resolution: int = 512
    img_channels: int = 3
    mapping_layers: int = 8
    embed_features: int | None = None
    """Width of the label embedding; None: w_dim."""
    layer_features: int | None = None
    """Width of the mapping's hidden layers; None: w_dim."""
    mapping_activation: str = "lrelu"
    lr_multiplier: float = 0.01
    w_avg_beta: float | None = 0.995
    """Decay of the running mean of w, which training may follow."""
    channel_base: int = 32768
    channel_max: int = 512
    architecture: str = "skip"
    resample_filter: tuple[float, ...] = _DEFAULT_TAPS
    conv_clamp: float | None = None
    use_noise: bool = True
    activation: str = "lrelu"
    num_fp16_res: int = 0
    """Resolutions that the authors run in float16. For the record: precision is the caller's choice here."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "resample_filter", _taps(self.resample_filter))
        for name, least in _WHOLE.items():
            self._require(name, partial(_is_whole, least), f"a whole number of at least {least}")
        for name, least in _WHOLE_OR_NONE.items():
            right = partial(_is_whole_or_none, least)
            self._require(name, right, f"None or a whole number of at least {least}")
        self._require("label", _is_label, "a whole number of at least 0, or random")
        for name, choices in _CHOICES.items():
            self._require(name, choices.__contains__, f"one of {', '.join(map(str, choices))}")
        side = self.img_resolution
        self._require("img_resolution", lambda v: v & (v - 1) == 0, "a power of two")
        self._require("channel_base", lambda v: v >= side, f"at least img_resolution, {side}")
        self._require("lr_multiplier", lambda v: _is_number(v) and v > 0, "a number above 0")
        self._require("conv_clamp", lambda v: v is None or (_is_number(v) and v > 0), "None or a number above 0")
        self._require("w_avg_beta", lambda v: v is None or (_is_number(v) and 0 <= v <= 1), "None or in [0, 1]")
        self._require("psi", _is_number, "a finite number")
        self._require("cutoff", lambda v: (v or 0) <= self.num_ws, f"at most {self.num_ws}, the number of layers")
        of_classes = f"below the number of classes, {self.c_dim}"
        self._require("label", lambda v: self.c_dim > 0 if v == RANDOM else v < max(self.c_dim, 1), of_classes)
        self._require("crop", lambda v: (v or 0) <= side, f"at most {side}, the side of the image")

    def _require(self, name: str, right: Callable[[Any], bool], wanted: str) -> None:
        value = getattr(self, name)
        if not right(value):
            raise UsageError(f"StyleGAN2 {name} {value}: must be {wanted}")

    @property
    def num_ws(self) -> int:
        """Rows of W+: two per resolution."""
        return 2 * int(math.log2(self.img_resolution)) - 2

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Side of each block's output, in pixels: 4, 8, ..., img_resolution."""
        return tuple(2**k for k in range(2, int(math.log2(self.img_resolution)) + 1))

    def channels(self, resolution: int) -> int:
        """Feature maps of the block at a resolution."""
        return min(self.channel_base // resolution, self.channel_max)

    @property
    def crop_px(self) -> int:
        """Side of the centre crop in effect."""
        if self.crop is not None:
            return self.crop
        return _CARS_CROP if self.img_resolution == _CARS_RESOLUTION else self.img_resolution

    @property
    def size_px(self) -> int:
        """Side of decoded images in effect."""
        return self.size if self.size is not None else min(_DEFAULT_SIZE, self.crop_px)

    @property
    def resampling_kind(self) -> str:
        """The resampling in effect."""
        if self.resampling is not None:
            return self.resampling
        cars = self.img_resolution == _CARS_RESOLUTION and self.crop_px == _CARS_CROP
        return "corners" if cars else "antialias"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StyleGAN2Config:
        """The record of `config()` back again. Raises UsageError for an unknown key."""
        known = [field.name for field in fields(cls)]
        for key in values:
            _check_known(key, known, "StyleGAN2 option")
        return cls(**values)

    @classmethod
    def from_published(cls, kwargs: Mapping[str, Any], **use: Any) -> StyleGAN2Config:
        """From the keyword arguments in a published PyTorch file, in their nesting and with their defaults.

        `kwargs` has z_dim, c_dim, w_dim, img_resolution, img_channels and the mapping mapping_kwargs. The options of
        the synthesis stand in the mapping synthesis_kwargs (NVlabs/stylegan2-ada-pytorch) or beside z_dim
        (NVlabs/stylegan3, whose defaults differ, see `_STYLEGAN3_DEFAULTS`). Only what differs from the defaults need
        be there. `use` may set fields of StyleGAN2Use. Raises UsageError for an option that is unknown or not
        supported here.
        """
        beside = {key: value for key, value in kwargs.items() if key in _PUBLISHED_SYNTHESIS}
        if beside and kwargs.get("synthesis_kwargs") is not None:
            found = ", ".join(beside)
            raise UsageError(f"StyleGAN2 options of the synthesis stand in synthesis_kwargs and beside it: {found}")
        flat: dict[str, Any] = {"img_resolution": None, **use, **(_STYLEGAN3_DEFAULTS if beside else {})}
        for key, value in kwargs.items():
            known = (*_PUBLISHED_TOP, "mapping_kwargs", "synthesis_kwargs", *_PUBLISHED_SYNTHESIS)
            _check_known(key, known, "StyleGAN2 option")
            if key in _PUBLISHED_TOP:
                flat[key] = value.item() if isinstance(value, np.generic) else value
        for part, names, given in (
            ("mapping_kwargs", _PUBLISHED_MAPPING, kwargs.get("mapping_kwargs") or {}),
            ("synthesis_kwargs", _PUBLISHED_SYNTHESIS, kwargs.get("synthesis_kwargs") or beside),
        ):
            for key, value in given.items():
                _check_known(key, names, f"StyleGAN2 option of {part}")
                if key == "kernel_size" and value != 3:
                    raise UsageError(f"StyleGAN2 kernel_size {value}: must be 3")
                if (field := names[key]) is not None:
                    flat[field] = value.item() if isinstance(value, np.generic) else value
        if "use_noise" in flat:
            flat["use_noise"] = bool(flat["use_noise"])
        return cls.from_dict(flat)


_PUBLISHED_TOP = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")
_PUBLISHED_MAPPING: dict[str, str | None] = {
    "num_layers": "mapping_layers",
    "embed_features": "embed_features",
    "layer_features": "layer_features",
    "activation": "mapping_activation",
    "lr_multiplier": "lr_multiplier",
    "w_avg_beta": "w_avg_beta",
}
_PUBLISHED_SYNTHESIS: dict[str, str | None] = {
    "channel_base": "channel_base",
    "channel_max": "channel_max",
    "num_fp16_res": "num_fp16_res",
    "architecture": "architecture",
    "resample_filter": "resample_filter",
    "conv_clamp": "conv_clamp",
    "use_noise": "use_noise",
    "activation": "activation",
    "fp16_channels_last": None,  # a memory layout; it changes no value
    "fused_modconv_default": None,  # in which order the same product is computed
    "kernel_size": None,
}
_STYLEGAN3_DEFAULTS: dict[str, Any] = {"num_fp16_res": 4, "conv_clamp": 256, "w_avg_beta": 0.998}
"""What training/networks_stylegan2.py of NVlabs/stylegan3 takes where a file gives no value."""


_WHOLE = {
    **dict.fromkeys(("z_dim", "w_dim", "mapping_layers", "channel_base", "channel_max"), 1),
    **dict.fromkeys(("c_dim", "num_fp16_res"), 0),
    "img_resolution": 4,
}
_WHOLE_OR_NONE = {"embed_features": 1, "layer_features": 1, "cutoff": 0, "crop": 1, "size": 1}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "img_channels": (1, 3),
    "mapping_activation": tuple(_GAINS),
    "activation": tuple(_GAINS),
    "architecture": ("skip", "orig", "resnet"),
    "use_noise": (True, False),
    "noise_mode": NOISE_MODES,
    "resampling": (None, "corners", "antialias"),
}


def _is_label(value: Any) -> bool:
    return value == RANDOM or _is_whole(0, value)


def _is_whole(least: int, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_whole_or_none(least: int, value: Any) -> bool:
    return value is None or _is_whole(least, value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_known(key: str, known: Collection[str], what: str) -> None:
    if key not in known:
        raise UsageError(f"{what} {key}: unknown{nearest(str(key), known, 'option')}")


def _taps(values: Any) -> tuple[float, ...]:
    try:
        taps = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        taps = ()
    if not math.isfinite(sum(taps)) or sum(taps) == 0:
        raise UsageError(f"StyleGAN2 resample_filter {values}: must be a list of numbers whose sum is not 0")
    return taps
