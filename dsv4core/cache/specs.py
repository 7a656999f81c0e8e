"""What one layer's caches look like: the figures an engine needs to make room for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from dsv4core.config import AttentionConfig, LayerConfig
from dsv4core.errors import CacheError
from dsv4core.layout import CacheLayout, get_layout
from dsv4core.plan.check import whole_number
from dsv4core.plan.groups import GROUPS, SWA, groups_of_ratio

BASE_ALIGNMENT = 16
"""The address of page 0 and the distance of pages are multiples of this; kernels fetch 16 bytes at a time."""


@dataclass(frozen=True)
class CacheSpec:
    """One cache of one layer.

    `key` is `"group.layer"`. A page holds `rows` rows; a row stands for `tokens_per_row` tokens and has
    `row_width` values. `page_bytes` is the page as `PagedCache.allocate` makes it, rounded up to `alignment`;
    the first `payload_bytes` of it are used, so a page of an engine's tensor may be that short or longer.
    `dtype` is how the tensor is handed to ops: "u8" pages [N, B], or "f32" states [N, rows, row_width].
    `window` is how many of the newest tokens a next step can read and `sliding` how many are kept (before the
    allowance for rejected drafts); both are None where every row is kept.
    Source: `Cache rules` of the op contract, version 1.
    """

    key: str
    group: str
    layer: int
    layout: str
    rows: int
    row_width: int
    record_bytes: int
    payload_bytes: int
    page_bytes: int
    alignment: int
    tokens_per_row: int
    dtype: Literal["u8", "f32"]
    window: int | None
    sliding: int | None

    @property
    def tokens_per_page(self) -> int:
        """Tokens that one full page stands for."""
        return self.rows * self.tokens_per_row

    @property
    def stride(self) -> int:
        """Bytes from page to page in an allocation of our own; an engine's may be larger, in steps of 16."""
        return self.page_bytes

    @property
    def base_alignment(self) -> int:
        """Bytes that the address of page 0 and the distance of pages must be multiples of."""
        return BASE_ALIGNMENT


def cache_specs(
    config: AttentionConfig, layer: int, *, rows: Mapping[str, int] | None = None
) -> list[CacheSpec]:
    """Return the specs of every cache that layer `layer` keeps, the sliding window first.

    `rows` replaces the rows per page of groups, for engines whose pages differ from the rules.
    Errors: `ConfigError` for a layer the model does not have, `CacheError` for an unknown group or rows that
    are no whole number of at least 1.
    """
    for name, count in (rows or {}).items():
        if name not in GROUPS:
            raise CacheError(f"rows for group {name!r}: the groups are {list(GROUPS)}")
        whole_number(count, f"rows[{name!r}]", 1)
    kind = config.layer(layer)
    return [
        _spec(config, kind, name, (rows or {}).get(name, GROUPS[name].rows))
        for name in groups_of_ratio(kind.ratio)
    ]


@lru_cache(maxsize=64)
def state_layout(values: int) -> CacheLayout:
    """Return the layout of a compressor state whose rows have `values` f32 values (kv and score together)."""
    return get_layout("state_f32").sized(values // 2)


def layout_of(spec: CacheSpec) -> CacheLayout:
    """Return the layout object of a cache."""
    return state_layout(spec.row_width) if spec.dtype == "f32" else get_layout(spec.layout)


def owned_rows(spec: CacheSpec, length: int) -> tuple[int, int]:
    """Return the logical rows start:end that belong to a request of `length` tokens.

    Growing groups: every entry that `length` tokens complete. Sliding groups: the newest `spec.sliding`
    tokens. Older rows may or may not be in memory, depending on the steps taken, so they do not count.
    """
    rows = length // spec.tokens_per_row
    return (0 if spec.sliding is None else max(rows - spec.sliding, 0)), rows


def _spec(config: AttentionConfig, layer: LayerConfig, name: str, rows: int) -> CacheSpec:
    group = GROUPS[name]
    state = name.startswith("state_")
    if state:
        head_dim = config.index_head_dim if name == "state_indexer" else config.head_dim
        layout = state_layout(2 * config.state_width(layer.ratio, head_dim))
        width = layout.record_bytes // 4
    else:
        layout = get_layout(config.index_layout if name == "indexer" else config.main_layout)
        width = layout.width or 0
    window = sliding = None
    if group.sliding:
        window = config.sliding_window if name == SWA else layer.coff * layer.ratio
        sliding = max(config.sliding_window, layer.coff * layer.ratio)
    return CacheSpec(
        key=f"{name}.{layer.index}",
        group=name,
        layer=layer.index,
        layout=layout.id,
        rows=rows,
        row_width=width,
        record_bytes=layout.record_bytes,
        payload_bytes=rows * layout.record_bytes,
        page_bytes=layout.page_bytes(rows),
        alignment=layout.alignment,
        tokens_per_row=group.tokens_per_row,
        dtype="f32" if state else "u8",
        window=window,
        sliding=sliding,
    )
