"""Bad arguments of any op, made from its declaration; what each must lead to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsv4core.layout import layouts
from dsv4core.numerics import block_fp8
from dsv4core.ops import OPS
from dsv4core.ops._contract import E4M3, E8M0, MINIMUM, TensorSpec
from dsv4core.samples import Size, sample

TYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
    torch.float32, torch.float64, E4M3, E8M0, torch.float8_e5m2, torch.complex64,
)  # fmt: skip
RAISES, MAY, LEGAL = "raises", "may raise", "legal"
Arguments = dict[str, Any]


@dataclass
class Case:
    """One changed call. `named`: the argument the error must name; None: any of the op's."""

    label: str
    arguments: Arguments
    outcome: str
    named: str | None = None


def _config(name: str, **overrides: Any) -> Callable[[str], Arguments]:
    from dsv4core.config import AttentionConfig

    size = Size(tokens=3, context=40, config=AttentionConfig.preset("tiny", **overrides))
    return lambda op: sample(op, size)


def _fp8(weight: str, scales: str, scale: str) -> Callable[[str], Arguments]:
    def make(op: str) -> Arguments:
        arguments = _config("plain")(op)
        arguments[weight], arguments[scales] = block_fp8.quantise(arguments[weight], scale)
        return {**arguments, "format": "fp8_block"} if op == "linear" else arguments

    return make


def _four_bits(format: str) -> Callable[[str], Arguments]:
    def make(op: str) -> Arguments:
        arguments, group = _config("plain")(op), 16 if format == "nvfp4" else 32
        rows, columns = arguments["weight"].shape
        scales = torch.full((rows, columns // group), 120, dtype=torch.uint8)
        arguments["weight"] = torch.zeros(rows, columns // 2, dtype=torch.uint8)
        arguments["scales"] = scales.view(E4M3) if format == "nvfp4" else scales
        arguments["global_scale"] = torch.ones(1) if format == "nvfp4" else None
        return {**arguments, "format": format}

    return make


def _quantised_output(op: str) -> Arguments:
    arguments = _config("plain")(op)
    output = OPS["fused_inv_rope_fp8_quant"].body(**_config("plain")("fused_inv_rope_fp8_quant"))
    return {**arguments, "o": output[0], "o_scales": output[1]}


def _without_extra(op: str) -> Arguments:
    return {**_config("plain")(op), "extra_cache": None, "extra_slots": None, "extra_lens": None}


def _turned_into_codes(op: str) -> Arguments:
    return {**_config("plain")(op), "scale_format": "ue8m0x4"}


_VARIANTS: list[tuple[str, str, Callable[[str], Arguments]]] = [
    *((op, "plain", _config("plain")) for op in OPS),
    *((op, "mxfp4", _config("mxfp4", index_layout="index_mxfp4_hadamard"))
      for op in ("indexer_logits", "sparse_indexer", "fused_indexer_q_rope_quant")),
    *((op, "math", _config("math", profile="math"))
      for op in (
          "sparse_decode", "fused_sparse_decode_inv_rope", "indexer_logits", "dequantize_and_gather_k_cache",
      )),
    ("linear", "fp8_block", _fp8("weight", "scales", "ue8m0")),
    ("linear", "fp8_block f32", _fp8("weight", "scales", "f32")),
    ("linear", "nvfp4", _four_bits("nvfp4")),
    ("linear", "mxfp4", _four_bits("mxfp4")),
    ("grouped_output_projection", "fp8_block", _fp8("wo_a", "wo_a_scales", "ue8m0")),
    ("grouped_output_projection", "e4m3", _quantised_output),
    ("sparse_decode", "one cache", _without_extra),
    ("fused_sparse_decode_inv_rope", "one cache", _without_extra),
    ("fused_sparse_decode_inv_rope", "e4m3", _turned_into_codes),
]  # fmt: skip
VARIANTS = {f"{op}-{label}": (op, make) for op, label, make in _VARIANTS}


def tensors(op: str, a: Arguments) -> Iterator[tuple[str, TensorSpec, Tensor]]:
    """Declared tensor arguments that are there."""
    for name, spec in OPS[op].tensors.items():
        if a[name] is not None:
            yield name, spec, a[name]


def as_bytes(tensor: Tensor) -> Tensor:
    """One-byte floats as bytes, which torch can index; others as they are."""
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


def grown(tensor: Tensor, dim: int) -> Tensor:
    """One more of a dimension, its first slice again."""
    index = torch.arange(tensor.shape[dim] + 1) % max(tensor.shape[dim], 1)
    return as_bytes(tensor).index_select(dim, index).view(tensor.dtype)


def spread(tensor: Tensor) -> Tensor:
    """The same values with stride(-1) = 2."""
    wide = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1], dtype=tensor.dtype)
    as_bytes(wide)[..., ::2] = as_bytes(tensor)
    return wide[..., ::2]


def shapes(op: str, a: Arguments) -> Iterator[Case]:
    """Each dimension one larger, one dimension more or fewer, nothing at all."""
    exact = Counter(w for _, s, _ in tensors(op, a) for w in s.shape.split())
    for name, spec, tensor in tensors(op, a):
        for dim, word in enumerate(spec.shape.split()):
            fixed = word.isdigit() or "*" in word or word.startswith("<=") or word in a or exact[word] > 1
            yield Case(f"{name}[{dim}] + 1", {**a, name: grown(tensor, dim)}, RAISES if fixed else MAY)
        for label, other in (
            ("unsqueeze(0)", tensor.unsqueeze(0)),
            ("unsqueeze(-1)", tensor.unsqueeze(-1)),
            ("[0]", tensor[0]),
        ):
            yield Case(f"{name}.{label}", {**a, name: other}, RAISES, name)
        yield Case(
            f"{name} None",
            {**a, name: None},
            MAY if spec.optional else RAISES,
            None if spec.optional else name,
        )


def dtypes(op: str, a: Arguments) -> Iterator[Case]:
    """Every type that the declaration does not list, and the other ones it does."""
    for name, spec, tensor in tensors(op, a):
        for dtype in TYPES:
            wrong = dtype not in spec.dtypes
            if dtype != tensor.dtype:
                one_byte = dtype in (E4M3, E8M0)
                other = torch.zeros(tensor.shape, dtype=torch.uint8 if one_byte else dtype)
                other = other.view(dtype) if one_byte else other
                yield Case(
                    f"{name} {dtype}", {**a, name: other}, RAISES if wrong else MAY, name if wrong else None
                )
        yield Case(f"{name} list", {**a, name: [1]}, RAISES, name)


def strides(op: str, a: Arguments) -> Iterator[Case]:
    """Holes between the elements of a row; pages and results that overlap."""
    for name, spec, tensor in tensors(op, a):
        if tensor.shape[-1] > 1:
            outcome = LEGAL if spec.strides == "any" else RAISES
            yield Case(f"{name} stride 2", {**a, name: spread(tensor)}, outcome, name)
        if spec.strides == "page" and tensor.shape[0] > 1:
            near = tensor.clone().as_strided(tuple(tensor.shape), (tensor.shape[1] - 16, 1))
            yield Case(f"{name} overlaps", {**a, name: near}, RAISES, name)
        if name in OPS[op].mutates and tensor.shape[0] > 1:
            yield Case(f"{name} expanded", {**a, name: tensor[:1].clone().expand(tensor.shape)}, RAISES, name)


def devices(op: str, a: Arguments) -> Iterator[Case]:
    """One tensor elsewhere."""
    for name, _, tensor in tensors(op, a):
        yield Case(f"{name} meta", {**a, name: tensor.to("meta")}, RAISES)


def parameters(op: str, a: Arguments) -> Iterator[Case]:
    """Integers, floats, strings and types of the wrong kind, size or spelling."""
    low = {**MINIMUM, **OPS[op].minimum}
    pages = {s.rows for _, s, _ in tensors(op, a) if s.rows}
    for name, parameter in OPS[op].signature.parameters.items():
        kind = parameter.annotation
        if name in OPS[op].tensors:
            continue
        wrong: list[Any] = [None, b"x", [1]]
        if kind is int:
            wrong += [True, 1.5, "1", 2**31 if name != "workspace_bytes" else 2**63, torch.tensor(1)]
            small = [v for v in (0, -1, -(2**40)) if v < low.get(name, 0)]
            wrong += small + ([10_000] if name in pages else [])
        elif kind is float:
            wrong += [float("nan"), float("inf"), -float("inf"), "x", True] + [-1.0] * (name == "eps")
        elif kind is str:
            wrong += [3, "nope", ""]
        else:
            wrong += ["float32", torch.int8, torch.float16]
        for value in wrong:
            outcome = MAY if name.startswith("extra_") and a["extra_cache"] is None else RAISES
            yield Case(f"{name}={value!r}", {**a, name: value}, outcome, name if outcome == RAISES else None)
    for name, spec, _ in tensors(op, a):
        for layout in layouts() if spec.layout else ():
            foreign = layout.family not in spec.families
            changed = {**a, spec.layout: layout.id}
            yield Case(
                f"{name} {layout.id}", changed, RAISES if foreign else MAY, spec.layout if foreign else None
            )


NUMBERS = {  # argument -> (too large, too small); the rest may raise or not
    "positions": (RAISES, RAISES), "token_to_req": (RAISES, RAISES), "slot_mapping": (RAISES, LEGAL),
    "kv_slot_mapping": (RAISES, LEGAL), "swa_slots": (RAISES, LEGAL), "extra_slots": (RAISES, LEGAL),
    "indices": (RAISES, LEGAL), "swa_lens": (RAISES, RAISES), "extra_lens": (RAISES, RAISES),
    "lens": (RAISES, RAISES),
    "context_lens": (RAISES, RAISES), "gather_lens": (RAISES, RAISES), "seq_lens": (RAISES, RAISES),
    "block_table": (RAISES, MAY), "topk": (RAISES, LEGAL), "query_start_loc": (RAISES, RAISES),
}  # fmt: skip
EXCEPTIONS = {
    ("combine_topk_swa_indices", "seq_lens"): (MAY, RAISES),  # only a length: no memory of that size is named
    ("compressed_slot_mapping", "block_table"): (LEGAL, LEGAL),  # no cache to compare with
    ("compressed_slot_mapping", "slot_mapping"): (LEGAL, LEGAL),  # only its sign is read
    ("compress_norm_rope_store", "slot_mapping"): (LEGAL, LEGAL),
    ("compute_global_topk_indices_and_lens", "block_table"): (RAISES, RAISES),  # its slots are no i32
}  # fmt: skip


def with_value(tensor: Tensor, value: float, last: bool = True) -> Tensor:
    """A copy with one other element: the first of all, or the first (for floats the last) of the last row."""
    changed = tensor.clone()
    index = (
        tuple(n - 1 for n in tensor.shape)
        if tensor.is_floating_point()
        else (-last, *(0,) * (tensor.ndim - 1))
    )
    changed[index] = value
    return changed


def values(op: str, a: Arguments) -> Iterator[Case]:
    """Checked mode: numbers out of range, NaN and infinities."""
    for name, spec, tensor in tensors(op, a):
        if tensor.dtype in (torch.int32, torch.int64) and not name.endswith("scales"):
            large, small = EXCEPTIONS.get((op, name), NUMBERS[name])
            for value, outcome in (
                (torch.iinfo(tensor.dtype).max // 2 + 1, large),
                (torch.iinfo(tensor.dtype).min, small),
            ):
                for last in (False, True):
                    yield Case(f"{name} {value}", {**a, name: with_value(tensor, value, last)}, outcome)
        elif tensor.dtype in (torch.bfloat16, torch.float32):
            for value in (float("nan"), float("inf"), -float("inf")):
                outcome = RAISES if spec.finite else LEGAL if name in ("attn_sink", "logits") else MAY
                if name == "attn_sink" and value != value:
                    outcome = RAISES
                if name == "logits" and value != value:
                    outcome = MAY  # a caller's error where the cell is visible
                changed = {**a, name: with_value(tensor, value)}
                yield Case(f"{name} {value}", changed, outcome, name if outcome == RAISES else None)
        elif tensor.dtype in (E4M3, E8M0) and spec.finite:
            codes = with_value(tensor.view(torch.uint8), 0x7F if tensor.dtype == E4M3 else 0xFF)
            yield Case(f"{name} NaN", {**a, name: codes.view(tensor.dtype)}, RAISES, name)


STRUCTURE = {
    "shapes": shapes,
    "dtypes": dtypes,
    "strides": strides,
    "devices": devices,
    "parameters": parameters,
}
