"""MUTANT: the suite judges itself. What is right is accepted; one wrong bit is found, and named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsv4core_conformance.case import case
from dsv4core_conformance.check import judge, result_type
from dsv4core_conformance.compare import Mismatch, require
from dsv4core_conformance.contracts import CONTRACTS
from dsv4core_conformance.families._calls import TURNED
from dsv4core_conformance.hosts import Arguments, cloned, dtype_name, storage_bytes, to_numpy
from dsv4core_conformance.inputs import make
from dsv4core_conformance.reference.byte_map import fields
from dsv4core_conformance.reference.ops import REFERENCE
from dsv4core_conformance.reference.ops.fused_inv_rope_fp8_quant import quantised
from dsv4core_conformance.subject import Subject

Results = list[Tensor | None]
Spoil = Callable[[Arguments, Results], None]
LAYOUTS = ("fp8_ds_mla", "bf16_row", "fp8_row")
INSERT = "quantize_and_insert_k_cache"


@case("suite/mutant/right/{op}", op=CONTRACTS, catches=("B12",))
def right_is_accepted(s: Subject, op: str) -> None:
    """A call that did exactly what the reference says is accepted, whoever is under test."""
    before, after, results = _right(op)
    try:
        error = judge(op, before, after, results)
    except Mismatch as found:
        raise Mismatch(f"the suite rejects what its own reference gave: {found}") from None
    bound = CONTRACTS[op].bound
    require(error <= bound, f"{op}: the reference is {error:.1e} away from itself, more than {bound:.0e}")


@case(
    "suite/mutant/page/{layout}/{place}",
    layout=LAYOUTS,
    place=("first", "last", "row", "other", "gap"),
    catches=("B12",),
)
def page_bit(s: Subject, layout: str, place: str) -> None:
    """One bit of a page is found: of a row written, of a row not written, and of the bytes between pages."""
    before, after, results = _right(
        INSERT, layout=layout, tokens=3, pages=2, rows=4, place={"lead": 33, "gap": 5}
    )
    pages = after["k_cache"]
    slot = int(before["slot_mapping"][1])
    page, row = divmod(slot, 4)
    taken = {int(n) for n in before["slot_mapping"]}
    free = next(n for n in range(8) if n not in taken)
    front = fields(layout, 4)
    if place == "gap":
        raw = storage_bytes(pages)
        raw[pages.storage_offset() - 1] ^= 1
        _rejected(INSERT, before, after, results, "which is no page's")
        return
    field, words = (front[0] if place != "last" else front[-1]), []
    if place == "other":
        page, row = divmod(free, 4)
    at = field.offset + row * field.stride
    if place == "row":
        at += field.count * field.size - 1
    pages[page, at] ^= 1
    words += [f"page {page}", f"row {row}", f"field `{field.name}`", "1 of"]
    _rejected(INSERT, before, after, results, *words)


@case("suite/mutant/input/{op}", op=CONTRACTS, catches=("B12",))
def input_written(s: Subject, op: str) -> None:
    """An op that writes into an argument it may only read is found."""
    before, after, results = _right(op)
    contract = CONTRACTS[op]
    for name, value in after.items():
        if isinstance(value, Tensor) and value.numel() and name not in contract.writes:
            storage_bytes(value)[-1] ^= 1
            _rejected(op, before, after, results, op)
            storage_bytes(value)[-1] ^= 1


def _first(change: Callable[[Tensor], None]) -> Spoil:
    def spoil(after: Arguments, results: Results) -> None:
        found = next(r for r in results if r is not None)
        change(found)

    return spoil


def _shifted(result: Tensor) -> None:
    result.copy_(result.roll(1, 0).clone())


def _next_code(result: Tensor) -> None:
    plain = result.view(torch.uint8).flatten()
    plain[0] ^= 1


def _wider(result: Tensor | None) -> Tensor:
    assert result is not None
    return result.double()


EXACT: tuple[dict[str, Any], ...] = (
    {"name": "one_bit", "spoil": _first(_next_code), "words": ("1 of",)},
    {"name": "rows_shifted", "spoil": _first(_shifted), "words": ("differ",)},
    {
        "name": "type",
        "spoil": lambda after, results: results.insert(0, _wider(results.pop(0))),
        "words": ("expected",),
    },
    {"name": "missing", "spoil": lambda after, results: results.pop(), "words": ("returned",)},
)
RESULTS = (
    "fused_q_kv_rmsnorm", "compressed_slot_mapping", "fused_indexer_q_rope_quant", "indexer_topk",
    "compute_global_topk_indices_and_lens", "combine_topk_swa_indices", "inverse_rope",
    "fused_inv_rope_fp8_quant",
)  # fmt: skip


@case("suite/mutant/exact/{op}/{fault}", op=RESULTS, fault=EXACT, catches=("B12",))
def exact_result(s: Subject, op: str, spoil: Spoil, words: tuple[str, ...]) -> None:
    """In an exact result one wrong bit, rows off by one, another type and a missing result are found."""
    before, after, results = _right(op)
    spoil(after, results)
    _rejected(op, before, after, results, *words)


def _sink_ignored(after: Arguments, results: Results) -> None:
    lse = results[0]
    assert lse is not None
    share = torch.sigmoid(lse - after["attn_sink"]).unsqueeze(-1)
    after["out"].copy_(after["out"].float() / share)


def _one_head(after: Arguments, results: Results) -> None:
    after["out"][1, 2, :448] *= 0.8


def _nan(after: Arguments, results: Results) -> None:
    after["out"][0, 0, 0] = torch.nan


def _sink_in_lse(after: Arguments, results: Results) -> None:
    lse = results[0]
    assert lse is not None
    lse.copy_(torch.logaddexp(lse, after["attn_sink"]))


def _empty_not_zero(after: Arguments, results: Results) -> None:
    after["out"][2] = 1e-3


def _empty_lse(after: Arguments, results: Results) -> None:
    assert results[0] is not None
    results[0][2] = -torch.inf


ATTENTION: tuple[dict[str, Any], ...] = (
    {"name": "sink_ignored", "spoil": _sink_ignored, "words": ("out of token", "head", "bound")},
    {"name": "one_head", "spoil": _one_head, "words": ("token 1, head 2", "1 of")},
    {"name": "nan", "spoil": _nan, "words": ("NaN",)},
    {"name": "sink_in_lse", "spoil": _sink_in_lse, "words": ("lse of token",)},
    {"name": "empty_row", "spoil": _empty_not_zero, "words": ("must be exactly 0",)},
    {"name": "empty_lse", "spoil": _empty_lse, "words": ("must be +inf",)},
)


@case(
    "suite/mutant/attention/{op}/{fault}",
    op=("sparse_decode", "sparse_prefill"),
    fault=ATTENTION,
    catches=("B12",),
)
def attention_result(s: Subject, op: str, spoil: Spoil, words: tuple[str, ...]) -> None:
    """Sinks left out, one head off, NaN, and rows without keys that are not empty are found."""
    before, after, results = _right(op, lens=[20, 7, 0], **({"extra": None} if op == "sparse_decode" else {}))
    spoil(after, results)
    _rejected(op, before, after, results, *words)


def _one_head_turned(after: Arguments, results: Results) -> None:
    o = results[0]
    assert o is not None
    o.view(3, 4, 512)[1, 2] = o.view(3, 4, 512)[1, 3].clone()


def _forwards(after: Arguments, results: Results) -> None:
    o = results[0]
    assert o is not None
    tail = o.view(3, 4, 512)[:, :, 448:]
    tail[..., 1::2] = -tail[..., 1::2].float()


def _nan_turned(after: Arguments, results: Results) -> None:
    o = results[0]
    assert o is not None
    o.flatten()[7:8] = torch.nan


def _empty_turned(after: Arguments, results: Results) -> None:
    o = results[0]
    assert o is not None
    o.view(3, 4, 512)[2, 0, 5] = 1.0


def _groups_swapped(after: Arguments, results: Results) -> None:
    for result in results:
        assert result is not None
        plain = result.view(torch.uint8) if result.element_size() == 1 else result
        plain.copy_(plain.flip(1).clone())


def _scale_twice(after: Arguments, results: Results) -> None:
    o, scales = results
    assert o is not None and scales is not None
    o.copy_((o.float() / 2).to(o.dtype))
    if scales.dtype == torch.float32:
        scales *= 2
    else:
        scales += 0x01010101


def _bytes_reversed(after: Arguments, results: Results) -> None:
    scales = results[1]
    assert scales is not None
    plain = scales.contiguous().view(torch.uint8).view(-1, 4)
    plain.copy_(plain.flip(1).clone())


def _no_power(after: Arguments, results: Results) -> None:
    assert results[1] is not None
    results[1].mul_(1.01)


def _scales_gone(after: Arguments, results: Results) -> None:
    results[1] = None


def _scales_there(after: Arguments, results: Results) -> None:
    results[1] = torch.ones(3, 2, 8)


EVERY, CODED = ("none", "f32", "ue8m0x4"), ("f32", "ue8m0x4")
TURNED_FAULTS: tuple[tuple[str, tuple[str, ...], Spoil, tuple[str, ...]], ...] = (
    ("one_head", EVERY, _one_head_turned, ("token 1, head 2",)),
    ("forwards", EVERY, _forwards, ("of token", "bound")),
    ("nan", EVERY, _nan_turned, ("NaN",)),
    ("empty_row", EVERY, _empty_turned, ("exactly 0",)),
    ("type", EVERY, lambda after, results: results.insert(0, _wider(results.pop(0))), ("expected",)),
    ("missing", EVERY, lambda after, results: results.pop(), ("2 results expected",)),
    ("groups_swapped", CODED, _groups_swapped, ("token 0",)),
    ("scale_twice", CODED, _scale_twice, ("scale of token",)),
    ("scales_gone", CODED, _scales_gone, ("result 1",)),
    ("no_power_of_two", ("f32",), _no_power, ("powers of two",)),
    ("bytes_reversed", ("ue8m0x4",), _bytes_reversed, ("scale of token",)),
    ("scales_there", ("none",), _scales_there, ("result 1", "nothing")),
)


@case(
    "suite/mutant/turned/{fault}",
    fault=[
        {"name": f"{name}_{format}", "format": format, "spoil": spoil, "words": words}
        for name, formats, spoil, words in TURNED_FAULTS
        for format in formats
    ],
    catches=("B12",),
)
def turned_result(s: Subject, format: str, spoil: Spoil, words: tuple[str, ...]) -> None:
    """A right result is accepted in every format; one that is off, of another form or scale is found."""
    op, options = TURNED, {"lens": [20, 7, 0], "extra": None, "sink": "zero", "positions": [9, 70, 200]}
    before, after, results = _right(op, **options, scale_format=format)
    error = judge(op, before, after, results)
    require(error <= CONTRACTS[op].bound, f"{op}: the reference is {error:.1e} away from itself")
    spoil(after, results)
    _rejected(op, before, after, results, *words)


def _worst_for_best(row: Tensor, before: Arguments) -> None:
    missing = next(n for n in range(int(before["context_lens"][0])) if n not in row.tolist())
    row[0] = missing
    row.copy_(row.sort().values)


LISTS: tuple[dict[str, Any], ...] = (
    {"name": "unsorted", "spoil": lambda row, before: row.copy_(row.flip(0).clone()), "words": ("ascend",)},
    {"name": "twice", "spoil": lambda row, before: row[1:2].copy_(row[:1].clone()), "words": ("ascend",)},
    {"name": "hidden", "spoil": lambda row, before: row[-1:].fill_(10_000), "words": ("inside",)},
    {"name": "hole", "spoil": lambda row, before: row[:1].fill_(-1), "words": ("inside",)},
    {"name": "worse", "spoil": _worst_for_best, "words": ("was left out",)},
)


@case("suite/mutant/list/{fault}", fault=LISTS, catches=("B12",))
def list_result(s: Subject, spoil: Callable[[Tensor, Arguments], None], words: tuple[str, ...]) -> None:
    """Lists out of order, with an entry twice, hidden, missing or worse than one left out are found."""
    before, after, results = _right("sparse_indexer", context=40, lens=[40], k=8)
    assert results[0] is not None
    spoil(results[0][0], before)
    _rejected("sparse_indexer", before, after, results, *words)


def _right(op: str, **options: Any) -> tuple[Arguments, Arguments, Results]:
    """Arguments before a call, the same as a right call leaves them, and its results."""
    before = make(op, **options)
    after = cloned(before)
    plain = {name: to_numpy(value) for name, value in after.items()}
    given = REFERENCE[op](plain, {name: dtype_name(value) for name, value in before.items()})
    contract = CONTRACTS[op]
    for name in contract.writes:
        if dtype_name(before[name]) == "bf16":  # bf16 reached the reference as a copy in f32
            after[name].copy_(torch.from_numpy(np.array(plain[name])))
    if contract.kind == "attention":
        o, lse, _ = given
        after["out"].copy_(torch.from_numpy(o))
        given = [lse]
    elif contract.kind == "turned":
        return before, after, _rounded(before, given[0])
    elif contract.kind == "list":
        given = [_best(*given)]
    elif contract.kind in ("logits", "matmul"):
        given = given[:1]
    words = [result_type(word, before) for word in contract.results]
    results = [_typed(value, words[i] if i < len(words) else "") for i, value in enumerate(given)]
    return before, after, results


def _rounded(a: Arguments, o: np.ndarray) -> Results:
    """An exact turned output as the op returns it. Shapes: f64 [T, H, 512]"""
    if a["scale_format"] == "none":
        return [torch.from_numpy(o).to(a["q"].dtype), None]
    codes, scales = quantised(o.astype(np.float32), a["groups"], a["scale_format"])
    return [torch.from_numpy(codes).view(torch.float8_e4m3fn), torch.from_numpy(scales)]


def _typed(value: np.ndarray | None, word: str) -> Tensor | None:
    """An expected result as the tensor that a backend returns."""
    if value is None:
        return None
    tensor = torch.from_numpy(np.array(value))
    if word.startswith("float8"):
        return tensor.view(getattr(torch, word))
    short = {"bf16": torch.bfloat16, "f32": torch.float32}
    return tensor.to(short.get(word) or getattr(torch, word)) if word else tensor


def _best(exact: np.ndarray, bound: np.ndarray, k: int) -> np.ndarray:
    """The k best of every row, ascending. Shapes: f64 [T, n] -> i32 [T, k]"""
    found = np.full((len(exact), k), -1, dtype=np.int32)
    for row, scores in zip(found, exact, strict=True):
        seen = np.flatnonzero(~np.isneginf(scores))
        best = np.sort(seen[np.argsort(-scores[seen], kind="stable")[:k]])
        row[: len(best)] = best
    return found


def _rejected(op: str, before: Arguments, after: Arguments, results: Results, *words: str) -> None:
    """Demand a Mismatch whose text holds all of these words."""
    try:
        judge(op, before, after, results)
    except Mismatch as found:
        missing = [word for word in words if word not in str(found)]
        require(not missing, f"{op}: the fault is found but not named: {missing} are not in {str(found)!r}")
        return
    raise Mismatch(f"{op}: the suite accepts a call that is wrong")
