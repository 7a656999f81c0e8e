"""One safetensors file: what is in it, and single tensors read into memory of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dsv4core.errors import WeightsError
from dsv4core.parallel import Part

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
CHUNK = 8 << 20
HEADER = 8  # bytes of the header's length in front of it


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in its file, and what it is."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int

    def read_size(self, part: Part | None) -> int:
        """Bytes of a part of the tensor, or of all of it."""
        rows, columns = self._extent(part)
        return rows * columns * self.dtype.itemsize

    def spans(self, part: Part | None) -> Iterator[tuple[int, int]]:
        """Places in the file and lengths, in bytes, of what is read: one, or one per row."""
        width, item = self.size // max(self.shape[0], 1) if self.shape else self.size, self.dtype.itemsize
        if part is None:
            yield self.start, self.size
        elif part.columns is None or (part.columns[1] - part.columns[0]) * item == width:
            yield self.start + part.rows[0] * width, (part.rows[1] - part.rows[0]) * width
        else:
            first, last = part.columns
            for row in range(*part.rows):
                yield self.start + row * width + first * item, (last - first) * item

    def read_shape(self, part: Part | None) -> tuple[int, ...]:
        """Shape of a part of the tensor, or of all of it."""
        return self.shape if part is None else self._extent(part)[: len(self.shape)]

    def _extent(self, part: Part | None) -> tuple[int, int]:
        if part is None:
            return self.size // self.dtype.itemsize, 1
        columns = (0, 1) if part.columns is None else part.columns
        return part.rows[1] - part.rows[0], columns[1] - columns[0]

    def meta(self) -> Tensor:
        """The tensor without its values, to be checked before anything is read."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


class Shard:
    """A file, opened and validated by safetensors; raises WeightsError naming it when it is not one.

    Tensors are read instead of mapped: a mapped file that is cut off or replaced later ends the process with
    a signal, and a progress bar over page faults says nothing. Both take the layer's size in memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(str(path), framework="pt"):  # checks lengths, offsets, overlaps and shapes
                pass
            with path.open("rb") as file:
                length = int.from_bytes(file.read(HEADER), "little")
                header: dict[str, Any] = json.loads(file.read(length))
        except (OSError, SafetensorError, ValueError) as error:
            raise WeightsError(f"{path} cannot be read as safetensors: {error}") from None
        header.pop("__metadata__", None)
        self._data = HEADER + length
        self._header: Mapping[str, Any] = header

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors in the file."""
        return tuple(self._header)

    def entry(self, name: str) -> Entry:
        """What a tensor is. Raises WeightsError when the file lacks it or torch has no such type."""
        info = self._header.get(name)
        if info is None:
            raise WeightsError(f"{self.path} has no tensor {name!r}; it holds {len(self._header)} others")
        if info["dtype"] not in DTYPES:
            raise WeightsError(
                f"{self.path}: {name} is {info['dtype']}; expected BF16, F32, or F8_E4M3, U8 and I8 with"
                " scales"
            )
        start, stop = info["data_offsets"]
        return Entry(DTYPES[info["dtype"]], tuple(info["shape"]), self._data + start, stop - start)

    def read(self, name: str, report: Callable[[int], None], part: Part | None = None) -> Tensor:
        """The tensor, or only the bytes of a part of it; `report` gets the bytes of every piece.

        Raises WeightsError for a short file.
        """
        entry = self.entry(name)
        shape, size = entry.read_shape(part), entry.read_size(part)
        if size == 0:
            return torch.empty(shape, dtype=entry.dtype, device="cpu")
        buffer = bytearray(size)
        view, done = memoryview(buffer), 0
        try:
            with self.path.open("rb", buffering=0) as file:
                for start, length in entry.spans(part):
                    file.seek(start)
                    stop = done + length
                    while done < stop:
                        got = file.readinto(view[done : min(done + CHUNK, stop)])
                        if not got:
                            raise WeightsError(f"{self.path} ends inside {name}: {done} of {size} bytes")
                        done += got
                        report(got)
        except OSError as error:
            raise WeightsError(f"{self.path}: {name} cannot be read: {error}") from None
        return torch.frombuffer(buffer, dtype=torch.uint8).view(entry.dtype).view(shape)
