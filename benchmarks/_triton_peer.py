"""FlashMLA beside the Triton kernels: the same tensors, and the half of sgl-flash-mla that Hopper needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from _triton_calls import Arguments, timed
from torch import Tensor

INSTALLED = find_spec("flash_mla") is not None


def peer_calls(calls: Sequence[Arguments]) -> list[Arguments]:
    """The same calls as FlashMLA takes them; one plan for all, since all have the same lengths."""
    if not INSTALLED:
        return []
    import flash_mla

    plan = flash_mla.get_mla_metadata()[0]
    return [
        {
            "q": c["q"].unsqueeze(1), "k_cache": _pages(c["swa_cache"], c["swa_rows"]), "block_table": None,
            "cache_seqlens": None, "head_dim_v": 512, "tile_scheduler_metadata": plan,
            "softmax_scale": c["scale"], "is_fp8_kvcache": True, "indices": c["swa_slots"].unsqueeze(1),
            "attn_sink": c["attn_sink"], "extra_k_cache": _pages(c["extra_cache"], c["extra_rows"]),
            "extra_indices_in_kvcache": c["extra_slots"].unsqueeze(1), "topk_length": c["swa_lens"],
            "extra_topk_length": c["extra_lens"], "use_legacy": True,
        }
        for c in calls
    ]  # fmt: skip


def _pages(cache: Tensor, rows: int) -> Tensor:
    # Records are not 584 bytes apart, and pages may be padded: only these strides name the same bytes.
    return cache.as_strided((cache.shape[0], rows, 1, 584), (cache.stride(0), 584, 584, 1))


def peer_decode(call: Arguments) -> Any:
    """One decode call of FlashMLA."""
    import flash_mla

    return flash_mla.flash_mla_with_kvcache(**call)


def peer_prefill(q: Tensor, kv: Tensor, indices: Tensor, lens: Tensor, sink: Tensor) -> Any:
    """One prefill call of FlashMLA."""
    import flash_mla

    return flash_mla.flash_mla_sparse_fwd(
        q, kv.unsqueeze(1), indices.unsqueeze(1), 512**-0.5, 512, attn_sink=sink, topk_length=lens,
        use_legacy=True,
    )  # fmt: skip


def peer_time(calls: Sequence[Callable[[], Any]], rounds: int = 20) -> tuple[float, str]:
    """Microseconds of one call, NaN without FlashMLA, and what to print beside."""
    if not INSTALLED or not calls:
        return float("nan"), "FlashMLA not installed"
    us, eager = timed(calls, rounds)
    return us, f"FlashMLA {us:6.1f} us, host {eager:5.1f} us"
