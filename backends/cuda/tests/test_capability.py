"""Resolution is total: every combination has an answer, and the documented table is the code's."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from dsv4core_cuda.capability import ARCHITECTURES, OPS, Op, markdown, padded, resolve

DOCS = Path(__file__).parents[3] / "docs" / "cuda.md"


@pytest.mark.parametrize("op", OPS)
def test_every_combination_has_an_answer_with_reasons(op: Op) -> None:
    for architecture, dtype, heads, layout, width in product(
        [*ARCHITECTURES, (7, 5), (12, 1), (99, 0), (0, 0)],
        ("bfloat16", "float16", "float32", "no such type"),
        (-1, 0, 1, 8, 64, 65, 128, 129, 4096),
        ("fp8_ds_mla", "fp8_ds_mla_fnuz", "bf16_row", "nonsense", ""),
        (-1, 0, 1, 128, 640, 8192),
    ):
        answer = resolve(op, architecture, dtype=dtype, heads=heads, layouts=(layout,), width=width)
        assert (answer.provider == "flashmla") is (not answer.reasons)
        assert all(answer.reasons)


def test_all_reasons_are_given_not_the_first() -> None:
    answer = resolve("sparse_decode", (8, 9), dtype="float32", heads=200, layouts=("bf16_row", "bf16_row"))
    assert len(answer.reasons) == 4


def test_prefill_reads_gathered_rows_of_any_layout() -> None:
    assert resolve("sparse_prefill", (9, 0), layouts=("bf16_row",)).provider == "flashmla"


@pytest.mark.parametrize(
    ("heads", "computed"), [(1, 64), (16, 64), (64, 64), (65, 128), (128, 128), (129, 129)]
)
def test_padding(heads: int, computed: int) -> None:
    assert padded(heads) == computed


def test_the_documented_table_is_current() -> None:
    assert markdown() in DOCS.read_text(encoding="utf-8")
