"""Projection with bf16 or quantised weights."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.linear.formats import FORMATS
from dsv4core.ops._contract import ACTIVATION, BF16, E4M3, E8M0, F32, U8, spec
from dsv4core.ops._matmul import MATMUL, row_invariant_linear
from dsv4core.ops._op import op

NAME = "linear"


def _fake(
    x: Tensor,
    weight: Tensor,
    scales: Tensor | None,
    global_scale: Tensor | None,
    *,
    format: str,
    out_dtype: torch.dtype,
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], dtype=out_dtype)


@op(
    fake=_fake,
    tolerance=MATMUL,
    tensors={
        "x": spec("T I", *ACTIVATION),
        "weight": spec("O J", BF16, F32, E4M3, U8, finite=False),
        "scales": spec("SO SI", F32, U8, E4M3, E8M0, optional=True),
        "global_scale": spec("1", F32, optional=True),
    },
)
def linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor | None,
    global_scale: Tensor | None,
    *,
    format: str,
    out_dtype: torch.dtype,
) -> Tensor:
    """x @ weight^T; a row's result does not depend on the other rows.

    Shapes: x bf16 [T, in], weight [out, in] -> [T, out]. Formats: "bf16" (weight bf16 or f32); "fp8_block"
    (e4m3 with one f32 or UE8M0 scale per 128 x 128 block); "nvfp4" (u8 [out, in/2], e4m3 scales [out, in/16],
    global_scale f32 [1]); "mxfp4" (u8 [out, in/2], UE8M0 scales [out, in/32]). out_dtype f32 multiplies in
    f32 with widened operands (the compressor's projection), and so do f32 block scales; bf16 accumulates
    in f32 and rounds once.
    """
    _check(weight, scales, global_scale, format)
    inputs = weight.shape[1] * FORMATS[format].pack
    if inputs != x.shape[1]:
        raise OpArgumentError(
            NAME, "weight", f"{x.shape[1]} inputs, like x", f"shape {list(weight.shape)} as {format}"
        )
    if out_dtype not in (torch.float32, x.dtype):
        raise OpArgumentError(NAME, "out_dtype", f"torch.float32 or {x.dtype}, like x", str(out_dtype))
    # f32 block scales do not fit bf16: rounding the matrix would move outputs and with them cache codes.
    exact = weight.dtype == E4M3 and scales is not None and scales.dtype == F32
    work = F32 if exact else out_dtype
    dense = _dense(weight, scales, global_scale, format, work)
    return row_invariant_linear(x.to(work), dense).to(out_dtype)


def _check(weight: Tensor, scales: Tensor | None, global_scale: Tensor | None, format: str) -> None:
    stored = FORMATS.get(format)
    if stored is None:
        raise OpArgumentError(NAME, "format", " or ".join(FORMATS), repr(format))
    if weight.dtype not in stored.codes:
        expected = f"{' or '.join(map(str, stored.codes))} for {format}"
        raise OpArgumentError(NAME, "weight", expected, str(weight.dtype))
    for name, given, needed in (
        ("scales", scales, stored.block is not None),
        ("global_scale", global_scale, stored.factor),
    ):
        if (given is not None) != needed:
            expected = f"{'a tensor' if needed else 'None'} with format {format}"
            raise OpArgumentError(NAME, name, expected, "None" if given is None else "a tensor")
    if scales is None or stored.block is None:
        return
    rows, inputs = weight.shape[0], weight.shape[1] * stored.pack
    if not stored.ragged and inputs % stored.block[1]:
        expected = f"whole groups of {stored.block[1]} inputs for {format}"
        raise OpArgumentError(NAME, "weight", expected, f"{inputs} inputs")
    shape = stored.scale_shape(rows, inputs)
    if tuple(scales.shape) != shape:
        raise OpArgumentError(NAME, "scales", f"shape {list(shape)} for {format}", f"{list(scales.shape)}")
    if scales.dtype not in stored.scales:
        expected = f"{' or '.join(map(str, stored.scales))} for {format}"
        raise OpArgumentError(NAME, "scales", expected, str(scales.dtype))


def _dense(
    weight: Tensor, scales: Tensor | None, global_scale: Tensor | None, format: str, dtype: torch.dtype
) -> Tensor:
    """The matrix in the type of the product, after `_check`."""
    if scales is None:
        return weight.to(dtype)
    return FORMATS[format].dequantise(weight, scales, global_scale, dtype)
