from __future__ import annotations

import against
import pytest
import torch

OP = "quantize_and_insert_k_cache"


@pytest.mark.parametrize("config", against.MAIN)
@pytest.mark.parametrize(("lead", "gap"), [(0, 0), (1, 3), (2, 6), (16, 32)])
def test_bytes(config: str, lead: int, gap: int) -> None:
    given = against.arguments(OP, config, tokens=20)
    given["k"] = against.columns(against.corners((20, 512)))
    given["k_cache"] = against.in_parent(given["k_cache"], lead, gap)
    slots = torch.randperm(128, generator=torch.Generator().manual_seed(3))[:17]
    slots[4], slots[9] = -1, -(2**40)
    given["slot_mapping"] = against.spread(slots)  # shorter than k
    against.exact(OP, given)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_page_rows(rows: int) -> None:
    given = against.arguments(OP)
    given["k_cache"] = against.in_parent(against.pages("fp8_ds_mla", 6, rows), 5, 11)
    against.exact(OP, {**given, "rows": rows, "slot_mapping": torch.tensor([5, 0, -1, 3, 2])})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_a_number_leaves_a_finite_page(value: float) -> None:
    given = against.arguments(OP)
    given["k"][1, 3], given["k"][2, 500], given["k"][3] = value, value, value
    against.exact(OP, given)


def test_nothing() -> None:
    given = against.arguments(OP)
    against.exact(OP, {**given, "slot_mapping": torch.empty(0, dtype=torch.int64)})
