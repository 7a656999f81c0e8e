"""Frozen vectors: pages of every layout, flagged rows, index scores, and hashes of what writers write.

`manifest.json` lists every file with its sha256, the fingerprint of its layout and its flags; `python -m
dsv4core_conformance.vectors.generate` writes all of it anew from the numpy reference, and a test compares.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv4core_conformance.inputs import make

FOLDER = Path(__file__).parent


@lru_cache(maxsize=1)
def manifest() -> dict[str, Any]:
    """The manifest: "files", "flags", "rows", "pins"."""
    return json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))


def load(name: str) -> NDArray[Any]:
    """An array by its file name. Raises KeyError for an unknown file, ValueError for a changed one."""
    entry = manifest()["files"][name]
    data = (FOLDER / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise ValueError(f"{name} is not the file that manifest.json describes: its sha256 differs")
    return np.frombuffer(data, dtype=entry["dtype"]).reshape(entry["shape"]).copy()


def pinned_arguments(op: str, layout: str, options: dict[str, Any]) -> dict[str, Any]:
    """The call whose bytes are pinned: the writer's usual one, with a seed of its own."""
    return make(op, layout=layout, seed=11, **options)


def pin_name(op: str, layout: str, options: dict[str, Any]) -> str:
    """Key of a pinned hash."""
    return f"{layout}/{op}/{options.get('ratio', 4)}" if op.startswith("compress") else f"{layout}/{op}"


def pinned(op: str, layout: str, options: dict[str, Any]) -> str:
    """The pinned sha256 of the pages after that call."""
    return manifest()["pins"][pin_name(op, layout, options)]
