"""Inputs of the ops that write and read caches, and of the roundings around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsv4core_conformance.inputs import pages as memory
from dsv4core_conformance.inputs.numbers import Kind, Numbers, cos_sin, integers, tensor
from dsv4core_conformance.inputs.pages import Place, Slots
from dsv4core_conformance.reference import rows as reference

Arguments = dict[str, Any]
EPS = 1e-6


def activation(layout: str) -> str:
    """What activations are beside a layout: "f32" beside the unrounded ones, else "bf16"."""
    return "f32" if layout in reference.PLAIN else "bf16"


def _positions(source: Numbers, positions: Sequence[int] | int | None, tokens: int) -> np.ndarray:
    """Given positions, or hashed ones below a limit (300)."""
    if positions is None or isinstance(positions, int):
        return source.integers(tokens, 0, positions or 300)
    return np.asarray(positions, dtype=np.int64)


def _table(table: str, positions: np.ndarray) -> Tensor:
    return cos_sin(table, int(positions.max(initial=0)) + 1)


def fused_q_kv_rmsnorm(
    *, tokens: int = 5, q_width: int = 96, kv_width: int = 512, act: str = "bf16", weights: str = "bf16",
    values: Kind | np.ndarray = "normal", seed: int = 1,
) -> Arguments:  # fmt: skip
    """Two projections of numbers of a kind, or one array for both halves side by side."""
    source = Numbers(seed)
    both = (
        values if isinstance(values, np.ndarray) else source.of(values, tokens, q_width + kv_width)
    )  # one draw, so that corners fall into both
    return {
        "qr": tensor(both[:, :q_width], act),
        "kv": tensor(both[:, q_width:], act),
        "q_weight": tensor(source.normal(q_width), weights),
        "kv_weight": tensor(source.normal(kv_width), weights),
        "eps": EPS,
    }


def fused_qnorm_rope_kv_insert(
    *, tokens: int = 9, heads: int = 2, padded_heads: int | None = None, layout: str = "fp8_ds_mla",
    rows: int = 64, pages: int | None = None, place: Place | None = None, act: str | None = None,
    slots: Slots = "permuted", values: Kind | np.ndarray = "normal", q_values: Kind | np.ndarray = "normal",
    positions: Sequence[int] | int | None = None, table: str = "main", seed: int = 1,
) -> Arguments:  # fmt: skip
    """Queries and key rows of tokens at positions, and pages of poison to write the rows into."""
    source, act, pages = Numbers(seed), act or activation(layout), pages or tokens // rows + 2
    at = _positions(source, positions, tokens)
    return {
        "q": tensor(
            q_values if isinstance(q_values, np.ndarray) else source.of(q_values, tokens, heads, 512), act
        ),
        "kv": tensor(values if isinstance(values, np.ndarray) else source.of(values, tokens, 512), act),
        "positions": integers(at),
        "cos_sin": _table(table, at),
        "k_cache": memory.pages(layout, pages, rows, place),
        "slot_mapping": memory.slots(source, tokens, pages * rows, slots),
        "rows": rows,
        "layout": layout,
        "eps": EPS,
        "padded_heads": padded_heads or heads,
    }


def quantize_and_insert_k_cache(
    *, tokens: int = 9, layout: str = "fp8_ds_mla", rows: int = 64,
    pages: int | None = None, place: Place | None = None, act: str | None = None, slots: Slots = "permuted",
    values: Kind | np.ndarray = "normal", seed: int = 1,
) -> Arguments:  # fmt: skip
    """Key rows and pages of poison to write them into."""
    source, pages = Numbers(seed), pages or tokens // rows + 2
    return {
        "k": tensor(
            values if isinstance(values, np.ndarray) else source.of(values, tokens, 512),
            act or activation(layout),
        ),
        "k_cache": memory.pages(layout, pages, rows, place),
        "slot_mapping": memory.slots(source, tokens, pages * rows, slots),
        "rows": rows,
        "layout": layout,
    }


def dequantize_and_gather_k_cache(
    *, lengths: Sequence[int] = (7, 130, 0), gather: Sequence[int] | None = None, layout: str = "fp8_ds_mla",
    rows: int = 64, pages: int | None = None, place: Place | None = None, act: str | None = None,
    offset: int = 3, spare: int = 2, values: Kind = "spread", seed: int = 1,
) -> Arguments:  # fmt: skip
    """Requests whose rows lie in hashed pages, and a workspace of NaN; rows no request owns stay poison."""
    source = Numbers(seed)
    count = pages or sum(-(-n // rows) for n in lengths) + 2
    table = memory.block_table(source, lengths, rows, count)
    k_cache = memory.pages(layout, count, rows, place)
    for b, length in enumerate(lengths):
        at = reference.table_slots(table.numpy(), np.int64(b), np.arange(length), rows)
        memory.put(
            k_cache, layout, rows, at, source.of(values, length, 512) if length else np.zeros((0, 512))
        )
    deepest = max(gather if gather is not None else lengths, default=0)
    dtype = torch.float32 if (act or activation(layout)) == "f32" else torch.bfloat16
    return {
        "out": torch.full((len(lengths), offset + deepest + spare, 512), torch.nan, dtype=dtype),
        "k_cache": k_cache,
        "seq_lens": integers(lengths, torch.int32),
        "gather_lens": None if gather is None else integers(gather, torch.int32),
        "block_table": table,
        "rows": rows,
        "offset": offset,
        "layout": layout,
    }


def save_partial_states(
    *, tokens: int = 9, width: int = 1024, ratio: int = 4, rows: int = 4,
    pages: int | None = None, place: Place | None = None, slots: Slots = "permuted", values: Kind = "normal",
    positions: Sequence[int] | int | None = None, seed: int = 1,
) -> Arguments:  # fmt: skip
    """The two halves of a compressor's projection, which are column slices of one tensor."""
    source, pages = Numbers(seed), pages or tokens // rows + 2
    both = tensor(source.of(values, tokens, 2 * width))
    return {
        "kv": both[:, :width],
        "score": both[:, width:],
        "ape": tensor(source.normal(ratio, width)),
        "positions": integers(_positions(source, positions, tokens)),
        "state_cache": memory.states(pages, rows, width, place),
        "slot_mapping": memory.slots(source, tokens, pages * rows, slots),
        "ratio": ratio,
    }


def compressed_slot_mapping(
    *, lengths: Sequence[int] = (21, 9, 300), starts: Sequence[int] | None = None, ratio: int = 4,
    rows: int = 64, short: int = 0, holes: bool = False, unmapped: bool = False, seed: int = 1,
) -> Arguments:  # fmt: skip
    """Tokens `start` .. `length - 1` of every request; the last `short` tokens have no slot."""
    source = Numbers(seed)
    position, request = _tokens(lengths, starts)
    table = memory.block_table(
        source, [n // ratio for n in lengths], rows, sum(n // ratio // rows + 1 for n in lengths)
    )
    if unmapped:
        table[-1] = -1
    own = source.permutation(len(position) + 7)[: len(position)]
    if holes:
        own[ratio - 1 :: 2 * ratio] = -1
        own[1::5] = -9
    return {
        "positions": integers(position),
        "slot_mapping": integers(own[: len(own) - short]),
        "token_to_req": integers(request, torch.int32),
        "block_table": table,
        "ratio": ratio,
        "rows": rows,
    }


def compress_norm_rope_store(
    *, lengths: Sequence[int] = (13, 8), starts: Sequence[int] | None = None, ratio: int = 4,
    head_dim: int = 512, layout: str | None = None, rows: int | None = None,
    pages: int | None = None, place: Place | None = None, state_rows: int | None = None,
    state_place: Place | None = None, state_fill: float | None = None,
    holes: bool = False, short: int = 0, values: Kind = "normal", weights: str = "bf16", seed: int = 1,
    score_scale: float = 1.0, outlier: float = 0.0,
) -> Arguments:  # fmt: skip
    """Requests whose tokens `start` .. `length - 1` are in this step, with states of all earlier tokens.

    `holes` takes away the state slot or the entry's slot of two windows in three. `outlier` scales two
    channels.
    """
    source = Numbers(seed)
    layout = layout or ("fp8_ds_mla" if head_dim == 512 else "index_fp8")
    rows, state_rows = rows or (64 if ratio == 4 else 2), state_rows or (4 if ratio == 4 else 8)
    width = head_dim * (2 if ratio == 4 else 1)
    position, request = _tokens(lengths, starts)
    state_pages = sum(-(-n // state_rows) for n in lengths) + 2
    table = memory.block_table(source, lengths, state_rows, state_pages)
    state = memory.states(state_pages, state_rows, width, state_place, state_fill)
    for b, length in enumerate(lengths):
        at = reference.table_slots(table.numpy(), np.int64(b), np.arange(length), state_rows)
        values_of = source.of(values, length, 2 * width) if length else np.zeros((0, 2 * width), np.float32)
        values_of[:, width:] *= np.float32(score_scale)
        if outlier:
            values_of[:, 5:width:head_dim] *= np.float32(outlier)
            values_of[:, 77:width:head_dim] *= np.float32(outlier)
        state[at // state_rows, at % state_rows] = torch.from_numpy(values_of)
    own = reference.table_slots(table.numpy(), request, position, state_rows)
    entries = sum(n // ratio for n in lengths)
    count = pages or entries // rows + 2
    closing = position % ratio == ratio - 1
    target = np.full(len(position), -1)
    target[closing] = source.permutation(count * rows)[: int(closing.sum())]
    if holes:
        own[np.flatnonzero(closing)[::3]] = -3
        target[np.flatnonzero(closing)[1::3]] = -5
    return {
        "state_cache": state,
        "positions": integers(position),
        "token_to_req": integers(request, torch.int32),
        "slot_mapping": integers(own[: len(own) - short]),
        "block_table": table,
        "cos_sin": _table("compress", position),
        "norm_weight": tensor(source.normal(head_dim), weights),
        "k_cache": memory.pages(layout, count, rows, place),
        "kv_slot_mapping": integers(target),
        "ratio": ratio,
        "head_dim": head_dim,
        "rows": rows,
        "layout": layout,
        "eps": EPS,
        "rotate": "hadamard" if layout in reference.ROTATED else "none",
    }


def inverse_rope(
    *, tokens: int = 7, heads: int = 2, act: str = "bf16", values: Kind | np.ndarray = "normal",
    positions: Sequence[int] | int | None = None, table: str = "compress", seed: int = 1,
) -> Arguments:  # fmt: skip
    """Attention outputs of tokens at positions."""
    source = Numbers(seed)
    at = _positions(source, positions, tokens)
    return {
        "o": tensor(values if isinstance(values, np.ndarray) else source.of(values, tokens, heads, 512), act),
        "positions": integers(at),
        "cos_sin": _table(table, at),
    }


def fused_inv_rope_fp8_quant(
    *, tokens: int = 7, heads: int = 4, groups: int = 2, scale_format: str = "f32", act: str = "bf16",
    values: Kind | np.ndarray = "normal", positions: Sequence[int] | int | None = None,
    table: str = "compress", seed: int = 1,
) -> Arguments:  # fmt: skip
    """The same, and how many groups of heads share a projection."""
    made = inverse_rope(
        tokens=tokens, heads=heads, act=act, values=values, positions=positions, table=table, seed=seed
    )
    return {**made, "groups": groups, "scale_format": scale_format}


def _tokens(lengths: Sequence[int], starts: Sequence[int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Positions and requests of the tokens of a step. Shapes: -> i64 [T], i64 [T]"""
    first = starts or [0] * len(lengths)
    parts = [np.arange(start, length) for start, length in zip(first, lengths, strict=True)]
    request = [np.full(len(part), b) for b, part in enumerate(parts)]
    return np.concatenate(parts or [np.zeros(0, np.int64)]), np.concatenate(
        request or [np.zeros(0, np.int64)]
    )


MAKERS: dict[str, Callable[..., Arguments]] = {
    maker.__name__: maker
    for maker in (
        fused_q_kv_rmsnorm,
        fused_qnorm_rope_kv_insert,
        quantize_and_insert_k_cache,
        dequantize_and_gather_k_cache,
        save_partial_states,
        compressed_slot_mapping,
        compress_norm_rope_store,
        inverse_rope,
        fused_inv_rope_fp8_quant,
    )
}
