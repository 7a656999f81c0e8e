"""Readers and writers that disagree about where a byte is (rows A1-A16, C9)."""

from __future__ import annotations

from dsv4core_conformance.mutants.engine import Edit, Mutant

_ENTRIES = "dsv4core.ops._scores:entry_values"
_READ = "    values, factor = layout.factors(layout.read(k_cache, slots, rows))\n"

MUTANTS = (
    Mutant(
        "index_row_of_132_bytes",
        ("A1", "A2", "A3"),
        "cross",
        "layout/index_fp8/indexer_logits/reads_the_compressor",
        "the reader takes values and scale of a row side by side, the writer keeps all scales behind "
        "all values",
        (
            Edit(
                _ENTRIES,
                _READ,
                "    start = (slots % rows * layout.record_bytes)[:, None] + "
                "torch.arange(layout.record_bytes)\n"
                "    values, factor = layout.factors(k_cache[slots // rows].gather(1, start))\n",
            ),
        ),
    ),
    Mutant(
        "index_rows_in_tiles",
        ("A4",),
        "cross",
        "layout/index_fp8/indexer_logits/reads_the_compressor",
        "rows of a page are read in the order of 16-row tiles, and were written one after the other",
        (
            Edit(
                _ENTRIES,
                _READ,
                "    if rows % 16 == 0:\n"
                "        slots = slots - slots % 16 + slots % 4 * 4 + slots % 16 // 4\n" + _READ,
            ),
        ),
    ),
    Mutant(
        "lengths_taken_for_dense",
        ("A8", "C9"),
        "stride",
        "op/sparse_prefill/stride/every_second",
        "lengths of lists are read one after the other, whatever the stride of their tensor",
        (
            Edit(
                "dsv4core.ops.sparse_prefill:sparse_prefill",
                "listed(indices, lens,",
                "listed(indices, lens.as_strided(lens.shape, (1,)),",
            ),
        ),
    ),
    Mutant(
        "scale_rows_taken_for_dense",
        ("A8", "C9"),
        "stride",
        "op/linear/stride/column_slices",
        "scales of a weight are found by their number in a row, not by the distance of their rows",
        (
            Edit(
                "dsv4core.ops.linear:_dense",
                "dequantise(weight, scales,",
                "dequantise(weight, scales.as_strided(scales.shape, (scales.shape[1], 1)),",
            ),
        ),
    ),
    Mutant(
        "relu_dropped",
        ("A3",),
        "cross",
        "layout/index_fp8/indexer_logits/reads_the_compressor",
        "index scores without the ReLU on every head",
        (Edit("dsv4core.ops._scores:scores", "dots.relu_().view", "dots.view"),),
    ),
    Mutant(
        "fused_insert_order",
        ("A6", "A5"),
        "bytes",
        "layout/fp8_ds_mla_fnuz/insert/page_rows_5",
        "the fused insert writes the rotated channels first, where no shared reader looks for them",
        (
            Edit(
                "dsv4core.ops.fused_qnorm_rope_kv_insert:fused_qnorm_rope_kv_insert",
                "target.encode(row), rows)",
                "target.encode(row.roll(64, -1)), rows)",
            ),
        ),
    ),
    Mutant(
        "page_stride_ignored_by_readers",
        ("A8", "I9"),
        "stride",
        "op/sparse_decode/stride/packed_layer_1",
        "decode computes base + slot * row, although pages lie further apart",
        (
            Edit(
                "dsv4core.ops.sparse_decode:_load",
                "    layout.load(",
                "    cache = cache.as_strided(cache.shape, (cache.shape[1], 1))\n    layout.load(",
            ),
        ),
    ),
    Mutant(
        "page_stride_ignored_by_writers",
        ("A8", "A12"),
        "stride",
        "layout/f32_row/quantize_and_insert_k_cache/packed",
        "writers compute base + slot * row, although pages lie further apart",
        (
            Edit(
                "dsv4core.layout.base:CacheLayout.write",
                "        paging.write(",
                "        pages = pages.as_strided(pages.shape, (pages.shape[1], 1))\n        paging.write(",
            ),
        ),
    ),
    Mutant(
        "storage_offset_ignored",
        ("A7",),
        "stride",
        "op/dequantize_and_gather_k_cache/stride/packed_layer_1",
        "every layer gathers the pages at the start of the shared storage",
        (
            Edit(
                "dsv4core.ops.dequantize_and_gather_k_cache:dequantize_and_gather_k_cache",
                "    # Everything is checked before the first row is written.\n",
                "    k_cache = k_cache.as_strided(k_cache.shape, k_cache.stride(), 0)\n",
            ),
        ),
    ),
    Mutant(
        "scales_of_layer_0",
        ("A7",),
        "stride",
        "op/indexer_logits/stride/packed_layer_1",
        "the view of the scales starts at an absolute offset, so every layer has the scales of the first",
        (
            Edit(
                _ENTRIES,
                _READ,
                "    record, size = layout.read(k_cache, slots, rows), layout.tail_bytes\n"
                "    shape, stride = (k_cache.shape[0], rows, size), (k_cache.stride(0), size, 1)\n"
                "    tails = k_cache.as_strided(shape, stride, rows * layout.row_bytes)\n"
                "    record[:, layout.row_bytes :] = tails[slots // rows, slots % rows]\n"
                "    values, factor = layout.factors(record)\n",
            ),
        ),
    ),
    Mutant(
        "state_stride_ignored",
        ("A8", "A9"),
        "stride",
        "op/save_partial_states/stride/packed_layer_1",
        "state pages are taken for adjacent although they share their blocks with other caches",
        (
            Edit(
                "dsv4core.ops.save_partial_states:save_partial_states",
                "    page, row = slots // rows, slots % rows\n",
                "    page, row = slots // rows, slots % rows\n"
                "    state_cache = state_cache.as_strided(state_cache.shape, (rows * 2 * width, 2 * "
                "width, 1))\n",
            ),
        ),
    ),
    Mutant(
        "weight_viewed_not_copied",
        ("C9",),
        "stride",
        "op/linear/stride/row_slices",
        "a transposed weight is read as if its rows were adjacent",
        (
            Edit(
                "dsv4core.ops.linear:linear",
                "    dense = _dense(",
                "    weight = weight.as_strided(weight.shape, (weight.shape[1], 1))\n    dense = _dense(",
            ),
        ),
    ),
    Mutant(
        "mxfp4_scales_interleaved",
        ("A10",),
        "bytes",
        "layout/index_mxfp4/compress4/length_8",
        "the four scales of a row are written in another order than they are read",
        (
            Edit(
                "dsv4core.layout.index_mxfp4:IndexMxfp4._encode",
                "ue8m0.to_byte(exponent))",
                "ue8m0.to_byte(exponent)[..., [0, 2, 1, 3]])",
            ),
        ),
    ),
    Mutant(
        "rotation_not_compared",
        ("A15",),
        "cross",
        "suite/cross/refuses/indexer_logits_layout_as_index_fp8_hadamard_f32",
        "queries and index pages of different rotations are scored without a word",
        (
            Edit(
                "dsv4core.ops._scores:check_queries",
                "    if rotate != layout.rotate:",
                '    if rotate not in ("none", "hadamard"):',
            ),
        ),
    ),
)
