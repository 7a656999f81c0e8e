"""Decode and prefill against float64, and the two ways of cutting the work against each other."""

from __future__ import annotations

from typing import Any

import against
import pytest
import torch
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.kernels.triton.sparse_decode import attend, listed
from dsv4core.layout import get_layout

I32 = torch.int32


def world(
    layout: str, heads: int, rows: int = 64, extra_rows: int = 2, extra_layout: str = ""
) -> dict[str, Any]:
    """Three tokens: full lists with holes, one short list, none at all."""
    g = torch.Generator().manual_seed(heads)
    extra_layout = extra_layout or layout
    swa = torch.randint(0, 2 * rows, (4, 70), generator=g, dtype=I32)
    swa[0, 5:60:7] = -1
    swa[3] = 2 * rows + 5  # behind the last page
    extra = torch.randint(0, 40 * extra_rows, (4, 130), generator=g, dtype=I32)
    extra[0, ::3] = -7
    q = torch.randn(4, heads, 512, generator=g).bfloat16()
    sink = torch.randn(heads, generator=g)
    sink[0] = torch.inf
    sink[-1] = -torch.inf
    return {
        "q": against.columns(q), "swa_cache": against.in_parent(against.pages(layout, 2, rows), 1, 3),
        "swa_slots": against.spread(swa), "swa_lens": torch.tensor([70, 1, 0, 3], dtype=I32),
        "extra_cache": against.in_parent(against.pages(extra_layout, 40, extra_rows, 4), 2, 4),
        "extra_slots": extra, "extra_lens": torch.tensor([129, 0, 0, 66], dtype=I32), "attn_sink": sink,
        "out": against.columns(torch.zeros_like(q)), "scale": 512**-0.5, "swa_rows": rows,
        "extra_rows": extra_rows, "layout": layout, "extra_layout": extra_layout,
    }  # fmt: skip


def keys(cache: Tensor, slots: Tensor, length: int, rows: int, layout: str) -> Tensor:
    found = slots[:length].long()
    found = found[(found >= 0) & (found < cache.shape[0] * rows)]
    known = get_layout(layout)
    return known.decode(known.read(cache, found, rows)).double()


def check(q: Tensor, rows: list[Tensor], sink: Tensor, scale: float, out: Tensor, lse: Tensor) -> None:
    """Rows against float64, each (token, head) within 4e-3 of the size of what is summed."""
    for t, k in enumerate(rows):
        if not len(k):
            assert not out[t].any() and (lse[t] == torch.inf).all()
            continue
        s = (q[t].double() @ k.T) * scale
        exact = s.logsumexp(1)
        p = (s - torch.logaddexp(exact, sink.double()).unsqueeze(1)).exp()
        p = torch.where(torch.isinf(sink).logical_and(sink > 0).unsqueeze(1), 0.0, p)
        gap = (out[t].double() - p @ k).norm(dim=1)
        assert (gap <= 4e-3 * (p @ k.abs()).norm(dim=1)).all()
        assert ((lse[t].double() - exact).abs() <= 1e-5 + 1e-6 * exact.abs()).all()


@pytest.mark.parametrize("heads", [1, 4, 65, 128])
def test_heads(heads: int) -> None:
    decode(world("fp8_ds_mla", heads))


@pytest.mark.parametrize("layout", ["fp8_ds_mla_fnuz", "bf16_row", "fp8_row"])
def test_layouts(layout: str) -> None:
    decode(world(layout, 4))


@pytest.mark.parametrize(("rows", "extra_rows"), [(64, 64), (7, 3), (1, 2)])
def test_page_rows(rows: int, extra_rows: int) -> None:
    decode(world("fp8_ds_mla", 4, rows, extra_rows))


def test_two_layouts() -> None:
    decode(world("fp8_ds_mla", 4, extra_layout="bf16_row"))


def test_one_cache() -> None:
    given = world("fp8_ds_mla", 4)
    decode({**given, "extra_cache": None, "extra_slots": None, "extra_lens": None})


def decode(given: dict[str, Any]) -> None:
    lse = against.kernel("sparse_decode")(**given)
    rows = []
    for t in range(4):
        part = keys(
            given["swa_cache"],
            given["swa_slots"][t],
            int(given["swa_lens"][t]),
            given["swa_rows"],
            given["layout"],
        )
        if given["extra_cache"] is not None:
            more = keys(
                given["extra_cache"], given["extra_slots"][t], int(given["extra_lens"][t]),
                given["extra_rows"], given["extra_layout"],
            )  # fmt: skip
            part = torch.cat((part, more))
        rows.append(part)
    check(given["q"], rows, given["attn_sink"], given["scale"], given["out"], lse)


def test_prefill() -> None:
    g = torch.Generator().manual_seed(9)
    kv = against.columns(torch.randn(200, 512, generator=g).bfloat16())
    kv[150] = torch.nan  # nobody lists it
    indices = torch.randint(-2, 150, (4, 140), generator=g, dtype=I32)
    indices[1, 3] = 200
    q = torch.randn(4, 6, 512, generator=g).bfloat16()
    lens = torch.tensor([140, 64, 0, 1], dtype=I32)
    out, sink = torch.full_like(q, 3.0), torch.randn(6, generator=g)
    lse = against.kernel("sparse_prefill")(q, kv, against.spread(indices), lens, sink, out, scale=0.05)
    chosen = [indices[t, : lens[t]].long() for t in range(4)]
    rows = [kv[c[(c >= 0) & (c < 200)]].double() for c in chosen]
    check(q, rows, sink, 0.05, out, lse)


@pytest.mark.parametrize("extra_layout", ["fp8_ds_mla", "bf16_row"])
def test_both_ways_of_cutting_give_the_same_bits(extra_layout: str) -> None:
    given = world("fp8_ds_mla", 65, extra_layout=extra_layout)
    results = []
    for side_by_side in (False, True):
        main = listed(given["swa_cache"], given["swa_slots"], given["swa_lens"], 64, "fp8_ds_mla")
        extra = listed(given["extra_cache"], given["extra_slots"], given["extra_lens"], 2, extra_layout)
        out = torch.zeros_like(given["q"])
        lse = attend(given["q"], main, extra, given["attn_sink"], out, given["scale"], side_by_side)
        results.append((out, lse))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_a_token_alone_equals_itself_in_a_batch() -> None:
    given = world("fp8_ds_mla", 4)
    lse = against.kernel("sparse_decode")(**given)
    per_token = ("q", "swa_slots", "swa_lens", "extra_slots", "extra_lens")
    for t in range(4):
        alone = {**given, **{name: given[name][t : t + 1] for name in per_token}}
        alone["out"] = torch.zeros_like(given["q"][:1])
        assert torch.equal(against.kernel("sparse_decode")(**alone), lse[t : t + 1])
        assert torch.equal(alone["out"], given["out"][t : t + 1])


def test_refusals() -> None:
    given = world("fp8_ds_mla", 4)
    for changed in ({"q": given["q"].float()}, {"layout": "f32_row"}, {"extra_slots": None}):
        with pytest.raises(OpArgumentError, match=next(iter(changed))):
            against.kernel("sparse_decode")(**{**given, **changed})
