"""What one does with a request besides planning its steps: fork, export, import, shorten, look at it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from torch import Tensor

from dsv4core.cache.admission import Admission, admission
from dsv4core.cache.base import CacheBase
from dsv4core.cache.export import RequestExport
from dsv4core.cache.seating import (
    commit_seating,
    prepare_fork,
    prepare_import,
    resume_length,
    resume_range,
)
from dsv4core.cache.snapshot import copy_pages, sha256
from dsv4core.cache.specs import owned_rows
from dsv4core.cache.transfer import check_fits, make_export, put_rows
from dsv4core.errors import CacheError
from dsv4core.plan.check import whole_number


class RequestOperations(CacheBase):
    """Operations on whole requests. Each one is prepared first: a method that raises has changed nothing.

    A prefix is kept by forking it: `cache.fork(id, ("prefix", 4096), length=4096)` while its rows are in
    memory, and resumed by forking that. It shares all full pages, so it costs `private_bytes`. An export is
    the same thing outside of the cache.
    """

    def can_admit(self, new_tokens: Mapping[Any, int]) -> Admission:
        """Say whether `plan(new_tokens)` would succeed now, and what it would take; true or false by itself.

        It is the work of `plan`, not an estimate. Changes nothing and does not raise for a step that is
        refused: the message is in `reason`.
        """
        try:
            self._check_own_pages("plan")
        except CacheError as error:
            return Admission(False, str(error))
        return admission(self._ledger, new_tokens)

    def resume_range(self, request_id: Hashable) -> tuple[int, int]:
        """Return the least and greatest length that `fork` and `export` accept now, and all between them.

        A resume needs the newest 128 rows of window and states (`CacheSpec.sliding`) in memory, which covers
        every phase of the compressors. They are kept for the whole step that was planned last and
        max_rollback tokens before it, so a boundary can be kept once a step has passed it, until the next.
        """
        return resume_range(self._ledger, self._ledger.request(request_id))

    def fork(self, source: Hashable, new_id: Hashable, *, length: int | None = None) -> None:
        """Make `new_id` a request with the first `length` tokens of `source`, by default all of them.

        Both go on independently, with the bytes they would have alone. Full pages are shared until one of
        them writes there (after `truncate`); partly filled pages are copied now, so the layers must have run
        the step that was planned last. Tokens of blocks that both share count once against capacity_tokens.
        The fork can be truncated by max_rollback, but not below `resume_range(source)`.
        Errors: `UnknownRequestError`; `CacheError` for an id that is held or a length that cannot be resumed
        (it names the legal ones); `OutOfPagesError` if pages, capacity_tokens or max_requests do not suffice.
        Source: edge case 22 of the model description; the open window and the last 128 rows are kept, not
        computed again.
        """
        self._check_own_pages("fork")
        seating = prepare_fork(self._ledger, source, new_id, length)
        self._copy(seating.copies)
        commit_seating(self._ledger, seating)

    def export(self, request_id: Hashable, *, length: int | None = None) -> RequestExport:
        """Return a copy of a request on the host, for another cache, machine or backend, or for later.

        `length` takes its first tokens only, as for `fork`. Rows it does not own are zero. What is kept costs
        `resume_bytes(length)`. The request itself goes on.
        Errors: `UnknownRequestError`; `CacheError` for a length that cannot be resumed.
        """
        tokens = resume_length(self._ledger, f"export({request_id!r})", request_id, length)
        pages = {key: page.cpu() for key, page in self._pages(request_id, tokens).items()}
        return make_export(self.config, self.specs, pages, tokens)

    def import_(self, export: RequestExport, request_id: Hashable) -> None:
        """Admit an exported request under `request_id`; its next token goes on as if nothing had happened.

        Rows per page, capacity and layers may differ, as long as the export has every layer of this cache.
        Weights are not part of an export: equal ones are the caller's affair. It cannot be truncated below
        the imported length, unless all its tokens are in the export (128 at most).
        Errors: `CacheError` naming expected and got for a wrong checksum, profile, model, layout, fingerprint
        or length and for an id that is held; `OutOfPagesError` if pages, capacity_tokens or max_requests do
        not suffice.
        """
        what = f"import_({request_id!r})"
        self._check_own_pages(what)
        if not isinstance(export, RequestExport):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise CacheError(
                f"{what}: expected a RequestExport, got {type(export).__name__}: read bytes with "
                "RequestExport.from_bytes(data)"
            )
        blobs = check_fits(what, export.header, self.config, self.specs)
        firsts = {self.specs[key].group: blob.start for key, blob in blobs.items()}
        seating = prepare_import(self._ledger, what, request_id, export.length, firsts)
        export.verify()
        # The pages are free until the request is seated, so a failure half-way harms nobody.
        for key, spec in self.specs.items():
            put_rows(spec, self._tensors[key], seating.groups[spec.group], blobs[key], export.pages[key])
        commit_seating(self._ledger, seating)

    def truncate(self, request_id: Hashable, length: int) -> None:
        """Forget the newest tokens of a request, such as rejected drafts, and give back pages not reached.

        Legal down to `min_length`: window and state rows that the next token reads are still there. Entries
        that the remaining tokens do not complete are written again when tokens complete them.
        Errors: `UnknownRequestError`; `CacheError` for a length above the present one or below `min_length`.
        """
        self._ledger.truncate(request_id, length)

    def free(self, request_id: Hashable) -> None:
        """Forget a request and give back its pages; raise `UnknownRequestError` for one that is not held."""
        self._ledger.free(request_id)

    def snapshot(self, request_id: Hashable) -> dict[str, Tensor]:
        """Return a copy of a request's pages by `CacheSpec.key`, all bytes zero that it does not own.

        It owns the entries its tokens complete and, of sliding groups, the newest `CacheSpec.sliding` tokens;
        so equal tokens give equal bytes whatever the chunks, truncations and other requests.
        Shapes: u8 [pages, page_bytes] per key, from the page of the oldest owned row on.
        """
        return self._pages(request_id, self.length(request_id))

    def digest(self, request_id: Hashable) -> dict[str, str]:
        """Return the hex sha256 of every tensor of `snapshot`."""
        return {key: sha256(pages) for key, pages in self.snapshot(request_id).items()}

    def resume_bytes(self, length: int) -> dict[str, int]:
        """Return the bytes of an export at `length` tokens per group, all layers: entries, window, states."""
        tokens = whole_number(length, "resume_bytes: length", 0)
        sums: dict[str, int] = {}
        for spec in self.specs.values():
            start, end = owned_rows(spec, tokens)
            pages = -(-end // spec.rows) - start // spec.rows if end > start else 0
            sums[spec.group] = sums.get(spec.group, 0) + pages * spec.page_bytes
        return sums

    def private_bytes(self, request_id: Hashable) -> dict[str, int]:
        """Return the bytes of pages that only this request holds, per group: what `free` would give back."""
        seat = self._ledger.request(request_id).seat
        sums: dict[str, int] = {}
        for spec in self.specs.values():
            pages = self._groups[spec.group].private(seat)
            sums[spec.group] = sums.get(spec.group, 0) + pages * spec.page_bytes
        return sums

    def _pages(self, request_id: Hashable, length: int) -> dict[str, Tensor]:
        seat = self._ledger.request(request_id).seat
        return {
            key: copy_pages(spec, self._tensors[key], self._groups[spec.group].table[seat], length)
            for key, spec in self.specs.items()
        }
