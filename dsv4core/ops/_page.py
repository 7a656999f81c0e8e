"""The page of all ops (`docs/ops.md`), made from their declarations."""

from __future__ import annotations

import inspect

import torch

from dsv4core.ops._contract import TensorSpec
from dsv4core.ops._op import OPS, Op

HEAD = """# Ops

Generated from the declarations in `dsv4core/ops` by `dsv4core.ops._page.markdown`. All {count} ops in the
order of the data flow; `dsv4core.samples.sample(name)` has legal arguments for each, and
`backend.ops.<name>` calls it.

Tensors come first and may be given by place, everything else by keyword. A shape is a list of words: a
symbol takes the first size it meets (T tokens, H heads, R requests, N pages), a parameter's name stands for
its value, `<=T` allows fewer. Where both bf16 and f32 are named, f32 is of the profile `math`; norm and
index weights may be either. "Packed" wants stride(-1) = 1, so column slices and any row stride are legal;
"any" wants nothing.

A page argument is u8 [N, B] with stride(1) = 1 and stride(0) of at least B, in a layout of the family named
(`dsv4core layout list`; [`layouts.md`](layouts.md)). A slot is page * rows + row; a negative one is
nothing. Shapes, dtypes, devices and strides are checked in every call, numbers inside tensors in checked
mode (`DSV4CORE_CHECK`, on for tensors in host memory); one `OpArgumentError` names op, argument, expected
and got, and nothing has been written then.

"Exact" means equal bits between backends, other words a bound; both are in
[`arithmetic.md`](arithmetic.md), with the rules (CA1) that are named as sources.
`benchmarks/_vllm_peers.py` calls vLLM's kernels that do the same, with the arguments that match.
"""
DTYPES = {
    torch.bfloat16: "bf16", torch.float32: "f32", torch.uint8: "u8", torch.int32: "i32", torch.int64: "i64",
    torch.bool: "bool", torch.float8_e4m3fn: "e4m3", torch.float8_e8m0fnu: "e8m0",
}  # fmt: skip
STRIDES = {"last": "packed", "any": "any", "page": "page"}


def markdown() -> str:
    """Return the page of all ops as Markdown, for the documentation."""
    return "\n".join([HEAD.format(count=len(OPS)), *(_section(op) for op in OPS.values())])


def _section(op: Op) -> str:
    summary, _, text = inspect.cleandoc(op.body.__doc__ or "").partition("\n\n")
    lines = [f"## `{op.name}`", "", " ".join(summary.split()), "", "| tensor | shape | dtype | strides | |"]
    lines += ["|---|---|---|---|---|", *(_row(op, name, spec) for name, spec in op.tensors.items()), ""]
    words = [str(p) for p in op.signature.parameters.values() if p.name not in op.tensors]
    optional = ["An optional op: a backend without it is complete."] if op.optional else []
    bound = "exact" if op.tolerance.kind == "exact" else f"{op.tolerance.kind}, {op.tolerance.bound:g}"
    named = f"Keywords: {', '.join(f'`{word}`' for word in words)}." if words else "No keywords."
    lines += [" ".join([*optional, named, f"Returns {_results(op)}. Judged: {bound}."]), ""]
    lines += [" ".join(paragraph.split()) + "\n" for paragraph in text.split("\n\n")]
    return "\n".join(lines)


def _row(op: Op, name: str, spec: TensorSpec) -> str:
    notes = ["written"] if name in op.mutates else []
    notes += ["or None"] if spec.optional else []
    if spec.families:
        notes.append(f"{' or '.join(spec.families)} pages of `{spec.layout}`, `{spec.rows}` rows each")
    dtypes = " or ".join(DTYPES[dtype] for dtype in spec.dtypes)
    shape = f"[{', '.join(spec.shape.split())}]"
    cells = (f"`{name}`", shape, dtypes, STRIDES[spec.strides], ", ".join(notes))
    return f"| {' | '.join(cells)} |"


def _results(op: Op) -> str:
    kind = op.signature.return_annotation
    count = 0 if kind is None else len(kind.__args__) if hasattr(kind, "__args__") else 1
    words = ["one may be None" for _ in op.optional_results]
    return ", ".join([("nothing", "a tensor", "two tensors", "three tensors")[count], *words])
