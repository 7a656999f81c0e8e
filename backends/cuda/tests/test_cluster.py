"""Our own decode kernel without a device: what it takes, how work is cut, what is launched, who is named."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dsv4core_cuda.backend as backend_module
from dsv4core.errors import BackendUnavailableError, OpArgumentError
from dsv4core.ops import OPS
from dsv4core.ops.fused_sparse_decode_inv_rope import NAME as TURNED
from dsv4core_cuda import capability, cluster, ops
from dsv4core_cuda.backend import CudaBackend
from dsv4core_cuda.capability import against_cluster
from dsv4core_cuda.cluster import ClusterDecode
from dsv4core_cuda.cutedsl import sparse_decode as kernel
from dsv4core_cuda.cutedsl._build import Program
from dsv4core_cuda.flashmla import Pages

H100 = (9, 0)
TAKES: dict[str, Any] = {"dtype": "bfloat16", "heads": 64, "layouts": ("fp8_ds_mla",), "keys": 640,
    "tokens": 32,
}  # fmt: skip


def pages(rows: int = 64, width: int = 256, tokens: int = 2, count: int = 3) -> Pages:
    cache = torch.zeros(count, 65 * 576, dtype=torch.uint8)
    slots = torch.zeros(tokens, width, dtype=torch.int32)
    return Pages(cache, slots, torch.ones(tokens, dtype=torch.int32), rows, "fp8_ds_mla")


def call(tokens: int = 2, heads: int = 64) -> dict[str, Any]:
    swa, extra = pages(64, 128, tokens), pages(2, 512, tokens)
    q = torch.zeros(tokens, heads, 512, dtype=torch.bfloat16)
    return {
        "q": q, "swa_cache": swa.cache, "swa_slots": swa.slots, "swa_lens": swa.lens,
        "extra_cache": extra.cache, "extra_slots": extra.slots, "extra_lens": extra.lens,
        "attn_sink": torch.zeros(heads), "out": torch.empty_like(q), "scale": 1.0, "swa_rows": 64,
        "extra_rows": 2, "layout": "fp8_ds_mla", "extra_layout": "fp8_ds_mla",
    }  # fmt: skip


ROOM = (0, 132, 66, 42, 32, 24, 18, 16, 16, 10)
"""Clusters by their blocks, in six groups of 16 multiprocessors and two of 18."""


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Program, tuple[int, ...], tuple[Any, ...]]]:
    found: list[Any] = []
    monkeypatch.setattr(kernel, "room_of", lambda device: ROOM)
    monkeypatch.setattr(Program, "on", lambda self, device: lambda grid, *v: found.append((self, grid, v)))
    return found


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of its own: what is measured next changes no test."""
    monkeypatch.setitem(capability.CLUSTER_TOKENS, 64, ((640, 32), (1152, 8)))


def test_every_reason_is_given() -> None:
    assert against_cluster(H100, **TAKES) == ()
    found = against_cluster((8, 9), dtype="float32", heads=7, layouts=("bf16_row",), keys=1, tokens=1)
    assert len(found) == 4
    assert "128 keys are one tile" in against_cluster(H100, **{**TAKES, "keys": 128}, any_batch=True)[0]
    assert "33 tokens" in against_cluster(H100, **{**TAKES, "tokens": 33})[0]
    assert "9 tokens of 641 keys" in against_cluster(H100, **{**TAKES, "keys": 641, "tokens": 9})[0]
    assert against_cluster(H100, **{**TAKES, "keys": 1153, "tokens": 1})
    assert "16 heads at a time" in against_cluster(H100, **{**TAKES, "heads": 40})[0]
    assert "below 33 heads" in against_cluster(H100, **{**TAKES, "heads": 16})[0]
    assert against_cluster(H100, **{**TAKES, "heads": 16, "tokens": 999}, any_batch=True) == ()


def test_what_its_loads_cannot_reach_is_refused() -> None:
    decode, q = ClusterDecode(H100), torch.zeros(2, 64, 512, dtype=torch.bfloat16)
    swa = pages()
    assert decode.against(q, swa, pages(2)) == ()
    odd = torch.zeros(3, 65 * 576 + 8, dtype=torch.uint8)
    for wrong, word in (
        (Pages(odd, swa.slots, swa.lens, 64, swa.layout), "pages are not"),
        (Pages(odd[:0], swa.slots, swa.lens, 64, swa.layout), "no pages"),
        (Pages(swa.cache, swa.slots, swa.lens, 2**30, swa.layout), "2^31"),
        (Pages(swa.cache, swa.slots, swa.lens, 64, "bf16_row"), "bf16_row"),
        (Pages(swa.cache, swa.slots, swa.lens, 3_700_000, swa.layout), "a page passes"),
    ):
        assert any(word in reason for reason in decode.against(q, wrong, None)), word
    assert decode.against(q[:, :, 1:], swa, None)
    assert decode.against(q[:0], swa, None)
    many = ClusterDecode(H100, any_batch=True)
    for tokens, reasons in ((65535, 0), (65536, 1)):
        assert len(many.against(q[:1].expand(tokens, 64, 512), pages(), None)) == reasons
    assert decode.against(q.expand(2, 64, 512).repeat(20, 1, 1), pages(tokens=40), None)
    assert ClusterDecode(H100, any_batch=True).against(q.repeat(20, 1, 1), pages(tokens=40), None) == ()


@pytest.mark.parametrize("heads", kernel.KINDS)
def test_a_cut_has_every_key_once(heads: int) -> None:
    keys = kernel.KINDS[heads].keys
    for width in range(1, 9000, 37):
        for blocks in range(1, kernel.MOST_BLOCKS + 1):
            form = kernel.cut(heads, width, blocks)
            assert 1 <= form.blocks <= blocks and form.heads == heads
            assert (form.blocks - 1) * form.tiles * keys < width <= form.blocks * form.tiles * keys


def test_rows_alike_are_cut_by_their_width_alone() -> None:
    for width in (1, 640, 1152, 4096):
        found = {
            (form.blocks, form.tiles, kernel.KINDS[form.heads].keys)
            for tokens in (1, 9, 300)
            for heads in (16, 48, 64, 128)
            for form in [kernel.fixed(tokens, heads, width, ROOM)]
        }
        assert len(found) == 1


def test_the_fastest_form_takes_fewer_waves() -> None:
    for tokens in (1, 8, 32, 500):
        for heads in (16, 48, 64, 128):
            form = kernel.fastest(tokens, heads, 640, ROOM)
            assert heads % form.heads == 0
            again = kernel.fastest(tokens + 1, heads, 640, ROOM)
            assert duration(again, tokens, heads) >= duration(form, tokens, heads)


def duration(form: kernel.Form, tokens: int, heads: int) -> float:
    waves = -(-tokens * heads // form.heads // ROOM[form.blocks])
    return waves * (kernel.KINDS[form.heads].once + kernel.KINDS[form.heads].tile * form.tiles)


def test_a_product_and_a_shift_divide_slots() -> None:
    for rows in (1, 2, 3, 53, 64, 69, 256, 576, 2**30):
        part, shift = kernel.reciprocal(rows)
        assert part * (2**31 - 1) < 2**63 and shift < 64
        near = [n * rows + d for n in (0, 1, 2, 1000, 2**31 // rows - 1) for d in (-1, 0, 1)]
        for slot in (*(n for n in near if 0 <= n < 2**31), 2**31 - 1):
            assert slot * part >> shift == slot // rows


@pytest.mark.parametrize("heads", [16, 48, 64, 128])
@pytest.mark.parametrize("tokens", [1, 8, 32, 200])
def test_a_launch_covers_tokens_heads_and_keys(tokens: int, heads: int, launched: list[Any]) -> None:
    given = call(tokens, heads)
    op = ops.sparse_decode(None, refused, ClusterDecode(H100, any_batch=True))
    lse = op(**given)
    ((program, grid, values),) = launched
    form = (kernel.fixed if heads < 33 else kernel.fastest)(tokens, heads, 640, ROOM)
    assert program is kernel.program(form.heads, form.blocks)
    assert lse.shape == (tokens, heads)
    assert grid == (form.blocks, heads // form.heads, tokens) and program.cluster == form.blocks
    given_at = values[-9:-3]
    assert given_at == (128, 512, 64, 2, heads, form.tiles)
    kinds = {"q": int, "i": int, "f": float}
    assert [type(v) for v in values] == [kinds[letter] for letter in program.arguments]


def refused(*args: Any, **kwargs: Any) -> Tensor:
    raise AssertionError("not the cluster kernel")


def turned(tokens: int = 2, heads: int = 64, scale_format: str = "none") -> dict[str, Any]:
    given = call(tokens, heads)
    del given["out"]
    return given | {
        "positions": torch.zeros(tokens, dtype=torch.int64), "cos_sin": torch.zeros(8, 64), "groups": 8,
        "scale_format": scale_format,
    }  # fmt: skip


@pytest.mark.parametrize("scale_format", kernel.FORMATS)
@pytest.mark.parametrize(("tokens", "heads"), [(1, 16), (3, 64), (32, 128)])
def test_a_launch_that_turns_back_has_its_results_and_angles(
    tokens: int, heads: int, scale_format: str, launched: list[Any]
) -> None:
    given = turned(tokens, heads, scale_format)
    given["positions"] = torch.arange(2 * tokens)[::2]  # what is not dense is made so
    op = ops.fused_sparse_decode_inv_rope(refused, ClusterDecode(H100, any_batch=True))
    out, scales = op(**given)
    expected = OPS[TURNED].fake(**given)
    for found, like in zip((out, scales), expected, strict=True):
        assert (found is None) == (like is None)
        assert found is None or (found.shape, found.dtype) == (like.shape, like.dtype)
        assert found is None or found.is_contiguous()
    ((program, grid, values),) = launched
    form = (kernel.fixed if heads < 33 else kernel.fastest)(tokens, heads, 640, ROOM)
    assert program is kernel.program(form.heads, form.blocks, scale_format)
    assert program.constants[-1] == scale_format
    assert program.shared == kernel.program(form.heads, form.blocks).shared + 256
    assert grid == (form.blocks, heads // form.heads, tokens)
    assert values[8:10] == (out.data_ptr(), 0 if scales is None else scales.data_ptr())
    assert values[13] != given["positions"].data_ptr() or tokens == 1
    assert values[14] == given["cos_sin"].data_ptr()
    kinds = {"q": int, "i": int, "f": float}
    assert [type(v) for v in values] == [kinds[letter] for letter in program.arguments]


def test_what_does_not_turn_back_here_goes_on_or_is_refused(launched: list[Any]) -> None:
    passed: list[Any] = []
    op = ops.fused_sparse_decode_inv_rope(lambda *a, **k: passed.append((a, k)), ClusterDecode(H100))
    op(**turned(33))
    op(**turned(1, 8))
    assert len(passed) == 2 and not launched
    assert [kwargs["groups"] for _, kwargs in passed] == [8] * 2
    for wrong, argument in (
        ({"groups": 3}, "groups"), ({"groups": 0}, "groups"), ({"scale_format": "f16"}, "scale_format"),
        ({"extra_lens": None}, "extra_lens"),
    ):  # fmt: skip
        with pytest.raises(OpArgumentError, match=f"{TURNED}.*{argument}"):
            op(**{**turned(), **wrong})
    assert len(passed) == 2 and not launched


@pytest.mark.parametrize("place", ["rows apart", "off 16 bytes"])
def test_angles_that_lie_elsewhere_are_brought_together(place: str, launched: list[Any]) -> None:
    table = torch.arange(8 * 68.0).view(8, 68)[:, :64]
    if place == "off 16 bytes":
        whole = torch.arange(8 * 64 + 1.0)
        table = whole[1:].view(8, 64)
    given = turned(3) | {"cos_sin": table, "positions": torch.tensor([5, 0, 9])}  # 9: no row, none is read
    kept: list[Tensor] = []
    take = torch.Tensor.__getitem__

    def taken(tensor: Tensor, index: Any) -> Tensor:
        found = take(tensor, index)
        if tensor is table:
            kept.append(found)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "__getitem__", taken)
        ops.fused_sparse_decode_inv_rope(refused, ClusterDecode(H100, any_batch=True))(**given)
    ((_, _, values),) = launched
    assert torch.equal(kept[0], take(table, torch.tensor([5, 0, 7])))
    assert values[14] == kept[0].data_ptr() and kept[0].is_contiguous() and values[14] % 16 == 0


def test_an_empty_second_cache_is_none(launched: list[Any]) -> None:
    given = call()
    given["extra_cache"] = given["extra_cache"][:0]
    given["swa_slots"] = torch.zeros(2, 129, dtype=torch.int32)
    ops.sparse_decode(None, refused, ClusterDecode(H100))(**given)
    assert launched[0][2][-9:-7] == (129, 0)


def test_what_it_does_not_take_goes_on(launched: list[Any]) -> None:
    passed: list[Any] = []
    op = ops.sparse_decode(None, lambda *a, **k: passed.append(a), ClusterDecode(H100))
    op(**call(33))
    op(**call(1, 8))
    op(**{**call(), "layout": "fp8_ds_mla_fnuz"})
    assert len(passed) == 3 and not launched


def test_outputs_that_are_not_aligned_are_copied(launched: list[Any]) -> None:
    given = call(1)
    given["out"] = torch.empty(64 * 512 + 1, dtype=torch.bfloat16)[1:].view(1, 64, 512)
    ops.sparse_decode(None, refused, ClusterDecode(H100))(**given)
    assert launched[0][2][8] != given["out"].data_ptr()


def test_outputs_of_another_type_are_converted(launched: list[Any]) -> None:
    given = call(1)
    given["out"] = torch.empty(1, 64, 512)
    ops.sparse_decode(None, refused, ClusterDecode(H100))(**given)
    assert launched[0][2][8] != given["out"].data_ptr()


LISTS: dict[str, Callable[[Tensor], Tensor]] = {
    "columns apart": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "transposed": lambda x: x.t().contiguous().t() if x.dim() > 1 else x,
    "rows apart": lambda x: torch.cat((x, x), -1)[..., : x.shape[-1]],
    "one row for all": lambda x: x[:1].expand(x.shape),
    "backwards apart": lambda x: x.repeat_interleave(3, 0)[1::3],
}


@pytest.mark.parametrize("turns_back", [False, True])
@pytest.mark.parametrize("form", LISTS)
def test_lists_and_lengths_may_lie_anywhere(
    form: str, turns_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel reads, by the addresses and distances of a launch, is what was listed."""
    read: list[list[list[int]]] = []

    def words(address: int, count: int) -> list[int]:
        return list((ctypes.c_int32 * count).from_address(address))

    def launch(grid: tuple[int, int, int], *values: Any) -> None:
        widths = values[-9:-7]
        for slots, lens, apart, width in zip(
            values[2:6:3], values[3:7:3], values[17:19], widths, strict=True
        ):
            read.append([words(slots + 4 * t * apart, width) for t in range(3)])
            read.append([words(lens, 3)])

    monkeypatch.setattr(kernel, "room_of", lambda device: ROOM)
    monkeypatch.setattr(Program, "on", lambda self, device: launch)
    given = turned(3) if turns_back else call(3)
    names = ("swa_slots", "swa_lens", "extra_slots", "extra_lens")
    for name in names:
        whole = torch.randint(0, 6, given[name].shape, dtype=torch.int32)
        given[name] = LISTS[form](whole)
    make = ops.fused_sparse_decode_inv_rope(refused, ClusterDecode(H100)) if turns_back else None
    (make or ops.sparse_decode(None, refused, ClusterDecode(H100)))(**given)
    expected = [given[name].tolist() for name in names]
    assert read == [expected[0], [expected[1]], expected[2], [expected[3]]]


def test_a_share_of_a_device_gets_clusters_that_run() -> None:
    """Where the driver says that clusters of more than six blocks never run, none is chosen."""
    room = (*ROOM[:7], 0, 0, 0)
    for tokens in (1, 9, 32):
        for heads in (16, 64, 128):
            for choose in (kernel.fixed, kernel.fastest):
                assert choose(tokens, heads, 1152, room).blocks <= 6


def test_the_backend_names_it_and_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendUnavailableError, match="ATTENTION=cutedsl, but this process interprets"):
        CudaBackend({"attention": "cutedsl"})
    assert CudaBackend({}).cluster is None
    monkeypatch.setattr(backend_module, "interpreted", lambda: False)
    monkeypatch.setattr(backend_module, "_on_device", lambda *a: (None, "no FlashMLA"))
    monkeypatch.setattr(backend_module, "_compiled", lambda any_batch: (ClusterDecode(H100), ""))
    made = CudaBackend({})
    provider = made.ops["sparse_decode"].provider
    assert provider.startswith("cutedsl (up to 64 heads, 640 keys: 32 tokens; 64 heads, 1152 keys: 8 tokens")
    assert provider.endswith("), else triton (no FlashMLA)")
    assert made.ops["sparse_prefill"].provider == "triton (no FlashMLA)"
    own = made.ops[TURNED]
    assert own.provider.startswith("cutedsl (up to 64 heads") and own.provider.endswith("), else torch")
    without = CudaBackend({"attention": "triton"})
    assert without.cluster is None and TURNED not in without.ops


def test_a_kernel_that_does_not_run_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "SM89" in ClusterDecode((8, 9)).unusable()
    monkeypatch.setattr(cluster, "reason_against", lambda architecture: "")
    assert "does not run here" in ClusterDecode(H100).unusable()
