"""Where a backend puts its own conversion of whole pages: `transcode` asks it before it computes in torch.

The core imports no backend. The CPU backend registers itself when it is created (`get_backend("cpu")`, any
layer); until then, and on devices without an entry, `transcode` does everything in torch. The bytes and the
errors are the same either way.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from dsv4core.layout.base import CacheLayout


class Convert(Protocol):
    """A conversion of pages in place of the torch one."""

    def __call__(
        self, source: Tensor, a: CacheLayout, rows: int, out: Tensor, b: CacheLayout, out_rows: int, step: int
    ) -> list[int] | None:
        """Fill the rows of `out` from `source`.

        Returns the first page of every chunk of `step` source pages that it leaves to torch, in order: a row
        there has bytes that it does not cover, and whatever it wrote is written again. None leaves all pages.
        Never raises for the contents of a page: what is refused, and how, is decided in one place.
        """
        ...


_known: dict[str, Convert] = {}


def register(device_type: str, convert: Convert | None) -> None:
    """Use `convert` for pages on devices of this type from now on; None for torch."""
    if convert is None:
        _known.pop(device_type, None)
    else:
        _known[device_type] = convert


def find(device_type: str) -> Convert | None:
    """The conversion of a device type, if it has one."""
    return _known.get(device_type)
