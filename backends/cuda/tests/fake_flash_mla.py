"""A stand-in for `flash_mla` on host tensors: demands what FlashMLA silently relies on, records calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dsv4core.layout import get_layout
from dsv4core.ops._attend import attend


@dataclass
class Meta:
    """A schedule: which lengths it was made for."""

    made_for: list[list[int]] | None = None


@dataclass
class FakeFlashMLA:
    """The module's functions as methods; `calls` holds the arguments of every call."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    metas: list[Meta] = field(default_factory=list)

    def module(self, legacy: bool = True) -> Any:
        """As sgl-flash-mla (two halves) or as tokenspeed-flashmla (one)."""
        if not legacy:
            return SimpleNamespace(
                get_mla_metadata=self.get_mla_metadata, flash_mla_with_kvcache=self.one_half,
                flash_mla_sparse_fwd=self.one_half_prefill,
            )  # fmt: skip
        return SimpleNamespace(
            has_legacy=lambda: True, get_mla_metadata=self.get_mla_metadata,
            flash_mla_with_kvcache=self.two_halves, flash_mla_sparse_fwd=self.two_halves_prefill,
        )  # fmt: skip

    def get_mla_metadata(self) -> tuple[Meta, None]:
        self.metas.append(Meta())
        return self.metas[-1], None

    def two_halves(
        self, q, k_cache, block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata, num_splits=None,
        softmax_scale=None, causal=False, is_fp8_kvcache=None, indices=None, attn_sink=None,
        extra_k_cache=None, extra_indices_in_kvcache=None, topk_length=None, extra_topk_length=None,
        enable_batch_invariant=False, use_legacy=False, kv_format=None,
    ):  # fmt: skip
        assert use_legacy and not enable_batch_invariant and kv_format is None
        return self.one_half(
            q, k_cache, block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata, num_splits,
            softmax_scale, causal, is_fp8_kvcache, indices, attn_sink, extra_k_cache,
            extra_indices_in_kvcache, topk_length, extra_topk_length,
        )  # fmt: skip

    def one_half(
        self, q, k_cache, block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata, num_splits=None,
        softmax_scale=None, causal=False, is_fp8_kvcache=False, indices=None, attn_sink=None,
        extra_k_cache=None, extra_indices_in_kvcache=None, topk_length=None, extra_topk_length=None,
    ):  # fmt: skip
        assert head_dim_v == 512 and is_fp8_kvcache and not causal
        assert block_table is None and cache_seqlens is None and num_splits is None
        out, lse = self.decode(
            q, k_cache, indices, topk_length, attn_sink, extra_k_cache, extra_indices_in_kvcache,
            extra_topk_length, softmax_scale,
        )  # fmt: skip
        lens = [t.tolist() for t in (topk_length, extra_topk_length) if t is not None]
        meta = tile_scheduler_metadata
        assert meta.made_for in (None, lens), "a schedule of other lengths"
        meta.made_for = lens
        return out, lse

    def two_halves_prefill(
        self, q, kv, indices, sm_scale, d_v=512, attn_sink=None, topk_length=None, use_legacy=False,
        return_log2_lse=None,
    ):  # fmt: skip
        assert use_legacy and return_log2_lse is None
        return self.one_half_prefill(q, kv, indices, sm_scale, d_v, attn_sink, topk_length)

    def one_half_prefill(self, q, kv, indices, sm_scale, d_v=512, attn_sink=None, topk_length=None):
        tokens, heads, _ = q.shape
        assert heads in (64, 128) and indices.shape[2] % 128 == 0 and d_v == 512
        assert kv.shape[1] == 1 and indices.shape[:2] == (tokens, 1)
        listed, lens = checked(indices[:, 0], topk_length, kv.shape[0])
        self.calls.append({"indices": indices, "lens": topk_length, "q": q, "sink": attn_sink, "kv": kv})
        rows = [kv[listed[t, : lens[t]][listed[t, : lens[t]] >= 0], 0] for t in range(tokens)]
        out, lse = softmax(q, rows, attn_sink, sm_scale)
        return out, torch.zeros_like(lse), lse

    def decode(
        self, q, cache, slots, lens, sink, extra, extra_slots, extra_lens, scale
    ) -> tuple[Tensor, Tensor]:
        """The kernel: q [T, 1, H, 512] -> out [T, 1, H, 512], lse [T, H, 1]."""
        tokens, one, heads, _ = q.shape
        assert one == 1 and heads in (64, 128) and sink.shape == (heads,) and q.dtype == torch.bfloat16
        self.calls.append({"q": q, "slots": slots, "lens": lens, "sink": sink, "extra_slots": extra_slots,
                           "extra_lens": extra_lens, "cache": cache, "extra": extra})  # fmt: skip
        keys: list[list[Tensor]] = [[] for _ in range(tokens)]
        for pages, listed, count in ((cache, slots, lens), (extra, extra_slots, extra_lens)):
            if pages is None:
                assert listed is None and count is None
                continue
            number, rows, one, size = pages.shape
            assert (one, size) == (1, 584) and pages.stride()[1:] == (584, 584, 1)
            assert pages.data_ptr() % 16 == 0 and pages.stride(0) % 16 == 0
            assert listed.shape[:2] == (tokens, 1) and listed.shape[2] % 64 == 0
            listed, count = checked(listed[:, 0], count, number * rows)
            layout = get_layout("fp8_ds_mla")
            whole = pages.as_strided((number, rows * 584), (pages.stride(0), 1))
            for t in range(tokens):
                found = listed[t, : count[t]]
                found = found[found >= 0].long()
                keys[t].append(layout.decode(layout.read(whole, found, rows)))
        out, lse = softmax(q[:, 0], [torch.cat(k) for k in keys], sink, scale)
        return out.unsqueeze(1), lse.unsqueeze(2)


def checked(listed: Tensor, lens: Tensor, rows: int) -> tuple[Tensor, list[int]]:
    """A list FlashMLA can take: -1 or a row everywhere, also behind a length; lengths within it."""
    assert listed.dtype == lens.dtype == torch.int32 and listed.stride(1) == 1 and lens.is_contiguous()
    assert int(listed.min()) >= -1 and int(listed.max()) < rows
    assert int(lens.min()) >= 0 and int(lens.max()) <= listed.shape[1]
    return listed, lens.tolist()


def softmax(q: Tensor, rows: list[Tensor], sink: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = torch.empty_like(q), sink.new_empty(q.shape[:2])
    for t, keys in enumerate(rows):
        attend(q[t], keys.float(), sink, scale, out[t], lse[t])
    return out, lse
