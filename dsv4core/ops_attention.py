"""The layer on ops alone: what a backend gets that brings no layer class of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsv4core.attention import DeepseekV4Attention
from dsv4core.cache import LayerCache
from dsv4core.config import AttentionConfig
from dsv4core.ops import fused_sparse_decode_inv_rope
from dsv4core.plan import BatchPlan, PrefillChunk
from dsv4core.weights import AttentionWeights

if TYPE_CHECKING:
    from dsv4core.backend import Backend


class OpsAttention(DeepseekV4Attention):
    """Both holes filled with ops: `sparse_decode` over pages, gather and `sparse_prefill` over scratch."""

    passed_over = DeepseekV4Attention.passed_over | {"over_pages", "attend_pages"}

    def __init__(
        self, config: AttentionConfig, layer: int, weights: AttentionWeights, backend: Backend
    ) -> None:
        super().__init__(config, layer, weights, backend)
        self.turns_itself = backend.ops.brings(fused_sparse_decode_inv_rope.NAME)

    def decode(
        self, q: Tensor, selected: Tensor | None, pages: LayerCache, plan: BatchPlan, out: Tensor
    ) -> None:
        """One `sparse_decode` over the window list and the compressed list."""
        slots, lens = self.entries(selected, plan)
        rows = slice(0, plan.num_decode_tokens)
        self.over_pages(q[rows], slots, lens, pages, plan, out[rows])

    def over_pages(
        self, q: Tensor, slots: Tensor | None, lens: Tensor | None, pages: LayerCache, plan: BatchPlan,
        out: Tensor,
    ) -> None:  # fmt: skip
        """The op on the decode rows. Shapes: q, out [Td, padded_heads, 512]; slots, lens of `entries`."""
        rows = slice(0, plan.num_decode_tokens)
        self.attend_pages(
            q, pages.swa, plan.swa_slots[rows], plan.swa_lens[rows], pages.compressed, slots, lens,
            self.attn_sink, out, **self._how(plan),
        )  # fmt: skip

    def over_pages_turned(
        self, q: Tensor, selected: Tensor | None, pages: LayerCache, plan: BatchPlan, cos_sin: Tensor
    ) -> tuple[Tensor, Tensor | None] | None:
        """`attend_turned` by the optional op, for a class that wants it: it is nobody's default.

        None unless every row is a decode row, no head is padded and the backend has code of its own for it.
        Shapes: q [T, H, 512] -> what `turn` returns.
        """
        alone = 0 < plan.num_decode_tokens == q.shape[0] and self.padded_heads == self.heads
        if not alone or not self.turns_itself:
            return None
        slots, lens = self.entries(selected, plan)
        return self.ops.fused_sparse_decode_inv_rope(
            q, pages.swa, plan.swa_slots, plan.swa_lens, pages.compressed, slots, lens, self.attn_sink,
            plan.positions, cos_sin, **self._how(plan), groups=self.config.o_groups,
            scale_format=self.config.output_quant or fused_sparse_decode_inv_rope.UNQUANTISED,
        )  # fmt: skip

    def _how(self, plan: BatchPlan) -> dict[str, Any]:
        """What an op over pages is told beside tensors."""
        layout = self.config.main_layout
        return {
            "scale": self.config.softmax_scale, "swa_rows": plan.rows["swa"],
            "extra_rows": plan.rows[self.group] if self.group else 1, "layout": layout,
            "extra_layout": layout,
        }  # fmt: skip

    def entries(self, selected: Tensor | None, plan: BatchPlan) -> tuple[Tensor | None, Tensor | None]:
        """The entries that decode rows attend to. Shapes: slots i32 [Td, K], lens i32 [Td], or None."""
        rows = slice(0, plan.num_decode_tokens)
        if selected is not None and self.group is not None:
            return self.ops.compute_global_topk_indices_and_lens(
                selected[rows], plan.token_to_req[rows], plan.tables[self.group], plan.is_valid[rows],
                rows=plan.rows[self.group],
            )  # fmt: skip
        if plan.c128_slots is not None and plan.c128_lens is not None and self.group is not None:
            return plan.c128_slots[rows], plan.c128_lens[rows]
        return None, None

    def prefill(
        self, q: Tensor, selected: Tensor | None, pages: LayerCache, plan: BatchPlan, out: Tensor
    ) -> None:
        """Chunk by chunk: gather entries and window rows, join the lists, one `sparse_prefill`."""
        for chunk in plan.prefill_chunks:
            kv, indices, lens = self.gathered(selected, pages, plan, chunk)
            rows = slice(chunk.token_start, chunk.token_end)
            self.attend_rows(
                q[rows], kv, indices, lens, self.attn_sink, out[rows], scale=self.config.softmax_scale
            )

    def attend_pages(self, *args: Any, **kwargs: Any) -> None:
        """`sparse_decode`, of which the layer needs the written output alone; for backends to replace."""
        self.ops.sparse_decode(*args, **kwargs)

    def attend_rows(self, *args: Any, **kwargs: Any) -> None:
        """`sparse_prefill`, of which the layer needs the written output alone; for backends to replace."""
        self.ops.sparse_prefill(*args, **kwargs)

    def gathered(
        self, selected: Tensor | None, pages: LayerCache, plan: BatchPlan, chunk: PrefillChunk
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keys of a chunk in the workspace and what its rows attend to among them.

        Shapes: -> [n * M, 512], i32 [Tc, K], i32 [Tc].
        """
        kv = self._gather(pages, plan, chunk)
        rows, ratio = slice(chunk.token_start, chunk.token_end), self.layer.ratio
        if selected is not None:
            listed = selected[rows]
        elif self.group is not None and plan.c128_slots is not None:  # all of them: one row for everybody
            every = torch.arange(plan.c128_slots.shape[1], dtype=torch.int32, device=self.device)
            listed = every.expand(chunk.num_tokens, -1)
        else:
            listed = plan.swa_slots[rows, :0]
        indices, lens = self.ops.combine_topk_swa_indices(
            listed, chunk.query_start_loc, chunk.seq_lens, chunk.gather_lens,
            window=self.config.sliding_window, ratio=ratio, top_k=listed.shape[1], M=chunk.M[ratio],
            N=chunk.N[ratio],
        )  # fmt: skip
        return kv, indices, lens

    def _gather(self, pages: LayerCache, plan: BatchPlan, chunk: PrefillChunk) -> Tensor:
        """The chunk's keys. Shapes: -> [n * M, 512]: of M rows entries from row 0, window rows from row N."""
        ratio, requests = self.layer.ratio, slice(chunk.request_start, chunk.request_end)
        count, most, dim = chunk.num_requests, chunk.M[ratio], self.config.head_dim
        # Rows are what is allocated and the requests a view of them, never the other way round: of a written
        # [1, M, 512] with an M that varies inductor makes a copy onto itself (pytorch#189271).
        kv = self.workspace.take((count * most, dim), self.dtype, self.device)
        keys, layout = kv.view(count, most, dim), self.config.main_layout
        if self.group is not None and pages.compressed is not None:
            self.ops.dequantize_and_gather_k_cache(
                keys, pages.compressed, chunk.entry_lens[ratio], None, plan.tables[self.group][requests],
                rows=plan.rows[self.group], offset=0, layout=layout,
            )  # fmt: skip
        self.ops.dequantize_and_gather_k_cache(
            keys, pages.swa, chunk.seq_lens, chunk.gather_lens, plan.tables["swa"][requests],
            rows=plan.rows["swa"], offset=chunk.N[ratio], layout=layout,
        )  # fmt: skip
        return kv
