"""The sources of the decode kernels' folds on the host; imported in a process of its own."""

from __future__ import annotations

from typing import Any

import host_cutlass
import numpy as np
import torch
from host_device import BASE, Device, Fault
from host_launch import arch, launch, launched
from host_numbers import Int32, Int64, bits
from torch import Tensor

from dsv4core.ops.fused_inv_rope_fp8_quant import fused_inv_rope_fp8_quant
from dsv4core.ops.inverse_rope import inverse_rope

host_cutlass.install()
KINDS = {16: ("whole", 256), 64: ("packed", 512)}
"""By heads of a block: how outputs lie, threads."""


class Exact:
    """Stores outputs as they are, for what is stored instead to be held against."""

    def __init__(self, out: Any) -> None:
        self.out = out

    def stores(self, read: Any, head: Any, unit: Any, x: list[Any]) -> list[Any]:
        place = self.out + Int64(head) * 2048
        return [
            (place + 4 * (c if isinstance(c, int) else int(c)), [bits(v)])
            for c, v in zip(channels(read, int(unit) % 128), x, strict=True)
        ]

    def put_scale(self, *of: Any) -> None:
        """There is none."""


def channels(read: Any, unit: int) -> list[int]:
    """The channels of a unit."""
    if type(read).__name__ == "Whole":
        return [4 * unit + i for i in range(4)]
    first = unit // 4 * 16 + unit % 4 * 2
    return [first, first + 1, first + 8, first + 9]


def kernel(
    parts: Any, sums: Any, sink: Any, positions: Any, cos_sin: Any, out: Any, beside: Any, heads: int,
    blocks: int, scale_format: str,
) -> None:  # fmt: skip
    """What a decode kernel has once it has seen its keys, then the fold. No scale format: f32 outputs."""
    from dsv4core_cuda.cutedsl.kernels import _fold, _ptx, _turned
    from dsv4core_cuda.cutedsl.kernels._cluster import peer, write_peer
    from dsv4core_cuda.cutedsl.kernels.sparse_decode_wide import finish

    rank, group, t = arch.block_idx()
    groups = launched.grid[1]
    thread, (_, threads) = arch.thread_idx()[0], KINDS[heads]
    outputs, size = Int32(BASE), heads * (516 * 4 if heads == 16 else 396 * 4)
    ml = outputs + size
    weights = ml + blocks * 3 * heads * 4
    angles = weights + (blocks + 1) * heads * 4
    if scale_format:
        _turned.bring_angles(angles, positions, cos_sin, t, thread)
        _ptx.copies_commit()
        _ptx.copies_wait(0)
    one = ((Int64(t) * groups + group) * blocks + rank) * heads
    arch.cluster_arrive_relaxed()
    read = _fold.Whole(outputs, blocks) if heads == 16 else _fold.Packed(outputs, blocks, heads)
    for i in range(int(thread), heads * 128, threads):
        head, unit = divmod(i, 128)
        row = parts + (one + head) * 2048
        values = [_ptx.from_bits(_ptx.load_i32(row + 4 * c)) for c in channels(read, unit)]
        if heads == 16:
            _ptx.write_shared(outputs + (head * read.HEAD + unit * 4) * 4, [_ptx.bits(x) for x in values])
        else:
            read.put(head, unit, *values)
    arch.cluster_wait()
    if thread < heads:
        for i in range(3):
            x = _ptx.from_bits(_ptx.load_i32(sums + ((one + int(thread)) * 3 + i) * 4))
            for c in range(blocks):
                write_peer(peer(ml + ((rank * 3 + i) * heads + int(thread)) * 4, c), x)
    all_heads, first_head = groups * heads, group * heads
    if heads == 64 and scale_format:
        finish(
            outputs, ml, weights, sink, out, beside, thread, positions, cos_sin, Int32(all_heads), angles,
            blocks, scale_format,
        )  # fmt: skip
        return
    arch.cluster_arrive()
    arch.cluster_wait()
    if thread < heads:
        _fold.shares(ml, weights, sink + (first_head + int(thread)) * 4, thread, heads, blocks)
    arch.sync_threads()
    first = Int64(t) * all_heads + first_head
    to = Exact(out + first * 2048)
    if scale_format:
        to = _turned.Turned(read, angles, out, beside, first, thread, scale_format)
    _fold.add_blocks(read, weights, to, thread, rank, heads, blocks, threads)
    arch.cluster_arrive_relaxed()
    arch.cluster_wait()


def world(seed: int, tokens: int, groups: int, blocks: int, heads: int) -> dict[str, Tensor]:
    """Parts of outputs, maxima and sums, as blocks have them: small, large, cancelling and none at all."""
    g = torch.Generator().manual_seed(seed)
    shape = (tokens, groups, blocks, heads)
    sizes = torch.randn(*shape, 4, generator=g).mul(8).exp2().repeat_interleave(128, -1)
    parts = torch.randn(*shape, 512, generator=g) * sizes
    parts[0, 0, :, 1, 128:256] = 0.0
    parts[0, 0, :, 2, 128:256] = 1e-12
    top = torch.randint(-3, 4, shape, generator=g).float()
    rounded = torch.rand(shape, generator=g) + 0.5
    exact = rounded * (1 + 2.0**-9 * torch.randn(shape, generator=g))
    for x, value in ((top, -1.0e30), (rounded, 0.0), (exact, 0.0), (parts, 0.0)):
        x[0, 0, :, 0], x[:, :, -1, 3] = value, value  # no key at all, and none in the last block
    sink = torch.randn(groups * heads, generator=g)
    sink[4], sink[5] = -torch.inf, torch.inf
    return {
        "parts": parts, "sums": torch.stack((top, rounded, exact), -1), "sink": sink,
        "positions": torch.randint(0, 50, (tokens,), generator=g),
        "cos_sin": torch.randn(50, 64, generator=g),
    }  # fmt: skip


def expected(w: dict[str, Tensor]) -> Tensor:
    """The fold in float64. Shapes: -> f64 [T, H, 512]."""
    top, rounded, _ = (x.double() for x in w["sums"].unbind(-1))
    highest = top.amax(2, keepdim=True)
    weight = (top - highest).exp2()
    sink = w["sink"].double().view(1, *top.shape[1::2]) / np.log(2.0) - highest.squeeze(2)
    whole = (weight * rounded).sum(2)
    share = torch.where(whole > 0, 1 / (whole + sink.exp2()), 0.0)
    out = (w["parts"].double() * weight.unsqueeze(-1)).sum(2) * share.unsqueeze(-1)
    return out.view(out.shape[0], -1, 512)


def run(w: dict[str, Tensor], out: Tensor, beside: Tensor, heads: int, scale_format: str, seed: int) -> None:
    """The fold of all clusters, to `out` and `beside`."""
    tokens, groups, blocks, _, _ = w["parts"].shape
    launched.device = device = Device(seed)
    arrays = [w[n] for n in ("parts", "sums", "sink", "positions", "cos_sin")] + [out, beside]
    places = [Int64(device.memory.add(a.view(torch.uint8).numpy())) for a in arrays]
    size = heads * (516 * 4 if heads == 16 else 396 * 4) + heads * (16 * blocks + 4) + 256
    given = [*places, heads, blocks, scale_format]
    launch(kernel, (blocks, groups, tokens), KINDS[heads][1], size, given)


def differing(heads: int, tokens: int, blocks: int, formats: tuple[str, ...], seed: int) -> str:
    """What is wrong with the folds of some tokens' heads, turned back in these formats: "" or text."""
    w = {name: x.contiguous() for name, x in world(seed, tokens, 1, blocks, heads).items()}
    o = torch.full((tokens, heads, 512), torch.nan)
    nothing = torch.zeros(1)
    try:
        run(w, o, nothing, heads, "", seed)
        exact = expected(w)
        size = (w["parts"].double().abs().sum(2).view(exact.shape).amax(-1, keepdim=True)).clamp(min=1e-30)
        if not bool(((o.double() - exact).abs() <= size * 2.0**-14).all()):
            return "the sums of blocks are not those in float64"
        for scale_format in formats:
            if scale_format == "none":
                turned = inverse_rope(o, w["positions"], w["cos_sin"]).bfloat16()
                found = torch.full_like(turned, torch.nan)
                run(w, found, nothing, heads, "none", seed + 1)
                if not torch.equal(found.view(torch.int16), turned.view(torch.int16)):
                    return f"bf16: {int((found != turned).sum())} of {found.numel()} differ"
                continue
            codes, scales = fused_inv_rope_fp8_quant(
                o, w["positions"], w["cos_sin"], groups=2, scale_format=scale_format
            )
            own, own_scales = torch.full_like(codes.view(torch.uint8), 0x7F), torch.full_like(scales, -1)
            run(w, own, own_scales, heads, scale_format, seed + 2)
            wrong = int((own != codes.view(torch.uint8)).sum()), int((own_scales != scales).sum())
            if any(wrong):
                return f"{scale_format}: {wrong[0]} codes and {wrong[1]} scales differ"
    except Fault as fault:
        return f"fault: {fault}"
    return ""
