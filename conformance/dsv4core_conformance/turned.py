"""How near a turned attention output must be: as near as attention, codes by half a step beside that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dsv4core_conformance.compare import Mismatch, require, worst_head
from dsv4core_conformance.hosts import dtype_name, to_numpy
from dsv4core_conformance.reference.quant import F64, FLOOR_OUTPUT, I64, exponent_e4m3
from dsv4core_conformance.reference.rows import E4M3

BLOCK = 128
NAN_CODES = (0x7F, 0xFF)


def same_turned(
    op: str, arguments: Mapping[str, Any], results: list[Tensor | None], exact: F64, size: F64, bound: float
) -> float:
    """Hold output and scales against the exact output; the worst error in units of the attention bound.

    Turning keeps lengths, so the bound of attention holds behind it. A code adds half of its own step to
    every channel. The scale of a block is that of an amax which the bound allows: next to a power of two
    that may be either of two. Shapes: exact f64 [T, H, 512], size f64 [T, H]
    """
    require(len(results) == 2, f"{op}: 2 results expected, {len(results)} returned")
    o, scales = results
    quantised = arguments["scale_format"] != "none"
    wanted = "float8_e4m3fn" if quantised else dtype_name(arguments["q"])
    require(o is not None and dtype_name(o) == wanted, f"{op}: result 0: expected {wanted}, got {_name(o)}")
    got = to_numpy(o)
    if quantised:
        value, step = _dequantised(op, arguments, got, scales, exact, bound * size)
    else:
        require(scales is None, f"{op}: result 1: expected nothing, got {_name(scales)}")
        require(got.shape == exact.shape, f"{op}: result 0: expected shape {exact.shape}, got {got.shape}")
        value, step = got.astype(np.float64), np.zeros(1)
    require(not np.isnan(value).any(), f"{op}: NaN in a result")
    empty = size == 0
    require((value[empty] == 0).all(), f"{op}: a row without weight must be exactly 0")
    over = np.linalg.norm(np.maximum(np.abs(value - exact) - step, 0.0), axis=-1)[~empty]
    token, head = np.nonzero(~empty)
    return worst_head(op, over, bound * size[~empty], token, head) * bound


def _name(value: Tensor | None) -> str:
    return "nothing" if value is None else f"{dtype_name(value)} {list(value.shape)}"


def _dequantised(
    op: str, a: Mapping[str, Any], codes: NDArray[np.uint8], scales: Tensor | None, exact: F64, off: F64
) -> tuple[F64, F64]:
    """Values behind codes and half a step of each, after a look at form and scales.

    Shapes: codes u8 [T, G, n], exact f64 [T, H, 512], off f64 [T, H] -> f64 [T, H, 512] twice
    """
    tokens, heads, _ = exact.shape
    per_group, groups = heads // a["groups"], a["groups"]
    packed = a["scale_format"] == "ue8m0x4"
    forms = (
        ("0", codes.shape, (tokens, groups, per_group * 512)),
        (
            "1",
            None if scales is None else tuple(scales.shape),
            (tokens, groups, per_group * (1 if packed else 4)),
        ),
    )
    for i, mine, shape in forms:
        require(mine == shape, f"{op}: result {i}: expected shape {shape}, got {mine}")
    word = "int32" if packed else "f32"
    require(
        scales is not None and dtype_name(scales) == word,
        f"{op}: result 1: expected {word}, got {_name(scales)}",
    )
    require(not np.isin(codes, NAN_CODES).any(), f"{op}: NaN in a result")
    exponent = _exponents(op, to_numpy(scales), packed).reshape(tokens, heads, 512 // BLOCK)
    amax = np.abs(exact).reshape(*exponent.shape, BLOCK).max(axis=-1, initial=0.0)
    slack = off[..., None]
    low = exponent_e4m3(np.maximum(amax - slack, 0.0), FLOOR_OUTPUT)
    high = exponent_e4m3(amax + slack, FLOOR_OUTPUT)
    wrong = np.argwhere((exponent < low) | (exponent > high))
    if len(wrong):
        t, h, b = (int(i) for i in wrong[0])
        raise Mismatch(
            f"{op}: scale of token {t}, head {h}, block {b}: expected 2^{low[t, h, b]}"
            + (f" or up to 2^{high[t, h, b]}" if high[t, h, b] > low[t, h, b] else "")
            + f", got 2^{exponent[t, h, b]}; {len(wrong)} of {exponent.size} blocks are outside"
        )
    grid = E4M3[codes].reshape(*exponent.shape, BLOCK)
    half = np.maximum(np.frexp(grid)[1] - 1, -6) - 4
    scaled = [np.ldexp(x, exponent[..., None]).reshape(exact.shape) for x in (grid, np.ldexp(1.0, half))]
    return scaled[0], scaled[1]


def _exponents(op: str, scales: NDArray[Any], packed: bool) -> I64:
    """Exponents of scales: four bytes a word, the first block lowest, or f32 that are powers of two."""
    if packed:
        return np.ascontiguousarray(scales).view("<u4").view(np.uint8).astype(np.int64) - 127
    fraction, exponent = np.frexp(scales.astype(np.float64))
    require((fraction == 0.5).all(), f"{op}: result 1: scales must be powers of two")
    return exponent.astype(np.int64) - 1
