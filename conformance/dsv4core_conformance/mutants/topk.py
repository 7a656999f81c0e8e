"""Scores, lists and repeatability (rows L1-L10, D8, D9, I8)."""

from __future__ import annotations

from dsv4core_conformance.mutants.engine import Edit, Mutant

_SELECT = "dsv4core.ops._select:select"
_KEEP = "tied.cumsum(dim=1) <= room"

MUTANTS = (
    Mutant(
        "ties_to_the_higher_index",
        ("L4",),
        "topk",
        "op/indexer_topk/topk/equal/64",
        "equal scores are taken from the right",
        (Edit(_SELECT, _KEEP, "tied.flip(1).cumsum(dim=1).flip(1) <= room"),),
    ),
    Mutant(
        "tie_flood_leaves_holes",
        ("D9",),
        "topk",
        "op/indexer_topk/topk/equal/64",
        "of many equal scores only the first eight are written: the list has fewer than k entries",
        (Edit(_SELECT, _KEEP, "tied.cumsum(dim=1) <= room.clamp(max=8)"),),
    ),
    Mutant(
        "near_ties_are_ties",
        ("L8", "L7"),
        "topk",
        "op/indexer_topk/topk/near/64",
        "scores are compared in their upper 22 bits",
        (
            Edit(
                _SELECT,
                "    keep = valid\n",
                "    key = (key.view(torch.int32) & ~1023).view(torch.float32)\n    keep = valid\n",
            ),
        ),
    ),
    Mutant(
        "lanes_left_unwritten",
        ("D8",),
        "topk",
        "op/indexer_topk/topk/behind/-inf",
        "lanes behind the last choice hold what stood there before, here zeros",
        (Edit(_SELECT, "_scatter(place, indices, k, -1)", "_scatter(place, indices, k, 0)"),),
    ),
    Mutant(
        "many_tokens_lose_a_late_entry",
        ("L1", "L2"),
        "shapes",
        "op/sparse_indexer/shapes/tokens_by_context",
        "the path of many tokens with long contexts leaves out the last entry that a token sees",
        (
            Edit(
                "dsv4core.ops.sparse_indexer:_running",
                "torch.where(column < lens.unsqueeze(1), column, -1)",
                "torch.where(column < lens.unsqueeze(1) - int(len(lens) > 32 <= k), column, -1)",
            ),
        ),
    ),
    Mutant(
        "list_in_order_of_score",
        ("L6", "L4"),
        "topk",
        "op/indexer_topk/topk/ascending/63",
        "the list is sorted by score, not by index",
        (
            Edit(
                _SELECT,
                "    values = _scatter(place, key, k, -torch.inf)\n",
                "    values = _scatter(place, key, k, -torch.inf)\n"
                "    chosen = chosen.gather(1, values.argsort(dim=1, descending=True, stable=True))\n",
            ),
        ),
    ),
    Mutant(
        "rows_behind_64_use_other_lengths",
        ("L2",),
        "topk",
        "op/indexer_topk/topk/rows/65",
        "rows are handled 64 at a time, all with the lengths of the first 64",
        (
            Edit(
                "dsv4core.ops.indexer_topk:indexer_topk",
                "blocks(tokens, CELLS // max(width, 1))",
                "blocks(tokens, 64)",
            ),
            Edit(
                "dsv4core.ops.indexer_topk:indexer_topk",
                "context_lens[part].unsqueeze(1)",
                "context_lens[: part.stop - part.start].unsqueeze(1)",
            ),
        ),
    ),
    Mutant(
        "at_most_512_chosen",
        ("L9", "J3"),
        "topk",
        "op/indexer_topk/topk/long/16384",
        "top-k 1024 runs through the kernel for 512",
        (
            Edit(
                "dsv4core.ops.indexer_topk:indexer_topk",
                "out[part] = select(logits[part], indices, k)[0]",
                "out[part, :512] = select(logits[part], indices, min(k, 512))[0]",
            ),
        ),
    ),
    Mutant(
        "list_restarts_with_every_chunk",
        ("L3",),
        "topk",
        "op/sparse_indexer/topk/workspace/index_fp8",
        "every chunk of entries starts a list of its own; the last one wins",
        (
            Edit(
                "dsv4core.ops.sparse_indexer:_running",
                "select(torch.cat((best_scores, block), 1), torch.cat((best, column), 1), k)",
                "select(block, column, k)",
            ),
        ),
    ),
    Mutant(
        "index_scale_missing",
        ("L1",),
        "cross",
        "layout/index_fp8/indexer_logits/reads_the_compressor",
        "index scores take the codes of the keys without their scale",
        (
            Edit(
                "dsv4core.layout.index_fp8:IndexFp8._decode",
                " * self._scale(record[..., WIDTH:])",
                "",
            ),
        ),
    ),
    Mutant(
        "scores_accumulated_in_half",
        ("L7", "L1"),
        "heads",
        "op/indexer_logits/heads/8",
        "head scores are rounded to bf16 before they are added",
        (
            Edit(
                "dsv4core.ops._scores:scores",
                "    terms = dots.relu_()",
                "    terms = dots.bfloat16().double().relu_()",
            ),
        ),
    ),
    Mutant(
        "head_weights_not_used",
        ("L1",),
        "heads",
        "op/indexer_logits/heads/11",
        "all heads of the indexer weigh the same",
        (
            Edit(
                "dsv4core.ops._scores:scores",
                "* weights.double().unsqueeze(-1)",
                "* weights.double().mean(1, keepdim=True).unsqueeze(-1)",
            ),
        ),
    ),
    Mutant(
        "another_kernel_for_many_rows",
        ("L6", "L5"),
        "batch",
        "op/linear/batch/to_f32",
        "steps of more than eight rows go through a matmul with another order of sums",
        (
            Edit(
                "dsv4core.ops._matmul:row_invariant_linear",
                "    return out[:tokens]",
                "    if tokens > 8:\n"
                "        half = x.shape[1] // 2\n"
                "        low, high = x[:, :half].float(), x[:, half:].float()\n"
                "        w = weight.float()\n"
                "        return (F.linear(low, w[:, :half]) + F.linear(high, w[:, half:])).to(x.dtype)\n"
                "    return out[:tokens]",
            ),
        ),
    ),
    Mutant(
        "keys_added_in_random_order",
        ("I8", "L5"),
        "det",
        "op/sparse_decode/det/repeat",
        "sums of partial results in the order in which they arrive",
        (
            Edit(
                "dsv4core.ops.sparse_decode:sparse_decode",
                "torch.cat(keys).float()",
                "torch.cat(keys)[torch.randperm(sum(map(len, keys)))].float()",
            ),
        ),
    ),
)
