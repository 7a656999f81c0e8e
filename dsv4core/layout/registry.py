"""The layouts there are, by id."""

from __future__ import annotations

import difflib

from dsv4core.errors import LayoutError
from dsv4core.layout import fp8_ds_mla, fp8_row, index_fp8, index_mxfp4, plain
from dsv4core.layout.base import CacheLayout

_known: dict[str, CacheLayout] = {}


def register(layout: CacheLayout) -> CacheLayout:
    """Add a layout; raises LayoutError when its id is taken."""
    if layout.id in _known:
        raise LayoutError(f"layout {layout.id!r} is registered already (version {_known[layout.id].version})")
    _known[layout.id] = layout
    return layout


def get_layout(layout_id: str) -> CacheLayout:
    """The layout of an id. Raises LayoutError with the ids that exist."""
    found = _known.get(layout_id)
    if found is not None:
        return found
    close = difflib.get_close_matches(str(layout_id), _known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise LayoutError(f"layout {layout_id!r} does not exist; the layouts are {', '.join(_known)}{hint}")


def layouts() -> tuple[CacheLayout, ...]:
    """Every layout, in the order of registration."""
    return tuple(_known.values())


for _layout in (
    fp8_ds_mla.LAYOUT,
    fp8_ds_mla.LAYOUT_FNUZ,
    index_fp8.LAYOUT,
    index_fp8.LAYOUT_UE8M0X4,
    index_fp8.LAYOUT_HADAMARD_F32,
    index_mxfp4.LAYOUT,
    index_mxfp4.LAYOUT_HADAMARD,
    plain.STATE_F32,
    plain.BF16_ROW,
    fp8_row.LAYOUT,
    plain.F32_ROW,
    plain.INDEX_F32,
):
    register(_layout)
