"""A whole request that sits down at once: a fork, or an import. Prepared first, then taken."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from dsv4core.cache.ledger import Ledger, Request
from dsv4core.cache.steps import Copies, GroupSeat
from dsv4core.errors import CacheError, OutOfPagesError
from dsv4core.plan.check import whole_number


@dataclass(frozen=True)
class Seating:
    """A request worked out but not seated; `source` is the seat it is a fork of."""

    request_id: Hashable
    request: Request
    source: int | None
    groups: Mapping[str, GroupSeat]

    @property
    def copies(self) -> dict[str, Copies]:
        """Pages to copy per group before the request is seated."""
        return {name: seat.copies for name, seat in self.groups.items() if seat.copies}


def resume_range(ledger: Ledger, request: Request) -> tuple[int, int]:
    """Return the least and the greatest length at which everything a next token reads is in memory.

    Every length between them is one too. The newest `sliding` rows of every sliding group are asked for: that
    covers the window, the open compressor window and the previous one that overlaps it, at every phase.
    """
    low = request.floor
    for group in ledger.groups.values():
        oldest = group.oldest_row(request.seat)
        if group.kept is not None and oldest:
            low = max(low, oldest + group.kept - ledger.limits.max_rollback)
    return low, request.length


def resume_length(ledger: Ledger, what: str, request_id: Hashable, length: int | None) -> int:
    """Return `length`, or the request's own for None; raise `CacheError` where it cannot be resumed."""
    request = ledger.request(request_id)
    if length is None:
        return request.length
    wanted = whole_number(length, f"{what}: length", 0)
    low, high = resume_range(ledger, request)
    if low <= wanted <= high:
        return wanted
    if wanted > high:
        why = f"it has {high} tokens"
    else:
        why = (
            f"window and state rows before that length are gone; fork or export it while the step that "
            f"passes {wanted} tokens is the last one planned, and keep that, or prefill the request again"
        )
    raise CacheError(
        f"{what}: request {request_id!r} cannot be resumed at {wanted} tokens: {why}. Legal lengths are "
        f"{low} to {high}, the nearest is {min(max(wanted, low), high)}"
    )


def prepare_fork(ledger: Ledger, source: Hashable, new_id: Hashable, length: int | None) -> Seating:
    """Work out a fork, or raise. Changes nothing."""
    what = f"fork({source!r}, {new_id!r})"
    origin = ledger.request(source)
    wanted = resume_length(ledger, what, source, length)
    seat = _new_seat(ledger, what, new_id, ledger.blocks.new_tokens(wanted))
    groups = {name: group.prepare_fork(origin.seat, seat, wanted) for name, group in ledger.groups.items()}
    _check_pages(ledger, what, groups)
    request = Request(seat, wanted, wanted, resume_range(ledger, origin)[0])
    return Seating(new_id, request, origin.seat, groups)


def prepare_import(
    ledger: Ledger, what: str, new_id: Hashable, length: int, first_rows: Mapping[str, int]
) -> Seating:
    """Work out pages for a request whose rows begin at `first_rows` of each group, or raise."""
    ledger.check_positions(what, new_id, length)
    seat = _new_seat(ledger, what, new_id, length)
    groups = {
        name: group.prepare_import(seat, first_rows[name] // group.rows, length)
        for name, group in ledger.groups.items()
    }
    _check_pages(ledger, what, groups)
    cut = any(ledger.groups[name].kept is not None and first for name, first in first_rows.items())
    return Seating(new_id, Request(seat, length, length, length if cut else 0), None, groups)


def commit_seating(ledger: Ledger, seating: Seating) -> None:
    """Seat a request that was worked out on the present state; this cannot fail."""
    request = seating.request
    for name, group in ledger.groups.items():
        group.commit_seat(seating.groups[name])
    if seating.source is not None:
        ledger.blocks.fork(seating.source, request.seat, request.length)
    ledger.vacant.remove(request.seat)
    ledger.requests[seating.request_id] = request


def _new_seat(ledger: Ledger, what: str, new_id: Hashable, tokens: int) -> int:
    if not isinstance(new_id, Hashable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise CacheError(f"{what}: the id is a {type(new_id).__name__}: pass something hashable, like 'b'")
    if new_id in ledger.requests:
        raise CacheError(
            f"{what}: request {new_id!r} is held already, with {ledger.requests[new_id].length} tokens: take "
            "an id that is not held, or free it first"
        )
    ledger.check_room(what, 1, tokens)
    return ledger.vacant[-1]


def _check_pages(ledger: Ledger, what: str, groups: Mapping[str, GroupSeat]) -> None:
    for name, seat in groups.items():
        if not seat.fits:
            raise OutOfPagesError(
                f"{what}: group {name!r} needs {seat.needed} pages of its own; {seat.available} of "
                f"{ledger.groups[name].pages} are free: free or truncate a request, plan a step (it gives "
                "back old pages), or make a larger cache"
            )
