"""Cases of the family ENC: scales, codes and roundings at and around every place where they step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dsv4core_conformance.case import case
from dsv4core_conformance.compare import require
from dsv4core_conformance.families._calls import need_layouts
from dsv4core_conformance.hosts import to_numpy
from dsv4core_conformance.inputs import make
from dsv4core_conformance.inputs.numbers import Numbers, integers, tensor
from dsv4core_conformance.inputs.pages import pages, put
from dsv4core_conformance.inputs.random import QUERIES
from dsv4core_conformance.reference import rows as reference
from dsv4core_conformance.reference.ca1 import bf16
from dsv4core_conformance.subject import Subject

F32 = NDArray[np.float32]
WRITE, INSERT, GATHER = (
    "quantize_and_insert_k_cache",
    "fused_qnorm_rope_kv_insert",
    "dequantize_and_gather_k_cache",
)
COMPRESS, QUERY, OUTPUT = "compress_norm_rope_store", "fused_indexer_q_rope_quant", "fused_inv_rope_fp8_quant"
SCALED = {"fp8_ds_mla": 448.0, "fp8_ds_mla_fnuz": 224.0}
INDEX = {
    "index_fp8": 448.0, "index_fp8_ue8m0x4": 448.0, "index_fp8_hadamard_f32": 448.0, "index_mxfp4": 6.0,
    "index_mxfp4_hadamard": 6.0,
}  # fmt: skip
WHERE = ({"name": "at", "steps": 0}, {"name": "above", "steps": 1}, {"name": "below", "steps": -1})
FLOORS = np.array(
    [0.0, 1e-40, 1e-10, 9.9e-5, 1e-4, 1.001e-4, 2e-4, 0.0273, 0.02734375, 0.0275], dtype=np.float32
)
MAGNITUDES = reference.E4M3[:127]
MIDDLES = (MAGNITUDES[:-1] + MAGNITUDES[1:]) / 2


def _stepped(values: NDArray[np.floating], steps: int, dtype: str = "bf16") -> F32:
    """Positive numbers moved by a number of steps of a format. Shapes: [n] -> f32 [n]"""
    bits = values.astype(np.float32).view(np.int32)
    return (bits + np.int32(steps * (1 << 16 if dtype == "bf16" else 1))).view(np.float32)


def _all_bf16() -> F32:
    """Every finite bf16 number of both signs. Shapes: -> f32 [65280]"""
    words = np.arange(0x10000, dtype=np.uint32)
    return (words[(words & 0x7FFF) < 0x7F80] << np.uint32(16)).view(np.float32)


def _blocks(peaks: F32, size: int, seed: int) -> F32:
    """Blocks whose largest magnitude is given, everything else between a 2^-9th of it and all of it.

    Shapes: [n] -> f32 [n, size]
    """
    source = Numbers(seed)
    share = np.ldexp(np.clip(np.abs(source.normal(len(peaks), size)), 0.5, 0.99), -(np.arange(size) % 10))
    out = (share * np.where(source.normal(len(peaks), size) > 0, 1, -1) * peaks[:, None]).astype(np.float32)
    out[np.arange(len(peaks)), source.integers(len(peaks), 0, size)] = peaks
    return bf16(out)


def _rows(blocks: F32, width: int) -> F32:
    """Blocks in rows, the last one filled up with the first blocks. Shapes: -> f32 [rows, width]"""
    count = -(-blocks.size // width)
    return np.resize(blocks.reshape(-1), (count, width))


def _steps(largest: float, steps: int, low: int = -30, high: int = 118) -> F32:
    """The largest number of a code at every scale, moved by steps of bf16. Shapes: -> f32 [high - low]"""
    return _stepped(np.ldexp(largest, np.arange(low, high)), steps)


def _write(s: Subject, layout: str, blocks: F32) -> None:
    """Blocks of 64 through the writer of rotated rows, and all of the storage compared."""
    nope = _rows(blocks, 448)
    values = np.concatenate((nope, Numbers(3).spread(len(nope), 64)), axis=1)
    s.check(WRITE, make(WRITE, layout=layout, tokens=len(values), values=values))


@case(
    "layout/{layout}/enc/amax_{where}_a_step",
    level="layout", layout=tuple(SCALED), where=WHERE, ops=[WRITE], catches=("B1", "B3", "B10"),
)  # fmt: skip
def amax_steps(s: Subject, layout: str, steps: int) -> None:
    """The exponent steps exactly where the largest magnitude passes 448 * 2^k (224 * 2^k), for every k."""
    _write(s, layout, _blocks(_steps(SCALED[layout], steps), 64, 21))


@case(
    "layout/{layout}/enc/floor_and_subnormals",
    level="layout", layout=tuple(SCALED), ops=[WRITE], catches=("B3", "B8"),
)  # fmt: skip
def floors(s: Subject, layout: str) -> None:
    """The floor 1e-4 acts on the magnitude, not on the scale; zero and subnormal blocks have a scale."""
    _write(s, layout, _blocks(bf16(FLOORS), 64, 22))


@case("layout/{layout}/enc/every_bf16", layout=reference.MAIN, ops=[WRITE], catches=("B4", "B7", "B8", "M1"))
def every_bf16(s: Subject, layout: str) -> None:
    """All finite bf16 numbers, in blocks of neighbours, in both halves of a row."""
    values = _all_bf16()
    for shift in (0, 448):
        rows = np.resize(np.roll(values, shift), (-(-len(values) // 512), 512))
        s.check(WRITE, make(WRITE, layout=layout, tokens=len(rows), values=rows))


@case(
    "layout/{layout}/enc/amax_{where}_a_step",
    level="layout", layout=tuple(INDEX), where=WHERE, ops=[COMPRESS], catches=("B1", "B3", "B10"),
)  # fmt: skip
def index_amax(s: Subject, layout: str, steps: int) -> None:
    """The same for entries: a state of ones and eps = 0 make the entry equal to the norm's weight."""
    for low in range(-28, 100, 16):
        s.check(COMPRESS, _entry(layout, _blocks(_steps(INDEX[layout], steps, low, low + 4), 32, low + 30)))


@case(
    "layout/{layout}/enc/floor_and_subnormals",
    level="layout",
    layout=tuple(INDEX),
    ops=[COMPRESS],
    catches=("B3",),
)
def index_floors(s: Subject, layout: str) -> None:
    """Floors of entries: 1e-4 on the magnitude for e4m3, 6 * 2^-126 for e2m1."""
    for floor in bf16(np.append(FLOORS, np.float32([6 * 2.0**-126, 2.0**-125, 2.0**-130]))):
        s.check(COMPRESS, _entry(layout, _blocks(np.full(4, floor, np.float32), 32, 5)))


def _entry(layout: str, blocks: F32) -> dict[str, Any]:
    """A call that stores one entry of 128 given values, at position 0. Shapes: blocks [4, 32]"""
    a = make(COMPRESS, layout=layout, head_dim=128, lengths=(4,))
    a["state_cache"][..., :256], a["state_cache"][..., 256:] = 1.0, 0.0
    return {**a, "norm_weight": tensor(blocks.reshape(128)), "eps": 0.0}


@case(
    "op/{op}/enc/{format}_amax_{where}_a_step",
    op=(QUERY,), format=("fp8", "mxfp4"), where=WHERE, catches=("B1", "B3", "B10"),
)  # fmt: skip
def query_amax(s: Subject, op: str, format: str, steps: int) -> None:
    """Indexer queries: scale per row (e4m3) or per 32 (e2m1), folded into the weights or kept."""
    size, largest = (128, 448.0) if format == "fp8" else (32, 6.0)
    rows = _rows(_blocks(np.append(_steps(largest, steps), bf16(FLOORS)), size, 23), 128)
    s.check(op, _queries(rows, format))


@case(
    "op/{op}/enc/{format}_every_bf16", op=(QUERY,), format=("fp8", "mxfp4", "fp8_f32"), catches=("B4", "B8")
)
def query_every_bf16(s: Subject, op: str, format: str) -> None:
    """Queries through all finite bf16 numbers."""
    values = _all_bf16()
    s.check(op, _queries(np.resize(values, (-(-len(values) // 128), 128)), format))


@case(
    "op/{op}/enc/{format}_scales_of_weights", op=(QUERY,), format=tuple(QUERIES), catches=("C11", "B3"),
)  # fmt: skip
def query_scales(s: Subject, op: str, format: str) -> None:
    """Both scales come from the call, and are multiplied in one after the other."""
    need_layouts(s, QUERIES[format])
    for weights in ("bf16", "f32"):
        for softmax_scale, head_scale in ((0.37, 1.9), (1.0, 0.3), (0.1, None)):
            options = {"format": format, "weights": weights, "softmax_scale": softmax_scale}
            s.check(op, make(op, **options, head_scale=head_scale))


def _queries(rows: F32, format: str) -> dict[str, Any]:
    """Queries at position 0, one token with a head per row. Shapes: [n, 128]"""
    a = make(QUERY, tokens=1, heads=len(rows), format=format)
    table = tensor(np.concatenate((np.ones((1, 32)), np.zeros((1, 32))), axis=1))
    return {**a, "q": tensor(rows[None], "bf16"), "positions": integers([0]), "cos_sin": table}


def _outputs(values: F32, around: float) -> dict[str, Any]:
    """An output whose rotated channels become given float32 numbers; `around` is the rest of their block.

    Shapes: values [T, 32]
    """
    o = np.zeros((len(values), 2, 512), dtype=np.float32)
    o[..., 384:448] = around
    o[:, 1, 448::2] = 1.0
    table = np.concatenate((values, np.zeros_like(values)), axis=1)
    a = make(OUTPUT, tokens=len(values), heads=2, groups=2)
    return {
        **a,
        "o": tensor(o, "bf16"),
        "positions": integers(np.arange(len(values))),
        "cos_sin": tensor(table),
    }


@case("op/{op}/enc/float32_amax_{where}_a_step", op=(OUTPUT,), where=WHERE, catches=("B3", "B10"))
def output_amax(s: Subject, op: str, steps: int) -> None:
    """Unrounded float32 magnitudes one float32 step around 448 * 2^k: a logarithm misses the step."""
    peaks = _stepped(np.ldexp(448.0, np.arange(-60, 100)), steps, "f32")
    for scale_format in ("f32", "ue8m0x4"):
        a = _outputs(np.repeat(peaks[:, None], 32, axis=1), 0.0)
        s.check(op, {**a, "scale_format": scale_format})


@case("op/{op}/enc/floor_1e_10", op=(OUTPUT,), catches=("B3",))
def output_floor(s: Subject, op: str) -> None:
    """The output's floor is 1e-10 on the magnitude, one float32 step around it and below."""
    peaks = np.concatenate([_stepped(np.float32([1e-10]), k, "f32") for k in (-1, 0, 1)] + [FLOORS[:3]])
    s.check(op, _outputs(np.repeat(peaks[:, None], 32, axis=1), 0.0))


@case("op/{op}/enc/float32_middles", op=(OUTPUT,), catches=("B4", "B7"))
def output_middles(s: Subject, op: str) -> None:
    """Every middle between e4m3 codes, one float32 step below, at and above: one rounding, ties to even."""
    near = np.concatenate([_stepped(MIDDLES[1:], k, "f32") for k in (-1, 0, 1)])
    values = np.resize(np.concatenate((near, -near)), (24, 32))
    s.check(op, _outputs(values, 448.0))


@case(
    "layout/{layout}/enc/float32_middles",
    layout=("fp8_row",),
    level="layout",
    ops=[INSERT],
    catches=("B4", "B7"),
)
def row_middles(s: Subject, layout: str) -> None:
    """Rows without scales are encoded from float32 in one rounding."""
    near = np.concatenate([_stepped(MIDDLES[1:], k, "f32") for k in (-1, 0, 1)])
    table = np.resize(np.concatenate((near, -near)), (24, 32))
    kv = np.concatenate((Numbers(4).normal(24, 448), np.tile(np.float32([1, 0]), (24, 32))), axis=1)
    a = make(INSERT, layout=layout, tokens=24, values=kv, positions=range(24))
    s.check(INSERT, {**a, "cos_sin": tensor(np.concatenate((table, np.zeros_like(table)), axis=1))})


@case(
    "layout/{layout}/enc/round_trip_bound",
    layout=tuple(SCALED),
    ops=[WRITE, GATHER],
    catches=("B1", "B3", "B4"),
)
def round_trip(s: Subject, layout: str) -> None:
    """A value comes back within half a step of its code: 1/16 of itself or 2^-10 of its block's scale."""
    values = bf16(Numbers(6).spread(64, 512, low=-20, high=20))
    a = make(WRITE, layout=layout, tokens=64, values=values, slots="sequential", pages=1)
    s.call(WRITE, a)
    b = make(GATHER, layout=layout, lengths=(64,), offset=0, spare=0, pages=1)
    b.update(k_cache=a["k_cache"], block_table=integers([[0]], torch.int32))
    s.call(GATHER, b)
    got = to_numpy(b["out"])[0]
    nope, back = values[:, :448].reshape(64, 7, 64), got[:, :448].reshape(64, 7, 64)
    peak = np.maximum(np.abs(nope).max(axis=2, keepdims=True), 1e-4).astype(np.float64)
    scale = 2.0 ** np.ceil(np.log2(peak / SCALED[layout]) - 1e-9)
    bound = np.maximum(np.abs(nope) / 16, scale * (2.0**-10 if layout == "fp8_ds_mla" else 2.0**-11))
    worst = float((np.abs(back - nope) / bound).max())
    require(worst <= 1, f"{layout}: a value is {worst:.2f} half steps off after writing and reading")
    require(
        (got[:, 448:] == values[:, 448:]).all(), f"{layout}: rotated channels must come back as they were"
    )


@case(
    "op/{op}/enc/{pair}",
    op=("sparse_decode",), layouts=tuple(SCALED), catches=("B1", "B2"),
    pair=(
        {"name": "fnuz_window_ocp_entries", "first": "fp8_ds_mla_fnuz", "second": "fp8_ds_mla"},
        {"name": "ocp_window_fnuz_entries", "first": "fp8_ds_mla", "second": "fp8_ds_mla_fnuz"},
        {"name": "fnuz_both", "first": "fp8_ds_mla_fnuz", "second": "fp8_ds_mla_fnuz"},
    ),
)  # fmt: skip
def mixed_encodings(s: Subject, op: str, first: str, second: str) -> None:
    """Window and entries of one call in different encodings: each is read as its own id says."""
    s.check(op, make(op, layout=first, extra_layout=second))


@case(
    "op/{op}/enc/budget_against_bf16_rows",
    op=("sparse_decode",),
    layouts=("fp8_ds_mla", "bf16_row"),
    catches=("B9",),
)
def error_budget(s: Subject, op: str) -> None:
    """The same rows in fp8 and in bf16 give outputs within 4 % of each other."""
    found: list[NDArray[np.float32]] = []
    values = Numbers(8).normal(128, 512)
    for layout in ("fp8_ds_mla", "bf16_row"):
        a = make(
            op, layout=layout, extra=None, tokens=4, pages=2, window=128, lens="full", sink="none", spread=0.5
        )
        cache = pages(layout, 2, 64)
        put(cache, layout, 64, np.arange(128), values)
        a["swa_cache"] = cache
        s.check(op, a)
        found.append(to_numpy(a["out"]))
    gap = float(np.linalg.norm(found[0] - found[1]) / np.linalg.norm(found[1]))
    require(gap <= 0.04, f"{op}: fp8 rows move the output by {gap:.3f} of its size, more than 0.04")
