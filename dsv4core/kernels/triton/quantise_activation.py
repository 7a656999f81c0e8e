"""fp8 activations: e4m3 codes with one power-of-two scale per token and 128 channels."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4core.kernels.triton._launch import block as block_size
from dsv4core.kernels.triton._launch import launch, many_rows, pieces
from dsv4core.kernels.triton._tuning import native_e4m3
from dsv4core.kernels.triton.numerics import encode_e4m3, exponent_e4m3, power_of_two, widen

GROUP = 128


@triton.jit(do_not_specialize=["groups"])
def quantise_activation_kernel(
    x, codes, scales, groups, per_row, stride, ROWS: tl.constexpr, HARDWARE: tl.constexpr
):
    """One program quantises ROWS groups of 128 channels."""
    g = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, 128)[None, :]
    live = g < groups
    place = x + ((g // per_row) * stride + g % per_row * 128)[:, None] + d
    values = widen(tl.load(place, live[:, None], other=0.0))
    amax = tl.maximum(tl.max(tl.abs(values), 1), 1e-4)
    exponent = exponent_e4m3(amax)
    code = encode_e4m3(values * power_of_two(-exponent)[:, None], HARDWARE)
    tl.store(codes + (g * 128)[:, None] + d, code, live[:, None])
    tl.store(scales + g, power_of_two(exponent), live)


def quantise_activation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales 2^ceil(log2(amax / 448)), amax floored at 1e-4; the bytes of `linear.activation`.

    Shapes: bf16 [T, in] of whole groups of 128 -> float8_e4m3fn [T, in], f32 [T, in/128].
    """
    tokens, inputs = x.shape
    codes = x.new_empty(tokens, inputs, dtype=torch.uint8)
    scales = x.new_empty(tokens, inputs // GROUP, dtype=torch.float32)
    rows = block_size(16, many_rows(GROUP))
    launch(
        quantise_activation_kernel, pieces(scales.numel(), rows), x, x, codes, scales, scales.numel(),
        inputs // GROUP, x.stride(0), ROWS=rows, HARDWARE=native_e4m3(x), num_warps=4,
    )  # fmt: skip
    return codes.view(torch.float8_e4m3fn), scales
