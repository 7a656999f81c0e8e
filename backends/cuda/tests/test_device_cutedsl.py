"""CuTeDSL's kernels on the device: bytes of the portable bodies, in a graph from the first call on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv4core import AttentionWeights, PagedCache
from dsv4core.backend import Backend
from dsv4core.config import AttentionConfig
from dsv4core.kernels.triton.calls import closing
from dsv4core.layout import get_layout, transcode
from dsv4core.ops import OPS
from dsv4core.samples import Size, sample
from dsv4core_cuda.backend import CudaBackend
from dsv4core_cuda.cutedsl import install, sparse_indexer
from dsv4core_cuda.cutedsl._probe import ARCHITECTURES, reason_against
from dsv4core_cuda.plugin import SPEC

ARCHITECTURE = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
REASON = reason_against(ARCHITECTURE)
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)
Call = dict[str, Any]


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV4CORE_CHECK", "0")


FORMS = [(op, form) for op, module in install.launchers().items() for form in module.programs("sm_90a")]


def given(op: str, form: str, tokens: int = 300) -> Call:
    """A legal call of a form, in host memory."""
    words = form.split()
    if op == "compress_norm_rope_store":
        return closing(tokens, int(words[1]), words[2])[1]
    if op == "sparse_indexer":
        return entries(tokens, form)
    call = sample(op, Size(tokens, 40, AttentionConfig.preset("v4-flash")))
    if op == "fused_indexer_q_rope_quant":
        call |= {"format": words[0], "rotate": words[1]}
    if op == "dequantize_and_gather_k_cache":
        call["gather_lens"] = call["seq_lens"] // 2 if words[1] == "last" else None
    return call


PROFILES = {"index_fp8_hadamard_f32": "sglang", "index_fp8": "vllm", "index_mxfp4": "official"}


def entries(tokens: int, layout: str, context: int = 3000, k: int = 512) -> Call:
    """Requests of different lengths, some that see no more than k entries, or none."""
    profile = next(profile for start, profile in PROFILES.items() if layout.startswith(start))
    config = AttentionConfig.preset("v4-flash", profile=profile)
    call = sample("sparse_indexer", Size(tokens, context, config))
    if layout == "index_fp8_ue8m0x4":
        call["k_cache"] = transcode(call["k_cache"], "index_fp8", layout, rows=64)
    lens = torch.arange(tokens, dtype=torch.int32) * 701 % context + 1
    lens[tokens // 3], lens[0] = 0, context
    return {**call, "layout": layout, "rotate": get_layout(layout).rotate, "context_lens": lens, "k": k}


def ours(op: str) -> Callable[..., Any]:
    """The kernels alone: what they do not take fails."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the call was passed on")

    module, arch = install.launchers()[op], ARCHITECTURES[ARCHITECTURE]
    return module.bind(refuse, dict.fromkeys(module.programs(arch), 0), arch)


def moved(call: Call) -> Call:
    return {k: v.cuda() if isinstance(v, Tensor) else v for k, v in call.items()}


def outcome(result: Any, call: Call) -> list[Tensor]:
    """What a call returned and the pages it wrote, in host memory, as bytes."""
    tensors = [*(result if isinstance(result, tuple) else (result,)), call.get("out"), call.get("k_cache")]
    return [t.cpu().contiguous().view(torch.uint8) for t in tensors if t is not None]


@pytest.mark.parametrize(("op", "form"), FORMS)
@pytest.mark.parametrize("tokens", [1, 7, 100])
def test_bytes_are_those_of_the_portable_body(op: str, form: str, tokens: int) -> None:
    host = given(op, form, tokens)
    call = moved(host)
    found, expected = outcome(ours(op)(**call), call), outcome(OPS[op].body(**host), host)
    assert [torch.equal(a, b) for a, b in zip(found, expected, strict=True)] == [True] * len(found)


@pytest.mark.parametrize(("op", "form"), FORMS)
def test_a_first_call_inside_a_capture(op: str, form: str) -> None:
    """Nothing is loaded before; a replay does what a call does."""
    host = given(op, form, 20)
    call, again = moved(host), moved(host)
    expected = outcome(ours(op)(**again), again)
    for name in ("program", "overlapping", "windows"):
        if hasattr(install.launchers()[op], name):
            getattr(install.launchers()[op], name).cache_clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = ours(op)(**call)
    written = outcome(None, call) if op != "sparse_indexer" else []  # which only reads pages
    assert not written or not torch.equal(written[0], expected[-len(written)])
    graph.replay()
    torch.cuda.synchronize()
    found = outcome(result, call)
    assert [torch.equal(a, b) for a, b in zip(found, expected, strict=True)] == [True] * len(found)


@pytest.mark.parametrize("form", [form for op, form in FORMS if op == "sparse_indexer"])
def test_lists_are_the_same_in_any_runs_and_shares(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that start early use the same memory; contexts are longer than a block's share."""
    call, function = moved(entries(100, form)), ours("sparse_indexer")
    expected = function(**call)
    monkeypatch.setattr(sparse_indexer, "MOST_SHARE", 8)
    for workspace in (1 << 18, 1 << 20):
        small = {**call, "workspace_bytes": workspace}
        found = [function(**small) for _ in range(5)]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found += [function(**small) for _ in range(5)]
        graph.replay()
        assert [torch.equal(x, expected) for x in found] == [True] * 10


@pytest.mark.parametrize(
    "form", [form for op, form in FORMS if (op, form[:11]) == ("sparse_indexer", "index_mxfp4")]
)
@pytest.mark.parametrize("few", [1, 4])
def test_rows_whose_scales_spread(form: str, few: int) -> None:
    """Scales a factor of 16 apart in every fourth page, or all, and in the queries of every fourth token."""
    host = entries(12, form)
    host["k_cache"][::few, 4096:4352] += torch.arange(256, dtype=torch.uint8) * 3 % 5
    host["q_scales"][1::4] += torch.arange(4, dtype=torch.uint8)[:, None].expand(4, 64).T
    call = moved(host)
    assert torch.equal(ours("sparse_indexer")(**call).cpu(), OPS["sparse_indexer"].body(**host))


@pytest.mark.parametrize(("op", "form"), [f for f in FORMS if f[0].startswith(("compress", "fused_qnorm"))])
def test_a_page_is_finite_whatever_comes(op: str, form: str) -> None:
    """NaN, an infinity or a very large number in every row of what comes."""
    call = given(op, form, 20)
    name = "kv" if op == "fused_qnorm_rope_kv_insert" else "state_cache"
    spoilt = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e38])
    rows = call[name].reshape(-1, call[name].shape[-1])
    at = torch.arange(rows.shape[0])
    rows[at, (at * 37) % rows.shape[1]] = spoilt[at % 4].to(rows.dtype)
    call[name] = rows.reshape(call[name].shape)
    call["k_cache"].zero_()
    call = moved(call)
    ours(op)(**call)
    layout = get_layout(call["layout"])
    assert bool(torch.isfinite(layout.decode_pages(call["k_cache"], call["rows"]).float()).all())


@pytest.mark.parametrize("op", ["fused_indexer_q_rope_quant", "sparse_indexer"])
def test_a_thread_whose_first_act_is_a_launch(op: str) -> None:
    """It has no context of the driver's yet."""
    form = "mxfp4 hadamard" if op.startswith("fused") else "index_fp8"
    call, found = moved(given(op, form, 3)), list[Any]()
    expected = outcome(ours(op)(**call), call)  # results of this size lie with torch's allocator from here on
    thread = Thread(target=lambda: found.append(ours(op)(**call)))
    thread.start()
    thread.join()
    assert all(torch.equal(a, b) for a, b in zip(outcome(found[0], call), expected, strict=True))


PIECES = ({"a": 2000, "b": 40}, {"a": 500, "b": 30}, {"a": 1, "b": 1}, {"a": 1, "b": 3, "c": 9}, {"a": 2})
"""New tokens of a step."""


@pytest.mark.parametrize("profile", ["vllm", "sglang", "official"])
def test_a_layer_with_kernels_by_the_table_is_the_layer_without(profile: str) -> None:
    """Outputs and pages of a prefill and of decode steps over more entries than are chosen, bit for bit."""
    config = AttentionConfig.preset("tiny", profile=profile, index_n_heads=64, index_topk=128)
    weights = AttentionWeights.random(config, 1, 3).to(torch.device("cuda"))
    results: list[list[Tensor]] = []
    for kernels in ("auto", "triton"):
        provider = CudaBackend({"kernels": kernels, "attention": "triton"})
        made = Backend(SPEC, provider, provider.ops)
        if ARCHITECTURE == (9, 0):
            assert made.ops.provenance["sparse_indexer"].startswith("cutedsl") == (kernels == "auto")
        layer, g = made.attention(config, 1, weights), torch.Generator().manual_seed(5)
        cache = PagedCache.allocate(config, [1], 8192, torch.device("cuda"))
        found: list[Tensor] = []
        for new in PIECES:
            hidden = torch.randn(sum(new.values()), config.hidden_size, generator=g).bfloat16()
            found.append(layer(hidden.cuda(), cache, cache.plan(new)).view(torch.int16))
        pages = cache.layer(1)
        fields = (pages.swa, pages.compressed, pages.state, pages.indexer, pages.indexer_state)
        results.append([*found, *(t.view(torch.uint8) for t in fields if t is not None)])
    assert [torch.equal(a, b) for a, b in zip(*results, strict=True)] == [True] * len(results[0])


def test_threads_and_streams_do_not_mix_arguments() -> None:
    op = "fused_indexer_q_rope_quant"
    calls = [moved(given(op, "mxfp4 hadamard", 3 + i)) for i in range(8)]
    function = ours(op)
    expected = [outcome(function(**call), call) for call in calls]

    def many(i: int) -> bool:
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            for _ in range(50):
                found = outcome(function(**calls[i]), calls[i])
                if not all(torch.equal(a, b) for a, b in zip(found, expected[i], strict=True)):
                    return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(many, range(8)))


def own(call: Call) -> Call:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in call.items()}


@pytest.mark.parametrize(("op", "form"), FORMS)
def test_a_kernel_waits_for_what_is_before_it(op: str, form: str) -> None:
    """Blocks start while what is before them ends: what that one writes is what they read, in a graph too."""
    calls = [moved(given(op, form, 100)) for _ in range(2)]
    name = next(n for n in ("state_cache", "q", "k_cache") if n in calls[0])
    calls[1][name] = calls[1][name].flip(0).contiguous()
    function, call = ours(op), own(calls[0])
    wanted: list[list[Tensor]] = []
    for other in map(own, calls):
        torch.cuda.synchronize()
        wanted.append(outcome(function(**other), other))

    def turns() -> list[Any]:
        found: list[Any] = []
        for i in range(20):
            for key, value in calls[i % 2].items():
                if isinstance(value, Tensor):
                    call[key].copy_(value)
            result = function(**call)
            found.append((result, {n: call[n].clone() for n in ("out", "k_cache") if n in call}))
        return found

    turns()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = turns()
    graph.replay()
    for seen in (turns(), captured):
        for i, (result, written) in enumerate(seen):
            found = outcome(result, written)
            assert all(torch.equal(a, b) for a, b in zip(found, wanted[i % 2], strict=True)), i


def test_a_gather_waits_for_the_entries_before_it() -> None:
    """Both start early, one behind the other: rows are those that were just written."""
    rows, pages = 4096, 64
    call = moved(given("fused_qnorm_rope_kv_insert", "fp8_ds_mla", rows))
    cache = torch.zeros(pages, get_layout("fp8_ds_mla").page_bytes(64), dtype=torch.uint8, device="cuda")
    call |= {"k_cache": cache, "slot_mapping": torch.arange(rows, device="cuda"), "rows": 64}
    read = {
        "k_cache": cache, "seq_lens": torch.full((1,), rows, dtype=torch.int32, device="cuda"),
        "gather_lens": None, "rows": 64, "offset": 0, "layout": "fp8_ds_mla",
        "block_table": torch.arange(pages, dtype=torch.int32, device="cuda").view(1, -1),
    }  # fmt: skip
    write, gather = ours("fused_qnorm_rope_kv_insert"), ours("dequantize_and_gather_k_cache")
    keys = [call["kv"].clone(), call["kv"].flip(0).contiguous()]
    wanted = [torch.zeros(1, rows, 512, dtype=torch.bfloat16, device="cuda") for _ in keys]
    for kv, out in zip(keys, wanted, strict=True):
        write(**{**call, "kv": kv})
        torch.cuda.synchronize()
        gather(out=out, **read)
        torch.cuda.synchronize()
    outs = [torch.zeros_like(wanted[0]) for _ in range(50)]
    for i, out in enumerate(outs):
        write(**{**call, "kv": keys[i % 2]})
        gather(out=out, **read)
    assert [torch.equal(out, wanted[i % 2]) for i, out in enumerate(outs)] == [True] * 50
