"""A whole V4-Flash layer of each kind, one decode step in a CUDA graph: time, shares, gaps, roofline, memory.

Type `python benchmarks/cuda_layer.py [window] [ratio4] [ratio128] [--contexts=8K,1M] [--batches=1,32]` on
an NVIDIA device, or with `memory` for the peak of a prefill of 128K tokens in steps of 8K, beside what the
layer says that it needs. Requests own their pages in shuffled order; the weights of a layer alone are several
times the last-level cache, so every replay starts cold. Each shape is timed with side streams and without,
once per provider of attention, and with our own decode kernel also where it turns its outputs back itself
("fused"), in turns; `--quant=f32` quantises them. Kernels and the time between them are from torch's
profiler, which makes a replay on several streams longer: "under the profiler" says by how much.
"""

from __future__ import annotations

import gc
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dsv4core import AttentionConfig, AttentionWeights, BatchPlan, PagedCache, cache_specs, get_backend
from dsv4core.bench.timing import timer
from dsv4core.cache.specs import CacheSpec, layout_of
from dsv4core.plan import Limits
from dsv4core.plan.groups import GROUPS
from dsv4core.runtime import captured
from dsv4core_cuda.cutedsl._build import Program

DEVICE = "cuda"
BYTES, FLOPS = 3.0e12, 786e12  # copy and bf16 product of the H100 that this was written on
KINDS = {"window": 0, "ratio 4": 2, "ratio 128": 3}
CONTEXTS = {"8K": 8192, "128K": 131072, "1M": 1048576}
BATCHES = (1, 32, 128)
LAYERS = 4  # of a graph of several
FUSED = " fused"
PROMPT, CHUNK = 131072, 8192
SHARES = {
    "attention": r"mla|splitkv|combine|sparse_(attention|decode)|sched_meta|clean_list|weigh|use_kept|hopper",
    "index queries": r"indexer_q|index_q", "index scores": r"score|logits|sparse_indexer",
    "top-k": r"topk|select|radix|compute_global", "compress": r"compress_|partial_states",
    "norm rope insert": r"rmsnorm|qnorm|rope|quant_insert",
    "products": r"gemm|nvjet|cutlass|cublas|splitK|sm90_xmma|gemv|dot_kernel|reduce|linear",
}  # fmt: skip


@dataclass(eq=False)
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


def replayed(calls: dict[str, Callable[[], Tensor]], rounds: int = 11) -> dict[str, tuple[float, float]]:
    """Microseconds of a graph of one layer, and what every further layer adds to it; calls take turns."""
    graphs = {(name, layers): timer("graph", DEVICE) for name in calls for layers in (1, LAYERS)}
    samples: dict[tuple[str, int], list[float]] = {key: [] for key in graphs}
    for _ in range(rounds):
        for (name, layers), graph in graphs.items():
            samples[name, layers].append(1e6 * layers * graph(calls[name], layers))
    found = {key: median(values) for key, values in samples.items()}
    return {n: (found[n, 1], (found[n, LAYERS] - found[n, 1]) / (LAYERS - 1)) for n in calls}


def cutedsl_names() -> dict[str, str]:
    """The files of CuTeDSL's kernels by the names that the profiler shows, which say constants only."""
    programs = [found for found in gc.get_objects() if type(found) is Program]
    return {
        "kernel_cutlass_kernel"
        + "_" * (len(p.arguments) + 1)
        + "_".join(map(str, (*p.constants, 0))): p.kernel
        for p in programs
    }


def profiled(step: Callable[[], Tensor]) -> tuple[dict[str, float], float, float]:
    """Microseconds of a layer's kernels by what they are for; busy and whole time of a replay of several."""
    replay, kept = captured(lambda: [step() for _ in range(LAYERS)], DEVICE)
    replay()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        replay()
        torch.cuda.synchronize()
    del kept
    events = [e for e in found.events() or () if str(e.device_type).endswith("CUDA")]
    spent: dict[str, float] = defaultdict(float)
    ours = cutedsl_names()
    for event in events:
        name = ours.get(event.name, event.name)
        short = name[:40].replace(",", " ")
        spent[next((k for k, p in SHARES.items() if re.search(p, name, re.I)), short)] += event.device_time
    spans = sorted((e.time_range.start, e.time_range.end) for e in events)
    busy, end = 0.0, spans[0][0]
    for first, last in spans:
        busy += max(0.0, last - max(first, end))
        end = max(end, last)
    return {kind: us / LAYERS for kind, us in spent.items()}, busy, end - spans[0][0]


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


def measured(attention: Any, name: str, batch: int, label: str) -> Iterator[str]:
    """Lines of one shape: replay with and without side streams, with Triton's attention, shares, gaps, floor.

    The first layer of a kind makes the step's schedule; one of several is what each of the others adds.
    Shares, gaps and the sum of the kernels are those of a layer in a graph of several.
    """
    config, layer, context, flash = attention.config, KINDS[name], CONTEXTS[label], attention.flash
    step = made(attention, config, layer, batch, context)
    start = f"{name},{batch},{label}"
    yield f"{start},floor,{floor(step, config, layer, batch, context):.1f}"

    def way(tokens: int, provider: Any, joined: bool = False) -> Tensor:
        attention.stream_tokens, attention.flash = tokens, provider
        attention.fuse_output = joined
        return step()

    ways = {"one stream": partial(way, 0, flash)}
    if attention.cluster is None:  # the op's own decode kernel would take few tokens otherwise
        ways["triton's attention"] = partial(way, 0, None)
    else:
        ways[f"one stream{FUSED}"] = partial(way, 0, flash, True)
    if config.layer(layer).ratio:
        ways["side streams"] = partial(way, 1 << 20, flash)
        if attention.cluster is not None:
            ways[f"side streams{FUSED}"] = partial(way, 1 << 20, flash, True)
    for what, (alone, more) in replayed(ways).items():
        yield f"{start},{what},{alone:.1f}"
        yield f"{start},{what} as one of several,{more:.1f}"
        if what in ("one stream", "side streams"):
            yield f"{start},{what} host,{1e6 * timer('launch', DEVICE)(ways[what], 3):.1f}"
            spent, busy, whole = profiled(ways[what])
            yield f"{start},{what} gaps,{100 * (1 - busy / whole):.1f}"
            yield f"{start},{what} under the profiler,{whole / LAYERS:.1f}"
        if what == "one stream":
            yield f"{start},sum of kernels,{sum(spent.values()):.1f}"
            yield from (f"{start},of it {kind},{us:.1f}" for kind, us in spent.items())
    attention.flash, attention.fuse_output = flash, False


def memory(attention: Any, name: str) -> Iterator[str]:
    """Bytes of caches beside the model's, and the peak of every step of a long prefill.

    Activations grow with the tokens of a step alone. Most of them are held while the output is projected:
    attention's result, the same rotated back, the group's outputs and the layer's.
    """
    config, layer = attention.config, KINDS[name]
    limits = Limits(max_tokens=CHUNK, max_seq_len=PROMPT, max_requests=1)
    attention.profile(limits)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    cache = PagedCache.allocate(config, [layer], PROMPT, DEVICE, max_requests=1, max_chunk=CHUNK)
    taken = torch.cuda.memory_allocated() - before
    held = sum(t.nbytes for t in vars(cache.layer(layer)).values() if isinstance(t, Tensor))
    start = f"{name},1,128K"
    yield f"{start},cache bytes allocated,{taken}"
    yield f"{start},cache bytes of the pages,{held}"
    yield f"{start},workspace_bytes,{attention.workspace_bytes(limits)}"
    wide = 2 * attention.padded_heads * config.head_dim + config.o_groups * config.o_lora_rank
    activations = CHUNK * (wide + config.hidden_size) * attention.dtype.itemsize
    yield f"{start},activations,{activations}"
    peaks: list[int] = []
    hidden = torch.randn(CHUNK, config.hidden_size, device=DEVICE).bfloat16()
    for _ in range(PROMPT // CHUNK):
        plan = cache.plan({"a": CHUNK})
        reserved = attention.workspace.reserved(torch.device(DEVICE, torch.cuda.current_device()))
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        attention(hidden, cache, plan)
        torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated() - before + reserved)
    yield f"{start},peak of the first 8K,{peaks[0]}"
    yield f"{start},peak of the last 8K,{peaks[-1]}"
    yield f"{start},highest peak,{max(peaks)}"
    yield f"{start},highest peak behind the first without activations,{max(peaks[1:]) - activations}"


def main(arguments: list[str]) -> int:
    """The whole table: microseconds; gaps are percent of the time, memory is in bytes."""
    given = dict(a.lstrip("-").split("=") for a in arguments if "=" in a)
    contexts = given["contexts"].split(",") if "contexts" in given else [*CONTEXTS]
    batches = [int(n) for n in given["batches"].split(",")] if "batches" in given else BATCHES
    kinds = [a for a in arguments if "=" not in a and a != "memory"]
    print(f"# {torch.cuda.get_device_name()}, torch {torch.__version__}, {' '.join(sys.argv)}")
    print("# attention by", get_backend("cuda").ops.provenance["sparse_decode"])
    print("kind,batch,context,what,value", flush=True)
    config = AttentionConfig.preset("v4-flash", output_quant=given.get("quant"))
    for name, layer in KINDS.items():
        if kinds and name.replace(" ", "") not in kinds:
            continue
        weights = AttentionWeights.random(config, layer, 0).to(DEVICE)
        attention = get_backend("cuda").attention(config, layer, weights)
        shapes = [(batch, label) for label in (contexts if layer else contexts[:1]) for batch in batches]
        todo = [partial(measured, attention, name, *shape) for shape in shapes]
        for lines in [partial(memory, attention, name)] if "memory" in arguments else todo:
            try:
                for line in lines():
                    print(line, flush=True)
            except Exception as failure:
                print(f"# {lines.args[1:]}: {type(failure).__name__}: {failure}", flush=True)
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
