"""One call of an op, judged: results against the independent reference, as exactly as the contract says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from dsv4core_conformance.compare import Mismatch, require, same_attention, same_storage, same_values, within
from dsv4core_conformance.contracts import CONTRACTS, NAMED_TYPES, OpContract
from dsv4core_conformance.hosts import Arguments, cloned, dtype_name, storage_bytes, to_numpy
from dsv4core_conformance.reference.ops import REFERENCE
from dsv4core_conformance.turned import same_turned


@dataclass(frozen=True)
class Checked:
    """What a checked call gave: its results on the host, and its worst error in units of the contract."""

    results: list[Tensor | None]
    error: float


def judge(
    op: str, before: Mapping[str, Any], after: Mapping[str, Any], results: list[Tensor | None]
) -> float:
    """Compare a call with the reference; returns the worst error (0 where exact).

    `before` holds the arguments as they were, `after` the same objects as the backend left them: what the
    contract writes must be as the reference says, everything else unchanged to the last byte of its storage.
    """
    contract = CONTRACTS[op]
    own = cloned(before)
    dtypes = {name: dtype_name(value) for name, value in before.items()}
    plain = {name: to_numpy(value) for name, value in own.items()}
    expected = REFERENCE[op](plain, dtypes)
    _unwritten(op, own, after, contract, plain)
    _types(op, contract, results, before)
    if contract.kind == "exact":
        require(
            len(results) == len(expected), f"{op}: {len(expected)} results expected, {len(results)} returned"
        )
        for i, (mine, wanted) in enumerate(zip(results, expected, strict=True)):
            same_values(f"{op}: result {i}", mine, wanted)
        return 0.0
    if contract.kind == "attention":
        o, lse, size = expected
        got = to_numpy(after["out"])
        return same_attention(got, to_numpy(results[0]), (o, lse, size), contract.bound)
    if contract.kind == "turned":
        return same_turned(op, before, results, *expected, contract.bound)
    if contract.kind == "logits":
        return _logits(op, to_numpy(results[0]), *expected)
    if contract.kind == "list":
        return _list(op, to_numpy(results[0]), *expected)
    return _matmul(op, to_numpy(results[0]), expected[0], contract.bound)


def result_type(word: str, arguments: Mapping[str, Any]) -> str:
    """The dtype that a contract's word means in a call; "" where it leaves that open."""
    if word[:1] not in ("=", "@"):
        return word
    value = arguments[word[1:]]
    if isinstance(value, Tensor):  # codes are not multiplied into codes: their products are bf16
        return "bf16" if word[0] == "@" and value.element_size() == 1 else dtype_name(value)
    return NAMED_TYPES[str(value)]


def _types(op: str, contract: OpContract, results: list[Tensor | None], arguments: Mapping[str, Any]) -> None:
    """Results have the dtypes of the contract, which values alone would not tell apart."""
    for i, (mine, word) in enumerate(zip(results, contract.results, strict=False)):
        wanted = result_type(word, arguments)
        if mine is not None and wanted:
            require(
                dtype_name(mine) == wanted, f"{op}: result {i}: expected {wanted}, got {dtype_name(mine)}"
            )


def _unwritten(
    op: str, own: Arguments, after: Mapping[str, Any], contract: OpContract, plain: Mapping[str, Any]
) -> None:
    """Storages: those the op writes as the reference left them, all others as they were."""
    for name, value in own.items():
        if not isinstance(value, Tensor):
            continue
        if contract.kind == "attention" and name == "out":
            continue  # bounded, compared by value
        if name in contract.writes and dtype_name(value) == "bf16":
            same_values(f"{op}: {name}", after[name], plain[name])
            continue
        layout, rows = _page_words(name, own)
        same_storage(f"{op}: {name}", after[name], storage_bytes(value).numpy(), layout=layout, rows=rows)


def _page_words(name: str, own: Arguments) -> tuple[str, int]:
    """Layout id and rows per page of a page argument, or ("", 0)."""
    if name == "extra_cache":
        return own["extra_layout"], own["extra_rows"]
    if name == "swa_cache":
        return own["layout"], own["swa_rows"]
    return (own["layout"], own["rows"]) if name == "k_cache" else ("", 0)


def _logits(op: str, got: np.ndarray, exact: np.ndarray, bound: np.ndarray) -> float:
    """Visible cells within the bound, hidden ones (-inf in `exact`) -inf. Shapes: all [T, max_len]"""
    require(got.shape == exact.shape, f"{op}: expected shape {exact.shape}, got {got.shape}")
    hidden = np.isneginf(exact)
    wrong = np.argwhere(np.isneginf(got) != hidden)
    if len(wrong):
        t, s = (int(i) for i in wrong[0])
        word = "hidden (-inf)" if hidden[t, s] else "a score"
        raise Mismatch(
            f"{op}: token {t}, entry {s}: expected {word}, got {got[t, s]!r}; {len(wrong)} such cells"
        )
    gap = np.abs(np.where(hidden, 0.0, got) - np.where(hidden, 0.0, exact))
    with np.errstate(invalid="ignore"):
        return within(f"{op}: logits", gap, np.where(hidden, 1.0, bound), ("token", "entry")) * 1e-5


def _list(op: str, got: np.ndarray, exact: np.ndarray, bound: np.ndarray, k: int) -> float:
    """A list of the k best by scores that may be off by `bound`: ascending, unique, complete, -1 behind.

    Shapes: got i32 [T, k]; exact f64 [T, n] with -inf where hidden, bound f64 [T, n]
    """
    require(got.shape == (len(exact), k), f"{op}: expected shape {(len(exact), k)}, got {got.shape}")
    for t in range(len(exact)):
        visible = int((~np.isneginf(exact[t])).sum())
        row, count = got[t], min(k, visible)
        require(
            (row[count:] == -1).all(),
            f"{op}: token {t}: expected -1 behind {count} entries, got {row[count:][:8]}",
        )
        chosen = row[:count].astype(np.int64)
        require(
            ((chosen >= 0) & (chosen < visible)).all() and (np.diff(chosen) > 0).all(),
            f"{op}: token {t}: entries must ascend inside [0, {visible}), got {chosen[:8]}",
        )
        if count == visible:
            continue
        rest = np.setdiff1d(np.arange(visible), chosen)
        low = int(chosen[np.argmin(exact[t, chosen])])
        high = int(rest[np.argmax(exact[t, rest])])
        if exact[t, low] + bound[t, low] < exact[t, high] - bound[t, high]:
            raise Mismatch(
                f"{op}: token {t}: entry {high} (score {exact[t, high]:.6g}) was left out for entry {low} "
                f"(score {exact[t, low]:.6g})"
            )
    return 0.0


def _matmul(op: str, got: np.ndarray, exact: np.ndarray, bound: float) -> float:
    """Relative L2 of the whole result and of its worst row, so that a row of thousands shows; a row that is
    small because its terms cancel is held against the mean of all rows. Shapes: alike
    """
    require(got.shape == exact.shape, f"{op}: expected shape {exact.shape}, got {got.shape}")
    require(np.isfinite(got).all(), f"{op}: NaN or Inf in a result")
    size = float(np.linalg.norm(exact))
    error = (
        float(np.linalg.norm(got.astype(np.float64) - exact)) / size
        if size
        else float(np.abs(got).max(initial=0))
    )
    if not error <= bound:
        raise Mismatch(f"{op}: relative L2 error {error:.3e} > bound {bound:.0e}", ratio=error / bound)
    if not size:
        return error
    rows = exact.reshape(-1, exact.shape[-1])
    gaps = np.linalg.norm(got.astype(np.float64).reshape(rows.shape) - rows, axis=1)
    errors = gaps / np.maximum(np.linalg.norm(rows, axis=1), size / len(rows) ** 0.5)
    at = int(errors.argmax())
    worst = float(errors[at])
    if not worst <= bound:
        place = [int(i) for i in np.unravel_index(at, exact.shape[:-1])]
        raise Mismatch(
            f"{op}: row {place}: relative L2 error {worst:.3e} > bound {bound:.0e}; "
            f"{int((errors > bound).sum())} of {len(rows)} rows",
            ratio=worst / bound,
        )
    return max(error, worst)
