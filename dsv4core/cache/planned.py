"""Which cache made a plan, and whether the requests it writes for are still what they were."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from dsv4core.cache.ledger import Ledger, Request
from dsv4core.errors import CacheError
from dsv4core.plan.batch import BatchPlan


@dataclass
class Planned:
    """The ledger a plan was made from, its requests with how often each was cut, and what was looked at last.

    A request that was freed and came again is another object.
    """

    ledger: Ledger
    requests: tuple[tuple[Hashable, Request, int], ...]
    seen: int


_PLANNED: WeakKeyDictionary[BatchPlan, Planned] = WeakKeyDictionary()


def remember(plan: BatchPlan, ledger: Ledger, requests: Iterable[Hashable]) -> None:
    """Keep what a plan was made from; its step is taken."""
    held = tuple((name, ledger.requests[name], ledger.requests[name].cuts) for name in requests)
    _PLANNED[plan] = Planned(ledger, held, ledger.removals)


def check_planned(plan: BatchPlan, ledger: Ledger) -> None:
    """Refuse a plan whose pages may be somebody else's by now; an engine's own plan is its own affair.

    Raises CacheError.
    """
    found = _PLANNED.get(plan)
    if found is None or (found.ledger is ledger and found.seen == ledger.removals):
        return
    if found.ledger is not ledger:
        raise CacheError("the plan was made by another cache: run a layer on the cache whose `plan` made it")
    for request_id, request, cuts in found.requests:
        gone = ledger.requests.get(request_id) is not request
        if gone or request.cuts != cuts:
            raise CacheError(
                f"the plan is over: request {request_id!r} was {'freed' if gone else 'truncated'} after "
                "it was made, and its pages may hold another request; plan the step again"
            )
    found.seen = ledger.removals
