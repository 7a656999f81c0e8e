"""Arithmetic that is nearly right, formats that are nearly wide enough (rows B3-B10, D5, E7, G9, H6, L7)."""

from __future__ import annotations

from dsv4core_conformance.mutants.engine import Edit, Mutant

_ATTEND = "dsv4core.ops._attend:attend"
_SCORES = "    s = (q.float() @ keys.T).mul_(scale)\n"
_LINEAR = "dsv4core.ops.linear:linear"

MUTANTS = (
    Mutant(
        "exp_of_the_library",
        ("B10", "L7"),
        "enc",
        "layout/bf16_row/enc/near_ties_4",
        "weights of a window are the library's exponentials, one unit off in one of two",
        (Edit("dsv4core.numerics.pool:pool", "exp_nonpositive(score", "torch.exp(score"),),
    ),
    Mutant(
        "quotient_by_a_reciprocal",
        ("B10",),
        "enc",
        "layout/fp8_ds_mla/enc/near_ties_4",
        "a pooled entry is multiplied with 1 / sum instead of divided by the sum",
        (
            Edit(
                "dsv4core.numerics.pool:pool",
                "/ _total(weight)",
                "* _total(weight).reciprocal()",
            ),
        ),
    ),
    Mutant(
        "exp_ends_at_80",
        ("B10",),
        "enc",
        "layout/fp8_ds_mla/enc/exp_ends_at_87",
        "weights below exp(-80) are taken for 0",
        (Edit("dsv4core.numerics.exp:exp_nonpositive", "F.threshold(x, BELOW,", "F.threshold(x, -80.0,"),),
    ),
    Mutant(
        "products_fused_when_turning_back",
        ("B4",),
        "enc",
        "op/inverse_rope/enc/near_ties_turned",
        "products of the inverse rotation are not rounded before they are added",
        (
            Edit(
                "dsv4core.numerics.rope:rotate",
                "(even * cos).add_(odd * sin)",
                "(even.double() * cos + odd.double() * sin).float()",
            ),
        ),
    ),
    Mutant(
        "products_fused_when_turning",
        ("B4",),
        "enc",
        "op/fused_indexer_q_rope_quant/enc/near_ties_turned",
        "products of the rotation are not rounded before they are added",
        (
            Edit(
                "dsv4core.numerics.rope:rotate",
                "(even * cos).sub_(odd * sin)",
                "(even.double() * cos - odd.double() * sin).float()",
            ),
        ),
    ),
    Mutant(
        "norm_weight_first",
        ("B10",),
        "enc",
        "op/fused_q_kv_rmsnorm/enc/near_ties",
        "the weight is multiplied with the inverse root before the row is",
        (
            Edit(
                "dsv4core.numerics.norm:rms_norm",
                "else normed * weight.float()",
                "else y * (inverse_rms(y, eps) * weight.float())",
            ),
        ),
    ),
    Mutant(
        "eps_of_one_model",
        ("B10",),
        "enc",
        "op/compress_norm_rope_store/enc/eps_0.3",
        "norms add 1e-6 whatever eps is asked for",
        (
            Edit(
                "dsv4core.numerics.norm:inverse_rms",
                "torch.full_like(mean, eps)",
                "torch.full_like(mean, 1e-6)",
            ),
        ),
    ),
    Mutant(
        "butterflies_in_another_order",
        ("L7",),
        "enc",
        "op/fused_indexer_q_rope_quant/enc/hadamard_order",
        "the Hadamard transform begins with stride 64 and ends with stride 1",
        (
            Edit("dsv4core.numerics.hadamard:hadamard128", "stride = 1\n", "stride = 64\n"),
            Edit("dsv4core.numerics.hadamard:hadamard128", "while stride < WIDTH:", "while stride >= 1:"),
            Edit("dsv4core.numerics.hadamard:hadamard128", "stride *= 2", "stride //= 2"),
        ),
    ),
    Mutant(
        "keys_in_half_precision",
        ("B9",),
        "enc",
        "op/sparse_decode/enc/magnitudes/bf16_row",
        "rows of the cache are widened to fp16: large ones become infinite, small ones zero",
        (Edit(_ATTEND, _SCORES, "    keys = keys.half().float()\n" + _SCORES),),
    ),
    Mutant(
        "maximum_of_the_first_block",
        ("D5",),
        "enc",
        "op/sparse_prefill/enc/scores_rising",
        "scores are shifted by the maximum of the first 64 keys, and later ones overflow",
        (Edit(_ATTEND, "peak = s.amax(", "peak = s[:, :64].amax("),),
    ),
    Mutant(
        "at_most_2048_keys",
        ("E7",),
        "shapes",
        "op/sparse_decode/shapes/long_list/8320",
        "keys of a list behind the 2,048th are left out",
        (Edit(_ATTEND, _SCORES, "    keys = keys[:2048]\n" + _SCORES),),
    ),
    Mutant(
        "weights_in_half_precision",
        ("B9",),
        "enc",
        "op/linear/enc/mxfp4_every_code",
        "quantised weights become fp16 before they are multiplied",
        (Edit(_LINEAR, "(x.to(work), dense)", "(x.to(work), dense.half().to(work))"),),
    ),
    Mutant(
        "f32_projection_rounded",
        ("B3",),
        "enc",
        "op/linear/enc/f32_results",
        "what the compressor asks for in f32 is rounded to bf16 on its way",
        (Edit(_LINEAR, ".to(out_dtype)", ".to(torch.bfloat16).to(out_dtype)"),),
    ),
    Mutant(
        "entry_numbers_of_16_bits",
        ("G9", "L8"),
        "shapes",
        "op/sparse_indexer/shapes/context/70000",
        "entries are sorted with their number in 16 bits: 65,536 is taken for 0",
        (
            Edit(
                "dsv4core.ops.sparse_indexer:_running",
                "column = torch.where(column < lens.unsqueeze(1), column, -1)",
                "column = torch.where(column < lens.unsqueeze(1), column & 0xFFFF, -1)",
            ),
        ),
    ),
    Mutant(
        "result_in_memory_of_the_last_call",
        ("H6",),
        "det",
        "op/inverse_rope/det/same_memory",
        "a result of a shape lies where the last result of that shape lay",
        (
            Edit(
                "dsv4core.ops.inverse_rope:inverse_rope",
                "    return rotate_tail(o, cos_sin[positions].unsqueeze(1), inverse=True)",
                "    out = rotate_tail(o, cos_sin[positions].unsqueeze(1), inverse=True)\n"
                "    kept = rotate_tail.__dict__.setdefault((o.shape, o.dtype), o.new_empty(o.shape))\n"
                "    return kept.copy_(out)",
            ),
        ),
    ),
)
