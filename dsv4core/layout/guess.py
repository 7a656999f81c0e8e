"""Which layout a page of unknown origin has: sizes that fit, evidence in bits, and doubts in words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dsv4core.errors import LayoutError
from dsv4core.layout._evidence import Fact, facts
from dsv4core.layout.base import CacheLayout
from dsv4core.layout.registry import layouts

SAMPLE_BYTES = 4 << 20  # what is looked at, however large the file
SAMPLE_ROWS = 512
ROWS = (64, 2, 4, 8, 1, 16, 32, 128, 256)  # the rules' page sizes first
STATES = {1024: 4, 512: 8, 256: 4}  # width -> rows of a state page
CLOSE = 0.02  # share of the evidence below which two candidates count as equal
HALF = 0.51  # a candidate that explains no more than half of what another does is left out
WEAK = 50.0  # bits

SAME_BYTES = "the bytes of both are the same: only whoever wrote them knows whether values were rotated first"
DIALECT = (
    "a code means half as much in FNUZ: without a 0x80 (NaN there) or a scale byte 105 nothing in the bytes "
    "decides it"
)
INTERLEAVED = (
    "every record has its scales beside it: these are not pages of this package, which keep all scales "
    "behind all rows; tell the two apart before anything reads them"
)
NO_ROWS = "rows without a tail follow each other: how many make a page cannot be seen"
F32 = "f32 rows of other widths look alike: only the size speaks for the width"
TWINS: dict[frozenset[str], str] = {
    frozenset(("index_mxfp4", "index_mxfp4_hadamard")): SAME_BYTES,
    frozenset(("fp8_ds_mla", "fp8_ds_mla_fnuz")): DIALECT,
}


class Candidate(NamedTuple):
    """A layout that the bytes may have; `bits` weighs the evidence against random bytes."""

    layout: CacheLayout
    rows: int
    pages: int
    page_bytes: int
    bits: float
    facts: tuple[Fact, ...]
    doubts: tuple[str, ...]


def guess(data: Tensor, *, size: int | None = None, rows: int | None = None) -> list[Candidate]:
    """Candidates, the likeliest first; those with evidence against them are left out.

    `data` is the beginning of the pages (4 MiB are looked at), `size` the number of bytes there are in all,
    `rows` the rows per page if known. The list is empty where no layout fits. Raises LayoutError for other
    tensors and impossible sizes. Shapes: u8 [n].
    """
    total = data.numel() if size is None else size
    if data.dtype != torch.uint8 or data.ndim != 1 or not 0 < data.numel() <= total:
        raise LayoutError(
            f"guess takes the bytes of pages, u8 [n] with 0 < n <= size, got {data.dtype} {list(data.shape)} "
            f"and size {total}"
        )
    if rows is not None and not 0 < rows <= total:
        raise LayoutError(
            f"guess: {rows} rows a page do not fit {total} bytes; leave rows out to try the usual"
        )
    sample = data[:SAMPLE_BYTES]
    found: list[Candidate] = []
    for layout, count, stride in _shapes(total, rows):
        judged = _judge(layout, count, stride, sample, total)
        if judged is not None:
            found.append(judged)
    found = _one_row_count(sorted(found, key=_order))
    enough = HALF * max((c.bits for c in found), default=0.0)
    found = [c for c in found if c.bits >= max(enough, 0.0) and not _contradicted(c)]
    return [c._replace(doubts=tuple(_doubts(c, found, rows))) for c in found]


def _contradicted(c: Candidate) -> bool:
    """Whether something that nearly always holds under the layout mostly does not."""
    return any(2 * fact.held < fact.of for fact in c.facts)


def _order(c: Candidate) -> tuple[float, int, int]:
    return (-c.bits, ROWS.index(c.rows) if c.rows in ROWS else len(ROWS), c.pages)


def _shapes(total: int, rows: int | None) -> Iterator[tuple[CacheLayout, int, int]]:
    """Layout, rows a page and bytes from page to page, where whole pages make up the size."""
    for layout in filter(lambda known: known.in_rows, layouts()):
        sized = [layout] if layout.width is not None else [layout.sized(w) for w in STATES]
        for one in sized:
            usual = ROWS if layout.width is not None else (STATES[one.width or 0],)
            for count in usual if rows is None else (rows,):
                payload = count * one.record_bytes
                for stride in (one.page_bytes(count), payload):
                    if stride <= total and total % stride == 0:
                        yield one, count, stride
                        break


def _judge(layout: CacheLayout, rows: int, stride: int, sample: Tensor, total: int) -> Candidate | None:
    """Weigh the evidence of the pages within the sample, or of the rows of a page larger than it."""
    whole = min(sample.numel() // stride, max(1, SAMPLE_ROWS // rows))
    if whole == 0:
        return None
    pages = sample[: whole * stride].view(whole, stride)
    record = torch.cat(layout.parts(pages, rows), dim=-1).flatten(0, 1)[:SAMPLE_ROWS]
    live = record[(record != 0).any(dim=1)]
    found = facts(layout, live) if live.numel() else []
    bits = sum(f.bits for f in found) + _loudness(layout, live)
    behind = pages[:, rows * layout.record_bytes :]
    if behind.numel():
        zero = bool((behind == 0).all())
        bits += 4.0 if zero else 0.0  # an engine may leave anything there
    return Candidate(layout, rows, total // stride, stride, bits, tuple(found), ())


def _loudness(layout: CacheLayout, live: Tensor) -> float:
    """A few bits where quantised and bf16 channels are about equally loud: a hint at the dialect, no more."""
    if len(layout.row_fields) != 2 or not live.numel() or layout.row_fields[1].dtype != "bf16":
        return 0.0
    values = layout.decode(live).double().nan_to_num(0.0, 0.0, 0.0)
    border = layout.row_fields[0].count
    first, second = (float(part.square().mean()) for part in (values[:, :border], values[:, border:]))
    ratio = first / second if second > 0 else math.nan
    return -abs(math.log2(ratio)) if math.isfinite(ratio) and ratio > 0 else -10.0


def _one_row_count(found: list[Candidate]) -> list[Candidate]:
    """Rows without a tail say nothing about their number per page: keep the most usual."""
    kept: dict[str, Candidate] = {}
    for c in found:
        key = f"{c.layout.fingerprint} {c.rows if c.layout.tail_bytes else None}"
        kept.setdefault(key, c)
    return list(kept.values())


def _doubts(c: Candidate, found: list[Candidate], rows: int | None) -> Iterator[str]:
    if not c.facts:
        yield "every byte looked at is 0: only the size says anything"
    elif c.bits < WEAK:
        yield f"{c.bits:.0f} bits are little evidence: more pages would say more"
    if c.rows == 1 and c.layout.tail_bytes and c.pages > 1 and c.page_bytes == c.layout.record_bytes:
        yield INTERLEAVED
    for other in found:
        twin = TWINS.get(frozenset((c.layout.id, other.layout.id)))
        if other is c or (other.rows != c.rows and c.layout.tail_bytes):
            continue
        if twin is not None:
            yield f"{other.layout.id}: {twin}"
        elif abs(other.bits - c.bits) <= CLOSE * max(c.bits, other.bits):
            wide = f" of width {other.layout.width}" if other.layout.family == "state" else ""
            yield f"{other.layout.id}{wide} with {other.rows} rows explains the bytes as well"
    if not c.layout.tail_bytes and rows is None:
        yield NO_ROWS
    if c.layout.plain_f32:
        yield F32
    broken = [f for f in c.facts if f.held < f.of and f.what.startswith("codes are not")]
    yield from (f"{f.of - f.held} of {f.of} do not hold: {f.what}" for f in broken)
