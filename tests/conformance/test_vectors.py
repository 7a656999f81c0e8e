"""The frozen vectors are what the numpy reference and the library's own encoder both write."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dsv4core.layout import get_layout
from dsv4core_conformance.reference import rows
from dsv4core_conformance.reference.ca1 import hadamard
from dsv4core_conformance.reference.pages import encode_pages
from dsv4core_conformance.vectors import FOLDER, generate, load, manifest, page_set, row_set, score_set
from dsv4core_conformance.vectors.flags import FLAGS

ARRAYS = generate.arrays()


def test_the_manifest_is_what_the_generator_writes() -> None:
    assert generate.manifest(ARRAYS) == json.loads((FOLDER / "manifest.json").read_text())


@pytest.mark.parametrize("name", sorted(ARRAYS))
def test_files_are_what_the_numpy_encoder_writes(name: str) -> None:
    wanted, got = ARRAYS[name][0], load(name)
    assert got.dtype == wanted.dtype
    assert got.tobytes() == wanted.tobytes()


def test_there_are_no_other_files_and_less_than_a_megabyte() -> None:
    files = list(FOLDER.glob("*.bin"))
    assert {path.name for path in files} == set(manifest()["files"])
    assert sum(path.stat().st_size for path in [*files, FOLDER / "manifest.json"]) < 1_000_000


def test_a_changed_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(manifest()["files"]["scores_q.bin"], "sha256", "0" * 64)
    with pytest.raises(ValueError, match="sha256"):
        load("scores_q.bin")


@pytest.mark.parametrize("name", sorted(n for n, (_, about) in ARRAYS.items() if "fingerprint" in about))
def test_fingerprints_are_the_librarys(name: str) -> None:
    entry = manifest()["files"][name]
    layout = get_layout(entry["layout"])
    if entry["layout"] == "state_f32":
        layout = layout.sized(int(name.removesuffix(".bin").rpartition("x")[2]) // 2)
    assert entry["fingerprint"] == layout.fingerprint


@pytest.mark.parametrize("case", page_set.CASES, ids=lambda case: page_set.name(*case))
def test_the_librarys_encoder_writes_the_same_pages(case: tuple[str, int, int]) -> None:
    layout, rows, width = case
    values = page_set.inputs(rows, width)
    ours = get_layout(layout)
    if layout == "state_f32":
        ours = ours.sized(width // 2)
    pages = ours.encode_pages(torch.from_numpy(values)).numpy()
    expected = load(f"{page_set.name(*case)}.bin")
    assert pages.shape == expected.shape == (len(values), ours.page_bytes(rows))
    differing = np.argwhere(pages != expected)
    assert len(differing) == 0, f"{len(differing)} bytes differ, first (page, byte) {differing[0].tolist()}"


@pytest.mark.parametrize(
    "layout", ["fp8_ds_mla", "fp8_ds_mla_fnuz", "index_fp8", "index_fp8_ue8m0x4", "index_mxfp4"]
)
def test_no_page_holds_a_scale_that_readers_disagree_on(layout: str) -> None:
    main = layout.startswith("fp8_ds_mla")
    pages = encode_pages(layout, page_set.inputs(64, 512 if main else 128))
    if layout == "index_fp8":
        scales = pages[:, 64 * 128 : 64 * 132].copy().view("<f4")
        assert np.isfinite(scales).all()
        assert (scales >= 2.0**-22).all()
        return
    start, per_row, used = (64 * 576, 8, 7) if main else (64 * (64 if "fp4" in layout else 128), 4, 4)
    scales = pages[:, start : start + 64 * per_row].reshape(-1, per_row)
    assert ((scales[:, :used] >= 1) & (scales[:, :used] <= 254)).all()
    assert not scales[:, used:].any()


def test_every_flag_is_explained_and_has_a_row() -> None:
    used = {flag for row in row_set.flagged_rows() for flag in row.flags}
    assert used | {"PadNotZeroed"} == set(FLAGS)
    assert all(len(flag.meaning) > 40 and flag.catches for flag in FLAGS.values())


def test_rows_of_the_set_have_slots_of_their_own() -> None:
    slots = [row.slot for row in row_set.flagged_rows() if row.slot >= 0]
    assert len(set(slots)) == len(slots)
    assert max(slots) < row_set.ROWS * row_set.PAGES


def test_a_rotation_left_out_on_one_side_shows() -> None:
    for layout in score_set.LAYOUTS:
        made = score_set.make(layout)
        keys = rows.read(layout, made.page, np.arange(score_set.ENTRIES), score_set.ROWS)
        right, wrong = (made.q, hadamard(made.q)) if layout == "index_mxfp4" else (hadamard(made.q), made.q)
        good = score_set.exact(right, made.weights, keys)
        bad = score_set.exact(wrong, made.weights, keys)
        seen = np.isfinite(made.logits)
        assert np.array_equal(good[seen], made.logits[seen])
        assert np.abs(bad - good)[seen].max() > 0.1 * np.abs(good[seen]).max()
        assert (score_set.best(bad, made.context)[:2] != made.lists[:2]).any(axis=1).all()


def test_lists_end_inside_a_tie() -> None:
    for layout in score_set.LAYOUTS:
        made = score_set.make(layout)
        chosen = made.lists[0]
        equal = np.flatnonzero(made.logits[0] == made.logits[0, chosen].min())
        inside = np.isin(equal, chosen)
        assert inside.any()
        assert not inside.all()
        assert (np.flatnonzero(inside) == np.arange(inside.sum())).all()
