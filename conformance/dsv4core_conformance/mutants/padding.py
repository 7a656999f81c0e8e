"""Lanes, slots and rows that mean nothing and are used all the same (rows D1-D13, N7)."""

from __future__ import annotations

from dsv4core_conformance.mutants.engine import Edit, Mutant

_DECODE = "dsv4core.ops.sparse_decode:sparse_decode"
_PREFILL = "dsv4core.ops.sparse_prefill:sparse_prefill"
_COMBINE = "dsv4core.ops.combine_topk_swa_indices:combine_topk_swa_indices"

MUTANTS = (
    Mutant(
        "prefill_lanes_behind_the_length",
        ("D1",),
        "poison",
        "op/sparse_prefill/poison/lanes/1",
        "prefill attends to whatever stands behind the length of a list",
        (Edit(_PREFILL, "listed(indices, lens,", "listed(indices, lens * 0 + indices.shape[1],"),),
    ),
    Mutant(
        "decode_lanes_behind_the_length",
        ("D1",),
        "poison",
        "op/sparse_decode/poison/lanes/1",
        "decode attends to whatever stands behind the length of a list",
        (
            Edit(_DECODE, "_slots, swa_lens,", "_slots, swa_lens * 0 + swa_slots.shape[1],"),
            Edit(_DECODE, "_slots, extra_lens,", "_slots, extra_lens * 0 + extra_slots.shape[1],"),
        ),
    ),
    Mutant(
        "slot_0_for_no_slot",
        ("D2", "D12"),
        "poison",
        "op/sparse_decode/poison/fp8_row/inf32",
        "a slot of -1 gathers slot 0 and counts",
        (
            Edit(_DECODE, "listed(swa_slots,", "listed(swa_slots.clamp(min=0),"),
            Edit(_DECODE, "listed(extra_slots,", "listed(extra_slots.clamp(min=0),"),
        ),
    ),
    Mutant(
        "masked_lane_multiplied_by_zero",
        ("D2",),
        "poison",
        "op/sparse_prefill/poison/lanes/1",
        "lanes that are masked are read and weighted with 0: a NaN there comes through",
        (
            Edit(
                _PREFILL,
                "        attend(q[t], keys[: len(rows)],",
                "        unused = kv[indices[t, lens[t] :].clamp(0, kv.shape[0] - 1).long()] if "
                "len(kv) else kv\n"
                "        attend(q[t], keys[: len(rows)] + (unused * 0).sum(0, keepdim=True),",
            ),
        ),
    ),
    Mutant(
        "length_0_taken_for_1",
        ("D12", "D3"),
        "empty",
        "op/sparse_decode/empty/holes_all/distinct",
        "a row without keys attends to slot 0, because the kernel wants at least one",
        (
            Edit(
                _DECODE,
                "    lse = attn_sink",
                "    lists = [[s if len(s) or not len(c) else s.new_zeros(1) for s in some] "
                "for some, (_, c, _) in zip(lists, sources)]\n"
                "    lse = attn_sink",
            ),
        ),
    ),
    Mutant(
        "empty_row_is_nan",
        ("D5", "D10"),
        "empty",
        "op/sparse_decode/empty/rows_leading/zero",
        "a row without keys is 0 / 0",
        (
            Edit(
                _DECODE,
                "attn_sink, scale, out[t], lse[t])\n",
                "attn_sink, scale, out[t], lse[t])\n            out[t][lse[t] == torch.inf] = torch.nan\n",
            ),
        ),
    ),
    Mutant(
        "list_valid_where_not_negative",
        ("D7", "D8"),
        "poison",
        "op/combine_topk_swa_indices/poison/lists",
        "the chosen entries of a query are all that are not negative, however many it can have",
        (
            Edit(
                _COMBINE,
                "    first = (p - window + 1).clamp(min=0)\n",
                "    entries = (topk[:, :top_k] >= 0).sum(1)\n    first = (p - window + 1).clamp(min=0)\n",
            ),
        ),
    ),
    Mutant(
        "list_width_of_64",
        ("D13", "J3"),
        "shapes",
        "op/combine_topk_swa_indices/shapes/5_1",
        "lists are as wide as a multiple of 64, kernels walk in steps of 128",
        (
            Edit(
                "dsv4core.ops.combine_topk_swa_indices:_width",
                "-(-(top_k + window) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE",
                "-(-(top_k + window) // 64) * 64",
            ),
        ),
    ),
    Mutant(
        "negative_slots_other_than_minus_1",
        ("D3", "D4"),
        "bytes",
        "layout/fp8_ds_mla/insert/slots_negative",
        "only -1 means that a row is skipped: -2 is written to slot 0",
        (
            Edit("dsv4core.ops._rows:live_rows", "(slots >= 0).nonzero()", "(slots != -1).nonzero()"),
            Edit("dsv4core.ops._rows:live_rows", "slots[rows].long()", "slots[rows].long().clamp(min=0)"),
        ),
    ),
    Mutant(
        "unmapped_page_becomes_page_0",
        ("D2", "D7"),
        "bytes",
        "op/compressed_slot_mapping/bytes/unmapped_pages",
        "a table entry of -1 is taken for page 0: the entry is written there",
        (
            Edit(
                "dsv4core.ops.compressed_slot_mapping:compressed_slot_mapping",
                "table_slots(block_table, ",
                "table_slots(block_table.clamp(min=0), ",
            ),
        ),
    ),
    Mutant(
        "lists_one_too_long",
        ("D1", "E9"),
        "empty",
        "op/compute_global_topk_indices_and_lens/empty/table",
        "the number of global slots counts one lane that holds none",
        (
            Edit(
                "dsv4core.ops.compute_global_topk_indices_and_lens:compute_global_topk_indices_and_lens",
                "found.sum(dim=1, dtype=torch.int32)",
                "(found.sum(dim=1, dtype=torch.int32) + 1).clamp(max=topk.shape[1])",
            ),
        ),
    ),
    Mutant(
        "scores_behind_the_context",
        ("N7", "D1"),
        "poison",
        "op/indexer_logits/poison/index_fp8/inf32",
        "scores are stored without a mask up to the end of a block",
        (
            Edit(
                "dsv4core.ops.indexer_logits:indexer_logits",
                "torch.where(visible < context_lens[t].unsqueeze(1), block, -torch.inf)",
                "block",
            ),
        ),
    ),
    Mutant(
        "padding_row_is_live",
        ("D11", "H1"),
        "graph",
        "layer/hca/graph/drafts_in_place",
        "rows that pad a step up to its bucket write like tokens of request 0",
        (
            Edit(
                "dsv4core.plan.build:build_plan",
                "send(row < tokens, home)",
                "send(row < (total if tokens else 0), home)",
            ),
        ),
    ),
)
