"""Attention, inverse rotation and quantisation as one op: which steps take it, and who is not passed over."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from layer_world import KINDS, World, text
from torch import Tensor

from dsv4core import AttentionConfig, AttentionWeights, PagedCache
from dsv4core.attention import DeepseekV4Attention
from dsv4core.backend import Backend
from dsv4core.ops import OPS, BoundOp, OpTable
from dsv4core.ops_attention import OpsAttention
from dsv4core_cpu.plugin import SPEC

FUSED = "fused_sparse_decode_inv_rope"
PARTS = ("sparse_decode", "inverse_rope", "fused_inv_rope_fp8_quant")
MIXED = [{"a": 130, "b": 5}, {"a": 1, "b": 1}, {"b": 1, "a": 9}, {"a": 2, "b": 1}]


def flat(steps: list[list[str]]) -> set[str]:
    return {name for step in steps for name in step}


class Turning(OpsAttention):
    """A layer that wants the op."""

    attend_turned = OpsAttention.over_pages_turned


class Counted:
    """A backend whose ops are portable bodies under functions of its own; `calls` are those of a step."""

    def __init__(self, own: bool, layer: type[DeepseekV4Attention] | None = Turning) -> None:
        self.calls: list[str] = []
        ops = {name: self.counted(name) for name in OPS if own or name != FUSED}
        provider = SimpleNamespace(name="counted", device_type="cpu", ops=ops, attention_class=layer)
        self.backend = Backend(replace(SPEC, name="counted"), provider, ops)

    def counted(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            return OPS[name].body(*args, **kwargs)

        return call

    def run(self, kind: str, **overrides: Any) -> tuple[list[Tensor], list[list[str]], PagedCache]:
        """The outputs of some steps, prefill first, the ops of interest in each, and the cache."""
        config = AttentionConfig.preset("tiny", **overrides)
        weights = AttentionWeights.random(config, KINDS[kind], seed=7)
        attention = self.backend.attention(config, KINDS[kind], weights)
        cache = PagedCache.allocate(config, [KINDS[kind]], 2048, max_requests=6)
        outputs, taken = [], []
        for new in MIXED:
            held = {name: cache.length(name) if name in cache.requests else 0 for name in new}
            hidden = torch.cat([text(name)[held[name] : held[name] + n] for name, n in new.items()])
            self.calls.clear()
            outputs.append(attention(hidden, cache, cache.plan(new)))
            taken.append([name for name in self.calls if name == FUSED or name in PARTS])
        return outputs, taken, cache


@pytest.mark.parametrize("quant", [None, "f32", "ue8m0x4"])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_decode_rows_alone_take_the_op(kind: str, quant: str | None) -> None:
    turning = "inverse_rope" if quant is None else "fused_inv_rope_fp8_quant"
    two, one = Counted(False), Counted(True)
    apart, steps, plain = two.run(kind, output_quant=quant)
    assert FUSED not in flat(steps) and steps[1] == ["sparse_decode", turning]
    joined, steps, cache = one.run(kind, output_quant=quant)
    decodes = [step for step in steps if "sparse_decode" not in step]
    assert steps[1] == [FUSED] and [FUSED] in decodes
    assert steps[2] == ["sparse_decode", turning]  # prefill rows beside it
    bound = 4e-3 if quant is None else 4e-2  # a code that falls to the other side is a step of 2^-3 away
    for a, b, step in zip(apart, joined, steps, strict=True):
        assert float((a.float() - b.float()).norm()) <= bound * float(a.float().norm())
        assert FUSED in step or torch.equal(a, b)
    for request in ("a", "b"):
        mine, theirs = cache.snapshot(request), plain.snapshot(request)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_neither_the_portable_body_nor_what_nobody_wants_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    call = BoundOp.call

    def recorded(self: BoundOp, bound: Any) -> Any:
        called.append(self.op.name)
        return call(self, bound)

    monkeypatch.setattr(BoundOp, "call", recorded)
    world = World("csa")  # the CPU's own op is that body
    for new in MIXED:
        world.step(new)
    Counted(False).run("csa")
    Counted(True, None).run("csa")  # nobody wanted it
    assert "sparse_decode" in called and FUSED not in called


@pytest.mark.parametrize("quant", [None, "f32"])
def test_a_compiled_step_takes_it_too(quant: str | None) -> None:
    torch._dynamo.reset()
    outputs = []
    for compiled in (True, False):
        made = Counted(True)
        config = AttentionConfig.preset("tiny", output_quant=quant)
        attention = made.backend.attention(config, 1, AttentionWeights.random(config, 1, seed=7))
        cache = PagedCache.allocate(config, [1], 2048, max_requests=6)
        attention(text("a")[:20], cache, cache.plan({"a": 20}))
        call = attention.forward
        if compiled:
            call = torch.compile(call, fullgraph=True, backend="aot_eager")
        made.calls.clear()
        outputs.append(call(text("a")[20:21], cache, cache.plan({"a": 1})))
        assert FUSED in made.calls
    assert torch.equal(*outputs)


def test_padded_heads_take_two_ops() -> None:
    class Padded(Turning):
        @property
        def padded_heads(self) -> int:
            return self.heads + 4

    _, steps, _ = Counted(True, Padded).run("swa")
    assert FUSED not in flat(steps)


def _attend(self: Any, q: Tensor, selected: Any, pages: Any, plan: Any) -> Tensor:
    return OpsAttention.attend(self, q, selected, pages, plan)


def _decode(self: Any, q: Tensor, selected: Any, pages: Any, plan: Any, out: Tensor) -> None:
    OpsAttention.decode(self, q, selected, pages, plan, out)


def _pages(self: Any, *args: Any, **kwargs: Any) -> None:
    OpsAttention.attend_pages(self, *args, **kwargs)


def _turn(self: Any, o: Tensor, plan: Any, cos_sin: Tensor) -> Any:
    return OpsAttention.turn(self, o, plan, cos_sin)


def _output(self: Any, o: Tensor, plan: Any, cos_sin: Tensor) -> Tensor:
    return OpsAttention.output(self, o, plan, cos_sin)


@pytest.mark.parametrize(
    "replaced",
    [
        {"attend": _attend},
        {"decode": _decode},
        {"attend_pages": _pages},
        {"turn": _turn},
        {"output": _output},
    ],
    ids=lambda steps: next(iter(steps)),
)
def test_a_class_with_a_step_of_its_own_is_not_passed_over(replaced: dict[str, Any]) -> None:
    name, step = next(iter(replaced.items()))
    called: list[str] = []

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        called.append(name)
        return step(self, *args, **kwargs)

    _, steps, _ = Counted(True, type("Own", (Turning,), {name: counted})).run("csa")
    assert called and FUSED not in flat(steps)
    asked = {name: counted, "attend_turned": OpsAttention.over_pages_turned}
    _, steps, _ = Counted(True, type("Both", (Turning,), asked)).run("csa")
    assert FUSED in flat(steps)


def test_ops_that_are_optional_need_not_be_there() -> None:
    table = OpTable("all_but_one", {n: op.body for n, op in OPS.items() if not op.optional}, "error")
    assert table.provenance[FUSED] == "absent"
    table.require_all()
