"""Rotary embedding: which table, which position, which pairs (rows F1-F9, B5, B6, C11, E16)."""

from __future__ import annotations

from dsv4core_conformance.mutants.engine import Edit, Mutant

_CONFIG = "dsv4core.config:AttentionConfig.layer"
_MAIN = '"main", self.rope_theta, None)'
_COMPRESSED = '"compress", self.compress_rope_theta, self.yarn)'
_COMPRESS = "dsv4core.ops.compress_norm_rope_store:compress_norm_rope_store"
_TURNED = "dsv4core.ops.fused_sparse_decode_inv_rope:fused_sparse_decode_inv_rope"
_FUSED = "dsv4core.ops.fused_qnorm_rope_kv_insert:fused_qnorm_rope_kv_insert"

MUTANTS = (
    Mutant(
        "yarn_on_window_layers",
        ("F1", "F2"),
        "rope",
        "layer/swa/rope/table",
        "layers without compression keep theta 10000 and get YaRN",
        (Edit(_CONFIG, _MAIN, '"main", self.rope_theta, self.yarn)'),),
    ),
    Mutant(
        "one_table_everywhere",
        ("F3",),
        "rope",
        "layer/swa/rope/table",
        "theta 160000 with YaRN on every layer",
        (Edit(_CONFIG, _MAIN, '"main", self.compress_rope_theta, self.yarn)'),),
    ),
    Mutant(
        "no_yarn_on_compressed_layers",
        ("F6",),
        "rope",
        "layer/csa/rope/table",
        "theta 160000 without YaRN",
        (Edit(_CONFIG, _COMPRESSED, '"compress", self.compress_rope_theta, None)'),),
    ),
    Mutant(
        "base_table_on_compressed_layers",
        ("F7", "F8"),
        "rope",
        "layer/csa/rope/table",
        "theta 10000 without YaRN on every layer",
        (Edit(_CONFIG, _COMPRESSED, '"compress", self.rope_theta, None)'),),
    ),
    Mutant(
        "entries_not_rotated",
        ("F4",),
        "rope",
        "op/compress_norm_rope_store/rope/ratio_4_positions_near",
        "compressed keys carry no position",
        (
            Edit(
                _COMPRESS,
                "        entry = rotate_tail(entry, cos_sin[p[t] - ratio + 1])  # RoPE sees the "
                "unrounded value\n",
                "",
            ),
        ),
    ),
    Mutant(
        "two_bases_in_one_layer",
        ("F5",),
        "predec",
        "layer/csa/predec/draft_layer",
        "entries are rotated with the table of the window layers",
        (
            Edit(
                "dsv4core.attention:DeepseekV4Attention.close_windows",
                "self.compressor(self.ops, x, pages.state, pages.compressed, plan, cos_sin)",
                "self.compressor(self.ops, x, pages.state, pages.compressed, plan,\n"
                "                            tables.cos_sin(self.config.rope_theta, None, cos_sin.shape[0]))",
            ),
        ),
    ),
    Mutant(
        "entry_rotated_by_its_number",
        ("E16",),
        "rope",
        "op/compress_norm_rope_store/rope/ratio_4_positions_near",
        "the position of an entry is p // r instead of p // r * r",
        (Edit(_COMPRESS, "cos_sin[p[t] - ratio + 1]", "cos_sin[p[t] // ratio]"),),
    ),
    Mutant(
        "halves_instead_of_pairs",
        ("F9",),
        "rope",
        "op/fused_indexer_q_rope_quant/rope/main_positions_near",
        "the index query pairs channel i with channel i + 32",
        (
            Edit(
                "dsv4core.ops.fused_indexer_q_rope_quant:fused_indexer_q_rope_quant",
                "        x = rotate_tail(x, cos_sin[positions[part]].unsqueeze(1))\n",
                "        x = x.unflatten(-1, (2, 2, 32)).transpose(-1, -2).flatten(-3)\n"
                "        x = rotate_tail(x, cos_sin[positions[part]].unsqueeze(1))\n"
                "        x = x.unflatten(-1, (2, 32, 2)).transpose(-1, -2).flatten(-3)\n",
            ),
        ),
    ),
    Mutant(
        "bf16_angles",
        ("B5",),
        "rope",
        "op/inverse_rope/rope/main_positions_near",
        "cosines and sines are rounded to bf16 before the operation",
        (
            Edit(
                "dsv4core.ops.inverse_rope:inverse_rope",
                "cos_sin[positions].unsqueeze(1)",
                "cos_sin[positions].bfloat16().float().unsqueeze(1)",
            ),
        ),
    ),
    Mutant(
        "angles_in_half_precision_tables",
        ("B5", "F2"),
        "rope",
        "layer/swa/rope/table",
        "the table of a layer is kept in bf16",
        (
            Edit(
                "dsv4core.attention:DeepseekV4Attention._cos_sin",
                "rows, self.device)",
                "rows, self.device).bfloat16().float()",
            ),
        ),
    ),
    Mutant(
        "rotated_before_normalised",
        ("B6",),
        "rope",
        "op/fused_qnorm_rope_kv_insert/rope/main_positions_near",
        "queries are rotated and rounded first, and normalised afterwards",
        (
            Edit(
                _FUSED,
                "        normed = rms_norm(q[part].float(), None, eps)\n"
                "        out[part, :heads] = rotate_tail(normed, angles[part].unsqueeze(1))\n",
                "        turned = rotate_tail(q[part].float(), "
                "angles[part].unsqueeze(1)).to(q.dtype).float()\n"
                "        out[part, :heads] = rms_norm(turned, None, eps)\n",
            ),
        ),
    ),
    Mutant(
        "output_not_turned_back",
        ("C11",),
        "rope",
        "op/inverse_rope/rope/main_positions_near",
        "the rotation of K stays in the output",
        (
            Edit(
                "dsv4core.ops.inverse_rope:inverse_rope",
                "rotate_tail(o, cos_sin[positions].unsqueeze(1), inverse=True)",
                "o.clone()",
            ),
        ),
    ),
    Mutant(
        "turned_output_turned_forwards",
        ("C11",),
        "rope",
        "op/fused_sparse_decode_inv_rope/rope/main_positions_near",
        "decode that turns back as well turns by the position once more instead of back",
        (
            Edit(
                _TURNED,
                "inverse_rope(o, positions, cos_sin)",
                "inverse_rope(o, positions, torch.cat((cos_sin[:, :32], -cos_sin[:, 32:]), 1))",
            ),
        ),
    ),
    Mutant(
        "turned_by_the_first_position",
        ("C11",),
        "rope",
        "op/fused_sparse_decode_inv_rope/rope/compress_positions_past_65536",
        "every token of a step is turned back by the position of the first",
        (
            Edit(
                _TURNED,
                "fused_inv_rope_fp8_quant(o, positions,",
                "fused_inv_rope_fp8_quant(o, positions[:1].expand_as(positions),",
            ),
        ),
    ),
    Mutant(
        "mscale_in_the_softmax",
        ("C11",),
        "rope",
        "suite/rope/softmax_scale",
        "the softmax scale of compressed layers carries YaRN's magnitude factor",
        (
            Edit(
                "dsv4core.config:AttentionConfig.softmax_scale",
                "return self.head_dim**-0.5",
                "return self.head_dim**-0.5 * 1.277**2",
            ),
        ),
    ),
)
