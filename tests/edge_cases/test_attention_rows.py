"""Edge cases 13-15: rows without keys, sinks at infinity, garbage where nobody should look."""

from __future__ import annotations

import pytest
import torch
from harness import ALL_CANDIDATES, decode, pages, prefill, relative, rig, values

KINDS = ("swa", "csa", "hca")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_13_row_without_a_valid_key(dtype: torch.dtype) -> None:
    q, kv = values(3, 2, 512, stream=51, dtype=dtype), values(64, 512, stream=52, dtype=dtype)
    sink = torch.tensor([0.0, torch.inf])
    lists = torch.tensor([[1, 2, 3, 4], [-1, -1, -1, -1], [1, 2, 3, 4]])
    lens = torch.tensor([4, 4, 0])
    layout = "f32_row" if dtype == torch.float32 else "bf16_row"
    for out, lse in (
        decode(q, pages(kv, layout), lists, lens, sink, layout=layout),
        prefill(q, kv, lists, lens, sink),
    ):
        assert not out[1:].any()
        assert torch.equal(lse[1:], torch.full((2, 2), torch.inf))
        assert out[0, 0].any()
        assert torch.isfinite(lse[0]).all()


def test_13_no_key_in_either_cache() -> None:
    q, kv = values(1, 2, 512, stream=51), values(64, 512, stream=52)
    nothing = torch.full((1, 64), -1, dtype=torch.int32)
    zero = torch.zeros(1, dtype=torch.int32)
    out, lse = decode(q, pages(kv), nothing, zero, torch.zeros(2), extra=(pages(kv), nothing, zero))
    assert not out.any()
    assert torch.isposinf(lse).all()
    one = torch.tensor([[7]], dtype=torch.int32)
    out, lse = decode(
        q,
        pages(kv),
        nothing,
        zero,
        torch.full((2,), -torch.inf),
        extra=(pages(kv), one, torch.ones(1, dtype=torch.int32)),
    )
    assert relative(out[0], kv[7].expand(2, -1)) < 1e-6, "the only key has weight 1"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_14_sink_at_infinity(dtype: torch.dtype) -> None:
    q, kv = values(1, 3, 512, stream=53, dtype=dtype), values(64, 512, stream=54, dtype=dtype)
    lists, lens = torch.arange(50)[None], torch.tensor([50])
    layout = "f32_row" if dtype == torch.float32 else "bf16_row"

    def runs(sink: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [
            decode(q, pages(kv, layout), lists, lens, sink, layout=layout),
            prefill(q, kv, lists, lens, sink),
        ]

    logits = (q[0].double() @ kv.double().T)[:, :50] * 512**-0.5
    plain = logits.softmax(dim=1) @ kv[:50].double()
    for (out, lse), (_, other) in zip(
        runs(torch.tensor([-torch.inf, torch.inf, 1e30])), runs(torch.zeros(3)), strict=True
    ):
        assert relative(out[0, 0], plain[0]) < (1e-6 if dtype == torch.float32 else 4e-3)
        assert not out[0, 1:].any()
        assert torch.equal(lse, other), "the log-sum-exp never contains the sink"
        assert relative(lse[0], logits.logsumexp(dim=1)) < 1e-6


def test_15_garbage_in_slots_that_are_not_selected() -> None:
    kv = values(128, 512, stream=55, dtype=torch.bfloat16)
    q, sink = values(2, 2, 512, stream=56, dtype=torch.bfloat16), torch.zeros(2)
    lists = torch.tensor(
        [[0, 5, 64, 70, 100], [3, 5, 70, 90, 100]]
    )  # the fifth is behind the length of row 0
    lens = torch.tensor([4, 4])
    for layout in ("fp8_ds_mla", "bf16_row"):
        clean = pages(kv, layout)
        dirty = torch.full_like(clean, 0xFF)
        for page, used in ((0, [0, 5, 3]), (1, [0, 6, 26])):
            for row in used:
                for start, size in (
                    ((row * 576, 576), (64 * 576 + row * 8, 8))
                    if layout == "fp8_ds_mla"
                    else ((row * 1024, 1024),)
                ):
                    dirty[page, start : start + size] = clean[page, start : start + size]
        expected = decode(q, clean, lists, lens, sink, layout=layout)
        for got, want in zip(decode(q, dirty, lists, lens, sink, layout=layout), expected, strict=True):
            assert torch.equal(got, want)
    poisoned = torch.full_like(kv, torch.nan)
    rows = [0, 5, 64, 70, 3, 90]
    poisoned[rows] = kv[rows]
    for got, want in zip(
        prefill(q, poisoned, lists, lens, sink), prefill(q, kv, lists, lens, sink), strict=True
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize("profile", ["math", "vllm"])
@pytest.mark.parametrize("kind", KINDS)
def test_15_a_layer_on_pages_full_of_nan(kind: str, profile: str) -> None:
    layer = rig(kind, profile, index_topk=ALL_CANDIDATES)
    hidden = layer.hidden(150)
    chunks = [131, 1, 1, 3, 14]
    clean, dirty = layer.cache(), layer.cache()
    for tensor in layer.storage(dirty):
        tensor.fill_(0xFF if tensor.dtype == torch.uint8 else torch.nan)
    expected = layer.run(hidden, chunks, clean)
    got = layer.run(hidden, chunks, dirty)
    assert torch.isfinite(got.float()).all()
    assert torch.equal(got, expected)
