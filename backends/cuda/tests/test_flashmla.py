"""The adapter's contract: argument order, padded heads and widths, -1, lengths, sinks, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_flash_mla import FakeFlashMLA
from torch import Tensor

from dsv4core.kernels.triton.sparse_decode import sparse_decode as triton_decode
from dsv4core.kernels.triton.sparse_prefill import sparse_prefill as triton_prefill
from dsv4core.layout import get_layout
from dsv4core.ops import OPS
from dsv4core_cuda import ops
from dsv4core_cuda.flashmla import FlashMLA, Pages
from dsv4core_cuda.flashmla_check import check
from dsv4core_cuda.flashmla_library import FlashMLAModule

I32 = torch.int32


def made(legacy: bool = True) -> tuple[FakeFlashMLA, FlashMLA]:
    fake = FakeFlashMLA()
    return fake, FlashMLA(FlashMLAModule(fake.module(legacy)), (9, 0), fewest=1)


def pages(count: int, rows: int, seed: int) -> Tensor:
    layout = get_layout("fp8_ds_mla")
    g = torch.Generator().manual_seed(seed)
    return layout.encode_pages(torch.randn(count, rows, 512, generator=g).bfloat16())


def world(heads: int = 4, width: int = 70, extra_width: int = 130) -> dict[str, Any]:
    """Five tokens: holes and rows behind the cache, one key, nothing, one list of two empty."""
    g = torch.Generator().manual_seed(heads)
    swa = torch.randint(0, 128, (5, width), generator=g, dtype=I32)
    swa[0, 5:60:7] = -9
    swa[3] = 128  # behind the last page
    extra = torch.randint(0, 40 * 2, (5, extra_width), generator=g, dtype=I32)
    extra[0, ::3] = -7
    sink = torch.randn(heads, generator=g)
    sink[0], sink[-1] = torch.inf, -torch.inf
    q = torch.randn(5, heads, 512, generator=g).bfloat16()
    return {
        "q": q, "swa_cache": pages(2, 64, 1), "swa_slots": swa,
        "swa_lens": torch.tensor([70, 1, 0, 3, 0], dtype=I32).clamp(max=width),
        "extra_cache": pages(40, 2, 2), "extra_slots": extra,
        "extra_lens": torch.tensor([129, 0, 0, 66, 64], dtype=I32), "attn_sink": sink,
        "out": torch.full_like(q, 7.0), "scale": 512**-0.5, "swa_rows": 64, "extra_rows": 2,
        "layout": "fp8_ds_mla", "extra_layout": "fp8_ds_mla",
    }  # fmt: skip


def refused(*args: Any, **kwargs: Any) -> Tensor:
    raise AssertionError("not FlashMLA")


def close(mine: Tensor, other: Tensor) -> None:
    """Matrix products of another number of heads may differ in last bits."""
    assert float((mine.float() - other.float()).norm()) <= 1e-4 * float(other.float().norm())


def agree(mine: Tensor, other: Tensor) -> None:
    assert torch.equal(torch.isinf(mine), torch.isinf(other))
    assert torch.allclose(mine.float(), other.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("heads", [1, 8, 64, 65, 128])
def test_decode_is_the_op(heads: int, legacy: bool) -> None:
    fake, flash = made(legacy)
    given = world(heads)
    want = {**given, "out": given["out"].clone()}
    lse = ops.sparse_decode(flash, refused)(**given)
    agree(lse, OPS["sparse_decode"].body(**want))
    close(given["out"], want["out"])
    call = fake.calls[0]
    padded = 64 if heads <= 64 else 128
    assert call["q"].shape == (5, 1, padded, 512) and not call["q"][:, :, heads:].any()
    assert (call["sink"][heads:] == -torch.inf).all()
    assert call["slots"].shape == (5, 1, 128) and call["extra_slots"].shape == (5, 1, 192)
    assert call["lens"].tolist() == [70, 1, 0, 3, 0]
    assert call["extra"].shape == (40, 2, 1, 584) and call["extra"].stride(0) == 1728


def test_one_cache_and_an_empty_list_of_entries() -> None:
    for changed in (
        {"extra_cache": None, "extra_slots": None, "extra_lens": None},
        {"extra_slots": torch.empty(5, 0, dtype=I32), "extra_lens": torch.zeros(5, dtype=I32)},
    ):
        fake, flash = made()
        given = {**world(), **changed}
        want = {**given, "out": given["out"].clone()}
        agree(ops.sparse_decode(flash, refused)(**given), OPS["sparse_decode"].body(**want))
        assert torch.equal(given["out"], want["out"])
        assert fake.calls[0]["extra"] is None


def test_what_lies_behind_a_length_and_strides_do_not_matter() -> None:
    given = world()
    want = {**given, "out": given["out"].clone()}
    behind = torch.arange(70) >= given["swa_lens"].unsqueeze(1)
    wide = torch.full((5, 140), 1 << 30, dtype=I32)
    wide[:, ::2] = torch.where(behind, 1 << 30, given["swa_slots"])
    lens = torch.full((5, 3), 9, dtype=I32)
    lens[:, 1] = given["swa_lens"]
    given |= {"swa_slots": wide[:, ::2], "swa_lens": lens[:, 1]}
    _, flash = made()
    agree(ops.sparse_decode(flash, refused)(**given), OPS["sparse_decode"].body(**want))
    assert torch.equal(given["out"], want["out"])


def test_lengths_out_of_range_are_clamped() -> None:
    fake, flash = made()
    ops.sparse_decode(flash, refused)(**{**world(), "swa_lens": torch.tensor([99, -5, 0, 3, 0], dtype=I32)})
    assert fake.calls[0]["lens"].tolist() == [70, 0, 0, 3, 0]


def test_trusted_lists_are_passed_on_where_their_form_allows_it() -> None:
    fake, flash = made()
    g = world(64, width=128, extra_width=128)
    swa = Pages(g["swa_cache"], g["swa_slots"].clamp(0, 127), g["swa_lens"], 64, "fp8_ds_mla")
    flash.decode(g["q"], swa, None, g["attn_sink"], 0.1, trusted=True)
    assert fake.calls[0]["slots"].data_ptr() == swa.slots.data_ptr()
    assert fake.calls[0]["q"].data_ptr() == g["q"].data_ptr()
    narrow = Pages(swa.cache, swa.slots[:, :100], swa.lens, 64, "fp8_ds_mla")
    flash.decode(g["q"], narrow, None, g["attn_sink"], 0.1, trusted=True)
    assert fake.calls[1]["slots"].shape[2] == 128


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"layout": "bf16_row"}, "FlashMLA reads fp8_ds_mla, not bf16_row"),
        ({"extra_layout": "fp8_ds_mla_fnuz"}, "not fp8_ds_mla_fnuz"),
        ({"q": torch.zeros(5, 129, 512).bfloat16()}, "up to 128 heads, not 129"),
        ({"q": torch.zeros(5, 4, 512)}, "not float32"),
        ({"q": torch.zeros(0, 4, 512).bfloat16()}, "nothing to compute"),
        ({"q": torch.zeros(5, 64, 520).bfloat16()[..., 4:516]}, "queries are not 16-byte aligned"),
        ({"swa_cache": torch.zeros(2, 37456, dtype=torch.uint8)[:, 8:]}, "page 0 is not 16-byte aligned"),
        ({"swa_cache": torch.zeros(2, 37448, dtype=torch.uint8)}, "37448 bytes apart, no multiple of 16"),
        ({"swa_cache": torch.zeros(0, 37440, dtype=torch.uint8)}, "no pages"),
    ],
)  # fmt: skip
def test_refusals_have_reasons(change: dict[str, Any], reason: str) -> None:
    _, flash = made()
    g = {**world(), **change}
    answer = flash.decodes(
        g["q"], Pages(g["swa_cache"], g["swa_slots"], g["swa_lens"], 64, g["layout"]),
        Pages(g["extra_cache"], g["extra_slots"], g["extra_lens"], 2, g["extra_layout"]),
    )  # fmt: skip
    assert answer.provider == "triton"
    assert any(reason in r for r in answer.reasons), answer.reasons


def test_few_heads_are_not_padded_unless_asked_for() -> None:
    flash = FlashMLA(FlashMLAModule(FakeFlashMLA().module()), (9, 0))
    g = world(16)
    swa = Pages(g["swa_cache"], g["swa_slots"], g["swa_lens"], 64, "fp8_ds_mla")
    answer = flash.decodes(g["q"], swa, None)
    assert "does not pay for 16" in answer.reasons[0]
    assert [flash.padded_heads(n, "fp8_ds_mla") for n in (4, 32, 33, 64, 100)] == [4, 32, 64, 64, 128]
    assert flash.padded_heads(64, "bf16_row") == 64


def test_decode_that_may_not_depend_on_its_batch_stays_with_triton() -> None:
    flash = FlashMLA(FlashMLAModule(FakeFlashMLA().module()), (9, 0), invariant=True)
    g = world(64)
    answer = flash.decodes(
        g["q"], Pages(g["swa_cache"], g["swa_slots"], g["swa_lens"], 64, "fp8_ds_mla"), None
    )
    assert answer.reasons == ("FlashMLA's decode of a token depends on its batch",)
    assert flash.padded_heads(40, "fp8_ds_mla") == 40
    assert flash.prefills(g["q"], g["q"][0], g["swa_slots"]).provider == "flashmla"


@pytest.mark.parametrize(
    ("tokens", "heads", "provider"), [(511, 128, "triton"), (512, 128, "flashmla"), (512, 64, "triton")]
)
def test_few_tokens_share_a_schedule_or_do_without(tokens: int, heads: int, provider: str) -> None:
    flash = FlashMLA(FlashMLAModule(FakeFlashMLA().module()), (9, 0))
    g = world(heads)
    swa = Pages(g["swa_cache"], g["swa_slots"], g["swa_lens"], 64, "fp8_ds_mla")
    q = g["q"][:1].repeat(tokens, 1, 1)
    assert flash.decodes(q, swa, None, alone=True).provider == provider
    assert flash.decodes(q, swa, None).provider == "flashmla"


def test_blackwell_wants_pages_of_whole_576_bytes() -> None:
    fake = FakeFlashMLA()
    flash = FlashMLA(FlashMLAModule(fake.module()), (10, 0), fewest=1)
    g = world()
    cache = torch.zeros(2, 37440 + 16, dtype=torch.uint8)
    answer = flash.decodes(g["q"], Pages(cache, g["swa_slots"], g["swa_lens"], 64, "fp8_ds_mla"), None)
    assert "no multiple of 576" in answer.reasons[0]


def test_what_flashmla_does_not_take_goes_to_triton() -> None:
    fake, flash = made()
    given = world()
    cache = torch.zeros(2, 37448, dtype=torch.uint8)
    cache[:, :37440] = given["swa_cache"]
    given["swa_cache"] = cache
    want = {**given, "out": given["out"].clone()}
    agree(ops.sparse_decode(flash, triton_decode)(**given), triton_decode(**want))
    assert torch.equal(given["out"], want["out"]) and not fake.calls


@pytest.mark.parametrize("heads", [3, 64])
def test_prefill_is_the_op(heads: int) -> None:
    fake, flash = made()
    g = torch.Generator().manual_seed(9)
    kv = torch.randn(200, 512, generator=g).bfloat16()
    kv[150] = torch.nan  # nobody lists it within a length
    indices = torch.randint(-2, 150, (4, 140), generator=g, dtype=I32)
    indices[1, 3], indices[2] = 200, 150
    lens = torch.tensor([140, 64, 0, 1], dtype=I32)
    q, sink = torch.randn(4, heads, 512, generator=g).bfloat16(), torch.randn(heads, generator=g)
    out, other = torch.full_like(q, 3.0), torch.empty_like(q)
    lse = ops.sparse_prefill(flash, refused)(q, kv, indices, lens, sink, out, scale=0.05)
    agree(lse, OPS["sparse_prefill"].body(q, kv, indices, lens, sink, other, scale=0.05))
    assert torch.equal(out, other)
    assert fake.calls[0]["indices"].shape == (4, 1, 256) and fake.calls[0]["kv"].shape == (200, 1, 512)


def test_prefill_falls_back() -> None:
    fake, flash = made()
    q, kv = torch.zeros(2, 4, 512).bfloat16(), torch.zeros(0, 512).bfloat16()
    out, lens = torch.ones_like(q), torch.zeros(2, dtype=I32)
    lse = ops.sparse_prefill(flash, triton_prefill)(
        q, kv, torch.empty(2, 0, dtype=I32), lens, torch.zeros(4), out, scale=1.0
    )
    assert not out.any() and (lse == torch.inf).all() and not fake.calls


def test_the_check_runs_both_ops_and_sees_a_wrong_one() -> None:
    fake, flash = made()
    assert check(flash.library, (9, 0), torch.device("cpu")) == ""
    assert len(fake.calls) == 2
    flash.library._prefill = lambda q, *a, **k: (torch.zeros_like(q), None, q.new_zeros(q.shape[:2]).float())
    assert "prefill of a single key" in check(flash.library, (9, 0), torch.device("cpu"))
