"""What is about to happen to the pages of one group, worked out before anything is touched."""

from __future__ import annotations

from dataclasses import dataclass, field

Copies = list[tuple[int, int]]
"""Pairs of page ids: whole pages to copy, from and to."""


@dataclass
class GroupStep:
    """What a step will do to a group's pages.

    `expired` and `added` hold, per seat, the first page that stays and the new number of pages, and the page
    ids. `moved` holds (seat, page number, shared page, own page): pages the step writes into that somebody
    else holds too. `needed` pages are drawn from `available`, the free ones and those that expire.
    """

    expired: list[tuple[int, int, list[int]]] = field(default_factory=list[tuple[int, int, list[int]]])
    added: list[tuple[int, int, list[int]]] = field(default_factory=list[tuple[int, int, list[int]]])
    moved: list[tuple[int, int, int, int]] = field(default_factory=list[tuple[int, int, int, int]])
    spare: list[int] = field(default_factory=list[int])
    drawn: int = 0
    needed: int = 0
    available: int = 0

    @property
    def fits(self) -> bool:
        """Whether the pages are there."""
        return self.needed <= self.available

    @property
    def copies(self) -> Copies:
        """Pages to copy before the step writes."""
        return [(source, target) for _, _, source, target in self.moved]


@dataclass
class GroupSeat:
    """What seating a whole request will do to a group's pages: those it shares, then those of its own.

    Its pages are numbered from `first` on. `copies` fills the own ones of a fork; an import writes rows.
    """

    seat: int
    first: int
    shared: list[int]
    own: list[int]
    copies: Copies
    needed: int
    available: int

    @property
    def fits(self) -> bool:
        """Whether the pages are there."""
        return self.needed <= self.available

    @property
    def pages(self) -> list[int]:
        """All page ids, oldest first."""
        return [*self.shared, *self.own]
