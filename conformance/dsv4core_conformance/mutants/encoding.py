"""Codes, scales and roundings (rows B1-B10, A5)."""

from __future__ import annotations

from dsv4core_conformance.mutants.engine import Edit, Mutant

MUTANTS = (
    Mutant(
        "fnuz_scaled_to_240",
        ("B1",),
        "enc",
        "layout/fp8_ds_mla_fnuz/enc/amax_above_a_step",
        "the FNUZ writer fills the format up to 240, its readers' scales are for 224",
        (
            Edit(
                "dsv4core.numerics.ue8m0:exponent_e4m3_fnuz",
                "_exponent(amax, 8, ABOVE_0_875)",
                "_exponent(amax, 8, 0x700000)",
            ),
            Edit("dsv4core.numerics.e4m3:encode_fnuz", "limit=MAX_FNUZ", "limit=240.0"),
        ),
    ),
    Mutant(
        "one_encoding_for_two_caches",
        ("B1", "A5"),
        "enc",
        "op/sparse_decode/enc/fnuz_window_ocp_entries",
        "decode reads compressed pages with the encoding of the window pages",
        (
            Edit(
                "dsv4core.ops.sparse_decode:sparse_decode",
                "sources.append((extra,",
                "sources.append((main if extra.record_bytes == main.record_bytes else extra,",
            ),
        ),
    ),
    Mutant(
        "values_by_the_unrounded_scale",
        ("B3",),
        "enc",
        "op/fused_inv_rope_fp8_quant/enc/float32_amax_above_a_step",
        "output values are divided by the f32 scale, which is rounded to a power of two afterwards",
        (
            Edit(
                "dsv4core.ops.fused_inv_rope_fp8_quant:fused_inv_rope_fp8_quant",
                "e4m3.encode(x * ue8m0.exp2(-exponent).unsqueeze(-1))",
                "e4m3.encode(x / (x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-10) / e4m3.MAX))",
            ),
        ),
    ),
    Mutant(
        "e4m3_through_half",
        ("B4",),
        "enc",
        "layout/index_fp8_hadamard_f32/enc/amax_at_a_step",
        "f32 becomes e4m3 through fp16: two roundings",
        (Edit("dsv4core.numerics.e4m3:encode", "minifloat.encode(x,", "minifloat.encode(x.half().float(),"),),
    ),
    Mutant(
        "e4m3_subnormals_flushed",
        ("B8",),
        "enc",
        "layout/fp8_ds_mla/enc/amax_at_a_step",
        "a software cast that has no subnormals",
        (
            Edit(
                "dsv4core.numerics.e4m3:encode",
                "minifloat.encode(x,",
                "minifloat.encode(torch.where(x.abs() < 2.0**-6, x * 0.0, x),",
            ),
        ),
    ),
    Mutant(
        "fp4_ties_away_from_zero",
        ("B7",),
        "enc",
        "layout/index_mxfp4/enc/amax_below_a_step",
        "e2m1 ties are rounded away from zero, not to even",
        (
            Edit(
                "dsv4core.numerics.e2m1:encode",
                "minifloat.encode(x,",
                "minifloat.encode(x.float() * (1.0 + 2.0**-12),",
            ),
        ),
    ),
    Mutant(
        "ceil_of_a_logarithm",
        ("B10",),
        "enc",
        "op/fused_inv_rope_fp8_quant/enc/float32_amax_above_a_step",
        "the exponent is the ceiling of a logarithm: one off just above a step",
        (
            Edit(
                "dsv4core.numerics.ue8m0:exponent_e4m3",
                "_exponent(amax, 9, ABOVE_0_875)",
                "torch.ceil(torch.log2(amax / 448.0)).to(torch.int32)",
            ),
        ),
    ),
    Mutant(
        "query_of_the_other_bias",
        ("B2", "B1"),
        "heads",
        "op/indexer_logits/heads/11",
        "index queries are read as FNUZ codes, although they are OCP",
        (
            Edit(
                "dsv4core.ops._scores:query_values",
                "e4m3.decode(q.view(torch.uint8)[tokens])",
                "e4m3.decode_fnuz(q.view(torch.uint8)[tokens])",
            ),
        ),
    ),
)
