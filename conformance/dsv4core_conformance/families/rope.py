"""Cases of the family ROPE: which table a layer has, which row of it a position reads, and how pairs turn."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dsv4core import AttentionConfig, AttentionWeights
from dsv4core_conformance.case import case
from dsv4core_conformance.compare import require, same_storage, same_values
from dsv4core_conformance.contracts import CONTRACTS
from dsv4core_conformance.families._calls import ROUNDED, TURNED
from dsv4core_conformance.hosts import Moved, cloned, dtype_name, storage_bytes, to_numpy
from dsv4core_conformance.inputs import make
from dsv4core_conformance.inputs.numbers import Numbers, frequencies, integers, table_rows, tensor
from dsv4core_conformance.inputs.vast import vast
from dsv4core_conformance.reference.ops import REFERENCE
from dsv4core_conformance.subject import Subject

I64 = NDArray[np.int64]
INSERT, COMPRESS, QUERY = (
    "fused_qnorm_rope_kv_insert",
    "compress_norm_rope_store",
    "fused_indexer_q_rope_quant",
)
INVERSE, OUTPUT = "inverse_rope", "fused_inv_rope_fp8_quant"
MILLION = 1 << 20
RANGES = {
    "near": (0, 300),
    "past_the_window": (120, 4096),
    "past_65536": (65_530, 65_800),
    "past_100k": (100_000, 160_000),
    "million": (MILLION - 4_000, MILLION),
}
KINDS = {"swa": (0, "main"), "csa": (1, "compress"), "hca": (2, "compress")}
SHA256 = {
    "main": "d9b35d9b3516346a8f01e2bd50bad8de28cd08e11992adf8c3948ec17851d337",
    "compress": "28f837a34c4b35adaf811ce2f9ca55146deb4ab31678aee3d9fbccd20fb65c47",
}
"""Of the first 65,536 rows, as the canonical arithmetic publishes them."""


def _positions(within: str, count: int) -> I64:
    """Hashed positions of a range, its last one among them. Shapes: -> i64 [count]"""
    low, high = RANGES[within]
    found = Numbers(31).integers(count, low, high)
    found[-1] = high - 1
    return found


def _long_table(s: Subject, kind: str, positions: I64, device: torch.device) -> torch.Tensor:
    """A table as long as the positions need of which only their rows are filled. Shapes: -> f32 [P, 64]"""
    rows = np.unique(positions)
    count = int(rows[-1]) + 1
    table = vast(-(-count * 256 // 4096) * 4096, device).view(torch.float32)[: count * 64].view(count, 64)
    table[torch.from_numpy(rows)] = torch.from_numpy(table_rows(kind, rows)).to(device)
    return table


def _judged(s: Subject, op: str, a: dict[str, Any], kind: str, positions: I64) -> None:
    """The op against the reference with a table too long to be copied around."""
    here = torch.device("cpu")
    table = _long_table(s, kind, positions, here)
    small = {name: value for name, value in a.items() if name != "cos_sin"}
    mine = cloned(small)
    plain = {name: to_numpy(value) for name, value in mine.items()}
    expected = REFERENCE[op]({**plain, "cos_sin": table.numpy()}, {n: dtype_name(v) for n, v in a.items()})
    if s.device != here:
        table = _long_table(s, kind, positions, s.device)
    moved = Moved(small, s.device)
    result = getattr(s.backend.ops, op)(**moved.arguments, cos_sin=table)
    moved.back()
    results = list(result) if isinstance(result, tuple) else [] if result is None else [result]
    for i, (got, wanted) in enumerate(zip(results, expected, strict=True)):
        same_values(f"{op}: result {i}", None if got is None else got.cpu(), wanted)
    for name in CONTRACTS[op].writes:
        same_storage(f"{op}: {name}", a[name], storage_bytes(mine[name]).numpy())


@case(
    "op/{op}/rope/{kind}_positions_{within}",
    op=(INSERT, QUERY, INVERSE, OUTPUT), kind=("main", "compress"), within=tuple(RANGES),
    catches=("B5", "F1", "F2", "F3", "F5", "F6", "F7", "C11"),
)  # fmt: skip
def at_positions(s: Subject, op: str, kind: str, within: str) -> None:
    """Rows of the table at these positions reach the result bit by bit; bf16 or rounded angles show."""
    positions = _positions(within, 12)
    options = {"rows": 4} if op == INSERT else {}
    a = make(op, tokens=12, heads=2, **options)
    a["positions"] = integers(positions)
    _judged(s, op, a, kind, positions)


@case(
    "op/{op}/rope/ratio_{ratio}_positions_{within}",
    op=(COMPRESS,), ratio=(4, 128), within=tuple(RANGES), catches=("E16", "F3", "F5", "F6"),
)  # fmt: skip
def compressed_positions(s: Subject, op: str, ratio: int, within: str) -> None:
    """An entry turns by the first position of its window, floor(p / ratio) * ratio, wherever that is."""
    start = -(-RANGES[within][0] // (8 * ratio)) * 8 * ratio
    last = start + 3 * ratio
    a = make(op, ratio=ratio, lengths=(5 * ratio,), starts=(2 * ratio,), pages=4)
    per_page = a["state_cache"].shape[1]
    behind = torch.full((1, start // per_page), -1, dtype=torch.int32)
    a["block_table"] = torch.cat((behind, a["block_table"]), dim=1)
    a["positions"] += start
    _judged(s, op, a, "compress", np.arange(start, last + 2 * ratio))


@case("op/{op}/rope/pair_layout", op=(INVERSE,), catches=("F9", "C11"))
def pair_layout(s: Subject, op: str) -> None:
    """A quarter turn back takes channel 448 + 2i to minus 449 + 2i's place and back: pairs are neighbours."""
    a = make(op, tokens=1, heads=1, positions=[0])
    o = np.zeros((1, 1, 512), dtype=np.float32)
    o[..., 448:] = np.arange(1, 65)
    quarter = np.concatenate((np.zeros((1, 32)), np.ones((1, 32))), axis=1)
    a.update(o=tensor(o, "bf16"), cos_sin=tensor(quarter))
    found = to_numpy(s.call(op, a)[0])[0, 0, 448:]
    # Backwards: even' = even * 0 + odd * 1, odd' = odd * 0 - even * 1.
    require((found[0::2] == o[0, 0, 449::2]).all(), f"even channels must hold the odd ones, got {found[:8]}")
    require(
        (found[1::2] == -o[0, 0, 448::2]).all(),
        f"odd channels must hold minus the even ones, got {found[:8]}",
    )


@case(
    "op/{op}/rope/{what}_queries",
    op=(INSERT,), catches=("B6",),
    what=(
        {"name": "large", "power": 60},
        {"name": "huge", "power": 110},
        {"name": "small", "power": -40},
        {"name": "tiny", "power": -120},
    ),
)  # fmt: skip
def large_queries(s: Subject, op: str, power: int) -> None:
    """Queries are normalised before they turn, and their squares do not overflow."""
    q = np.ldexp(Numbers(5).normal(9, 2, 512), power)
    s.check(op, make(op, q_values=q, values="spread"))


@case("op/{op}/rope/only_the_last_64_channels", op=(INVERSE, INSERT), catches=("F9",))
def other_channels(s: Subject, op: str) -> None:
    """Channels 0 to 447 do not depend on the position."""
    a, b = (make(op, tokens=4, positions=at) for at in ([0, 0, 0, 0], [1, 50, 100, 299]))
    results = [to_numpy(s.check(op, x).results[0])[..., :448] for x in (a, b)]
    require((results[0] == results[1]).all(), f"{op}: a position changed a channel below 448")


def _table(s: Subject, kind: str, rows: int) -> NDArray[np.float32]:
    """The table that a layer of this kind uses for a plan that reaches `rows`. Shapes: -> f32 [rows, 64]"""
    layer, _ = KINDS[kind]
    config = AttentionConfig.preset("tiny")
    attention = s.attention(config, layer, AttentionWeights.random(config, layer, seed=1))
    found = attention.rope(SimpleNamespace(max_position=rows - 1))  # type: ignore[arg-type]
    require(
        found.shape[0] >= rows, f"{kind}: the table has {found.shape[0]} rows, position {rows - 1} is read"
    )
    return found[:rows].cpu().numpy()


@case("layer/{layer}/rope/table", layer=tuple(KINDS), catches=("F1", "F2", "F3", "F4", "F5", "F7", "B5"))
def table(s: Subject, layer: str) -> None:
    """65,536 rows of a layer's table have the published hash: theta 10000 without YaRN, or 160000 with it."""
    found = _table(s, layer, 65_536)
    kind = KINDS[layer][1]
    sample = np.unique(np.append(Numbers(9).integers(400, 0, 65_536), [0, 1, 127, 128, 65_535]))
    wrong = np.argwhere(found[sample] != table_rows(kind, sample))
    require(
        not len(wrong),
        f"{layer}: position {sample[wrong[0][0]] if len(wrong) else 0} differs from the {kind} table",
    )
    require(
        hashlib.sha256(found.tobytes()).hexdigest() == SHA256[kind], f"{layer}: table has not the {kind} hash"
    )


@case(
    "layer/{layer}/rope/table_to_a_million", layer=tuple(KINDS), level="extended", catches=("F3", "F6", "B5")
)
def long_table(s: Subject, layer: str) -> None:
    """Positions to 2^20 - 1 against float64: the angle is a float32 product, nothing else is rounded."""
    found = _table(s, layer, MILLION)
    kind = KINDS[layer][1]
    sample = np.unique(np.append(Numbers(10).integers(4_000, 0, MILLION), [MILLION - 1, 65_536, 131_072]))
    require((found[sample] == table_rows(kind, sample)).all(), f"{layer}: rows differ from the {kind} table")
    angle = sample[:, None] * frequencies(kind).astype(np.float64)
    bound = np.abs(angle) * 2.0**-23 + 2.0**-23
    gap = np.maximum(
        np.abs(found[sample, :32] - np.cos(angle)) / bound, np.abs(found[sample, 32:] - np.sin(angle)) / bound
    ).max()
    require(gap <= 1, f"{layer}: {gap:.2f} times the rounding of the angle away from float64")


@case("suite/rope/layers_follow_their_ratio", level="layout", catches=("F1", "F3", "F8"))
def layers(s: Subject) -> None:
    """Every layer's policy comes from its own ratio, draft layers behind the last one among them."""
    for preset in ("v4-flash", "v4-pro", "tiny"):
        config = AttentionConfig.preset(preset)
        for index, ratio in enumerate(config.compress_ratios):
            layer = config.layer(index)
            require(
                layer.ratio == ratio,
                f"{preset}: layer {index} has ratio {layer.ratio}, its entry says {ratio}",
            )
            policy = (layer.theta, layer.yarn is not None)
            wanted = (160_000.0, True) if ratio else (10_000.0, False)
            require(
                policy == wanted, f"{preset}: layer {index} (ratio {ratio}) has {policy}, expected {wanted}"
            )


@case("suite/rope/softmax_scale", level="layout", catches=("C11",))
def softmax_scale(s: Subject) -> None:
    """Scores are scaled by 512^-0.5 in every layer: YaRN changes frequencies and no magnitude."""
    for preset in ("v4-flash", "v4-pro", "tiny"):
        scale = AttentionConfig.preset(preset).softmax_scale
        require(scale == 512**-0.5, f"{preset}: softmax scale {scale}, expected {512**-0.5}")


@case(
    "op/{op}/rope/{kind}_positions_{within}",
    op=(TURNED,), kind=("main", "compress"), within=tuple(RANGES), catches=("F1", "F2", "F3", "F5", "C11"),
)  # fmt: skip
def turned_at_positions(s: Subject, op: str, kind: str, within: str) -> None:
    """Attention turned back by each query's own position, and not at all at position 0."""
    positions = _positions(within, 6)
    positions[0] = 0
    rows, places = np.unique(positions, return_inverse=True)
    for format in ROUNDED:
        a = make(op, tokens=6, heads=2, sink="none", scale_format=format)
        # The table is read by its rows alone, so one with these rows is as good as one a million long.
        a["cos_sin"], a["positions"] = tensor(table_rows(kind, rows)), integers(places.reshape(-1))
        s.check(op, a)
