"""Pages of one group: which are free, and which page holds which rows of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from dsv4core.errors import CacheError


@dataclass
class GroupStep:
    """What a step will do to a group's pages, worked out before anything is touched.

    `expired` and `added` hold, per seat, the first page that stays and the new number of pages, and the page
    ids.
    """

    expired: list[tuple[int, int, list[int]]] = field(default_factory=list[tuple[int, int, list[int]]])
    added: list[tuple[int, int, list[int]]] = field(default_factory=list[tuple[int, int, list[int]]])
    spare: list[int] = field(default_factory=list[int])
    drawn: int = 0


class PageGroup:
    """Owner of the pages of one group. Requests are known by their seat, a row of the page table.

    Page k of a seat holds its logical rows k * rows .. (k + 1) * rows - 1; pages below `first` were given
    back and pages from `count` on were never needed: both are -1 in the table.
    """

    def __init__(
        self, name: str, *, rows: int, tokens_per_row: int, kept: int | None, pages: int, seats: int
    ) -> None:
        self.name = name
        self.rows = rows
        self.tokens_per_row = tokens_per_row
        self.kept = kept
        self.pages = pages
        self.free = list(range(pages - 1, -1, -1))
        self.first = [0] * seats
        self.count = [0] * seats
        self.table = torch.full((seats, 8), -1, dtype=torch.int32)

    def pages_for(self, length: int) -> int:
        """Return how many logical pages the rows of `length` tokens reach into."""
        return -(-(length // self.tokens_per_row) // self.rows)

    def first_kept(self, length: int) -> int:
        """Return the first page that a request of `length` tokens may still need."""
        return 0 if self.kept is None else max(length - self.kept, 0) // self.rows

    def held(self, seat: int) -> list[int]:
        """Return the page ids a seat owns, oldest first."""
        return self._ids(seat, self.first[seat], self.count[seat])

    def prepare(
        self, seated: Sequence[tuple[int, int]], growing: Sequence[tuple[int, int]]
    ) -> GroupStep | int:
        """Work out a step, or return how many pages it would need if they are not there. Changes nothing.

        `seated` has (seat, tokens) of all requests before the step, `growing` (seat, tokens) after it of
        those that grow; seats not yet taken have no pages.
        """
        step = GroupStep()
        if self.kept is not None:
            for seat, length in seated:
                first = self.first_kept(length)
                if first > self.first[seat]:
                    ids = self._ids(seat, self.first[seat], first)
                    step.expired.append((seat, first, ids))
                    step.spare += ids
        wanted = [(seat, self.pages_for(length)) for seat, length in growing]
        wanted = [(seat, count) for seat, count in wanted if count > self.count[seat]]
        need = sum(count - self.count[seat] for seat, count in wanted)
        step.drawn = max(need - len(step.spare), 0)
        if step.drawn > len(self.free):
            return need
        supply = self.free[len(self.free) - step.drawn :] + step.spare[: need - step.drawn]
        step.spare = step.spare[need - step.drawn :]
        for seat, count in wanted:
            step.added.append((seat, count, [supply.pop() for _ in range(count - self.count[seat])]))
        return step

    def preview(self, step: GroupStep, seats: Sequence[int]) -> Tensor:
        """Return the page tables of `seats` as they will be after `step`, without taking it.

        Shapes: i32 [len(seats), W], W the most pages of a seat, at least 1.
        """
        place = {seat: i for i, seat in enumerate(seats)}
        added = [(place[seat], count, ids) for seat, count, ids in step.added]
        width = max([1, *(self.count[seat] for seat in seats), *(count for _, count, _ in added)])
        table = torch.full((len(seats), width), -1, dtype=torch.int32)
        old = min(width, self.table.shape[1])
        table[:, :old] = self.table[list(seats), :old]
        for seat, first, _ in step.expired:
            if seat in place:
                table[place[seat], :first] = -1
        for i, count, ids in added:
            table[i, count - len(ids) : count] = torch.tensor(ids, dtype=torch.int32)
        return table

    def commit(self, step: GroupStep) -> None:
        """Take a prepared step: give back what expired, then map what was added."""
        self._widen(max((count for _, count, _ in step.added), default=0))
        for seat, first, _ in step.expired:
            self.table[seat, self.first[seat] : first] = -1
            self.first[seat] = first
        del self.free[len(self.free) - step.drawn :]
        self.free += step.spare
        for seat, count, ids in step.added:
            self.table[seat, self.count[seat] : count] = torch.tensor(ids, dtype=torch.int32)
            self.count[seat] = count

    def shrink(self, seat: int, length: int) -> None:
        """Give back the pages behind `length` tokens."""
        count = self.pages_for(length)
        if count < self.count[seat]:
            self.free += reversed(self._ids(seat, count, self.count[seat]))
            self.table[seat, count : self.count[seat]] = -1
            self.count[seat] = count

    def clear(self, seat: int) -> None:
        """Give back every page of a seat."""
        self.free += reversed(self.held(seat))
        self.table[seat] = -1
        self.first[seat] = self.count[seat] = 0

    def check(self, lengths: dict[int, int]) -> None:
        """Raise `CacheError` if a page has two owners or none, or a table does not fit `lengths` per seat."""
        owned = [page for seat in lengths for page in self.held(seat)]
        if sorted(owned + self.free) != list(range(self.pages)):
            raise CacheError(
                f"group {self.name}: a page is owned twice, or lost, or -1 is inside a request's pages"
            )
        for seat in range(len(self.count)):
            first, count, length = self.first[seat], self.count[seat], lengths.get(seat, 0)
            if count != self.pages_for(length) or not 0 <= first <= count:
                raise CacheError(
                    f"group {self.name}: seat {seat} holds pages {first}..{count} for {length} tokens"
                )
            outside = self.table[seat].clone()
            outside[first:count] = -1
            if not bool((outside == -1).all()):
                raise CacheError(f"group {self.name}: the table of seat {seat} maps pages it does not hold")

    def _ids(self, seat: int, start: int, stop: int) -> list[int]:
        return cast("list[int]", self.table[seat, start:stop].tolist())  # pyright: ignore[reportUnknownMemberType]

    def _widen(self, columns: int) -> None:
        have = self.table.shape[1]
        if columns > have:
            wider = torch.full((self.table.shape[0], max(columns, 2 * have)), -1, dtype=torch.int32)
            wider[:, :have] = self.table
            self.table = wider
