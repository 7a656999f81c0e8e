"""What a cache is made of: its tensors, its groups of pages, its books, and the figures about them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from dsv4core.cache.allocator import PageGroup
from dsv4core.cache.header import model_of
from dsv4core.cache.ledger import Ledger
from dsv4core.cache.rows import stage_copy
from dsv4core.cache.sizes import CacheLimits
from dsv4core.cache.specs import CacheSpec
from dsv4core.cache.steps import Copies
from dsv4core.cache.storage import LayerCache, layer_cache, shared_bytes
from dsv4core.config import AttentionConfig
from dsv4core.errors import CacheError
from dsv4core.plan.groups import GROUPS


class CacheBase:
    """Tensors, pages and books of a `PagedCache`; nothing in here changes them."""

    def __init__(
        self,
        config: AttentionConfig,
        specs: Mapping[int, list[CacheSpec]],
        tensors: Mapping[str, Tensor],
        limits: CacheLimits,
    ) -> None:
        """Use `allocate` or `from_tensors`; this takes storage that was already checked."""
        self.config = config
        self.limits = limits
        self.layers = tuple(specs)
        self.specs = {spec.key: spec for of_layer in specs.values() for spec in of_layer}
        self._tensors = dict(tensors)
        model = model_of(config)
        self._layers = {layer: layer_cache(of_layer, tensors, model) for layer, of_layer in specs.items()}
        self._shared = shared_bytes(self.specs, self._tensors)
        self._groups: dict[str, PageGroup] = {}
        for name in GROUPS:
            members = [spec for spec in self.specs.values() if spec.group == name]
            if members:
                sliding = members[0].sliding
                self._groups[name] = PageGroup(
                    name,
                    rows=members[0].rows,
                    tokens_per_row=members[0].tokens_per_row,
                    kept=None if sliding is None else sliding + limits.max_rollback,
                    pages=min(self._tensors[spec.key].shape[0] for spec in members),
                    seats=limits.max_requests,
                )
        self._ledger = Ledger(limits, config.max_position_embeddings, self._groups)

    @property
    def requests(self) -> tuple[Hashable, ...]:
        """The ids of the requests held, in the order of admission."""
        return tuple(self._ledger.requests)

    @property
    def device(self) -> torch.device:
        """Where the pages lie."""
        return next(iter(self._tensors.values())).device

    @property
    def tokens(self) -> int:
        """Tokens of all requests together."""
        return self._ledger.tokens

    @property
    def pages(self) -> dict[str, int]:
        """Pages per group, free or not."""
        return {name: group.pages for name, group in self._groups.items()}

    @property
    def free_pages(self) -> dict[str, int]:
        """Free pages per group; pages that the next `plan` gives back are not counted."""
        return {name: len(group.free) for name, group in self._groups.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all pages of all layers, as far as requests can use them."""
        return sum(self._groups[spec.group].pages * spec.page_bytes for spec in self.specs.values())

    def layer(self, index: int) -> LayerCache:
        """Return the caches of layer `index`; raise `CacheError` for a layer this cache was not made for."""
        if not isinstance(index, int) or index not in self._layers:  # pyright: ignore
            raise CacheError(
                f"layer {index!r} has no cache here: this cache was made for layers {list(self.layers)}"
            )
        return self._layers[index]

    def length(self, request_id: Hashable) -> int:
        """Return how many tokens a request has; raise `UnknownRequestError` for one that is not held."""
        return self._ledger.request(request_id).length

    def min_length(self, request_id: Hashable) -> int:
        """Return the least length `truncate` accepts now: max_rollback below the longest there has been."""
        return self._ledger.min_length(self._ledger.request(request_id))

    def bytes_per_token(self, *, payload: bool = False) -> dict[str, float]:
        """Return bytes that a token adds to each growing group, all layers together.

        With `payload` only the bytes of rows, the published byte model (584 per row, 68 or 132 per index
        key); otherwise whole pages as allocated, their rounding included.
        """
        sums: dict[str, float] = {}
        for spec in self.specs.values():
            if spec.sliding is None:
                own = (
                    spec.record_bytes / spec.tokens_per_row
                    if payload
                    else spec.page_bytes / spec.tokens_per_page
                )
                sums[spec.group] = sums.get(spec.group, 0.0) + own
        return sums

    def bytes_per_request(self, *, payload: bool = False) -> dict[str, int]:
        """Return bytes of each sliding group that a request of any length holds between steps, all layers.

        With `payload` only the rows that a next token can read; otherwise the most pages it can hold once old
        pages are given back.
        """
        sums: dict[str, int] = {}
        for spec in self.specs.values():
            if spec.sliding is not None and spec.window is not None:
                pages = -(-(spec.sliding + self.limits.max_rollback - 1) // spec.rows) + 1
                own = spec.window * spec.record_bytes if payload else pages * spec.page_bytes
                sums[spec.group] = sums.get(spec.group, 0) + own
        return sums

    def check_invariants(self) -> None:
        """Raise `CacheError` if a page has two owners or none, or tables and lengths disagree. For tests."""
        self._ledger.check()

    def _check_own_pages(self, what: str) -> None:
        if self._shared is not None:
            raise CacheError(
                f"{what}: tensors {self._shared[0]!r} and {self._shared[1]!r} share bytes, so page numbers "
                "of their groups must be handed out together: plan with your own tables, "
                "BatchPlan.build(config, tables=...)"
            )

    def _copy(self, copies: Mapping[str, Copies]) -> None:
        """Copy whole pages of groups, in every layer, to pages that nobody holds yet."""
        staged = [
            stage_copy(spec, self._tensors[spec.key], copies[spec.group])
            for spec in self.specs.values()
            if spec.group in copies
        ]
        # Only now is anything written: running out of memory above changes nothing.
        for used, target, records in staged:
            used[target] = records
