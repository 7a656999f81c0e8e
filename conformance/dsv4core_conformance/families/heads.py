"""Cases of the family HEADS: any number of heads, padded lanes that stay out of it, groups, shards."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsv4core_conformance.case import case
from dsv4core_conformance.compare import require
from dsv4core_conformance.families._calls import (
    ATTENTION,
    INDEXER,
    ROUNDED,
    TURNED,
    need_layouts,
    produced,
    refused,
    same_bytes,
    value_checks,
)
from dsv4core_conformance.hosts import cloned, to_numpy
from dsv4core_conformance.inputs import make
from dsv4core_conformance.inputs.random import QUERIES
from dsv4core_conformance.subject import Subject

COUNTS = (1, 2, 4, 8, 11, 16, 32, 64, 128)
PADDED = (
    {"name": "1_in_8", "heads": 1, "lanes": 8},
    {"name": "4_in_16", "heads": 4, "lanes": 16},
    {"name": "8_in_64", "heads": 8, "lanes": 64},
    {"name": "11_in_16", "heads": 11, "lanes": 16},
    {"name": "16_in_64", "heads": 16, "lanes": 64},
    {"name": "64_in_128", "heads": 64, "lanes": 128},
)


@case("op/{op}/heads/{heads}", op=ATTENTION, heads=COUNTS, catches=("C5", "C6", "C7", "C10"))
def head_counts(s: Subject, op: str, heads: int) -> None:
    """Every head is right on its own, whatever their number; an error is reported per head."""
    s.check(op, make(op, tokens=2, heads=heads))
    s.check(op, make(op, tokens=3, heads=heads, window=128, holes=0.3))


@case("op/{op}/heads/{heads}", op=INDEXER, heads=(1, 2, 4, 8, 11, 32, 64, 128), catches=("A3", "L1"))
def index_heads(s: Subject, op: str, heads: int) -> None:
    """Index scores with any number of index heads."""
    s.check(op, make(op, heads=heads, tokens=2, context=90))


@case(
    "op/fused_indexer_q_rope_quant/heads/{heads}/{format}",
    ops=("fused_indexer_q_rope_quant",),
    heads=(1, 2, 4, 8, 11, 32, 64, 128),
    format=("fp8", "mxfp4"),
)
def index_query_heads(s: Subject, heads: int, format: str) -> None:
    """Queries of any number of index heads, every one with its own scale."""
    need_layouts(s, QUERIES[format])
    s.check("fused_indexer_q_rope_quant", make("fused_indexer_q_rope_quant", heads=heads, format=format))


@case("op/{op}/heads/padded/{padded}", op=ATTENTION, padded=PADDED, catches=("C5", "C10"))
def padded_heads(s: Subject, op: str, heads: int, lanes: int) -> None:
    """Padded heads (zero queries, sink -inf) are inert: no bit of the others depends on what is in them."""
    alone = make(op, heads=heads)
    s.check(op, alone)
    padded = _padded(alone, lanes, 0.0)
    lse = s.check(op, padded).results[0]
    assert lse is not None
    off = _distance(padded["out"][:, :heads], alone["out"])
    require(
        off <= 2**-7, f"{op}: {heads} heads padded to {lanes} are {off:.3e} away from those without padding"
    )
    for fill in (float("nan"), float("inf"), -3e38, 7.0):
        other = _padded(alone, lanes, fill)
        with value_checks(False):
            results = produced(s, op, other)
        same_bytes(
            f"{op}: {heads} heads beside {lanes - heads} lanes of {fill}",
            [_live(r, heads) for r in results],
            [_live(lse, heads), _live(padded["out"], heads)],
        )


@case(
    "op/fused_qnorm_rope_kv_insert/heads/padded/{padded}",
    ops=("fused_qnorm_rope_kv_insert",),
    padded=PADDED,
    catches=("C5", "C10"),
)
def padded_query_heads(s: Subject, heads: int, lanes: int) -> None:
    """Every head is normalised and rotated on its own; the lanes behind the last one are zeros."""
    s.check("fused_qnorm_rope_kv_insert", make("fused_qnorm_rope_kv_insert", heads=heads, padded_heads=lanes))


@case("op/{op}/heads/order", op=ATTENTION, catches=("C10", "C1"))
def heads_in_another_order(s: Subject, op: str) -> None:
    """A head's result does not depend on its place: reversed heads give the reversed output, bit for bit."""
    arguments = make(op, heads=64)
    back = cloned(arguments)
    lse = s.check(op, arguments).results[0]
    assert lse is not None
    order = torch.arange(63, -1, -1)
    back["q"], back["attn_sink"] = back["q"][:, order], back["attn_sink"][order]
    got = produced(s, op, back)
    same_bytes(
        f"{op}: 64 heads reversed", [r[:, order] for r in got if r is not None], [lse, arguments["out"]]
    )


@case("op/{op}/heads/one_hot/{heads}", op=ATTENTION, heads=(16, 64), catches=("C10",))
def one_head_at_a_time(s: Subject, op: str, heads: int) -> None:
    """A head with queries of its own size among tiny ones: no skip or merge is decided for a whole tile."""
    arguments = make(op, tokens=4, heads=heads)
    for t in range(4):
        arguments["q"][t, (t * 16 + 1) % heads] *= 16
        arguments["q"][t, t * 16 % heads] = 0
    s.check(op, arguments)


@case(
    "op/grouped_output_projection/heads/shards/{tp}_{weight}",
    ops=("grouped_output_projection",),
    tp=(1, 2, 4, 8),
    weight=("bf16", "e8m0"),
    catches=("C8",),
)
def grouped_shards(s: Subject, tp: int, weight: str) -> None:
    """The output projection of a shard of heads is its groups' slice of the unsharded one."""
    op, heads, groups, lora = "grouped_output_projection", 16, 8, 128
    whole = make(op, heads=heads, groups=groups, lora=lora, weight=weight)
    z = s.check(op, whole).results[0]
    assert z is not None
    for rank in range(tp):
        shard = make(op, heads=heads, groups=groups, lora=lora, weight=weight)
        shard["o"] = shard["o"][:, rank * heads // tp : (rank + 1) * heads // tp]
        rows = slice(rank * groups * lora // tp, (rank + 1) * groups * lora // tp)
        shard["wo_a"] = shard["wo_a"][rows]
        if shard["wo_a_scales"] is not None:
            blocks = slice(rank * groups // tp, (rank + 1) * groups // tp)
            shard["wo_a_scales"] = shard["wo_a_scales"].view(torch.uint8)[blocks].view(torch.float8_e8m0fnu)
        shard["groups"] = groups // tp
        mine = s.check(op, shard).results[0]
        off = _distance(mine, z[:, rank * groups // tp : (rank + 1) * groups // tp])
        require(off <= 4e-3, f"{op}: rank {rank} of {tp} is {off:.3e} away from its groups")


@case(
    "op/grouped_output_projection/heads/groups/{groups}",
    ops=("grouped_output_projection",),
    groups=(1, 2, 4, 8, 16),
    catches=("C8",),
)
def one_group_at_a_time(s: Subject, groups: int) -> None:
    """A group reads its own heads and rows of the weight: with one live group the others are exactly 0."""
    op = "grouped_output_projection"
    s.check(op, make(op, heads=16, groups=groups))
    for live in range(groups):
        arguments = make(op, tokens=2, heads=16, groups=groups)
        part = slice(live * 16 // groups, (live + 1) * 16 // groups)
        only = torch.zeros_like(arguments["o"])
        only[:, part] = arguments["o"][:, part]
        arguments["o"] = only
        z = s.check(op, arguments).results[0]
        assert z is not None
        leaked = [g for g in range(groups) if g != live and bool(z[:, g].any())]
        require(not leaked, f"{op}: heads of group {live} reach groups {leaked}")


@case("op/{op}/heads/weight_views", op=("linear", "grouped_output_projection"), catches=("C9",))
def weight_views(s: Subject, op: str) -> None:
    """A weight cut out of a wider one is read with its strides; a transposed one is refused."""
    name = "weight" if op == "linear" else "wo_a"
    arguments = make(op)
    wide = torch.full((arguments[name].shape[0], arguments[name].shape[1] + 24), 5.0, dtype=torch.bfloat16)
    wide[:, 8:-16] = arguments[name]
    s.check(op, {**arguments, name: wide[:, 8:-16]})
    transposed = arguments[name].t().contiguous().t()
    refused(s, op, {**arguments, name: transposed}, "a transposed weight", name)


@case("op/{op}/heads/none", op=(*ATTENTION, *INDEXER, "fused_indexer_q_rope_quant"), catches=("C6",))
def no_heads(s: Subject, op: str) -> None:
    """No head at all has no meaning and is refused."""
    arguments = make(op)
    for name in ("q", "weights", "out"):
        if name in arguments:
            arguments[name] = arguments[name][:, :0]
    if op in ATTENTION:
        arguments["attn_sink"] = arguments["attn_sink"][:0]
    refused(s, op, arguments, "0 heads")


def _padded(arguments: dict[str, Any], lanes: int, fill: float) -> dict[str, Any]:
    """The call with more heads: `fill` in their queries, -inf as their sinks. Shapes: q [T, H, 512]"""
    q = torch.full((arguments["q"].shape[0], lanes, 512), fill, dtype=arguments["q"].dtype)
    heads = arguments["q"].shape[1]
    q[:, :heads] = arguments["q"]
    sink = torch.full((lanes,), -torch.inf)
    sink[:heads] = arguments["attn_sink"]
    return {**cloned(arguments), "q": q, "attn_sink": sink, "out": torch.full_like(q, 9.0)}


def _live(result: Tensor | None, heads: int) -> Tensor | None:
    return None if result is None else result[:, :heads]


def _distance(got: Tensor | None, expected: Tensor) -> float:
    """Largest difference over the largest value. Shapes: alike"""
    mine, other = to_numpy(got).astype(np.float64), to_numpy(expected).astype(np.float64)
    return float(np.abs(mine - other).max() / np.abs(other).max())


@case(
    "op/{op}/heads/{heads}_{format}",
    op=(TURNED,), heads=COUNTS, format=ROUNDED, catches=("C5", "C6", "C7", "C8"),
)  # fmt: skip
def turned_heads(s: Subject, op: str, heads: int, format: str) -> None:
    """Any number of heads in one group, and every head a group of its own: neighbours share a group."""
    for groups in (1, heads):
        s.check(op, make(op, tokens=2, heads=heads, groups=groups, holes=0.3, scale_format=format))


@case("op/{op}/heads/shards/{tp}", op=(TURNED,), tp=(2, 4, 8), catches=("C1", "C3", "C8"))
def turned_shards(s: Subject, op: str, tp: int) -> None:
    """A rank's share of heads and groups has the codes' places and the scales' of its slice of the whole."""
    heads, groups = 16, 8
    for rank in range(tp):
        part = slice(rank * heads // tp, (rank + 1) * heads // tp)
        for format in ROUNDED:
            shard = make(op, heads=heads, groups=groups // tp, scale_format=format)
            shard["q"], shard["attn_sink"] = shard["q"][:, part], shard["attn_sink"][part]
            s.check(op, shard)
