"""What a plan refuses, and in which words."""

from __future__ import annotations

import pytest
import torch

from dsv4core.config import AttentionConfig
from dsv4core.errors import BackendError, CacheError
from dsv4core.plan import BatchPlan, Limits

TINY = AttentionConfig.preset("tiny")


def table(rows=1, columns=1, dtype=torch.int32):
    return torch.zeros((rows, columns), dtype=dtype)


CSA = ("swa", "c4", "indexer", "state_c4", "state_indexer")
BAD = {
    "one number each": ({"seq_lens": [1, 2]}, "one number per request"),
    "negative": ({"query_lens": [-1]}, r"query_lens\[0\] is -1"),
    "fraction": ({"query_lens": [1.5]}, r"query_lens\[0\] is 1.5"),
    "truth value": ({"query_lens": [True]}, r"query_lens\[0\] is True"),
    "longer than the request": ({"query_lens": [3], "seq_lens": [2]}, "seq_lens counts the tokens after"),
    "past the model": ({"seq_lens": [2**20 + 1]}, "max_position_embeddings"),
    "pad_to too small": ({"query_lens": [4], "seq_lens": [4], "pad_to": 3}, "pad_to=3 but the step has 4"),
    "pad_to negative": ({"pad_to": -1}, "pad_to is -1"),
    "no window": ({"tables": {}}, r"missing \['swa'\]"),
    "half a ratio": ({"tables": {"swa": table(), "c4": table()}}, "indexer.*state_c4.*state_indexer"),
    "unknown group": ({"tables": {"swa": table(), "c8": table()}}, r"unknown in tables or rows \['c8'\]"),
    "unknown rows": ({"rows": {"c8": 2}}, r"unknown in tables or rows \['c8'\]"),
    "rows": ({"rows": {"swa": 0}}, r"rows\['swa'\] is 0"),
    "table type": ({"tables": {"swa": table(dtype=torch.int64)}}, "torch.int32"),
    "table shape": ({"tables": {"swa": torch.zeros(3, dtype=torch.int32)}}, "torch.int32"),
    "no table": ({"tables": {"swa": [[0]]}}, r"tables\['swa'\] is a list: a page table is torch.int32"),
    "table rows": ({"tables": {"swa": table(rows=2)}}, "2 rows for 1 requests"),
    "table columns": ({"seq_lens": [65]}, r"has 1 pages of 64 rows.*needs 2"),
    "entry columns": (
        {"seq_lens": [257 + 3], "tables": {name: table(1, 1 if name == "c4" else 99) for name in CSA}},
        r"tables\['c4'\] has 1 pages of 64 rows",
    ),
    "no lengths": ({"query_lens": 5}, "query_lens is 5: pass a list"),
    "no lengths after": ({"seq_lens": None}, "seq_lens is None: pass a list"),
    "no tables": ({"tables": None}, "tables is a NoneType: pass a mapping"),
    "rows in a list": ({"rows": [64]}, "rows is a list: pass a mapping"),
    "two devices": (
        {"tables": {name: table().to("meta" if name == "c4" else "cpu") for name in CSA}},
        "one device",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_with_a_reason(name):
    arguments, words = BAD[name]
    good = {"query_lens": [1], "seq_lens": [1], "tables": {"swa": table()}}
    BatchPlan.build(TINY, **good)
    with pytest.raises(CacheError, match=words):
        BatchPlan.build(TINY, **{**good, **arguments})


def test_a_device_that_is_not_here_is_named():
    with pytest.raises(BackendError, match=r"device 'gpu': torch .* makes no tensor there"):
        BatchPlan.build(TINY, query_lens=[1], seq_lens=[1], tables={"swa": table()}, device="gpu")
    for absent in (99, torch.device("cuda:99")):
        with pytest.raises(BackendError, match=r"device '.*99': torch .* makes no tensor there"):
            BatchPlan.build(TINY, query_lens=[1], seq_lens=[1], tables={"swa": table()}, device=absent)


@pytest.mark.parametrize("bad", [0, -1, 1.0, True, None])
@pytest.mark.parametrize("name", ["max_tokens", "max_seq_len", "max_requests"])
def test_limits_are_whole_numbers(name, bad):
    with pytest.raises(CacheError, match=name):
        Limits(**{"max_tokens": 1, "max_seq_len": 1, "max_requests": 1, name: bad})
