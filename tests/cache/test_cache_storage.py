"""Caches on an engine's own tensors."""

from __future__ import annotations

import pytest
import torch

from dsv4core.cache import PagedCache, cache_specs
from dsv4core.config import AttentionConfig
from dsv4core.errors import CacheError
from dsv4core.layout import get_layout
from dsv4core.plan import BatchPlan

TWO = AttentionConfig.preset("tiny", compress_ratios=(4, 4, 128))


def own_tensors(config, layers, pages):
    specs = [s for layer in layers for s in cache_specs(config, layer)]
    return {s.key: torch.zeros((pages, s.page_bytes), dtype=torch.uint8) for s in specs}


def one_allocation(pages, lead=0):
    """Layers 0 and 1 in one block of bytes: page p of every cache lies side by side."""
    specs = [s for layer in (0, 1) for s in cache_specs(TWO, layer)]
    width = lead + sum(s.page_bytes for s in specs)
    block = torch.full((pages, width), 0xEE, dtype=torch.uint8)
    tensors, at = {}, lead
    for spec in specs:
        tensors[spec.key] = block[:, at : at + spec.page_bytes]
        at += spec.page_bytes
    return block, tensors


def test_layers_share_one_allocation():
    block, tensors = one_allocation(60)
    cache = PagedCache.from_tensors(TWO, tensors)
    assert cache.layers == (0, 1) and set(cache.pages.values()) == {60}
    layer = cache.layer(1)
    assert layer.swa.data_ptr() == tensors["swa.1"].data_ptr() and layer.swa.stride(0) == block.shape[1]
    assert layer.state.data_ptr() == tensors["state_c4.1"].data_ptr()
    assert layer.state.shape == (60, 4, 2048) and layer.state.stride(0) == block.shape[1] // 4
    plan = cache.plan({"a": 70})
    record = get_layout("fp8_ds_mla").encode(torch.randn(70, 512))
    before = block.clone()
    get_layout("fp8_ds_mla").write(layer.swa, plan.slots["swa"], record, 64)
    layer.state[plan.slots["state_c4"] // 4, plan.slots["state_c4"] % 4] = 1.5
    at = tensors["swa.1"].storage_offset()
    changed = (block != before).any(0).nonzero().flatten()
    state_at = tensors["state_c4.1"].storage_offset()
    inside = ((changed >= at) & (changed < at + 37376)) | (
        (changed >= state_at) & (changed < state_at + 32768)
    )
    assert bool(inside.all()) and changed.numel()
    assert not cache.snapshot("a")["swa.0"].eq(0).all()  # 0xEE of the engine, owned rows only
    assert bool(cache.snapshot("a")["swa.1"][:, 37376:].eq(0).all())
    got = get_layout("fp8_ds_mla").read(cache.snapshot("a")["swa.1"], torch.arange(70), 64)
    assert torch.equal(got, record)


@pytest.mark.parametrize("lead", [8, 1, 4])
def test_misaligned_base_is_refused(lead):
    _, tensors = one_allocation(4, lead=lead)
    with pytest.raises(CacheError, match=r"'swa.0'.*multiple of 16"):
        PagedCache.from_tensors(TWO, tensors)


def test_misaligned_page_distance_is_refused():
    tensors = own_tensors(TWO, [2], 4)
    tensors["swa.2"] = torch.zeros((4, 37448), dtype=torch.uint8)
    with pytest.raises(CacheError, match="page distance 8 bytes off"):
        PagedCache.from_tensors(TWO, tensors)


def test_a_base_off_by_16_is_fine():
    _, tensors = one_allocation(4, lead=16)
    PagedCache.from_tensors(TWO, tensors).plan({"a": 4})


def test_states_may_come_as_f32_rows_and_pages_without_rounding():
    tensors = own_tensors(TWO, [2], 8)
    tensors["state_c128.2"] = torch.zeros((8, 9, 1024))[:, :8]
    tensors["swa.2"] = torch.zeros((8, 37376), dtype=torch.uint8)
    cache = PagedCache.from_tensors(TWO, tensors)
    assert cache.layer(2).state.data_ptr() == tensors["state_c128.2"].data_ptr()
    assert cache.layer(2).state.stride(0) == 9 * 1024
    cache.plan({"a": 20})
    assert cache.snapshot("a")["state_c128.2"].shape == (3, 32832)


WRONG = {
    "rows of 584": (torch.zeros((4, 64, 584), dtype=torch.uint8), "scales lie behind all values"),
    "signed bytes": (torch.zeros((4, 37440), dtype=torch.int8), "torch.uint8"),
    "too short": (torch.zeros((4, 37375), dtype=torch.uint8), "at least 37376"),
    "no tensor": (None, "pass a tensor, got NoneType"),
    "no page": (torch.zeros((0, 37440), dtype=torch.uint8), "shape \\[0, 37440\\]"),
    "bytes apart": (torch.zeros((4, 2 * 37440), dtype=torch.uint8)[:, ::2], r"stride\(1\) = 1"),
    "pages inside pages": (
        torch.zeros(37440 * 5, dtype=torch.uint8).as_strided((4, 37440), (1600, 1)),
        "they overlap",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_tensors_that_do_not_fit(name):
    tensor, words = WRONG[name]
    with pytest.raises(CacheError, match=words):
        PagedCache.from_tensors(TWO, {**own_tensors(TWO, [2], 4), "swa.2": tensor})


@pytest.mark.parametrize("shape", [(4, 8, 512), (4, 4, 1024), (4, 8192)])
def test_states_that_do_not_fit(shape):
    with pytest.raises(CacheError, match=r"torch.float32 \[pages, 8, 1024\]"):
        PagedCache.from_tensors(TWO, {**own_tensors(TWO, [2], 4), "state_c128.2": torch.zeros(shape)})


def test_names_are_checked():
    tensors = own_tensors(TWO, [2], 4)
    for key, words in (("swa", "group.layer"), ("c8.2", "c8.2"), ("c4.2", r"not of these layers \['c4.2'\]")):
        with pytest.raises(CacheError, match=words):
            PagedCache.from_tensors(TWO, {**tensors, key: tensors["swa.2"]})
    with pytest.raises(CacheError, match=r"missing \['c128.2'\]"):
        PagedCache.from_tensors(TWO, {k: v for k, v in tensors.items() if k != "c128.2"})
    with pytest.raises(CacheError, match="layers is empty"):
        PagedCache.from_tensors(TWO, {})


def test_one_device():
    tensors = own_tensors(TWO, [2], 4)
    with pytest.raises(CacheError, match=r"cpu.*meta"):
        PagedCache.from_tensors(TWO, {**tensors, "swa.2": tensors["swa.2"].to("meta")})


def test_layers_of_a_group_may_not_share_bytes():
    tensors = own_tensors(TWO, [0, 1], 8)
    with pytest.raises(CacheError, match=r"'c4\.[01]' and 'c4\.[01]' share bytes"):
        PagedCache.from_tensors(TWO, {**tensors, "c4.1": tensors["c4.0"]})
    shifted = torch.zeros((9, 37440), dtype=torch.uint8)
    with pytest.raises(CacheError, match="share bytes"):
        PagedCache.from_tensors(TWO, {**tensors, "c4.0": shifted[:8], "c4.1": shifted[1:]})


def test_groups_that_share_bytes_are_planned_by_their_engine():
    """One pool of equal pages for two groups: page numbers are the engine's business, slots still work."""
    tensors = own_tensors(TWO, [2], 8)
    pool = torch.zeros((8, 37440), dtype=torch.uint8)
    cache = PagedCache.from_tensors(TWO, {**tensors, "swa.2": pool, "c128.2": pool})
    with pytest.raises(CacheError, match=r"BatchPlan\.build"):
        cache.plan({"a": 1})
    tables = {
        "swa": torch.tensor([[5, 0, 3]], dtype=torch.int32),
        "c128": torch.tensor([[7]], dtype=torch.int32),
        "state_c128": torch.arange(17, dtype=torch.int32)[None],
    }
    plan = BatchPlan.build(TWO, query_lens=[1], seq_lens=[129], tables=tables)
    assert plan.slots["swa"].tolist() == [3 * 64] and plan.c128_slots[0, :2].tolist() == [14, -1]


def test_the_smallest_tensor_of_a_group_counts():
    tensors = own_tensors(TWO, [0, 1], 40)
    tensors["swa.1"] = tensors["swa.1"][:3]
    assert PagedCache.from_tensors(TWO, tensors).pages["swa"] == 3


def test_a_fresh_cache_is_zero():
    cache = PagedCache.allocate(TWO, [0, 2], 300, max_requests=1)
    assert not any(bool(t.any()) for t in cache._tensors.values())
    assert cache.device.type == "cpu"
