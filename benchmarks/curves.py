"""Scaling: decode over tokens and heads, the fused indexer over its entries."""

from __future__ import annotations

from collections.abc import Iterator

from attention import decode
from indexer import indexer

from dsv4core.bench.case import Case


def cases() -> Iterator[Case]:
    """Tokens 1..256 with 64 heads, heads 8..128 with 8 tokens, 1K..1M entries."""
    for tokens in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        yield decode(tokens, 64, "decode, 64 heads", "tokens")
    for heads in (8, 16, 32, 64, 128):
        yield decode(8, heads, "decode, 8 tokens", "heads")
    for entries in (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20):
        yield indexer(entries, curve="indexer, 1 token, k = 512", x="entries")
