"""The kernels behind `kernels`, in Triton, which torch's CUDA builds bring along. Imported where one is launched.

Maps lie in memory as (n, pixels, channels), the channels next to one another; the filter takes any strides. Sums are
in float32, whatever the maps hold, and in one fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

NO_OFFSET, OFFSET_OF_CHANNELS, OFFSET_OF_PIXELS = 0, 1, 2
LINEAR, RELU, LEAKY = 0, 1, 2


@triton.jit
def _before_activation(x, s, offset, p, c, mask, channels, OFFSET: tl.constexpr):
    """x * scale + offset of a block of pixels p and channels c."""
    v = x * s[None, :]
    if OFFSET == 1:
        v += tl.load(offset + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    if OFFSET == 2:
        v += tl.load(offset + p[:, None] * channels + c[None, :], mask=mask, other=0.0).to(tl.float32)
    return v


@triton.jit
def _forward(
    x, scale, offset, y, pixels, channels, scale_n, offset_n, slope, bound,
    OFFSET: tl.constexpr, ACTIVATION: tl.constexpr, BOUNDED: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(2).to(tl.int64)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (p < pixels)[:, None] & (c < channels)[None, :]
    at = n * pixels * channels + p[:, None] * channels + c[None, :]
    s = tl.load(scale + n * scale_n + c, mask=c < channels, other=0.0).to(tl.float32)
    loaded = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    v = _before_activation(loaded, s, offset + n * offset_n, p, c, mask, channels, OFFSET)
    if ACTIVATION == 1:
        v = tl.maximum(v, 0.0)
    if ACTIVATION == 2:
        v = tl.where(v > 0, v, v * slope)
    if BOUNDED:
        v = tl.minimum(tl.maximum(v, -bound), bound)
    tl.store(y + at, v.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _backward(
    gradient, x, scale, offset, to_x, scale_sums, offset_sums, pixels, channels, scale_n, offset_n, slope, bound,
    pixels_per_part,
    OFFSET: tl.constexpr, ACTIVATION: tl.constexpr, BOUNDED: tl.constexpr, TO_SCALE: tl.constexpr,
    TO_OFFSET: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(2).to(tl.int64)
    part = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    s = tl.load(scale + n * scale_n + c, mask=c < channels, other=0.0).to(tl.float32)
    sum_x = tl.zeros((BLOCK_C,), tl.float32)
    sum_1 = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, pixels_per_part, BLOCK_P):
        p = part * pixels_per_part + start + tl.arange(0, BLOCK_P)
        mask = (p < pixels)[:, None] & (c < channels)[None, :]
        at = n * pixels * channels + p[:, None] * channels + c[None, :]
        loaded = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(gradient + at, mask=mask, other=0.0).to(tl.float32)
        v = _before_activation(loaded, s, offset + n * offset_n, p, c, mask, channels, OFFSET)
        if BOUNDED:
            after = v
            if ACTIVATION == 1:
                after = tl.maximum(v, 0.0)
            if ACTIVATION == 2:
                after = tl.where(v > 0, v, v * slope)
            g = tl.where((after > -bound) & (after < bound), g, 0.0)
        if ACTIVATION == 1:
            g = tl.where(v > 0, g, 0.0)
        if ACTIVATION == 2:
            g = tl.where(v > 0, g, g * slope)
        tl.store(to_x + at, (g * s[None, :]).to(to_x.dtype.element_ty), mask=mask)
        if TO_SCALE:
            sum_x += tl.sum(g * loaded, axis=0)
        if TO_OFFSET:
            sum_1 += tl.sum(g, axis=0)
    row = (n * tl.num_programs(0) + part) * channels
    if TO_SCALE:
        tl.store(scale_sums + row + c, sum_x, mask=c < channels)
    if TO_OFFSET:
        tl.store(offset_sums + row + c, sum_1, mask=c < channels)


@triton.jit
def _add_doubled(x, small, bias, side_w, channels, HAS_BIAS: tl.constexpr, BLOCK_P: tl.constexpr,
                 BLOCK_C: tl.constexpr):  # fmt: skip
    row = tl.program_id(2).to(tl.int64)  # of all images together
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (p < side_w)[:, None] & (c < channels)[None, :]
    at = x + row * side_w * channels + p[:, None] * channels + c[None, :]
    below = small + (row // 2) * (side_w // 2) * channels + (p // 2)[:, None] * channels + c[None, :]
    v = tl.load(at, mask=mask, other=0.0).to(tl.float32) + tl.load(below, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        v += tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    tl.store(at, v.to(x.dtype.element_ty), mask=mask)


@triton.jit
def _filter(
    x, taps, y, height, width, channels, out_height, out_width, x_n, x_h, x_w, x_c, y_n, y_h, y_w, y_c, padding,
    UP: tl.constexpr, DOWN: tl.constexpr, TAPS: tl.constexpr, TURNED: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(2).to(tl.int64)
    row = tl.program_id(1) * 2  # two rows of results share what they read
    blocks_c = tl.cdiv(channels, BLOCK_C)
    column = (tl.program_id(0) // blocks_c) * BLOCK_W + tl.arange(0, BLOCK_W)
    c = (tl.program_id(0) % blocks_c) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = (c < channels)[None, :]
    first = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    second = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    for i in tl.static_range(TAPS + DOWN):
        # In the plane with zeros between the samples.
        r = tl.zeros((BLOCK_W,), tl.int32) + (row * DOWN + i - padding)
        is_row = (r >= 0) & (r % UP == 0) & (r // UP < height)
        for j in tl.static_range(TAPS):
            q = column * DOWN + j - padding
            is_column = (q >= 0) & (q % UP == 0) & (q // UP < width)
            mask = (is_row & is_column)[:, None] & is_channel
            at = n * x_n + ((r // UP) * x_h + (q // UP) * x_w)[:, None] + c[None, :] * x_c
            value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
            if i < TAPS:
                at_tap = i * TAPS + j
                first += tl.load(taps + (TAPS * TAPS - 1 - at_tap if TURNED else at_tap)) * value
            if i >= DOWN:
                at_tap = (i - DOWN) * TAPS + j
                second += tl.load(taps + (TAPS * TAPS - 1 - at_tap if TURNED else at_tap)) * value
    mask = (column < out_width)[:, None] & is_channel
    at = n * y_n + row * y_h + column[:, None] * y_w + c[None, :] * y_c
    tl.store(y + at, first.to(y.dtype.element_ty), mask=mask)
    below = tl.zeros((BLOCK_W,), tl.int32) + (row + 1)
    tl.store(y + at + y_h, second.to(y.dtype.element_ty), mask=mask & (below < out_height)[:, None])


@triton.jit
def _interpolation(
    start, length, flip, y, n_in, n_out, FLIPS: tl.constexpr, ANTIALIAS: tl.constexpr, CORNERS: tl.constexpr,
    BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1).to(tl.int64)
    at_out = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    at_in = tl.arange(0, BLOCK_IN)
    size = tl.load(length + n)
    out = at_out.to(tl.float32)
    if FLIPS:
        out = tl.where(tl.load(flip + n) != 0, n_out - 1 - out, out)
    if CORNERS:
        step = (size - 1) / tl.maximum(n_out - 1, 1)
        center = out * step + 0.5
    else:
        step = size / n_out
        center = (out + 0.5) * step
    pixel = at_in.to(tl.float32) - tl.load(start + n)
    distance = tl.abs(pixel[None, :] + 0.5 - center[:, None])
    if ANTIALIAS:
        distance = distance / tl.maximum(step, 1.0)
    inside = (pixel >= 0) & (pixel < size) & (at_in < n_in)
    weights = tl.where(inside[None, :], tl.maximum(1 - distance, 0.0), 0.0)
    weights = weights / tl.sum(weights, axis=1)[:, None]
    mask = (at_out < n_out)[:, None] & (at_in < n_in)[None, :]
    tl.store(y + (n * n_out + at_out[:, None]) * n_in + at_in[None, :], weights, mask=mask)


@triton.jit
def _turned(sixths, value, chroma):
    """A channel after the hue was turned; sixths: of a turn, from where the channel is darkest."""
    k = sixths - 6 * tl.floor(sixths / 6)
    return value - chroma * tl.minimum(tl.maximum(tl.minimum(k, 4 - k), 0.0), 1.0)


@triton.jit
def _within_1(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _colours(
    x, y, active, gray, blends, order, hue, hue_position, mean, std, pixels, width, x_n, x_c, x_h, x_w,
    blends_n, blends_k, order_n, order_k, red_weight, green_weight, blue_weight, least_chroma,
    NORMALISED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1).to(tl.int64)
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = p < pixels
    at = x + n * x_n + (p // width) * x_h + (p % width) * x_w
    r = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(at + x_c, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(at + 2 * x_c, mask=mask, other=0.0).to(tl.float32)
    is_active = tl.load(active + n) != 0
    before_hue = tl.load(hue_position + n)
    for i in tl.static_range(6):
        # --- A blend at each of the places before the hue, then at each after it, where it is due.
        kind = tl.load(order + n * order_n + (i % 3) * order_k)
        is_due = before_hue > i % 3 if i < 3 else before_hue <= i % 3
        factor = tl.where(is_active & is_due, tl.load(blends + n * blends_n + kind * blends_k), 1.0)
        value = tl.maximum(tl.maximum(r, g), b)
        chroma = value - tl.minimum(tl.minimum(r, g), b)
        ratio = tl.minimum(tl.where(kind == 2, factor, 1.0), (value + least_chroma) / (chroma + least_chroma))
        offset = tl.where(kind == 0, factor, 1.0) - 1 + value * (1 - ratio)
        gain = ratio * tl.where(kind == 1, factor, 1.0)
        r = _within_1(offset + r * gain)
        g = _within_1(offset + g * gain)
        b = _within_1(offset + b * gain)
        if i == 2:
            value = tl.maximum(tl.maximum(r, g), b)
            chroma = value - tl.minimum(tl.minimum(r, g), b)
            is_red = r == value
            is_green = g == value
            difference = tl.where(is_red, g - b, tl.where(is_green, b - r, r - g))
            sector = tl.where(is_red, 0.0, tl.where(is_green, 2.0, 4.0))
            sixths = difference / tl.where(chroma > least_chroma, chroma, 1.0) + sector
            turn = 6 * tl.load(hue + n)
            r = tl.where(is_active, _turned(sixths + (5 + turn), value, chroma), r)
            g = tl.where(is_active, _turned(sixths + (3 + turn), value, chroma), g)
            b = tl.where(is_active, _turned(sixths + (1 + turn), value, chroma), b)
    is_gray = tl.load(gray + n) != 0
    luma = red_weight * r + green_weight * g + blue_weight * b
    r = tl.where(is_gray, luma, r)
    g = tl.where(is_gray, luma, g)
    b = tl.where(is_gray, luma, b)
    if NORMALISED:
        r = (r - tl.load(mean)) / tl.load(std)
        g = (g - tl.load(mean + 1)) / tl.load(std + 1)
        b = (b - tl.load(mean + 2)) / tl.load(std + 2)
    to = y + (n * pixels + p) * 3
    tl.store(to, r, mask=mask)
    tl.store(to + 1, g, mask=mask)
    tl.store(to + 2, b, mask=mask)


# --- launches ---------------------------------------------------------------------------------------------------


def _blocks(pixels: int, channels: int) -> tuple[int, int]:
    """Pixels and channels of a block: 4,096 values, channels first."""
    of_channels = min(128, triton.next_power_of_2(channels))
    return min(triton.next_power_of_2(pixels), 4096 // of_channels), of_channels


def _how(x: Tensor, scale: Tensor, offset: Tensor | None, slope: float | None, bound: float | None) -> dict[str, Any]:
    _, channels, height, width = x.shape
    kind = NO_OFFSET
    if offset is not None:
        kind = OFFSET_OF_CHANNELS if offset.shape[2:] == (1, 1) else OFFSET_OF_PIXELS
    return dict(
        pixels=height * width, channels=channels,
        scale_n=scale.stride(0) if len(scale) > 1 else 0,
        offset_n=offset.stride(0) if offset is not None and len(offset) > 1 else 0,
        slope=slope or 0.0, bound=bound or 0.0, OFFSET=kind,
        ACTIVATION=LINEAR if slope is None else LEAKY if slope else RELU, BOUNDED=bound is not None,
    )  # fmt: skip


def scaled_activation(
    x: Tensor, scale: Tensor, offset: Tensor | None, slope: float | None, bound: float | None
) -> Tensor:
    y = torch.empty_like(x)
    how = _how(x, scale, offset, slope, bound)
    block_p, block_c = _blocks(how["pixels"], how["channels"])
    grid = (triton.cdiv(how["pixels"], block_p), triton.cdiv(how["channels"], block_c), len(x))
    _forward[grid](x, scale, x if offset is None else offset, y, **how, BLOCK_P=block_p, BLOCK_C=block_c)
    return y


def scaled_activation_backward(
    gradient: Tensor, x: Tensor, scale: Tensor, offset: Tensor | None, slope: float | None, bound: float | None,
    to_scale: bool, to_offset: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of x, and per sample and channel, float32 (0 to 2, n, channels), of scale and offset, if wanted."""
    how = _how(x, scale, offset, slope, bound)
    n, channels = x.shape[:2]
    block_p, block_c = _blocks(how["pixels"], channels)
    blocks_c, blocks_p = triton.cdiv(channels, block_c), triton.cdiv(how["pixels"], block_p)
    # As few parts as keep the device busy, as each of them leaves a row of sums.
    n_parts = min(blocks_p, triton.cdiv(2048, n * blocks_c))
    per_part = triton.cdiv(blocks_p, n_parts) * block_p
    n_parts = triton.cdiv(how["pixels"], per_part)
    to_x = torch.empty_like(x)
    sums = x.new_empty((to_scale + to_offset, n, n_parts, channels), dtype=torch.float32)
    _backward[(n_parts, blocks_c, n)](
        gradient, x, scale, x if offset is None else offset, to_x, sums[0] if to_scale else to_x,
        sums[-1] if to_offset else to_x, **how, pixels_per_part=per_part,
        TO_SCALE=to_scale, TO_OFFSET=to_offset, BLOCK_P=block_p, BLOCK_C=block_c,
    )  # fmt: skip
    return to_x, sums.sum(2)


def add_doubled(x: Tensor, small: Tensor, bias: Tensor | None) -> None:
    n, channels, height, width = x.shape
    block_p, block_c = _blocks(width, channels)
    grid = (triton.cdiv(width, block_p), triton.cdiv(channels, block_c), n * height)
    _add_doubled[grid](
        x, small, x if bias is None else bias, width, channels,
        HAS_BIAS=bias is not None, BLOCK_P=block_p, BLOCK_C=block_c,
    )  # fmt: skip


def filtered(
    x: Tensor, taps: Tensor, up: int, down: int, padding: int, out_height: int, out_width: int, turned: bool = False
) -> Tensor:
    n, channels, height, width = x.shape
    is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    layout = torch.channels_last if is_last else torch.contiguous_format
    y = torch.empty((n, channels, out_height, out_width), dtype=x.dtype, device=x.device, memory_format=layout)
    if is_last:
        seen, made = x, y
        block_c = min(64, triton.next_power_of_2(channels))
        block_w = min(triton.next_power_of_2(out_width), 2048 // block_c)
    else:  # one plane after the other
        seen, made = x.reshape(n * channels, 1, height, width), y.view(n * channels, 1, out_height, out_width)
        block_c, block_w = 1, min(triton.next_power_of_2(out_width), 512)
    grid = (
        triton.cdiv(out_width, block_w) * triton.cdiv(seen.shape[1], block_c),
        triton.cdiv(out_height, 2),
        len(seen),
    )
    n_x, c_x, h_x, w_x = seen.stride()
    n_y, c_y, h_y, w_y = made.stride()
    _filter[grid](
        seen, taps, made, height, width, seen.shape[1], out_height, out_width,
        n_x, h_x, w_x, c_x, n_y, h_y, w_y, c_y, padding,
        UP=up, DOWN=down, TAPS=taps.shape[-1], TURNED=turned, BLOCK_W=block_w, BLOCK_C=block_c,
    )  # fmt: skip
    return y


def interpolation(
    start: Tensor, length: Tensor, flip: Tensor | None, n_in: int, n_out: int, antialias: bool, corners: bool
) -> Tensor:
    y = torch.empty((len(start), n_out, n_in), dtype=torch.float32, device=start.device)
    block_in = triton.next_power_of_2(n_in)
    block_out = min(triton.next_power_of_2(n_out), max(1, 4096 // block_in))
    _interpolation[(triton.cdiv(n_out, block_out), len(start))](
        start.contiguous(), length.contiguous(), start if flip is None else flip.contiguous().view(torch.uint8), y,
        n_in, n_out,
        FLIPS=flip is not None, ANTIALIAS=antialias, CORNERS=corners, BLOCK_OUT=block_out, BLOCK_IN=block_in,
    )  # fmt: skip
    return y


def colours(
    x: Tensor, active: Tensor, gray: Tensor, blends: Tensor, order: Tensor, hue: Tensor, hue_position: Tensor,
    mean: Tensor | None, std: Tensor | None, luma: list[float], least_chroma: float,
) -> Tensor:  # fmt: skip
    n, _, height, width = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    block = min(1024, triton.next_power_of_2(height * width))
    x_n, x_c, x_h, x_w = x.stride()
    _colours[(triton.cdiv(height * width, block), n)](
        x, y, active.contiguous().view(torch.uint8), gray.contiguous().view(torch.uint8), blends, order,
        hue.contiguous(), hue_position.contiguous(),
        x if mean is None else mean, x if std is None else std, height * width, width, x_n, x_c, x_h, x_w,
        *blends.stride(), *order.stride(), *luma, least_chroma, NORMALISED=mean is not None, BLOCK=block,
    )  # fmt: skip
    return y


__all__ = [
    "add_doubled", "colours", "filtered", "interpolation", "scaled_activation", "scaled_activation_backward",
]  # fmt: skip
