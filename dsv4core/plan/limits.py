"""The largest step an engine will run, and the workspace that follows from it."""

from __future__ import annotations

from dataclasses import dataclass

from dsv4core.config import AttentionConfig
from dsv4core.errors import CacheError


@dataclass(frozen=True)
class Limits:
    """The largest step that will be asked for: sizes workspaces before the first token arrives.

    `max_tokens` counts the tokens of one step over all requests, `max_seq_len` the tokens of one request (old
    and new), `max_requests` the requests of one step. Raises `CacheError` for anything below 1.
    """

    max_tokens: int
    max_seq_len: int
    max_requests: int

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_seq_len", "max_requests"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise CacheError(
                    f"Limits({name}={value!r}): every limit is a whole number of at least 1; "
                    f"type for example Limits(max_tokens=2048, max_seq_len=131072, max_requests=64)"
                )


def prefill_workspace_rows(config: AttentionConfig, ratio: int, limits: Limits) -> int:
    """Return how many gathered 512-wide rows the prefill of a layer of this ratio needs at once.

    A chunk holds at most `config.prefill_chunk_requests` requests; each brings its entries (one per `ratio`
    tokens) and the window rows in front of its new tokens plus the new tokens themselves. No chunk of a plan
    within `limits` has more rows than this.
    """
    requests = min(config.prefill_chunk_requests, limits.max_requests)
    entries = limits.max_seq_len // ratio if ratio else 0
    gathered = min(limits.max_seq_len, limits.max_tokens + config.sliding_window - 1)
    return requests * (entries + gathered)
