"""Engines change torch's default type and device while they build or run a model: nothing depends on it.

DeepSeek's inference code sets both for the whole process, vLLM and SGLang while a model is loaded; scripts
around transformers run models under autocast.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from layer_world import KINDS

from dsv4core import AttentionConfig, AttentionWeights, PagedCache, RequestExport, get_backend
from dsv4core.bench.side import bodies
from dsv4core.layout import transcode
from dsv4core.numerics import e2m1, e4m3, minifloat, tables
from dsv4core.ops import OPS
from dsv4core.samples import sample

CPU = torch.device("cpu")
DEFAULTS = [
    (torch.bfloat16, "cpu"),
    (torch.float64, "cpu"),
    (torch.float32, "meta"),
    "autocast",
    "autocast in half",
]


def forget() -> None:
    """What is kept for the process is made anew, as in a process whose defaults were set first."""
    tables._tables.clear()
    for kept in (minifloat._codes, e4m3.values, e4m3._pairs, e4m3.values_fnuz, e2m1.values):
        kept.cache_clear()


@pytest.fixture(params=DEFAULTS, ids=str)
def defaults(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A context with other defaults."""

    class Set:
        cast = torch.float16 if request.param == "autocast in half" else torch.bfloat16
        autocast = torch.autocast("cpu", cast, enabled=isinstance(request.param, str))

        def __enter__(self) -> None:
            forget()
            self.autocast.__enter__()
            if not isinstance(request.param, str):
                torch.set_default_dtype(request.param[0])
                torch.set_default_device(request.param[1])

        def __exit__(self, *_: object) -> None:
            self.autocast.__exit__(None, None, None)
            torch.set_default_dtype(torch.float32)
            torch.set_default_device(None)
            forget()

    yield Set()


def story(kind: str, profile: str) -> tuple[list[torch.Tensor], list[dict[str, str]]]:
    """Prefill, decode, a fork, rejected drafts, padding, an export: every output and every digest."""
    config = AttentionConfig.preset("tiny", profile=profile)
    layer = KINDS[kind]
    attention = get_backend("cpu").attention(config, layer, AttentionWeights.random(config, layer, 1))
    cache = PagedCache.allocate(config, [layer], 1024, CPU)
    seeded = torch.Generator(CPU).manual_seed(3)
    hidden = torch.randn(307, 64, generator=seeded, dtype=torch.float32, device=CPU).to(attention.dtype)
    outputs = [attention(hidden[:300], cache, cache.plan({"a": 170, "b": 130}))]
    outputs.append(attention(hidden[300:302], cache, cache.plan({"a": 1, "b": 1})))
    cache.fork("a", "f")
    cache.truncate("b", 130)
    outputs.append(attention(hidden[299:], cache, cache.plan({"f": 3, "b": 4}, pad_to=8)))
    cache.import_(RequestExport.from_bytes(cache.export("a").to_bytes()), "i")
    return outputs, [cache.digest(request) for request in cache.requests]


@pytest.mark.parametrize("profile", ["vllm", "official", "sglang", "math"])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_caches_and_tables(kind: str, profile: str, defaults: Any) -> None:
    outputs, digests = story(kind, profile)
    with defaults:
        got, again = story(kind, profile)
    assert all(torch.equal(a, b) for a, b in zip(got, outputs, strict=True)) and again == digests


@pytest.mark.parametrize("name", OPS)
def test_ops_and_samples(name: str, defaults: Any) -> None:
    def results(function: Any) -> list[torch.Tensor]:
        arguments = sample(name)
        result = function(**arguments)
        found = result if isinstance(result, tuple) else (result,)
        found = [part for part in (*found, *(arguments[n] for n in OPS[name].mutates)) if part is not None]
        return [part.contiguous().view(torch.uint8) for part in found]

    for function in (getattr(backend.ops, name) for backend in (bodies("cpu"), get_backend("cpu"))):
        want = results(function)
        with defaults:
            got = results(function)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_transcode(defaults: Any) -> None:
    pages = sample("sparse_decode")["swa_cache"]
    want = transcode(pages, "fp8_ds_mla", "bf16_row", rows=64, dst_rows=16)
    with defaults:
        assert torch.equal(transcode(pages, "fp8_ds_mla", "bf16_row", rows=64, dst_rows=16), want)
