"""The cache groups: which page tables exist, and how many rows their pages have."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """One kind of page; every layer that has the kind shares one page table per request.

    `rows` is the number of rows of a page, `tokens_per_row` how many tokens one row stands for, `ratio` the
    compress ratio of the layers that have the group (0: every layer), `sliding` whether old pages are given
    back.
    Source: `Cache rules` of the op contract, version 1.
    """

    name: str
    rows: int
    tokens_per_row: int
    ratio: int
    sliding: bool

    @property
    def tokens_per_page(self) -> int:
        """Tokens that one full page stands for."""
        return self.rows * self.tokens_per_row


SWA = "swa"
GROUPS: dict[str, Group] = {
    group.name: group
    for group in (
        Group(SWA, rows=64, tokens_per_row=1, ratio=0, sliding=True),
        Group("c4", rows=64, tokens_per_row=4, ratio=4, sliding=False),
        Group("indexer", rows=64, tokens_per_row=4, ratio=4, sliding=False),
        Group("state_c4", rows=4, tokens_per_row=1, ratio=4, sliding=True),
        Group("state_indexer", rows=4, tokens_per_row=1, ratio=4, sliding=True),
        Group("c128", rows=2, tokens_per_row=128, ratio=128, sliding=False),
        Group("state_c128", rows=8, tokens_per_row=1, ratio=128, sliding=True),
    )
}
"""Every group by name, in the order in which plans and caches list them."""

RATIOS = (4, 128)
"""The compress ratios that have groups of their own."""


def groups_of_ratio(ratio: int) -> tuple[str, ...]:
    """Return the groups a layer of compress ratio 0, 4 or 128 keeps; the sliding window comes first."""
    return tuple(name for name, group in GROUPS.items() if group.ratio in (0, ratio))
