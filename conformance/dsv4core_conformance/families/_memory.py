"""How many bytes of tensors a call holds at once: counted on a CPU, asked of the allocator elsewhere."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts storages that were made inside and are still held; `peak` is the most at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the op and count the storages of its results that were not there before."""
        given = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs or {}))
            if isinstance(leaf, Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf, given)
        return result

    def _count(self, tensor: Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if not size or address in given or address in self._known:
            return
        self.live += size
        self.peak = max(self.peak, self.live)

        def gone() -> None:
            self._known.pop(address, None)
            self.live -= size

        self._known[address] = weakref.finalize(storage, gone)


def peak_bytes(device: torch.device, call: Callable[[], object]) -> int:
    """The most bytes of tensors that a call makes and holds at once, its results included."""
    if device.type == "cpu":
        with LiveBytes() as counter:
            result = call()
        del result
        return counter.peak
    accelerator: Any = torch.accelerator
    accelerator.synchronize()
    before = accelerator.memory_allocated(device)
    accelerator.reset_peak_memory_stats(device)
    result = call()
    accelerator.synchronize()
    del result
    return int(accelerator.max_memory_allocated(device) - before)
