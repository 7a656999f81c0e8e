"""Lists of `sparse_indexer` whose scores are exact, so that there is one right list, index for index."""

from __future__ import annotations

import numpy as np
import torch

from dsv4core_conformance.compare import same_values
from dsv4core_conformance.hosts import cloned, dtype_name, to_numpy
from dsv4core_conformance.reference.ops.indexer_logits import scores
from dsv4core_conformance.reference.ops.indexer_topk import chosen
from dsv4core_conformance.subject import Subject

INDEXER = "sparse_indexer"


def exact_list(s: Subject, arguments: dict[str, object]) -> torch.Tensor:
    """Check by margin, then index for index against the list of the float64 scores, which are exact here."""
    before = {name: to_numpy(value) for name, value in cloned(arguments).items()}
    dtypes = {name: dtype_name(value) for name, value in arguments.items()}
    got = s.check(INDEXER, arguments).results[0]
    assert got is not None
    exact, _ = scores(before, dtypes, int(before["context_lens"].max(initial=0)))
    rounded = np.where(np.isfinite(exact), exact, 0.0)
    assert (rounded.astype(np.float32) == rounded).all(), "the scores of this case must be exact in float32"
    lists = [chosen(row, int(n), before["k"]) for row, n in zip(exact, before["context_lens"], strict=True)]
    same_values(f"{INDEXER}: list of exact scores", got, np.array(lists))
    return got
