"""Index scores in float64: products of codes are exact there, so no shape or block size changes a bit."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.layout import CacheLayout
from dsv4core.numerics import e2m1, e4m3, ue8m0
from dsv4core.ops._rows import by_block, ints
from dsv4core.slots import table_slots

MXFP4_BLOCK = 32


def check_queries(op: str, q: Tensor, scales: Tensor | None, layout: CacheLayout, rotate: str) -> int:
    """The width of a query in channels, after checking that the queries belong to the layout."""
    if rotate != layout.rotate:
        raise OpArgumentError(
            op,
            "rotate",
            f"{layout.rotate!r}, the flag of {layout.id}: q and k are rotated together",
            repr(rotate),
        )
    mxfp4 = layout.id.startswith("index_mxfp4")
    wanted = torch.uint8 if mxfp4 else torch.float32 if layout.id == "index_f32" else torch.float8_e4m3fn
    if q.dtype != wanted:
        raise OpArgumentError(op, "q", f"{wanted}, the queries of {layout.id}", str(q.dtype))
    if mxfp4 != (scales is not None):
        raise OpArgumentError(
            op, "q_scales", f"{'u8 [T, H, 4]' if mxfp4 else 'None'} with {layout.id}", "the other"
        )
    width = q.shape[-1] * (2 if mxfp4 else 1)
    if width != layout.width:
        raise OpArgumentError(op, "q", f"{layout.width} channels", f"shape {list(q.shape)}")
    if scales is not None and tuple(scales.shape) != (*q.shape[:2], width // MXFP4_BLOCK):
        raise OpArgumentError(
            op, "q_scales", f"shape {[*q.shape[:2], width // MXFP4_BLOCK]}", f"{list(scales.shape)}"
        )
    return width


def check_pages(op: str, table: Tensor, token_to_req: Tensor, lens: Tensor, rows: int) -> None:
    """Checked mode: raise where an entry that a token sees has no page; the numbers lie in their ranges.

    Shapes: table i32 [R, W], token_to_req and lens i32 [T].
    """
    if not table.numel() or not lens.numel():
        return
    longest = lens.new_zeros(table.shape[0]).scatter_reduce_(0, token_to_req.long(), lens, "amax")
    first = torch.arange(0, int(longest.max()), rows, device=table.device)  # most of a table may be empty
    hole = (first < longest.unsqueeze(1)) & (table[:, : first.numel()] < 0)
    if bool(hole.any()):
        request, column = (int(i) for i in hole.nonzero()[0])
        expected = f"a page of this cache for entry {column * rows} of request {request}"
        raise OpArgumentError(op, "block_table", expected, str(int(table[request, column])))


def query_values(q: Tensor, scales: Tensor | None, tokens: Tensor) -> Tensor:
    """Dequantised queries of some tokens, so that nobody holds those of all.

    Shapes: e4m3 or f32 [T, H, 128], or u8 [T, H, 64] with u8 [T, H, 4]; tokens i64 [n] -> f64 [n, H, 128].
    """
    if q.dtype == torch.float8_e4m3fn:
        return e4m3.decode(q.view(torch.uint8)[tokens]).double()
    if scales is None:
        return q[tokens].double()
    values = by_block(e2m1.decode(e2m1.unpack(q[tokens])), MXFP4_BLOCK)
    return (values * ue8m0.exp2(ue8m0.byte_exponent(scales[tokens])).unsqueeze(-1)).flatten(-2).double()


def entry_values(
    k_cache: Tensor, block_table: Tensor, request: int, span: slice, layout: CacheLayout, rows: int, op: str
) -> tuple[Tensor, Tensor | None]:
    """Keys of entries `span` of one request, with the factor that is still missing where there is one.

    Shapes: -> f64 [n, 128], f64 [n] or None.
    """
    index = torch.arange(span.start, span.stop, device=k_cache.device)
    slots = table_slots(block_table, torch.full_like(index, request), index, rows)
    if index.numel() and (int(slots.min()) < 0 or int(slots.max()) >= k_cache.shape[0] * rows):
        bad = int(index[(slots < 0) | (slots >= k_cache.shape[0] * rows)][0])
        raise OpArgumentError(
            op, "block_table", f"a page of this cache for entry {bad} of request {request}", "none"
        )
    values, factor = layout.factors(layout.read(k_cache, slots, rows))
    return values.double(), None if factor is None else factor.double()


def scores(q: Tensor, weights: Tensor, k: Tensor, factor: Tensor | None, mxfp4: bool) -> Tensor:
    """factor * sum_h w_h * relu(q_h . k), per token and entry.

    A dot product of e4m3 codes, or of one e2m1 block, is exact in a double; blocks and heads are then added
    in a fixed order, element by element; a factor that is no power of two multiplies the sum, still in f64.
    Shapes: q f64 [T, H, D], weights f32 [T, H], k f64 [n, D], factor f64 [n] or None -> f32 [T, n].
    """
    tokens, heads, dim = q.shape
    flat = q.reshape(tokens * heads, dim)
    step = MXFP4_BLOCK if mxfp4 else dim
    dots = flat[:, :step] @ k[:, :step].T
    for start in range(step, dim, step):
        dots += flat[:, start : start + step] @ k[:, start : start + step].T
    terms = dots.relu_().view(tokens, heads, -1) * weights.double().unsqueeze(-1)
    while terms.shape[1] > 1:
        half = terms.shape[1] // 2
        head = terms[:, :half] + terms[:, half : 2 * half]
        terms = torch.cat((head, terms[:, 2 * half :]), dim=1) if terms.shape[1] % 2 else head
    return (terms[:, 0] if factor is None else terms[:, 0] * factor).float()


def tokens_by_request(token_to_req: Tensor, context_lens: Tensor) -> list[tuple[int, Tensor, int]]:
    """(request, its token rows with entries to score, their longest context), host side."""
    live = (context_lens > 0).nonzero().squeeze(1)
    groups: list[tuple[int, Tensor, int]] = []
    for request in sorted(set(ints(token_to_req[live]))):
        rows = live[token_to_req[live] == request]
        groups.append((request, rows, int(context_lens[rows].max())))
    return groups
