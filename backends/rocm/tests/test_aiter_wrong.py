"""Adapters with a mistake in them, each of which the stand-in for aiter or the comparison catches.

A mistake sits between a right adapter and the stand-in: it changes the arguments by name, or a step of the
adapter. Every one is legal Python and most would run on a device without a word.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiter_worlds as worlds
import pytest
import torch
from torch import Tensor

from dsv4core.layout import get_layout
from dsv4core_rocm.aiter import decode as decode_module
from dsv4core_rocm.aiter import lists
from dsv4core_rocm.aiter.entries import ENTRIES
from dsv4core_rocm.aiter.partials import LOG2E
from dsv4core_rocm.backend import PROVIDERS
from dsv4core_rocm.gfx import DEVICES

pytestmark = pytest.mark.usefixtures("fake_aiter")
Arguments = dict[str, Any]
Change = Callable[[Arguments], None]


@dataclass(frozen=True)
class Wrong:
    """A mistake: in which op, on which device, what it does, and how it shows."""

    op: str
    gfx: str
    change: Change
    shows: str  # words of the refusal, or "differs"


def swapped(a: str, b: str) -> Change:
    def change(given: Arguments) -> None:
        given[a], given[b] = given[b], given[a]

    return change


def with_(name: str, function: Callable[[Any], Any]) -> Change:
    def change(given: Arguments) -> None:
        given[name] = function(given[name])

    return change


def transposed(out: Tensor) -> Tensor:
    return out.mT.contiguous().mT


def no_first_zero(starts: Tensor) -> Tensor:
    return starts[1:].contiguous()


def interleaved(given: Arguments) -> None:
    """Records of 584 bytes one after the other, which is what the shape of the cache suggests."""
    cache = given["unified_kv"]
    flat = cache.as_strided((cache.shape[0], cache.shape[1] * 584), (cache.stride(0), 1))
    rows = get_layout("fp8_ds_mla").read(flat, torch.arange(cache.shape[0] * cache.shape[1]), cache.shape[1])
    given["unified_kv"] = rows.view(cache.shape[0], cache.shape[1], 584)


def fnuz(given: Arguments) -> None:
    """Pages in the other dialect: half the value a code, one more in the exponent."""
    cache = given["unified_kv"].clone()
    rows = cache.shape[1]
    flat = cache.view(cache.shape[0], -1)
    flat[:, rows * 576 :] += 1
    given["unified_kv"] = cache


def page_major(given: Arguments) -> None:
    """row * pages + page in place of page * rows + row."""
    pages, rows = given["unified_kv"].shape[:2]
    slots = given["kv_indices"]
    given["kv_indices"] = torch.where(slots < 0, slots, slots % rows * pages + slots // rows)


def one_based(slots: Tensor) -> Tensor:
    return torch.where(slots < 0, slots, slots + 1)


def extra_into_main(given: Arguments) -> None:
    given["extra_cache"] = given["unified_kv"]


def swapped_lists(given: Arguments) -> None:
    swapped("kv_indices", "extra_indices")(given)
    swapped("kv_indptr", "extra_indptr")(given)


def lens_for_starts(given: Arguments) -> None:
    starts = given["kv_indptr"]
    given["kv_indptr"] = torch.cat((starts.diff(), starts[-1:]))


def sentinel(value: int) -> Change:
    return with_("kv_indices", lambda slots: torch.where(slots < 0, value, slots).int())


DECODE = [
    Wrong("sparse_decode", "gfx950", swapped("q", "unified_kv"), "queries are bf16"),
    Wrong("sparse_decode", "gfx950", swapped("kv_indices", "kv_indptr"), "true prefix sum"),
    Wrong("sparse_decode", "gfx950", swapped("attn_sink", "softmax_scale"), "queries are bf16"),
    Wrong("sparse_decode", "gfx950", with_("kv_indptr", no_first_zero), "true prefix sum"),
    Wrong("sparse_decode", "gfx950", with_("kv_indptr", lambda starts: starts + 1), "true prefix sum"),
    Wrong("sparse_decode", "gfx950", lens_for_starts, "true prefix sum"),
    Wrong("sparse_decode", "gfx950", with_("kv_indices", lambda slots: slots.long()), "int32"),
    Wrong("sparse_decode", "gfx950", with_("kv_indices", one_based), "differs"),
    Wrong("sparse_decode", "gfx950", page_major, "differs"),
    Wrong("sparse_decode", "gfx950", interleaved, "differs"),
    Wrong("sparse_decode", "gfx950", fnuz, "differs"),
    Wrong("sparse_decode", "gfx950", extra_into_main, "number of rows"),
    Wrong("sparse_decode", "gfx950", swapped_lists, "number of rows"),
    Wrong("sparse_decode", "gfx950", with_("softmax_scale", lambda scale: scale * LOG2E), "differs"),
    Wrong("sparse_decode", "gfx950", with_("attn_sink", torch.zeros_like), "differs"),
    Wrong("sparse_decode", "gfx950", with_("attn_sink", lambda sink: sink.bfloat16()), "one f32 sink"),
    Wrong("sparse_decode", "gfx942", sentinel(-2), "only sentinel"),
    Wrong("sparse_decode", "gfx942", sentinel(0), "differs"),
    Wrong("sparse_decode", "gfx942", sentinel(2**31 - 1), "number of rows"),
    Wrong("sparse_decode", "gfx942", with_("has_invalid", lambda _: False), "only sentinel"),
    Wrong("sparse_decode", "gfx942", with_("unified_kv", lambda pool: pool.float()), "dtype of the queries"),
]  # fmt: skip
OTHERS = [
    Wrong("sparse_prefill", "gfx950", swapped("q", "kv"), "one row stride"),
    Wrong("sparse_prefill", "gfx950", swapped("kv_indices_prefix", "kv_indptr_prefix"), "N + 1"),
    Wrong("sparse_prefill", "gfx950", with_("kv_indices_prefix", lambda n: n + 60), "valid row"),
    Wrong("sparse_prefill", "gfx950", with_("kv_indptr_prefix", no_first_zero), "N + 1"),
    Wrong("sparse_prefill", "gfx950", with_("out", transposed), "strides of the queries"),
    Wrong("indexer_logits", "gfx950", with_("cu_ends", lambda ends: ends - 1), "differs"),
    Wrong("indexer_logits", "gfx950", with_("cu_ends", lambda ends: ends.long()), "int32"),
    Wrong("indexer_logits", "gfx950", with_("KV", lambda keys: keys.view(torch.float8_e4m3fnuz)), "differs"),
    Wrong("indexer_logits", "gfx950", with_("KV", lambda keys: keys.roll(1, 0)), "differs"),
    Wrong("indexer_logits", "gfx950", with_("kv_scales", torch.ones_like), "differs"),
    Wrong("indexer_logits", "gfx950", with_("kv_scales", lambda scales: scales[:-1]), "one f32 scale a key"),
    Wrong("indexer_logits", "gfx950", with_("clean_logits", lambda _: False), "differs"),
    Wrong("indexer_topk", "gfx950", with_("stable", lambda _: False), "differs"),
    Wrong("indexer_topk", "gfx950", with_("rowEnds", lambda ends: (ends - 1).clamp(min=0)), "differs"),
    Wrong("indexer_topk", "gfx950", with_("stride0", lambda stride: stride + 1), "stride0 apart"),
    Wrong("indexer_topk", "gfx950", swapped("stride0", "stride1"), "stride0 apart"),
    Wrong("indexer_topk", "gfx950", with_("indices", lambda indices: indices.long()), "at most k"),
]  # fmt: skip


def world(wrong: Wrong) -> Arguments:
    """A call without infinite sinks, so that what differs is the mistake."""
    makers: dict[str, Callable[[], Arguments]] = {
        "sparse_decode": lambda: worlds.decode("fp8_ds_mla" if wrong.gfx == "gfx950" else "bf16_row"),
        "sparse_prefill": worlds.prefill, "indexer_logits": worlds.logits, "indexer_topk": worlds.topk,
    }  # fmt: skip
    call = makers[wrong.op]()
    if "attn_sink" in call:
        call["attn_sink"] = call["attn_sink"].nan_to_num(0.0, 2.0, -2.0)
    return call


def same(op: str, mine: Tensor, other: Tensor) -> bool:
    if op == "indexer_topk":
        return torch.equal(mine, other)
    if op == "indexer_logits":
        return torch.allclose(mine, other, rtol=1e-5)
    return worlds.close(mine, other)


def outcome(op: str, gfx: str, call: Arguments, entry: Callable[..., Any]) -> str:
    """ "agrees", "differs", or the words of the refusal."""
    mine = PROVIDERS[op][1](DEVICES[gfx], entry)
    assert mine.supports(call) is True
    result, out = worlds.expected(op, call)
    own = worlds.copied(call)
    try:
        if mine.direct is not None:
            mine.direct(own)
            return "agrees" if out is not None and same(op, own["out"], out) else "differs"
        assert mine.run is not None
        return "agrees" if same(op, mine.run(own), result) else "differs"
    except Exception as error:
        assert type(error).__name__ == "Refused", error
        return str(error)


def entry_of(op: str) -> Callable[..., Any]:
    name = PROVIDERS[op][0]
    return getattr(importlib.import_module(ENTRIES[name]), name)


@pytest.mark.parametrize("wrong", DECODE + OTHERS)
def test_a_wrong_adapter_is_caught(wrong: Wrong, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV4CORE_ROCM_GFX", wrong.gfx)
    right = entry_of(wrong.op)

    def entry(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(right).bind(*args, **kwargs)
        given.apply_defaults()
        wrong.change(given.arguments)
        return right(*given.args, **given.kwargs)

    call = world(wrong)
    assert outcome(wrong.op, wrong.gfx, call, right) == "agrees"
    shown = outcome(wrong.op, wrong.gfx, call, entry)
    assert wrong.shows in shown, shown


def no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty rows, of which the portable kernel leaves the output and the parts unwritten."""
    real = lists.ragged
    monkeypatch.setattr(lists, "ragged", lambda listed, lens, high, least=0: real(listed, lens, high))


def holes_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists cut at their length only: a hole of -7 and a slot behind the last page go through."""

    def ragged(listed: Tensor, lens: Tensor, high: int, least: int = 0) -> tuple[Tensor, Tensor]:
        rows = [row[: int(n)] for row, n in zip(listed, lens, strict=True)]
        starts = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0).int()
        return torch.cat(rows).int(), starts

    monkeypatch.setattr(lists, "ragged", ragged)


def slots_as_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots as rows of the pool, though there are rows between pages."""
    monkeypatch.setattr(lists, "pool_slots", lambda slots, rows, step: slots)


def natural_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts taken for natural logs."""
    real = decode_module.join

    def join(parts: Any, sink: Tensor, out: Tensor) -> Tensor:
        return real([(acc, m * LOG2E, total) for acc, m, total in parts], sink, out)

    monkeypatch.setattr(decode_module, "join", join)


def one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first cache's parts."""
    real = decode_module.join
    monkeypatch.setattr(decode_module, "join", lambda parts, sink, out: real(parts[:1], sink, out))


def infinite_sinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sinks as they are."""
    monkeypatch.setattr(lists, "NEVER", torch.inf)


@pytest.mark.parametrize(
    ("gfx", "step", "both", "gap", "shows"),
    [
        ("gfx942", no_padding, False, 0, "differs"),
        ("gfx942", no_padding, True, 0, "differs"),
        ("gfx950", holes_kept, True, 0, "only sentinel"),
        ("gfx942", slots_as_rows, True, 2048, "differs"),
        ("gfx942", natural_log, True, 0, "differs"),
        ("gfx942", one_part, True, 0, "differs"),
        ("gfx950", infinite_sinks, True, 0, "differs"),
    ],
)
def test_a_wrong_step_is_caught(
    gfx: str,
    step: Callable[[pytest.MonkeyPatch], None],
    both: bool,
    gap: int,
    shows: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DSV4CORE_ROCM_GFX", gfx)
    call = worlds.decode("fp8_ds_mla" if gfx == "gfx950" else "bf16_row", gap=gap)
    call = call if both else worlds.without_extra(call)
    entry = entry_of("sparse_decode")
    assert outcome("sparse_decode", gfx, call, entry) == "agrees"
    step(monkeypatch)
    assert shows in outcome("sparse_decode", gfx, call, entry)


def test_a_zero_that_is_negative_counts_as_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores given on as they are: -0 loses against +0 there, and the list is another."""
    entry, call = entry_of("indexer_topk"), worlds.topk()
    mine = PROVIDERS["indexer_topk"][1](DEVICES["gfx950"], entry)
    logits = call["logits"]

    def untouched(_: Tensor, *rest: Any, **named: Any) -> Any:
        return entry(logits, *rest, **named)

    wrong = PROVIDERS["indexer_topk"][1](DEVICES["gfx950"], untouched)
    expected = worlds.expected("indexer_topk", call)[0]
    assert mine.run is not None and torch.equal(mine.run(call), expected)
    assert wrong.run is not None and not torch.equal(wrong.run(call), expected)
