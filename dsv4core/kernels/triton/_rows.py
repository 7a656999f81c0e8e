"""Memory of interpreted launches: what lies side by side is moved side by side.

Triton's interpreter computes the address of every element and moves one after another. A block of pointers
that is a column of addresses plus a row of steps (`pages[:, None] + channels`) stays in these two parts here,
and a load or a store of whole rows copies rows. Other blocks are indexed by element.
"""

from typing import Any

import numpy as np
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle


class Rows(TensorHandle):
    """Pointers in two parts: element i of a row is `steps[i]` bytes behind the row's start.

    Shapes: starts uint64 [..., 1], steps uint64 [n].
    """

    def __init__(self, starts: Any, steps: Any, dtype: Any) -> None:
        self.starts, self.steps, self.dtype, self.attr = starts, steps, dtype, {}

    @property
    def data(self) -> Any:
        """The address of every element. Shapes: -> uint64 [..., n]"""
        return self.starts + self.steps


class _Place:
    """Memory that numpy may look at as an array."""

    def __init__(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any) -> None:
        self.__array_interface__ = {
            "version": 3, "data": (address, False), "shape": shape, "strides": strides, "typestr": dtype.str
        }  # fmt: skip


def moved(pointers: Any, offset: Any, size: int) -> Any:
    """Pointers `offset` elements of `size` bytes further on."""
    step = offset.data
    if isinstance(pointers, Rows):
        if step.shape[-1] == 1 or step.strides[-1] == 0:
            return Rows(pointers.starts + _bytes(step[..., :1], size), pointers.steps, pointers.dtype)
    elif step.shape[-1] > 1 and pointers.data.strides[-1] == 0 and _is_one_row(step):
        row = step[(0,) * (step.ndim - 1)]
        return Rows(pointers.data[..., :1], _bytes(row, size), pointers.dtype)
    return TensorHandle(pointers.data + _bytes(step, size), pointers.dtype)


def _bytes(step: Any, size: int) -> Any:
    return step.astype(np.uint64) * np.uint64(size)


def _is_one_row(step: Any) -> bool:
    sizes = zip(step.shape[:-1], step.strides[:-1], strict=True)
    return all(n == 1 or stride == 0 for n, stride in sizes)


def load(pointers: Any, live: Any, other: Any, dtype: Any) -> Any:
    """Values of memory where `live`, others elsewhere; contiguous, since numpy's sums follow the order."""
    runs = _runs(pointers, live, dtype.itemsize)
    if runs is None:
        return _load_apart(*np.broadcast_arrays(pointers.data, live, other), dtype)
    rows, columns, address = runs
    windows, index = _windows(address, columns.stop - columns.start, dtype)
    if windows.shape[1] == len(pointers.steps) and rows.all():
        return windows[index].reshape(*rows.shape, -1)
    values = np.empty((*rows.shape, len(pointers.steps)), dtype)
    values[...] = other
    values[..., columns][rows] = windows[index]
    return values


def store(pointers: Any, value: Any, live: Any) -> None:
    """Write values to memory where `live`."""
    runs = _runs(pointers, live, value.itemsize)
    if runs is None:
        return interpreter._interpreter.store(*np.broadcast_arrays(pointers.data, value, live))
    rows, columns, address = runs
    windows, index = _windows(address, columns.stop - columns.start, value.dtype)
    windows[index] = np.broadcast_to(value, (*rows.shape, len(pointers.steps)))[..., columns][rows]
    return None


def _runs(pointers: Any, live: Any, size: int) -> tuple[Any, slice, Any] | None:
    """Live rows, their columns and addresses, if every row is live in the same neighbours or in none.

    Shapes: live bool [..., n or 1] -> bool [...], columns of n, uint64 [live rows].
    """
    if not isinstance(pointers, Rows) or (np.diff(pointers.steps) != size).any():
        return None
    start, width = pointers.starts[..., 0], len(pointers.steps)
    columns, rows = slice(0, width), np.ones((1,) * start.ndim, bool)
    if not live.all():
        found = np.broadcast_to(live, (*live.shape[:-1], width))
        used = found.any(axis=tuple(range(live.ndim - 1))).nonzero()[0]
        if not len(used):
            return None
        columns = slice(int(used[0]), int(used[-1]) + 1)
        rows = found[..., columns].any(-1)
        if (rows != found[..., columns].all(-1)).any():
            return None
    shape = np.broadcast_shapes(start.shape, live.shape[:-1])
    rows = np.broadcast_to(rows, shape)
    address = np.broadcast_to(start, shape)[rows] + pointers.steps[columns.start]
    if ((address - address[0]) % np.uint64(size)).any():
        return None
    return rows, columns, address


def _windows(address: Any, width: int, dtype: Any) -> tuple[Any, Any]:
    """All runs of `width` values from the lowest address on, and which of them begin at `address`."""
    first, size = int(address.min()), dtype.itemsize
    index = ((address - np.uint64(first)) // np.uint64(size)).astype(np.int64)
    return np.asarray(_Place(first, (int(index.max()) + 1, width), (size, size), dtype)), index


def _load_apart(place: Any, live: Any, other: Any, dtype: Any) -> Any:
    """The same by element: one indexing of what lies between the outer addresses."""
    if not live.any():
        return np.array(other, dtype, order="C")
    every = live.all()
    if not every:
        place = np.where(live, place, place[np.unravel_index(live.argmax(), live.shape)])
    first, last = int(place.min()), int(place.max())
    offset = np.subtract(place, np.uint64(first), order="C")
    if int(np.bitwise_or.reduce(offset, axis=None)) % dtype.itemsize:
        return interpreter._interpreter.load(place, live, other, dtype)
    offset //= np.uint64(dtype.itemsize)
    count = (last - first) // dtype.itemsize + 1
    values = np.asarray(_Place(first, (count,), (dtype.itemsize,), dtype)).take(offset.view(np.int64))
    if not every:
        np.copyto(values, other, where=~live)
    return values
