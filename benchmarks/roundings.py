"""How far each engine's own roundings are from ours, stage by stage: the table of docs/roundings.md.

The independent float64 reference plays the engine (its options describe where an engine rounds), the CPU
backend is ours. One ratio-4 layer in V4-Flash dimensions with synthetic weights of realistic statistics.

Type `OMP_NUM_THREADS=2 python benchmarks/roundings.py` (about a minute and 4 GB).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from dsv4core import AttentionConfig, AttentionWeights, PagedCache, get_backend
from dsv4core.layout import get_layout
from dsv4core.synthetic import hash_normal
from dsv4core_conformance.reference import Options, ReferenceConfig, ReferenceLayer, Trace

LAYER, SEED = 2, 0
VLLM, OFFICIAL = Options.preset("vllm"), Options.preset("official")
# The engine's name, its roundings, and the profile of ours that it is put beside.
ENGINES: dict[str, tuple[Options, str]] = {
    "exact mathematics": (Options.preset("math"), "math"),
    "vLLM": (VLLM, "vllm"),
    "vLLM on CUDA (output in fp8)": (replace(VLLM, o_quant="fp8_1x128"), "vllm"),
    "SGLang": (Options.preset("sglang"), "sglang"),
    "DeepSeek's inference code": (OFFICIAL, "official"),
    "the same, first release (keys not rounded)": (replace(OFFICIAL, kv_quant="none"), "official"),
}
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Stages:
    """What a run of ours computed for the last rows; index keys as read from the page."""

    q: F64
    rows: F64
    entries: F64
    keys: F64
    scores: F64
    selection: list[set[int]]
    lists: dict[int, list[int]]
    out: F64


def ours(profile: str, weights: AttentionWeights, hidden: torch.Tensor, wanted: int, topk: int) -> Stages:
    """Prefill all but the wanted rows, then look at every stage of the rest."""
    config = AttentionConfig.preset("v4-flash", profile=profile, index_topk=topk)
    backend, length = get_backend("cpu"), len(hidden)
    attention = backend.attention(config, LAYER, weights)
    cache = PagedCache.allocate(config, [LAYER], 2048, "cpu", max_requests=1, max_chunk=2048)
    pages = cache.layer(LAYER)
    x = hidden.to(attention.dtype)
    for part in (x[:-wanted], x[-wanted:]):
        plan = cache.plan({"a": len(part)})
        table = attention.rope(plan)
        latent, kv = attention.latents(part)
        q = attention.queries(latent, kv, pages, plan, table)
        chosen = attention.compress(part, latent, pages, plan, table)
    out = attention(x[-wanted:], cache, plan)
    found = cache.snapshot("a")

    def rows(group: str, layout: str) -> F64:
        decoded = get_layout(layout).decode_pages(found[f"{group}.{LAYER}"], 64)
        return decoded.flatten(0, 1).double().numpy()

    indexer, entries = attention.indexer, length // 4
    assert indexer is not None and chosen is not None
    index_q = indexer.wq_b(backend.ops, latent).view(-1, config.index_n_heads, 128)
    values, scales, folded = backend.ops.fused_indexer_q_rope_quant(
        plan.positions, index_q, table, indexer.weights_proj(backend.ops, x[-wanted:]),
        softmax_scale=config.index_softmax_scale, head_scale=config.index_head_scale,
        format=config.index_format, rotate=config.rotate,
    )  # fmt: skip
    scores = backend.ops.indexer_logits(
        values, scales, folded, pages.indexer, plan.context_lens[4], plan.token_to_req,
        plan.tables["indexer"], rows=64, layout=config.index_layout, max_len=entries, rotate=config.rotate,
    )  # fmt: skip
    first = (length - 128) // 64 * 64
    lists = [[i for i in row if i >= 0] for row in chosen.tolist()]
    return Stages(
        q.double().numpy(), rows("swa", config.main_layout)[length - 128 - first : length - first],
        rows("c4", config.main_layout)[:entries], rows("indexer", config.index_layout)[:entries],
        scores.double().numpy(), [set(row) for row in lists],
        dict(zip(plan.positions.tolist(), lists, strict=True)), out.double().numpy(),
    )  # fmt: skip


def relative(mine: F64, theirs: F64) -> str:
    """Relative L2 distance of ours from theirs, over finite values."""
    seen = np.isfinite(theirs)
    return f"{np.linalg.norm(mine[seen] - theirs[seen]) / np.linalg.norm(theirs[seen]):.1e}"


def overlap(mine: list[set[int]], theirs: Trace) -> str:
    """Share of the engine's list that ours has too: mean and minimum over rows."""
    shares = [len(a & set(b.tolist())) / len(b) for a, b in zip(mine, theirs["selection"], strict=True)]
    return f"{np.mean(shares):.3f} ({min(shares):.3f})"


def line(name: str, cells: list[str]) -> None:
    """One row of a table."""
    print("| " + " | ".join([name, *cells]) + " |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1200)
    parser.add_argument("--wanted", type=int, default=16, help="rows that are looked at, the last ones")
    parser.add_argument("--topk", type=int, default=128)
    args = parser.parse_args()
    start = time.perf_counter()
    config = AttentionConfig.preset("v4-flash", index_topk=args.topk)
    weights = AttentionWeights.random(config, LAYER, SEED)
    hidden = hash_normal((args.tokens, config.hidden_size), SEED, "hidden", 1.0, 1 / 16).bfloat16()
    mine = {
        p: ours(p, weights, hidden, args.wanted, args.topk) for p in ("math", "vllm", "sglang", "official")
    }
    arrays = {name: w.float().numpy() for name, w in weights.state_dict().items()}
    sizes = replace(ReferenceConfig.v4_flash(), index_topk=args.topk)
    positions = list(range(args.tokens - args.wanted, args.tokens))
    traces: dict[str, Trace] = {}
    print(
        f"{args.tokens} tokens, {args.tokens // 4} entries, top-{args.topk}, last {args.wanted} rows, "
        f"seed {SEED}\n"
    )
    head = ["q", "key rows", "entries", "index keys", "index scores", "list", "output", "output, same list"]
    line("roundings of", ["our profile", *head])
    line("---", ["---"] * (len(head) + 1))
    for name, (options, profile) in ENGINES.items():
        layer, s = ReferenceLayer(sizes, 4, arrays, options), mine[profile]
        trace = traces[name] = layer.run(hidden.float().numpy(), positions)
        same = layer.run(hidden.float().numpy(), positions, selection=s.lists)
        cells = [
            relative(s.q, trace["q"]), relative(s.rows, trace["kv"][-128:]),
            relative(s.entries, trace["entries"]), relative(s.keys, trace["index_entries"]),
            relative(s.scores, trace["index_scores"]),
            overlap(s.selection, trace), relative(s.out, trace["out"]), relative(s.out, same["out"]),
        ]  # fmt: skip
        line(name, [f"`{profile}`", *cells])
    for title, cell in (
        (
            "list: share of the engine's entries that ours has, mean (minimum)",
            lambda s, t: overlap(s.selection, t),
        ),
        ("output, every side with its own list", lambda s, t: relative(s.out, t["out"])),
    ):
        print(f"\n{title}\n")
        line("roundings of", [f"`{p}`" for p in mine])
        line("---", ["---"] * len(mine))
        for name, trace in traces.items():
            line(name, [cell(s, trace) for s in mine.values()])
    print(f"\n{time.perf_counter() - start:.0f} s, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
