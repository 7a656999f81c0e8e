"""The paged cache: lengths and pages of requests, over the tensors of some layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from dsv4core.cache.planned import check_planned, remember
from dsv4core.cache.requests import RequestOperations
from dsv4core.cache.sizes import CacheLimits, counts_for, default_chunk
from dsv4core.cache.specs import CacheSpec, cache_specs
from dsv4core.cache.storage import adopt_storage, new_storage, shared_bytes
from dsv4core.config import AttentionConfig
from dsv4core.errors import CacheError
from dsv4core.plan.batch import BatchPlan
from dsv4core.plan.check import whole_number
from dsv4core.plan.groups import GROUPS
from dsv4core.runtime import usable


class PagedCache(RequestOperations):
    """Paged caches of some layers, shared by many requests. Not thread-safe.

    `plan` admits requests, finds pages and advances lengths; it either does all of that or raises and changes
    nothing. Old pages of sliding groups are given back at the start of the next `plan`, because the step that
    was planned last still reads them. A method that raises has changed nothing.
    """

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
        is not there, `BackendError` for a device that is not.
        """
        capacity = whole_number(capacity_tokens, "capacity_tokens", 1)
        limits = CacheLimits(capacity, max_requests, default_chunk(capacity, max_chunk), max_rollback)
        specs = _specs_of(config, layers, rows)
        flat = [spec for of_layer in specs.values() for spec in of_layer]
        counts = counts_for(flat, limits)
        where = usable(device)
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
        for key, tensor in tensors.items():
            if not isinstance(tensor, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise CacheError(f"tensor {key!r}: pass a tensor, got {type(tensor).__name__}")
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

    def plan(self, new_tokens: Mapping[Any, int], *, pad_to: int | None = None) -> BatchPlan:
        """Plan a step of `new_tokens[id]` new tokens per request and advance the lengths: there is no commit.

        Ids that are not held are admitted. Hidden rows follow the order of the mapping; `pad_to` appends
        padding rows. Old pages of sliding groups are given back first. An empty mapping is legal and plans no
        token.
        Errors: `OutOfPagesError` if it does not fit now (pages, capacity_tokens, max_requests), `CacheError`
        if it never will (no whole number of at least 1, more than max_chunk, past the model's positions,
        pad_to too small or above 2^22). Either way nothing has changed, old pages included.
        """
        self._check_own_pages("plan")
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
        self._copy(step.copies)
        self._ledger.commit(step)
        remember(plan, self._ledger, step.new)
        return plan

    def check_plan(self, plan: BatchPlan) -> None:
        """Raise `CacheError` for another cache's plan, or a request freed or truncated since."""
        check_planned(plan, self._ledger)


def _specs_of(
    config: AttentionConfig, layers: Iterable[int], rows: Mapping[str, int] | None
) -> dict[int, list[CacheSpec]]:
    if not isinstance(layers, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise CacheError(f"layers is {layers!r}: pass layer numbers, for example [{layers!r}]")
    chosen = sorted({whole_number(layer, "layers: a layer", 0) for layer in layers})
    if not chosen:
        raise CacheError("layers is empty: name at least one layer, for example [0]")
    return {layer: cache_specs(config, layer, rows=rows) for layer in chosen}


def _layers_of(tensors: Mapping[str, Tensor]) -> set[int]:
    if not isinstance(tensors, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise CacheError(f"tensors is a {type(tensors).__name__}: pass tensors by `CacheSpec.key`")
    layers: set[int] = set()
    for key in tensors:
        group, dot, number = str(key).rpartition(".")
        if not dot or group not in GROUPS or not number.isdecimal():
            raise CacheError(
                f"tensor {key!r}: keys are 'group.layer' like 'swa.0'; the groups are {list(GROUPS)}"
            )
        layers.add(int(number))
    return layers
