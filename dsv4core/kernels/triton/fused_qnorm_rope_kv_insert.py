"""Per-head query norm, RoPE of query and key, and the window page write, in one launch."""

import triton
import triton.language as tl
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.kernels.triton._early import start_early
from dsv4core.kernels.triton._heads import angles, token_and_head
from dsv4core.kernels.triton._launch import alignment, launch, pieces, supported
from dsv4core.kernels.triton._pages import MAIN, store_as, store_main_rows
from dsv4core.kernels.triton._tuning import native_e4m3, tuned
from dsv4core.kernels.triton.numerics import inverse_rms, rotate, widen

NAME = "fused_qnorm_rope_kv_insert"


@triton.jit
def _heads(
    q, positions, cos_sin, out, row, tokens, heads, padded, q_stride, q_head_stride, position_stride,
    table_stride, eps,
):  # fmt: skip
    """Normalise and rotate heads; those of the padding become +0. Shapes: row i32 [R] of tokens * padded."""
    t, h = token_and_head(row, padded)
    inside = t < tokens
    live = (inside & (h < heads))[:, None]
    d = tl.arange(0, 512)[None, :]
    j = tl.arange(0, 64)[None, :]
    cos, sin = angles(cos_sin, positions, t, inside, position_stride, table_stride)
    start = q + (t * q_stride + h * q_head_stride)[:, None]
    x = widen(tl.load(start + d, live & (d < 512), other=0.0))
    inverse = inverse_rms(x, 512, eps)[:, None]
    tail = widen(tl.load(start + 448 + j, live & (j < 64), other=0.0))
    turned = tl.where(live, rotate(tail * inverse, cos, sin, False, 64), 0.0)
    target = out + ((t * padded + h) * 512)[:, None]
    store_as(target + d, x * inverse, inside[:, None] & (d < 448))
    store_as(target + 448 + j, turned, inside[:, None] & (j < 64))


@triton.jit
def _keys(
    kv, positions, cos_sin, cache, slots, t, slots_given, kv_stride, position_stride, table_stride,
    page_stride, slot_stride,
    rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """Rotate key rows and write them. Shapes: t i64 [R]."""
    slot = tl.load(slots + t * slot_stride, t < slots_given, other=-1)
    live = slot >= 0
    d = tl.arange(0, 512)[None, :]
    j = tl.arange(0, 64)[None, :]
    cos, sin = angles(cos_sin, positions, t, live, position_stride, table_stride)
    start = kv + (t * kv_stride)[:, None]
    nope = tl.load(start + d, live[:, None] & (d < 448), other=0.0)
    tail = widen(tl.load(start + 448 + j, live[:, None] & (j < 64), other=0.0))
    tail = rotate(tail, cos, sin, False, 64)
    slot = tl.where(live, slot, 0)
    store_main_rows(cache, page_stride, slot, live, nope, tail, rows, LAYOUT, ALIGN, HARDWARE)


@triton.jit(do_not_specialize=["tokens", "slots_given", "q_programs", "positions", "slots"])
def fused_qnorm_rope_kv_insert_kernel(
    q, kv, positions, cos_sin, cache, slots, out,
    tokens, slots_given, q_programs, heads, padded, q_stride, q_head_stride, kv_stride, position_stride,
    table_stride, page_stride, slot_stride, eps,
    rows: tl.constexpr, LAYOUT: tl.constexpr, ALIGN: tl.constexpr, HARDWARE: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The first q_programs programs take ROWS heads each, the others KEYS key rows."""
    start_early(EARLY)
    pid = tl.program_id(0)
    if pid < q_programs:
        _heads(
            q, positions, cos_sin, out, pid * ROWS + tl.arange(0, ROWS), tokens, heads, padded, q_stride,
            q_head_stride, position_stride, table_stride, eps,
        )  # fmt: skip
    else:
        _keys(
            kv, positions, cos_sin, cache, slots, (pid - q_programs).to(tl.int64) * KEYS + tl.arange(0, KEYS),
            slots_given, kv_stride, position_stride, table_stride, page_stride, slot_stride,
            rows, LAYOUT, ALIGN, HARDWARE,
        )  # fmt: skip


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
    meta = tuned(NAME, q)
    count, q_programs = slot_mapping.shape[0], pieces(tokens * padded_heads, meta["ROWS"])
    launch(
        fused_qnorm_rope_kv_insert_kernel, q_programs + pieces(count, meta["KEYS"]), q, q, kv, positions,
        cos_sin, k_cache, slot_mapping, out, tokens, count, q_programs, heads, padded_heads, q.stride(0),
        q.stride(1), kv.stride(0), positions.stride(0), cos_sin.stride(0), k_cache.stride(0),
        slot_mapping.stride(0), eps,
        rows=rows, LAYOUT=layout, ALIGN=alignment(k_cache), HARDWARE=native_e4m3(q), **meta,
    )  # fmt: skip
    return out
