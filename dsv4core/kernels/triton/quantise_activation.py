"""fp8 activations: e4m3 codes with one power-of-two scale per token and 128 channels."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4core.kernels.triton._launch import launch, pieces
from dsv4core.kernels.triton._tuning import native_e4m3, tuned
from dsv4core.kernels.triton.numerics import (
    decode_e4m3,
    encode_e4m3,
    exponent_e4m3,
    power_of_two,
    to_bf16,
    widen,
)

GROUP = 128


@triton.jit(do_not_specialize=["groups"])
def quantise_activation_kernel(
    x, codes, scales, groups, per_row, stride, token_stride, group_stride, ROWS: tl.constexpr,
    VALUES: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """One program quantises ROWS groups of 128 channels; VALUES: to what the codes stand for."""
    g = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, 128)[None, :]
    live = g < groups
    token, group = g // per_row, g % per_row
    values = widen(tl.load(x + (token * stride + group * 128)[:, None] + d, live[:, None], other=0.0))
    amax = tl.maximum(tl.max(tl.abs(values), 1), 1e-4)
    exponent = exponent_e4m3(amax)
    code = encode_e4m3(values * power_of_two(-exponent)[:, None], HARDWARE)
    place = codes + (g * 128)[:, None] + d
    if VALUES:
        meant = decode_e4m3(code, HARDWARE) * power_of_two(exponent)[:, None]
        tl.store(place, to_bf16(meant), live[:, None])
    else:
        tl.store(place, code, live[:, None])
        tl.store(scales + token * token_stride + group * group_stride, power_of_two(exponent), live)


def quantise_activation(x: Tensor, *, by_column: bool = False) -> tuple[Tensor, Tensor]:
    """Codes and scales 2^ceil(log2(amax / 448)), amax floored at 1e-4; the bytes of `linear.activation`.

    Shapes: bf16 [T, in] of whole groups of 128 -> float8_e4m3fn [T, in], f32 [T, in/128], by column one
    column of scales behind the other.
    """
    tokens, inputs = x.shape
    codes = x.new_empty(tokens, inputs, dtype=torch.uint8)
    shape = (inputs // GROUP, tokens) if by_column else (tokens, inputs // GROUP)
    scales = x.new_empty(shape, dtype=torch.float32)
    scales = scales.t() if by_column else scales
    _launch(x, codes, scales, values=False)
    return codes.view(torch.float8_e4m3fn), scales


def rounded_activation(x: Tensor) -> Tensor:
    """What the codes of x stand for; exact. Shapes: bf16 [T, in] of whole groups of 128 -> the same."""
    out = x.new_empty(x.shape)
    _launch(x, out, out, values=True)
    return out


def _launch(x: Tensor, out: Tensor, scales: Tensor, *, values: bool) -> None:
    meta, groups = tuned("quantise_activation", x), x.numel() // GROUP
    launch(
        quantise_activation_kernel, pieces(groups, meta["ROWS"]), x, x, out, scales, groups,
        x.shape[1] // GROUP,
        x.stride(0), scales.stride(0), scales.stride(1), VALUES=values, HARDWARE=native_e4m3(x), **meta,
    )  # fmt: skip
