"""Sizes of pages and caches against the published byte model."""

from __future__ import annotations

import dataclasses

import pytest

from dsv4core.cache import CacheSpec, PagedCache, cache_specs, page_counts
from dsv4core.config import AttentionConfig
from dsv4core.errors import CacheError, ConfigError

MIB = 2**20


def sizes(config, layer):
    return {s.group: (s.rows, s.payload_bytes, s.page_bytes, s.alignment) for s in cache_specs(config, layer)}


def test_pages_of_the_default_profile():
    config = AttentionConfig.preset("v4-flash")
    assert sizes(config, 0) == {"swa": (64, 37376, 37440, 576)}
    assert sizes(config, 2) == {
        "swa": (64, 37376, 37440, 576),
        "c4": (64, 37376, 37440, 576),
        "indexer": (64, 8448, 8640, 576),
        "state_c4": (4, 32768, 32832, 576),
        "state_indexer": (4, 8192, 8640, 576),
    }
    assert sizes(config, 3) == {
        "swa": (64, 37376, 37440, 576),
        "c128": (2, 1168, 1728, 576),
        "state_c128": (8, 32768, 32832, 576),
    }


def test_pages_of_other_layouts():
    mxfp4 = AttentionConfig.preset("v4-flash", index_layout="index_mxfp4")
    assert sizes(mxfp4, 2)["indexer"] == (64, 4352, 4608, 576)
    rows = AttentionConfig.preset("v4-flash", main_layout="bf16_row")
    assert sizes(rows, 2)["c4"] == (64, 65536, 65536, 512) and sizes(rows, 3)["c128"] == (2, 2048, 2048, 512)
    math = AttentionConfig.preset("tiny", profile="math")
    assert sizes(math, 1)["swa"][:3] == (64, 131072, 131072)
    assert sizes(math, 1)["indexer"][:3] == (64, 32768, 32768)


def test_what_a_spec_says():
    spec = next(s for s in cache_specs(AttentionConfig.preset("tiny"), 1) if s.group == "state_indexer")
    assert spec == CacheSpec(
        key="state_indexer.1",
        group="state_indexer",
        layer=1,
        layout="state_f32",
        rows=4,
        row_width=512,
        record_bytes=2048,
        payload_bytes=8192,
        page_bytes=8640,
        alignment=576,
        tokens_per_row=1,
        dtype="f32",
        window=8,
        sliding=128,
    )
    assert (spec.stride, spec.base_alignment, spec.tokens_per_page) == (8640, 16, 4)
    by_group = {s.group: s for layer in (1, 2) for s in cache_specs(AttentionConfig.preset("tiny"), layer)}
    assert {g: s.row_width for g, s in by_group.items()} == {
        "swa": 512,
        "c4": 512,
        "indexer": 128,
        "state_c4": 2048,
        "state_indexer": 512,
        "c128": 512,
        "state_c128": 1024,
    }
    assert {g: s.tokens_per_page for g, s in by_group.items()} == {
        "swa": 64,
        "c4": 256,
        "indexer": 256,
        "state_c4": 4,
        "state_indexer": 4,
        "c128": 256,
        "state_c128": 8,
    }
    assert {g: s.sliding for g, s in by_group.items() if s.sliding} == dict.fromkeys(
        ("swa", "state_c4", "state_indexer", "state_c128"), 128
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.rows = 5


def test_a_short_window_keeps_what_the_compressor_needs():
    config = AttentionConfig.preset("tiny", sliding_window=32)
    kept = {
        s.key: (s.window, s.sliding) for layer in range(3) for s in cache_specs(config, layer) if s.sliding
    }
    assert kept["swa.0"] == (32, 32) and kept["state_c4.1"] == (8, 32) and kept["state_c128.2"] == (128, 128)


def test_wrong_requests():
    config = AttentionConfig.preset("tiny")
    with pytest.raises(ConfigError, match="layer 3"):
        cache_specs(config, 3)
    with pytest.raises(CacheError, match="'c8'"):
        cache_specs(config, 1, rows={"c8": 2})
    with pytest.raises(CacheError, match=r"rows\['c4'\] is 0"):
        cache_specs(config, 1, rows={"c4": 0})
    with pytest.raises(CacheError, match=r"rows\['c4'\] is 1.5"):
        cache_specs(config, 1, rows={"c4": 1.5})


@pytest.mark.parametrize(
    ("preset", "layers", "index", "per_token", "window", "state"),
    [
        ("v4-flash", 43, "index_mxfp4", 3514.25, 3.07, 11.64),
        ("v4-flash", 43, "index_fp8", 3850.25, 3.07, 11.64),
        ("v4-pro", 61, "index_mxfp4", 5031.4375, 4.35, 17.84),
        ("v4-pro", 61, "index_fp8", 5511.4375, 4.35, 17.84),
    ],
)
def test_published_byte_model(preset, layers, index, per_token, window, state):
    """Rows alone give the published numbers; nothing is allocated for this."""
    config = AttentionConfig.preset(preset, index_layout=index)
    cache = PagedCache.allocate(config, range(layers), 2**20, "meta", max_requests=1)
    assert sum(cache.bytes_per_token(payload=True).values()) == per_token
    fixed = cache.bytes_per_request(payload=True)
    assert round(fixed.pop("swa") / MIB, 2) == window
    assert round(sum(fixed.values()) / MIB, 2) == state


def test_whole_pages_of_a_flash_cache():
    """Pages are rounded up to 576 bytes, which ratio 128 feels most: 1,728 bytes for 1,168."""
    config = AttentionConfig.preset("v4-flash", index_layout="index_mxfp4")
    cache = PagedCache.allocate(config, range(43), 2**20, "meta", max_requests=1)
    assert cache.bytes_per_token() == {
        "c4": 21 * 37440 / 256,
        "indexer": 21 * 4608 / 256,
        "c128": 20 * 1728 / 256,
    }
    assert {k: n for k, n in cache.pages.items() if k[0] in "ci"} == {
        "c4": 4096,
        "indexer": 4096,
        "c128": 4096,
    }
    grown = sum(4096 * s.page_bytes for s in cache.specs.values() if s.sliding is None)
    assert grown == 2**20 * sum(cache.bytes_per_token().values())
    assert cache.nbytes - grown == sum(
        cache.pages[s.group] * s.page_bytes for s in cache.specs.values() if s.sliding is not None
    )


def test_page_counts_equal_what_is_allocated():
    config = AttentionConfig.preset("tiny")
    given = {"max_requests": 3, "max_chunk": 100, "max_rollback": 4}
    cache = PagedCache.allocate(config, [0, 1, 2], 1000, "meta", **given)
    assert page_counts(config, [0, 1, 2], 1000, **given) == cache.pages
    assert {k: t.shape[0] for k, t in cache._tensors.items()} == {
        k: cache.pages[s.group] for k, s in cache.specs.items()
    }


def test_sliding_groups_do_not_grow_with_the_capacity():
    config = AttentionConfig.preset("tiny")
    small, large = (page_counts(config, [1], n, max_chunk=512) for n in (20_000, 2**20))
    assert {g for g in small if small[g] != large[g]} == {"c4", "indexer"}
