from __future__ import annotations

import against
import pytest
import torch

OP = "fused_qnorm_rope_kv_insert"


@pytest.mark.parametrize("config", against.MAIN)
def test_bytes(config: str) -> None:
    given = against.arguments(OP, config, tokens=12)
    given["kv"] = against.columns(against.corners((12, 512)))
    given["q"] = against.columns(against.corners((12, 4, 512), 5))
    given["k_cache"] = against.in_parent(given["k_cache"], 1 if config == "vllm" else 2, 10)
    slots = torch.arange(11).flip(0) * 2
    slots[3] = -1
    given["slot_mapping"] = against.spread(slots)
    given["positions"] = against.spread(given["positions"])
    against.exact(OP, given)


@pytest.mark.parametrize(("heads", "padded"), [(1, 1), (3, 8), (64, 64), (5, 130)])
def test_heads(heads: int, padded: int) -> None:
    given = against.arguments(OP, tokens=2)
    given["q"] = against.corners((2, heads, 512), 2)
    out = against.exact(OP, {**given, "padded_heads": padded})[0]
    assert out is not None and not out[:, heads:].any()


def test_fewer_heads_than_there_are() -> None:
    with pytest.raises(ValueError, match="padded_heads"):
        against.kernel(OP)(**{**against.arguments(OP), "padded_heads": 1})
