"""A whole V4-Flash layer of each kind, one decode step in a CUDA graph: time, shares, gaps, roofline.

Type `python benchmarks/cuda_layer.py [window] [ratio4] [ratio128]` on an NVIDIA device. Requests own their
pages in shuffled order; the weights of a layer alone are several times the last-level cache, so every replay
starts cold. Each shape is timed with side streams and without, and once per provider of attention; kernels
are from torch's profiler.
"""

from __future__ import annotations

import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsv4core import AttentionConfig, AttentionWeights, BatchPlan, PagedCache, cache_specs, get_backend
from dsv4core.cache.specs import CacheSpec, layout_of
from dsv4core.plan.groups import GROUPS

DEVICE = "cuda"
BYTES, FLOPS = 3.0e12, 786e12  # copy and bf16 product of the H100 that this was written on
KINDS = {"window": 0, "ratio 4": 2, "ratio 128": 3}
CONTEXTS = {"8K": 8192, "128K": 131072, "1M": 1048576}
BATCHES = (1, 32, 128)
SHARES = {
    "attention": r"mla|splitkv|combine|sparse_attention|sched_meta|clean_list",
    "index scores": r"score|logits", "top-k": r"topk|select|radix|compute_global",
    "compress": r"compress_norm|partial_states", "norm rope insert": r"rmsnorm|qnorm|rope|quant_insert",
    "products": r"gemm|nvjet|cutlass|cublas|splitK|sm90_xmma|gemv|dot_kernel|reduce",
}  # fmt: skip


@dataclass
class Step:
    """One decode step ready to run."""

    attention: Any
    cache: PagedCache
    plan: BatchPlan
    hidden: Tensor

    def __call__(self) -> Tensor:
        """Run the step."""
        return self.attention(self.hidden, self.cache, self.plan)


def pages(spec: CacheSpec, count: int) -> Tensor:
    """Encoded noise: some distinct pages, repeated."""
    layout = layout_of(spec)
    if spec.dtype == "f32":
        return torch.randn(count, spec.rows, spec.row_width, device=DEVICE)
    noise = torch.randn(min(count, 512), spec.rows, layout.values, device=DEVICE)
    few = layout.encode_pages(noise.bfloat16())
    return few.repeat(-(-count // few.shape[0]), 1)[:count].contiguous()


def table(spec: CacheSpec, lengths: list[int]) -> tuple[Tensor, int]:
    """Shuffled pages for the rows that a decode step can touch, -1 before them; and how many pages."""
    group = GROUPS[spec.group]
    per_page = spec.rows * group.tokens_per_row
    width = -(-max(lengths) // per_page)
    held = width if spec.sliding is None else min(width, -(-spec.sliding // per_page) + 1)
    last = torch.tensor([(n - 1) // per_page for n in lengths], device=DEVICE)[:, None]
    ids = torch.randperm(len(lengths) * held, device=DEVICE).view(len(lengths), held)
    columns = last - torch.arange(held, device=DEVICE)
    found = torch.full((len(lengths), width), -1, dtype=torch.int32, device=DEVICE)
    rows = torch.arange(len(lengths), device=DEVICE)[:, None].expand_as(columns)
    there = columns >= 0
    found[rows[there], columns[there]] = ids[there].to(torch.int32)
    return found, len(lengths) * held


def made(attention: Any, config: AttentionConfig, layer: int, batch: int, context: int) -> Step:
    """A step of `batch` requests whose lengths are just below `context`; one in 128 closes a long window."""
    lengths = [context - 1 - i % 128 for i in range(batch)]
    tables: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for spec in cache_specs(config, layer):
        tables[spec.group], count = table(spec, lengths)
        tensors[spec.key] = pages(spec, count)
    cache = PagedCache.from_tensors(config, tensors)
    plan = BatchPlan.build(config, query_lens=[1] * batch, seq_lens=lengths, tables=tables)
    hidden = torch.randn(batch, config.hidden_size, device=DEVICE).bfloat16()
    return Step(attention, cache, plan, hidden)


def replayed(step: Step, layers: int = 1, rounds: int = 15) -> tuple[float, float, Any]:
    """Median microseconds of a replay of `layers` layers, the host's to run one eagerly, and the graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    host = (time.perf_counter() - began) * 1e6
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [step() for _ in range(layers)]
    samples: list[float] = []
    for _ in range(rounds):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        graph.replay()
        b.record()
        b.synchronize()
        samples.append(a.elapsed_time(b) * 1e3)
    return statistics.median(samples), host, (graph, kept)


def shares(graph: Any) -> dict[str, float]:
    """Microseconds of the kernels of one replay by what they are for."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        graph.replay()
        torch.cuda.synchronize()
    spent: dict[str, float] = defaultdict(float)
    for event in found.events() or ():
        if str(event.device_type).endswith("CUDA"):
            short = event.name[:40].replace(",", " ")
            kind = next((k for k, p in SHARES.items() if re.search(p, event.name, re.I)), short)
            spent[kind] += event.device_time
    return dict(spent)


def floor(step: Step, config: AttentionConfig, layer: int, batch: int, context: int) -> float:
    """Microseconds of the roofline: weights once, listed rows, index keys; products at the device's peak."""
    held: set[int] = set()
    size, flops = 0, 0.0
    for part in _tensors(step.attention):
        if part.data_ptr() not in held and part.dim() == 2 and part.shape[1] != 64:
            held.add(part.data_ptr())
            size += part.numel() * part.element_size()
            flops += 2.0 * batch * part.numel()
    ratio = config.layer(layer).ratio
    entries = {0: 0, 4: min(config.index_topk, context // 4), 128: context // 128}[ratio]
    size += batch * (128 + entries) * 584
    flops += batch * config.num_attention_heads * (128 + entries) * 2048.0
    if ratio == 4:
        size += batch * (context // 4) * 132
        flops += batch * (context // 4) * config.index_n_heads * 256.0
    return max(size / BYTES, flops / FLOPS) * 1e6


def _tensors(found: Any, depth: int = 0) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    if depth > 3 or not hasattr(found, "__dict__"):
        return []
    skip = ("ops", "workspace", "config", "flash", "schedules", "streams", "_table")
    return [t for k, v in vars(found).items() if k not in skip for t in _tensors(v, depth + 1)]


def measured(name: str, layer: int, batch: int, label: str) -> Iterator[str]:
    """Lines of one shape: replay with and without side streams, with Triton's attention, shares, floor.

    The first layer of a kind makes the step's schedule; one of several is what each of the others adds.
    """
    config = AttentionConfig.preset("v4-flash")
    attention = get_backend("cuda").attention(
        config, layer, AttentionWeights.random(config, layer, 0).to(DEVICE)
    )
    context = CONTEXTS[label]
    step = made(attention, config, layer, batch, context)
    start = f"{name},{batch},{label}"
    yield f"{start},floor,{floor(step, config, layer, batch, context):.1f}"
    for tokens, what in ((0, "one stream"), (1 << 20, "side streams")):
        attention.stream_tokens = tokens
        us, host, (graph, _) = replayed(step)
        yield f"{start},{what},{us:.1f}"
        yield f"{start},{what} as one of several,{(replayed(step, 4)[0] - us) / 3:.1f}"
        yield f"{start},{what} host,{host:.1f}"
        if not tokens:
            spent = shares(graph)
            yield f"{start},sum of kernels,{sum(spent.values()):.1f}"
            yield from (f"{start},of it {kind},{us:.1f}" for kind, us in spent.items())
        del graph
        if not config.layer(layer).ratio:
            break
    attention.stream_tokens, attention.flash = 0, None
    yield f"{start},triton's attention,{replayed(step)[0]:.1f}"


def main() -> int:
    """The whole table."""
    print(f"# {torch.cuda.get_device_name()}, torch {torch.__version__}, {' '.join(sys.argv)}")
    print("# attention by", get_backend("cuda").ops.provenance["sparse_decode"])
    print("kind,batch,context,what,us")
    for name, layer in KINDS.items():
        if sys.argv[1:] and name.replace(" ", "") not in sys.argv[1:]:
            continue
        for label in CONTEXTS if layer else ("8K",):
            for batch in BATCHES:
                try:
                    for line in measured(name, layer, batch, label):
                        print(line, flush=True)
                except Exception as failure:
                    print(f"{name},{batch},{label}: {type(failure).__name__}: {failure}", flush=True)
                torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
