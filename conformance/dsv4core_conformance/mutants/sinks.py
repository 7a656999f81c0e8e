"""Sinks, heads and their groups (rows C1-C11)."""

from __future__ import annotations

from dsv4core_conformance.mutants.engine import Edit, Mutant

_DECODE = "dsv4core.ops.sparse_decode:sparse_decode"
_PREFILL = "dsv4core.ops.sparse_prefill:sparse_prefill"
_TURNED = "dsv4core.ops.fused_sparse_decode_inv_rope:fused_sparse_decode_inv_rope"
_FUSED = "dsv4core.ops.fused_qnorm_rope_kv_insert:fused_qnorm_rope_kv_insert"

MUTANTS = (
    Mutant(
        "decode_ignores_sinks",
        ("C4",),
        "sink",
        "op/sparse_decode/sink/unscaled/0.01",
        "decode accepts the sinks and never uses them",
        (Edit(_DECODE, "attn_sink, scale,", "attn_sink.clamp(max=-1e30), scale,"),),
    ),
    Mutant(
        "prefill_ignores_sinks",
        ("C4",),
        "sink",
        "op/sparse_prefill/sink/unscaled/0.2",
        "prefill accepts the sinks and never uses them",
        (Edit(_PREFILL, "attn_sink, scale,", "attn_sink.clamp(max=-1e30), scale,"),),
    ),
    Mutant(
        "sinks_of_rank_0",
        ("C1",),
        "sink",
        "op/sparse_decode/sink/shards/4",
        "a slice of the sinks is read from the start of the whole vector",
        (
            Edit(
                _DECODE,
                "    lse = attn_sink.new_empty(",
                "    attn_sink = attn_sink.as_strided(attn_sink.shape, attn_sink.stride(), 0)\n"
                "    lse = attn_sink.new_empty(",
            ),
        ),
    ),
    Mutant(
        "sinks_read_as_bf16",
        ("C2",),
        "sink",
        "op/sparse_prefill/sink/unscaled/0.2",
        "the f32 sinks are indexed as bf16",
        (
            Edit(
                _PREFILL,
                "    lse = attn_sink.new_empty(",
                "    attn_sink = attn_sink.contiguous().view(kv.dtype)[: q.shape[1]].float()\n"
                "    lse = attn_sink.new_empty(",
            ),
        ),
    ),
    Mutant(
        "sinks_in_log2_units",
        ("C4",),
        "sink",
        "op/sparse_decode/sink/unscaled/0.01",
        "the sink is taken for a logarithm of base 2 where decode works in base e",
        (Edit(_DECODE, "attn_sink, scale,", "attn_sink * 1.4426950408889634, scale,"),),
    ),
    Mutant(
        "turned_decode_ignores_sinks",
        ("C4",),
        "sink",
        "op/fused_sparse_decode_inv_rope/sink/five_ue8m0x4",
        "decode that turns back as well accepts the sinks and never uses them",
        (Edit(_TURNED, "attn_sink, o, scale=scale,", "attn_sink.clamp(max=-1e30), o, scale=scale,"),),
    ),
    Mutant(
        "turned_groups_of_all_heads",
        ("C8",),
        "heads",
        "op/fused_sparse_decode_inv_rope/heads/shards/2",
        "codes of a group are those of every G-th head, as if the heads of a group were not adjacent",
        (
            Edit(
                _TURNED,
                "    return fused_inv_rope_fp8_quant(o, ",
                "    o = o.unflatten(1, (-1, groups)).transpose(1, 2).flatten(1, 2)\n"
                "    return fused_inv_rope_fp8_quant(o, ",
            ),
        ),
    ),
    Mutant(
        "padded_heads_not_inert",
        ("C5",),
        "heads",
        "op/fused_qnorm_rope_kv_insert/heads/padded/8_in_64",
        "heads behind the last one are left as they were allocated, here as ones",
        (Edit(_FUSED, "q.new_zeros(", "q.new_ones("),),
    ),
    Mutant(
        "padded_head_reaches_the_others",
        ("C5",),
        "heads",
        "op/sparse_prefill/heads/padded/8_in_64",
        "heads are masked by a product with 0: a NaN in a padded one reaches all of them",
        (Edit(_PREFILL, "attend(q[t], ", "attend(q[t] + (q[t] * 0).sum(0), "),),
    ),
    Mutant(
        "head_16_of_a_tile",
        ("C10",),
        "heads",
        "op/sparse_prefill/heads/64",
        "the first head of every further tile of 16 is off in the channels without rotation",
        (
            Edit(
                _PREFILL,
                "attn_sink, scale, out[t], lse[t])\n",
                "attn_sink, scale, out[t], lse[t])\n        out[t, 16::16, :448] *= 0.8\n",
            ),
        ),
    ),
    Mutant(
        "groups_of_all_heads",
        ("C8",),
        "heads",
        "op/grouped_output_projection/heads/weight_views",
        "a group takes every G-th head, as if the heads of a group were not adjacent",
        (
            Edit(
                "dsv4core.ops.grouped_output_projection:_activation",
                "return o.reshape(o.shape[0], groups, o.shape[1] // groups * o.shape[2])",
                "return o.unflatten(1, (-1, groups)).transpose(1, 2).flatten(2)",
            ),
        ),
    ),
)
