"""`dsv4core.layout.transcode` on the native library: what it asks for memory in this process's reach."""

from __future__ import annotations

from ctypes import c_int

from torch import Tensor

from dsv4core.layout import CacheLayout, get_layout, native_pages
from dsv4core_cpu.native import Native
from dsv4core_cpu.ops._call import LAYOUTS, function, pages, threads


def converter(native: Native) -> native_pages.Convert:
    """The conversion of a library, for `native_pages.register`."""
    copy = function(native.library, "dsv4_copy_pages", "plll pll iii")
    run = function(native.library, "dsv4_transcode", "pllli pllli ilpi", c_int)

    def convert(
        source: Tensor, a: CacheLayout, rows: int, out: Tensor, b: CacheLayout, out_rows: int, step: int
    ) -> list[int] | None:
        """`native_pages.Convert`."""
        # Subclasses may have no memory of their own; pages that overlap have no order here.
        if type(source) is not Tensor or type(out) is not Tensor or out.device != source.device:
            return None
        if out.shape[0] > 1 and out.stride(0) < out_rows * b.record_bytes:
            return None
        if a.id == b.id:
            copy(
                source.data_ptr(), source.stride(0), source.shape[0], rows, out.data_ptr(), out.stride(0),
                out_rows, a.row_bytes, a.tail_bytes, threads(),
            )  # fmt: skip
            return []
        if not (_known(a) and _known(b)):
            return None
        left = source.new_zeros(-(-source.shape[0] // step))
        turn = int(a.rotate != b.rotate)
        if run(
            *pages(source, rows, a.id), *pages(out, out_rows, b.id), turn, step, left.data_ptr(), threads()
        ):
            return None
        return [step * int(chunk) for chunk in left.nonzero()] if bool(left.any()) else []

    return convert


def _known(layout: CacheLayout) -> bool:
    """Whether this is the layout that the kernels were written for."""
    return layout.id in LAYOUTS and get_layout(layout.id) is layout
