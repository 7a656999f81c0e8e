"""Every rounding before the last one: inputs next to a tie, where one unit of a float32 shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dsv4core_conformance.case import case
from dsv4core_conformance.hosts import to_numpy
from dsv4core_conformance.inputs import make
from dsv4core_conformance.inputs.near_ties import LARGEST, Grid, near_ties, turning
from dsv4core_conformance.inputs.numbers import Numbers, integers, tensor
from dsv4core_conformance.reference import rows as reference
from dsv4core_conformance.reference.ca1 import exp, inverse_rms, pool
from dsv4core_conformance.subject import Subject

F32 = NDArray[np.float32]
COMPRESS, INSERT, QUERY = (
    "compress_norm_rope_store",
    "fused_qnorm_rope_kv_insert",
    "fused_indexer_q_rope_quant",
)
OUTPUT, NORM, TURNED = (
    "fused_inv_rope_fp8_quant",
    "fused_q_kv_rmsnorm",
    ("inverse_rope", "fused_inv_rope_fp8_quant"),
)
GRIDS: dict[str, Grid] = {
    "fp8_ds_mla": "e4m3", "bf16_row": "bf16", "fp8_row": "e4m3", "index_fp8": "e4m3",
    "index_fp8_ue8m0x4": "e4m3", "index_mxfp4": "e2m1",
}  # fmt: skip
BLOCKS = {"fp8_ds_mla": 64, "bf16_row": 512, "fp8_row": 512, "index_mxfp4": 32}
"""Channels that share a scale; 128 in the other layouts of index rows."""
APPROXIMATE = ("B4", "B7", "B10", "L7")


def _angles(cos: F32, sin: F32) -> torch.Tensor:
    """A table of which token t reads row t. Shapes: [T, 32] both -> f32 [T, 64]"""
    return tensor(np.concatenate((cos, sin), axis=1))


@case("op/{op}/enc/near_ties_turned", op=TURNED, catches=APPROXIMATE)
def turned_back(s: Subject, op: str) -> None:
    """Turning back rounds every product before the sum: a fused one lands on the other side of a tie."""
    source, tokens = Numbers(41), 24
    x, cos, sin = turning(source, "bf16" if op != OUTPUT else "e4m3_direct", tokens, inverse=True)
    o = np.zeros((tokens, 2, 512), dtype=np.float32)
    o[..., 384], o[..., 448:] = LARGEST["e4m3"], x[:, None]
    a = make(op, tokens=tokens, heads=2, **({"groups": 2} if op == OUTPUT else {}))
    a.update(o=tensor(o, "bf16"), positions=integers(np.arange(tokens)), cos_sin=_angles(cos, sin))
    s.check(op, a)


@case(
    "op/{op}/enc/near_ties_turned_{layout}",
    op=(INSERT,),
    layout=("fp8_ds_mla", "bf16_row", "fp8_row"),
    catches=APPROXIMATE,
)
def turned_keys(s: Subject, op: str, layout: str) -> None:
    """The same for key rows; in `fp8_row` from float32 in one rounding."""
    source, tokens = Numbers(42), 24
    grid: Grid = "e4m3_direct" if layout == "fp8_row" else "bf16"
    x, cos, sin = turning(source, grid, tokens)
    kv = np.concatenate((source.normal(tokens, 448), x), axis=1)
    a = make(op, tokens=tokens, layout=layout, values=kv, positions=range(tokens))
    s.check(op, {**a, "cos_sin": _angles(cos, sin)})


@case("op/{op}/enc/near_ties_turned", op=(QUERY,), catches=APPROXIMATE)
def turned_queries(s: Subject, op: str) -> None:
    """The same for index queries, through bf16 to a code."""
    source, tokens = Numbers(43), 24
    x, cos, sin = turning(source, "e4m3", tokens)
    q = np.zeros((tokens, 1, 128), dtype=np.float32)
    q[..., 0], q[..., 64:] = LARGEST["e4m3"], x[:, None]
    a = make(op, tokens=tokens, heads=1)
    s.check(
        op,
        {**a, "q": tensor(q, "bf16"), "positions": integers(np.arange(tokens)), "cos_sin": _angles(cos, sin)},
    )


@case(
    "layout/{layout}/enc/near_ties_turned",
    layout=("fp8_ds_mla", "bf16_row"),
    ops=(COMPRESS,),
    catches=APPROXIMATE,
)
def turned_entries(s: Subject, layout: str) -> None:
    """The same for entries: states of ones and eps = 0 make an entry equal to the norm's weight."""
    for seed in range(44, 50):
        source = Numbers(seed)
        x, cos, sin = turning(source, "bf16", 1)
        a = _one_entry(layout, 4, cos, sin)
        a["state_cache"][..., :1024], a["state_cache"][..., 1024:] = 1.0, 0.0
        weight = np.concatenate((source.normal(448), x[0]))
        s.check(COMPRESS, {**a, "norm_weight": tensor(weight), "eps": 0.0})


def _one_entry(
    layout: str, ratio: int, cos: F32 | None = None, sin: F32 | None = None, **options: Any
) -> dict[str, Any]:
    """A call that closes the second window of a request, whose entry turns by these angles, or not at all."""
    width = reference.RECORDS[layout].width
    a = make(
        COMPRESS, layout=layout, ratio=ratio, head_dim=width, lengths=(2 * ratio,), starts=(ratio,), **options
    )
    table = np.concatenate((np.ones((2 * ratio, 32)), np.zeros((2 * ratio, 32))), axis=1).astype(np.float32)
    if cos is not None and sin is not None:
        table[ratio] = np.concatenate((cos[0], sin[0]))
    return {**a, "cos_sin": tensor(table)}


@case(
    "layout/{layout}/enc/near_ties_{ratio}",
    layout=tuple(GRIDS),
    ratio=(4, 128),
    ops=(COMPRESS,),
    catches=APPROXIMATE,
)
def pooled(s: Subject, layout: str, ratio: int) -> None:
    """Weights of the norm put a pooled entry next to ties: exponentials, sums, quotients and roots show.

    One unit in the last place of any of them, or weights multiplied in another order, changes bytes.
    """
    width = reference.RECORDS[layout].width
    if width == 128 and ratio == 128:
        ratio = 4  # index keys have ratio 4 alone: other numbers instead
    for seed in range(1, 5):
        a = _one_entry(layout, ratio, seed=seed + 10 * ratio)
        source, size = Numbers(60 + seed), BLOCKS.get(layout, 128)
        aim = near_ties(source, GRIDS[layout], width, powers=4)
        aim[448:] = near_ties(source, "bf16", max(width - 448, 0)) if size == 64 else aim[448:]
        aim[::size] = LARGEST[GRIDS[layout]]
        normed = _normed_entry(a, ratio, width)
        s.check(COMPRESS, {**a, "norm_weight": tensor(aim / normed)})


def _normed_entry(a: dict[str, Any], ratio: int, width: int) -> F32:
    """What the norm's weights are multiplied with. Shapes: -> f32 [width]"""
    state, table = to_numpy(a["state_cache"]), to_numpy(a["block_table"])
    window = np.arange(0 if ratio == 4 else ratio, 2 * ratio)
    slots = reference.table_slots(table, np.int64(0), window, state.shape[1])
    rows = state[slots // state.shape[1], slots % state.shape[1]]
    kv, score = np.split(rows, 2, axis=-1)
    if ratio == 4:
        kv, score = (np.concatenate((part[:4, :width], part[4:, width:])) for part in (kv, score))
    entry = pool(kv[None], score[None], np.ones((1, len(window)), dtype=bool))
    return (entry * inverse_rms(entry, a["eps"]))[0]


@case(
    "layout/{layout}/enc/exp_ends_at_87",
    layout=("fp8_ds_mla", "bf16_row"),
    ops=(COMPRESS,),
    catches=("D5", "L7"),
)
def exp_ends(s: Subject, layout: str) -> None:
    """Weights below exp(-87) are exactly 0 and those above are not, however large their value is."""
    a = _one_entry(layout, 4)
    state = a["state_cache"]
    state[..., :1024], state[..., 1024:] = 0.0, -200.0
    table = to_numpy(a["block_table"])[0]
    low = np.float32(-87) + np.ldexp(Numbers(7).integers(512, -5, 6), -17).astype(np.float32)
    last, before = (state[int(table[1]), row] for row in (3, 2))
    last[1024 + 512 :] = 0.0
    before[512:1024], before[1024 + 512 :] = 2.0**118, torch.from_numpy(low)
    assert (exp(low) == 0).any() and (exp(low) > 0).any()
    s.check(COMPRESS, a)


@case("op/{op}/enc/near_ties", op=(NORM,), catches=APPROXIMATE)
def normed(s: Subject, op: str) -> None:
    """Weights put normed rows next to ties: the sum of squares, the root and the order of products show."""
    for seed in range(1, 9):
        a = make(op, tokens=1, weights="f32", seed=seed)
        for row, weight in (("qr", "q_weight"), ("kv", "kv_weight")):
            y = to_numpy(a[row])
            aim = near_ties(Numbers(70 + seed), "bf16", y.shape[1])
            a[weight] = tensor(aim / (y * inverse_rms(y, a["eps"]))[0])
        s.check(op, a)


@case("op/{op}/enc/near_ties", op=(INSERT,), catches=APPROXIMATE)
def normed_queries(s: Subject, op: str) -> None:
    """Cosines put normed queries next to ties, where their inverse root shows."""
    tokens, source = 24, Numbers(80)
    q = source.normal(tokens, 1, 512)
    q[..., 449::2] = 0.0
    q = to_numpy(tensor(q, "bf16"))
    a = make(op, tokens=tokens, heads=1, q_values=q, positions=range(tokens))
    even = (q * inverse_rms(q, a["eps"]))[:, 0, 448::2]
    cos = near_ties(source, "bf16", tokens, 32) / even
    s.check(op, {**a, "cos_sin": _angles(cos, np.zeros_like(cos))})


@case("op/{op}/enc/near_ties_fp8_f32", op=(QUERY,), layouts=("index_fp8_hadamard_f32",), catches=APPROXIMATE)
def divided(s: Subject, op: str) -> None:
    """Codes with a float32 scale are quotients: 3 amax 2^k is next to a tie, a reciprocal moves it."""
    peaks = np.array([p for p in range(33, 64) if p % 7], dtype=np.float32)
    q = np.zeros((1, len(peaks), 128), dtype=np.float32)
    q[0, :, 0] = peaks
    q[0, :, 1:9] = 3 * peaks[:, None] * 2.0 ** -np.arange(2, 10)
    a = make(op, tokens=1, heads=len(peaks), format="fp8_f32")
    table = np.concatenate((np.ones((1, 32)), np.zeros((1, 32))), axis=1)
    s.check(op, {**a, "q": tensor(q, "bf16"), "positions": integers([0]), "cos_sin": tensor(table)})


def _cancelling(rows: int) -> F32:
    """Rows whose channels 0 and 64 are large and equal: the order of a Hadamard transform's sums shows.

    The upper half of the transform holds what the small channels came to beside them.

    Shapes: -> f32 [rows, 128]
    """
    x = Numbers(90).normal(rows, 128)
    x[:, ::64] = 2.0**20
    return to_numpy(tensor(x, "bf16"))


@case("op/{op}/enc/hadamard_order", op=(QUERY,), layouts=("index_mxfp4_hadamard",), catches=("A15", "L7"))
def transformed_queries(s: Subject, op: str) -> None:
    """Butterflies of stride 1, 2, .. 64 in float32, as the canonical arithmetic orders them."""
    rows = _cancelling(16)
    a = make(op, tokens=1, heads=len(rows), format="mxfp4", rotate="hadamard")
    table = np.concatenate((np.ones((1, 32)), np.zeros((1, 32))), axis=1)
    s.check(op, {**a, "q": tensor(rows[None], "bf16"), "positions": integers([0]), "cos_sin": tensor(table)})


@case(
    "layout/{layout}/enc/hadamard_order",
    layout=("index_mxfp4_hadamard",),
    ops=(COMPRESS,),
    catches=("A15", "L7"),
)
def transformed_entries(s: Subject, layout: str) -> None:
    """The same for entries."""
    for row in _cancelling(6):
        a = _one_entry(layout, 4)
        a["state_cache"][..., :256], a["state_cache"][..., 256:] = 1.0, 0.0
        s.check(COMPRESS, {**a, "norm_weight": tensor(row), "eps": 0.0})


@case("op/{op}/enc/eps_{eps}", op=(NORM, INSERT, COMPRESS), eps=(0.0, 1e-5, 0.3))
def other_eps(s: Subject, op: str, eps: float) -> None:
    """The norm takes the eps that it is given, in every op and for either width of entries."""
    for options in ({}, {"head_dim": 128}) if op == COMPRESS else ({},):
        s.check(op, {**make(op, **options), "eps": eps})
