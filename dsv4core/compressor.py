"""The compressor of a layer or of its indexer: project, keep the states, close windows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4core.linear import Linears, Projection
from dsv4core.ops import OpTable
from dsv4core.plan import BatchPlan
from dsv4core.weights import CompressorWeights


@dataclass(frozen=True)
class Compressor:
    """Writes the states of every token and the entries of every window that this step completes.

    `group` and `state_group` name the cache groups of the entries and the states; `layout` the entries'
    pages.
    """

    projection: Projection
    ape: Tensor
    norm: Tensor
    ratio: int
    head_dim: int
    group: str
    state_group: str
    layout: str
    rotate: str
    eps: float

    @staticmethod
    def build(
        weights: CompressorWeights,
        linears: Linears,
        x: torch.dtype,
        *,
        ratio: int,
        head_dim: int,
        group: str,
        layout: str,
        rotate: str,
        eps: float,
    ) -> Compressor:
        """From checkpoint tensors, for activations of type `x`. The product runs in f32."""
        joined = linears.joined(weights.wkv, weights.wgate, x=x, out=torch.float32)
        return Compressor(
            joined, weights.ape, weights.norm, ratio, head_dim, group, f"state_{group}", layout, rotate, eps
        )

    def __call__(
        self, ops: OpTable, hidden: Tensor, state: Tensor, pages: Tensor, plan: BatchPlan, cos_sin: Tensor
    ) -> None:
        """Write states and entries of a step.

        Shapes: hidden [T, hidden], state f32 [N, S, 2W] and pages u8 [N, B] (both written), cos_sin f32
        [P, 64].
        """
        kv, score = self.projection(hidden).chunk(2, dim=1)
        slots = plan.slots[self.state_group]
        ops.save_partial_states(kv, score, self.ape, plan.positions, state, slots, ratio=self.ratio)
        ops.compress_norm_rope_store(
            state, plan.positions, plan.token_to_req, slots, plan.tables[self.state_group], cos_sin,
            self.norm, pages, plan.slots[self.group], ratio=self.ratio, head_dim=self.head_dim,
            rows=plan.rows[self.group], layout=self.layout, eps=self.eps, rotate=self.rotate,
        )  # fmt: skip
