"""Tensors between host and device with their memory around them: strides, offsets and neighbours survive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Arguments = dict[str, Any]
_VIEWS = {torch.float8_e4m3fn: torch.uint8, torch.float8_e8m0fnu: torch.uint8}


def storage_bytes(tensor: Tensor) -> Tensor:
    """All bytes of the storage behind a tensor, in place. Shapes: -> u8 [bytes]."""
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage, 0, (storage.nbytes(),))


class Moved:
    """Copies of arguments on another device; two views of one storage stay two views of one storage."""

    def __init__(self, arguments: Mapping[str, Any], device: torch.device) -> None:
        self._memory: dict[int, tuple[Tensor, Tensor]] = {}
        self.arguments: Arguments = {
            name: self._move(value, device) if isinstance(value, Tensor) else value
            for name, value in arguments.items()
        }

    def _move(self, tensor: Tensor, device: torch.device) -> Tensor:
        key = tensor.untyped_storage().data_ptr()
        if key not in self._memory:
            home = storage_bytes(tensor)
            self._memory[key] = home, home.to(device, copy=True)
        copied = self._memory[key][1].untyped_storage()
        empty = torch.empty(0, dtype=tensor.dtype, device=device)
        return empty.set_(copied, tensor.storage_offset(), tensor.shape, tensor.stride())

    def back(self) -> None:
        """Copy the memory back into the original storages."""
        for home, copied in self._memory.values():
            home.copy_(copied)


def cloned(arguments: Mapping[str, Any]) -> Arguments:
    """Arguments with memory of their own, laid out the same way."""
    return Moved(arguments, torch.device("cpu")).arguments


def to_numpy(value: Any) -> Any:
    """A host tensor as the reference reads it: bf16 as float32 of the same value, one-byte floats as bytes.

    u8, f32 and integer tensors share their memory with the result, so writes land in the tensor.
    """
    if not isinstance(value, Tensor):
        return value
    if value.dtype == torch.bfloat16:
        return value.float().numpy()
    return value.view(_VIEWS.get(value.dtype, value.dtype)).numpy()


def dtype_name(value: Any) -> str:
    """ "bf16", "f32", ... of a tensor; "" for anything else."""
    if not isinstance(value, Tensor):
        return ""
    return {torch.bfloat16: "bf16", torch.float32: "f32"}.get(value.dtype, str(value.dtype).partition(".")[2])


def bits(value: Tensor | np.ndarray) -> np.ndarray:
    """The bytes of an array, so that -0 differs from +0 and NaN equals itself. Shapes: -> u8 [bytes]."""
    array = value.contiguous().view(torch.uint8).numpy() if isinstance(value, Tensor) else value
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1)
