"""Whether a step would be planned, and what it would take: `plan`'s own work, not taken."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from dsv4core.cache.ledger import Ledger
from dsv4core.errors import CacheError, OutOfPagesError


@dataclass(frozen=True)
class Admission:
    """The answer of `PagedCache.can_admit`; true if `plan` would succeed now.

    `reason` is the message that `plan` would raise, empty if there is none, and `later` says whether freeing
    requests can help (`OutOfPagesError`); a step that is refused without it never fits. `needed` holds the
    pages per group that the step draws, private copies of shared pages included, `available` the free pages
    with those that the step itself gives back; both are empty if a limit refuses the step before pages are
    looked for.
    """

    ok: bool
    reason: str = ""
    later: bool = False
    needed: Mapping[str, int] = field(default_factory=dict[str, int])
    available: Mapping[str, int] = field(default_factory=dict[str, int])

    def __bool__(self) -> bool:
        return self.ok


def admission(ledger: Ledger, new_tokens: Mapping[Hashable, int]) -> Admission:
    """Return what `Ledger.prepare` says about a step. Changes nothing."""
    try:
        step = ledger.demand(new_tokens)
    except CacheError as error:
        return Admission(False, str(error), isinstance(error, OutOfPagesError))
    reason = ledger.shortage(step)
    needed = {name: group.needed for name, group in step.groups.items()}
    available = {name: group.available for name, group in step.groups.items()}
    return Admission(not reason, reason, bool(reason), needed, available)
