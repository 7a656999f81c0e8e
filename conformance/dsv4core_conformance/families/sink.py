"""Cases of the family SINK: every head's sink is in the softmax, and nowhere else."""

from __future__ import annotations

import numpy as np
import torch

from dsv4core_conformance.case import case
from dsv4core_conformance.compare import require, same_attention
from dsv4core_conformance.contracts import ATTENTION_BOUND
from dsv4core_conformance.families._calls import (
    ATTENTION,
    ROUNDED,
    TURNED,
    produced,
    refused,
    same_bytes,
    value_checks,
)
from dsv4core_conformance.hosts import cloned, to_numpy
from dsv4core_conformance.inputs import make
from dsv4core_conformance.inputs.draws import sinks
from dsv4core_conformance.subject import Subject

VALUES = ("none", "zero", "five", "distinct", "plus_inf")
HEADS = 16


@case("op/{op}/sink/{value}", op=ATTENTION, value=VALUES, catches=("C1", "C2", "C4"))
def sink_value(s: Subject, op: str, value: str) -> None:
    """Attention with a sink per head is what the definition says, with few keys and with many."""
    for seed, width in enumerate((1, 5, 70)):
        s.check(op, make(op, heads=HEADS, window=width, sink=value, seed=seed))


@case("op/{op}/sink/extremes", op=ATTENTION, catches=("C4",))
def sink_extremes(s: Subject, op: str) -> None:
    """Sinks of either infinity, either zero and huge size, each in its own head."""
    extremes = [-np.inf, np.inf, 1e30, -1e30, 0.0, -0.0, 60.0, -60.0, 3.4e38, -3.4e38]
    arguments = make(op, heads=len(extremes), sink=extremes)
    s.check(op, arguments)
    out = arguments["out"]
    for head in (1, 2, 8):
        require(
            not out[:, head].any(), f"{op}: head {head} has a sink of {extremes[head]}: its output must be 0"
        )


@case("op/{op}/sink/closed_form/{value}", op=ATTENTION, value=VALUES[1:], catches=("C4", "C1"))
def sink_closed_form(s: Subject, op: str, value: str) -> None:
    """A sink scales the output by 1 / (1 + exp(sink - lse)) and leaves lse as it is, bit for bit."""
    plain = make(op, heads=HEADS, window=5, spread=0.5, sink="none")
    lse = s.check(op, plain).results[0]
    with_sink = make(op, heads=HEADS, window=5, spread=0.5, sink=value)
    again = s.check(op, with_sink).results
    same_bytes(f"{op}: lse must not hold the sink", again, [lse])
    o, e = to_numpy(plain["out"]).astype(np.float64), to_numpy(lse).astype(np.float64)
    with np.errstate(over="ignore"):
        share = 1 / (1 + np.exp(to_numpy(with_sink["attn_sink"]).astype(np.float64) - e))
    expected = o * share[..., None]
    # Both outputs carry an error of the bound, which is taken from the size of the terms.
    size = 4 * np.linalg.norm(expected, axis=-1)
    same_attention(to_numpy(with_sink["out"]), e, (expected, e, size), ATTENTION_BOUND)
    moved = np.linalg.norm(to_numpy(with_sink["out"]) - o, axis=-1) / np.linalg.norm(o, axis=-1)
    felt = 1 - share > 0.02
    require(felt.any(), "no sink of this case is felt")
    require((moved > 0.5 * (1 - share))[felt].all(), f"{op}: a sink of {value} does not change the output")


@case("op/{op}/sink/half", op=ATTENTION, catches=("C4",))
def sink_half(s: Subject, op: str) -> None:
    """A sink equal to the log-sum-exp of the keys takes half of the output."""
    plain = make(op, tokens=1, heads=HEADS, sink="none")
    lse = s.check(op, plain).results[0]
    assert lse is not None
    half = make(op, tokens=1, heads=HEADS, sink=[float(v) for v in lse[0]])
    s.check(op, half)
    whole, got = to_numpy(plain["out"])[0].astype(np.float64), to_numpy(half["out"])[0].astype(np.float64)
    off = np.linalg.norm(got - whole / 2, axis=-1) / np.linalg.norm(whole / 2, axis=-1)
    require(
        (off < 2 * ATTENTION_BOUND * 4).all(), f"{op}: half of the output expected, off by {off.max():.3e}"
    )


@case("op/{op}/sink/unscaled/{scale}", op=ATTENTION, scale=(0.01, 0.2), catches=("C4", "C11"))
def sink_is_not_scaled(s: Subject, op: str, scale: float) -> None:
    """The softmax scale applies to scores, not to the sink."""
    s.check(op, make(op, heads=HEADS, scale=scale, spread=0.5, sink="distinct"))


@case("op/{op}/sink/shards/{tp}", op=ATTENTION, tp=(2, 4, 8), catches=("C1", "C3", "C8"))
def sink_shards(s: Subject, op: str, tp: int) -> None:
    """Every shard of the heads equals its slice of the unsharded call; its sinks are a view into all."""
    whole = make(op, heads=HEADS, sink="distinct")
    lse = s.check(op, whole).results[0]
    assert lse is not None
    for rank in range(tp):
        part = slice(rank * HEADS // tp, (rank + 1) * HEADS // tp)
        shard = make(op, heads=HEADS, sink="distinct")
        shard["q"], shard["attn_sink"] = shard["q"][:, part], shard["attn_sink"][part]
        shard["out"] = shard["out"][:, part]
        results = s.check(op, shard).results
        mine, slice_of_whole = to_numpy(shard["out"]), to_numpy(whole["out"][:, part])
        off = np.linalg.norm(mine - slice_of_whole, axis=-1) / np.linalg.norm(slice_of_whole, axis=-1)
        require(
            off.max() < 4 * ATTENTION_BOUND,
            f"{op}: rank {rank} of {tp} is {off.max():.3e} away from its slice",
        )
        assert results[0] is not None
        require(
            torch.allclose(results[0], lse[:, part], rtol=2e-6, atol=2e-5),
            f"{op}: rank {rank} of {tp}: lse is not that of its heads",
        )


@case(
    "op/sparse_decode/sink/one_cache/{which}",
    which=("window", "extra", "single"),
    ops=("sparse_decode",),
    catches=("C4",),
)
def sink_once(s: Subject, which: str) -> None:
    """The sink counts once, also where only one of two lists holds keys."""
    empty = {"window": {"extra_lens": 0}, "extra": {"lens": 0}, "single": {"extra": None}}[which]
    for value in VALUES:
        s.check("sparse_decode", make("sparse_decode", heads=HEADS, sink=value, **empty))


@case("op/{op}/sink/dtype/{dtype}", op=ATTENTION, dtype=("bfloat16", "float16", "float64"), catches=("C2",))
def sink_dtype(s: Subject, op: str, dtype: str) -> None:
    """Sinks are float32; any other type is refused before anything is written."""
    arguments = make(op, heads=HEADS)
    arguments["attn_sink"] = arguments["attn_sink"].to(getattr(torch, dtype))
    refused(s, op, arguments, f"sinks of {dtype}", "attn_sink")


@case("op/{op}/sink/count", op=ATTENTION, catches=("C1", "C3"))
def sink_count(s: Subject, op: str) -> None:
    """One sink per head: more, as from a global parameter, or fewer are refused."""
    for heads in (1, HEADS - 1, HEADS + 1, 8 * HEADS):
        arguments = make(op, heads=HEADS)
        arguments["attn_sink"] = sinks("distinct", heads)
        refused(s, op, arguments, f"{heads} sinks for {HEADS} heads", "attn_sink", "q", "out")


@case("op/{op}/sink/nan", op=ATTENTION)
def sink_nan(s: Subject, op: str) -> None:
    """A sink that is no number is refused in checked mode."""
    arguments = make(op, heads=4, sink=[0.0, 1.0, float("nan"), 2.0])
    with value_checks(True):
        refused(s, op, arguments, "a sink of NaN", "attn_sink")


@case("op/{op}/sink/many_heads", op=ATTENTION, catches=("C1", "C2", "C10"))
def sink_many_heads(s: Subject, op: str) -> None:
    """128 heads with a sink of their own each; swapping two sinks changes those two heads only."""
    arguments = make(op, tokens=2, heads=128, sink="distinct")
    swapped = cloned(arguments)
    s.check(op, arguments)
    order = torch.arange(128)
    order[5], order[121] = 121, 5
    swapped["attn_sink"] = swapped["attn_sink"][order]
    produced(s, op, swapped)
    differs = (swapped["out"] != arguments["out"]).any(-1).any(0).nonzero().flatten().tolist()
    require(differs == [5, 121], f"{op}: swapping the sinks of heads 5 and 121 changed heads {differs[:16]}")


@case(
    "op/{op}/sink/{value}_{format}",
    op=(TURNED,), value=VALUES, format=ROUNDED, catches=("C1", "C2", "C4"),
)  # fmt: skip
def turned_sink(s: Subject, op: str, value: str, format: str) -> None:
    """The sink is in what is turned back and rounded, with few keys and with many."""
    for seed, width in enumerate((1, 5, 70)):
        options = {"heads": HEADS, "window": width, "sink": value, "seed": seed}
        s.check(op, make(op, **options, scale=0.01, spread=0.5, scale_format=format))
        s.check(op, make(op, **options, scale_format=format))


@case("op/{op}/sink/extremes_{format}", op=(TURNED,), format=ROUNDED, catches=("C4",))
def turned_sink_extremes(s: Subject, op: str, format: str) -> None:
    """Sinks of either infinity and huge size, each in its own head: +inf gives 0 and the smallest scale."""
    extremes = [-np.inf, np.inf, 1e30, -1e30, 0.0, -0.0, 60.0, -60.0, 3.4e38, -3.4e38]
    o = s.check(op, make(op, heads=len(extremes), sink=extremes, scale_format=format)).results[0]
    assert o is not None
    found = to_numpy(o).reshape(len(o), len(extremes), 512)
    for head in (1, 2, 8):
        zero = (found[:, head] == 0) | (found[:, head] == (0 if format == "none" else 0x80))
        require(zero.all(), f"{op}: head {head} has a sink of {extremes[head]}: its output must be 0")
