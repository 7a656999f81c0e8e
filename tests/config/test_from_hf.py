"""Reading config.json: both spellings, and the traps that transformers' defaults set."""

import pytest

from dsv4core.config import AttentionConfig, YarnConfig
from dsv4core.errors import ConfigError

YARN = {
    "type": "yarn",
    "factor": 16,
    "original_max_position_embeddings": 65536,
    "beta_fast": 32,
    "beta_slow": 1,
}


def flash(**changes):
    """The attention part of V4-Flash's config.json."""
    values = {
        "model_type": "deepseek_v4",
        "hidden_size": 4096,
        "num_hidden_layers": 43,
        "num_attention_heads": 64,
        "num_key_value_heads": 1,
        "head_dim": 512,
        "qk_rope_head_dim": 64,
        "q_lora_rank": 1024,
        "o_groups": 8,
        "o_lora_rank": 1024,
        "sliding_window": 128,
        "index_n_heads": 64,
        "index_head_dim": 128,
        "index_topk": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000,
        "compress_rope_theta": 160000,
        "rope_scaling": YARN,
        "max_position_embeddings": 1048576,
        "compress_ratios": [0, 0] + [4, 128] * 20 + [4, 0],
        "vocab_size": 129280,
        **changes,
    }
    return {name: value for name, value in values.items() if value is not ...}


def test_the_checkpoint_form_is_the_preset():
    assert AttentionConfig.from_hf(flash()) == AttentionConfig.preset("v4-flash")
    math = AttentionConfig.from_hf(flash(), profile="math", decode_threshold=4)
    assert math == AttentionConfig.preset("v4-flash", profile="math", decode_threshold=4)


def test_layer_types_with_rates():
    types = ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"]
    rates = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128}
    config = flash(compress_ratios=..., layer_types=types, compress_rates=rates, num_hidden_layers=3)
    assert AttentionConfig.from_hf(config).compress_ratios == (0, 4, 128)


def test_rope_parameters_in_both_forms():
    flat = {**YARN, "rope_type": "yarn"}
    del flat["type"]
    assert AttentionConfig.from_hf(flash(rope_scaling=..., rope_parameters=flat)).yarn == YarnConfig()
    nested = {
        "main": {"rope_type": "default", "rope_theta": 20000.0},
        "compress": {**flat, "factor": 8, "rope_theta": 150000.0, "partial_rotary_factor": 0.125},
    }
    c = AttentionConfig.from_hf(
        flash(rope_scaling=..., rope_parameters=nested, qk_rope_head_dim=..., partial_rotary_factor=0.125)
    )
    assert (c.rope_theta, c.compress_rope_theta) == (20000.0, 150000.0)
    assert (c.yarn.factor, c.qk_rope_head_dim) == (8.0, 64)


def test_the_base_of_flat_rope_parameters_is_the_main_one():
    flat = {**YARN, "rope_theta": 5e5}
    for above in (..., 5e5):
        c = AttentionConfig.from_hf(flash(rope_scaling=..., rope_parameters=flat, rope_theta=above))
        assert (c.rope_theta, c.compress_rope_theta, c.yarn) == (5e5, 160000.0, YarnConfig())
    with pytest.raises(ConfigError, match=r"two main bases: rope_theta is 10000 and .*500000.0; leave one"):
        AttentionConfig.from_hf(flash(rope_scaling=..., rope_parameters=flat))


def test_no_scaling_may_be_said_aloud():
    assert AttentionConfig.from_hf(flash(rope_scaling={"rope_type": "default"})).yarn is None
    window_only = flash(rope_scaling=..., compress_ratios=[0] * 43)
    assert AttentionConfig.from_hf(window_only).layer(0).yarn is None


def test_absent_optional_values_take_the_released_ones():
    config = flash(**dict.fromkeys(["head_dim", "sliding_window", "rms_norm_eps", "rope_theta"], ...))
    assert AttentionConfig.from_hf(config) == AttentionConfig.preset("v4-flash")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compress_ratios": ...}, "neither compress_ratios nor layer_types"),
        ({"compress_ratios": None}, "neither compress_ratios nor layer_types"),
        ({"rope_scaling": ...}, 'compressed layers but no rope_scaling.*add "rope_scaling"'),
        ({"rope_scaling": None}, "no rope_scaling"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope type 'linear' is not known"),
        ({"rope_scaling": {"type": "yarn", "factor": 16}}, "lack original_max_position_embeddings"),
        (
            {"rope_scaling": ..., "rope_parameters": {"main": {}, "compress": {"rope_type": "default"}}},
            "no rope_scaling",
        ),
        (
            {"compress_ratios": ..., "layer_types": ["compressed_sparse_attention"], "num_hidden_layers": 1},
            "no rate for compressed_sparse_attention",
        ),
        ({"compress_ratios": ..., "layer_types": ["linear_attention"]}, "layer_types holds linear_attention"),
        ({"compress_ratios": [0, 4]}, "describes 2 layers but num_hidden_layers is 43"),
        ({"compress_ratios": 4}, "must be a list of whole numbers"),
        ({"compress_ratios": [4.5] * 43}, "must be a list of whole numbers"),
        ({"compress_ratios": []}, "must be a list of whole numbers"),
        ({"compress_ratios": [0, 0] + [2] * 41}, r"compress_ratios holds \[2\]"),
        ({"kv_source_layer_ids": [2, 8]}, "this config.json is DeepSeek-V4.1"),
        ({"hidden_size": ..., "o_groups": None}, "lacks hidden_size, o_groups"),
        ({"head_dim": 576}, "head_dim is 576"),
    ],
)
def test_traps_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        AttentionConfig.from_hf(flash(**changes))


CSA = "compressed_sparse_attention"


def by_type(rates, types=(CSA,)):
    return {"compress_ratios": ..., "num_hidden_layers": 1, "layer_types": types, "compress_rates": rates}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (by_type({CSA: 4.9}), f"compress_rates of {CSA} is 4.9; it must be a whole number"),
        (by_type({CSA: "four"}), "is 'four'; it must be a whole number"),
        (by_type({CSA: None}), "is None; it must be a whole number"),
        (by_type("x"), "compress_rates is 'x'; it must be a dict"),
        (by_type({}, 5), "layer_types is 5; it must be a list"),
        (by_type({}, CSA), "layer_types is 'compressed.*it must be a list"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers is '4'; it must be a whole number"),
        ({"num_hidden_layers": [4]}, r"num_hidden_layers is \[4\]"),
        ({"num_hidden_layers": float("nan")}, "num_hidden_layers is nan"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'; it must be a dict"),
        ({"rope_scaling": 5}, "rope_scaling is 5; it must be a dict"),
        ({"rope_parameters": "x"}, "rope_parameters is 'x'; it must be a dict"),
        ({"rope_scaling": ..., "rope_parameters": {"compress": None}}, "no rope_scaling"),
        ({"rope_parameters": {"compress": "yarn"}}, "compress of rope_parameters is 'yarn'"),
        ({"rope_parameters": {"main": 3}}, "main of rope_parameters is 3"),
        ({"qk_rope_head_dim": ..., "partial_rotary_factor": "x"}, "partial_rotary_factor is 'x'"),
        ({"qk_rope_head_dim": ..., "partial_rotary_factor": float("nan")}, "nan; it must be a finite number"),
        ({"qk_rope_head_dim": ..., "partial_rotary_factor": 10**400}, "must be a finite number"),
        ({"qk_rope_head_dim": ..., "partial_rotary_factor": 0.125, "head_dim": "x"}, "head_dim is 'x'"),
    ],
)
def test_values_of_another_kind_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        AttentionConfig.from_hf(flash(**changes))


def test_no_head_dim_is_the_released_one():
    c = AttentionConfig.from_hf(flash(qk_rope_head_dim=..., head_dim=None, partial_rotary_factor=0.125))
    assert c == AttentionConfig.preset("v4-flash")


@pytest.mark.parametrize("given", ["config.json", None, [1]])
def test_what_is_no_dict_is_refused(given):
    with pytest.raises(ConfigError, match=r"takes the dict of a config.json, .*json.load"):
        AttentionConfig.from_hf(given)


def test_unknown_profile():
    with pytest.raises(ConfigError, match="profile 'fast' does not exist"):
        AttentionConfig.from_hf(flash(), profile="fast")
    with pytest.raises(ConfigError, match=r"profile \['vllm'\] does not exist"):
        AttentionConfig.from_hf(flash(), profile=["vllm"])


def test_presets_take_names_and_numbers():
    with pytest.raises(ConfigError, match=r"preset \[\] does not exist"):
        AttentionConfig.preset([])
    with pytest.raises(ConfigError, match="decode_threshold is True; no field takes a truth value"):
        AttentionConfig.preset("tiny", decode_threshold=True)


def test_transformers_own_dict():
    pytest.importorskip("transformers")
    from transformers.models.deepseek_v4.configuration_deepseek_v4 import DeepseekV4Config

    with pytest.raises(ConfigError, match="no rope_scaling"):
        AttentionConfig.from_hf(DeepseekV4Config().to_dict())
    ratios = [0, 0] + [4, 128] * 20 + [4]
    described = DeepseekV4Config(compress_ratios=ratios, rope_parameters={**YARN, "rope_type": "yarn"})
    got = AttentionConfig.from_hf(described.to_dict())
    assert got == AttentionConfig.preset("v4-flash", compress_ratios=ratios)
