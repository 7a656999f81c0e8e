"""How tensors reach a C function: addresses, strides in elements, numbers of layouts."""

from __future__ import annotations

from ctypes import CDLL, c_double, c_float, c_int, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

P, L, I, F, D = c_void_p, c_int64, c_int, c_float, c_double  # noqa: E741 - the alphabet of the signatures
LETTERS = {"p": P, "l": L, "i": I, "f": F, "d": D}
# The numbers of `enum Layout` in native/common.h.
LAYOUTS = {
    "fp8_ds_mla": 0,
    "fp8_ds_mla_fnuz": 1,
    "bf16_row": 2,
    "fp8_row": 3,
    "f32_row": 4,
    "index_fp8": 5,
    "index_fp8_ue8m0x4": 6,
    "index_fp8_hadamard_f32": 7,
    "index_mxfp4": 8,
    "index_mxfp4_hadamard": 8,
    "index_f32": 9,
}
MAIN = tuple(name for name in LAYOUTS if name.endswith("_row") or name.startswith("fp8_"))
BF16_ROWS = ("fp8_ds_mla", "fp8_ds_mla_fnuz", "bf16_row", "fp8_row")  # layouts that decode to bf16
NO_PAGES = (None, 0, 0, 1, 0)

threads = torch.get_num_threads


def function(library: CDLL, name: str, letters: str, result: Any = None) -> Any:
    """A C function; one letter per argument: p pointer, l int64, i int, f float, d double."""
    found = getattr(library, name)
    found.argtypes = [LETTERS[letter] for letter in letters.replace(" ", "")]
    found.restype = result
    return found


class Fresh:
    """Uninitialised results; large ones ask for huge pages before their first byte is written."""

    LARGE = 4 << 20

    def __init__(self, library: CDLL) -> None:
        self.advise = function(library, "dsv4_advise", "pl")

    def __call__(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A new contiguous tensor."""
        return self.settle(torch.empty(shape, dtype=dtype, device="cpu"))

    def settle(self, tensor: Tensor) -> Tensor:
        """The same for a tensor that exists and has not been written."""
        if tensor.nbytes >= self.LARGE:
            self.advise(tensor.data_ptr(), tensor.nbytes)
        return tensor


def pages(cache: Tensor, rows: int, layout: str) -> tuple[int, int, int, int, int]:
    """Address, stride, number, rows and layout: `plllli` less one, in the order of `make_pages`."""
    return cache.data_ptr(), cache.stride(0), cache.shape[0], rows, LAYOUTS[layout]
