"""FlashMLA's builds raw, behind our adapter and as an op, beside the Triton kernels, on the same bytes.

Type `python benchmarks/cuda_attention.py sgl=DIR tokenspeed=DIR vllm=FILE` on an NVIDIA device: where a
wheel was unpacked, or a shared library that registers FlashMLA's ops. The adapter uses the first build. Every
output is held against float64 before it is timed; times are medians of CUDA graphs of many calls that
together touch 256 MB, ways taking turns, and the host's time to start one call. `times best` is how many
times longer than the fastest raw build a way takes, the median over the turns. `--only=decode,64,512,8` takes
one shape.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _triton_calls import DEVICE, Arguments, decode_calls, kernel, lens
from torch import Tensor

from dsv4core.bench.timing import Series, alternate, in_turn, timer
from dsv4core.layout import get_layout
from dsv4core_cuda import ops
from dsv4core_cuda.flashmla import FlashMLA, Pages
from dsv4core_cuda.flashmla_check import check
from dsv4core_cuda.flashmla_library import FlashMLAModule, FlashMLAOps, Library

BATCHES = (1, 8, 32, 128, 512)
SHAPES = ((64, 512), (64, 1024), (128, 512), (128, 1024))
SMALL = (8, 16, 32)
PREFILLS = ((64, 640), (64, 1152), (128, 640), (128, 1152), (8, 640), (16, 640), (32, 640))
BOUND = 4e-3
Times = tuple[Series, float]


def build(name: str, place: Path) -> Library:
    """A build from an unpacked wheel or a library; only one may be the module, the others register ops."""
    files = [place] if place.is_file() else sorted(place.rglob("_C_legacy*.so"))
    if files:
        before = _namespaces()
        torch.ops.load_library(str(files[0]))
        return FlashMLAOps((_namespaces() - before).pop(), name)
    sys.path.insert(0, str(place))
    found = FlashMLAModule(importlib.import_module("flash_mla"))
    found.name = name
    return found


def _namespaces() -> set[str]:
    """Those that have FlashMLA's decode."""
    names = (name.partition("::") for name in torch._C._dispatch_get_all_op_names())
    return {space for space, _, op in names if op.startswith("sparse_decode_fwd")}


def raw(library: Library, call: Arguments, schedule: Any) -> Tensor:
    """The build's own call, arguments ready: what an engine without a contract would do."""
    swa, extra = (
        call[f"{n}_cache"].as_strided((call[f"{n}_cache"].shape[0], 64, 1, 584), (37440, 584, 584, 1))
        for n in ("swa", "extra")
    )
    return library.decode(
        call["q"].unsqueeze(1), swa, call["swa_slots"].unsqueeze(1), call["swa_lens"], extra,
        call["extra_slots"].unsqueeze(1), call["extra_lens"], call["attn_sink"], call["scale"], schedule,
    )[0].squeeze(1)  # fmt: skip


def adapted(flash: FlashMLA, call: Arguments, schedule: Any) -> Tensor:
    """What a layer does: its lists as they are, the schedule of the step, the result without a copy."""
    swa, extra = (
        Pages(call[f"{n}_cache"], call[f"{n}_slots"], call[f"{n}_lens"], 64, "fp8_ds_mla")
        for n in ("swa", "extra")
    )
    assert flash.decodes(call["q"], swa, extra).provider == "flashmla"
    return flash.decode(
        call["q"], swa, extra, call["attn_sink"], call["scale"], trusted=True, schedule=schedule
    )[0]


def op(function: Callable[..., Tensor], call: Arguments) -> Tensor:
    """An op of the contract: any lists, writes `out`."""
    function(**call)
    return call["out"]


def error(call: Arguments, out: Tensor) -> float:
    """L2 distance from float64 over what is summed, worst of the heads of two tokens."""
    layout, gaps = get_layout("fp8_ds_mla"), torch.zeros(1)
    for t in {0, call["q"].shape[0] - 1}:
        rows = [layout.read(call[f"{n}_cache"], call[f"{n}_slots"][t].long(), 64) for n in ("swa", "extra")]
        keys = layout.decode(torch.cat(rows))
        found = _distance(call["q"][t], keys, call["attn_sink"], call["scale"], out[t])
        gaps = torch.cat((gaps, torch.tensor([found])))
    return float(gaps.max())  # NaN where one is


def _distance(q: Tensor, keys: Tensor, sink: Tensor, scale: float, out: Tensor) -> float:
    k = keys.double()
    s = (q.double() @ k.T) * scale
    p = (s - torch.logaddexp(s.logsumexp(1), sink.double()).unsqueeze(1)).exp()
    return float(((out.double() - p @ k).norm(dim=1) / (p @ k.abs()).norm(dim=1)).max())


def decode(libraries: list[Library], heads: int, extra: int, batch: int) -> str:
    """One shape: every build raw, the adapter, the ops; nan where the output is wrong."""
    calls = decode_calls(batch, heads, extra, "fp8_ds_mla")
    flash = FlashMLA(libraries[0], torch.cuda.get_device_capability(), fewest=1)
    ways: dict[str, Callable[[Arguments], Callable[[], Tensor]]] = {}
    if heads in (64, 128):
        for library in libraries:
            kept = library.schedule()
            ways[f"{library.name} raw"] = lambda c, b=library, k=kept: partial(raw, b, c, k)
        ways["raw with its own schedule"] = lambda c: partial(_fresh, libraries[0], c)
    shared = libraries[0].schedule()
    ways["adapter"] = lambda c: partial(adapted, flash, c, shared)
    ways["op"] = lambda c: partial(op, ops.sparse_decode(flash, kernel("sparse_decode")), c)
    ways["triton"] = lambda c: partial(op, kernel("sparse_decode"), c)
    gaps = {n: attempted(n, lambda w=way: error(calls[0], w(calls[0])())) for n, way in ways.items()}
    times = measured({name: [way(c) for c in calls] for name, way in ways.items() if gaps[name] <= BOUND})
    return table("decode", heads, 128 + extra, batch, gaps, times)


def attempted(name: str, found: Callable[[], float]) -> float:
    """The error of a way, or nan and why there is none."""
    try:
        return found()
    except Exception as failure:
        print(f"# {name}: {type(failure).__name__}: {str(failure).splitlines()[0]}")
        return float("nan")


def _fresh(library: Library, call: Arguments) -> Tensor:
    return raw(library, call, library.schedule())


def prefill(libraries: list[Library], heads: int, keys: int) -> str:
    """4096 queries over 32,768 gathered rows; padded where the heads are few."""
    tokens, rows = 4096, 32768
    q = torch.randn(tokens, heads, 512, device=DEVICE).bfloat16()
    kv = torch.randn(rows, 512, device=DEVICE).bfloat16()
    indices = torch.rand(tokens, rows, device=DEVICE).topk(keys, 1).indices.to(torch.int32)
    count, sink, scale = lens(tokens, keys), torch.randn(heads, device=DEVICE), 512**-0.5
    flash = FlashMLA(libraries[0], torch.cuda.get_device_capability(), fewest=1)
    out = torch.empty_like(q)
    ours = ops.sparse_prefill(flash, kernel("sparse_prefill"))
    ways: dict[str, Callable[[], Tensor]] = {
        f"{b.name} raw": lambda b=b: b.prefill(q, kv[:, None], indices[:, None], count, sink, scale)[0]
        for b in (libraries if heads in (64, 128) else ())
    }
    ways["adapter"] = lambda: flash.prefill(q, kv, indices, count, sink, scale, trusted=True)[0]
    ways["op"] = lambda: (ours(q, kv, indices, count, sink, out, scale=scale), out)[1]
    ways["triton"] = lambda: (kernel("sparse_prefill")(q, kv, indices, count, sink, out, scale=scale), out)[1]
    keep = kv[indices[7].long()]
    gaps = {
        n: attempted(n, lambda w=way: _distance(q[7], keep, sink, scale, w()[7])) for n, way in ways.items()
    }
    times = measured({name: [way] for name, way in ways.items() if gaps[name] <= BOUND})
    return table("prefill", heads, keys, tokens, gaps, times)


def table(
    kind: str, heads: int, keys: int, tokens: int, gaps: dict[str, float], times: dict[str, Times]
) -> str:
    """Lines of one shape; nan where an output is wrong."""
    raws = [name for name in times if name.endswith(" raw")]
    best = min(raws, key=lambda name: times[name][0].spread.median) if raws else ""
    lines: list[str] = []
    for name, gap in gaps.items():
        us = host = over = float("nan")
        if name in times:
            series, started = times[name]
            us, host = 1e6 * series.spread.median, 1e6 * started
            over = series.over(times[best][0]).median if best else over
        flops = tokens * heads * keys * 2048 / us / 1e6
        lines.append(
            f"{kind},{heads},{keys},{tokens},{name},{us:.1f},{over:.3f},{host:.1f},{flops:.0f},{gap:.1e}"
        )
    return "\n".join(lines)


def measured(ways: dict[str, list[Callable[[], Tensor]]], rounds: int = 11) -> dict[str, Times]:
    """Seconds of a call in a graph of all, ways taking turns; and the host's to start one."""
    calls = {name: in_turn(found) for name, found in ways.items()}
    for call in calls.values():
        call()
    started = {name: timer("launch", DEVICE)(call, 32) for name, call in calls.items()}
    graph = timer("graph", DEVICE)
    found = alternate(calls, dict.fromkeys(calls, graph), rounds, least=max(map(len, ways.values())))
    return {name: (series, started[name]) for name, series in found.items()}


def attempt(function: Callable[..., str], *args: Any) -> None:
    """Print a row, or why there is none."""
    try:
        print(function(*args), flush=True)
    except Exception as failure:
        print(f"{function.__name__} {args[1:]}: {type(failure).__name__}: {failure}", flush=True)
    torch.cuda.empty_cache()


def main(arguments: list[str]) -> int:
    """The whole table; `host_us` to start a call, `error` of the 4e-3 that is allowed."""
    only = [a.partition("=")[2] for a in arguments if a.startswith("--only=")]
    places = dict(a.split("=", 1) for a in arguments if "=" in a and not a.startswith("-"))
    where = torch.device(DEVICE, torch.cuda.current_device())
    libraries: list[Library] = []
    for name, place in places.items():
        try:
            library = build(name, Path(place))
            libraries.append(library)
            print(f"# {name}: {check(library, torch.cuda.get_device_capability(), where) or 'runs'}")
        except Exception as failure:
            print(f"# {name}: {type(failure).__name__}: {str(failure).splitlines()[0]}")
    print(f"# {torch.cuda.get_device_name()}, torch {torch.__version__}, {' '.join(sys.argv)}")
    print("kind,heads,keys,tokens,way,us,times best,host_us,tflops,error")
    shapes = [("prefill", *shape) for shape in PREFILLS]
    shapes += [("decode", *shape, batch) for shape in SHAPES for batch in BATCHES]
    shapes += [("decode", heads, 512, batch) for heads in SMALL for batch in BATCHES[:4]]
    for kind, *shape in shapes:
        if not only or ",".join([kind, *map(str, shape)]) in only:
            attempt({"prefill": prefill, "decode": decode}[kind], libraries, *shape)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
