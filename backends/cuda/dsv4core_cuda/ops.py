"""The attention ops: our own kernel for few tokens, FlashMLA where it can, Triton's kernel where not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from dsv4core.ops.fused_inv_rope_fp8_quant import check_output
from dsv4core.ops.fused_sparse_decode_inv_rope import NAME as TURNED
from dsv4core.ops.sparse_decode import NAME as DECODE
from dsv4core.ops.sparse_decode import extra_list
from dsv4core_cuda.cluster import ClusterDecode
from dsv4core_cuda.cutedsl.sparse_decode import FORMATS
from dsv4core_cuda.flashmla import FlashMLA, Pages


def sparse_decode(
    flash: FlashMLA | None, fallback: Callable[..., Any], cluster: ClusterDecode | None = None
) -> Callable[..., Any]:
    """The op `sparse_decode` over our own kernel, an adapter and the kernel for everything else."""

    def op(
        q: Tensor, swa_cache: Tensor, swa_slots: Tensor, swa_lens: Tensor, extra_cache: Tensor | None,
        extra_slots: Tensor | None, extra_lens: Tensor | None, attn_sink: Tensor, out: Tensor, *,
        scale: float, swa_rows: int, extra_rows: int, layout: str, extra_layout: str,
    ) -> Tensor:  # fmt: skip
        """Attend to the listed rows of both caches."""
        extra = _second(DECODE, extra_cache, extra_slots, extra_lens, extra_rows, extra_layout)
        swa = Pages(swa_cache, swa_slots, swa_lens, swa_rows, layout)
        if cluster is not None and not cluster.against(q, swa, extra):
            return cluster.decode(q, swa, extra, attn_sink, out, scale)
        if flash is not None and flash.decodes(q, swa, extra, alone=True).provider == "flashmla":
            found, lse = flash.decode(q, swa, extra, attn_sink, scale)
            out.copy_(found)
            return lse.contiguous()
        return fallback(
            q, swa_cache, swa_slots, swa_lens, extra_cache, extra_slots, extra_lens, attn_sink, out,
            scale=scale, swa_rows=swa_rows, extra_rows=extra_rows, layout=layout, extra_layout=extra_layout,
        )  # fmt: skip

    return op


def fused_sparse_decode_inv_rope(fallback: Callable[..., Any], cluster: ClusterDecode) -> Callable[..., Any]:
    """The op `fused_sparse_decode_inv_rope` over our own kernel and the body for everything else."""

    def op(
        q: Tensor, swa_cache: Tensor, swa_slots: Tensor, swa_lens: Tensor, extra_cache: Tensor | None,
        extra_slots: Tensor | None, extra_lens: Tensor | None, attn_sink: Tensor, positions: Tensor,
        cos_sin: Tensor, *, scale: float, swa_rows: int, extra_rows: int, layout: str, extra_layout: str,
        groups: int, scale_format: str,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Attend to the listed rows of both caches, turn outputs back and round them once."""
        check_output(TURNED, q.shape[1], groups, scale_format, FORMATS)
        swa = Pages(swa_cache, swa_slots, swa_lens, swa_rows, layout)
        extra = _second(TURNED, extra_cache, extra_slots, extra_lens, extra_rows, extra_layout)
        if not cluster.against(q, swa, extra):
            return cluster.decode_turned(
                q, swa, extra, attn_sink, positions, cos_sin, scale, groups, scale_format
            )
        return fallback(
            q, swa_cache, swa_slots, swa_lens, extra_cache, extra_slots, extra_lens, attn_sink, positions,
            cos_sin, scale=scale, swa_rows=swa_rows, extra_rows=extra_rows, layout=layout,
            extra_layout=extra_layout, groups=groups, scale_format=scale_format,
        )  # fmt: skip

    return op


def _second(
    op: str, cache: Tensor | None, slots: Tensor | None, lens: Tensor | None, rows: int, layout: str
) -> Pages | None:
    """The second list of a decode, or None. Raises OpArgumentError for a cache without one."""
    return None if cache is None else Pages(cache, *extra_list(op, slots, lens), rows, layout)


def sparse_prefill(flash: FlashMLA, fallback: Callable[..., Any]) -> Callable[..., Any]:
    """The op `sparse_prefill` over an adapter and the kernel for everything else."""

    def op(
        q: Tensor, kv: Tensor, indices: Tensor, lens: Tensor, attn_sink: Tensor, out: Tensor, *, scale: float
    ) -> Tensor:
        """Attend to the listed workspace rows."""
        if flash.prefills(q, kv, indices).provider == "flashmla" and q.dtype == kv.dtype == out.dtype:
            found, lse = flash.prefill(q, kv, indices, lens, attn_sink, scale)
            out.copy_(found)
            return lse.contiguous()
        return fallback(q, kv, indices, lens, attn_sink, out, scale=scale)

    return op
