"""RMS norm of the two low-rank projections, one launch."""

import triton
import triton.language as tl
from torch import Tensor

from dsv4core.kernels.triton._early import start_early
from dsv4core.kernels.triton._launch import launch, pieces, power
from dsv4core.kernels.triton._pages import store_as
from dsv4core.kernels.triton._tuning import tuned
from dsv4core.kernels.triton.numerics import inverse_rms, widen


@triton.jit
def _normalise(x, weight, out, row, live, stride, out_stride, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    d = tl.arange(0, BLOCK)[None, :]
    mask = live[:, None] & (d < WIDTH)
    y = widen(tl.load(x + row[:, None] * stride + d, mask, other=0.0))
    w = widen(tl.load(weight + d, d < WIDTH, other=0.0))
    normed = y * inverse_rms(y, WIDTH, eps)[:, None]
    store_as(out + row[:, None] * out_stride + d, normed * w, mask)


@triton.jit(do_not_specialize=["tokens"])
def fused_q_kv_rmsnorm_kernel(
    q, kv, q_weight, kv_weight, q_out, kv_out, tokens, q_stride, kv_stride, eps,
    Q: tl.constexpr, KV: tl.constexpr, Q_BLOCK: tl.constexpr, KV_BLOCK: tl.constexpr, ROWS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Program 2i normalises ROWS rows of q, program 2i + 1 those of kv."""
    start_early(EARLY)
    pid = tl.program_id(0)
    row = (pid // 2).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = row < tokens
    if pid % 2 == 0:
        _normalise(q, q_weight, q_out, row, live, q_stride, Q, eps, Q, Q_BLOCK)
    else:
        _normalise(kv, kv_weight, kv_out, row, live, kv_stride, KV, eps, KV, KV_BLOCK)


def fused_q_kv_rmsnorm(
    qr: Tensor, kv: Tensor, q_weight: Tensor, kv_weight: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """RMS-normalise the query latent and the key row, each with its weight; one rounding at the end.

    Shapes: qr bf16 [T, Q], kv bf16 [T, 512], weights [Q] and [512] -> new (qr, kv).
    """
    tokens, q_width = qr.shape
    q_out, kv_out = qr.new_empty(qr.shape), kv.new_empty(kv.shape)
    meta = tuned("fused_q_kv_rmsnorm", qr, width=q_width)
    launch(
        fused_q_kv_rmsnorm_kernel, 2 * pieces(tokens, meta["ROWS"]), qr, qr, kv, q_weight, kv_weight, q_out,
        kv_out, tokens, qr.stride(0), kv.stride(0), eps,
        Q=q_width, KV=kv.shape[1], Q_BLOCK=power(q_width), KV_BLOCK=power(kv.shape[1]), **meta,
    )  # fmt: skip
    return q_out, kv_out
