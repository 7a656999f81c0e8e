"""Every code and every magnitude of a format: what a detour over half precision or a flush would lose."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsv4core_conformance.case import case
from dsv4core_conformance.compare import require, within
from dsv4core_conformance.contracts import MATMUL_BOUND
from dsv4core_conformance.families._calls import ATTENTION, INDEX_LAYOUTS, INDEXER
from dsv4core_conformance.hosts import dtype_name, to_numpy
from dsv4core_conformance.inputs import make
from dsv4core_conformance.inputs.numbers import Numbers, tensor
from dsv4core_conformance.inputs.pages import pages, put
from dsv4core_conformance.reference import rows as reference
from dsv4core_conformance.reference.ops.grouped_output_projection import expected as grouped
from dsv4core_conformance.reference.ops.linear import matrix
from dsv4core_conformance.subject import Subject

LINEAR, GROUPED = "linear", "grouped_output_projection"
DECODE, PREFILL = ATTENTION
POWERS = (-60, -20, 20, 60)
SPREAD = np.array([-40, -24, -15, 0, 9, 17, 40])
"""Exponents of scales that lie in no common range of half precision."""


def _every(codes: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """Codes over and over, beginning elsewhere in every row. Shapes: [n] -> u8 [rows, columns]"""
    return codes[(np.arange(columns) + 37 * np.arange(rows)[:, None]) % len(codes)]


def _scale_bytes(*shape: int) -> Tensor:
    """UE8M0 bytes of all exponents of `SPREAD`. Shapes: -> u8 [shape]"""
    return torch.from_numpy(np.resize(127 + SPREAD, shape).astype(np.uint8))


def _weights(format: str, outputs: int, inputs: int) -> dict[str, Any]:
    """A weight that holds every code of its format under every size of scale."""
    finite = np.setdiff1d(np.arange(256), (0x7F, 0xFF)).astype(np.uint8)
    if format.startswith("fp8_block"):
        codes = torch.from_numpy(_every(finite, outputs, inputs)).view(torch.float8_e4m3fn)
        scales = _scale_bytes(-(-outputs // 128), -(-inputs // 128))
        if format == "fp8_block_f32":
            scales = torch.from_numpy(
                np.ldexp(1.37, scales.numpy().astype(np.int64) - 127).astype(np.float32)
            )
        return {"weight": codes, "scales": scales, "format": "fp8_block"}
    codes = torch.from_numpy(_every(np.arange(256).astype(np.uint8), outputs, inputs // 2))
    if format == "mxfp4":
        return {"weight": codes, "scales": _scale_bytes(outputs, inputs // 32), "format": format}
    scales = torch.from_numpy(_every(np.arange(0x7F).astype(np.uint8), outputs, inputs // 16))
    overall = torch.tensor([2.0**-6])
    return {
        "weight": codes,
        "scales": scales.view(torch.float8_e4m3fn),
        "global_scale": overall,
        "format": format,
    }


@case("op/linear/enc/{format}_every_code", ops=(LINEAR,), catches=("B4", "B8", "M1"),
      format=("fp8_block", "fp8_block_f32", "nvfp4", "mxfp4"))  # fmt: skip
def weight_codes(s: Subject, format: str) -> None:
    """Unit vectors bring out a weight's elements: each code under each scale is what it stands for."""
    inputs, outputs = 256, 900
    a = {**make(LINEAR, tokens=1), **_weights(format, outputs, inputs)}
    a.update(x=tensor(np.eye(inputs), "bf16"), out_dtype=torch.float32)
    exact = matrix({n: to_numpy(v) for n, v in a.items()}, {n: dtype_name(v) for n, v in a.items()}).T
    got = to_numpy(s.call(LINEAR, a)[0]).astype(np.float64)
    require(got.shape == exact.shape, f"{LINEAR}: shape {got.shape}, expected {exact.shape}")
    within(f"{LINEAR}: {format}", np.abs(got - exact), MATMUL_BOUND * np.abs(exact), ("input", "output"))


@case("op/grouped_output_projection/enc/{o}_every_code", ops=(GROUPED,), catches=("B4", "B8"),
      o=("e4m3_f32", "e4m3_ue8m0x4"))  # fmt: skip
def grouped_codes(s: Subject, o: str) -> None:
    """The same for outputs and weights of a group: codes against unit vectors, with scales on both sides."""
    heads, groups, lora = 2, 2, 130
    a = make(GROUPED, tokens=512, heads=heads, groups=groups, lora=lora, o=o, weight="u8")
    a["wo_a"] = _weights("fp8_block", groups * lora, 512)["weight"]
    a["wo_a_scales"] = _scale_bytes(*a["wo_a_scales"].shape)
    unit = torch.from_numpy(np.eye(512, dtype=np.uint8) * np.uint8(0x38)).view(torch.uint8)
    a["o"] = unit[:, None].expand(512, groups, 512).contiguous().view(torch.float8_e4m3fn)
    plain = {n: to_numpy(v) for n, v in a.items()}
    exact = grouped(plain, {n: dtype_name(v) for n, v in a.items()})[0]
    got = to_numpy(s.call(GROUPED, a)[0]).astype(np.float64)
    require(got.shape == exact.shape, f"{GROUPED}: shape {got.shape}, expected {exact.shape}")
    names = ("input", "group", "output")
    within(f"{GROUPED}: {o}", np.abs(got - exact), MATMUL_BOUND * np.abs(exact), names)


@case("op/{op}/enc/magnitudes", op=(LINEAR, GROUPED), catches=("B3", "B9", "M1"))
def products(s: Subject, op: str) -> None:
    """Inputs and weights from 2^-60 to 2^60, and rows of all sizes in one call: each row within the bound."""
    x, w = ("x", "weight") if op == LINEAR else ("o", "wo_a")
    for power in POWERS:
        for name in (x, w):
            a = make(op)
            a[name] = a[name] * 2.0**power
            s.check(op, a)
    a = make(op, tokens=len(SPREAD))
    whole = s.check(op, a).results[0]
    factor = torch.from_numpy(2.0**SPREAD).float()
    mixed = make(op, tokens=len(SPREAD))
    mixed[x] = (mixed[x].float() * factor.view(-1, *[1] * (mixed[x].ndim - 1))).to(mixed[x].dtype)
    found = s.call(op, mixed)[0]
    assert whole is not None and found is not None
    rows = (found.double() / factor.double().view(-1, *[1] * (found.ndim - 1))).flatten(1)
    off = ((rows - whole.double().flatten(1)).norm(dim=1) / whole.double().flatten(1).norm(dim=1)).numpy()
    within(
        f"{op}: rows of sizes {SPREAD.tolist()} in one call",
        off,
        np.full(len(off), 2 * MATMUL_BOUND),
        ("row",),
    )


@case("op/linear/enc/f32_results", ops=(LINEAR,), catches=("B3", "E2"))
def unrounded_projection(s: Subject) -> None:
    """A result asked for in float32, as the compressor asks, carries no rounding to bf16."""
    for inputs in (64, 1024):
        a = make(LINEAR, tokens=9, inputs=inputs, out="f32")
        error = s.check(LINEAR, a).error
        require(error < 1e-4, f"{LINEAR}: error {error:.1e} in float32; rounding to bf16 costs about 1.7e-3")


def _attention(op: str, layout: str, values: NDArray[np.floating], **options: Any) -> dict[str, Any]:
    """A call whose 128 rows, or more, are these, in order. Shapes: values [n, 512]"""
    if op == PREFILL:
        a = make(op, keys=len(values), **options)
        return {**a, "kv": tensor(values, "bf16")}
    a = make(op, layout=layout, extra=None, pages=len(values) // 64, **options)
    a["swa_cache"] = pages(layout, len(values) // 64, 64)
    put(a["swa_cache"], layout, 64, np.arange(len(values)), values)
    return a


@case(
    "op/{op}/enc/magnitudes/{layout}",
    op=(DECODE,),
    layout=("fp8_ds_mla", "bf16_row"),
    catches=("B3", "B9", "M1"),
)
@case("op/{op}/enc/magnitudes", op=(PREFILL,), catches=("B3", "B9", "M1"))
def attended(s: Subject, op: str, layout: str = "bf16_row") -> None:
    """Rows from 2^-60 to 2^60, with queries as small as they are large: no detour over half precision."""
    values = Numbers(95).normal(128, 512)
    for power in POWERS:
        a = _attention(op, layout, np.ldexp(values, power), window=100)
        a["q"] = a["q"] * 2.0**-power
        s.check(op, a)


RANGES = {
    "rising": np.linspace(-30, 30, 256),
    "falling": np.linspace(30, -30, 256),
    "low": np.linspace(-30.5, -30, 256),
    "high": np.linspace(30, 30.5, 256),
    "last": np.append(np.full(255, -30.0), 30.0),
    "first_block_low": np.append(np.full(64, -30.0), np.linspace(20, 21, 192)),
}
"""Sizes of keys along the query: scores are 22.6 times as large."""


@case("op/{op}/enc/scores_{order}", op=ATTENTION, order=RANGES, catches=("D5", "C10", "I8"))
def score_ranges(s: Subject, op: str, order: str) -> None:
    """Scores from -680 to 680 in any order: the maximum is the row's own, wherever it stands."""
    along = np.where(Numbers(96).normal(512) > 0, 1.0, -1.0)
    a = _attention(
        op,
        "bf16_row",
        RANGES[order][:, None] * along,
        tokens=2,
        heads=3,
        window=256,
        lens="full",
        sink="none",
    )
    name = "swa_slots" if op == DECODE else "indices"
    a[name] = torch.arange(256, dtype=torch.int32).repeat(2, 1)
    heads = np.array([1.0, -1.0, 0.5])[:, None] * along
    a["q"] = tensor(np.broadcast_to(heads, (2, 3, 512)), "bf16")
    s.check(op, a)


@case("op/{op}/enc/magnitudes/{layout}", op=INDEXER, layout=INDEX_LAYOUTS, catches=("B3", "G2", "L1"))
def scored(s: Subject, op: str, layout: str) -> None:
    """Index keys from 2^-40 to 2^40: scores keep their size, whatever the scales of keys are."""
    for power in (-40, -18, 18, 40):
        a = make(op, layout=layout, requests=1, lens=[128, 127, 65])
        count = int(a["block_table"].max()) + 1
        a["k_cache"] = pages(layout, count, 64)
        keys = np.ldexp(Numbers(97).normal(64 * count, 128), power)
        put(a["k_cache"], layout, 64, np.arange(64 * count), keys)
        s.check(op, a)


@case("layout/{layout}/enc/pad_byte_is_not_read", level="layout", layout=("fp8_ds_mla", "fp8_ds_mla_fnuz"),
      ops=(DECODE, "dequantize_and_gather_k_cache"), catches=("A6", "D2"))  # fmt: skip
def pad_byte(s: Subject, layout: str) -> None:
    """Whatever the eighth scale byte of a row holds, it scales nothing: other writers leave it as it was."""
    for op, name in ((DECODE, "swa_cache"), ("dequantize_and_gather_k_cache", "k_cache")):
        a = make(op, layout=layout)
        rows = 64
        assert reference.RECORDS[layout].tail == 8
        a[name][:, 576 * rows + 7 : 584 * rows : 8] = 0x5A
        s.check(op, a)
