"""The books of a cache: which requests there are, how long they are, and what a step does to their pages."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from torch import Tensor

from dsv4core.cache.allocator import PageGroup
from dsv4core.cache.blocks import TokenBlocks
from dsv4core.cache.sizes import CacheLimits
from dsv4core.cache.steps import Copies, GroupStep
from dsv4core.errors import CacheError, OutOfPagesError, UnknownRequestError
from dsv4core.plan.check import whole_number


@dataclass
class Request:
    """Where a request sits in the page tables, how long it is, and the longest it has been.

    `floor` is the least length at which the rows it began with can be resumed: 0 unless it was forked or
    imported. `cuts` counts how often it was truncated.
    """

    seat: int
    length: int
    peak: int
    floor: int = 0
    cuts: int = 0


@dataclass(frozen=True)
class Step:
    """A step worked out but not taken: new tokens, later lengths and seats per request; pages per group."""

    new: Mapping[Hashable, int]
    after: Mapping[Hashable, int]
    seats: Mapping[Hashable, int]
    groups: Mapping[str, GroupStep]

    @property
    def copies(self) -> dict[str, Copies]:
        """Pages to copy per group before the step is taken."""
        return {name: step.copies for name, step in self.groups.items() if step.moved}


class Ledger:
    """Requests and page tables, without a byte of any page.

    `prepare` works out a step and changes nothing; `commit` takes it and cannot fail. So whatever happens
    between the two leaves the cache as it was.
    """

    def __init__(self, limits: CacheLimits, max_positions: int, groups: Mapping[str, PageGroup]) -> None:
        self.limits = limits
        self.max_positions = max_positions
        self.groups = groups
        self.blocks = TokenBlocks(groups.values())
        self.requests: dict[Hashable, Request] = {}
        self.vacant = list(range(limits.max_requests - 1, -1, -1))
        self.removals = 0  # how often a request was freed or cut, so that pages changed hands

    @property
    def tokens(self) -> int:
        """Tokens of all requests together."""
        return sum(request.length for request in self.requests.values())

    @property
    def counted(self) -> int:
        """Tokens that count against the capacity: those of blocks that forks share count once."""
        return self.tokens - self.blocks.saved

    def request(self, request_id: Hashable) -> Request:
        """Return a request that is held; raise `UnknownRequestError` for another id."""
        try:
            request = self.requests.get(request_id)
        except TypeError:  # no id that can be held: it has no hash
            request = None
        if request is None:
            held = ", ".join(map(repr, list(self.requests)[:8])) or "none"
            raise UnknownRequestError(
                f"request {request_id!r} is not held; held: {held}; `plan` admits new ones"
            )
        return request

    def min_length(self, request: Request) -> int:
        """Return the shortest length whose next token still finds its window and state rows."""
        return max(request.peak - self.limits.max_rollback, request.floor, 0)

    def prepare(self, new_tokens: Mapping[Hashable, int]) -> Step:
        """Work out the step that brings `new_tokens`, or raise. Changes nothing."""
        step = self.demand(new_tokens)
        shortage = self.shortage(step)
        if shortage:
            raise OutOfPagesError(shortage)
        return step

    def demand(self, new_tokens: Mapping[Hashable, int]) -> Step:
        """Work out a step whose pages may not be there; raise where a limit refuses it. Changes nothing."""
        if not isinstance(new_tokens, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise CacheError(f"plan({new_tokens!r}): pass numbers of new tokens by request id, {{'a': 1}}")
        new = {
            request_id: whole_number(count, f"plan: number of new tokens of request {request_id!r}", 1)
            for request_id, count in new_tokens.items()
        }
        after = {request_id: n + self._length(request_id) for request_id, n in new.items()}
        for request_id, length in after.items():
            self.check_positions("plan", request_id, length)
        self._check_limits(new)
        newcomers = [request_id for request_id in new if request_id not in self.requests]
        given = dict(zip(newcomers, reversed(self.vacant), strict=False))
        seats = {i: given[i] if i in given else self.requests[i].seat for i in new}
        return Step(new, after, seats, self._find_pages({seats[i]: length for i, length in after.items()}))

    def shortage(self, step: Step) -> str:
        """Return why the pages for a step are not there, or an empty text."""
        for name, group in step.groups.items():
            if not group.fits:
                free = len(self.groups[name].free)
                return (
                    f"plan: group {name!r} needs {group.needed} pages for this step; {free} of "
                    f"{self.groups[name].pages} are free, besides {group.available - free} old ones that "
                    "this step gives back: free or truncate a request, bring fewer tokens, or make a larger "
                    "cache"
                )
        return ""

    def tables(self, step: Step) -> dict[str, Tensor]:
        """Return the page tables of the step's requests as they will be. Shapes: i32 [R, W] per group."""
        order = list(step.seats.values())
        return {name: group.preview(step.groups[name], order) for name, group in self.groups.items()}

    def commit(self, step: Step) -> None:
        """Take a step that `prepare` worked out on the present state."""
        for name, group in self.groups.items():
            group.commit(step.groups[name])
        for request_id, length in step.after.items():
            if request_id not in self.requests:
                self.vacant.remove(step.seats[request_id])
                self.requests[request_id] = Request(step.seats[request_id], 0, 0)
            request = self.requests[request_id]
            request.length, request.peak = length, max(length, request.peak)

    def truncate(self, request_id: Hashable, length: int) -> None:
        """Shorten a request to `length` tokens; the rules are those of `PagedCache.truncate`."""
        request = self.request(request_id)
        target = whole_number(length, f"truncate({request_id!r}): length", 0)
        least = self.min_length(request)
        if target > request.length:
            raise CacheError(
                f"truncate({request_id!r}, {target}): it has {request.length} tokens; `plan` adds tokens"
            )
        if target < least == request.floor:
            raise CacheError(
                f"truncate({request_id!r}, {target}): it was forked or imported with the rows of a resume at "
                f"{least} tokens or later, so {least} is the least; free the request and prefill it again"
            )
        if target < least:
            raise CacheError(
                f"truncate({request_id!r}, {target}): it has been {request.peak} tokens long, and window and "
                f"state rows are kept for max_rollback={self.limits.max_rollback} tokens back from there, so "
                f"{least} is the least. If layers failed in it, run all again with the same plan; "
                f"fork({request_id!r}, new_id, length=before) goes further back, to any length of "
                "`resume_range`. Else make the cache with a larger max_rollback, or free the request and "
                "prefill it again"
            )
        for group in self.groups.values():
            group.shrink(request.seat, target)
        self.blocks.shrink(request.seat, target)
        if target < request.length:
            self.removals, request.cuts = self.removals + 1, request.cuts + 1
        request.length = target

    def free(self, request_id: Hashable) -> None:
        """Forget a request and give back its pages."""
        request = self.request(request_id)
        for group in self.groups.values():
            group.clear(request.seat)
        self.blocks.clear(request.seat)
        self.vacant.append(request.seat)
        self.removals += 1
        del self.requests[request_id]

    def check(self) -> None:
        """Raise `CacheError` if a page has two owners or none, or tables and lengths disagree."""
        lengths = {request.seat: request.length for request in self.requests.values()}
        if sorted([*lengths, *self.vacant]) != list(range(self.limits.max_requests)):
            raise CacheError("a seat is taken twice, or lost")
        for group in self.groups.values():
            group.check(lengths)

    def _length(self, request_id: Hashable) -> int:
        request = self.requests.get(request_id)
        return request.length if request else 0

    def check_positions(self, what: str, request_id: Hashable, length: int) -> None:
        """Raise `CacheError` if the model has fewer positions than `length`; `what` begins the message."""
        if length > self.max_positions:
            raise CacheError(
                f"{what}: request {request_id!r} would have {length} tokens; the model has "
                f"{self.max_positions} positions (max_position_embeddings): end the request here"
            )

    def check_room(self, what: str, newcomers: int, tokens: int) -> None:
        """Raise `OutOfPagesError` unless so many more requests and tokens are within the limits."""
        count, capacity = len(self.requests) + newcomers, self.limits.capacity_tokens
        if count > self.limits.max_requests:
            raise OutOfPagesError(
                f"{what}: with this step {count} requests would be held; the cache holds "
                f"max_requests={self.limits.max_requests}: free one first, or make the cache with "
                f"max_requests={count}"
            )
        if capacity is not None and self.counted + tokens > capacity:
            raise OutOfPagesError(
                f"{what}: {tokens} new tokens besides the {self.counted} held exceed "
                f"capacity_tokens={capacity}: free or truncate a request, bring at most "
                f"{max(capacity - self.counted, 0)} tokens, or make a larger cache"
            )

    def _check_limits(self, new: Mapping[Hashable, int]) -> None:
        chunk, total = self.limits.max_chunk, sum(new.values())
        if chunk is not None and total > chunk:
            longest = max(new, key=lambda request_id: new[request_id])
            raise CacheError(
                f"plan: the step brings {total} tokens, {new[longest]} of them for request {longest!r}; this "
                f"cache takes max_chunk={chunk} a step: plan a prefill in pieces, "
                f"plan({{{longest!r}: {min(new[longest], chunk)}}}) and then the rest, or make the cache "
                f"with max_chunk={total}"
            )
        self.check_room("plan", sum(request_id not in self.requests for request_id in new), total)

    def _find_pages(self, growing: Mapping[int, int]) -> dict[str, GroupStep]:
        seated = [(request.seat, request.length) for request in self.requests.values()]
        return {name: group.prepare(seated, list(growing.items())) for name, group in self.groups.items()}
