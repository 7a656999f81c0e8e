"""Scores and choice in bounded chunks equal the two ops they replace, exactly."""

from __future__ import annotations

import pytest
import torch
from index_world import LAYOUTS, IndexWorld
from torch.utils._python_dispatch import TorchDispatchMode

from dsv4core.errors import OpArgumentError
from dsv4core.ops import OPS
from dsv4core.samples import Size, sample
from dsv4core_conformance.families._memory import peak_bytes

LENS = [0, 1, 5, 63, 64, 65, 128, 300, 299, 17, 300]
SMALLEST = 160_000  # room for about 64 entries of 128 channels and one token with 4 heads


@pytest.mark.parametrize("workspace", [SMALLEST, 400_001, 64 << 20])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_logits_and_topk(ops, rng, layout: str, workspace: int) -> None:
    world = IndexWorld(rng, layout, LENS, lead=8, gap=40)
    logits = world.logits(ops, 300)
    lens = torch.tensor(LENS, dtype=torch.int32)
    for k in (1, 4, 64, 100, 300, 512):
        got = ops.sparse_indexer(**world.arguments(k=k, workspace_bytes=workspace))
        assert torch.equal(got, ops.indexer_topk(logits, lens, k=k)), k


@pytest.mark.parametrize("layout", ["index_fp8", "index_mxfp4"])
def test_ties_across_chunks_go_to_the_lower_index(ops, rng, layout: str) -> None:
    world = IndexWorld(rng, layout, [300, 280, 130])
    for request in range(3):
        for s in range(300):  # every entry of a request is one of two rows
            slot = int(world.table[request, s // 64]) * 64 + s % 64
            world.pages.fill(slot, world.pages.get(int(world.table[request, 0]) * 64 + s % 2))
    world.weights[1] = 0  # scores +0
    world.weights[2] = -world.weights[2].abs() * 0.0  # scores -0
    logits = world.logits(ops, 300)
    for k in (3, 7, 150, 200):
        got = ops.sparse_indexer(**world.arguments(k=k, workspace_bytes=SMALLEST))
        assert torch.equal(got, ops.indexer_topk(logits, torch.tensor(world.lens, dtype=torch.int32), k=k))
        assert got[1].tolist() == list(range(min(k, 280))) + [-1] * (k - min(k, 280))
        assert got[2].tolist() == list(range(min(k, 130))) + [-1] * (k - min(k, 130))


def test_rows_alone_and_in_a_batch(ops, rng) -> None:
    world = IndexWorld(rng, "index_mxfp4_hadamard", LENS)
    whole = ops.sparse_indexer(**world.arguments(k=16, workspace_bytes=64 << 20))
    for t in range(len(LENS)):
        alone = ops.sparse_indexer(**world.only(t).arguments(k=16, workspace_bytes=SMALLEST))
        assert torch.equal(alone[0], whole[t])


class Largest(TorchDispatchMode):
    """The largest storage that an operation gives, apart from those of the arguments."""

    def __init__(self, arguments: dict[str, object]) -> None:
        super().__init__()
        self.size = 0
        self.own = {a.untyped_storage().data_ptr() for a in arguments.values() if isinstance(a, torch.Tensor)}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in self.own:
                self.size = max(self.size, x.untyped_storage().nbytes())
        return result


def test_the_workspace_is_a_bound(ops, rng) -> None:
    world = IndexWorld(rng, "index_mxfp4", [300] * 60)
    arguments = world.arguments(k=8, workspace_bytes=SMALLEST)
    with Largest(arguments) as largest:
        ops.sparse_indexer(**arguments)
    assert 0 < largest.size <= SMALLEST


def test_no_tokens_and_refusals(ops, rng) -> None:
    world = IndexWorld(rng, "index_fp8", [3, 60])
    for change, argument in [
        ({"k": 0}, "k"), ({"workspace_bytes": 1}, "workspace_bytes"), ({"rotate": "hadamard"}, "rotate"),
        ({"lens": [3, 10**6]}, "context_lens"), ({"requests": [0, 3]}, "token_to_req"),
    ]:  # fmt: skip
        with pytest.raises(OpArgumentError) as caught:
            ops.sparse_indexer(**world.arguments(**{"k": 4, "workspace_bytes": 64 << 20, **change}))
        assert caught.value.argument == argument
    world.q, world.weights = world.q[:0], world.weights[:0]
    got = ops.sparse_indexer(**world.arguments(lens=[], requests=[], k=4, workspace_bytes=64 << 20))
    assert got.shape == (0, 4)


def test_the_keys_of_one_span_are_gone_before_the_next_are_read() -> None:
    """Two spans of keys at a time would pass the workspace by a tenth."""
    size = Size(tokens=12, context=3000)
    arguments = {**sample("sparse_indexer", size), "workspace_bytes": 600_000}
    arguments["token_to_req"] = torch.zeros(12, dtype=torch.int32)
    held = peak_bytes(torch.device("cpu"), lambda: OPS["sparse_indexer"].body(**arguments))
    assert 300_000 < held <= 600_000
