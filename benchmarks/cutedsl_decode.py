"""Our own decode kernels beside FlashMLA's builds, at the batches that they are for.

Type `python benchmarks/cutedsl_decode.py sgl=DIR tokenspeed=DIR` on a Hopper device, DIR being where a wheel
was unpacked. Measured as `cuda_attention.py` does: every output is held against float64 first, times are
medians of CUDA graphs of many calls that together touch 256 MB, ways taking turns. `--cuts` times every way
to cut the work too. Builds are called raw, with a schedule that is made once. `alone`: whether a row has the
bits of a batch of one.

`--turned` times what a layer wants: outputs turned back, by our kernels in one and by each decode, ours and
the builds', with the kernel behind it (`inverse_rope`, `fused_inv_rope_fp8_quant`). These outputs are held
against float64, too, turned forward again; a code may be half a step away.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _triton_calls import Arguments, decode_calls, kernel
from cuda_attention import BOUND, SHAPES, build, error, measured, op, raw
from torch import Tensor

from dsv4core.numerics.rope import rotate_tail
from dsv4core.ops import OPS
from dsv4core_cuda import ops
from dsv4core_cuda.cluster import ClusterDecode
from dsv4core_cuda.cutedsl import sparse_decode
from dsv4core_cuda.cutedsl.sparse_decode import Form
from dsv4core_cuda.flashmla import Pages
from dsv4core_cuda.flashmla_library import Library

BATCHES = (1, 2, 4, 8, 16, 32)
GROUPS, POSITIONS = 8, 8192
HALF_STEP = 2.0**-4
"""Of a value: what rounding it to e4m3 may take."""
Way = Callable[[Arguments], Callable[[], Tensor]]


def cut(call: Arguments, form: Form) -> Tensor:
    """The kernel, cut in a way of one's own."""
    swa, extra = (
        Pages(call[f"{n}_cache"], call[f"{n}_slots"], call[f"{n}_lens"], 64, "fp8_ds_mla")
        for n in ("swa", "extra")
    )
    sparse_decode.decode(call["q"], swa, extra, call["attn_sink"], call["out"], call["scale"], form=form)
    return call["out"]


def forms(heads: int, keys: int, batch: int, room: sparse_decode.Room) -> list[Form]:
    """Every way to cut that a device runs at once."""
    found: dict[Form, None] = {}
    for size in sparse_decode.KINDS:
        for blocks in range(2, sparse_decode.MOST_BLOCKS + 1):
            form = sparse_decode.cut(size, keys, blocks)
            if batch * heads // size <= room[form.blocks]:
                found[form] = None
    return list(found)


def alone(function: Callable[..., Tensor], call: Arguments) -> bool:
    """Whether the last row has the same bits in a batch of one."""
    whole = op(function, call)[-1].clone()
    rows = {n: call[n][-1:] for n in ("q", "swa_slots", "swa_lens", "extra_slots", "extra_lens", "out")}
    return torch.equal(op(function, {**call, **rows})[0], whole)


def decode(libraries: list[Library], heads: int, extra: int, batch: int, cuts: bool) -> list[str]:
    """Lines of one shape; nan where an output is wrong."""
    calls = decode_calls(batch, heads, extra, "fp8_ds_mla")
    ways: dict[str, Way] = {}
    for library in libraries:
        kept = library.schedule()
        ways[library.name] = lambda c, b=library, k=kept: partial(raw, b, c, k)
    own = ClusterDecode(torch.cuda.get_device_capability(), any_batch=True)
    bound = ops.sparse_decode(None, kernel("sparse_decode"), own)
    ways["cutedsl"] = lambda c: partial(op, bound, c)
    room = sparse_decode.room_of(torch.cuda.current_device())
    for form in forms(heads, 128 + extra, batch, room) if cuts else ():
        name = f"{form.heads} heads in {form.blocks} blocks of {form.tiles} tiles"
        ways[name] = lambda c, f=form: partial(cut, c, f)
    gaps: dict[str, float] = {}
    for name, way in ways.items():
        calls[0]["out"].fill_(torch.nan)  # what is not written shows
        gaps[name] = error(calls[0], way(calls[0])())
    right = {name: [way(c) for c in calls] for name, way in ways.items() if gaps[name] <= BOUND}
    times = measured(right, 9)
    builds = [b.name for b in libraries if b.name in times]
    best = min(builds, key=lambda name: times[name][0].spread.median) if builds else ""
    lines: list[str] = []
    for name, gap in gaps.items():
        us = host = faster = float("nan")
        if name in times:
            series, started = times[name]
            us, host = 1e6 * series.spread.median, 1e6 * started
            faster = times[best][0].over(series).median if best else faster
        same = str(alone(bound, calls[0])).lower() if name == "cutedsl" else ""
        shape = f"{heads},{128 + extra},{batch}"
        lines.append(f"{shape},{name},{us:.1f},{host:.1f},{faster:.2f},{gap:.1e},{same}")
    return lines


def raw_of(library: Library, schedule: Any, call: Arguments) -> Tensor:
    """A build's decode."""
    return raw(library, call, schedule)


def values(call: Arguments, found: tuple[Tensor, Tensor | None] | Tensor) -> Tensor:
    """What outputs turned back stand for, turned forward in f32. Shapes: -> f32 [T, H, 512]."""
    out, scales = found if isinstance(found, tuple) else (found, None)
    x = out.float().view(call["q"].shape)
    if scales is not None:
        if scales.dtype == torch.int32:
            scales = (scales.view(torch.uint8).to(torch.int32) << 23).view(torch.float32)
        x = (x.view(-1, 128) * scales.reshape(-1, 1)).view(x.shape)
    return rotate_tail(x, call["cos_sin"][call["positions"]].unsqueeze(1))


def behind(out: Tensor, call: Arguments, scale_format: str) -> Any:
    """What stands behind attention."""
    angles = (call["positions"], call["cos_sin"])
    if scale_format == "none":
        return kernel("inverse_rope")(out, *angles)
    return kernel("fused_inv_rope_fp8_quant")(out, *angles, groups=GROUPS, scale_format=scale_format)


def apart(decode: Callable[[Arguments], Tensor], call: Arguments, scale_format: str) -> Any:
    """Attention, and what stands behind it."""
    given = {name: call[name] for name in call if name not in ("positions", "cos_sin")}
    return behind(decode(given), call, scale_format)


def joined(fused: Callable[..., Any], call: Arguments, scale_format: str) -> Any:
    """Both in one kernel."""
    given = {name: call[name] for name in call if name != "out"}
    return fused(**given, groups=GROUPS, scale_format=scale_format)


def turned(libraries: list[Library], heads: int, extra: int, batch: int) -> list[str]:
    """Lines of one shape, outputs turned back; nan where an output is wrong."""
    calls = decode_calls(batch, heads, extra, "fp8_ds_mla")
    angles = torch.rand(POSITIONS, 32, device="cuda") * 6.3
    cos_sin = torch.cat((angles.cos(), angles.sin()), 1)
    for call in calls:
        positions = torch.randint(0, POSITIONS, (batch,), device="cuda")
        call |= {"positions": positions, "cos_sin": cos_sin}
    own = ClusterDecode(torch.cuda.get_device_capability(), any_batch=True)
    decodes: dict[str, Callable[[Arguments], Tensor]] = {
        "apart": partial(op, ops.sparse_decode(None, kernel("sparse_decode"), own))
    }
    for library in libraries:
        decodes[library.name] = partial(raw_of, library, library.schedule())
    fused = ops.fused_sparse_decode_inv_rope(OPS["fused_sparse_decode_inv_rope"].body, own)
    ways: dict[str, Callable[[Arguments], Callable[[], Any]]] = {}
    gaps: dict[str, float] = {}
    for scale_format in sparse_decode.FORMATS:
        for name, decode in decodes.items():
            ways[f"{scale_format},{name}"] = lambda c, d=decode, f=scale_format: partial(apart, d, c, f)
        ways[f"{scale_format},in one"] = lambda c, f=scale_format: partial(joined, fused, c, f)
    for name, way in ways.items():
        gap = error(calls[0], values(calls[0], way(calls[0])()))
        gaps[name] = gap if gap <= BOUND + (0.0 if name.startswith("none") else HALF_STEP) else float("nan")
    right = {name: [way(c) for c in calls] for name, way in ways.items() if gaps[name] == gaps[name]}
    times = measured(right, 9)
    lines: list[str] = []
    for name, gap in gaps.items():
        us = host = faster = float("nan")
        others = [n for n in times if n.split(",")[0] == name.split(",")[0] and not n.endswith("in one")]
        best = min(others, key=lambda n: times[n][0].spread.median) if others else ""
        if name in times:
            series, started = times[name]
            us, host = 1e6 * series.spread.median, 1e6 * started
            faster = times[best][0].over(series).median if best else faster
        lines.append(f"{heads},{128 + extra},{batch},{name},{us:.1f},{host:.1f},{faster:.2f},{gap:.1e}")
    return lines


def main(arguments: list[str]) -> int:
    """The whole table."""
    places = dict(a.split("=", 1) for a in arguments if "=" in a)
    libraries = [build(name, Path(folder)) for name, folder in places.items()]
    print(f"# {torch.cuda.get_device_name()}, torch {torch.__version__}, {' '.join(sys.argv)}")
    kinds = ("way", "the best build", "error,alone")
    lines = partial(decode, cuts="--cuts" in arguments)
    if "--turned" in arguments:
        kinds, lines = ("scales,way", "the best of two kernels", "error"), turned
    print("heads,keys,tokens,{},us,host_us,times as fast as {},{}".format(*kinds))
    for heads, extra in SHAPES:
        for batch in BATCHES:
            for line in lines(libraries, heads, extra, batch):
                print(line, flush=True)
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
