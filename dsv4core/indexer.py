"""The indexer of a ratio-4 layer: score the visible entries, list the best."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4core.compressor import Compressor
from dsv4core.config import AttentionConfig
from dsv4core.linear import Linear, Linears
from dsv4core.ops import OpTable
from dsv4core.plan import BatchPlan
from dsv4core.weights import IndexerWeights

GROUP = "indexer"
WORKSPACE_BYTES = 64 << 20  # scores and keys of one chunk


@dataclass(frozen=True)
class Indexer:
    """Writes the index keys of completed windows, then chooses entries for every token."""

    wq_b: Linear
    weights_proj: Linear
    compressor: Compressor
    config: AttentionConfig

    @staticmethod
    def build(
        weights: IndexerWeights, config: AttentionConfig, ratio: int, linears: Linears, x: torch.dtype
    ) -> Indexer:
        """From checkpoint tensors, for activations of type `x`."""
        compressor = Compressor.build(
            weights.compressor, linears, x, ratio=ratio, head_dim=config.index_head_dim, group=GROUP,
            layout=config.index_layout, rotate=config.rotate, eps=config.rms_norm_eps,
        )  # fmt: skip
        wq_b = linears.linear(weights.wq_b, x, quantise=config.activation_quant is not None)
        return Indexer(wq_b, linears.linear(weights.weights_proj, x), compressor, config)

    def __call__(
        self,
        ops: OpTable,
        hidden: Tensor,
        qr: Tensor,
        state: Tensor,
        pages: Tensor,
        plan: BatchPlan,
        cos_sin: Tensor,
    ) -> Tensor:
        """Entries to attend to, ascending, -1 behind.

        Its own compressor runs first: a window completed by this very token can be chosen.
        Shapes: hidden [T, hidden], qr [T, q_lora], state f32 [N, S, 512] and pages u8 [N, B] (both written),
        cos_sin f32 [P, 64] -> i32 [T, index_topk].
        """
        c = self.config
        self.compressor(ops, hidden, state, pages, plan, cos_sin)
        q = self.wq_b(qr).view(-1, c.index_n_heads, c.index_head_dim)
        values, scales, weights = ops.fused_indexer_q_rope_quant(
            plan.positions, q, cos_sin, self.weights_proj(hidden), softmax_scale=c.index_softmax_scale,
            head_scale=c.index_head_scale, format=c.index_format, rotate=c.rotate,
        )  # fmt: skip
        return ops.sparse_indexer(
            values, scales, weights, pages, plan.context_lens[self.compressor.ratio], plan.token_to_req,
            plan.tables[GROUP], rows=plan.rows[GROUP], layout=c.index_layout, k=c.index_topk,
            workspace_bytes=WORKSPACE_BYTES, rotate=c.rotate,
        )  # fmt: skip
