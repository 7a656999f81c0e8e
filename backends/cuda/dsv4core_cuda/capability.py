"""Which provider attends: a total function of architecture, op, dtype, heads, layout and list width.

Data and arithmetic only: no torch, no library, so every row of the table in `docs/cuda.md` can be computed
anywhere. Whether a library is there and runs is the other half, which `flashmla_library` finds out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Op = Literal["sparse_decode", "sparse_prefill"]
Provider = Literal["flashmla", "triton"]

OPS: tuple[Op, ...] = ("sparse_decode", "sparse_prefill")

HEADS = (64, 128)
FEWEST_HEADS = 33
"""Fewer heads than this are padded to twice their number and more; Triton's kernels take them as they are."""
FEWEST_ALONE = {64: 513, 128: 512}
"""Tokens, by padded heads, from which a call goes to FlashMLA that makes a schedule for itself.

Where Triton's kernel measured faster on an H100 it stays: 512 tokens were the most of 64 heads."""

CLUSTER_HEADS = 16
"""The decode kernel of our own computes multiples of this many heads."""
CLUSTER_KEYS = 128
"""Keys that one block of it takes at once."""
CLUSTER_TOKENS: dict[int, tuple[tuple[int, int], ...]] = {
    64: ((640, 32), (1152, 32)),
    128: ((640, 32), (1152, 32)),
}
"""Heads -> keys and tokens up to which it is taken unasked: where it measured faster than FlashMLA's
best build (`benchmarks/results/h100-decode-few.csv`) and the conformance suite has judged it."""

DECODE_LAYOUT = "fp8_ds_mla"
DECODE_WIDTH = 64
ROW_BYTES = 584
ALIGNMENT = 16


@dataclass(frozen=True)
class Architecture:
    """What prebuilt FlashMLA has for an architecture (0: no kernel), and on which device it was run.

    `prefill_width` is the multiple that a prefill list is padded to; `page_stride` divides the distance of
    pages; `cluster`: the decode kernel of our own is compiled for it.
    """

    name: str
    decode: bool = False
    prefill_width: int = 0
    page_stride: int = ALIGNMENT
    cluster: bool = False
    run_on: str = ""


ARCHITECTURES: dict[tuple[int, int], Architecture] = {
    (8, 0): Architecture("A100"),
    (8, 6): Architecture("RTX 30"),
    (8, 9): Architecture("L40, RTX 40"),
    (9, 0): Architecture("H100, H200", decode=True, prefill_width=128, cluster=True, run_on="H100"),
    (10, 0): Architecture("B200", decode=True, prefill_width=64, page_stride=576),
    (10, 3): Architecture("B300", decode=True, prefill_width=64, page_stride=576),
    (12, 0): Architecture("RTX 50"),
}
"""By compute capability; FlashMLA's kernels are compiled for exactly these, without PTX."""


@dataclass(frozen=True)
class Answer:
    """The provider, and why it is not FlashMLA (empty where it is)."""

    provider: Provider
    reasons: tuple[str, ...] = ()


@lru_cache(maxsize=256)
def resolve(
    op: Op,
    architecture: tuple[int, int],
    *,
    dtype: str = "bfloat16",
    heads: int = 64,
    layouts: tuple[str, ...] = (DECODE_LAYOUT,),
    width: int = 128,
    fewest: int = FEWEST_HEADS,
) -> Answer:
    """Who attends, for any arguments; every reason against FlashMLA is listed, not the first one only.

    `layouts` are those of the pages that are read (decode), `width` is the longest list's, `fewest` the
    number of heads from which padding is worth it.
    """
    reasons = tuple(_against(op, architecture, dtype, heads, layouts, width, fewest))
    return Answer("triton", reasons) if reasons else Answer("flashmla")


def against_cluster(
    architecture: tuple[int, int], *, dtype: str, heads: int, layouts: tuple[str, ...], keys: int,
    tokens: int, any_batch: bool = False,
) -> tuple[str, ...]:  # fmt: skip
    """Every reason against the decode kernel of our own; `any_batch`: it need not be the fastest."""
    reasons: list[str] = []
    if not ARCHITECTURES.get(architecture, Architecture("unknown")).cluster:
        reasons.append(f"there is no cluster kernel for SM{architecture[0]}{architecture[1]}")
    if dtype != "bfloat16":
        reasons.append(f"the cluster kernel computes in bfloat16, not {dtype}")
    if heads < 1 or heads % CLUSTER_HEADS:
        reasons.append(f"the cluster kernel takes {CLUSTER_HEADS} heads at a time, {heads} are no multiple")
    elif heads < FEWEST_HEADS and not any_batch:
        reasons.append(f"below {FEWEST_HEADS} heads a result may not depend on the number of tokens")
    elif keys <= CLUSTER_KEYS:
        reasons.append(f"{keys} keys are one tile of {CLUSTER_KEYS}, which there is nothing to split of")
    elif tokens > cluster_tokens(heads, keys) and not any_batch:
        reasons.append(f"the cluster kernel did not measure faster for {tokens} tokens of {keys} keys")
    for layout in dict.fromkeys(layouts):
        if layout != DECODE_LAYOUT:
            reasons.append(f"the cluster kernel reads {DECODE_LAYOUT}, not {layout}")
    return tuple(reasons)


def cluster_tokens(heads: int, keys: int) -> int:
    """Tokens up to which the decode kernel of our own is taken, for so many keys in both lists together."""
    rows = CLUSTER_TOKENS.get(heads, ())
    return next((tokens for most, tokens in rows if keys <= most), 0)


def markdown() -> str:
    """The table of `docs/cuda.md`: what attends on every architecture, at 64 heads and the usual layout."""
    lines = ["| architecture | decode | prefill | was run |", "|---|---|---|---|"]
    for (major, minor), have in ARCHITECTURES.items():
        cells: list[str] = []
        for op in OPS:
            answer = resolve(op, (major, minor))
            cells.append("FlashMLA, else Triton" if answer.provider == "flashmla" else "Triton")
        if have.cluster and CLUSTER_TOKENS:
            cells[0] = f"CuTeDSL for few tokens, {cells[0]}"
        run = f"on an {have.run_on}" if have.run_on else "not run"
        lines.append(f"| SM{major}{minor} ({have.name}) | {cells[0]} | {cells[1]} | {run} |")
    return "\n".join(lines) + "\n"


def padded(heads: int) -> int:
    """The number of heads FlashMLA computes for that many; the same number where it has no such kernel."""
    return next((known for known in HEADS if heads <= known), heads)


def round_up(width: int, multiple: int) -> int:
    """The next multiple that holds a list, at least one."""
    return max(1, -(-width // multiple)) * multiple


def _against(
    op: Op, architecture: tuple[int, int], dtype: str, heads: int, layouts: tuple[str, ...], width: int,
    fewest: int,
) -> Iterator[str]:  # fmt: skip
    have = ARCHITECTURES.get(architecture, Architecture("unknown"))
    if not (have.decode if op == "sparse_decode" else have.prefill_width):
        major, minor = architecture
        yield f"FlashMLA has no {op} kernel for SM{major}{minor}"
    if dtype != "bfloat16":
        yield f"FlashMLA computes in bfloat16, not {dtype}"
    if 1 <= heads < fewest:
        yield f"FlashMLA computes {HEADS[0]} heads at least, which does not pay for {heads}"
    elif not 1 <= heads <= HEADS[-1]:
        yield f"FlashMLA has kernels for up to {HEADS[-1]} heads, not {heads}"
    if op == "sparse_decode":
        for layout in dict.fromkeys(layouts):
            if layout != DECODE_LAYOUT:
                yield f"FlashMLA reads {DECODE_LAYOUT}, not {layout}"
    if width < 0:
        yield f"a list of width {width} does not exist"
