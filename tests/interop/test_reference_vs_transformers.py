"""The float64 reference in profile `math` is the layer that transformers computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsv4core_conformance.reference import ReferenceConfig, ReferenceLayer

pytest.importorskip("transformers")

from oracle import RATIOS, Oracle, relative

pytestmark = pytest.mark.interop


def reference(oracle: Oracle, config: ReferenceConfig) -> ReferenceLayer:
    weights = {name: tensor.numpy() for name, tensor in oracle.weights().items()}
    return ReferenceLayer(config, RATIOS[oracle.kind], weights)


def tokens(length: int, width: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(length, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        ("swa", 1),
        ("swa", 37),
        ("swa", 300),
        *(("csa", n) for n in (1, 3, 4, 5, 7, 8, 37, 300)),
        *(("hca", n) for n in (1, 100, 127, 128, 129, 300)),
    ],
)
def test_tiny_layer_in_float64(kind: str, length: int) -> None:
    oracle = Oracle(kind, "tiny", dtype=torch.float64)
    x = tokens(length, 64).double()
    expected = oracle.run(x)
    # With four heads many scores are exactly 0 and picks differ among equals: attention gets the oracle's.
    picks = {
        p: [pick for pick in picked if pick >= 0]
        for p, picked in enumerate(oracle.picks[0].tolist() if oracle.picks else [])
    }
    trace = reference(oracle, ReferenceConfig.tiny()).run(x.numpy(), selection=picks)
    assert relative(torch.from_numpy(trace["out"]), expected) < 3e-7


def test_tiny_selection_and_scores() -> None:
    oracle = Oracle("csa", "tiny", dtype=torch.float64)
    x = tokens(300, 64).double()
    oracle.run(x, chunks=[300])
    trace = reference(oracle, ReferenceConfig.tiny()).run(x.numpy())
    assert relative(torch.from_numpy(trace["entries"]), oracle.entries()) < 3e-7
    assert relative(torch.from_numpy(trace["index_entries"]), oracle.entries("indexer")) < 3e-7
    visible = np.isfinite(trace["index_scores"])
    theirs = oracle.scores[0].numpy()
    tolerance = 1e-6 * np.abs(theirs).max()
    assert np.abs(theirs - trace["index_scores"])[visible].max() < tolerance
    for scores, count, picked in zip(
        trace["index_scores"], trace["visible"], oracle.picks[0].tolist(), strict=True
    ):
        chosen = {pick for pick in picked if pick >= 0}
        left = set(range(count)) - chosen
        assert len(chosen) == min(4, count)
        assert not left or min(scores[list(chosen)]) >= max(scores[list(left)]) - tolerance


@pytest.mark.parametrize("kind", list(RATIOS))
def test_flash_layer(kind: str) -> None:
    oracle = Oracle(kind, "v4-flash")
    x = tokens(300, 4096)
    rows = [0, 3, 127, 128, 255, 299]
    trace = reference(oracle, ReferenceConfig.v4_flash()).run(x.numpy(), rows)
    assert relative(torch.from_numpy(trace["out"]), oracle.run(x)[rows]) < 2e-6
