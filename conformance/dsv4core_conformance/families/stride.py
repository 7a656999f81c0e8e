"""Cases of the family STRIDE: where tensors lie in memory changes no result and no other byte."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsv4core.ops import OPS
from dsv4core_conformance.case import case
from dsv4core_conformance.compare import require
from dsv4core_conformance.contracts import CONTRACTS
from dsv4core_conformance.inputs import make
from dsv4core_conformance.inputs.pages import (
    column_slice,
    every_second,
    layered,
    row_slice,
    spoiled,
    transposed,
)
from dsv4core_conformance.inputs.writers import PAGES, UNALIGNED
from dsv4core_conformance.reference.rows import INDEX, MAIN
from dsv4core_conformance.refusal import refused_or_right
from dsv4core_conformance.subject import Subject

TABLES = (
    "dequantize_and_gather_k_cache", "compressed_slot_mapping", "compress_norm_rope_store", "indexer_logits",
    "sparse_indexer", "compute_global_topk_indices_and_lens",
)  # fmt: skip
WRITERS = (
    "fused_qnorm_rope_kv_insert", "quantize_and_insert_k_cache", "save_partial_states",
    "compress_norm_rope_store",
)  # fmt: skip
OUTPUTS = ("dequantize_and_gather_k_cache", "sparse_decode", "sparse_prefill")
WEIGHTS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "linear": (
        ("weight", {}),
        ("weight", {"format": "fp8_block"}),
        ("weight", {"format": "mxfp4"}),
        ("scales", {"format": "fp8_block"}),
        ("x", {}),
    ),
    "grouped_output_projection": (("wo_a", {}), ("o", {})),
    "fused_q_kv_rmsnorm": (("qr", {}), ("q_weight", {})),
    "compress_norm_rope_store": (("norm_weight", {}), ("state_cache", {})),
    "save_partial_states": (("ape", {}), ("kv", {})),
    "quantize_and_insert_k_cache": (("k", {}), ("k_cache", {})),
    "inverse_rope": (("o", {}),),
    "fused_inv_rope_fp8_quant": (("cos_sin", {}),),
    "sparse_prefill": (("kv", {}),),
}

SCALED: dict[str, dict[str, Any]] = {
    "linear": {"format": "fp8_block", "scale": "f32"},
    "grouped_output_projection": {"o": "e4m3_f32", "weight": "f32_scales", "lora": 130},
    "indexer_logits": {"layout": "index_mxfp4"},
    "sparse_indexer": {"layout": "index_mxfp4"},
}
"""Options with which an op takes scales, in more than one row."""
WITH_ALL: dict[str, dict[str, Any]] = {
    "dequantize_and_gather_k_cache": {"gather": (3, 66, 0)},
    "compute_global_topk_indices_and_lens": {"tokens": 9, "valid": 0.5},
}
"""Options with which no vector is left out, and none is the same throughout."""
FREE = tuple(op for op in CONTRACTS if any(t.strides == "any" for t in OPS[op].tensors.values()))
"""Ops with inputs that may have any strides."""


def _with_scales(s: Subject, op: str) -> list[dict[str, Any]]:
    """Arguments of a call, and of one that has scales where the op takes some in a layout claimed here."""
    more = SCALED.get(op, {})
    claimed = op in SCALED and ("layout" not in more or more["layout"] in s.layouts)
    return [make(op), make(op, **more)] if claimed else [make(op)]


def _inputs(op: str, a: dict[str, Any]) -> list[str]:
    """Tensor arguments that are neither pages nor written."""
    pages = (*PAGES.get(op, ()), *CONTRACTS[op].writes)
    return [name for name, value in a.items() if isinstance(value, Tensor) and name not in pages]


@case(
    "op/{op}/stride/packed_layer_{layer}",
    op=tuple(PAGES),
    layer=(0, 1, 2),
    catches=("A7", "A8", "A11", "A12"),
)
def packed(s: Subject, op: str, layer: int) -> None:
    """Pages of one layer of three in a shared block: distance and offset come from the tensor."""
    a = make(op)
    for name in PAGES[op]:
        a[name] = layered(a[name], layer)
    s.check(op, a)


@case(
    "layout/{layout}/{op}/packed",
    level="layout", layout=MAIN,
    op=("quantize_and_insert_k_cache", "dequantize_and_gather_k_cache", "sparse_decode"),
    catches=("A7", "A8", "A12"),
)  # fmt: skip
@case(
    "layout/{layout}/{op}/packed",
    level="layout", layout=INDEX, op=("indexer_logits", "sparse_indexer"), catches=("A7", "A8", "G7", "I9"),
)  # fmt: skip
def packed_layout(s: Subject, layout: str, op: str) -> None:
    """In each layout rows and scales are found from the page's own start."""
    a = make(op, layout=layout)
    for name in PAGES[op]:
        a[name] = layered(a[name], 2)
    s.check(op, a)


@case("op/{op}/stride/unaligned_pages", op=tuple(PAGES), catches=("A8", "A11"))
def unaligned(s: Subject, op: str) -> None:
    """Pages that begin at odd bytes (states: at odd floats)."""
    options = {"state_place": UNALIGNED} if op == "compress_norm_rope_store" else {}
    s.check(op, make(op, place=UNALIGNED, **options))


@case("op/{op}/stride/layers_share_storage", op=WRITERS, catches=("A7", "A12", "J5"))
def layers_share_storage(s: Subject, op: str) -> None:
    """Three layers write into one storage in turn, and none of them touches another's rows."""
    layers, target = 3, CONTRACTS[op].writes[0]
    made = [make(op, seed=seed) for seed in range(1, layers + 1)]
    whole = layered(made[0][target], 0, layers)
    page = whole[0].numel()
    for layer in range(layers):
        shape, strides = whole.shape, whole.stride()
        made[layer][target] = whole.as_strided(shape, strides, whole.storage_offset() + layer * page)
        s.check(op, made[layer])


@case("op/{op}/stride/column_slices", op=tuple(CONTRACTS), catches=("C9", "A8"))
def column_slices(s: Subject, op: str) -> None:
    """Every input, scales too, is columns of a wider tensor whose other columns are NaN."""
    for a in _with_scales(s, op):
        for name in _inputs(op, a):
            a[name] = column_slice(a[name])
        s.check(op, a)


@case("op/{op}/stride/row_slices", op=tuple(CONTRACTS), catches=("C9", "A8"))
def row_slices(s: Subject, op: str) -> None:
    """Every input of two or more dimensions, scales too, is every second row of a longer tensor."""
    for a in _with_scales(s, op):
        for name in _inputs(op, a):
            if a[name].ndim > 1:
                a[name] = row_slice(a[name])
        s.check(op, a)


@case("op/{op}/stride/every_second", op=FREE, catches=("A8", "C9"))
def every_second_element(s: Subject, op: str) -> None:
    """Vectors and lists of numbers may have any strides: here every second element is another's."""
    a = make(op, **WITH_ALL.get(op, {}))
    for name in _inputs(op, a):
        if OPS[op].tensors[name].strides == "any":
            a[name] = every_second(a[name])
    s.check(op, a)


@case(
    "op/{op}/stride/table_{how}",
    op=TABLES, catches=("A8",),
    how=(
        {"name": "transposed", "view": transposed},
        {"name": "columns", "view": column_slice},
        {"name": "rows", "view": row_slice},
    ),
)  # fmt: skip
def tables(s: Subject, op: str, view: Any) -> None:
    """A block table may have any strides: its width is not the distance of its rows."""
    a = make(op)
    a["block_table"] = view(a["block_table"])
    s.check(op, a)


@case("op/{op}/stride/output_rows_apart", op=OUTPUTS, catches=("D13", "N7"))
def strided_outputs(s: Subject, op: str) -> None:
    """An output whose rows lie apart is written inside its rows only."""
    a = make(op)
    rows = a["out"]
    parent = spoiled(
        torch.empty((rows.shape[0], 2, *rows.shape[1:-1], rows.shape[-1] + 64), dtype=rows.dtype)
    )
    a["out"] = parent[:, 1, ..., 16 : 16 + rows.shape[-1]]
    a["out"].copy_(rows)
    before = parent.view(torch.uint8).clone()
    s.check(op, a)
    after = parent.view(torch.uint8).clone()
    inside = torch.zeros_like(parent, dtype=torch.bool)
    inside[:, 1, ..., 16 : 16 + rows.shape[-1]] = True
    outside = ~inside.repeat_interleave(parent.element_size(), dim=-1)
    changed = int((before != after)[outside].sum())
    require(changed == 0, f"{op}: {changed} bytes beside the rows of `out` were written")


@case("op/{op}/stride/not_contiguous", op=tuple(WEIGHTS), catches=("C9",))
def not_contiguous(s: Subject, op: str) -> None:
    """A tensor whose last stride is not 1 (a transposed weight) is refused, or the result is right."""
    for argument, options in WEIGHTS[op]:
        a = make(op, **options)
        a[argument] = every_second(a[argument]) if a[argument].ndim == 1 else transposed(a[argument])
        refused_or_right(s, op, a)


@case("op/{op}/stride/odd_rows", op=tuple(CONTRACTS), catches=("C9", "A8"))
def odd_rows(s: Subject, op: str) -> None:
    """Rows that are all one, with a distance of 0, and a single row, whose distance means nothing."""
    a = make(op)
    for name in _inputs(op, a):
        if a[name].ndim > 1 and a[name].dtype.is_floating_point and name in ROWS_ALIKE:
            a[name] = a[name][:1].clone().expand(a[name].shape)
    s.check(op, a)
    one = make(op, **ONE_ROW.get(op, {"tokens": 1}))
    for name in _inputs(op, one):
        value = one[name]
        if value.ndim > 1 and value.shape[0] == 1:
            one[name] = value.as_strided(value.shape, (3, *value.stride()[1:]))
    s.check(op, one)


ROWS_ALIKE = ("q", "kv", "qr", "k", "o", "x", "score", "logits", "weights")
ONE_ROW: dict[str, dict[str, Any]] = {
    "dequantize_and_gather_k_cache": {"lengths": (9,)},
    "compressed_slot_mapping": {"lengths": (9,)},
    "compress_norm_rope_store": {"lengths": (9,)},
    "combine_topk_swa_indices": {"queries": (1,), "prefixes": (9,)},
    "indexer_logits": {"tokens": 1, "requests": 1},
    "sparse_indexer": {"tokens": 1, "requests": 1},
}
"""Options with one token, or one request."""
