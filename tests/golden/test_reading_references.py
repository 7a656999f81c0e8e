"""The references of the ops that read, against numbers worked out by hand or by the plainest loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsv4core.ops import OPS
from dsv4core_conformance.contracts import CONTRACTS
from dsv4core_conformance.families._calls import TOKENS
from dsv4core_conformance.hosts import dtype_name, to_numpy
from dsv4core_conformance.inputs import make
from dsv4core_conformance.inputs.random import options_of
from dsv4core_conformance.inputs.spoil import PATTERNS, read_slots, spoil_unread
from dsv4core_conformance.reference.ops import REFERENCE
from dsv4core_conformance.reference.ops.attention import attend
from dsv4core_conformance.reference.ops.indexer_topk import chosen
from dsv4core_conformance.reference.rows import INDEX, MAIN

LAYOUTS = frozenset((*MAIN, *INDEX))


def expected(op: str, arguments: dict) -> list:
    plain = {name: to_numpy(value) for name, value in arguments.items()}
    return REFERENCE[op](plain, {name: dtype_name(value) for name, value in arguments.items()})


def test_one_key_and_a_sink_of_equal_weight() -> None:
    key = np.array([[1.0, -2.0]])
    o, lse, size = attend(np.array([[3.0, 0.5], [0.0, 0.0]]), key, np.array([4.0, -np.inf]), 2.0)
    assert np.allclose(lse, [4.0, 0.0])
    assert np.allclose(o, [[0.5, -1.0], [1.0, -2.0]])
    assert np.allclose(size, [5**0.5 / 2, 5**0.5])


def test_two_equal_keys_and_an_infinite_sink() -> None:
    o, lse, size = attend(np.zeros((2, 1)), np.array([[1.0], [-1.0]]), np.array([0.0, np.inf]), 1.0)
    assert np.allclose(lse, np.log(2))
    assert np.allclose(o, 0) and np.allclose(size, [2 / 3, 0])


def test_no_key() -> None:
    o, lse, size = attend(np.ones((3, 4)), np.zeros((0, 4)), np.zeros(3), 1.0)
    assert not o.any() and np.isposinf(lse).all() and not size.any()


def test_choice_against_a_sort() -> None:
    row = np.array([1.0, -0.0, 0.0, 1.0, -1.0, np.nan, -np.inf, 5.0], dtype=np.float32)
    assert chosen(row, 8, 3).tolist() == [0, 3, 7]
    assert chosen(row, 8, 4).tolist() == [0, 1, 3, 7]
    assert chosen(row, 7, 9).tolist() == [0, 1, 2, 3, 4, 5, 6, -1, -1]
    assert chosen(row, 0, 2).tolist() == [-1, -1]


def test_slots_and_their_compaction() -> None:
    slots, lens = expected(
        "compute_global_topk_indices_and_lens",
        {
            "topk": torch.tensor([[-1, 5, -7, 0], [3, 2, 1, 0], [7, 8, 2, 99]], dtype=torch.int32),
            "token_to_req": torch.tensor([1, 0, 0], dtype=torch.int32),
            "block_table": torch.tensor([[4, -1], [9, 2]], dtype=torch.int32),
            "is_valid": torch.tensor([True, False, True]),
            "rows": 4,
        },
    )
    assert slots.tolist() == [[9, 36, -1, -1], [-1] * 4, [18, -1, -1, -1]] and lens.tolist() == [2, 0, 1]


def test_a_combined_list() -> None:
    indices, lens = expected(
        "combine_topk_swa_indices",
        {
            "topk": torch.tensor([[0, 9], [1, 0], [1, -1]], dtype=torch.int32),
            "query_start_loc": torch.tensor([7, 8, 10], dtype=torch.int32),
            "seq_lens": torch.tensor([5, 9], dtype=torch.int32),
            "gather_lens": torch.tensor([3, 4], dtype=torch.int32),
            "window": 3, "ratio": 4, "top_k": 2, "M": 100, "N": 50,
        },
    )  # fmt: skip
    # Request 0 has one query at position 4: one entry, positions 2..4, of which 2 is the first gathered one.
    assert indices[0, :5].tolist() == [0, 50, 51, 52, -1]
    # Request 1 has queries at positions 7 and 8: two entries, positions 5..7 and 6..8, gathered from 5 on.
    assert indices[1, :6].tolist() == [101, 100, 150, 151, 152, -1]
    assert indices[2, :6].tolist() == [101, -1, 151, 152, 153, -1]
    assert lens.tolist() == [4, 5, 5] and indices.shape == (3, 128)


def test_four_bit_weights() -> None:
    weight = torch.tensor([[0x72, 0xA1] + [0] * 14], dtype=torch.uint8)  # 1, 6, 0.5, -1
    x = torch.zeros(1, 32, dtype=torch.bfloat16)
    x[0, :4] = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    common = {"x": x, "weight": weight, "out_dtype": torch.float32}
    mxfp4 = {
        **common,
        "scales": torch.tensor([[128]], dtype=torch.uint8),
        "global_scale": None,
        "format": "mxfp4",
    }
    assert expected("linear", mxfp4)[0].tolist() == [[2 * (1 + 60 + 50 - 1000)]]
    scales = torch.tensor([[1.5, 448.0]]).to(torch.float8_e4m3fn)
    nvfp4 = {**common, "scales": scales, "global_scale": torch.tensor([0.5]), "format": "nvfp4"}
    assert expected("linear", nvfp4)[0].tolist() == [[0.75 * (1 + 60 + 50 - 1000)]]


def test_index_scores_by_loops() -> None:
    arguments = make("indexer_logits", kind="dyadic", lens=[5, 66], heads=2, max_len=70, layout="index_f32")
    exact, bound = expected("indexer_logits", arguments)
    pages = arguments["k_cache"].view(torch.float32)
    for t, visible in ((0, 5), (1, 66)):
        assert np.isneginf(exact[t, visible:]).all()
        for s in range(visible):
            page = int(arguments["block_table"][t, s // 64])
            key = pages[page, s % 64 * 128 : s % 64 * 128 + 128].double()
            dots = [float(arguments["q"][t, h].double() @ key) for h in range(2)]
            score = sum(float(w) * max(d, 0.0) for w, d in zip(arguments["weights"][t], dots, strict=True))
            assert exact[t, s] == score and bound[t, s] >= 1e-5 * abs(score)


@pytest.mark.parametrize("op", [op for op in CONTRACTS if op in OPS])
def test_inputs_are_the_same_every_time_and_nobody_elses(op: str) -> None:
    options = options_of(op, 3, LAYOUTS)
    assert options == options_of(op, 3, LAYOUTS) != options_of(op, 4, LAYOUTS)
    one, other = make(op, **options), make(op, **options)
    assert set(one) == set(OPS[op].signature.parameters)
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert to_numpy(value).tobytes() == to_numpy(other[name]).tobytes(), name
            assert value.numel() == 0 or value.data_ptr() != other[name].data_ptr(), name


@pytest.mark.parametrize("pattern", list(PATTERNS))
@pytest.mark.parametrize("layout", MAIN)
def test_what_is_listed_is_not_spoiled(layout: str, pattern: str) -> None:
    clean, spoiled = (
        make("sparse_decode", layout=layout, extra=None, place={"lead": 64, "gap": 8}) for _ in "ab"
    )
    slots = read_slots(spoiled["swa_slots"], spoiled["swa_lens"])
    spoil_unread(spoiled["swa_cache"], slots, layout, 64, pattern)
    assert not torch.equal(clean["swa_cache"], spoiled["swa_cache"])
    for a, b in zip(expected("sparse_decode", clean), expected("sparse_decode", spoiled), strict=True):
        assert np.array_equal(a, b)


def test_ops_with_independent_tokens_have_them_in_front() -> None:
    for op, names in TOKENS.items():
        sizes = {make(op)[name].shape[0] for name in names if make(op)[name] is not None}
        assert len(sizes) == 1, op
