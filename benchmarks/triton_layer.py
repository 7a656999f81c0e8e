"""Whole layers through the Triton kernels on a CUDA device: compilations, a captured graph, torch.compile.

    DSV4CORE_XPU_DEVICE=cuda python benchmarks/triton_layer.py

Each kind of layer (V4-Flash) runs in two processes, the first with an empty compile cache. It times its
first prefill and decode, counts what compiles when tokens, requests, context and table width change after
that (batches of 1 to 200 decodes, prefills of up to 2,048 tokens, contexts of 66,000 tokens), and holds a
decode step that was captured and one through `torch.compile(fullgraph=True)` against the eager one: outputs
and every byte of the caches.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("DSV4CORE_XPU_DEVICE", "cuda")

import torch
from torch import Tensor

from dsv4core import AttentionConfig, AttentionWeights, PagedCache, get_backend

LAYERS = {"swa": 0, "csa": 2, "hca": 3}
DEVICE = "cuda"
COMPILED: Counter[str] = Counter()
FIRST = ({"a": 203}, {"a": 1, "b": 140}, {"a": 1, "b": 1})
"""Steps that a server's warm-up takes: prefill alone, beside a decode, decode."""
OTHER = (
    {"a": 1}, {"c": 700}, {"a": 1, "b": 1, "c": 1}, {"d": 64, "e": 1, "f": 17}, {"c": 1500, "a": 1},
    {"a": 1, "b": 1, "c": 1, "d": 1, "e": 1}, {"g": 2000}, {"g": 1}, {"c": 3, "g": 1, "a": 90}, {"g": 33},
    {"h": 2048},
)  # fmt: skip
BATCHES = (1, 2, 7, 8, 9, 16, 17, 32, 33, 64, 200)
"""Decodes of a step: on both sides of every number that cuts the work differently."""
LONG = {"swa": 0, "csa": 33, "hca": 9}
"""Prefills of 2,000 tokens of one request: beyond one span of top-k, and two widths of lists of ratio 128."""


def count_compilations() -> None:
    """Note every kernel that a launch has to make or load."""
    triton: Any = import_module("triton")

    def note(*, fn: Any, **_: Any) -> None:
        COMPILED[fn.name] += 1

    triton.knobs.runtime.jit_post_compile_hook = note


class World:
    """One layer with a cache; rows of a request come from its name."""

    def __init__(self, attention: Any, layer: int, tokens: int = 8192, requests: int = 16) -> None:
        self.attention, self.layer = attention, layer
        self.config: AttentionConfig = attention.config
        self.cache = PagedCache.allocate(self.config, [layer], tokens, DEVICE, max_requests=requests)
        for t in self.pages():
            t.view(torch.uint8).zero_()

    def pages(self) -> list[Tensor]:
        """The tensors of the cache."""
        held = self.cache.layer(self.layer)
        found = (held.swa, held.compressed, held.indexer, held.state, held.indexer_state)
        return [t for t in found if t is not None]

    def rows(self, new: Mapping[str, int]) -> Tensor:
        """The next hidden rows of requests. Shapes: -> bf16 [tokens, hidden]."""
        parts: list[Tensor] = []
        for name, count in new.items():
            at = self.cache.length(name) if name in self.cache.requests else 0
            g = torch.Generator().manual_seed(1000 * sum(name.encode()) + at)
            parts.append(torch.randn(count, self.config.hidden_size, generator=g))
        return torch.cat(parts).to(DEVICE, torch.bfloat16)

    def step(self, new: Mapping[str, int]) -> Tensor:
        """Run a step."""
        rows = self.rows(new)
        return self.attention(rows, self.cache, self.cache.plan(dict(new)))


def others(world: World, kind: str) -> None:
    """Steps of all sizes, which are to compile nothing."""
    for new in OTHER:
        world.step(new)
    many = [f"n{i}" for i in range(max(BATCHES))]
    for start in range(0, len(many), 100):
        world.step(dict.fromkeys(many[start : start + 100], 20))
    for batch in BATCHES:
        world.step(dict.fromkeys(many[:batch], 1))
    for _ in range(LONG[kind]):
        world.step({"z": 2000})
    world.step({"z": 1, "a": 1})


def same(name: str, out: Tensor, world: World, expected: Tensor, other: World) -> bool:
    """Whether two steps gave the same bits and left the same pages."""
    outputs = torch.equal(out, expected)
    pages = all(
        torch.equal(a.view(torch.uint8), b.view(torch.uint8))
        for a, b in zip(world.pages(), other.pages(), strict=True)
    )
    print(f"  {name}: outputs {'equal' if outputs else 'DIFFER'}, pages {'equal' if pages else 'DIFFER'}")
    return outputs and pages


def median_us(call: Callable[[], Any], rounds: int = 50) -> float:
    """Median microseconds of a call, with events."""
    samples: list[float] = []
    for _ in range(rounds):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        call()
        b.record()
        b.synchronize()
        samples.append(a.elapsed_time(b) * 1e3)
    return statistics.median(samples)


def one(kind: str, compiled: bool) -> int:
    """What this process has to say about a kind of layer."""
    count_compilations()
    layer, config = LAYERS[kind], AttentionConfig.preset("v4-flash")
    weights = AttentionWeights.random(config, layer, seed=3).to(torch.device(DEVICE))
    attention = get_backend("xpu").attention(config, layer, weights)
    torch.cuda.synchronize()
    world = World(attention, layer, 1 << 17, 256)
    began = time.perf_counter()
    for new in FIRST:
        world.step(new)
    torch.cuda.synchronize()
    took = time.perf_counter() - began
    print(f"{kind}: first steps {took:.1f} s, {COMPILED.total()} kernels")
    before = COMPILED.copy()
    others(world, kind)
    torch.cuda.synchronize()
    more = COMPILED - before
    print(f"  other tokens, requests, contexts, widths: {more.total()} more {dict(more) or ''}")
    good = took < 60 and not more
    del world

    batch = {f"r{i}": 100 + 37 * i for i in range(8)}
    step = dict.fromkeys(batch, 1)
    worlds = [World(attention, layer) for _ in range(3)]
    for w in worlds:
        w.step(batch)
    expected = worlds[0].step(step)

    w = worlds[1]
    rows, plan = w.rows(step), w.cache.plan(dict(step))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            attention(rows, w.cache, plan)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(rows, w.cache, plan)
    out.fill_(torch.nan)
    graph.replay()
    good &= same("captured and replayed", out, w, expected, worlds[0])
    eager = median_us(lambda: attention(rows, w.cache, plan))
    print(f"  decode of 8: {eager:.0f} us eager, {median_us(graph.replay):.0f} us replayed")

    if compiled:
        w = worlds[2]
        rows, plan = w.rows(step), w.cache.plan(dict(step))
        whole = torch.compile(attention.forward, fullgraph=True)  # pyright: ignore[reportUnknownMemberType]
        began = time.perf_counter()
        out = whole(rows, w.cache, plan)
        torch.cuda.synchronize()
        print(f"  torch.compile(fullgraph=True): {time.perf_counter() - began:.1f} s")
        good &= same("compiled", out, w, expected, worlds[0])
    return 0 if good else 1


def main() -> int:
    """Every kind with an empty compile cache, side by side; then again with what that left."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=tuple(LAYERS))
    parser.add_argument("--compiled", action="store_true")
    chosen = parser.parse_args()
    if chosen.kind:
        return one(chosen.kind, chosen.compiled)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for label in ("empty compile cache", "filled compile cache"):
            print(f"-- {label}")
            running = [
                subprocess.Popen(
                    [sys.executable, __file__, "--kind", kind, *(["--compiled"] if label[0] == "f" else [])],
                    env={**os.environ, "TRITON_CACHE_DIR": f"{folder}/{kind}"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                for kind in LAYERS
            ]
            for process in running:
                said, _ = process.communicate()
                print(said if process.returncode == 0 else said[-3000:], end="", flush=True)
                failed += process.returncode != 0
    print("ok" if not failed else f"{failed} FAILED")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
