"""Building a plan: host lists in, one set of small tensors out, no loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from dsv4core.config import AttentionConfig
from dsv4core.errors import CacheError
from dsv4core.ops.compressed_slot_mapping import compressed_slot_mapping
from dsv4core.plan.batch import BatchPlan, PrefillChunk
from dsv4core.plan.check import MAX_PADDED, check_lengths, check_tables, whole_number
from dsv4core.plan.groups import GROUPS, RATIOS, SWA
from dsv4core.runtime import usable
from dsv4core.slots import MOST, table_slots

C128_WIDTH_STEP = 64
"""Index lists of ratio 128 are as wide as a multiple of this; decode kernels read whole blocks of 64."""


@dataclass(frozen=True)
class _Order:
    """The requests of a step in plan order (decodes first), as host ints."""

    requests: tuple[int, ...]
    decodes: int
    queries: list[int]
    lengths: list[int]
    starts: list[int]
    moved: bool


@torch.inference_mode(False)  # who shares what is made of a plan counts writes to its tensors
def build_plan(
    config: AttentionConfig,
    *,
    query_lens: Sequence[int],
    seq_lens: Sequence[int],
    tables: Mapping[str, Tensor],
    rows: Mapping[str, int] | None,
    pad_to: int | None,
    device: torch.device | str | None,
) -> BatchPlan:
    """Build a `BatchPlan`; the arguments are those of `BatchPlan.build`."""
    queries, lengths = check_lengths(config, query_lens, seq_lens)
    sizes = check_tables(tables, rows, lengths)
    tokens = sum(queries)
    total = tokens if pad_to is None else whole_number(pad_to, "pad_to", 0, max(tokens, MAX_PADDED))
    if total < tokens:
        raise CacheError(
            f"pad_to={pad_to} but the step has {tokens} tokens: pad_to is at least that, or None"
        )
    order = _decodes_first(config, queries, lengths)
    host = torch.device("cpu")
    home = tables[SWA].device
    target = home if device is None or device == home else usable(device)

    def send(tensor: Tensor, to: torch.device) -> Tensor:
        return tensor.to(to, non_blocking=tensor.device == host)

    # Row arithmetic happens on the host, look-ups where the tables are, and the result goes to the target.
    counts, starts, seq = (
        torch.tensor(ints, dtype=torch.int64, device=host)
        for ints in (order.queries, order.starts, order.lengths)
    )
    req = torch.zeros(total, dtype=torch.int64, device=host)
    requests = torch.arange(len(queries), device=host)
    req[:tokens] = torch.repeat_interleave(requests, counts, output_size=tokens)
    row = torch.arange(total, device=host)
    positions = torch.zeros_like(req)
    positions[:tokens] = row[:tokens] + (seq - counts - starts[:-1])[req[:tokens]]
    permutation = inverse = None
    carrying = [i for i in order.requests if queries[i]]
    if carrying != sorted(carrying):
        caller = list(accumulate(queries, initial=0))
        shift = torch.tensor([caller[i] for i in order.requests], device=host) - starts[:-1]
        permutation = row.clone()
        permutation[:tokens] += shift[req[:tokens]]
        inverse = torch.empty_like(row)
        inverse[permutation] = row

    ordered = _ordered_tables(tables, order)
    req_home, positions_home, live = send(req, home), send(positions, home), send(row < tokens, home)
    slots = {SWA: _row_slots(ordered[SWA], req_home, positions_home, sizes[SWA], live)}
    valid = slots[SWA] >= 0
    for name in tables:
        group = GROUPS[name]
        if group.tokens_per_row == 1:
            if name != SWA:
                slots[name] = _row_slots(ordered[name], req_home, positions_home, sizes[name], live)
        else:
            slots[name] = compressed_slot_mapping(
                positions_home,
                slots[SWA],
                req_home,
                ordered[name],
                ratio=group.tokens_per_row,
                rows=sizes[name],
            )
    swa_slots, swa_lens = _window(
        ordered[SWA], req_home, positions_home, valid, sizes[SWA], config.sliding_window
    )
    ratios = [r for r in RATIOS if f"c{r}" in tables]
    visible = {r: torch.where(valid, (positions_home + 1) // r, 0).to(torch.int32) for r in ratios}
    longest = max((length for n, length in zip(order.queries, order.lengths, strict=True) if n), default=0)
    decode_tokens = total if order.decodes == len(queries) else order.starts[order.decodes]
    c128: Tensor | None = None
    if "c128" in tables:
        width = -(-max(longest // 128, 1) // C128_WIDTH_STEP) * C128_WIDTH_STEP
        some = slice(0, decode_tokens)
        c128 = _all_entries(ordered["c128"], req_home[some], visible[128][some], sizes["c128"], width)

    seq32, starts32 = send(seq.to(torch.int32), target), send(starts.to(torch.int32), target)
    prefix = (seq - counts).clamp_(max=config.sliding_window - 1)
    gather = send((counts + prefix).to(torch.int32), target)
    entries = {r: send((seq // r).to(torch.int32), target) for r in ratios}
    visible = {r: send(lens, target) for r, lens in visible.items()}
    return BatchPlan(
        num_tokens=total,
        num_decode_tokens=decode_tokens,
        num_prefill_tokens=tokens - order.starts[order.decodes],
        num_padding=total - tokens,
        num_decodes=order.decodes,
        num_requests=len(queries),
        max_position=max(longest - 1, 0),
        request_order=order.requests,
        rows=sizes,
        permutation=None if permutation is None else send(permutation, target),
        inverse=None if inverse is None else send(inverse, target),
        positions=send(positions, target),
        token_to_req=send(req.to(torch.int32), target),
        query_start_loc=starts32,
        seq_lens=seq32,
        is_valid=send(valid, target),
        tables={name: send(table, target) for name, table in ordered.items()},
        slots={name: send(slots[name], target) for name in GROUPS if name in slots},
        swa_slots=send(swa_slots, target),
        swa_lens=send(swa_lens, target),
        context_lens=visible,
        max_context_lens={r: longest // r for r in ratios},
        c128_slots=None if c128 is None else send(c128, target),
        c128_lens=None if c128 is None else visible[128],
        prefill_chunks=_chunks(config, order, gather, seq32, starts32, entries),
    )


def _decodes_first(config: AttentionConfig, queries: list[int], lengths: list[int]) -> _Order:
    decodes = [i for i, n in enumerate(queries) if n <= config.decode_threshold]
    prefills = [i for i, n in enumerate(queries) if n > config.decode_threshold]
    requests = (*decodes, *prefills)
    ordered = [queries[i] for i in requests]
    return _Order(
        requests=requests,
        decodes=len(decodes),
        queries=ordered,
        lengths=[lengths[i] for i in requests],
        starts=list(accumulate(ordered, initial=0)),
        moved=requests != tuple(range(len(queries))),
    )


def _ordered_tables(tables: Mapping[str, Tensor], order: _Order) -> dict[str, Tensor]:
    """Tables with their rows in plan order, and never without a row or column to look at."""
    result: dict[str, Tensor] = {}
    index = (
        torch.tensor(order.requests, dtype=torch.int64, device=tables[SWA].device) if order.moved else None
    )
    for name in GROUPS:
        if name in tables:
            table = tables[name]
            if table.numel() == 0:
                table = table.new_full((max(table.shape[0], 1), max(table.shape[1], 1)), -1)
            result[name] = table if index is None else table.index_select(0, index)
    return result


def _row_slots(table: Tensor, req: Tensor, index: Tensor, rows: int, live: Tensor) -> Tensor:
    """Slots of logical rows `index` (any shape broadcasting with `req`); -1 where not live or not mapped."""
    return table_slots(table, req, torch.where(live, index, -1), rows)


def _window(
    table: Tensor, req: Tensor, positions: Tensor, valid: Tensor, rows: int, window: int
) -> tuple[Tensor, Tensor]:
    """Slots of the last `window` positions up to each token, oldest first, and how many there are."""
    lens = torch.where(valid, (positions + 1).clamp(max=window), 0)
    first = (positions + 1 - lens)[:, None]
    column = torch.arange(window, device=positions.device)[None, :]
    slots = _row_slots(table, req[:, None], first + column, rows, column < lens[:, None])
    return _narrow(slots), lens.to(torch.int32)


def _all_entries(table: Tensor, req: Tensor, lens: Tensor, rows: int, width: int) -> Tensor:
    """Slots of entries 0 .. lens-1 of each token's request, -1 behind."""
    column = torch.arange(width, device=req.device)[None, :]
    return _narrow(_row_slots(table, req[:, None], column, rows, column < lens[:, None]))


def _narrow(slots: Tensor) -> Tensor:
    """Slots of a list; one that is no i32 becomes the last, behind every page, and not some other page's."""
    return slots.clamp(max=MOST).to(torch.int32)


def _chunks(
    config: AttentionConfig,
    order: _Order,
    gather_lens: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    entry_lens: Mapping[int, Tensor],
) -> tuple[PrefillChunk, ...]:
    chunks: list[PrefillChunk] = []
    for start in range(order.decodes, len(order.requests), config.prefill_chunk_requests):
        end = min(start + config.prefill_chunk_requests, len(order.requests))
        pairs = list(zip(order.queries[start:end], order.lengths[start:end], strict=True))
        window = max(n + min(length - n, config.sliding_window - 1) for n, length in pairs)
        widest = {0: 0, **{r: max(length // r for _, length in pairs) for r in entry_lens}}
        chunks.append(
            PrefillChunk(
                request_start=start,
                request_end=end,
                token_start=order.starts[start],
                token_end=order.starts[end],
                gather_lens=gather_lens[start:end],
                seq_lens=seq_lens[start:end],
                query_start_loc=query_start_loc[start : end + 1],
                entry_lens={r: lens[start:end] for r, lens in entry_lens.items()},
                N=widest,
                M={r: n + window for r, n in widest.items()},
            )
        )
    return tuple(chunks)
