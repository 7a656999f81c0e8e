"""Pages of one group: which are free, who holds them, and which page holds which rows of a request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from dsv4core.cache.steps import GroupSeat, GroupStep
from dsv4core.errors import CacheError


class PageGroup:
    """Owner of the pages of one group. Requests are known by their seat, a row of the page table.

    Page k of a seat holds its logical rows k * rows .. (k + 1) * rows - 1; pages below `first` were given
    back and pages from `count` on were never needed: both are -1 in the table. `refs` counts the seats that
    hold a page; a page of several is never written into. Forks share full pages only, so the one way to go on
    in a shared page is to be truncated into it: `torn` has the seats for which that may be so.
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
        self.refs = [0] * pages
        self.shared = 0
        self.torn: set[int] = set()
        self.first = [0] * seats
        self.count = [0] * seats
        self.table = _unmapped(seats, 8)

    def pages_for(self, length: int) -> int:
        """Return how many logical pages the rows of `length` tokens reach into."""
        return -(-(length // self.tokens_per_row) // self.rows)

    def first_kept(self, length: int) -> int:
        """Return the first page that a request of `length` tokens may still need."""
        return 0 if self.kept is None else max(length - self.kept, 0) // self.rows

    def held(self, seat: int) -> list[int]:
        """Return the page ids a seat owns, oldest first."""
        return self._ids(seat, self.first[seat], self.count[seat])

    def oldest_row(self, seat: int) -> int:
        """Return the first logical row whose page a seat still holds."""
        return self.first[seat] * self.rows

    def private(self, seat: int) -> int:
        """Return how many pages of a seat nobody else holds."""
        return sum(self.refs[page] == 1 for page in self.held(seat))

    def prepare(self, seated: Sequence[tuple[int, int]], growing: Sequence[tuple[int, int]]) -> GroupStep:
        """Work out a step; if it does not fit (`GroupStep.fits`) only the counts say something.

        Changes nothing. `seated` has (seat, tokens) of all requests before the step, `growing` (seat, tokens)
        after it of those that grow; seats not yet taken have no pages.
        """
        step = GroupStep()
        left: dict[int, int] = {}
        if self.kept is not None:
            for seat, length in seated:
                first = self.first_kept(length)
                if first > self.first[seat]:
                    ids = self._ids(seat, self.first[seat], first)
                    step.expired.append((seat, first, ids))
                    step.spare += [page for page in ids if self._drop_later(page, left) == 0]
        before = dict(seated) if self.torn else {}
        moving: list[tuple[int, int, int]] = []
        for seat, length in growing if self.torn else ():
            old = before.get(seat, 0) // self.tokens_per_row
            if seat in self.torn and old % self.rows and length // self.tokens_per_row > old:
                page = self._ids(seat, old // self.rows, old // self.rows + 1)[0]
                if left.get(page, self.refs[page]) > 1:
                    self._drop_later(page, left)
                    moving.append((seat, old // self.rows, page))
        wanted = [(seat, self.pages_for(length)) for seat, length in growing]
        wanted = [(seat, count) for seat, count in wanted if count > self.count[seat]]
        step.needed = sum(count - self.count[seat] for seat, count in wanted) + len(moving)
        step.available = len(self.free) + len(step.spare)
        if not step.fits:
            return step
        step.drawn = max(step.needed - len(step.spare), 0)
        reused = step.needed - step.drawn
        supply = self.free[len(self.free) - step.drawn :] + step.spare[:reused]
        step.spare = step.spare[reused:]
        for seat, count in wanted:
            step.added.append((seat, count, [supply.pop() for _ in range(count - self.count[seat])]))
        step.moved = [(*move, supply.pop()) for move in moving]
        return step

    def prepare_fork(self, source: int, seat: int, length: int) -> GroupSeat:
        """Work out a seat that shares the full pages of `source` up to `length` tokens, and copies the rest.

        Changes nothing. The rows that a resume at `length` reads must still be held.
        """
        full, count = length // self.tokens_per_row // self.rows, self.pages_for(length)
        first = max(self.first_kept(length), self.first[source])
        ids = self._ids(source, first, count)
        shared, partial = ids[: full - first], ids[full - first :]
        fresh = self._fresh(len(partial))
        copies = list(zip(partial, fresh, strict=False))
        return GroupSeat(seat, first, shared, fresh, copies, len(partial), len(self.free))

    def prepare_import(self, seat: int, first: int, length: int) -> GroupSeat:
        """Work out a seat with pages of its own from page number `first` on. Changes nothing."""
        count = self.pages_for(length) - first
        return GroupSeat(seat, first, [], self._fresh(count), [], count, len(self.free))

    def preview(self, step: GroupStep, seats: Sequence[int]) -> Tensor:
        """Return the page tables of `seats` as they will be after `step`, without taking it.

        Shapes: i32 [len(seats), W], W the most pages of a seat, at least 1.
        """
        place = {seat: i for i, seat in enumerate(seats)}
        added = [(place[seat], count, ids) for seat, count, ids in step.added]
        width = max([1, *(self.count[seat] for seat in seats), *(count for _, count, _ in added)])
        table = _unmapped(len(seats), width)
        old = min(width, self.table.shape[1])
        table[:, :old] = self.table[list(seats), :old]
        for seat, first, _ in step.expired:
            if seat in place:
                table[place[seat], :first] = -1
        for i, count, ids in added:
            table[i, count - len(ids) : count] = _row(ids)
        for seat, number, _, page in step.moved:
            table[place[seat], number] = page
        return table

    def commit(self, step: GroupStep) -> None:
        """Take a prepared step: give back what expired, then map what was added."""
        self._widen(max((count for _, count, _ in step.added), default=0))
        for seat, first, ids in step.expired:
            self.table[seat, self.first[seat] : first] = -1
            self.first[seat] = first
            for page in ids:
                self._drop(page)
        del self.free[len(self.free) - step.drawn :]
        self.free += step.spare
        for seat, count, ids in step.added:
            self.table[seat, self.count[seat] : count] = _row(ids)
            self.count[seat] = count
            self._hold(ids)
        for seat, number, shared, own in step.moved:
            self._drop(shared)
            self._hold([own])
            self.table[seat, number] = own
            self.torn.discard(seat)

    def commit_seat(self, plan: GroupSeat) -> None:
        """Take a prepared seat."""
        pages = plan.pages
        self._widen(plan.first + len(pages))
        del self.free[len(self.free) - len(plan.own) :]
        self.table[plan.seat, plan.first : plan.first + len(pages)] = _row(pages)
        self.first[plan.seat], self.count[plan.seat] = plan.first, plan.first + len(pages)
        self._hold(pages)

    def shrink(self, seat: int, length: int) -> None:
        """Give back the pages behind `length` tokens."""
        count = self.pages_for(length)
        if count < self.count[seat]:
            self._give_back(self._ids(seat, count, self.count[seat]))
            self.table[seat, count : self.count[seat]] = -1
            self.count[seat] = count
        self.torn.discard(seat)
        if self._ends_shared(seat, length):
            self.torn.add(seat)

    def clear(self, seat: int) -> None:
        """Give back every page of a seat."""
        self._give_back(self.held(seat))
        self.table[seat] = -1
        self.first[seat] = self.count[seat] = 0
        self.torn.discard(seat)

    def check(self, lengths: dict[int, int]) -> None:
        """Raise `CacheError` if a page has two owners or none, or a table does not fit `lengths` per seat."""
        held = Counter(page for seat in lengths for page in self.held(seat))
        shared = sum(count > 1 for count in held.values())
        if sorted([*held, *self.free]) != list(range(self.pages)):
            raise CacheError(f"group {self.name}: a page is free and held, or lost, or a held one is -1")
        if self.refs != [held[page] for page in range(self.pages)] or self.shared != shared:
            raise CacheError(f"group {self.name}: a page is held by more or fewer requests than counted")
        for seat in range(len(self.count)):
            first, count, length = self.first[seat], self.count[seat], lengths.get(seat, 0)
            if count != self.pages_for(length) or not 0 <= first <= count:
                raise CacheError(
                    f"group {self.name}: seat {seat} holds pages {first}..{count} for {length} tokens"
                )
            if seat not in self.torn and self._ends_shared(seat, length):
                raise CacheError(f"group {self.name}: seat {seat} would write into a page that others hold")
            outside = self.table[seat].clone()
            outside[first:count] = -1
            if not bool((outside == -1).all()):
                raise CacheError(f"group {self.name}: the table of seat {seat} maps pages it does not hold")

    def _ids(self, seat: int, start: int, stop: int) -> list[int]:
        return cast("list[int]", self.table[seat, start:stop].tolist())  # pyright: ignore[reportUnknownMemberType]

    def _fresh(self, count: int) -> list[int]:
        """The next `count` free pages in the order of use, or all if there are fewer."""
        return self.free[max(len(self.free) - count, 0) :][::-1]

    def _ends_shared(self, seat: int, length: int) -> bool:
        """Whether the last page for `length` tokens is partly filled and held by others too."""
        rows = length // self.tokens_per_row
        number = rows // self.rows
        return bool(rows % self.rows) and self.refs[self._ids(seat, number, number + 1)[0]] > 1

    def _drop_later(self, page: int, left: dict[int, int]) -> int:
        left[page] = left.get(page, self.refs[page]) - 1
        return left[page]

    def _hold(self, pages: Sequence[int]) -> None:
        for page in pages:
            self.refs[page] += 1
            self.shared += self.refs[page] == 2

    def _drop(self, page: int) -> int:
        self.refs[page] -= 1
        self.shared -= self.refs[page] == 1
        return self.refs[page]

    def _give_back(self, pages: Sequence[int]) -> None:
        self.free += [page for page in reversed(pages) if self._drop(page) == 0]

    def _widen(self, columns: int) -> None:
        have = self.table.shape[1]
        if columns > have:
            wider = _unmapped(self.table.shape[0], max(columns, 2 * have))
            wider[:, :have] = self.table
            self.table = wider


@torch.inference_mode(False)  # a table made inside of the mode could not be written outside
def _unmapped(rows: int, columns: int) -> Tensor:
    """A table without pages; on the host, whatever torch's default device is. Shapes: -> i32."""
    return torch.full((rows, columns), -1, dtype=torch.int32, device="cpu")


def _row(pages: Sequence[int]) -> Tensor:
    """Page ids as part of a table. Shapes: -> i32 [n]."""
    return torch.tensor(pages, dtype=torch.int32, device="cpu")
