"""Every adapter against the core's portable body, with the stand-in for aiter between them."""

from __future__ import annotations

from typing import Any

import aiter_worlds as worlds
import pytest
import torch

from dsv4core.providers import Provider
from dsv4core_rocm.aiter import decode, indexer, prefill
from dsv4core_rocm.aiter.entries import load
from dsv4core_rocm.backend import PROVIDERS
from dsv4core_rocm.gfx import DEVICES

pytestmark = pytest.mark.usefixtures("fake_aiter")
PACKED = [("fp8_ds_mla", ""), ("bf16_row", ""), ("fp8_ds_mla", "bf16_row"), ("bf16_row", "fp8_ds_mla")]


def provider(op: str, arch: str) -> Provider:
    entry, make = PROVIDERS[op]
    return make(DEVICES[arch], load().functions[entry])


def layouts(arch: str) -> list[tuple[str, str]]:
    return PACKED if arch == "gfx950" else [("bf16_row", "")]


@pytest.mark.parametrize("gap", [0, 1024])
@pytest.mark.parametrize("both", [True, False])
def test_decode(arch: str, both: bool, gap: int) -> None:
    mine = provider("sparse_decode", arch)
    for layout, extra in layouts(arch):
        call = worlds.decode(layout, extra, gap=gap)
        call = call if both else worlds.without_extra(call)
        lse, out = worlds.expected("sparse_decode", call)
        assert out is not None and mine.supports(call) is True and mine.run and mine.direct
        own = worlds.copied(call)
        sums = mine.run(own)
        assert torch.allclose(sums, lse, rtol=1e-6, atol=1e-5) and worlds.close(own["out"], out)
        alone = worlds.copied(call)
        mine.direct(alone)
        assert worlds.close(alone["out"], out)


def test_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV4CORE_ROCM_GFX", "gfx950")
    mine, call = provider("sparse_prefill", "gfx950"), worlds.prefill()
    assert mine.supports(call) is True and mine.run is None and mine.direct
    out = worlds.expected("sparse_prefill", call)[1]
    mine.direct(call)
    assert out is not None and worlds.close(call["out"], out)


@pytest.mark.parametrize("max_len", [36, 20])
def test_logits(arch: str, max_len: int) -> None:
    mine, call = provider("indexer_logits", arch), worlds.logits()
    call["max_len"] = max_len
    assert mine.supports(call) is True and mine.run
    assert torch.allclose(mine.run(call), worlds.expected("indexer_logits", call)[0], rtol=1e-5)


def test_topk(arch: str) -> None:
    mine, call = provider("indexer_topk", arch), worlds.topk()
    assert mine.supports(call) is True and mine.run
    assert torch.equal(mine.run(call), worlds.expected("indexer_topk", call)[0])


@pytest.mark.parametrize(
    ("gfx", "changes", "words"),
    [
        ("gfx942", {}, "aiter reads pools of bf16_row"),
        ("gfx950", {"layout": "fp8_ds_mla_fnuz"}, "fp8_ds_mla_fnuz is not what aiter reads"),
        ("gfx950", {"extra_layout": "fp8_row"}, "extra_layout: fp8_row"),
        ("gfx950", {"q": torch.zeros(5, 6, 512)}, "bf16 queries"),
        ("gfx950", {"q": torch.zeros(0, 6, 512).bfloat16()}, "no token"),
        ("gfx950", {"swa_cache": torch.zeros(0, 3000, dtype=torch.uint8)}, "no page"),
        ("gfx950", {"q": torch.empty(2**16, 64, 512, dtype=torch.bfloat16, device="meta")}, "32-bit offsets"),
        ("gfx950", {"swa_cache": torch.zeros(4, 2344, dtype=torch.uint8)[:, :2336]}, "16"),
    ],
)  # fmt: skip
def test_decode_says_why_not(gfx: str, changes: dict[str, Any], words: str) -> None:
    answer = decode.provider(DEVICES[gfx], print).supports({**worlds.decode("fp8_ds_mla"), **changes})
    assert isinstance(answer, str) and words in answer


def test_a_pool_needs_whole_rows_between_pages() -> None:
    answer = decode.provider(DEVICES["gfx942"], print).supports(worlds.decode("bf16_row", gap=512))
    assert isinstance(answer, str) and "no whole number of 1024-byte rows" in answer


@pytest.mark.parametrize(
    ("gfx", "changes", "words"),
    [
        ("gfx942", {}, "truth value"),
        ("gfx950", {"q": torch.zeros(4, 6, 512)}, "bf16"),
        ("gfx950", {"kv": torch.zeros(0, 512).bfloat16()}, "no key"),
        ("gfx950", {"out": torch.zeros(4, 6, 1024).bfloat16()[..., :512]}, "contiguous"),
        (
            "gfx950",
            {"kv": torch.empty(2**21 + 1, 512, dtype=torch.bfloat16, device="meta")},
            "32-bit offsets",
        ),
    ],
)
def test_prefill_says_why_not(gfx: str, changes: dict[str, Any], words: str) -> None:
    answer = prefill.provider(DEVICES[gfx], print).supports({**worlds.prefill(), **changes})
    assert isinstance(answer, str) and words in answer


@pytest.mark.parametrize(
    ("gfx", "changes", "words"),
    [
        ("gfx1201", {}, "gfx942 and gfx950"),
        ("gfx942", {"layout": "index_mxfp4"}, "index_mxfp4"),
        ("gfx942", {"block_table": torch.zeros(2, 3, dtype=torch.int32)}, "2 requests"),
        ("gfx950", {"q": torch.zeros(3, 6, 128).to(torch.float8_e4m3fn)}, "no power of two"),
        ("gfx950", {"max_len": 0}, "no entry"),
        ("gfx950", {"rotate": "hadamard"}, "not the layout's"),
        ("gfx950", {"q_scales": torch.zeros(3, 8, 4, dtype=torch.uint8)}, "not the layout's"),
        ("gfx950", {"q": torch.zeros(3, 8, 64).to(torch.float8_e4m3fn)}, "not the layout's"),
    ],
)
def test_logits_say_why_not(gfx: str, changes: dict[str, Any], words: str) -> None:
    answer = indexer.logits(DEVICES[gfx], print).supports({**worlds.logits(), **changes})
    assert isinstance(answer, str) and words in answer


@pytest.mark.parametrize(
    ("gfx", "changes", "words"),
    [
        ("gfx1201", {}, "wavefronts of 64"),
        ("gfx950", {"k": 4096}, "1 to 2048"),
        ("gfx950", {"logits": torch.zeros(0, 4)}, "no token"),
        ("gfx950", {"logits": torch.empty(2**12, 2**20, device="meta")}, "32-bit offsets"),
    ],
)
def test_topk_says_why_not(gfx: str, changes: dict[str, Any], words: str) -> None:
    answer = indexer.topk(DEVICES[gfx], print).supports({**worlds.topk(), **changes})
    assert isinstance(answer, str) and words in answer
