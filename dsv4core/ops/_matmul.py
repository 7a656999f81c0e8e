"""Matrix products whose rows do not depend on how many rows came with them.

A library picks its kernel by the number of rows, and kernels differ in the order of their sums. So rows go
in blocks of one fixed size, the last one filled up with zeros: every call has the same shape. Padding T to
a multiple of 8 or 32 in one call is not enough: no call differed on an AMD EPYC (torch 2.13), most did on
an Intel Xeon (torch 2.11). Blocks of these sizes gave equal rows on both, with 1, 2 and 16 threads; f32
blocks of 32 did not with 16.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv4core.linear.activation import reachable
from dsv4core.ops._op import Tolerance

ROW_BLOCK = {torch.bfloat16: 32, torch.float32: 8}
MATMUL = Tolerance("matmul", 4e-3, "relative L2 in bf16 against f64 of the same operands")


def row_invariant_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight^T in blocks of rows of one size, on a CPU.

    A device gets one call: every block would be a launch of its own, and only the CPU promises equal rows.
    Shapes: x bf16 or f32 [T, in], weight [out, in] -> [T, out].
    """
    if x.device.type != "cpu":
        return F.linear(reachable(x), weight)  # here too: a group's rows lie apart, and ops are called alone
    tokens, size = x.shape[0], ROW_BLOCK[x.dtype]
    short = -tokens % size
    padded = F.pad(x, (0, 0, 0, short)) if short else x.contiguous()
    out = x.new_empty(tokens + short, weight.shape[0])
    for start in range(0, tokens, size):
        out[start : start + size] = F.linear(padded[start : start + size], weight)
    return out[:tokens]
