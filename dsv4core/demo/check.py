"""What the demo holds its results against: pinned hashes, the published byte model, a float64 reference."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files

import torch
from torch import Tensor

from dsv4core.config import AttentionConfig
from dsv4core.demo.run import LayerRun, relative_error
from dsv4core.demo.story import DECODED, LONG, Story
from dsv4core.ops._rows import ints
from dsv4core.weights import AttentionWeights

DECODE_BOUND = 2e-3  # contract of the CPU backend: decode against prefill on equal pages
REFERENCE_BOUND = 1.2e-2  # bf16 projections, P and output in bf16, and fp8 codes that flip beside a tie
ENTRY_BYTES = {"swa": 584.0, "c4": 584.0, "c128": 584.0, "indexer": 132.0}
TOKEN_BYTES = {"fp8_ds_mla+index_fp8": 3850.25, "fp8_ds_mla+index_mxfp4": 3514.25}  # V4-Flash, as published


@dataclass(frozen=True)
class ReferenceCheck:
    """Errors against the reference on rows of the long request; overlap of the chosen entries (ratio 4)."""

    rows: int
    error: float
    selection_overlap: float | None
    seconds: float


def pinned() -> dict[str, str]:
    """sha256 of every cache of the default text."""
    return json.loads(files("dsv4core.demo").joinpath("pins.json").read_text())


def token_bytes(config: AttentionConfig) -> float:
    """Cache bytes per token of the whole model, from its layouts' rows (window and states are fixed)."""
    from dsv4core.layout import get_layout

    main, index = get_layout(config.main_layout).record_bytes, get_layout(config.index_layout).record_bytes
    per_layer = {0: 0.0, 4: (main + index) / 4, 128: main / 128}
    return sum(per_layer[ratio] for ratio in config.compress_ratios)


def against_reference(
    config: AttentionConfig, layer: int, weights: AttentionWeights, story: Story, run: LayerRun
) -> ReferenceCheck:
    """Decoded and prefilled rows of the long request against float64 numpy with the same weights.

    The reference finds its own entries; its attention then takes the list of the run, because a few near-ties
    that fall the other way move the output without anything being wrong.
    """
    import time

    from dsv4core_conformance.reference import Options, ReferenceConfig, ReferenceLayer

    start = time.perf_counter()
    c = config
    sizes = ReferenceConfig(
        c.hidden_size, c.num_attention_heads, c.q_lora_rank, c.o_groups, c.o_lora_rank, c.index_n_heads,
        c.index_topk, eps=c.rms_norm_eps, theta=c.rope_theta, compress_theta=c.compress_rope_theta,
    )  # fmt: skip
    arrays = {name: tensor.float().numpy() for name, tensor in weights.dequantised().state_dict().items()}
    reference = ReferenceLayer(sizes, c.layer(layer).ratio, arrays, Options.preset("vllm"))
    tokens = story.lengths[LONG]
    rows = sorted({3, 127, 128, 1000, tokens - DECODED - 1, *range(tokens - 4, tokens)})
    hidden = story.hidden(LONG, c.hidden_size).to(torch.bfloat16).double().numpy()
    chosen = {row: run.selected[row] for row in rows} if run.selected else None
    trace = reference.run(hidden, rows, chosen)
    error = relative_error(run.outputs[LONG][rows], torch.as_tensor(trace["out"]))
    overlap = None
    if chosen is not None:
        overlap = _overlap(torch.as_tensor(trace["index_scores"]), rows, chosen, c.index_topk)
    return ReferenceCheck(len(rows), error, overlap, time.perf_counter() - start)


def _overlap(scores: Tensor, rows: list[int], chosen: dict[int, list[int]], k: int) -> float:
    """Share of the reference's own top-k that the run chose too, over the rows where there is a choice."""
    shares: list[float] = []
    for row, line in zip(rows, scores, strict=True):
        visible = int(torch.isfinite(line).sum())
        if visible > k:
            own = set(ints(line.topk(k).indices))
            shares.append(len(own & set(chosen[row])) / k)
    return sum(shares) / len(shares) if shares else 1.0
