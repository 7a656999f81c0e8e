"""Random draws that are the same everywhere, and the patterns of lists, lengths and sinks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsv4core_conformance.inputs.hashed import Draws
from dsv4core_conformance.inputs.pages import Place, raw_pages
from dsv4core_conformance.reference.quant import to_bf16

Sink = str | Sequence[float]
Lens = str | int | Sequence[int]
LARGE = 0x5A5A5A5A  # what uninitialised index memory may hold: an index far behind everything
TYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


def activation(values: NDArray[np.floating], act: str = "bf16") -> Tensor:
    """A tensor of the nearest bf16 values, or of the float32 ones in profile `math`.

    Shapes: any
    """
    rounded = to_bf16(values.astype(np.float64)) if act == "bf16" else values
    return torch.from_numpy(np.asarray(rounded, dtype=np.float32)).to(TYPES[act])


def i32(values: NDArray[np.integer] | Sequence[int]) -> Tensor:
    """A tensor of 32-bit integers."""
    return torch.from_numpy(np.array(values, dtype=np.int32))


def lengths(lens: Lens, tokens: int, width: int, rng: Draws) -> NDArray[np.int64]:
    """Lengths up to `width`: "random" (from 1 on), "full", "short" (0..2), "mixed", a number, or a list.

    Shapes: -> i64 [tokens]
    """
    if isinstance(lens, str):
        low, high = {"random": (1, width), "full": (width, width), "short": (0, 2), "mixed": (0, width)}[lens]
        return rng.integers(min(low, width), min(high, width) + 1, tokens)
    return np.broadcast_to(np.asarray(lens, dtype=np.int64), (tokens,)).copy()


def punch(listed: NDArray[np.int64], holes: str | float, rng: Draws) -> None:
    """Make entries of a list negative: a share of them, or "leading", "middle", "trailing", "block", "all".

    Shapes: i64 [T, K], changed in place
    """
    width = listed.shape[1]
    if isinstance(holes, str):
        spans = {
            "leading": slice(0, (width + 1) // 2),
            "middle": slice(width // 4, -(-3 * width // 4)),
            "trailing": slice(width // 2, None),
            "block": slice(0, 64),
            "all": slice(None),
        }
        listed[:, spans[holes]] = -1
    elif holes:
        where = rng.random(listed.shape) < holes
        listed[where] = rng.choice([-1, -2, -9, -(2**31)], int(where.sum()))


def sinks(sink: Sink, heads: int) -> Tensor:
    """Sinks: "none" (-inf), "zero", "five", "distinct" (0..7, one per head), "plus_inf", or numbers.

    Shapes: -> f32 [heads]
    """
    named = {"none": -np.inf, "zero": 0.0, "five": 5.0, "plus_inf": np.inf}
    if isinstance(sink, str) and sink != "distinct":
        values = np.full(heads, named[sink])
    elif isinstance(sink, str):
        values = (np.arange(heads) * 0.618034) % 1.0 * 7.0  # spread over 0..7, neighbours far apart
    else:
        values = np.asarray(sink, dtype=np.float64)
    return torch.from_numpy(values.astype(np.float32))


def placed(pages: NDArray[np.uint8], place: Place | None = None) -> Tensor:
    """Pages inside a storage of poison, as `pages.raw_pages` lays them out.

    Shapes: u8 [N, B] -> u8 [N, B] with a free stride(0)
    """
    view = raw_pages(pages.shape[0], pages.shape[1], place)
    view.copy_(torch.from_numpy(pages))
    return view
