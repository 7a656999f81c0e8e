"""Per-head query norm, RoPE of query and key, and the window page write, in one launch."""

import triton
import triton.language as tl
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.kernels.triton._launch import alignment, block, launch, pieces, power, supported
from dsv4core.kernels.triton._pages import MAIN, store_as, store_main_rows
from dsv4core.kernels.triton._tuning import native_e4m3
from dsv4core.kernels.triton.numerics import inverse_rms, rotate, widen

NAME = "fused_qnorm_rope_kv_insert"


@triton.jit(do_not_specialize=["slots_given", "parts"])
def fused_qnorm_rope_kv_insert_kernel(
    q, kv, positions, cos_sin, cache, slots, out,
    slots_given, parts, heads, padded, q_stride, q_head_stride, kv_stride, position_stride, table_stride,
    page_stride, slot_stride, eps,
    rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, HARDWARE: tl.constexpr,
    HEADS: tl.constexpr,
):  # fmt: skip
    """Per token parts - 1 programs of HEADS heads each, and a last one for the key row."""
    pid = tl.program_id(0)
    t = (pid // parts).to(tl.int64)
    part = pid % parts
    d = tl.arange(0, 512)[None, :]
    j = tl.arange(0, 64)[None, :]
    half = tl.arange(0, 32)[None, :]
    angle = cos_sin + tl.load(positions + t * position_stride) * table_stride
    cos, sin = tl.load(angle + half), tl.load(angle + 32 + half)
    if part < parts - 1:
        h = part * HEADS + tl.arange(0, HEADS)[:, None]
        start = q + t * q_stride + h.to(tl.int64) * q_head_stride
        x = widen(tl.load(start + d, (h < heads) & (d < 512), other=0.0))
        inverse = inverse_rms(x, 512, eps)[:, None]
        tail = widen(tl.load(start + 448 + j, (h < heads) & (j < 64), other=0.0))
        target = out + (t * padded + h) * 512
        store_as(target + d, x * inverse, (h < padded) & (d < 448))
        turned = tl.where(h < heads, rotate(tail * inverse, cos, sin, False, 64), 0.0)  # never -0 in padding
        store_as(target + 448 + j, turned, (h < padded) & (j < 64))
    elif t < slots_given:
        one = tl.zeros([1], tl.int64)
        slot = tl.load(slots + t * slot_stride) + one
        live = slot >= 0
        nope = widen(tl.load(kv + t * kv_stride + d, live[:, None] & (d < 448), other=0.0))
        tail = widen(tl.load(kv + t * kv_stride + 448 + j, live[:, None] & (j < 64), other=0.0))
        tail = rotate(tail, cos, sin, False, 64)
        slot = tl.where(live, slot, 0)
        store_main_rows(cache, page_stride, slot, live, nope, tail, rows, LAYOUT, ALIGN, HARDWARE)


def fused_qnorm_rope_kv_insert(
    q: Tensor, kv: Tensor, positions: Tensor, cos_sin: Tensor, k_cache: Tensor, slot_mapping: Tensor, *,
    rows: int, layout: str, eps: float, padded_heads: int,
) -> Tensor:  # fmt: skip
    """Normalise every query head (no weight), rotate queries and keys, and write the keys' window rows.

    Shapes: q bf16 [T, H, 512], kv bf16 [T, 512], positions i64 [T], cos_sin f32 [P, 64], k_cache u8 [N, B]
    (written), slot_mapping i64 [<= T] (negative: skip) -> q bf16 [T, padded_heads, 512], heads H.. are zero.
    """
    supported(NAME, "layout", layout, MAIN)
    tokens, heads, _ = q.shape
    if padded_heads < heads:
        raise OpArgumentError(NAME, "padded_heads", f">= {heads}, the number of heads", str(padded_heads))
    out = q.new_empty(tokens, padded_heads, 512)
    size = min(block(4, 128), power(padded_heads))
    parts = pieces(padded_heads, size) + 1
    launch(
        fused_qnorm_rope_kv_insert_kernel, tokens * parts, q, q, kv, positions, cos_sin, k_cache,
        slot_mapping, out, slot_mapping.shape[0], parts, heads, padded_heads, q.stride(0), q.stride(1),
        kv.stride(0), positions.stride(0), cos_sin.stride(0), k_cache.stride(0), slot_mapping.stride(0), eps,
        rows=rows, LAYOUT=layout, ALIGN=alignment(k_cache), HARDWARE=native_e4m3(q), HEADS=size,
        num_warps=4,
    )  # fmt: skip
    return out
