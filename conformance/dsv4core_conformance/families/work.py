"""WORK: memory is what was said, is bounded by what is there, and nothing is written beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsv4core import AttentionConfig, BatchPlan, Limits, OpArgumentError, PagedCache, cache_specs
from dsv4core.cache import page_counts
from dsv4core.layout import get_layout
from dsv4core.runtime import Workspace
from dsv4core_conformance.case import case
from dsv4core_conformance.compare import Mismatch, require
from dsv4core_conformance.families._layers import KINDS, LAYER_LAYOUTS, World, text
from dsv4core_conformance.families._memory import peak_bytes
from dsv4core_conformance.hosts import Moved
from dsv4core_conformance.reference.counter import hashed_values
from dsv4core_conformance.subject import LAYER_OPS, Subject

INDEXER_SCRATCH = 64 << 20  # what a layer with an indexer may add to its gathered rows


def slack(s: Subject) -> int:
    """What two equal calls may differ by: allocators of devices round up and keep workspaces of libraries."""
    return 1 << 17 if s.device.type == "cpu" else 1 << 20


@case(
    "layer/{kind}/work/scratch",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("N2", "N3", "N5", "G8", "E13"),
)
def scratch_is_what_was_said(s: Subject, kind: str) -> None:
    """`workspace_bytes` bounds the scratch of every step within the limits, and follows from their sizes.

    `profile` takes it at once and touches no page; no legal step makes it grow.
    """
    ratio = {"swa": 0, "csa": 4, "hca": 128}[kind]
    limits = Limits(max_tokens=300, max_seq_len=400, max_requests=4)
    reports = []
    for together in (1, 4):
        w = World(s, kind, tokens=4096, requests=8, prefill_chunk_requests=together)
        w.attention.workspace = Workspace()
        before = {g: t.clone() for g, t in w.storages().items()}
        w.attention.profile(limits)
        for group, tensor in w.storages().items():
            same = torch.equal(tensor.view(torch.uint8), before[group].view(torch.uint8))
            require(same, f"profile wrote into {group}")
        said = w.attention.workspace_bytes(limits)
        taken = w.attention.workspace.reserved(w.attention.device)
        require(taken <= said, f"profile took {taken} bytes, workspace_bytes said {said}")
        for new in ({"a": 300}, {"b": 100, "c": 100, "d": 100}, {"b": 300}, {"a": 1, "b": 1, "c": 298}):
            w.step({n: text("a")[:count] for n, count in new.items()})
            now = w.attention.workspace.reserved(w.attention.device)
            require(
                now <= max(taken, 0), f"a step of {new} made the scratch grow from {taken} to {now} bytes"
            )
        rows = together * ((400 // ratio if ratio else 0) + min(400, 300 + 127))
        most = rows * 1024 + (INDEXER_SCRATCH if kind == "csa" else 0)
        require(said <= most, f"{said} bytes said for {rows} rows of 1 KiB: more than {most}")
        reports.append(said)
    require(reports == sorted(reports) and len(set(reports)) == 2, f"fewer requests at a time cost {reports}")


def _step_peak(s: Subject, kind: str, count: int, **options: Any) -> int:
    w = World(s, kind, **{"tokens": 1024, **options})
    w.feed("warm", [count])
    w.cache.free("warm")
    plan, rows = w.cache.plan({"a": count}), text("a")[:count].to(s.device)
    return peak_bytes(s.device, lambda: w.attention(rows, w.cache, plan))


@case(
    "layer/{kind}/work/no_limit_costs",
    kind=KINDS,
    ops=LAYER_OPS,
    layouts=LAYER_LAYOUTS,
    catches=("N1", "N4", "N5", "N6", "E13"),
)
def what_is_not_used_costs_nothing(s: Subject, kind: str) -> None:
    """A step takes the same memory whatever the model's positions and the cache's capacity."""
    least = _step_peak(s, kind, 150, max_position_embeddings=1024)
    for options in ({"max_position_embeddings": 1 << 20}, {"tokens": 4096, "requests": 12}):
        most = _step_peak(s, kind, 150, **options)
        require(
            most <= least * 1.02 + slack(s),
            f"{options}: a step of 150 tokens holds {most} bytes instead of {least}",
        )
    half = _step_peak(s, kind, 75)
    require(least <= 3 * half, f"150 tokens hold {least} bytes, 75 of them {half}")


@case(
    "layer/{kind}/work/decode", kind=KINDS, ops=LAYER_OPS, layouts=LAYER_LAYOUTS, catches=("N1", "N2", "N6")
)
def decode_costs_its_lists(s: Subject, kind: str) -> None:
    """A decode step of two requests holds no more with wide page tables than with narrow ones."""
    peaks = []
    for capacity in (1024, 8192):
        w = World(s, kind, tokens=capacity)
        w.step({"a": 140, "b": 260})
        w.step({"a": 1, "b": 1})
        plan = w.cache.plan({"a": 1, "b": 1})
        wide = {
            group: torch.nn.functional.pad(table, (0, capacity - table.shape[1]), value=-1)
            for group, table in plan.tables.items()
        }
        plan = BatchPlan.build(
            w.config, query_lens=[1, 1], seq_lens=[142, 262], tables=wide, rows=plan.rows, device=s.device
        )
        rows = torch.cat([text("a")[141:142], text("b")[261:262]]).to(s.device)
        peaks.append(peak_bytes(s.device, lambda w=w, plan=plan, rows=rows: w.attention(rows, w.cache, plan)))
    require(peaks[1] <= peaks[0] * 1.05 + slack(s), f"tables of 1,024 and 8,192 pages: {peaks} bytes")


def _index_arguments(s: Subject, entries: int, tokens: int, workspace: int, width: int = 0) -> dict[str, Any]:
    """Queries of one request over `entries` index keys, in the page table's first columns."""
    heads, rows = 4, 64
    pages = -(-entries // rows)
    keys = torch.from_numpy(hashed_values((rows * pages, 128), 77)).view(pages, rows, 128)
    table = torch.full((1, max(width, pages)), -1, dtype=torch.int32)
    table[0, :pages] = torch.arange(pages).flip(0)
    query = torch.from_numpy(hashed_values((tokens, heads, 128), 78)[:tokens]).to(torch.float8_e4m3fn)
    return {
        "q": query, "q_scales": None, "weights": torch.from_numpy(hashed_values((tokens, heads), 79)),
        "k_cache": get_layout("index_fp8").encode_pages(keys),
        "context_lens": torch.full((tokens,), entries, dtype=torch.int32),
        "token_to_req": torch.zeros(tokens, dtype=torch.int32), "block_table": table, "rows": rows,
        "layout": "index_fp8", "k": 64, "workspace_bytes": workspace,
    }  # fmt: skip


@case(
    "op/{op}/work/bounded",
    op=("sparse_indexer",),
    layouts=("index_fp8",),
    catches=("N1", "N4", "N5", "N6", "G8"),
)
def scores_never_pass_the_workspace(s: Subject, op: str) -> None:
    """Scores of 3,000 entries in 0.6 to 64 MiB: never more memory than was given, always the same list."""
    lists: list[Tensor] = []
    for tokens, workspace in ((12, 600_000), (12, 1 << 20), (12, 64 << 20), (40, 1 << 20)):
        arguments = Moved(_index_arguments(s, 3000, tokens, workspace), s.device).arguments
        call = getattr(s.backend.ops, op)
        held = peak_bytes(s.device, lambda call=call, a=arguments: lists.append(call(**a)[:12]))
        results = tokens * 64 * 4
        require(held <= workspace + 8 * results, f"{tokens} tokens hold {held} bytes of {workspace} given")
    for found in lists[1:]:
        require(torch.equal(found, lists[0]), "the list depends on the workspace")


@case("op/{op}/work/table_width", op=("sparse_indexer",), layouts=("index_fp8",), catches=("N1", "N6"))
def empty_columns_cost_nothing(s: Subject, op: str) -> None:
    """A page table for 2^20 tokens costs a request of 1,000 entries no more than one of its own size."""
    call, peaks = getattr(s.backend.ops, op), []
    for width in (0, 16384):
        arguments = Moved(_index_arguments(s, 1000, 6, 8 << 20, width), s.device).arguments
        peaks.append(peak_bytes(s.device, lambda a=arguments: call(**a)))
    require(peaks[1] <= peaks[0] + slack(s), f"narrow and wide table: {peaks} bytes")


@case("op/{op}/work/too_little", op=("sparse_indexer",), layouts=("index_fp8",), catches=("N3", "N5", "N7"))
def too_little_workspace_is_refused(s: Subject, op: str) -> None:
    """A workspace of one byte is refused with what is needed; that is enough, and one byte less is not."""
    try:
        s.call(op, _index_arguments(s, 100, 3, 1))
    except OpArgumentError as error:
        needed = [
            int(word) for word in str(error).replace(",", " ").split() if word.isdigit() and int(word) > 1
        ]
        require(needed, f"the refusal does not say how much is needed: {error}")
    else:
        raise Mismatch("a workspace of one byte was accepted")
    s.call(op, _index_arguments(s, 100, 3, max(needed)))
    try:
        s.call(op, _index_arguments(s, 100, 3, max(needed) - 1))
    except OpArgumentError:
        return
    raise Mismatch(f"a workspace of one byte less than the {max(needed)} needed was accepted")


@case("op/{op}/work/guards", op=("sparse_decode", "sparse_prefill"), catches=("N2", "N3", "N7", "D13"))
def outputs_stay_in_their_bounds(s: Subject, op: str) -> None:
    """`out` inside a larger allocation, rows and heads around it: they keep their bytes."""
    tokens, heads, keys = 5, 4, 70
    for width in (1, 63, 64, 65, 130):
        whole = torch.full((tokens + 2, heads + 2, 512), 7.0).bfloat16()
        out = whole[1 : tokens + 1, 1 : heads + 1]
        q = torch.from_numpy(hashed_values((tokens, heads, 512), 5)).bfloat16()
        kv = torch.from_numpy(hashed_values((128, 512), 6)).bfloat16()
        lists = (torch.arange(tokens * width, dtype=torch.int32) % keys).view(tokens, width)
        lens = torch.tensor([width, 0, 1, width // 2, width], dtype=torch.int32)
        arguments: dict[str, Any] = {"attn_sink": torch.zeros(heads), "out": out, "scale": 512**-0.5, "q": q}
        if op == "sparse_prefill":
            arguments |= {"kv": kv, "indices": lists, "lens": lens}
        else:
            pages = get_layout("fp8_ds_mla").encode_pages(kv.float().view(2, 64, 512))
            arguments |= {
                "swa_cache": pages, "swa_slots": lists, "swa_lens": lens, "extra_cache": None,
                "extra_slots": None, "extra_lens": None, "swa_rows": 64, "extra_rows": 1,
                "layout": "fp8_ds_mla", "extra_layout": "fp8_ds_mla",
            }  # fmt: skip
        s.check(op, arguments)
        guard = whole.clone()
        guard[1 : tokens + 1, 1 : heads + 1] = 7.0
        require((guard == 7.0).all(), f"{op} wrote beside `out` with lists {width} wide")


@case("suite/work/capacity", catches=("K14", "N5", "E13", "K3"))
def capacity_is_enough_and_not_much_more(s: Subject) -> None:
    """Pages for a capacity hold every split over requests; compressed groups are not counted in tokens."""
    config = AttentionConfig.preset("tiny")
    for capacity, requests in ((4096, 1), (4096, 16), (65536, 4)):
        counts = page_counts(config, range(3), capacity, max_requests=requests, max_chunk=256)
        specs = {spec.group: spec for layer in range(3) for spec in cache_specs(config, layer)}
        for group, spec in specs.items():
            rows = capacity // spec.tokens_per_row
            worst = min(-(-rows // spec.rows) + requests, rows)
            if spec.sliding is not None:
                worst = min(worst, requests * (-(-(spec.sliding + 8) // spec.rows) + 2) + 256 // spec.rows)
            require(
                counts[group] <= worst, f"{group}: {counts[group]} pages for {capacity} tokens, {worst} do"
            )
        cache = PagedCache.allocate(config, range(3), capacity, "meta", max_requests=requests, max_chunk=256)
        require(cache.pages == counts, f"allocate makes {cache.pages}, page_counts says {counts}")
    cache = PagedCache.allocate(config, range(3), 1024, max_requests=4, max_chunk=1024)
    for split in ((1024,), (1021, 1, 1, 1), (255, 257, 511, 1), (3, 3, 3, 1015)):
        answer = cache.can_admit({f"r{i}": n for i, n in enumerate(split)})
        require(answer, f"a cache for 1,024 tokens refuses {split}: {answer.reason}")


@case("suite/work/published_bytes", catches=("K14", "K5"))
def bytes_per_token_are_the_published_ones(s: Subject) -> None:
    """Cache bytes per token of the released models: 584 per row, 68 or 132 per index key."""
    published = {
        ("v4-flash", "index_fp8"): 3850.25, ("v4-flash", "index_mxfp4"): 3514.25,
        ("v4-pro", "index_fp8"): 5511.4375, ("v4-pro", "index_mxfp4"): 5031.4375,
    }  # fmt: skip
    for (name, index), wanted in published.items():
        config = AttentionConfig.preset(name, index_layout=index)
        layers = range(len(config.compress_ratios))
        cache = PagedCache.allocate(config, layers, 4096, "meta", max_requests=1)
        got = sum(cache.bytes_per_token(payload=True).values())
        require(got == wanted, f"{name} with {index}: {got} bytes a token, published {wanted}")
