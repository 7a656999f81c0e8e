"""Top-k of a row by radix selection: ascending indices, ties to the lower index, -1 behind.

A long row is cut into spans whose own k best are chosen side by side; the row's are then chosen among those.
They are the same: what is not among the best of its span is not among the best of its row.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv4core.kernels.triton._early import start_early
from dsv4core.kernels.triton._launch import interpreted, launch, pieces, power
from dsv4core.kernels.triton._tuning import tuned
from dsv4core.kernels.triton.numerics import bits_of

SPAN = 8192  # entries of a row that one program takes
BLOCK = 4096  # entries it looks at in one go
CANDIDATE_BYTES = 8  # a score and an index


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
def _candidates(listed, i, first, have, fresh, total, K: tl.constexpr, MODE: tl.constexpr):
    """Whether place i of a row holds a candidate, and its index in the row.

    "plain": fresh scores. "merge": a running list of K places, fresh scores behind it. "listed": a list that
    holds the index of every place, negative where there is none.
    """
    if MODE == "plain":
        return i < fresh, first + i
    elif MODE == "merge":
        index = tl.where(i < K, tl.load(listed + i, i < have, other=0), first + i - K)
        return (i < have) | ((i >= K) & (i - K < fresh)), index
    else:
        index = tl.load(listed + i, i < total, other=-1)
        return index >= 0, index


@triton.jit
def _choose(
    scores, listed, out, out_scores, first, have, fresh, total, wanted,
    K: tl.constexpr, K_BLOCK: tl.constexpr, MODE: tl.constexpr, SCORES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Four passes of 8 bits find the wanted-th key, a fifth writes what is kept."""
    left = wanted
    stop = tl.cdiv(total, BLOCK) * BLOCK  # whole steps: interpreted rows of other lengths go along
    bins = tl.arange(0, 256)
    prefix = total * 0
    for step in tl.static_range(4):
        histogram = tl.zeros([256], tl.int32)
        for start in range(0, stop, BLOCK):
            i = start + tl.arange(0, BLOCK)
            live, _ = _candidates(listed, i, first, have, fresh, total, K, MODE)
            key = _keys(scores, i, live)
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
    done = total * 0
    ties = total * 0
    for start in range(0, stop, BLOCK):
        i = start + tl.arange(0, BLOCK)
        live, index = _candidates(listed, i, first, have, fresh, total, K, MODE)
        key = _keys(scores, i, live)
        tied = (live & (key == prefix)).to(tl.int32)
        rank = ties + tl.cumsum(tied, 0)
        keep = (live & ((key > prefix) | ((tied != 0) & (rank <= left)))).to(tl.int32)
        target = done + tl.cumsum(keep, 0) - 1
        tl.store(out + target, index, keep != 0)
        if SCORES:
            tl.store(out_scores + target, tl.load(scores + i, keep != 0, other=0.0), keep != 0)
        done += tl.sum(keep, 0)
        ties += tl.sum(tied, 0)
    place = tl.arange(0, K_BLOCK)
    tl.store(out + place, -1, (place >= wanted) & (place < K))


@triton.jit(do_not_specialize=["first", "count", "score_stride", "out_stride", "out_score_stride", "lens"])
def select_kernel(
    scores, listed, lens, out, out_scores, first, count, score_stride, listed_stride, len_stride, out_stride,
    out_score_stride, K: tl.constexpr, K_BLOCK: tl.constexpr, MODE: tl.constexpr, SCORES: tl.constexpr,
    SPAN: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Program (t, s) chooses among entries first + s * SPAN .. of row t, of which `count` have scores.

    A row that sees no more than K entries lists them all, whatever their scores. With "merge" the scores lie
    behind those of the running list; with "listed" `count` counts places.
    """
    start_early(EARLY)
    t = tl.program_id(0).to(tl.int64)
    span = tl.program_id(1)
    length = tl.load(lens + t * len_stride)
    place = tl.arange(0, K_BLOCK)
    out += t * out_stride + span * K
    out_scores += t * out_score_stride + span * K
    row = scores + t * score_stride
    if length <= K:
        if span == 0:
            tl.store(out + place, tl.where(place < length, place, -1), place < K)
        else:
            tl.store(out + place, -1, place < K)
    elif MODE == "listed":
        _choose(
            row, listed + t * listed_stride, out, out_scores, 0, 0, 0, count, length * 0 + K,
            K, K_BLOCK, MODE, SCORES, BLOCK,
        )  # fmt: skip
    elif MODE == "merge":
        fresh = tl.minimum(tl.maximum(length - first, 0), count)
        have = tl.minimum(tl.minimum(first, length), K)
        _choose(
            row, listed + t * listed_stride, out, out_scores, first, have, fresh, K + fresh,
            tl.minimum(have + fresh, K), K, K_BLOCK, MODE, SCORES, BLOCK,
        )  # fmt: skip
    else:
        begin = span * SPAN
        fresh = tl.minimum(tl.maximum(tl.minimum(length, count) - begin, 0), SPAN)
        _choose(
            row + begin, listed, out, out_scores, begin, 0, fresh, fresh, tl.minimum(fresh, K),
            K, K_BLOCK, MODE, SCORES, BLOCK,
        )  # fmt: skip


def candidate_bytes(entries: int, k: int, span: int = SPAN) -> int:
    """What `select` takes beside its results for a row of so many entries."""
    return pieces(entries, span) * k * CANDIDATE_BYTES if entries > 2 * span else 0


def select(
    scores: Tensor, lens: Tensor, out: Tensor, *, count: int, span: int = SPAN, room: Tensor | None = None
) -> None:
    """The k best of the first `count` scores of each row.

    Shapes: scores f32 [T, >= count], lens i32 [T] (entries visible), out i32 [T, k] contiguous (written),
    room f32 [>= T * `candidate_bytes` / 4] (written), made here without one.
    """
    tokens, k = out.shape
    # One block size on a device, so that nothing compiles again; the interpreter takes what there is.
    size = min(BLOCK, power(count, 64)) if interpreted else BLOCK
    meta = {"K": k, "K_BLOCK": power(k), "BLOCK": size, **tuned("select", scores)}

    def forms() -> list[dict[str, Any]]:
        cuts = (("plain", False, 2 * span), ("plain", True, span), ("listed", False, span))
        return [{"MODE": mode, "SCORES": kept, "SPAN": length, **meta} for mode, kept, length in cuts]

    if not candidate_bytes(count, k, span):
        launch(
            select_kernel, (tokens, 1), out, scores, out, lens, out, scores, 0, count, scores.stride(0), k,
            lens.stride(0), k, 0, MODE="plain", SCORES=False, SPAN=2 * span, forms=forms, **meta,
        )  # fmt: skip
        return
    spans = pieces(count, span)
    room = scores.new_empty(2 * tokens * spans * k) if room is None else room
    best_scores, rest = room.split([tokens * spans * k, room.numel() - tokens * spans * k])
    best = rest.view(torch.int32)
    launch(
        select_kernel, (tokens, spans), out, scores, out, lens, best, best_scores, 0, count, scores.stride(0),
        k, lens.stride(0), spans * k, spans * k, MODE="plain", SCORES=True, SPAN=span, forms=forms, **meta,
    )  # fmt: skip
    launch(
        select_kernel, (tokens, 1), out, best_scores, best, lens, out, scores, 0, spans * k, spans * k,
        spans * k, lens.stride(0), k, 0, MODE="listed", SCORES=False, SPAN=span, forms=forms, **meta,
    )  # fmt: skip


def fold(
    scores: Tensor, before: Tensor, lens: Tensor, out: Tensor, after_scores: Tensor, *, first: int, count: int
) -> None:
    """Fold scores of entries first .. first + count - 1 into the k best so far.

    Shapes: scores f32 [T, k + count] (those of `before`, then the new ones), before i32 [T, k], lens i32 [T],
    out i32 [T, k] and after_scores f32 [T, >= k] (written).
    """
    tokens, k = out.shape
    launch(
        select_kernel, (tokens, 1), out, scores, before, lens, out, after_scores, first, count,
        scores.stride(0), before.stride(0), lens.stride(0), out.stride(0), after_scores.stride(0),
        K=k, K_BLOCK=power(k), MODE="merge", SCORES=True, SPAN=SPAN, BLOCK=BLOCK,
        **tuned("select", scores),
    )  # fmt: skip
