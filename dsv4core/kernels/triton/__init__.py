"""Portable Triton kernels, one op a file.

They are the XPU backend, the base of ROCm's, and CUDA's where no library reaches. Importing a module here
imports triton; this one does when `implementations` is called. `TRITON_INTERPRET=1` must be in the
environment before that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsv4core.errors import BackendUnavailableError

if TYPE_CHECKING:
    from dsv4core.ops import OpImpl

LAYOUTS = (
    "fp8_ds_mla",
    "fp8_ds_mla_fnuz",
    "index_fp8",
    "index_fp8_ue8m0x4",
    "index_fp8_hadamard_f32",
    "index_mxfp4",
    "index_mxfp4_hadamard",
    "state_f32",
    "bf16_row",
    "fp8_row",
)
"""Cache layouts that the kernels read and write, on every device."""


def implementations(backend: str) -> dict[str, OpImpl]:
    """Every op for a backend: `portable.implementations`. Raises BackendUnavailableError without triton."""
    try:
        from dsv4core.kernels.triton import portable
    except ImportError as error:
        raise BackendUnavailableError(f"backend {backend}: its kernels need triton: {error}") from error
    return portable.implementations()
