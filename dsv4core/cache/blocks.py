"""Tokens that several requests have in common, so that they count once against the capacity."""

from __future__ import annotations

from collections.abc import Iterable
from math import lcm

from dsv4core.cache.allocator import PageGroup


class TokenBlocks:
    """Who shares which leading tokens, in blocks of `size` tokens, after which a page of every group ends.

    A block of a fork is the block of its source until one of them is truncated into it. Pages follow: within
    a shared block all pages are full and shared, so a token that is counted once is also stored once.
    """

    def __init__(self, groups: Iterable[PageGroup]) -> None:
        self.size = lcm(*(group.rows * group.tokens_per_row for group in groups))
        self.saved = 0
        self._blocks: dict[int, list[int]] = {}
        self._holders: dict[int, int] = {}
        self._next = 0

    def new_tokens(self, length: int) -> int:
        """Return how many tokens a fork at `length` adds to those already counted."""
        return length % self.size

    def fork(self, source: int, seat: int, length: int) -> None:
        """Let `seat` have the full blocks of `source` up to `length` tokens."""
        mine = self._blocks.setdefault(source, [])
        count = length // self.size
        while len(mine) < count:
            self._holders[self._next] = 1
            mine.append(self._next)
            self._next += 1
        self._blocks[seat] = mine[:count]
        for block in mine[:count]:
            self._holders[block] += 1
        self.saved += count * self.size

    def shrink(self, seat: int, length: int) -> None:
        """Forget the blocks that `length` tokens do not fill any more."""
        mine = self._blocks.get(seat, [])
        for block in mine[length // self.size :]:
            self._holders[block] -= 1
            if self._holders[block]:
                self.saved -= self.size
            else:
                del self._holders[block]
        del mine[length // self.size :]

    def clear(self, seat: int) -> None:
        """Forget a seat."""
        self.shrink(seat, 0)
        self._blocks.pop(seat, None)
