"""One schedule a step: layers of a kind have the same lengths, so the first one's split serves the others."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dsv4core.plan import BatchPlan


@dataclass(frozen=True)
class Shared:
    """What layers of a kind share in a step: lengths i32 [Td] of the compressed lists, or None; a schedule.

    The lengths come from the plan and not from a layer's own list: they are equal in every layer, also where
    a table has a hole, for a list is filled with -1 behind its rows.
    """

    lens: Tensor | None
    schedule: Any
    stamp: tuple[Any, ...]


class Schedules:
    """Schedules by plan, kind of layer and stream.

    One is good for as long as nothing writes to the lengths it was made from: torch counts writes to a
    tensor, and the counts are kept. Of tensors made in inference mode it counts none, and a schedule of such
    lengths serves one layer. Inside a graph the first layer of the capture makes its own, so that a
    replay computes it anew; one made outside would be as old as the capture.
    """

    def __init__(self) -> None:
        self._by_plan: WeakKeyDictionary[BatchPlan, dict[Any, Shared]] = WeakKeyDictionary()

    def get(self, plan: BatchPlan, ratio: int, width: int, heads: int, make: Callable[[], Any]) -> Shared:
        """The step's schedule for layers of a ratio, with lists of a width (0: none) and padded heads."""
        stream = torch.cuda.current_stream(plan.device) if plan.device.type == "cuda" else None
        lengths = {0: None, 4: plan.context_lens.get(4), 128: plan.c128_lens}[ratio]
        made_of = (t for t in (plan.swa_lens, lengths) if t is not None)
        versions = tuple(None if t.is_inference() else t._version for t in made_of)
        stamp = (capture_id(stream), *versions)
        known = self._by_plan.setdefault(plan, {})
        key = (ratio, width, heads, None if stream is None else stream.stream_id)
        found = known.get(key)
        if found is None or found.stamp != stamp or None in stamp:
            rows = slice(0, plan.num_decode_tokens)
            lens = None if lengths is None else lengths[rows].clamp(max=width)
            known[key] = found = Shared(lens, make(), stamp)
        return found


def capture_id(stream: torch.cuda.Stream | None) -> int | None:
    """0 outside a capture, the driver's number of the capture inside one, None where it does not say."""
    if stream is None or not torch.cuda.is_current_stream_capturing():
        return 0
    status, number = ctypes.c_int(), ctypes.c_ulonglong()
    try:
        failed = _driver().cuStreamGetCaptureInfo_v2(
            ctypes.c_void_p(stream.cuda_stream), ctypes.byref(status), ctypes.byref(number), None, None, None
        )
    except (OSError, AttributeError):
        return None
    return None if failed or not status.value else number.value


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
