"""Pages of a fixed set of values: the numpy encoder, the library's encoder and the pinned hashes agree."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from golden_pages import CASES, PINNED, digests, inputs, name

from dsv4core.layout import get_layout
from dsv4core_conformance.reference.pages import encode_pages


def test_numpy_encoder_matches_the_pinned_hashes() -> None:
    assert digests() == json.loads(PINNED.read_text())


@pytest.mark.parametrize(("layout", "rows", "width"), CASES, ids=[name(*case) for case in CASES])
def test_library_encoder_matches_numpy_and_the_pinned_hash(layout: str, rows: int, width: int) -> None:
    values = inputs(rows, width)
    ours = get_layout(layout)
    if layout == "state_f32":
        ours = ours.sized(width // 2)
    pages = ours.encode_pages(torch.from_numpy(values)).numpy()
    expected = encode_pages(layout, values)
    assert pages.shape == expected.shape == (len(values), ours.page_bytes(rows))
    differing = np.argwhere(pages != expected)
    assert len(differing) == 0, (
        f"{len(differing)} bytes differ, first at (page, byte) {differing[0].tolist()}"
    )
    assert (
        hashlib.sha256(pages.tobytes()).hexdigest()
        == json.loads(PINNED.read_text())[name(layout, rows, width)]
    )


@pytest.mark.parametrize(
    "layout", ["fp8_ds_mla", "fp8_ds_mla_fnuz", "index_fp8", "index_fp8_ue8m0x4", "index_mxfp4"]
)
def test_no_page_holds_a_scale_that_readers_disagree_on(layout: str) -> None:
    main = layout.startswith("fp8_ds_mla")
    width = 512 if main else 128
    pages = encode_pages(layout, inputs(64, width))
    if layout == "index_fp8":
        scales = pages[:, 64 * 128 : 64 * 132].copy().view("<f4")
        assert np.isfinite(scales).all()
        assert (scales >= 2.0**-22).all()
        return
    start, per_row, used = (64 * 576, 8, 7) if main else (64 * (64 if "fp4" in layout else 128), 4, 4)
    scales = pages[:, start : start + 64 * per_row].reshape(-1, per_row)
    assert ((scales[:, :used] >= 1) & (scales[:, :used] <= 254)).all()
    assert not scales[:, used:].any()
