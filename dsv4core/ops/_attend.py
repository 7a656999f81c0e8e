"""Softmax attention of one token over its own keys, with a sink; shared by decode and prefill.

One token at a time: every matrix has a shape that depends on this token alone, so its row cannot depend on
the batch it came in, and rows that were not listed are never touched.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4core.ops._op import Tolerance

ATTENTION = Tolerance(
    "attention",
    4e-3,
    "L2 per (token, head), of the L2 norm of sum_j p_j |k_j|: rounding P and the output to bf16",
)


def attend(q: Tensor, keys: Tensor, sink: Tensor, scale: float, out: Tensor, lse: Tensor) -> None:
    """Write softmax(q K^T scale | sink) K into `out` and the natural log of the sum without sink into `lse`.

    P is rounded to bf16 relative to the row's final maximum unless q is f32 (profile `math`). No key: 0 and
    +inf. Shapes: q [H, 512], keys f32 [n, 512], sink f32 [H], out [H, 512], lse f32 [H].
    """
    if keys.shape[0] == 0:
        out.zero_()
        lse.fill_(torch.inf)
        return
    s = (q.float() @ keys.T).mul_(scale)
    peak = s.amax(dim=1, keepdim=True)
    p = s.sub_(peak).exp_()
    total = p.sum(dim=1)
    torch.add(peak.squeeze(1), total.log(), out=lse)
    if q.dtype == torch.bfloat16:
        p = p.to(torch.bfloat16).float()
    share = torch.sigmoid(lse.double() - sink.double()) / total.double()  # 1 / (total + exp(sink - peak))
    out.copy_((p @ keys) * share.float().unsqueeze(1))
