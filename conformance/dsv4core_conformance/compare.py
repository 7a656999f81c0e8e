"""Comparisons that say what is wrong in the contract's words: page, row, field; token, head; error, bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsv4core_conformance.contracts import LSE_ABSOLUTE, LSE_RELATIVE
from dsv4core_conformance.facts import byte_facts, ratio_facts
from dsv4core_conformance.hosts import bits, dtype_name, to_numpy
from dsv4core_conformance.reference.byte_map import field_at


class Mismatch(AssertionError):
    """What a backend gave is not what the contract demands; `facts` say so in JSON values, for reports."""

    def __init__(self, text: str, **facts: Any) -> None:
        super().__init__(text)
        self.facts = facts


def require(holds: object, text: str) -> None:
    """Raise `Mismatch` with a text unless something holds."""
    if not holds:
        raise Mismatch(text)


def same_values(what: str, got: Tensor | None, expected: np.ndarray | None) -> None:
    """Bit for bit; a bf16 tensor is expected as the float32 values that it must hold, NaN equals NaN."""
    if expected is None or got is None:
        require(got is None and expected is None, f"{what}: expected {_form(expected)}, got {_form(got)}")
        return
    require(
        tuple(got.shape) == expected.shape, f"{what}: expected shape {expected.shape}, got {tuple(got.shape)}"
    )
    mine = to_numpy(got)
    if mine.dtype != expected.dtype:
        raise Mismatch(f"{what}: expected {expected.dtype}, got {dtype_name(got)}")
    size = expected.dtype.itemsize
    wrong = (bits(mine).reshape(-1, size) != bits(expected).reshape(-1, size)).any(1)
    if expected.dtype.kind == "f":
        wrong &= ~(np.isnan(mine) & np.isnan(expected)).reshape(-1)
    if wrong.any():
        first = tuple(int(i) for i in np.unravel_index(int(np.flatnonzero(wrong)[0]), expected.shape))
        raise Mismatch(
            f"{what}{list(first)}: expected {expected[first].item()!r}, got {mine[first].item()!r}; "
            f"{int(wrong.sum())} of {wrong.size} values differ"
        )


def same_storage(what: str, got: Tensor, expected: np.ndarray, *, layout: str = "", rows: int = 0) -> None:
    """Every byte of the storage behind `got`, also those that no page owns.

    Shapes: got any view, expected u8 [bytes of its storage]
    """
    storage = got.untyped_storage()
    mine = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),)).numpy()
    wrong = np.flatnonzero(mine != expected)
    if wrong.size:
        at = int(wrong[0])
        where = page_place(got, at, layout, rows) if layout else f"byte {at} of its storage"
        raise Mismatch(
            f"{what}: {where}: expected {expected[at]:02x}, got {mine[at]:02x}; "
            f"{wrong.size} of {expected.size} bytes differ",
            **(byte_facts(got, mine, expected, wrong, layout, rows) if layout else {}),
        )


def page_place(pages: Tensor, at: int, layout: str, rows: int) -> str:
    """A byte of a storage as page, row and field of the pages in it, or as a byte between pages."""
    offset = at - pages.storage_offset() * pages.element_size()
    stride = max(pages.stride(0), 1) * pages.element_size()
    page, inside = divmod(offset, stride)
    if offset < 0 or page >= pages.shape[0] or inside >= pages[0].numel() * pages.element_size():
        return f"byte {at} of its storage, which is no page's"
    return f"page {page}, {field_at(layout, rows, inside)} (byte {inside:,} of the page)"


def within(what: str, error: np.ndarray, bound: np.ndarray, names: tuple[str, ...]) -> float:
    """The largest error / bound, which must not pass 1; NaN fails. Shapes: error and bound alike"""
    if error.size == 0:
        return 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(error == 0, 0.0, error / bound)
    ratio = np.where(np.isnan(ratio), np.inf, ratio)
    place = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    worst = float(ratio[place])
    where = ", ".join(f"{n} {int(i)}" for n, i in zip(names, place, strict=False))
    if worst > 1:
        raise Mismatch(
            f"{what} at {where}: error {error[place]:.3e} > bound {bound[place]:.3e}; "
            f"{int((ratio > 1).sum())} of {ratio.size} are outside",
            **ratio_facts(worst),
        )
    return worst


def same_attention(
    out: np.ndarray, lse: np.ndarray, exact: tuple[np.ndarray, np.ndarray, np.ndarray], bound: float
) -> float:
    """Output and lse per (token, head): rows without a key exactly 0 and +inf, the others within bounds.

    Shapes: out [T, H, 512], lse [T, H]; exact = output [T, H, 512], lse [T, H], size [T, H], all float64
    """
    o, e, size = exact
    require(not np.isnan(out).any(), "out: NaN in a result")
    empty = np.isposinf(e)
    if empty.any():
        require((out[empty] == 0).all(), "out: a row without keys must be exactly 0")
        require(np.isposinf(lse[empty]).all(), "lse: a row without keys must be +inf")
    gap = np.linalg.norm(out.astype(np.float64) - o, axis=-1)[~empty]
    token, head = np.nonzero(~empty)
    worst = worst_head("out", gap, bound * size[~empty], token, head)
    off = np.abs(lse.astype(np.float64)[~empty] - e[~empty])
    worst_head("lse", off, LSE_ABSOLUTE + LSE_RELATIVE * np.abs(e[~empty]), token, head)
    return worst * bound


def worst_head(what: str, error: np.ndarray, bound: np.ndarray, token: np.ndarray, head: np.ndarray) -> float:
    """The largest error / bound, which must not pass 1; NaN fails. Shapes: [n] each, one per (token, head)"""
    if error.size == 0:
        return 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(error == 0, 0.0, error / bound)
    ratio = np.where(np.isnan(ratio), np.inf, ratio)
    i = int(np.argmax(ratio))
    if ratio[i] > 1:
        heads = sorted({int(h) for h in head[ratio > 1]})
        raise Mismatch(
            f"{what} of token {int(token[i])}, head {int(head[i])}: "
            f"error {error[i]:.3e} > bound {bound[i]:.3e}; "
            f"{int((ratio > 1).sum())} of {ratio.size} (token, head) pairs are outside, heads {heads[:16]}",
            **ratio_facts(float(ratio[i])),
        )
    return float(ratio[i])


def _form(value: Tensor | np.ndarray | None) -> str:
    return "nothing" if value is None else f"{value.dtype} {list(value.shape)}"
