"""Cache layouts: what a page of bytes is, as versioned objects with a fingerprint.

layout = get_layout("fp8_ds_mla")
pages = layout.encode_pages(values)  # [N, 64, 512] -> u8 [N, 37440]
wider = transcode(pages, "fp8_ds_mla", "bf16_row", rows=64)
"""

from __future__ import annotations

from dsv4core.layout._transcode import Conversion, conversion, transcode
from dsv4core.layout.base import CacheLayout
from dsv4core.layout.geometry import CacheField, PageGeometry, Span
from dsv4core.layout.registry import get_layout, layouts, register

__all__ = [
    "CacheField",
    "CacheLayout",
    "Conversion",
    "PageGeometry",
    "Span",
    "conversion",
    "get_layout",
    "layouts",
    "register",
    "transcode",
]
