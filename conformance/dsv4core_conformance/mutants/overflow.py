"""Offsets in 32 bits (rows G1-G10): they wrap, and what they pointed to is lost or somebody else's."""

from __future__ import annotations

from dsv4core_conformance.mutants.engine import Edit, Mutant

_WRITE = "dsv4core.layout.base:CacheLayout.write"

MUTANTS = (
    Mutant(
        "page_offset_wraps_in_scores",
        ("G1", "G3", "G2"),
        "bigoff",
        "op/indexer_logits/bigoff/pages_around_4_gib_dense",
        "page * stride is an int32: index keys behind 2^31 bytes are zeros, and so are their scores",
        (
            Edit(
                "dsv4core.ops._scores:entry_values",
                "    values, factor = layout.factors(layout.read(k_cache, slots, rows))\n",
                "    record = layout.read(k_cache, slots, rows)\n"
                "    record[(slots // rows * k_cache.stride(0)).to(torch.int32) < 0] = 0\n"
                "    values, factor = layout.factors(record)\n",
            ),
        ),
    ),
    Mutant(
        "page_offset_wraps_in_writers",
        ("G6", "G4", "G5"),
        "bigoff",
        "op/quantize_and_insert_k_cache/bigoff/pages_around_4_gib_dense",
        "page * stride is an int32: stores behind 2^31 bytes are dropped",
        (
            Edit(
                _WRITE,
                "        paging.write(",
                "        near = (slots // rows * pages.stride(0)).to(torch.int32) >= 0\n"
                "        slots, record = slots[near], record[near]\n"
                "        paging.write(",
            ),
        ),
    ),
    Mutant(
        "page_offset_modulo_2_to_32",
        ("G1", "G7"),
        "bigoff",
        "op/sparse_decode/bigoff/pages_around_4_gib",
        "page * stride is an uint32: pages behind 2^32 bytes are those at the start",
        (
            Edit(
                "dsv4core.ops.sparse_decode:_load",
                "    layout.load(",
                "    place = slots // rows * cache.stride(0) & 0xFFFFFFFF\n"
                "    slots = place // max(cache.stride(0), 1) * rows + slots % rows\n"
                "    layout.load(",
            ),
        ),
    ),
    Mutant(
        "state_offset_wraps",
        ("G6", "G4"),
        "bigoff",
        "op/save_partial_states/bigoff/pages_around_8_gib",
        "state rows behind 2^31 elements are never written",
        (
            Edit(
                "dsv4core.ops.save_partial_states:save_partial_states",
                "    live, slots = live_rows(slot_mapping)\n",
                "    live, slots = live_rows(slot_mapping)\n"
                "    near = slots // state_cache.shape[1] * state_cache.stride(0) < 2**31\n"
                "    live, slots = live[near], slots[near]\n",
            ),
        ),
    ),
    Mutant(
        "product_of_16_bits_of_rows",
        ("E14",),
        "shapes",
        "op/linear/shapes/tokens/65537",
        "rows of a product are counted in 16 bits: those behind 65,536 stay zero",
        (
            Edit(
                "dsv4core.ops.linear:linear",
                "    return row_invariant_linear(x.to(work), dense).to(out_dtype)\n",
                "    result = row_invariant_linear(x.to(work), dense).to(out_dtype)\n"
                "    result[65536:] = 0\n"
                "    return result\n",
            ),
        ),
    ),
    Mutant(
        "workspace_offset_wraps",
        ("G10",),
        "bigoff",
        "op/sparse_prefill/bigoff/rows_past_2_32_elements",
        "row * stride is an int32: rows of the workspace behind 2^31 elements are dropped",
        (
            Edit(
                "dsv4core.ops.sparse_prefill:sparse_prefill",
                "        attend(q[t], keys[: len(rows)],",
                "        attend(q[t], keys[: len(rows)][rows * kv.stride(0) < 2**31],",
            ),
        ),
    ),
)
