"""A decode step whose tensors stay where they are: captured as a graph on a device, called again on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace

import torch
from torch import Tensor

from dsv4core.plan import BatchPlan
from dsv4core.runtime import captured, graph_support
from dsv4core_conformance.case import NotRun
from dsv4core_conformance.families._layers import World

TABLE_WIDTH = 256


class Bucket:
    """A captured step of `size` tokens of a world. With `graph` a device graph, else called again."""

    def __init__(
        self, w: World, new: Mapping[str, int], size: int, *, graph: bool, c128_width: int = 64
    ) -> None:
        """Run `new` once, capture it (which runs it again, and must change nothing), keep its tensors."""
        self.w, self.size, self.width = w, size, c128_width
        self.hidden = torch.zeros(size, w.config.hidden_size, dtype=torch.bfloat16, device=w.s.device)
        self.plan = self._plan(new, wide=True)
        self.out = self._eager()
        self.first = self.out.cpu()
        self.replay = self._recorded() if graph else self._again

    def step(self, new: Mapping[str, int], before: Callable[[], None] = lambda: None) -> dict[str, Tensor]:
        """Overwrite the captured tensors with those of another step and run it; outputs by request."""
        rows = {n: self.w.cache.length(n) for n in new}
        copy_plan(self.plan, self._plan(new, wide=False))
        before()
        self.replay()
        out, at, found = self.out.cpu(), 0, {}
        for name, count in new.items():
            found[name] = out[at : at + count]
            at += count
        assert all(self.w.cache.length(n) == rows[n] + new[n] for n in new)
        return found

    def _plan(self, new: Mapping[str, int], *, wide: bool) -> BatchPlan:
        """The step as planned by the cache, with page tables of one width and hidden rows in place."""
        w = self.w
        parts = [w.next_rows(n, count) for n, count in new.items()]
        rows = torch.cat([*parts, torch.full((self.size - sum(map(len, parts)), 64), 1e3).bfloat16()])
        self.hidden.copy_(rows)
        planned = w.cache.plan(dict(new))
        tables = {}
        for group, table in planned.tables.items():
            tables[group] = table.new_full((max(len(new), 1), TABLE_WIDTH), -1)
            tables[group][: table.shape[0], : table.shape[1]] = table
        plan = BatchPlan.build(
            w.config, query_lens=list(new.values()), seq_lens=[w.cache.length(n) for n in new],
            tables={g: t[: len(new)] if new else t for g, t in tables.items()}, rows=planned.rows,
            pad_to=self.size, device=w.s.device,
        )  # fmt: skip
        return widened(plan, self.width) if wide else plan

    def _eager(self) -> Tensor:
        return self.w.attention(self.hidden, self.w.cache, self.plan)

    def _again(self) -> None:
        self.out = self._eager()

    def _recorded(self) -> Callable[[], None]:
        device = self.w.s.device
        make, reason = graph_support(device)
        if make is None:
            raise NotRun(reason)
        replay, self.out = captured(self._eager, device)
        self.out.fill_(torch.nan)
        return replay


def widened(plan: BatchPlan, width: int) -> BatchPlan:
    """A plan whose lists of ratio-128 entries are `width` wide, in memory of its own."""
    if plan.c128_slots is None:
        return plan
    rows, narrow = plan.c128_slots.shape
    wide = plan.c128_slots.new_full((rows, width), -1)
    wide[:, :narrow] = plan.c128_slots
    return replace(plan, c128_slots=wide)


def copy_plan(into: BatchPlan, plan: BatchPlan) -> None:
    """Overwrite the tensors of a plan in place; what the other plan has no row for becomes -1."""
    pairs = [(into.tables[g], plan.tables[g]) for g in into.tables]
    pairs += [(into.slots[g], plan.slots[g]) for g in into.slots]
    pairs += [(into.context_lens[r], plan.context_lens[r]) for r in into.context_lens]
    for field in fields(into):
        mine, other = getattr(into, field.name), getattr(plan, field.name)
        if (
            isinstance(mine, Tensor)
            and isinstance(other, Tensor)
            and field.name not in ("permutation", "inverse")
        ):
            pairs.append((mine, other))
    for mine, other in pairs:
        if mine.shape != other.shape:
            mine.fill_(-1)
        mine[tuple(slice(0, n) for n in other.shape)].copy_(other)
