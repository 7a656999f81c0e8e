"""DeepSeek-V4 attention on an NVIDIA device."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from dsv4core.backend import Backend
from dsv4core.cache import LayerCache
from dsv4core.config import AttentionConfig
from dsv4core.ops._contract import check_mode
from dsv4core.ops_attention import OpsAttention
from dsv4core.plan import BatchPlan, PrefillChunk
from dsv4core.weights import AttentionWeights
from dsv4core_cuda.flashmla import Pages


class DeepseekV4CUDAAttention(OpsAttention):
    """FlashMLA over a plan's own lists: one schedule a step, heads padded once, results not copied.

    Small steps write compressed caches and choose entries on side streams. Without FlashMLA, in checked mode
    and while compiling, attention goes through the ops of the backend, whose lists may be anything.
    """

    def __init__(
        self, config: AttentionConfig, layer: int, weights: AttentionWeights, backend: Backend
    ) -> None:
        provider = backend.provider
        self.flash, self.schedules, self.cluster = provider.flash, provider.schedules, provider.cluster
        self.streams, self.stream_tokens = provider.streams, provider.stream_tokens
        self.fuse_output = provider.fuse_output
        super().__init__(config, layer, weights, backend)

    @cached_property
    def padded_heads(self) -> int:
        """64 or 128 where FlashMLA decodes: queries are written padded, with sinks of -inf."""
        if self.flash is None:
            return self.heads
        return self.flash.padded_heads(self.heads, self.config.main_layout)

    def prepare(
        self, x: Tensor, pages: LayerCache, plan: BatchPlan, cos_sin: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Queries on the stream of the caller, entries and index beside it: they share inputs alone."""
        if not self._forks(x):
            return super().prepare(x, pages, plan, cos_sin)
        main = torch.accelerator.current_stream(x.device)
        first, second = self.streams.of(main)
        first.wait_stream(main)
        with first:
            self.close_windows(x, pages, plan, cos_sin)
        qr, kv = self.latents(x)
        selected: Tensor | None = None
        if self.indexer is not None:
            second.wait_stream(main)
            with second:
                selected = self.select(x, qr, pages, plan, cos_sin)
        q = self.queries(qr, kv, pages, plan, cos_sin)
        main.wait_stream(first)
        if self.indexer is not None:  # a stream that was not forked is no part of a capture
            main.wait_stream(second)
        return q, selected

    def attend_turned(
        self, q: Tensor, selected: Tensor | None, pages: LayerCache, plan: BatchPlan, cos_sin: Tensor
    ) -> tuple[Tensor, Tensor | None] | None:
        """Where asked, our own decode kernel turns back as well, if it is who decodes a step."""
        if not self.fuse_output or torch.compiler.is_compiling():
            return None
        if self.cluster is None:
            return None
        listed, extra = plan.c128_slots if selected is None else selected, None
        if listed is not None and pages.compressed is not None and self.group is not None:
            # Their slots take a kernel to make, and only how many there are is asked here.
            extra = self._listed(pages.compressed, listed, plan.swa_lens, plan.rows[self.group])
        swa = self._listed(pages.swa, plan.swa_slots, plan.swa_lens, plan.rows["swa"])
        if self.cluster.against(q, swa, extra):
            return None
        return self.over_pages_turned(q, selected, pages, plan, cos_sin)

    def attend(self, q: Tensor, selected: Tensor | None, pages: LayerCache, plan: BatchPlan) -> Tensor:
        """All rows of a step; rows of one sort come back in FlashMLA's own result."""
        if self._direct():
            if plan.num_decode_tokens == q.shape[0]:
                return self._decoded(q, selected, pages, plan)
            if plan.num_prefill_tokens == q.shape[0] and len(plan.prefill_chunks) == 1:
                return self._prefilled(q, selected, pages, plan, plan.prefill_chunks[0])
        return super().attend(q, selected, pages, plan)

    def decode(
        self, q: Tensor, selected: Tensor | None, pages: LayerCache, plan: BatchPlan, out: Tensor
    ) -> None:
        """Decode rows of a step that has others too."""
        if not self._direct():
            return super().decode(q, selected, pages, plan, out)
        rows = slice(0, plan.num_decode_tokens)
        out[rows] = self._decoded(q[rows], selected, pages, plan)
        return None

    def prefill(
        self, q: Tensor, selected: Tensor | None, pages: LayerCache, plan: BatchPlan, out: Tensor
    ) -> None:
        """Prefill rows, chunk by chunk."""
        if not self._direct():
            return super().prefill(q, selected, pages, plan, out)
        for chunk in plan.prefill_chunks:
            rows = slice(chunk.token_start, chunk.token_end)
            out[rows] = self._prefilled(q[rows], selected, pages, plan, chunk)
        return None

    def _direct(self) -> bool:
        """Whether lists go to FlashMLA as they are: they are this layer's own; checked mode looks at them."""
        return not torch.compiler.is_compiling() and self.flash is not None and check_mode() != "1"

    def _forks(self, x: Tensor) -> bool:
        return (
            not torch.compiler.is_compiling()
            and self.compressor is not None
            and x.shape[0] <= self.stream_tokens
            and x.device.type == "cuda"
        )

    def _listed(self, cache: Tensor, slots: Tensor, lens: Tensor, rows: int) -> Pages:
        return Pages(cache, slots, lens, rows, self.config.main_layout)

    def _decoded(self, q: Tensor, selected: Tensor | None, pages: LayerCache, plan: BatchPlan) -> Tensor:
        """Decode rows. Shapes: q [Td, padded_heads, 512] -> the same."""
        slots, lens = self.entries(selected, plan)
        rows, ratio = slice(0, plan.num_decode_tokens), self.layer.ratio
        swa = self._listed(pages.swa, plan.swa_slots[rows], plan.swa_lens[rows], plan.rows["swa"])
        extra: Pages | None = None
        if slots is not None and lens is not None and pages.compressed is not None and self.group is not None:
            extra = self._listed(pages.compressed, slots, lens, plan.rows[self.group])
        own = self.cluster is not None and not self.cluster.against(q, swa, extra)
        if own or self.flash.decodes(q, swa, extra).provider != "flashmla":
            out = torch.empty_like(q)
            self.over_pages(q, slots, lens, pages, plan, out)
            return out
        width = 0 if slots is None else slots.shape[1]
        shared = self.schedules.get(plan, ratio, width, q.shape[1], self.flash.library.schedule)
        if extra is not None and shared.lens is not None:
            extra = self._listed(extra.cache, extra.slots, shared.lens, extra.rows)
        out, _ = self.flash.decode(
            q, swa, extra, self.attn_sink, self.config.softmax_scale, trusted=True, schedule=shared.schedule
        )
        return out

    def _prefilled(
        self, q: Tensor, selected: Tensor | None, pages: LayerCache, plan: BatchPlan, chunk: PrefillChunk
    ) -> Tensor:
        """Rows of a chunk. Shapes: q [Tc, padded_heads, 512] -> the same."""
        kv, indices, lens = self.gathered(selected, pages, plan, chunk)
        scale = self.config.softmax_scale
        if self.flash.prefills(q, kv, indices).provider != "flashmla":
            out = torch.empty_like(q)
            self.ops.sparse_prefill(q, kv, indices, lens, self.attn_sink, out, scale=scale)
            return out
        return self.flash.prefill(q, kv, indices, lens, self.attn_sink, scale, trusted=True)[0]
