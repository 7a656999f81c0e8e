"""Native attention and scores: their bounds, and bytes that no number of threads and no neighbour changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from native_world import BF16, F32, I32, World, raw

from dsv4core.config import AttentionConfig
from dsv4core.layout import get_layout
from dsv4core.ops import OPS
from dsv4core.samples import Size, sample

SCALE = 512**-0.5
LONG = 2701  # more keys than are held decoded at once


Layouts = tuple[str, str]
PER_TOKEN = ("q", "out", "swa_slots", "swa_lens", "extra_slots", "extra_lens")
PAIRS = [
    ("fp8_ds_mla", "fp8_ds_mla"), ("bf16_row", "fp8_row"), ("fp8_ds_mla_fnuz", "bf16_row"),
    ("fp8_row", "fp8_ds_mla"),
]  # fmt: skip


def decode_arguments(
    seed: int, heads: int, counts: list[tuple[int, int]], layouts: Layouts, dtype: torch.dtype = BF16
) -> dict[str, Any]:
    """Lists with holes and duplicates; token t has counts[t] window and compressed keys."""
    w, tokens = World(seed), len(counts)
    swa, extra = w.pages(layouts[0], 64, 9), w.pages(layouts[1], 3, 30)
    width = [max(c[i] for c in counts) + 2 for i in (0, 1)]
    return {
        "q": w.floats(heads, tokens, 512, dtype=dtype).transpose(0, 1) * 3, "swa_cache": swa,
        "swa_slots": w.ints(-20, 9 * 64, tokens, width[0], dtype=I32),
        "swa_lens": torch.tensor([c[0] for c in counts], dtype=I32), "extra_cache": extra,
        "extra_slots": w.ints(-9, 90, width[1], tokens, dtype=I32).T,
        "extra_lens": torch.tensor([c[1] for c in counts], dtype=I32),
        "attn_sink": torch.cat((w.floats(heads - 1), torch.tensor([-torch.inf]))),
        "out": torch.full((tokens, heads + 1, 512), 9.0, dtype=dtype)[:, :heads], "scale": SCALE,
        "swa_rows": 64, "extra_rows": 3, "layout": layouts[0], "extra_layout": layouts[1],
    }  # fmt: skip


def keys_of(a: dict[str, Any], t: int) -> torch.Tensor:
    parts = []
    for name, layout in (("swa", a["layout"]), ("extra", a["extra_layout"])):
        slots = a[f"{name}_slots"][t, : int(a[f"{name}_lens"][t])].long()
        found = get_layout(layout)
        rows = found.read(a[f"{name}_cache"], slots[slots >= 0], a[f"{name}_rows"])
        parts.append(found.decode(rows).double())
    return torch.cat(parts)


def check_attention(a: dict[str, Any], lse: torch.Tensor) -> None:
    for t in range(a["q"].shape[0]):
        keys = keys_of(a, t)
        if not keys.shape[0]:
            assert bool((a["out"][t] == 0).all()) and bool(lse[t].isposinf().all())
            continue
        score = a["q"][t].double() @ keys.T * a["scale"]
        wanted = score.logsumexp(1)
        p = (score - torch.logaddexp(wanted, a["attn_sink"].double()).unsqueeze(1)).exp()
        assert bool(((lse[t].double() - wanted).abs() <= 1e-5 + 1e-6 * wanted.abs()).all()), t
        gap = (a["out"][t].double() - p @ keys).norm(dim=1) / (p @ keys.abs()).norm(dim=1)
        assert float(gap.max()) <= (1e-5 if a["q"].dtype == F32 else 4e-3), (t, float(gap.max()))


@pytest.mark.parametrize("layouts", PAIRS)
@pytest.mark.parametrize("heads", [1, 4, 16, 33, 64, 70, 128])
def test_decode(ops, heads: int, layouts: Layouts) -> None:
    counts = [(0, 0), (1, 0), (0, 1), (5, 2), (23, 0), (24, 1), (128, 512), (50, LONG)]
    a = decode_arguments(heads, heads, counts, layouts)
    lse = ops.sparse_decode(**a)
    check_attention(a, lse)
    assert bool((a["out"].as_strided((8, 512), ((heads + 1) * 512, 1), heads * 512) == 9.0).all())


@pytest.mark.parametrize("layouts", [("f32_row", "f32_row"), ("fp8_ds_mla", "f32_row")])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_f32_rows_and_queries(ops, dtype: torch.dtype, layouts: Layouts) -> None:
    a = decode_arguments(5, 17, [(0, 0), (23, 40), (50, LONG)], layouts, dtype)
    check_attention(a, ops.sparse_decode(**a))


@pytest.mark.parametrize(("layout", "dtype"), [("fp8_ds_mla", BF16), ("f32_row", F32)])
def test_decode_alone_in_a_batch_and_with_any_number_of_threads(ops, layout: str, dtype: torch.dtype) -> None:
    counts = [(128, 512), (1, 0), (0, 0), (40, LONG), (7, 300)]
    a = decode_arguments(1, 40, counts, (layout, layout), dtype)
    lse = ops.sparse_decode(**a)
    for threads in (2, 3, 5, 16):
        torch.set_num_threads(threads)
        b = {**a, "out": torch.zeros_like(a["out"])}
        assert torch.equal(raw(ops.sparse_decode(**b)), raw(lse))
        assert torch.equal(raw(b["out"]), raw(a["out"]))
        for t in range(len(counts)):
            part = {k: v[t : t + 1] if k in PER_TOKEN else v for k, v in b.items()}
            part["out"] = torch.zeros_like(part["out"])
            assert torch.equal(raw(ops.sparse_decode(**part)), raw(lse[t : t + 1]))
            assert torch.equal(raw(part["out"]), raw(a["out"][t : t + 1]))


@pytest.mark.parametrize("heads", [3, 64])
def test_prefill_is_decode(ops, heads: int) -> None:
    """The same rows through pages and through a workspace: 2e-3 is the contract, equal is what it is."""
    counts = [(128, 512), (1, 0), (17, 900)]
    a = decode_arguments(2, heads, counts, ("fp8_ds_mla", "fp8_ds_mla"))
    lse = ops.sparse_decode(**a)
    for t in range(len(counts)):
        kv = torch.zeros(2000, 520, dtype=BF16)[:, :512]
        keys = keys_of(a, t).to(BF16)
        kv[: keys.shape[0]] = keys
        out = torch.zeros(1, heads, 512, dtype=BF16)
        indices = torch.arange(keys.shape[0], dtype=I32).unsqueeze(0)
        lens = torch.tensor([keys.shape[0]], dtype=I32)
        got = ops.sparse_prefill(a["q"][t : t + 1], kv, indices, lens, a["attn_sink"], out, scale=SCALE)
        assert torch.equal(raw(got), raw(lse[t : t + 1])) and torch.equal(raw(out[0]), raw(a["out"][t]))


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("heads", [5, 70])
def test_lists_that_begin_alike_are_attended_to_as_alone(ops, heads: int, dtype: torch.dtype) -> None:
    """Tiles of a prefill load what their lists have in common once; no bit may tell."""
    w = World(heads)
    common = [0, 23, 24, 25, 1279, 1280, 1281, LONG, LONG]  # of eight tokens each
    tokens, width = 8 * len(common), LONG + 40
    kv = w.floats(3000, 512, dtype=dtype)
    indices = w.ints(-40, 3000, tokens, width, dtype=I32)
    for tile, count in enumerate(common):
        indices[8 * tile : 8 * tile + 8, :count] = indices[8 * tile, :count]
    lens = torch.tensor([common[t // 8] + t % 3 * 13 for t in range(tokens)], dtype=I32)
    lens[60] = 0
    q, sink = w.floats(tokens, heads, 512, dtype=dtype) * 3, w.floats(heads)

    def run(part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        out = torch.zeros_like(q[part])
        lse = ops.sparse_prefill(q[part], kv, indices[part], lens[part], sink, out, scale=SCALE)
        return raw(out), raw(lse)

    alone = [run(slice(t, t + 1)) for t in range(tokens)]
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        for got, wanted in zip(run(slice(None)), zip(*alone, strict=True), strict=True):
            assert torch.equal(got, torch.cat(wanted))


@pytest.mark.parametrize("profile", ["vllm", "official", "sglang", "math"])
@pytest.mark.parametrize("heads", [1, 16, 64, 72])
def test_scores_with_any_number_of_threads(ops, profile: str, heads: int) -> None:
    config = AttentionConfig.preset("tiny", profile=profile, index_n_heads=heads)
    a = sample("sparse_indexer", Size(tokens=6, context=9000, config=config))
    a["token_to_req"] = torch.tensor([0, 0, 1, 1, 1, 5], dtype=I32)
    a["context_lens"] = torch.tensor([9000, 8999, 70, 4000, 0, 9000], dtype=I32)
    a["k"] = 100
    one = ops.sparse_indexer(**a)
    b = {k: v for k, v in a.items() if k not in ("k", "workspace_bytes")}
    logits = ops.indexer_logits(**b, max_len=9000)
    assert torch.equal(one, ops.indexer_topk(logits, a["context_lens"], k=100))
    wanted = OPS["indexer_logits"].body(**b, max_len=9000)
    assert torch.equal(logits.isneginf(), wanted.isneginf())
    seen = ~wanted.isneginf()
    # Looser than the contract's bound, which the contract's own tests hold; this one covers many heads.
    assert float((logits[seen] - wanted[seen]).abs().max()) <= 1e-5 * float(wanted[seen].abs().max())
    for threads in (2, 3, 7, 16):
        torch.set_num_threads(threads)
        assert torch.equal(ops.sparse_indexer(**a), one)
        assert torch.equal(raw(ops.indexer_logits(**b, max_len=9000)), raw(logits))


@pytest.mark.parametrize("name", OPS)
def test_threads(ops, name: str) -> None:
    size = Size(tokens=37, context=200)
    runs = []
    for threads in (1, 3, 16):
        torch.set_num_threads(threads)
        made = sample(name, size)
        got = getattr(ops, name)(**made)
        runs.append([*(got if isinstance(got, tuple) else (got,)), *(made[m] for m in OPS[name].mutates)])
    for run in runs[1:]:
        for x, y in zip(run, runs[0], strict=True):
            assert (x is None and y is None) or torch.equal(raw(x), raw(y))


def test_scales_too_far_apart_for_f32_go_to_the_body(ops) -> None:
    config = AttentionConfig.preset("tiny", profile="official")
    a = sample("indexer_logits", Size(tokens=3, context=40, config=config))
    a["q_scales"][0, 0] = torch.tensor([1, 254, 3, 127], dtype=torch.uint8)
    assert torch.equal(raw(ops.indexer_logits(**a)), raw(OPS["indexer_logits"].body(**a)))
    assert a["weights"].dtype == F32
