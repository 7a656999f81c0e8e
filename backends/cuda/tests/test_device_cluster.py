"""Our own decode kernel on a Hopper device: outputs, rows alone and in a batch, cuts, graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dsv4core.layout import get_layout
from dsv4core.ops import OPS
from dsv4core_cuda.cluster import ClusterDecode
from dsv4core_cuda.cutedsl import sparse_decode as kernel
from dsv4core_cuda.flashmla import Pages

DEVICE = torch.device("cuda", 0)
I32 = torch.int32

if torch.cuda.get_device_capability() != (9, 0):
    pytest.skip("compiled for SM90", allow_module_level=True)


def pages(count: int, rows: int, seed: int, factor: float = 1.0) -> Tensor:
    """Pages as writers make them. Shapes: -> u8 [count, B]."""
    g = torch.Generator().manual_seed(seed)
    found = get_layout("fp8_ds_mla").encode_pages(torch.randn(count, rows, 512, generator=g) * factor)
    return found.to(DEVICE)


def world(
    tokens: int, heads: int, width: int, extra: int, rows: int = 64, factor: float = 1.0
) -> dict[str, Any]:
    """Random lists with holes and slots behind the pages, any lengths, sinks of both infinities."""
    g = torch.Generator().manual_seed(tokens + heads + width + extra)
    count = max(2, 512 // rows)
    swa = torch.randint(0, 6 * 64, (tokens, width), generator=g, dtype=I32)
    more = torch.randint(0, count * rows, (tokens, extra), generator=g, dtype=I32)
    swa[::3, 1::5], more[::2, ::7] = -3, count * rows + 5
    sink = torch.randn(heads, generator=g)
    sink[0], sink[-1] = torch.inf, -torch.inf
    q = torch.randn(tokens, heads, 512, generator=g).bfloat16() / factor
    given: dict[str, Any] = {
        "q": q, "swa_cache": pages(6, 64, 1, factor), "swa_slots": swa,
        "swa_lens": torch.randint(-1, width + 9, (tokens,), generator=g, dtype=I32),
        "extra_cache": pages(count, rows, 2, factor), "extra_slots": more,
        "extra_lens": torch.randint(0, extra + 1, (tokens,), generator=g, dtype=I32), "attn_sink": sink,
        "out": torch.full_like(q, 7.0), "scale": 512**-0.5, "swa_rows": 64, "extra_rows": rows,
        "layout": "fp8_ds_mla", "extra_layout": "fp8_ds_mla",
    }  # fmt: skip
    given["swa_lens"][0] = given["extra_lens"][0] = 0  # nothing to attend to
    if not extra:
        given |= {"extra_cache": None, "extra_slots": None, "extra_lens": None}
    return {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in given.items()}


def run(given: dict[str, Any], form: kernel.Form | None = None) -> tuple[Tensor, Tensor]:
    """The kernel, rows alike unless a form is given. Shapes: -> out [T, H, 512], lse [T, H]."""
    swa = Pages(given["swa_cache"], given["swa_slots"], given["swa_lens"], 64, given["layout"])
    extra = None
    if given["extra_cache"] is not None:
        rows = given["extra_rows"]
        extra = Pages(given["extra_cache"], given["extra_slots"], given["extra_lens"], rows, given["layout"])
    assert ClusterDecode((9, 0), any_batch=True).against(given["q"], swa, extra) == ()
    out = torch.full_like(given["q"], 7.0)
    args = (given["q"], swa, extra, given["attn_sink"], out, given["scale"])
    return out, kernel.decode(*args, alike=form is None, form=form)


@pytest.mark.parametrize(("rows", "factor"), [(64, 1.0), (2, 1.0), (64, 1e6)])
@pytest.mark.parametrize(("width", "extra"), [(128, 33), (128, 512), (128, 1024), (200, 0), (128, 4000)])
def test_it_is_the_op(width: int, extra: int, rows: int, factor: float) -> None:
    """Against the reference in float32 on the host; factor 1e6 has scales above 2^7."""
    given = world(5, 64, width, extra, rows, factor)
    want = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in given.items()}
    expected = OPS["sparse_decode"].body(**want)
    tiles = -(-(width + extra) // 64)
    cuts = {kernel.cut(64, width + extra, blocks) for blocks in (1, 3, 5, 9) if tiles <= 20 * blocks}
    for form in (None, *cuts):
        out, lse = run(given, form)
        torch.testing.assert_close(lse.cpu(), expected, rtol=1e-5, atol=2e-5)
        gap = (out.cpu().float() - want["out"].float()).norm(dim=-1)
        assert bool((gap <= 8e-3 * want["out"].float().norm(dim=-1) + 1e-6).all()), form


@pytest.mark.parametrize("heads", [64, 128])
@pytest.mark.parametrize("extra", [40, 512, 1024])
def test_bits_depend_on_neither_cut_nor_batch(heads: int, extra: int) -> None:
    given = world(9, heads, 128, extra)
    out, lse = run(given)
    for size in (16, 32):
        other, sums = run(given, kernel.cut(size, 128 + extra, kernel.SEGMENTS))
        assert torch.equal(other, out) and torch.equal(sums, lse), size
    listed = ("q", "swa_slots", "swa_lens", "extra_slots", "extra_lens")
    for t in range(9):
        row = {k: given[k][t : t + 1] for k in listed if given[k] is not None}
        alone, sums = run({**given, **row})
        assert torch.equal(alone[0], out[t]) and torch.equal(sums[0], lse[t])


def test_a_graph_replays_it_over_new_lists() -> None:
    given, other = world(4, 64, 128, 512), world(4, 64, 128, 512)
    other["extra_slots"] = other["extra_slots"].flip(1)
    run(given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = run(given)
    for name in ("extra_slots", "swa_slots"):
        given[name].copy_(other[name])
    graph.replay()
    again, sums = run(given)
    assert torch.equal(again, out) and torch.equal(sums, lse)
