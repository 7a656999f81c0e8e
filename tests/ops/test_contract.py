"""Every op through its overload: schema, fake, opcheck, compile, and the errors of the contract."""

from __future__ import annotations

import pytest
import torch

from dsv4core import get_backend
from dsv4core.config import AttentionConfig
from dsv4core.errors import FallbackError, OpArgumentError
from dsv4core.ops import OPS, OpImpl, OpTable
from dsv4core.samples import Size, sample

TABLE = OpTable("portable_under_test", {name: OpImpl(op.body, "torch") for name, op in OPS.items()}, "error")


def same(a, b) -> None:
    for x, y in zip(*(r if isinstance(r, tuple) else (r,) for r in (a, b)), strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            assert x.dtype == y.dtype and x.shape == y.shape
            assert torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8))


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name: str) -> None:
    # opcheck compares by multiplying, which torch does not do with float8: take packed index queries.
    packed = Size(config=AttentionConfig.preset("tiny", index_layout="index_mxfp4"))
    size = packed if name in ("indexer_logits", "sparse_indexer") else None
    arguments = OPS[name].contract.bind((), sample(name, size))
    torch.library.opcheck(getattr(TABLE, name).overload, tuple(arguments.values()))


@pytest.mark.parametrize("name", OPS)
def test_compiled_fullgraph_equals_eager(name: str) -> None:
    torch._dynamo.reset()
    bound = getattr(TABLE, name)

    def call(arguments):
        return bound(**arguments)

    eager, compiled = sample(name), sample(name)
    same(torch.compile(call, fullgraph=True, backend="aot_eager")(compiled), call(eager))
    for written in OPS[name].mutates:
        same(compiled[written], eager[written])


@pytest.mark.parametrize("name", OPS)
def test_a_backend_refuses_tensors_of_another_device(name: str) -> None:
    """Native kernels take addresses: one of another device would end the process."""
    with pytest.raises(OpArgumentError, match="device of type cpu, like this backend, got meta"):
        getattr(get_backend("cpu").ops, name)(**sample(name, device="meta"))


@pytest.mark.parametrize("name", OPS)
def test_docstring_states_shapes(name: str) -> None:
    text = OPS[name].body.__doc__ or ""
    assert "Shapes:" in text and text.splitlines()[0].endswith((".", "`"))


@pytest.mark.parametrize("name", OPS)
def test_only_declared_arguments_are_written(name: str) -> None:
    arguments = sample(name)
    before = {k: v.clone() for k, v in arguments.items() if isinstance(v, torch.Tensor)}
    getattr(TABLE, name)(**arguments)
    for key, value in before.items():
        if key not in OPS[name].mutates:
            same(arguments[key], value)


@pytest.mark.parametrize(("name", "argument"), [(n, a) for n, op in OPS.items() for a in op.tensors])
def test_wrong_dtype_and_rank_name_op_and_argument(name: str, argument: str) -> None:
    arguments = sample(name)
    for wrong in (torch.zeros(2, 2, 2, 2, dtype=torch.complex64), torch.zeros((), dtype=torch.int16), "no"):
        with pytest.raises(OpArgumentError) as caught:
            getattr(TABLE, name)(**{**arguments, argument: wrong})
        assert (caught.value.op, caught.value.argument) == (name, argument)
        assert caught.value.expected and caught.value.got


def test_wrong_names_of_arguments() -> None:
    bind, arguments = OPS["inverse_rope"].contract.bind, sample("inverse_rope")
    with pytest.raises(OpArgumentError, match=r"'postions' .* an unknown name; did you mean positions\?"):
        bind((), {**arguments, "postions": arguments["positions"]})
    with pytest.raises(OpArgumentError, match="'o' must be given once, got it by place and by name"):
        bind((arguments["o"],), arguments)


def test_nan_is_named_in_checked_mode_only(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = sample("inverse_rope")
    arguments["o"][2, 1, 7] = float("nan")
    with pytest.raises(OpArgumentError, match=r"inverse_rope.*o.*nan at \[2, 1, 7\]"):
        TABLE.inverse_rope(**arguments)
    monkeypatch.setenv("DSV4CORE_CHECK", "0")
    TABLE.inverse_rope(**arguments)


def test_fallback_is_visible_or_an_error(caplog: pytest.LogCaptureFixture) -> None:
    own = {"linear": OPS["linear"].body}
    with caplog.at_level("WARNING", "dsv4core"):
        table = OpTable("half", own, "warn")
    assert table.provenance["linear"] == "half" and table.provenance["inverse_rope"] == "portable"
    assert "1 ops of its own, 18 portable" in caplog.text
    strict = OpTable("half", own, "error")
    assert strict.provenance["inverse_rope"] == "absent"
    with pytest.raises(FallbackError, match=r"inverse_rope.*DSV4CORE_FALLBACK"):
        strict.inverse_rope(**sample("inverse_rope"))
    with pytest.raises(FallbackError, match="sparse_decode"):
        strict.require_all()
    strict.linear(**sample("linear"))
    with pytest.raises(FallbackError, match="unknown ops"):
        OpTable("half", {"lineer": OPS["linear"].body}, "warn")
    with pytest.raises(AttributeError, match="sparse_decode"):
        _ = table.sparse_decod


def test_two_backends_are_two_nodes_of_one_graph() -> None:
    torch._dynamo.reset()
    loud = OpTable("loud", {"inverse_rope": lambda o, p, c: o + 1}, "allow")
    seen: list[str] = []

    def record(graph, _):
        seen.extend(str(n.target) for n in graph.graph.nodes if n.op == "call_function")
        return graph.forward

    arguments = sample("inverse_rope")

    @torch.compile(fullgraph=True, backend=record)
    def both(o, positions, cos_sin):
        return TABLE.inverse_rope(o, positions, cos_sin), loud.inverse_rope(o, positions, cos_sin)

    both(*arguments.values())
    assert seen == ["dsv4core.inverse_rope.portable_under_test", "dsv4core.inverse_rope.loud"]
