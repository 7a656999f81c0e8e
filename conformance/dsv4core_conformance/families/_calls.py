"""What several families do with calls: value checks on or off, refusals, the tokens of an op, equal bytes."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core_conformance.case import NotRun
from dsv4core_conformance.compare import Mismatch, require, same_storage
from dsv4core_conformance.contracts import CONTRACTS
from dsv4core_conformance.hosts import Arguments, bits, cloned, storage_bytes
from dsv4core_conformance.subject import Subject

ATTENTION = ("sparse_decode", "sparse_prefill")
TURNED = "fused_sparse_decode_inv_rope"
ROUNDED = ("none", "f32", "ue8m0x4")
"""Formats of its result."""
INDEXER = ("indexer_logits", "sparse_indexer")
INDEX_LAYOUTS = (
    "index_fp8", "index_fp8_ue8m0x4", "index_fp8_hadamard_f32", "index_mxfp4", "index_mxfp4_hadamard",
    "index_f32",
)  # fmt: skip
MAIN_LAYOUTS = ("fp8_ds_mla", "fp8_ds_mla_fnuz", "bf16_row", "fp8_row", "f32_row")
CHECK = "DSV4CORE_CHECK"

TOKENS = {
    "fused_indexer_q_rope_quant": ("positions", "q", "weights"),
    "indexer_logits": ("q", "q_scales", "weights", "context_lens", "token_to_req"),
    "indexer_topk": ("logits", "context_lens"),
    "sparse_indexer": ("q", "q_scales", "weights", "context_lens", "token_to_req"),
    "compute_global_topk_indices_and_lens": ("topk", "token_to_req", "is_valid"),
    "sparse_decode": ("q", "swa_slots", "swa_lens", "extra_slots", "extra_lens", "out"),
    "sparse_prefill": ("q", "indices", "lens", "out"),
    "fused_sparse_decode_inv_rope": (
        "q",
        "swa_slots",
        "swa_lens",
        "extra_slots",
        "extra_lens",
        "positions",
    ),
    "grouped_output_projection": ("o", "o_scales"),
    "linear": ("x",),
}
"""Arguments with one row per token, of the ops whose tokens are independent of one another."""


def need_layouts(s: Subject, *layouts: str) -> None:
    """Raise `NotRun` for a layout that the backend does not claim; f32_row stands for profile `math`."""
    missing = [layout for layout in layouts if layout not in s.layouts]
    if missing:
        raise NotRun(f"does not claim {', '.join(missing)}")


@contextmanager
def value_checks(on: bool) -> Generator[None, None, None]:
    """Switch checked mode on or off."""
    before = os.environ.get(CHECK)
    os.environ[CHECK] = "1" if on else "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[CHECK]
        else:
            os.environ[CHECK] = before


def refused(s: Subject, op: str, arguments: Mapping[str, Any], why: str, *names: str) -> None:
    """Demand the one documented error, that names one of the arguments, and that no byte has changed."""
    before = cloned(arguments)
    try:
        s.call(op, arguments)
    except OpArgumentError as error:
        require(
            not names or error.argument in names,
            f"{op}: {why}: the error must name {' or '.join(names)}, it names {error.argument}",
        )
    except Exception as error:
        raise Mismatch(
            f"{op}: {why}: expected OpArgumentError, got {type(error).__name__}: {error}"
        ) from error
    else:
        raise Mismatch(f"{op}: {why}: accepted, expected OpArgumentError")
    for name, value in before.items():
        if isinstance(value, Tensor):
            same_storage(f"{op}: {why}: {name}", arguments[name], storage_bytes(value).numpy())


def produced(s: Subject, op: str, arguments: Mapping[str, Any]) -> list[Tensor | None]:
    """Everything a call gives: results, and the tensors that it wrote."""
    results = s.call(op, arguments)
    return [*results, *(arguments[name] for name in CONTRACTS[op].writes)]


def same_bytes(what: str, got: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> None:
    """Demand that two calls gave the same bits."""
    require(len(got) == len(expected), f"{what}: {len(expected)} results expected, got {len(got)}")
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        if a is None or b is None:
            require(a is None and b is None, f"{what}: result {i} is there only once")
            continue
        require(a.shape == b.shape, f"{what}: result {i}: shape {list(a.shape)}, expected {list(b.shape)}")
        wrong = (bits(a) != bits(b)).reshape(a.numel(), -1).any(1) if a.numel() else bits(a) != bits(b)
        if wrong.any():
            at = int(wrong.argmax())
            place = [int(n) for n in torch.unravel_index(torch.tensor(at), a.shape)]
            raise Mismatch(
                f"{what}: result {i}{place}: {a.contiguous().flatten()[at].item()!r}, expected "
                f"{b.contiguous().flatten()[at].item()!r}; {int(wrong.sum())} of {wrong.size} values differ"
            )


def with_tokens(op: str, arguments: Mapping[str, Any], tokens: Tensor) -> Arguments:
    """The same call for some of its tokens, in this order. Shapes: tokens i64 [n]"""
    chosen = dict(cloned(arguments))
    for name in TOKENS[op]:
        value = chosen[name]
        if value is not None:
            plain = (
                value.view(torch.uint8) if value.element_size() == 1 and value.dtype != torch.bool else value
            )
            chosen[name] = plain[tokens].view(value.dtype)
    return chosen


def at_tokens(results: Sequence[Tensor | None], tokens: Tensor) -> list[Tensor | None]:
    """Rows of results. Shapes: tokens i64 [n]"""
    return [None if r is None else _bytes(r)[tokens].view(r.dtype) for r in results]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8) if tensor.element_size() == 1 and tensor.dtype != torch.bool else tensor


def between(tensor: Tensor, fill: float, before: int = 3, behind: int = 2) -> Tensor:
    """The same values as columns of a wider tensor that holds something else around them. Shapes: [..., n]"""
    wide = torch.full((*tensor.shape[:-1], before + tensor.shape[-1] + behind), fill, dtype=tensor.dtype)
    view = wide[..., before : before + tensor.shape[-1]]
    view.copy_(tensor)
    return view
