"""Windows, states and what a token may see of them (rows E1-E16, I1)."""

from __future__ import annotations

from dsv4core_conformance.mutants.engine import Edit, Mutant

_COMPRESS = "dsv4core.ops.compress_norm_rope_store:compress_norm_rope_store"
_SLOTS = "dsv4core.ops.compress_norm_rope_store:_state_slots"
_ENTRY = "dsv4core.ops.compress_norm_rope_store:_entry"
_LAYER = "dsv4core.compressor:Compressor.__call__"

MUTANTS = (
    Mutant(
        "rows_before_the_start_count",
        ("E1", "E10"),
        "bytes",
        "layout/index_fp8/compress4/page_rows_2",
        "the first window takes rows before position 0 for copies of row 0",
        (
            Edit(
                _SLOTS,
                "torch.arange(1 - window, 1, device=last.device)\n",
                "torch.arange(1 - window, 1, device=last.device)\n    index = index.clamp(min=0)\n",
            ),
        ),
    ),
    Mutant(
        "overlap_lost_in_single_steps",
        ("E2", "E3"),
        "predec",
        "layer/csa/predec/draft_layer",
        "a step that closes one window does not see the window before it",
        (
            Edit(
                _ENTRY,
                "    parts: list[Tensor] = []\n",
                "    parts: list[Tensor] = []\n"
                "    if slots.shape[0] == 1 and slots.shape[1] > ratio:\n"
                "        valid[:, :ratio] = False\n",
            ),
        ),
    ),
    Mutant(
        "overlap_lost_between_chunks",
        ("E15", "D6"),
        "chunk",
        "op/compress_norm_rope_store/chunk/9",
        "the older half of a window is dropped where it was written by an earlier step",
        (
            Edit(
                _COMPRESS,
                "    for part in blocks(tokens.shape[0],",
                "    if tokens.shape[0] and ratio == 4:\n"
                "        old = p[tokens].unsqueeze(1) + torch.arange(1 - window, 1 - ratio)\n"
                "        states[:, :ratio][old < p.min()] = -1\n"
                "    for part in blocks(tokens.shape[0],",
            ),
        ),
    ),
    Mutant(
        "four_draft_rows_kept",
        ("E4",),
        "spec",
        "layer/hca/spec/running",
        "a verify step keeps the states of its first four tokens only",
        (
            Edit(
                _LAYER,
                "        ops.save_partial_states(kv, score, self.ape, plan.positions, state, slots, "
                "ratio=self.ratio)\n",
                "        start = plan.query_start_loc[:-1][plan.token_to_req] if plan.num_requests else 0\n"
                "        count = plan.query_start_loc.diff()[plan.token_to_req] if plan.num_requests "
                "else 99\n"
                "        late = (torch.arange(plan.num_tokens) - start >= 4) & (count <= 16)\n"
                "        kept = torch.where(late, -1, slots)\n"
                "        ops.save_partial_states(kv, score, self.ape, plan.positions, state, kept, "
                "ratio=self.ratio)\n",
            ),
        ),
    ),
    Mutant(
        "draft_states_survive",
        ("J2",),
        "spec",
        "layer/hca/spec/plans_are_their_own",
        "a state row that holds something is not written again: rejected drafts stay",
        (
            Edit(
                "dsv4core.ops.save_partial_states:save_partial_states",
                "    page, row = slots // rows, slots % rows\n",
                "    fresh = state_cache[slots // rows, slots % rows, 0] == 0\n"
                "    live, slots = live[fresh], slots[fresh]\n"
                "    page, row = slots // rows, slots % rows\n",
            ),
        ),
    ),
    Mutant(
        "entries_visible_by_batch_length",
        ("E6",),
        "predec",
        "layer/csa/predec/draft_layer",
        "every token of a step sees the entries that the last one completes",
        (
            Edit(
                "dsv4core.plan.build:build_plan",
                "torch.where(valid, (positions_home + 1) // r, 0)",
                "torch.where(valid, (send(seq[req], home) if len(seq) else positions_home) // r, 0)",
            ),
        ),
    ),
    Mutant(
        "indexer_sees_the_future",
        ("E9",),
        "predec",
        "layer/csa/predec/draft_layer",
        "scores of entries behind a token's position are candidates",
        (
            Edit(
                "dsv4core.ops.sparse_indexer:_running",
                "torch.where(column < lens.unsqueeze(1), column, -1)",
                "torch.where(column < lens.max(), column, -1).expand(lens.shape[0], -1)",
            ),
        ),
    ),
    Mutant(
        "entries_capped_by_top_k",
        ("E7",),
        "predec",
        "layer/hca/predec/past_top_k",
        "decode of a ratio-128 layer reads no more entries than the indexer may choose",
        (
            Edit(
                "dsv4core.ops_attention:OpsAttention.entries",
                "plan.c128_slots[rows], plan.c128_lens[rows]",
                "plan.c128_slots[rows], plan.c128_lens[rows].clamp(max=self.config.index_topk)",
            ),
        ),
    ),
    Mutant(
        "suffix_prefill_without_history",
        ("E8",),
        "chunk",
        "layer/swa/chunk/by_256",
        "positions of a later chunk begin at 0 again",
        (
            Edit(
                "dsv4core.ops.combine_topk_swa_indices:combine_topk_swa_indices",
                "p = seq - (start[b + 1] - start[b]) + token - start[b]",
                "p = torch.minimum(token - start[b], seq)",
            ),
        ),
    ),
    Mutant(
        "state_row_is_the_batch_row",
        ("E12",),
        "batch",
        "layer/csa/batch/alone",
        "states belong to a row of the batch, not to a request",
        (
            Edit(
                "dsv4core.cache.ledger:Ledger.tables",
                "        return {name: group.preview(step.groups[name], order) for name, group in "
                "self.groups.items()}",
                "        found = {n: group.preview(step.groups[n], order) "
                "for n, group in self.groups.items()}\n"
                "        for name, group in self.groups.items():\n"
                "            for i, seat in enumerate(order if name[0] == 's' and group.rows < 9 else ()):\n"
                "                old = group.table[i, : found[name].shape[1] if i != seat else 0]\n"
                "                found[name][i, : len(old)] = old\n"
                "        return found",
            ),
            Edit(_SLOTS, "    if bool(holes.any()):", "    if bool(holes.any()) and window < 0:"),
        ),
    ),
    Mutant(
        "compressed_before_states_are_saved",
        ("I1", "I2"),
        "race",
        "layer/hca/race/repeats",
        "windows are closed before this step's states are in memory",
        (
            Edit(
                _LAYER,
                "        ops.save_partial_states(kv, score, self.ape, plan.positions, state, slots, "
                "ratio=self.ratio)\n",
                "",
            ),
            Edit(
                _LAYER,
                "layout=self.layout, eps=self.eps, rotate=self.rotate,\n        )",
                "layout=self.layout, eps=self.eps, rotate=self.rotate,\n        )\n"
                "        ops.save_partial_states(kv, score, self.ape, plan.positions, state, slots, "
                "ratio=self.ratio)",
            ),
        ),
    ),
)
