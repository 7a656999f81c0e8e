"""Top-k of a row by radix selection: ascending indices, ties to the lower index, -1 behind."""

import triton
import triton.language as tl
from torch import Tensor

from dsv4core.kernels.triton._launch import block, launch, power
from dsv4core.kernels.triton.numerics import bits_of


@triton.jit
def _keys(scores, i, live):
    """Scores as i32 in the same order: -0 joins +0, NaN counts as -inf."""
    x = tl.load(scores + i, live, other=0.0)
    bits = bits_of(x)
    magnitude = bits & 0x7FFFFFFF
    bits = tl.where(magnitude == 0, 0, bits)
    bits = tl.where(magnitude > 0x7F800000, -8388608, bits)  # the bits of -inf
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _candidates(i, have, fresh, K: tl.constexpr, MERGE: tl.constexpr):
    """Whether place i of a row holds a candidate: of the running list, or of the fresh scores behind it."""
    if MERGE:
        return (i < have) | ((i >= K) & (i - K < fresh))
    else:
        return i < fresh


@triton.jit(do_not_specialize=["first", "count", "score_stride"])
def select_kernel(
    scores, before, lens, out, after_scores, after, first, count, score_stride, len_stride,
    K: tl.constexpr, K_BLOCK: tl.constexpr, MERGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row: four passes of 8 bits find the k-th key, a fifth writes what is kept.

    scores[t, ..] are entries first .. first + count - 1; with MERGE they lie behind K scores of a running
    list whose indices are in `before`, and the new list goes to `after` and `after_scores` besides `out`.
    """
    t = tl.program_id(0).to(tl.int64)
    length = tl.load(lens + t * len_stride)
    place = tl.arange(0, K_BLOCK)
    row = scores + t * score_stride
    if length <= K:  # everything visible, whatever its score
        tl.store(out + t * K + place, tl.where(place < length, place, -1), place < K)
    else:
        fresh = tl.minimum(tl.maximum(length - first, 0), count)
        have = fresh * 0
        total = fresh
        if MERGE:
            have = tl.minimum(tl.minimum(first, length), K)
            total = K + fresh
        wanted = tl.minimum(have + fresh, K)
        left = wanted
        bins = tl.arange(0, 256)
        prefix = fresh * 0
        for step in tl.static_range(4):
            histogram = tl.zeros([256], tl.int32)
            for start in range(0, total, BLOCK):
                i = start + tl.arange(0, BLOCK)
                live = _candidates(i, have, fresh, K, MERGE) & (i < total)
                key = _keys(row, i, live)
                if step == 0:
                    digits = (key >> 24) + 128
                else:
                    live = live & ((key >> (32 - 8 * step)) == prefix)
                    digits = (key >> (24 - 8 * step)) & 255
                histogram += tl.histogram(digits, 256, mask=live)
            above = tl.sum(histogram, 0) - tl.cumsum(histogram, 0)
            hit = (above < left) & (above + histogram >= left)
            left -= tl.sum(tl.where(hit, above, 0), 0)
            chosen = tl.sum(tl.where(hit, bins, 0), 0)
            if step == 0:
                prefix = chosen - 128
            else:
                prefix = prefix * 256 + chosen
        done = fresh * 0
        ties = fresh * 0
        for start in range(0, total, BLOCK):
            i = start + tl.arange(0, BLOCK)
            live = _candidates(i, have, fresh, K, MERGE) & (i < total)
            key = _keys(row, i, live)
            tied = (live & (key == prefix)).to(tl.int32)
            rank = ties + tl.cumsum(tied, 0)
            keep = (live & ((key > prefix) | ((tied != 0) & (rank <= left)))).to(tl.int32)
            target = done + tl.cumsum(keep, 0) - 1
            index = first + i
            if MERGE:
                index = tl.where(i < K, tl.load(before + t * K + i, i < have, other=0), first + i - K)
                tl.store(after + t * K + target, index, keep != 0)
                kept = tl.load(row + i, keep != 0, other=0.0)
                tl.store(after_scores + t * score_stride + target, kept, keep != 0)
            tl.store(out + t * K + target, index, keep != 0)
            done += tl.sum(keep, 0)
            ties += tl.sum(tied, 0)
        tl.store(out + t * K + place, -1, (place >= wanted) & (place < K))


def select(
    scores: Tensor,
    lens: Tensor,
    out: Tensor,
    *,
    first: int,
    count: int,
    merge: tuple[Tensor, Tensor, Tensor] | None,
) -> None:
    """The k best of each row into out [T, k]; `merge` is (indices before, scores after, indices after).

    Shapes: scores f32 [T, >= count] (k more in front with `merge`), lens i32 [T], out i32 [T, k] contiguous.
    """
    k = out.shape[1]
    before, after_scores, after = merge if merge is not None else (out, scores, out)
    launch(
        select_kernel, out.shape[0], out, scores, before, lens, out, after_scores, after, first, count,
        scores.stride(0), lens.stride(0),
        K=k, K_BLOCK=power(k), MERGE=merge is not None, BLOCK=block(4096, 4096), num_warps=8,
    )  # fmt: skip
