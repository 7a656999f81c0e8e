"""One layer of the demo: chunked prefill and decode against one prefill of everything."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4core.attention import DeepseekV4Attention
from dsv4core.backend import Backend
from dsv4core.cache import PagedCache
from dsv4core.config import AttentionConfig
from dsv4core.demo.story import DECODED, LONG, SHORT, Story
from dsv4core.demo.timing import TimedOps
from dsv4core.progress import Progress
from dsv4core.weights import AttentionWeights

REST = "projections and the rest"  # of a step, beside the ops that the layer calls by name


@dataclass
class LayerRun:
    """What a layer produced.

    Shapes: outputs[request] [tokens, hidden]; selected[position of LONG] entries or None.
    """

    layer: int
    kind: str
    seconds: dict[str, float]
    stages: dict[str, dict[str, float]]
    outputs: dict[str, Tensor]
    digests: dict[str, str]
    one_shot_digests: dict[str, str]
    decode_error: float
    selected: dict[int, list[int]]
    bytes_per_entry: dict[str, float]


def run_layer(
    backend: Backend, config: AttentionConfig, layer: int, weights: AttentionWeights, story: Story, *,
    corrupt: bool, progress: Progress,
) -> LayerRun:  # fmt: skip
    """Run the story's steps through paged caches, then everything again as one prefill, and compare."""
    start = time.perf_counter()
    attention = backend.attention(config, layer, weights)
    kind = attention.layer.kind
    seconds = {"build": time.perf_counter() - start}
    hidden = {name: story.hidden(name, config.hidden_size).to(attention.dtype) for name in story.texts}
    start = time.perf_counter()
    outputs, cache, selected, stages = _steps(attention, story, hidden, progress)
    seconds["steps"] = time.perf_counter() - start
    if corrupt:
        flip_a_bit(cache, layer)
    start = time.perf_counter()
    whole, again = _one_shot(attention, story, hidden, progress)
    seconds["one prefill"] = time.perf_counter() - start
    return LayerRun(
        layer=layer,
        kind=kind,
        seconds=seconds,
        stages=stages,
        outputs=outputs,
        digests=_digests(cache),
        one_shot_digests=_digests(again),
        decode_error=max(
            relative_error(outputs[name][-DECODED:], whole[name][-DECODED:]) for name in story.texts
        ),
        selected=selected,
        bytes_per_entry=_bytes_per_entry(cache, layer),
    )


def _steps(
    attention: DeepseekV4Attention, story: Story, hidden: dict[str, Tensor], progress: Progress
) -> tuple[dict[str, Tensor], PagedCache, dict[int, list[int]], dict[str, dict[str, float]]]:
    cache = _cache(attention, story)
    parts: dict[str, list[Tensor]] = {name: [] for name in story.texts}
    selected: dict[int, list[int]] = {}
    stages: dict[str, dict[str, float]] = {}
    plain, done, total = attention.ops, 0, sum(story.lengths.values())
    for step in story.steps:
        attention.ops, timed = TimedOps.around(plain)
        starts = {name: cache.length(name) if name in cache.requests else 0 for name in step}
        plan = cache.plan(step)
        rows = torch.cat([hidden[name][starts[name] : starts[name] + n] for name, n in step.items()])
        start = time.perf_counter()
        out = attention(rows, cache, plan)
        timed.seconds[REST] = time.perf_counter() - start - sum(timed.seconds.values())
        for (name, _), part in zip(step.items(), out.split_with_sizes(list(step.values())), strict=True):
            parts[name].append(part)
        phase = stages.setdefault("prefill" if max(step.values()) > 1 else "decode", {})
        for op, spent in timed.seconds.items():
            phase[op] = phase.get(op, 0.0) + spent
        _remember(timed, plan.inverse, starts[LONG], step[LONG], selected)
        done += sum(step.values())
        progress(f"{attention.layer.kind} steps", done, total)
    attention.ops = plain
    return {name: torch.cat(part) for name, part in parts.items()}, cache, selected, stages


def _remember(
    timed: TimedOps, inverse: Tensor | None, start: int, count: int, selected: dict[int, list[int]]
) -> None:
    """Keep what the indexer chose for the long request, whose rows come first in every step."""
    listed = timed.last.get("sparse_indexer")
    if listed is None:
        return
    listed = listed if inverse is None else listed[inverse]
    for i, row in enumerate(listed[:count]):
        selected[start + i] = row[row >= 0].tolist()


def _one_shot(
    attention: DeepseekV4Attention, story: Story, hidden: dict[str, Tensor], progress: Progress
) -> tuple[dict[str, Tensor], PagedCache]:
    cache = _cache(attention, story)
    progress(f"{attention.layer.kind} one prefill", 0, 1)
    out = attention(torch.cat([hidden[LONG], hidden[SHORT]]), cache, cache.plan(story.lengths))
    progress(f"{attention.layer.kind} one prefill", 1, 1)
    return dict(zip(story.lengths, out.split_with_sizes(list(story.lengths.values())), strict=True)), cache


def _cache(attention: DeepseekV4Attention, story: Story) -> PagedCache:
    total = sum(story.lengths.values())
    return PagedCache.allocate(
        attention.config, [attention.layer.index], total, attention.device, max_requests=2, max_chunk=total
    )


def _digests(cache: PagedCache) -> dict[str, str]:
    return {f"{key}/{name}": sha for name in (LONG, SHORT) for key, sha in cache.digest(name).items()}


def flip_a_bit(cache: PagedCache, layer: int) -> None:
    """Change one byte of the window page that holds the long request's last token, as a stray write would."""
    length = cache.length(LONG)
    snapshot = cache.snapshot(LONG)[f"swa.{layer}"]
    row = (length - 1) % 64 * 576
    pages = cache.layer(layer).swa
    page = (
        (pages[:, row : row + 576] == snapshot[-1, row : row + 576].to(pages.device)).all(dim=1).nonzero()[0]
    )
    pages[page, row + 5] ^= 1


def _bytes_per_entry(cache: PagedCache, layer: int) -> dict[str, float]:
    """Bytes that a written row really takes in each group's pages, without what pages are rounded up by."""
    from dsv4core.layout import get_layout

    found: dict[str, float] = {}
    for spec in cache.specs.values():
        if spec.layer == layer and not spec.group.startswith("state"):
            found[spec.group] = float(get_layout(spec.layout).record_bytes)
    return found


def relative_error(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b| over all elements, in float64. Shapes: any, equal."""
    error, size = (a.double() - b.double()).square().sum(), b.double().square().sum()
    return float((error / size).sqrt())
