"""RMS norm of the two low-rank projections."""

from __future__ import annotations

from torch import Tensor

from dsv4core.numerics.norm import rms_norm
from dsv4core.ops._contract import ACTIVATION, NORM, spec
from dsv4core.ops._op import op
from dsv4core.ops._rows import blocks


def _fake(
    qr: Tensor, kv: Tensor, q_weight: Tensor, kv_weight: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    return qr.new_empty(qr.shape), kv.new_empty(kv.shape)


@op(
    fake=_fake,
    tensors={
        "qr": spec("T Q", *ACTIVATION),
        "kv": spec("T D", *ACTIVATION),
        "q_weight": spec("Q", *NORM),
        "kv_weight": spec("D", *NORM),
    },
)
def fused_q_kv_rmsnorm(
    qr: Tensor, kv: Tensor, q_weight: Tensor, kv_weight: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """RMS-normalise the query latent and the key row, each with its weight; one rounding at the end.

    Shapes: qr bf16 [T, Q], kv bf16 [T, 512], q_weight [Q], kv_weight [512] (bf16 or f32) -> new (qr, kv).
    Inputs may be column slices of one projection. Source: CA1 rule 3.
    """
    return _normed(qr, q_weight, eps), _normed(kv, kv_weight, eps)


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    out = x.new_empty(x.shape)
    for part in blocks(x.shape[0], 2048):
        out[part] = rms_norm(x[part].float(), weight, eps)
    return out
