"""Our own decode kernels on a Hopper device: outputs, turned or not, rows alone, cuts, graphs, layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dsv4core import AttentionConfig, AttentionWeights, PagedCache, get_backend
from dsv4core.layout import get_layout
from dsv4core.ops import OPS
from dsv4core_cuda.cluster import ClusterDecode
from dsv4core_cuda.cutedsl import sparse_decode as kernel
from dsv4core_cuda.flashmla import Pages

DEVICE = torch.device("cuda", 0)
I32 = torch.int32
TURNED = "fused_sparse_decode_inv_rope"
POSITIONS = 500

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


def lists(given: dict[str, Any]) -> tuple[Pages, Pages | None]:
    """Both lists of a call, which the kernels take."""
    swa = Pages(given["swa_cache"], given["swa_slots"], given["swa_lens"], 64, given["layout"])
    extra = None
    if given["extra_cache"] is not None:
        rows = given["extra_rows"]
        extra = Pages(given["extra_cache"], given["extra_slots"], given["extra_lens"], rows, given["layout"])
    assert ClusterDecode((9, 0), any_batch=True).against(given["q"], swa, extra) == ()
    return swa, extra


def run(given: dict[str, Any], form: kernel.Form | None = None) -> tuple[Tensor, Tensor]:
    """The kernel, rows alike unless a form is given. Shapes: -> out [T, H, 512], lse [T, H]."""
    out = torch.full_like(given["q"], 7.0)
    args = (given["q"], *lists(given), given["attn_sink"], out, given["scale"])
    return out, kernel.decode(*args, alike=form is None, form=form)


def turning(given: dict[str, Any], scale_format: str) -> dict[str, Any]:
    """The call of the op that turns back: every position's angles are other ones."""
    call = {name: value for name, value in given.items() if name != "out"}
    g = torch.Generator().manual_seed(given["q"].shape[0])
    angles = torch.rand(POSITIONS, 32, generator=g) * 6.3
    positions = torch.randint(0, POSITIONS, (given["q"].shape[0],), generator=g)
    cos_sin = torch.cat((angles.cos(), angles.sin()), 1)
    return call | {
        "positions": positions.to(DEVICE), "cos_sin": cos_sin.to(DEVICE), "groups": 8,
        "scale_format": scale_format,
    }  # fmt: skip


def run_turned(call: dict[str, Any], form: kernel.Form | None = None) -> tuple[Tensor, Tensor | None]:
    """The kernel that turns back, rows alike unless a form is given."""
    return kernel.decode_turned(
        call["q"], *lists(call), call["attn_sink"], call["positions"], call["cos_sin"], call["scale"],
        call["groups"], call["scale_format"], alike=form is None, form=form,
    )  # fmt: skip


def body(call: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """The op's own words, on the host."""
    return OPS[TURNED].body(**{k: v.cpu() if isinstance(v, Tensor) else v for k, v in call.items()})


def factors(scales: Tensor) -> Tensor:
    """What codes are multiplied by. Shapes: f32 [T, G, n] or i32 [T, G, n / 4] -> f32 [T, G * n, 1]."""
    if scales.dtype == I32:
        scales = (scales.view(torch.uint8).to(I32) << 23).view(torch.float32)
    return scales.flatten(1).unsqueeze(-1)


def same(found: tuple[Tensor, Tensor | None], expected: tuple[Tensor, Tensor | None]) -> bool:
    """Whether outputs and scales have the same bits."""
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a is not None or b is not None]
    return all(torch.equal(a.cpu().view(torch.uint8), b.cpu().view(torch.uint8)) for a, b in pairs)


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


@pytest.mark.parametrize("scale_format", kernel.FORMATS)
@pytest.mark.parametrize(("heads", "width", "extra", "rows"), [(64, 128, 512, 64), (128, 128, 1024, 2)])
def test_turned_back_it_is_the_op(heads: int, width: int, extra: int, rows: int, scale_format: str) -> None:
    """Against the reference in float32 on the host; a code is half a step away from what it stands for.

    Channels that are not turned are those of the kernel that does not turn, in every form.
    """
    given = world(5, heads, width, extra, rows)
    call = turning(given, scale_format)
    want = body({**call, "scale_format": "none"})[0].float()
    blocks = (5, heads * 4, 128)
    forms = {kernel.cut(size, width + extra, most) for size in kernel.KINDS for most in (1, 3, 5, 9)}
    for form in (None, *forms):
        found, scales = run_turned(call, form)
        plain = run(given, form)[0]
        half = torch.zeros(blocks)
        values = found.float().view(blocks)
        if scales is None:
            assert torch.equal(found[..., :448], plain[..., :448]), form
        else:
            values = values * factors(scales)
            half = torch.maximum(values.abs() / 16, factors(scales) * 2.0**-10).cpu()
            kept = plain.float().view(5, heads, 4, 128)[:, :, :3].cpu()
            off = (values.cpu().view(5, heads, 4, 128)[:, :, :3] - kept).abs()
            steps = half.view(5, heads, 4, 128)[:, :, :3]
            assert bool((off <= steps + kept.abs() * 2.0**-8).all()), form
        gap = (values.cpu().view(want.shape) - want).norm(dim=-1)
        allowed = 8e-3 * want.norm(dim=-1) + half.view(want.shape).norm(dim=-1) + 1e-6
        assert bool((gap <= allowed).all()), form


@pytest.mark.parametrize("scale_format", kernel.FORMATS)
@pytest.mark.parametrize("heads", [64, 128])
def test_single_keys_turned_back_are_the_op_bit_for_bit(heads: int, scale_format: str) -> None:
    """Weights of 1: outputs are keys, so what is left are the rotation and one rounding."""
    given = world(7, heads, 128, 512)
    given["q"].zero_()
    given["attn_sink"].fill_(-torch.inf)
    given["swa_slots"][:, 0] = torch.arange(7, device=DEVICE) * 50
    given["swa_lens"].fill_(1)
    given["extra_lens"].zero_()
    call = turning(given, scale_format)
    expected = body(call)
    for form in (None, *(kernel.cut(size, 640, most) for size in kernel.KINDS for most in (2, 5, 9))):
        assert same(run_turned(call, form), expected), form


@pytest.mark.parametrize("scale_format", kernel.FORMATS)
def test_bits_turned_back_depend_on_neither_cut_nor_batch(scale_format: str) -> None:
    call = turning(world(9, 128, 128, 512), scale_format)
    found = run_turned(call)
    for size in (16, 32):
        assert same(run_turned(call, kernel.cut(size, 640, kernel.SEGMENTS)), found), size
    listed = ("q", "swa_slots", "swa_lens", "extra_slots", "extra_lens", "positions")
    for t in range(9):
        alone = run_turned({**call, **{name: call[name][t : t + 1] for name in listed}})
        assert same(alone, tuple(None if x is None else x[t : t + 1] for x in found)), t


@pytest.mark.parametrize("scale_format", kernel.FORMATS)
def test_a_graph_replays_it_over_new_positions(scale_format: str) -> None:
    call = turning(world(4, 64, 128, 512), scale_format)
    run_turned(call)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run_turned(call)
    call["positions"].copy_(call["positions"].flip(0))
    call["swa_slots"].copy_(call["swa_slots"].flip(0))
    graph.replay()
    assert same(found, run_turned(call))


def test_where_angles_lie_changes_no_bit() -> None:
    call = turning(world(3, 64, 128, 512), "ue8m0x4")
    apart = torch.zeros(POSITIONS, 96, device=DEVICE)
    apart[:, 8:72] = call["cos_sin"]
    off = torch.zeros(POSITIONS * 64 + 1, device=DEVICE)[1:].view(POSITIONS, 64).copy_(call["cos_sin"])
    found = run_turned(call)
    for elsewhere in (apart[:, 8:72], off):
        assert same(found, run_turned({**call, "cos_sin": elsewhere}))


@pytest.mark.parametrize("quant", [None, "f32", "ue8m0x4"])
@pytest.mark.parametrize("index", [1, 2])
def test_a_layer_with_the_op_and_without(index: int, quant: str | None) -> None:
    """Steps of decode rows alone take it; outputs differ by roundings, caches by nothing."""
    config = AttentionConfig.preset(
        "tiny", num_attention_heads=64, compress_ratios=(0, 4, 128), output_quant=quant
    )
    weights = AttentionWeights.random(config, index, 3).to(DEVICE)
    layers = [get_backend("cuda").attention(config, index, weights) for _ in range(2)]
    assert layers[0].cluster is not None
    layers[0].fuse_output = True  # as DSV4CORE_CUDA_FUSE_OUTPUT=1 does
    taken: list[bool] = []
    turned = layers[0].attend_turned

    def attend_turned(*args: Any) -> Any:
        found = turned(*args)
        taken.append(found is not None)
        return found

    layers[0].attend_turned = attend_turned
    caches = [PagedCache.allocate(config, [index], 4096, DEVICE) for _ in layers]
    requests = {"a": 700, "b": 31, "c": 257}
    for new in (requests, dict.fromkeys(requests, 1), {"a": 1, "c": 1}, {"b": 9}):
        g = torch.Generator().manual_seed(len(new))
        hidden = torch.randn(sum(new.values()), config.hidden_size, generator=g).bfloat16().to(DEVICE)
        mine, other = (
            layer(hidden, cache, cache.plan(new)).float() for layer, cache in zip(layers, caches, strict=True)
        )
        bound = 4e-3 if quant is None else 4e-2  # a code that falls to the other side is a step of 2^-3 away
        assert float((mine - other).norm()) <= bound * float(other.norm())
    assert taken == [False, True, True, False]  # a prompt, two steps of single tokens, nine tokens of one
    for request in requests:
        mine, other = (cache.snapshot(request) for cache in caches)
        assert all(torch.equal(mine[key], other[key]) for key in mine)
