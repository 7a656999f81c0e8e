"""Zeroed memory for pages, in huge pages where the host has them for the asking."""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch
from torch import Tensor

HUGE_PAGE = 2 << 20


def zeroed(size: int, device: torch.device) -> Tensor:
    """Zeros. Shapes: -> u8 [size].

    Rows of a large cache are all over it, so looking up the addresses of 4 KiB pages takes 4 to 10 % of a
    decode on a CPU. Advice is all there is to give, and only Linux takes it.
    """
    if device.type != "cpu" or size < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(size, dtype=torch.uint8, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel built without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
