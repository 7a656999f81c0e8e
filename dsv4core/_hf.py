"""Reading Hugging Face's description of a model, in the checkpoint's form and in transformers'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from dsv4core.errors import ConfigError

COPIED = (
    "hidden_size",
    "num_attention_heads",
    "q_lora_rank",
    "o_groups",
    "o_lora_rank",
    "index_n_heads",
    "index_topk",
)
OPTIONAL = (
    "head_dim",
    "sliding_window",
    "index_head_dim",
    "rms_norm_eps",
    "rope_theta",
    "compress_rope_theta",
    "max_position_embeddings",
)
YARN_NAMES = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
LAYER_TYPES = ("sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention")
# Fields that only DeepSeek-V4.1 has; its pages and its compressor are different in every stage.
V41_NAMES = ("kv_source_layer_ids", "index_source_layer_ids", "candidate_source_layer_id")


def hf_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an `AttentionConfig` in `config`; raises ConfigError where they are missing."""
    if not isinstance(config, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        got = f"{config!r:.80}"
        raise ConfigError(f"from_hf takes the dict of a config.json, not {got}: pass json.load(open(path))")
    newer = [name for name in V41_NAMES if config.get(name) is not None]
    if newer:
        raise ConfigError(f"this config.json is DeepSeek-V4.1 (it has {', '.join(newer)}); V4 cannot run it")
    missing = [name for name in COPIED if config.get(name) is None]
    if missing:
        raise ConfigError(f"config.json lacks {', '.join(missing)}; without them no layer can be built")
    values = {name: config[name] for name in (*COPIED, *OPTIONAL) if config.get(name) is not None}
    values["qk_rope_head_dim"] = _rope_dim(config)
    ratios = _ratios(config)
    values["compress_ratios"] = ratios
    values.update(_rope(config, compressed=any(r > 1 for r in ratios)))
    return values


def _rope_dim(config: Mapping[str, Any]) -> int:
    if config.get("qk_rope_head_dim") is not None:
        return config["qk_rope_head_dim"]
    factor, head_dim = config.get("partial_rotary_factor"), config.get("head_dim")
    if factor is None:
        return 64
    width = 512 if head_dim is None else _number("head_dim", head_dim)
    return round(_number("partial_rotary_factor", factor) * width)


def _ratios(config: Mapping[str, Any]) -> tuple[int, ...]:
    """One ratio per layer, from `compress_ratios` or from `layer_types` and `compress_rates` together."""
    given = config.get("compress_ratios")
    if given is not None:
        ratios = _integers("compress_ratios", given)
    elif config.get("layer_types") is not None:
        ratios = _ratios_of_types(config["layer_types"], config.get("compress_rates"))
    else:
        raise ConfigError(
            "config.json has neither compress_ratios nor layer_types, so the schedule of the layers is "
            "unknown (transformers' default matches no released model); add compress_ratios: 0, 4 or 128 for "
            "each layer"
        )
    layers = config.get("num_hidden_layers")
    if layers is not None and len(ratios) < _number("num_hidden_layers", layers, whole=True):
        raise ConfigError(f"config.json describes {len(ratios)} layers but num_hidden_layers is {layers}")
    return ratios


def _integers(name: str, given: Any) -> tuple[int, ...]:
    items: Sequence[Any] = cast("Sequence[Any]", given) if isinstance(given, (list, tuple)) else ()
    if not items or any(not isinstance(r, int) or isinstance(r, bool) for r in items):
        raise ConfigError(f"{name} is {given!r}; it must be a list of whole numbers, one per layer")
    return tuple(cast("Sequence[int]", items))


def _mapping(name: str, given: Any) -> dict[str, Any]:
    """A part of the config that is a dict, empty where it is absent."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{name} is {given!r:.80}; it must be a dict of names and values, or left out")
    return dict(cast("Mapping[str, Any]", given))


def _number(name: str, given: Any, *, whole: bool = False) -> Any:
    """A finite number; with `whole` an int. `int()` would cut a fraction off, and take text and True."""
    known = isinstance(given, (int, float)) and not isinstance(given, bool) and abs(given) <= 2**63
    if not known or (whole and given != int(given)):
        raise ConfigError(f"{name} is {given!r:.80}; it must be a {'whole' if whole else 'finite'} number")
    return int(given) if whole else given


def _ratios_of_types(types: Any, rates: Any) -> tuple[int, ...]:
    if not isinstance(types, (list, tuple)):
        raise ConfigError(f"layer_types is {types!r:.80}; it must be a list of {', '.join(LAYER_TYPES)}")
    types = cast("Sequence[Any]", types)
    unknown = sorted({str(t) for t in types} - set(LAYER_TYPES))
    if unknown:
        raise ConfigError(f"layer_types holds {', '.join(unknown)}; the types are {', '.join(LAYER_TYPES)}")
    table = _mapping("compress_rates", rates)
    missing = sorted({str(t) for t in types} - {LAYER_TYPES[0]} - set(table))
    if missing:
        raise ConfigError(f"compress_rates gives no rate for {', '.join(missing)}, which layer_types uses")
    used = {t: _number(f"compress_rates of {t}", table[t], whole=True) for t in {*types} - {LAYER_TYPES[0]}}
    return tuple(used.get(t, 0) for t in types)


def _rope(config: Mapping[str, Any], *, compressed: bool) -> dict[str, Any]:
    """Bases and YaRN, from `rope_scaling` or `rope_parameters` (flat, or main and compress)."""
    parameters = _mapping("rope_parameters", config.get("rope_parameters"))
    scaling = _mapping("rope_scaling", config.get("rope_scaling"))
    values: dict[str, Any] = {}
    for part, name in (("main", "rope_theta"), ("compress", "compress_rope_theta")):
        nested = _mapping(f"{part} of rope_parameters", parameters.get(part))
        if "rope_theta" in nested:
            values[name] = nested["rope_theta"]
    flat, above = parameters.get("rope_theta"), config.get("rope_theta")
    if flat is not None and "rope_theta" not in values:
        if above is not None and above != flat:
            raise ConfigError(
                f"config.json has two main bases: rope_theta is {above!r} and rope_theta of rope_parameters "
                f"is {flat!r}; leave one of them out"
            )
        values["rope_theta"] = flat
    scaling = scaling or _mapping("compress of rope_parameters", parameters.get("compress", parameters))
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "yarn":
        lacking = [name for name in YARN_NAMES[:2] if name not in scaling]
        if lacking:
            raise ConfigError(f"the YaRN values of config.json lack {', '.join(lacking)}")
        values["yarn"] = {name: scaling[name] for name in YARN_NAMES if name in scaling}
    elif kind == "default" and "compress" not in parameters:
        values["yarn"] = None
    elif kind not in (None, "default"):
        raise ConfigError(f"rope type {kind!r} is not known; type 'yarn' (or 'default' for no scaling)")
    elif compressed:
        raise ConfigError(
            "config.json has compressed layers but no rope_scaling, so their YaRN values are unknown "
            '(transformers would run without); add "rope_scaling": {"type": "yarn", "factor": 16, '
            '"original_max_position_embeddings": 65536, "beta_fast": 32, "beta_slow": 1}'
        )
    else:
        values["yarn"] = None
    return values
