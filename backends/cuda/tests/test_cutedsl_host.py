"""Sources of the CuTeDSL indexer, product and decode, run on the host in random orders (`host_device`)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

NEGATIVE, NONE = (-1.0, -0.5), (0.0,)
CASES: dict[str, dict[str, Any]] = {
    "lengths": {"layout": "index_fp8", "lens": [0, 150], "k": 64, "parts": 2},
    "all tie": {"layout": "index_fp8", "lens": [300], "k": 100, "parts": 1, "weights": NONE},
    "zeros are best": {"layout": "index_fp8", "lens": [300], "k": 16, "parts": 2, "weights": NEGATIVE},
    "bytes as scales": {"layout": "index_fp8_ue8m0x4", "lens": [100], "k": 1, "parts": 1},
    "f32 scales": {"layout": "index_fp8_hadamard_f32", "lens": [200], "k": 100, "parts": 1, "restless": 0.01},
    "mxfp4": {"layout": "index_mxfp4", "lens": [150], "k": 64, "parts": 1, "heads": 5},
    "a long one": {"layout": "index_mxfp4", "lens": [90, 330], "k": 64, "parts": 3, "shares": 1, "most": 2},
    "runs": {
        "layout": "index_fp8",
        "lens": [70, 0, 150],
        "k": 64,
        "parts": 2,
        "shares": 1,
        "most": 2,
        "run": 2,
    },
    "any codes": {
        "layout": "index_mxfp4",
        "lens": [250],
        "k": 64,
        "parts": 1,
        "heads": 3,
        "spreads": (3, 0, 3, 2),
    },
    "wide pages": {"layout": "index_mxfp4", "lens": [500], "k": 64, "parts": 1, "spreads": (2, 3, 4, 1, -2)},
    "wide queries": {"layout": "index_mxfp4", "lens": [130], "k": 64, "parts": 1, "spreads": (4, 1)},
    "far weights": {
        "layout": "index_mxfp4",
        "lens": [130],
        "k": 64,
        "parts": 1,
        "spreads": (0, 1),
        "weights": (2.0**110, -(2.0**109)),
    },
    "full lists": {
        "layout": "index_mxfp4",
        "lens": [1900],
        "k": 64,
        "parts": 1,
        "spreads": (2, 3, 4),
        "capacity": 1024,
    },
    "a late copy": {"layout": "index_mxfp4", "lens": [500], "k": 64, "parts": 1, "stages": 8, "late": True},
}

PRODUCTS = [(5, 2, True, 1), (16, 2, False, 2)]
"""Tokens, blocks of a cluster, whether scales are UE8M0, the order."""


FOLDS = [(16, 2, 3, ("none", "f32", "ue8m0x4"), 3), (64, 1, 2, ("none", "ue8m0x4"), 4)]
"""Heads of a block, tokens, blocks of a cluster, what is stored, the order."""


def fold_differing(case: tuple[int, int, int, tuple[str, ...], int]) -> str:
    """In a process of its own, too."""
    from host_fold import differing as of_fold

    return of_fold(*case)


def product_differing(case: tuple[int, int, bool, int]) -> str:
    """In a process of its own, too."""
    from host_few_tokens import differing as of_product

    return of_product(*case)


def bytes_differing() -> str:
    """In a process of its own, too."""
    from host_indexer import bytes_differing as of_codes

    return of_codes()


def differing(case: dict[str, Any]) -> str:
    """In a process of its own: modules are replaced there."""
    from host_indexer import differing as of_case

    return of_case(**case)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Executor]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("name", CASES)
def test_lists_are_those_of_exact_scores(name: str, elsewhere: Executor) -> None:
    assert elsewhere.submit(differing, CASES[name]).result() == ""


def test_codes_are_exact_as_bytes(elsewhere: Executor) -> None:
    assert elsewhere.submit(bytes_differing).result() == ""


def test_stages_that_groups_take_in_turn_end_in_a_fault(elsewhere: Executor) -> None:
    """Six stages for four groups, and a first copy that comes last: why each group has its own."""
    shared = {**CASES["a late copy"], "layout": "index_fp8", "stages": 6}
    assert "one arrival too many" in elsewhere.submit(differing, shared).result()


@pytest.mark.parametrize("case", PRODUCTS)
def test_products_of_few_tokens_are_exact(case: tuple[int, int, bool, int], elsewhere: Executor) -> None:
    assert elsewhere.submit(product_differing, case).result() == ""


@pytest.mark.parametrize("case", FOLDS, ids=lambda case: f"{case[0]} heads")
def test_folds_turn_back_and_round_once(
    case: tuple[int, int, int, tuple[str, ...], int], elsewhere: Executor
) -> None:
    """Sums of blocks as in float64; what is stored as the ops make it of these sums, bit for bit."""
    assert elsewhere.submit(fold_differing, case).result() == ""
