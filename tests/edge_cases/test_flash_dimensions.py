"""In V4-Flash dimensions: decode equals prefill, bytes are the same for any chunking and thread count."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from harness import ALL_CANDIDATES, Rig, assert_same_bytes, relative


@pytest.fixture(scope="module", params=["swa", "csa", "hca"])
def layer(request: pytest.FixtureRequest) -> Iterator[Rig]:
    yield Rig(request.param, "vllm", {"index_topk": ALL_CANDIDATES}, "v4-flash")
    gc.collect()


def test_decode_chunks_and_threads(layer: Rig) -> None:
    hidden = layer.hidden(136)
    cache, once = layer.cache(256, 1), layer.cache(256, 1)
    stepped = layer.run(hidden, [126, 1, 1, 1, 1, 5, 1], cache)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        whole = layer.run(hidden, cache=once)
    finally:
        torch.set_num_threads(before)
    assert_same_bytes(cache.snapshot("a"), once.snapshot("a"))
    steps = [126, 127, 128, 129, 135]
    assert relative(stepped[steps], whole[steps]) < 2e-3
    trace = layer.trace(hidden, steps)
    assert relative(stepped[steps], trace["out"]) < 6e-3
    other = layer.cache(512, 2)
    part = layer.hidden(9, stream=2)
    together = layer.step(other, {"b": part, "a": hidden})
    assert relative(together[9:], whole) == 0, "a row alone equals the row in a batch"
    assert_same_bytes(other.snapshot("a"), once.snapshot("a"))
