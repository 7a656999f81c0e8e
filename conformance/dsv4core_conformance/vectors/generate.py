"""Writes the vectors: `python -m dsv4core_conformance.vectors.generate`. Needs numpy alone for every byte."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv4core.layout import get_layout
from dsv4core_conformance.hosts import bits, dtype_name, to_numpy
from dsv4core_conformance.inputs.writers import INDEX_WRITERS, MAIN_WRITERS
from dsv4core_conformance.reference.ops import REFERENCE
from dsv4core_conformance.reference.pages import encode_pages
from dsv4core_conformance.reference.rows import INDEX, MAIN
from dsv4core_conformance.vectors import FOLDER, page_set, pin_name, pinned_arguments, row_set, score_set
from dsv4core_conformance.vectors.flags import FLAGS

Arrays = dict[str, tuple[NDArray[Any], dict[str, Any]]]


def fingerprint(layout: str, width: int) -> str:
    """The library's fingerprint of a layout, which a change of meaning changes."""
    found = get_layout(layout)
    return (found.sized(width // 2) if layout == "state_f32" else found).fingerprint


def arrays() -> Arrays:
    """Every file's array and what the manifest says about it."""
    found: Arrays = {}
    for layout, rows, width in page_set.CASES:
        values = page_set.inputs(rows, width)
        source = f"inputs_{rows}x{width}.bin"
        if rows <= 12 or width == 128:
            found.setdefault(source, (values, {"of": "inputs of pages"}))
        about: dict[str, Any] = {
            "of": "pages", "layout": layout, "rows": rows, "fingerprint": fingerprint(layout, width),
            "inputs": source if source in found else f"vectors.page_set.inputs({rows}, {width})",
        }  # fmt: skip
        found[f"{page_set.name(layout, rows, width)}.bin"] = (encode_pages(layout, values), about)
    rows_ = row_set.flagged_rows()
    for name, value in row_set.arguments(rows_).items():
        kind = np.float32 if value.dtype.kind == "f" else np.int64
        found[f"rows_{name}.bin"] = (value.astype(kind), {"of": "arguments of flagged rows"})
    for layout in row_set.LAYOUTS:
        about = {"of": "canvas of flagged rows", "layout": layout, "rows": row_set.ROWS,
                 "fingerprint": fingerprint(layout, 512)}  # fmt: skip
        found[f"rows_{layout}.bin"] = (row_set.expected(layout, rows_), about)
    for layout in score_set.LAYOUTS:
        scores = score_set.make(layout)
        for name in ("q", "weights", "keys", "context"):
            found[f"scores_{name}.bin"] = (getattr(scores, name), {"of": "inputs of index scores"})
        about = {"layout": layout, "rows": score_set.ROWS, "fingerprint": fingerprint(layout, 128)}
        found[f"scores_{layout}_page.bin"] = (scores.page, {"of": "page of index scores", **about})
        found[f"scores_{layout}_logits.bin"] = (scores.logits, {"of": "index scores", **about})
        found[f"scores_{layout}_lists.bin"] = (scores.lists, {"of": "lists of the best", **about})
    return found


def pins() -> dict[str, str]:
    """sha256 of the pages that each writer writes in each layout, by the reference."""
    found: dict[str, str] = {}
    for layouts, writers in ((MAIN, MAIN_WRITERS), (INDEX, INDEX_WRITERS)):
        for layout in layouts:
            for writer in writers:
                a = pinned_arguments(writer["op"], layout, writer["options"])
                plain = {name: to_numpy(value) for name, value in a.items()}
                REFERENCE[writer["op"]](plain, {name: dtype_name(value) for name, value in a.items()})
                key = pin_name(writer["op"], layout, writer["options"])
                found[key] = hashlib.sha256(bits(plain["k_cache"])).hexdigest()
    return found


def manifest(found: Arrays) -> dict[str, Any]:
    """What `manifest.json` says about these arrays."""
    files = {
        name: {
            **about,
            "dtype": value.dtype.str,
            "shape": list(value.shape),
            "sha256": hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest(),
        }
        for name, (value, about) in sorted(found.items())
    }
    rows = [
        {"row": i, "slot": row.slot, "flags": list(row.flags), "comment": row.comment}
        for i, row in enumerate(row_set.flagged_rows())
    ]
    flags = {name: {"meaning": flag.meaning, "catches": list(flag.catches)} for name, flag in FLAGS.items()}
    return {"version": 1, "files": files, "flags": flags, "rows": rows, "pins": pins()}


def write() -> None:
    """Write every file and the manifest."""
    found = arrays()
    for name, (value, _) in found.items():
        (FOLDER / name).write_bytes(np.ascontiguousarray(value).tobytes())
    (FOLDER / "manifest.json").write_text(json.dumps(manifest(found), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
