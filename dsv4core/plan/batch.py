"""The plan of one step: where every token reads and writes, built once and shared by all layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4core.config import AttentionConfig


@dataclass(frozen=True, eq=False)
class PrefillChunk:
    """A few prefill requests that share one gathered workspace.

    Requests `request_start:request_end` and token rows `token_start:token_end` count in the plan's own order.
    `N[ratio]` is the widest compressed part of the chunk (0 for ratio 0), `M[ratio]` the row stride of the
    workspace: N plus the widest window part. `entry_lens[ratio]` says how many entries to gather per request.

    Shapes: gather_lens, seq_lens, entry_lens[ratio] i32 [n]; query_start_loc i32 [n + 1], a slice of the
    plan's and therefore starting above 0 in general.
    """

    request_start: int
    request_end: int
    token_start: int
    token_end: int
    gather_lens: Tensor
    seq_lens: Tensor
    query_start_loc: Tensor
    entry_lens: Mapping[int, Tensor]
    N: Mapping[int, int]
    M: Mapping[int, int]

    @property
    def num_requests(self) -> int:
        """Requests in the chunk."""
        return self.request_end - self.request_start

    @property
    def num_tokens(self) -> int:
        """New tokens in the chunk."""
        return self.token_end - self.token_start


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """Everything a step knows about *where*: positions, slots, tables, lengths, and the decode/prefill split.

    Rows are ordered decodes first, then prefills, then padding; a request counts as decode when it brings at
    most `config.decode_threshold` tokens. The caller's rows follow its own order of requests, padding last:
    take `hidden[permutation]` on the way in and `out[inverse]` on the way back (both are None when nothing
    moves). Decode rows are `0:num_decode_tokens`; in a step without prefill that includes the padding rows.
    Prefill rows are the `num_prefill_tokens` behind them. The last `num_padding` rows are padding in either
    case.

    Shapes, with T = `num_tokens` (padding included) and R = `num_requests`: positions i64 [T], 0 in padding;
    token_to_req i32 [T], 0 in padding; query_start_loc i32 [R + 1]; seq_lens i32 [R], this step included;
    is_valid bool [T], False where the window slot is negative; tables[group] i32 [R, W], -1 where no page is
    mapped (one row of -1 when R is 0); slots[group] i64 [T]: the token's own row for `swa` and the states,
    the row of the entry it completes for `c4`, `indexer` and `c128`, -1 for nothing; swa_slots i32 [T,
    window], the last `window` positions oldest first and -1 behind; swa_lens i32 [T]; context_lens[ratio] i32
    [T]: entries visible, (p + 1) // ratio, 0 where is_valid is False; c128_slots i32 [num_decode_tokens, Wc]:
    slots of entries 0..n-1, -1 behind; c128_lens i32 [T]. Both are None without ratio-128 layers; Wc is a
    multiple of 64 that holds every entry of the step. Prefill rows have no such list: each would be as long
    as its request, and they read gathered entries.
    """

    num_tokens: int
    num_decode_tokens: int
    num_prefill_tokens: int
    num_padding: int
    num_decodes: int
    num_requests: int
    max_position: int
    request_order: tuple[int, ...]
    rows: Mapping[str, int]
    permutation: Tensor | None
    inverse: Tensor | None
    positions: Tensor
    token_to_req: Tensor
    query_start_loc: Tensor
    seq_lens: Tensor
    is_valid: Tensor
    tables: Mapping[str, Tensor]
    slots: Mapping[str, Tensor]
    swa_slots: Tensor
    swa_lens: Tensor
    context_lens: Mapping[int, Tensor]
    max_context_lens: Mapping[int, int]
    c128_slots: Tensor | None
    c128_lens: Tensor | None
    prefill_chunks: tuple[PrefillChunk, ...]

    @property
    def num_prefills(self) -> int:
        """Requests whose rows are prefill rows."""
        return self.num_requests - self.num_decodes

    @property
    def device(self) -> torch.device:
        """The device all tensors of the plan lie on."""
        return self.positions.device

    @staticmethod
    def build(
        config: AttentionConfig,
        *,
        query_lens: Sequence[int],
        seq_lens: Sequence[int],
        tables: Mapping[str, Tensor],
        rows: Mapping[str, int] | None = None,
        pad_to: int | None = None,
        device: torch.device | str | None = None,
    ) -> BatchPlan:
        """Build the plan of a step from page tables, those of `PagedCache` or an engine's own.

        `query_lens` and `seq_lens` hold, per request in the caller's order, the new tokens and the tokens
        including them. `tables` needs `swa` and, for every compress ratio the step's layers have, all groups
        of that ratio (`groups_of_ratio`); an entry of -1 maps nothing and is never followed, so a decode
        token whose window page is -1 is treated like padding. A prefill request needs all of its entries'
        pages and those of the window rows that it gathers: an op raises for a hole among them. `rows`
        replaces the rows per page of groups whose pages differ from the rules. `pad_to` appends padding rows
        up to that many tokens, at most 2^22. A table that is already in the plan's order and on `device` is
        kept, not copied. `device` defaults to the device of the tables.

        Shapes: tables[group] i32 [R, W] with W pages covering the longest request.
        Errors: `CacheError` naming the argument, `BackendError` for a device that is not there; nothing is
        changed by building a plan.
        """
        from dsv4core.plan.build import build_plan

        return build_plan(
            config,
            query_lens=query_lens,
            seq_lens=seq_lens,
            tables=tables,
            rows=rows,
            pad_to=pad_to,
            device=device,
        )
