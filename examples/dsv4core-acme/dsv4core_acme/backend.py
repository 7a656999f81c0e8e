"""The ops that acme has of its own; every other op is the core's portable body, and is reported so."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dsv4core.errors import OpArgumentError

REACH = 2**31
"""Elements that acme's inverse_rope can address; `plugin` declares it."""


class AcmeBackend:
    """Two ops, on any device of torch: DSV4CORE_ACME_DEVICE names it."""

    name = "acme"

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.device_type = torch.device(settings.get("device", "cpu")).type
        self.ops = {"inverse_rope": inverse_rope, "save_partial_states": save_partial_states}


def inverse_rope(o: Tensor, positions: Tensor, cos_sin: Tensor) -> Tensor:
    """Turn the last 64 channels of every head back: products in f32, one rounding at the end."""
    span = o.shape[0] * o.stride(0)
    if span > REACH:
        raise OpArgumentError("inverse_rope", "o", f"within {REACH} elements, acme's reach", f"over {span}")
    cos, sin = cos_sin[positions].unsqueeze(1).chunk(2, dim=-1)
    even, odd = o[..., 448::2].float(), o[..., 449::2].float()
    out = o.clone(memory_format=torch.contiguous_format)
    out[..., 448::2] = even * cos + odd * sin
    out[..., 449::2] = odd * cos - even * sin
    return out


def save_partial_states(
    kv: Tensor, score: Tensor, ape: Tensor, positions: Tensor, state_cache: Tensor, slot_mapping: Tensor,
    *, ratio: int,
) -> None:  # fmt: skip
    """Write [kv | score + ape[position mod ratio]] into the state row of every token with a slot."""
    live = (slot_mapping >= 0).nonzero().squeeze(1)
    page, row = slot_mapping[live] // state_cache.shape[1], slot_mapping[live] % state_cache.shape[1]
    state_cache[page, row] = torch.cat((kv[live], score[live] + ape[positions[live] % ratio]), dim=1)
