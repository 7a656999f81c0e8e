"""Which steps of a layer take the op that turns outputs back: those that our own decode kernel takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dsv4core_cuda.backend as backend_module
from dsv4core import AttentionConfig, AttentionWeights, PagedCache
from dsv4core.backend import Backend
from dsv4core.ops import OPS
from dsv4core_cuda.backend import CudaBackend
from dsv4core_cuda.flashmla import Pages
from dsv4core_cuda.plugin import SPEC

FUSED = "fused_sparse_decode_inv_rope"
STEPS = ({"a": 140, "b": 5}, {"a": 1, "b": 1}, {"b": 1, "a": 9}, {"a": 1, "b": 1})
ONE = [False, True, False, True]  # the steps of decode rows alone


class Cluster:
    """Stands in for the decode kernel: takes what it is told to, and keeps what it was asked about."""

    def __init__(self, reasons: tuple[str, ...] = ()) -> None:
        self.reasons = reasons
        self.asked: list[tuple[Pages, Pages | None]] = []

    def against(self, q: Tensor, swa: Pages, extra: Pages | None, *_: Any) -> tuple[str, ...]:
        self.asked.append((swa, extra))
        return self.reasons


def run(
    monkeypatch: pytest.MonkeyPatch,
    cluster: Cluster | None,
    layer: int = 1,
    own: bool = True,
    heads: int = 0,
    fuse: str = "1",
) -> tuple[list[bool], list[int]]:
    """Whether each step took the op, and how wide its second list was."""
    calls: list[str] = []
    widths: list[int] = []

    def counted(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if name == FUSED:
                widths.append(0 if args[5] is None else args[5].shape[1])
            return OPS[name].body(*args, **kwargs)

        return call

    monkeypatch.setattr(backend_module, "_on_device", lambda fewest, invariant: (None, "none here"))
    provider = CudaBackend({"attention": "triton", "fuse_output": fuse})
    provider.device_type, provider.cluster = "cpu", cluster
    provider.ops = {name: counted(name) for name in OPS if own or name != FUSED}
    made = Backend(SPEC, provider, provider.ops)
    config = AttentionConfig.preset("tiny")
    attention = made.attention(config, layer, AttentionWeights.random(config, layer, 3))
    if heads:
        attention.padded_heads = heads
        attention.attn_sink = torch.nn.functional.pad(
            attention.attn_sink, (0, heads - attention.heads), value=-torch.inf
        )
    cache = PagedCache.allocate(config, [layer], 512, torch.device("cpu"))
    taken = []
    for i, new in enumerate(STEPS):
        calls.clear()
        rows = torch.randn(
            sum(new.values()), config.hidden_size, generator=torch.Generator().manual_seed(i)
        ).bfloat16()
        attention(rows, cache, cache.plan(new))
        assert (FUSED in calls) != ("sparse_decode" in calls or "sparse_prefill" in calls)
        taken.append(FUSED in calls)
    return taken, widths


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_steps_of_decode_rows_that_the_kernel_takes(layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    taken, widths = run(monkeypatch, cluster, layer)
    assert taken == ONE and len(widths) == 2
    asked = [(swa, extra) for swa, extra in cluster.asked if swa.slots.shape[0] == 2]  # those of two rows
    for (swa, extra), width in zip(asked, widths, strict=True):
        assert swa.slots.shape[1] == 128 and swa.rows == 64
        assert (extra is None) == (layer == 0) and (extra is None or extra.slots.shape[1] == width)


def test_steps_that_take_two_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    none = [False] * len(STEPS)
    for fuse in ("", "0"):
        assert run(monkeypatch, Cluster(), fuse=fuse)[0] == none  # nobody asked
    assert run(monkeypatch, None)[0] == none  # no such kernel
    assert run(monkeypatch, Cluster(("too many rows",)))[0] == none
    assert run(monkeypatch, Cluster(), own=False)[0] == none  # never the portable body
    assert run(monkeypatch, Cluster(), heads=8)[0] == none  # padded heads are no part of the output
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr("dsv4core.ops._bind.BoundOp.__call__", lambda self, *a, **k: self.run(*a, **k))
    assert run(monkeypatch, Cluster())[0] == none  # asking looks at addresses
