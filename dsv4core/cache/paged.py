"""The paged cache: lengths and pages of requests, over the tensors of some layers."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from dsv4core.cache.allocator import PageGroup
from dsv4core.cache.ledger import Ledger
from dsv4core.cache.sizes import CacheLimits, counts_for, default_chunk
from dsv4core.cache.snapshot import copy_pages, sha256
from dsv4core.cache.specs import CacheSpec, cache_specs
from dsv4core.cache.storage import LayerCache, adopt_storage, layer_cache, new_storage, shared_bytes
from dsv4core.config import AttentionConfig
from dsv4core.errors import CacheError
from dsv4core.plan.batch import BatchPlan
from dsv4core.plan.check import whole_number
from dsv4core.plan.groups import GROUPS


class PagedCache:
    """Paged caches of some layers, shared by many requests. Not thread-safe.

    `plan` admits requests, finds pages and advances lengths; it either does all of that or raises and changes
    nothing. Old pages of sliding groups are given back at the start of the next `plan`, because the step that
    was planned last still reads them. A method that raises has changed nothing.
    """

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
        self._layers = {layer: layer_cache(of_layer, tensors) for layer, of_layer in specs.items()}
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

    @classmethod
    def allocate(
        cls,
        config: AttentionConfig,
        layers: Iterable[int],
        capacity_tokens: int,
        device: torch.device | str = "cpu",
        *,
        max_requests: int = 16,
        max_chunk: int | None = None,
        max_rollback: int = 8,
        rows: Mapping[str, int] | None = None,
    ) -> PagedCache:
        """Make zeroed caches that never run out of pages within these limits (`CacheLimits`).

        `max_chunk` defaults to the capacity, at most 2,048 tokens: compressor states of a whole step are
        kept, which is 10 KiB per token of a ratio-4 layer. `rows` replaces the rows per page of groups.
        Errors: `CacheError` for a limit that is no whole number or no layer, `ConfigError` for a layer that
        is not there.
        """
        capacity = whole_number(capacity_tokens, "capacity_tokens", 1)
        limits = CacheLimits(capacity, max_requests, default_chunk(capacity, max_chunk), max_rollback)
        specs = _specs_of(config, layers, rows)
        flat = [spec for of_layer in specs.values() for spec in of_layer]
        counts = counts_for(flat, limits)
        where = torch.device(device)
        return cls(
            config, specs, {spec.key: new_storage(spec, counts[spec.group], where) for spec in flat}, limits
        )

    @classmethod
    def from_tensors(
        cls,
        config: AttentionConfig,
        tensors: Mapping[str, Tensor],
        *,
        capacity_tokens: int | None = None,
        max_requests: int = 16,
        max_chunk: int | None = None,
        max_rollback: int = 8,
        rows: Mapping[str, int] | None = None,
    ) -> PagedCache:
        """Build a cache on an engine's tensors, by `CacheSpec.key`, without copying or clearing them.

        Several layers may share one allocation, each with its own bytes of every page. If groups share bytes,
        which is legal for an engine that hands out pages itself, `plan` refuses: use `BatchPlan.build` with
        its tables. Without `capacity_tokens` and `max_chunk` only the pages there are set the limit.

        Shapes: byte caches u8 [N, B], states u8 [N, B] or f32 [N, rows, 2W]; N may differ, a group has the
        fewest.
        Errors: `CacheError` for a missing or unknown key, or a tensor whose type, shape, stride, alignment or
        device does not fit.
        """
        limits = CacheLimits(capacity_tokens, max_requests, max_chunk, max_rollback)
        specs = _specs_of(config, _layers_of(tensors), rows)
        flat = {spec.key: spec for of_layer in specs.values() for spec in of_layer}
        missing, unknown = sorted(flat.keys() - tensors.keys()), sorted(tensors.keys() - flat.keys())
        if missing or unknown:
            raise CacheError(
                f"tensors for layers {sorted(specs)}: missing {missing}, not of these layers {unknown}; "
                f"`cache_specs(config, layer)` lists the keys of a layer"
            )
        devices = sorted({str(tensor.device) for tensor in tensors.values()})
        if len(devices) > 1:
            raise CacheError(f"the tensors lie on {devices}: the caches of one PagedCache lie on one device")
        adopted = {key: adopt_storage(spec, tensors[key]) for key, spec in flat.items()}
        pair = shared_bytes(flat, adopted)
        if pair is not None and flat[pair[0]].group == flat[pair[1]].group:
            raise CacheError(
                f"tensors {pair[0]!r} and {pair[1]!r} share bytes: layers of a group use the same page "
                "numbers, so each needs its own bytes of a page, for example columns of one wide allocation"
            )
        return cls(config, specs, adopted, limits)

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
        if index not in self._layers:
            raise CacheError(
                f"layer {index} has no cache here: this cache was made for layers {list(self.layers)}"
            )
        return self._layers[index]

    def length(self, request_id: Hashable) -> int:
        """Return how many tokens a request has; raise `UnknownRequestError` for one that is not held."""
        return self._ledger.request(request_id).length

    def min_length(self, request_id: Hashable) -> int:
        """Return the least length `truncate` accepts now: max_rollback below the longest there has been."""
        return self._ledger.min_length(self._ledger.request(request_id))

    def plan(self, new_tokens: Mapping[Any, int], *, pad_to: int | None = None) -> BatchPlan:
        """Plan a step of `new_tokens[id]` new tokens per request and advance the lengths: there is no commit.

        Ids that are not held are admitted. Hidden rows follow the order of the mapping; `pad_to` appends
        padding rows. Old pages of sliding groups are given back first. An empty mapping is legal and plans no
        token.
        Errors: `OutOfPagesError` if it does not fit now (pages, capacity_tokens, max_requests), `CacheError`
        if it never will (no whole number of at least 1, more than max_chunk, past the model's positions,
        pad_to too small). Either way nothing has changed, old pages included.
        """
        if self._shared is not None:
            raise CacheError(
                f"plan: tensors {self._shared[0]!r} and {self._shared[1]!r} share bytes, so page numbers of "
                "their groups must be handed out together: plan with your own tables, "
                "BatchPlan.build(config, tables=...)"
            )
        step = self._ledger.prepare(new_tokens)
        plan = BatchPlan.build(
            self.config,
            query_lens=list(step.new.values()),
            seq_lens=list(step.after.values()),
            tables=self._ledger.tables(step),
            rows={name: group.rows for name, group in self._groups.items()},
            pad_to=pad_to,
            device=self.device,
        )
        self._ledger.commit(step)
        return plan

    def truncate(self, request_id: Hashable, length: int) -> None:
        """Forget the newest tokens of a request, such as rejected drafts, and give back pages not reached.

        Legal down to `min_length`: window and state rows that the next token reads are still there. Entries
        that the remaining tokens do not complete are written again when tokens complete them.
        Errors: `UnknownRequestError`; `CacheError` for a length above the present one or below `min_length`.
        """
        self._ledger.truncate(request_id, length)

    def free(self, request_id: Hashable) -> None:
        """Forget a request and give back its pages; raise `UnknownRequestError` for one that is not held."""
        self._ledger.free(request_id)

    def snapshot(self, request_id: Hashable) -> dict[str, Tensor]:
        """Return a copy of a request's pages by `CacheSpec.key`, all bytes zero that it does not own.

        It owns the entries its tokens complete and, of sliding groups, the newest `CacheSpec.sliding` tokens;
        so equal tokens give equal bytes whatever the chunks, truncations and other requests.
        Shapes: u8 [pages, page_bytes] per key, from the page of the oldest owned row on.
        """
        request = self._ledger.request(request_id)
        return {
            key: copy_pages(
                spec, self._tensors[key], self._groups[spec.group].table[request.seat], request.length
            )
            for key, spec in self.specs.items()
        }

    def digest(self, request_id: Hashable) -> dict[str, str]:
        """Return the hex sha256 of every tensor of `snapshot`."""
        return {key: sha256(pages) for key, pages in self.snapshot(request_id).items()}

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


def _specs_of(
    config: AttentionConfig, layers: Iterable[int], rows: Mapping[str, int] | None
) -> dict[int, list[CacheSpec]]:
    chosen = sorted({whole_number(layer, "layers: a layer", 0) for layer in layers})
    if not chosen:
        raise CacheError("layers is empty: name at least one layer, for example [0]")
    return {layer: cache_specs(config, layer, rows=rows) for layer in chosen}


def _layers_of(tensors: Mapping[str, Tensor]) -> set[int]:
    layers: set[int] = set()
    for key in tensors:
        group, dot, number = key.rpartition(".")
        if not dot or group not in GROUPS or not number.isdecimal():
            raise CacheError(
                f"tensor {key!r}: keys are 'group.layer' like 'swa.0'; the groups are {list(GROUPS)}"
            )
        layers.add(int(number))
    return layers
