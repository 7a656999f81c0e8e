from __future__ import annotations

from typing import Any

import against
import pytest
import torch

from dsv4core.errors import OpArgumentError
from dsv4core.layout import get_layout

OP = "compress_norm_rope_store"


def windows(layout: str, ratio: int, tokens: int = 6, seed: int = 0) -> dict[str, Any]:
    """Tokens of two requests around boundaries, with states of very different sizes."""
    g = torch.Generator().manual_seed(seed)
    dim = get_layout(layout).width or 0
    width = dim * (2 if ratio == 4 else 1)
    rows = 4 if ratio == 4 else 8
    last = 2 * ratio + 3
    per_request = last // rows + 1
    state = torch.randn(2 * per_request, rows, 2 * width, generator=g)
    state[..., width:] *= 20  # scores far apart: weights underflow
    state[1] *= 1e-20
    state[2, :, :width] *= 1e18
    positions = torch.tensor([ratio - 1, 2 * ratio - 1, 2 * ratio, 0, 2 * ratio - 1, ratio - 1])[:tokens]
    table = torch.randperm(2 * per_request, generator=g).to(torch.int32).view(2, per_request)
    return {
        "state_cache": state, "positions": positions,
        "token_to_req": torch.tensor([0, 0, 0, 1, 1, 1], dtype=torch.int32)[:tokens],
        "slot_mapping": torch.arange(tokens), "block_table": against.spread(table),
        "cos_sin": torch.randn(3 * ratio, 64, generator=g),
        "norm_weight": torch.randn(dim, generator=g),
        "k_cache": against.in_parent(against.pages(layout, 3, 4), 2, 6),
        "kv_slot_mapping": torch.tensor([7, 2, 3, 4, 11, -1])[:tokens], "ratio": ratio, "head_dim": dim,
        "rows": 4, "layout": layout, "eps": 1e-6, "rotate": get_layout(layout).rotate,
    }  # fmt: skip


MAIN = ("fp8_ds_mla", "fp8_ds_mla_fnuz", "bf16_row", "fp8_row")
INDEX = ("index_fp8", "index_fp8_ue8m0x4", "index_fp8_hadamard_f32", "index_mxfp4", "index_mxfp4_hadamard")


@pytest.mark.parametrize("layout", [*MAIN, *INDEX])
def test_ratio_4(layout: str) -> None:
    against.exact(OP, windows(layout, 4))
    against.exact(
        OP, {**windows(layout, 4, seed=1), "norm_weight": torch.ones(get_layout(layout).width).bfloat16()}
    )


@pytest.mark.parametrize("layout", ["fp8_ds_mla", "bf16_row", "index_fp8"])
def test_ratio_128(layout: str) -> None:
    against.exact(OP, windows(layout, 128))


@pytest.mark.parametrize("lead", [1, 4])
def test_bytes_of_an_odd_parent(lead: int) -> None:
    given = windows("index_fp8", 4)
    given["k_cache"] = against.in_parent(against.pages("index_fp8", 3, 4), lead, 9)
    against.exact(OP, given)


def test_equal_scores_and_infinite_ones() -> None:
    given = windows("fp8_ds_mla", 4)
    given["state_cache"][..., 1024:] = 3.0
    against.exact(OP, given)
    given["state_cache"][:, 1, 1024:] = -torch.inf
    against.exact(OP, given)


def test_shorter_slots_and_padding() -> None:
    given = windows("fp8_ds_mla", 4)
    given["slot_mapping"] = torch.tensor([0, -1, 2, 3])
    against.exact(OP, given)


def test_refusals() -> None:
    given = windows("fp8_ds_mla", 4)
    for changed in (
        {"ratio": 8},
        {"head_dim": 128},
        {"rotate": "hadamard"},
        {"state_cache": torch.zeros(4, 4, 1024)},
    ):
        with pytest.raises(OpArgumentError, match=next(iter(changed))):
            against.kernel(OP)(**{**given, **changed})
    given["block_table"][0, 0] = -1
    with pytest.raises(OpArgumentError, match="block_table"):
        against.kernel(OP)(**given)
