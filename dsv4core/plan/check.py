"""What a plan may be built from: host checks that need no tensor value."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from dsv4core.config import AttentionConfig
from dsv4core.errors import CacheError
from dsv4core.plan.groups import GROUPS, RATIOS, SWA, groups_of_ratio

MAX_PADDED = 2**22
"""The most rows that `pad_to` pads a step to: a window list of them alone takes 2 GiB."""


def whole_number(value: object, what: str, least: int, most: int | None = None) -> int:
    """Return `value` as an int from `least` to `most`; raise `CacheError` naming `what` otherwise."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise CacheError(f"{what} is {value!r}: a whole number of at least {least} is needed") from None
    if number < least:
        raise CacheError(f"{what} is {number}: a whole number of at least {least} is needed")
    if most is not None and number > most:
        raise CacheError(f"{what} is {number}: at most {most} is possible; give a smaller one")
    return number


def check_lengths(
    config: AttentionConfig, query_lens: Sequence[int], seq_lens: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return both lists as plain ints; raise `CacheError` where they contradict each other or the model."""
    for name, given in (("query_lens", query_lens), ("seq_lens", seq_lens)):
        if not isinstance(given, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise CacheError(f"{name} is {given!r}: pass a list with one number per request")
    queries = [whole_number(n, f"query_lens[{i}]", 0) for i, n in enumerate(query_lens)]
    lengths = [whole_number(n, f"seq_lens[{i}]", 0) for i, n in enumerate(seq_lens)]
    if len(queries) != len(lengths):
        raise CacheError(
            f"query_lens has {len(queries)} requests and seq_lens {len(lengths)}: give one number per "
            "request in both"
        )
    for i, (n, length) in enumerate(zip(queries, lengths, strict=True)):
        if n > length:
            raise CacheError(
                f"request {i} brings {n} new tokens but its seq_len is {length}: seq_lens counts the tokens "
                "after this step, so it is at least query_lens"
            )
        if length > config.max_position_embeddings:
            raise CacheError(
                f"request {i} would have {length} tokens; the model has {config.max_position_embeddings} "
                "positions (max_position_embeddings): end the request or shorten it"
            )
    return queries, lengths


def check_tables(
    tables: Mapping[str, Tensor], rows: Mapping[str, int] | None, lengths: Sequence[int]
) -> dict[str, int]:
    """Return the rows per page of every group; raise `CacheError` for tables that cannot serve `lengths`."""
    for what, given in (("tables", tables), ("rows", rows or {})):
        if not isinstance(given, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise CacheError(f"{what} is a {type(given).__name__}: pass a mapping by name of a group")
    needed = {SWA}
    for ratio in RATIOS:
        own = {name for name in groups_of_ratio(ratio) if GROUPS[name].ratio == ratio}
        if own & tables.keys():
            needed |= own
    missing, unknown = (
        sorted(needed - tables.keys()),
        sorted((tables.keys() | (rows or {}).keys()) - GROUPS.keys()),
    )
    if missing or unknown:
        raise CacheError(
            f"a plan needs tables for {sorted(needed)}; missing {missing}, unknown in tables or rows "
            f"{unknown}: the groups are {list(GROUPS)}, swa is always needed and those of one ratio go "
            "together"
        )
    for name, table in tables.items():
        if not isinstance(table, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise CacheError(
                f"tables[{name!r}] is a {type(table).__name__}: a page table is torch.int32 [R, W]"
            )
    sizes: dict[str, int] = {}
    devices = {table.device for table in tables.values()}
    if len(devices) > 1:
        raise CacheError(f"the tables lie on {sorted(map(str, devices))}: move them to one device")
    longest = max(lengths, default=0)
    for name, table in tables.items():
        group = GROUPS[name]
        size = whole_number((rows or {}).get(name, group.rows), f"rows[{name!r}]", 1)
        sizes[name] = size
        if table.dtype != torch.int32 or table.dim() != 2:
            raise CacheError(
                f"tables[{name!r}] is {table.dtype} of shape {list(table.shape)}: a page table is "
                "torch.int32 [R, W]"
            )
        if table.shape[0] != len(lengths) and not (not lengths and table.shape[0] == 1):
            raise CacheError(
                f"tables[{name!r}] has {table.shape[0]} rows for {len(lengths)} requests: give one each"
            )
        pages = -(-(longest // group.tokens_per_row) // size)
        if table.shape[1] < pages:
            raise CacheError(
                f"tables[{name!r}] has {table.shape[1]} pages of {size} rows; a request of {longest} tokens "
                f"needs {pages}: pass a table of shape [{len(lengths)}, {pages}] or wider"
            )
    return sizes
