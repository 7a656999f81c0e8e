"""CHUNK: every partition of a sequence leaves the same bytes and the same outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dsv4core.numerics.tables import cos_sin
from dsv4core_conformance.case import case
from dsv4core_conformance.compare import same_storage, same_values
from dsv4core_conformance.contracts import CONTRACTS
from dsv4core_conformance.families._layers import (
    KINDS,
    LAYER_LAYOUTS,
    World,
    cut,
    right_outputs,
    right_records,
    same_rows,
)
from dsv4core_conformance.hosts import cloned, storage_bytes
from dsv4core_conformance.inputs import make
from dsv4core_conformance.reference.counter import hashed_values, hashed_words
from dsv4core_conformance.subject import LAYER_OPS, Subject

RANDOM = [int(word % 40) + 1 for word in hashed_words(40, 5)]
ONES = [*[1] * 10, 112, *[1] * 16, 110, *[1] * 14]
SIZES: tuple[dict[str, Any], ...] = (
    {"name": "ones", "sizes": ONES, "length": {"swa": 262, "csa": 262, "hca": 262}},
    {"name": "threes", "sizes": [3], "length": {"swa": 150, "csa": 150, "hca": 264}},
    {"name": "fours", "sizes": [4], "length": {"swa": 150, "csa": 150, "hca": 264}},
    {"name": "fives", "sizes": [5], "length": {"swa": 150, "csa": 150, "hca": 264}},
    {"name": "by_127", "sizes": [127], "length": dict.fromkeys(KINDS, 300)},
    {"name": "by_128", "sizes": [128], "length": dict.fromkeys(KINDS, 300)},
    {"name": "by_129", "sizes": [129], "length": dict.fromkeys(KINDS, 300)},
    {"name": "by_256", "sizes": [256], "length": dict.fromkeys(KINDS, 300)},
    {"name": "random", "sizes": RANDOM, "length": dict.fromkeys(KINDS, 300)},
)


@case(
    "layer/{kind}/chunk/{sizes}",
    kind=KINDS,
    sizes=SIZES,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("E1", "E2", "E3", "E8", "E10", "E15", "D6", "J10"),
)
def any_partition(s: Subject, kind: str, sizes: Sequence[int], length: dict[str, int]) -> None:
    """A prompt in pieces of any size, on used pages, gives the bytes and outputs of the model."""
    w = World(s, kind)
    out = w.feed("a", cut(length[kind], sizes))
    right_records(w, "a")
    right_outputs(w, out, 0)


@case(
    "layer/{kind}/chunk/short_prompts",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("E1", "E10", "E11"),
)
def short_prompts(s: Subject, kind: str) -> None:
    """Prompts of 1 to 9 tokens, shorter than any window, and the tokens that complete it."""
    w = World(s, kind, requests=9)
    for length in range(1, 10):
        request = f"p{length}"
        out = w.feed(request, [length, 1, 3])
        right_records(w, request)
        right_outputs(w, out, 0, request)


@case(
    "layer/{kind}/chunk/same_bits",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    needs=("batch_invariant_linear",),
    catches=("E8", "E15", "D6"),
)
def same_bits(s: Subject, kind: str) -> None:
    """Where projections do not depend on the batch, prefill in pieces has the bits of prefill at once."""
    pieces, once = World(s, kind), World(s, kind)
    same_rows("pieces against one prefill", pieces.feed("a", [130, 3, 2, 77, 88]), once.feed("a", [300]))


@case(
    "layer/{kind}/chunk/long",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    level="extended",
    catches=("E7", "E8", "J10"),
    limit=180,
)
def long_prompt(s: Subject, kind: str) -> None:
    """1,100 tokens in uneven pieces: beyond window, page and top-k limits of every group."""
    w = World(s, kind, tokens=2048)
    out = w.feed("a", cut(1100, [129, 1, 256, 3, 127]))
    right_records(w, "a")
    right_outputs(w, out, 0)


ROWS = {
    "quantize_and_insert_k_cache": ("k", "slot_mapping"),
    "fused_qnorm_rope_kv_insert": ("q", "kv", "positions", "slot_mapping"),
    "save_partial_states": ("kv", "score", "positions", "slot_mapping"),
    "compress_norm_rope_store": ("positions", "token_to_req", "slot_mapping", "kv_slot_mapping"),
}


@case("op/{op}/chunk/{tokens}", op=ROWS, tokens=(9, 40, 300), catches=("E1", "E8", "E10", "E15", "J10"))
def op_in_pieces(s: Subject, op: str, tokens: int) -> None:
    """A writer called on 1, 3, 4, 5 and more tokens at a time leaves the bytes of one call."""
    whole = _arguments(op, tokens)
    once = cloned(whole)
    s.check(op, once)
    for sizes in ([1, 3, 4, 5], [7], [127, 1], [128, 2]):
        parts, start = cloned(whole), 0
        for size in cut(tokens, sizes):
            here = slice(start, start + size)
            s.call(op, {name: value[here] if name in ROWS[op] else value for name, value in parts.items()})
            start += size
        for name in CONTRACTS[op].writes:
            same_storage(f"{op} in pieces of {sizes}: {name}", parts[name], storage_bytes(once[name]).numpy())


@case("op/sparse_indexer/chunk/{layout}", layout=("index_fp8", "index_mxfp4"), catches=("L3",))
def queries_in_pieces(s: Subject, layout: str) -> None:
    """Queries scored a few at a time over 24,000 entries choose what they choose together."""
    op, lens = "sparse_indexer", [24_000, 23_999, 20_001, 511, 24_000, 9]
    whole = make(op, layout=layout, lens=lens, requests=1, physical=40, k=64)
    together = s.check(op, cloned(whole)).results[0]
    assert together is not None
    for size in (1, 4):
        parts: list[torch.Tensor] = []
        for start in range(0, len(lens), size):
            here = slice(start, start + size)
            own = ("q", "q_scales", "weights", "context_lens", "token_to_req")
            piece = {n: v[here] if n in own and v is not None else v for n, v in whole.items()}
            found = s.call(op, piece)[0]
            assert found is not None
            parts.append(found)
        same_values(f"{op}, {size} queries at a time", torch.cat(parts), together.numpy())


def _arguments(op: str, tokens: int) -> dict[str, Any]:
    """One request from position 0, its rows on pages in no order; 300 tokens have ratio 128."""
    ratio = 128 if tokens >= 128 else 4
    width = 512 if ratio == 128 else 1024
    state_rows, rows = (8, 2) if ratio == 128 else (4, 64)
    positions = torch.arange(tokens)
    values = lambda *shape: torch.from_numpy(hashed_values(shape, sum(shape)))  # noqa: E731
    if op in ("quantize_and_insert_k_cache", "fused_qnorm_rope_kv_insert"):
        pages = -(-tokens // 64) + 1
        kv = values(tokens, 512).bfloat16()
        common: dict[str, Any] = {
            "k_cache": torch.full((pages, 37440), 0xA5, dtype=torch.uint8),
            "slot_mapping": (positions * 37 + 11) % (pages * 64) if pages % 37 else positions,
            "rows": 64,
            "layout": "fp8_ds_mla",
        }
        if op == "quantize_and_insert_k_cache":
            return {"k": kv, **common}
        return {
            "q": values(tokens, 4, 512).bfloat16(), "kv": kv, "positions": positions,
            "cos_sin": cos_sin(160000.0, None, tokens), **common, "eps": 1e-6, "padded_heads": 4,
        }  # fmt: skip
    pages = -(-tokens // state_rows)
    table = torch.arange(pages, dtype=torch.int32).flip(0)[None] + 1
    slots = table[0, positions // state_rows].long() * state_rows + positions % state_rows
    state = torch.full((pages + 1, state_rows, 2 * width), torch.nan)
    if op == "save_partial_states":
        return {
            "kv": values(tokens, width), "score": values(tokens, width + 1)[:, 1:],
            "ape": values(ratio, width), "positions": positions, "state_cache": state, "slot_mapping": slots,
            "ratio": ratio,
        }  # fmt: skip
    state[slots // state_rows, slots % state_rows] = values(tokens, 2 * width)
    entries = tokens // ratio
    kv_slots = torch.where((positions + 1) % ratio == 0, entries - 1 - positions // ratio, -1)
    return {
        "state_cache": state, "positions": positions, "token_to_req": torch.zeros(tokens, dtype=torch.int32),
        "slot_mapping": slots, "block_table": table, "cos_sin": cos_sin(160000.0, None, tokens),
        "norm_weight": values(512).abs() + 0.5,
        "k_cache": torch.full((entries // rows + 2, -(-rows * 584 // 576) * 576), 0xA5, dtype=torch.uint8),
        "kv_slot_mapping": kv_slots, "ratio": ratio, "head_dim": 512, "rows": rows, "layout": "fp8_ds_mla",
        "eps": 1e-6, "rotate": "none",
    }  # fmt: skip
