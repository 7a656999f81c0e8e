"""Presets, profiles, layers, and every way a description can be wrong."""

import subprocess
import sys

import pytest

from dsv4core.config import (
    INDEX_LAYOUTS,
    MAIN_LAYOUTS,
    PROFILE_LAYOUTS,
    AttentionConfig,
    YarnConfig,
    state_width,
)
from dsv4core.errors import ConfigError
from dsv4core.layout import get_layout, layouts


def test_flash():
    c = AttentionConfig.preset("v4-flash")
    assert (c.hidden_size, c.num_attention_heads, c.q_lora_rank) == (4096, 64, 1024)
    assert (c.o_groups, c.o_lora_rank, c.index_n_heads, c.index_topk) == (8, 1024, 64, 512)
    ratios = c.compress_ratios
    assert len(ratios) == 44
    assert ratios[:3] == (0, 0, 4)
    assert all(ratios[i] == 4 for i in range(2, 43, 2))
    assert all(ratios[i] == 128 for i in range(3, 42, 2))
    assert ratios[43] == 0
    assert (ratios.count(4), ratios.count(128)) == (21, 20)


def test_pro():
    c = AttentionConfig.preset("v4-pro")
    assert (c.hidden_size, c.num_attention_heads, c.q_lora_rank) == (7168, 128, 1536)
    assert (c.o_groups, c.o_lora_rank, c.index_n_heads, c.index_topk) == (16, 1024, 64, 1024)
    ratios = c.compress_ratios
    assert len(ratios) == 62
    assert ratios == (128, 128, *(4, 128) * 29, 4, 0)
    assert (ratios.count(4), ratios.count(128), ratios.count(0)) == (30, 31, 1)


def test_tiny():
    c = AttentionConfig.preset("tiny")
    assert (c.hidden_size, c.num_attention_heads, c.q_lora_rank) == (64, 4, 24)
    assert (c.o_groups, c.o_lora_rank, c.index_n_heads, c.index_topk) == (2, 16, 4, 4)
    assert c.compress_ratios == (0, 4, 128)


@pytest.mark.parametrize("name", ["v4-flash", "v4-pro", "tiny"])
def test_what_the_presets_share(name):
    c = AttentionConfig.preset(name)
    assert (c.head_dim, c.qk_rope_head_dim, c.sliding_window, c.index_head_dim) == (512, 64, 128, 128)
    assert (c.rms_norm_eps, c.rope_theta, c.compress_rope_theta) == (1e-6, 10000.0, 160000.0)
    assert c.yarn == YarnConfig(factor=16, original_max_position_embeddings=65536, beta_fast=32, beta_slow=1)
    assert c.max_position_embeddings == 1048576
    assert (c.prefill_chunk_requests, c.decode_threshold, c.output_quant) == (4, 1, None)
    assert c.softmax_scale == 512**-0.5
    assert c.index_softmax_scale == 128**-0.5
    assert c.index_head_scale == c.index_n_heads**-0.5


def test_layers():
    c = AttentionConfig.preset("tiny")
    swa, csa, hca = (c.layer(i) for i in range(3))
    assert (swa.index, swa.ratio, swa.kind, swa.coff, swa.rope, swa.theta, swa.yarn) == (
        0,
        0,
        "swa",
        1,
        "main",
        10000.0,
        None,
    )
    assert (csa.ratio, csa.kind, csa.coff, csa.rope, csa.theta, csa.yarn) == (
        4,
        "csa",
        2,
        "compress",
        160000.0,
        c.yarn,
    )
    assert (hca.ratio, hca.kind, hca.coff, hca.rope, hca.theta) == (128, "hca", 1, "compress", 160000.0)
    for index in (-1, 3, "1", None, 1.0):
        with pytest.raises(ConfigError, match=f"layer {index!r} was asked for; this model has layers 0 to 2"):
            c.layer(index)


def test_state_width():
    assert [state_width(r, 512) for r in (4, 128)] == [1024, 512]
    assert AttentionConfig.state_width(4, 128) == 256


def test_profiles_choose_layouts():
    vllm = AttentionConfig.preset("tiny")
    assert (vllm.profile, vllm.main_layout, vllm.index_layout) == ("vllm", "fp8_ds_mla", "index_fp8")
    assert (vllm.activation, vllm.index_format, vllm.rotate) == ("bf16", "fp8", "none")
    math = AttentionConfig.preset("tiny", profile="math")
    assert (math.main_layout, math.index_layout) == ("f32_row", "index_f32")
    assert (math.activation, math.index_format, math.rotate) == ("f32", "f32", "none")
    official, sglang = (AttentionConfig.preset("tiny", profile=name) for name in ("official", "sglang"))
    assert (official.main_layout, official.index_layout) == ("fp8_ds_mla", "index_mxfp4_hadamard")
    assert (official.activation, official.index_format, official.rotate) == ("bf16", "mxfp4", "hadamard")
    assert (sglang.main_layout, sglang.index_layout) == ("fp8_ds_mla", "index_fp8_hadamard_f32")
    assert (sglang.activation, sglang.index_format, sglang.rotate) == ("bf16", "fp8_f32", "hadamard")
    other = AttentionConfig.preset("tiny", main_layout="bf16_row", index_layout="index_mxfp4_hadamard")
    assert (other.main_layout, other.index_format, other.rotate) == ("bf16_row", "mxfp4", "hadamard")


def test_layout_ids_agree_with_the_layouts():
    assert set(MAIN_LAYOUTS) == {layout.id for layout in layouts() if layout.family == "main"}
    assert set(INDEX_LAYOUTS) == {layout.id for layout in layouts() if layout.family == "index"}
    assert all(get_layout(name).rotate == meaning.rotate for name, meaning in INDEX_LAYOUTS.items())
    for main, index in PROFILE_LAYOUTS.values():
        assert get_layout(main).plain_f32 == get_layout(index).plain_f32


def test_ratio_one_is_window_only():
    assert AttentionConfig.preset("tiny", compress_ratios=[1, 0, 4]).compress_ratios == (0, 0, 4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"compress_ratios": [2, 4, 8]}, r"compress_ratios holds \[2, 8\].*ratio 0 \(or 1\), 4 or 128"),
        ({"compress_ratios": []}, "compress_ratios"),
        ({"compress_ratios": "4"}, "compress_ratios"),
        ({"num_attention_heads": 5}, "num_attention_heads 5 is not a multiple of o_groups 2"),
        ({"head_dim": 256}, "head_dim is 256, but cache rows are made for 512"),
        ({"qk_rope_head_dim": 32}, "qk_rope_head_dim is 32"),
        ({"index_head_dim": 64}, "index_head_dim is 64"),
        ({"hidden_size": 0}, "'hidden_size' is 0"),
        ({"rms_norm_eps": 0}, "'rms_norm_eps' is 0"),
        ({"window": 3}, "'window' is not a field; the fields are hidden_size"),
        ({"main_layout": "nope"}, "main_layout 'nope' is not one of fp8_ds_mla"),
        ({"index_layout": "fp8_ds_mla"}, "index_layout 'fp8_ds_mla' is not one of index_fp8"),
        ({"main_layout": "f32_row"}, "main_layout 'f32_row' does not go with profile 'vllm'"),
        ({"index_layout": "index_f32"}, "index_layout 'index_f32' does not go with profile 'vllm'"),
        ({"profile": "math", "main_layout": "bf16_row"}, "'bf16_row' does not go with profile 'math'"),
        ({"profile": "math", "output_quant": "f32"}, "output_quant 'f32' does not go with profile 'math'"),
        ({"output_quant": "fp8"}, "'output_quant' is 'fp8'"),
        (
            {"profile": "math2"},
            "profile 'math2' does not exist; the profiles are vllm, official, sglang, math",
        ),
        ({"yarn": {"factor": 0.5}}, "factor"),
        ({"yarn": {"beta_fast": 1.0, "beta_slow": 32.0}}, r"beta_fast 1.0 is not above beta_slow 32.0"),
        ({"rope_theta": float("inf")}, "'rope_theta' is inf"),
        ({"compress_rope_theta": 1.0}, "compress_rope_theta is 1.0; a rotation base is above 1"),
        ({"rms_norm_eps": float("nan")}, "'rms_norm_eps' is nan"),
        ({"hidden_size": 2**70}, "hidden_size is 1180591620717411303424, no size passes 2"),
        ({"hidden_size": 64.5}, "'hidden_size' is 64.5"),
        ({"o_groups": 8}, "num_attention_heads 4 is not a multiple of o_groups 8"),
        ({"index_topk": -1}, "'index_topk' is -1"),
        ({"weight_storage": "fp8"}, "'weight_storage' is 'fp8': Input should be 'checkpoint' or 'widened'"),
        ({"yarn": {"mscale": 1}}, "mscale"),
    ],
)
def test_contradictions_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        AttentionConfig.preset("tiny", **overrides)


def test_direct_construction_reports_everything_at_once():
    with pytest.raises(ConfigError, match=r"'hidden_size' is missing.*'compress_ratios' is missing"):
        AttentionConfig()
    with pytest.raises(ConfigError, match="profile"):
        AttentionConfig(**{**AttentionConfig.preset("tiny").model_dump(), "profile": "trtllm"})


def test_unknown_preset():
    with pytest.raises(ConfigError, match="'v5' does not exist; the presets are v4-flash, v4-pro, tiny"):
        AttentionConfig.preset("v5")


def test_frozen_hashable_and_restorable():
    c = AttentionConfig.preset("tiny")
    with pytest.raises(Exception, match="frozen"):
        c.hidden_size = 3
    assert hash(c) == hash(AttentionConfig.preset("tiny"))
    assert AttentionConfig(**c.model_dump()) == c
    assert AttentionConfig.model_validate_json(c.model_dump_json()) == c


def test_importing_config_does_not_import_torch():
    code = "import sys, dsv4core.config; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
