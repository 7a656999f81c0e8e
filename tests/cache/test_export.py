"""Exports: into caches of other geometry and on, and refused where they do not fit."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from export_tools import exported, grow, made
from request_world import OTHER_ROWS, History, assert_bytes, books, content, unchanged

from dsv4core.cache import RequestExport
from dsv4core.cache.header import MODEL_FIELDS, YARN_FIELDS, ExportHeader
from dsv4core.config import AttentionConfig
from dsv4core.errors import CacheError, OutOfPagesError


@pytest.mark.parametrize("length", [0, 1, 3, 4, 127, 128, 129, 136, 255, 256, 259, 500])
@pytest.mark.parametrize(
    "rows", [None, OTHER_ROWS, dict.fromkeys(OTHER_ROWS, 1), dict.fromkeys(OTHER_ROWS, 97)]
)
def test_into_other_geometry_and_on(length, rows):
    source, histories = made(length or 1)
    if not length:
        source.truncate("a", 0)
        del histories["a"].hashes[:]
    data = source.export("a").to_bytes()
    target, others = made(0, rows=rows, max_rollback=3)
    grow(target, others, {"b": 70}, token=9)
    target.import_(RequestExport.from_bytes(data), "c")
    others["c"] = History(histories["a"].hashes)
    for n in (1, 5, 60):
        grow(target, others, {"c": n}, token=n)
        grow(source, histories, {"a": n}, token=n)
        for request, history in others.items():
            assert_bytes(target, request, history)
    assert_bytes(source, "a", histories["a"])
    assert target.digest("c") == source.digest("a") or rows is not None
    assert target.export("c").nbytes > 0 and target.export("c").length == length + 66
    target.check_invariants()


@pytest.mark.parametrize("profile", ["vllm", "math"])
def test_every_profile(profile):
    config = AttentionConfig.preset("tiny", profile=profile)
    cache, histories = made(140, config)
    other, _ = made(0, config)
    other.import_(cache.export("a"), "a")
    assert other.digest("a") == cache.digest("a")
    assert_bytes(other, "a", histories["a"])


def test_a_cache_of_some_layers_takes_what_it_needs():
    export = exported()
    for layers in ([0], [1], [2], [0, 2]):
        target, _ = made(0, layers=layers)
        target.import_(export, "a")
        assert_bytes(target, "a", made(300)[1]["a"])
    partial, _ = made(20, layers=[0, 1])
    whole, _ = made(30)
    before = books(whole), content(whole)
    with pytest.raises(CacheError, match=r"got none of \['swa.2', 'state_c128.2', 'c128.2'\]|got none of"):
        whole.import_(partial.export("a"), "b")
    assert unchanged(whole, before)


def test_a_prefix_of_a_request():
    cache, histories = made(500)
    for length in (128, 256, 300, 499):
        target, others = made(0)
        target.import_(cache.export("a", length=length), "a")
        others["a"] = History(histories["a"].hashes[:length])
        grow(target, others, {"a": 9})
        assert_bytes(target, "a", others["a"])
    cache.free("a")


def test_what_an_import_can_be_truncated_to():
    target, others = made(0)
    target.import_(exported(), "a")
    assert (target.min_length("a"), target.resume_range("a")) == (300, (300, 300))
    with pytest.raises(CacheError, match="forked or imported"):
        target.truncate("a", 299)
    others["a"] = History(made(300)[1]["a"].hashes)
    grow(target, others, {"a": 5})
    target.truncate("a", 300)
    del others["a"].hashes[300:]
    grow(target, others, {"a": 20}, token=3)
    assert target.min_length("a") == 312
    assert_bytes(target, "a", others["a"])
    target.import_(exported(128), "b")
    assert target.min_length("b") == 120  # all its tokens are there


def test_equal_requests_have_equal_exports():
    cache, histories = made(0)
    for n in (1, 5, 200, 94):
        grow(cache, histories, {"a": n}, token=1 + len(histories.get("a", ())))
    grow(cache, histories, {"z": 40})
    straight, _ = made(300)
    assert cache.export("a").to_bytes() == straight.export("a").to_bytes() == exported().to_bytes()
    assert cache.export("a").checksum == exported().checksum
    assert cache.export("z").checksum != exported().checksum
    assert exported().layers == (0, 1, 2) and exported().profile == "vllm"


@pytest.mark.parametrize("length", [0, 1, 130, 300, 520])
def test_sizes_of_what_is_kept(length):
    cache, _ = made(max(length, 1))
    if not length:
        cache.truncate("a", 0)
    export = cache.export("a")
    assert sum(cache.resume_bytes(length).values()) == export.nbytes
    assert export.nbytes == sum(pages.numel() for pages in export.pages.values())
    head = 16 + 32 + len(export.header.to_json())
    assert len(export.to_bytes()) == export.nbytes + head and head < 6000


def test_it_is_a_copy():
    cache, histories = made(140)
    export = cache.export("a")
    grow(cache, histories, {"a": 100})
    export.verify()
    other = RequestExport.from_bytes(bytearray(export.to_bytes()))
    for page in export.pages.values():
        page.zero_()
    other.verify()
    with pytest.raises(CacheError, match="expected sha256"):
        export.verify()
    with pytest.raises(CacheError, match="expected sha256"):
        export.to_bytes()


def refused(target, export, match, request="b", error=CacheError):
    before = books(target), content(target)
    with pytest.raises(error, match=match) as caught:
        target.import_(export, request)
    assert unchanged(target, before)
    return caught.value


def with_header(export, **changes):
    return RequestExport(ExportHeader(**{**dict(export.header), **changes}), export.pages)


def with_blob(export, key, **changes):
    """An export whose blob says something else; a layout that is not ours cannot even be built."""
    blobs = tuple(
        blob.model_copy(update=changes) if blob.key == key else blob for blob in export.header.blobs
    )
    return RequestExport(export.header.model_copy(update={"blobs": blobs}), export.pages)


def test_wrong_model_or_profile():
    target, _ = made(50)
    refused(target, with_header(exported(), profile="math"), "profile: expected 'vllm', got 'math'")
    model = dict(exported().header.model)
    assert sorted(model) == sorted([*MODEL_FIELDS, *(f"yarn_{name}" for name in YARN_FIELDS)])
    for name, value in model.items():
        wrong = with_header(exported(), model={**model, name: value * 2})
        refused(target, wrong, rf"import_\('b'\): {name}: expected {value}, got {value * 2}")
        refused(
            target,
            with_header(exported(), model={n: v for n, v in model.items() if n != name}),
            "model fields",
        )
    refused(target, with_header(exported(), model={**model, "more": 1}), "model fields: expected")
    no_yarn, _ = made(20, AttentionConfig.preset("tiny", yarn=None))
    refused(target, no_yarn.export("a"), "yarn_factor: expected 16.0, got None")


def test_wrong_layout_fingerprint_version_length():
    target, _ = made(50)
    changes = {
        "fingerprint": "0123456789ab",
        "version": 2,
        "layout": "index_mxfp4",
        "ratio": 128,
        "start": 5,
        "end": 74,
        "row_values": 64,
    }
    for name, value in changes.items():
        refused(
            target,
            with_blob(exported(), "indexer.1", **{name: value}),
            rf"blob 'indexer.1': {name}: expected .*got '?{value}",
        )
    mxfp4, _ = made(20, AttentionConfig.preset("tiny", index_layout="index_mxfp4"))
    refused(target, mxfp4.export("a"), "blob 'indexer.1': layout: expected 'index_fp8', got 'index_mxfp4'")
    refused(
        target,
        with_header_length(exported(), 299),
        "expected 299|expected 171|rows up to|start: expected 171, got 172",
    )


def with_header_length(export, length):
    return RequestExport(export.header.model_copy(update={"length": length}), export.pages)


def test_wrong_pages():
    target, _ = made(50)
    export = exported()
    for key, pages in export.pages.items():
        changed = pages.clone()
        changed[-1, 3] ^= 1
        refused(
            target, RequestExport(export.header, {**export.pages, key: changed}), f"'{key}': expected sha256"
        )
        for wrong in (pages[:-1], pages[:, :-1], pages.to(torch.int32), pages[0]):
            refused(
                target, RequestExport(export.header, {**export.pages, key: wrong}), f"'{key}': expected pages"
            )
        rest = {k: v for k, v in export.pages.items() if k != key}
        refused(target, RequestExport(export.header, rest), "expected pages of")
    refused(target, export.to_bytes(), "expected a RequestExport, got bytes")


def test_no_room():
    target, _ = made(50)
    refused(target, exported(), "'a' is held already", request="a")
    refused(target, exported(), "hashable", request=["b"])
    full, _ = made(500)
    refused(full, exported(), "bring at most 200 tokens", error=OutOfPagesError)
    crowd, histories = made(0, max_requests=1)
    grow(crowd, histories, {"x": 1})
    refused(crowd, exported(), "max_requests=1", error=OutOfPagesError)
    short, _ = made(0, AttentionConfig.preset("tiny", max_position_embeddings=200))
    refused(short, exported(), "200 positions")


def test_exports_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        exported().pages = {}
