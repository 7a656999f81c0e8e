"""Whether a backend's op computes what the contract says; no time is shown for one that does not.

Exact ops are compared bit for bit with the portable body. Bounded ones are measured against a result of
higher precision, because that is what their bounds are stated for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsv4core.layout import get_layout
from dsv4core.numerics.rope import rotate_tail
from dsv4core.ops import OPS, Op, _scores
from dsv4core.samples import Size, sample

LSE_ABSOLUTE, LSE_RELATIVE = 1e-5, 1e-6  # docs/arithmetic.md, what is bounded
FULL, SMALLEST_SCALE = 224, 2.0**-42  # a block's largest code, but under the scale of the floor 1e-10
SAME_WORK = 2e-2  # share of bytes or entries, or relative L2, by which a peer may differ
Outputs = list[Tensor | None]
Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """Whether an op holds its contract on a sample, and the figure or the reason."""

    ok: bool
    text: str


def check(op: Op, call: Callable[..., Any], size: Size, device: str) -> Verdict:
    """Compare `call` on `device` with the portable body of `op` on the CPU, on the same sample."""
    return judge(op, call, sample(op.name, size), device)


def judge(op: Op, call: Callable[..., Any], arguments: Arguments, device: str) -> Verdict:
    """Whether `call` on `device` holds the contract on arguments that lie on the host."""
    try:
        mine = outputs(op, call, placed(fresh(op, arguments), device))
    except Exception as error:  # a backend may fail in any way; that is a result too
        return Verdict(False, f"raised {type(error).__name__}: {error}")
    wanted = outputs(op, op.body, fresh(op, arguments))
    problem = _form(mine, wanted)
    if problem:
        return Verdict(False, problem)
    if op.tolerance.kind == "exact":
        return _same(mine, wanted)
    present = [part for part in mine if part is not None]
    if any(bool(part.isnan().any()) for part in present):
        return Verdict(False, "NaN in a result")
    error = _MEASURES[op.tolerance.kind](op, fresh(op, arguments), present)
    holds = error <= op.tolerance.bound
    return Verdict(holds, f"{error:.1e} {'<=' if holds else '>'} {op.tolerance.bound:.0e}")


def alike(mine: Outputs, expected: Outputs) -> Verdict:
    """Whether somebody else's results come from the same work; what it does not give is None.

    Bytes are counted, lists compared without their order, numbers by relative L2: a peer has roundings of its
    own and is held to no contract, but a time of other work says nothing.
    """
    said: list[str] = []
    same = True
    for a, b in zip(mine, expected, strict=True):
        if a is None or b is None:
            continue
        if a.shape != b.shape:
            return Verdict(False, f"gave shape {list(a.shape)} instead of {list(b.shape)}")
        what, share = _difference(a, b)
        same = same and share <= SAME_WORK
        said.append(f"{what} {share:.1e}" if share else f"{what} 0")
    return Verdict(same, "; ".join(said) or "not compared")


def _difference(a: Tensor, b: Tensor) -> tuple[str, float]:
    if b.dtype == torch.int32:
        missed = [~torch.isin(wanted, listed) for listed, wanted in zip(a, b, strict=True)]
        return "list entries differ", float(torch.stack(missed).double().mean())
    if b.dtype in (torch.uint8, torch.float8_e4m3fn):
        return "bytes differ", float((_bytes(a) != _bytes(b)).double().mean())
    gap = torch.where(a == b, 0.0, a.double() - b.double())  # infinities that agree are no gap
    size = b.double().masked_fill(b.isinf(), 0.0)
    return "relative L2", float((gap.square().sum() / size.square().sum()).sqrt())


def fresh(op: Op, arguments: Arguments) -> dict[str, Any]:
    """The arguments of one more call: what the op writes is a copy."""
    return {**arguments, **{name: arguments[name].clone() for name in op.mutates}}


def placed(arguments: Arguments, device: str) -> dict[str, Any]:
    """The arguments on a device; on the host the tensors themselves."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}


def outputs(op: Op, call: Callable[..., Any], arguments: Arguments) -> Outputs:
    """Everything a call gives on the host: its results, then the arguments it writes."""
    result = call(**arguments)
    found: list[Any] = []
    if result is not None:
        found += result if isinstance(result, tuple) else (result,)
    found += [arguments[name] for name in op.mutates]
    return [part.cpu() if isinstance(part, Tensor) else None for part in found]


def _form(mine: Outputs, wanted: Outputs) -> str:
    """What is wrong with number, shape or dtype of the results; empty if nothing is."""
    forms = [[None if p is None else (list(p.shape), p.dtype) for p in parts] for parts in (mine, wanted)]
    return "" if forms[0] == forms[1] else f"gave {forms[0]} instead of {forms[1]}"


def _same(mine: Outputs, wanted: Outputs) -> Verdict:
    for place, (a, b) in enumerate(zip(mine, wanted, strict=True)):
        if a is not None and b is not None:
            bad = int((_bytes(a) != _bytes(b)).sum())
            if bad:
                return Verdict(False, f"result {place}: {bad} of {_bytes(b).numel()} bytes differ")
    return Verdict(True, "bit-identical")


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def _matmul(op: Op, arguments: Arguments, mine: list[Tensor]) -> float:
    """Relative L2 against the same operands widened to f32."""
    wide = {k: v.float() if _is_bf16(v) else v for k, v in arguments.items()}
    if "out_dtype" in wide:
        wide["out_dtype"] = torch.float32
    wanted = op.body(**wide).double()
    return float(((mine[0].double() - wanted).square().sum() / wanted.square().sum()).sqrt())


def _is_bf16(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16


def _logits(op: Op, arguments: Arguments, mine: list[Tensor]) -> float:
    """Largest error relative to sum_h |w_h| sum_d |q_hd k_d|; cells that nobody sees must be -inf."""
    a, wanted = arguments, op.body(**arguments)
    if not torch.equal(mine[0].isneginf(), wanted.isneginf()):
        return torch.inf
    worst = 0.0
    for t, length in enumerate(int(n) for n in a["context_lens"]):
        gap = (mine[0][t, :length].double() - wanted[t, :length].double()).abs()
        worst = max(worst, float((gap / _sizes(op, a, t, length)).max())) if length else worst
    return worst


def _list(op: Op, arguments: Arguments, mine: list[Tensor]) -> float:
    """By how much an entry that was left out beats a chosen one, relative to the size of its products."""
    a = {name: value for name, value in arguments.items() if name not in ("k", "workspace_bytes")}
    lens = [int(n) for n in a["context_lens"]]
    logits = OPS["indexer_logits"].body(**a, max_len=max(lens, default=0)).double()
    worst = 0.0
    for t, length in enumerate(lens):
        row, count = mine[0][t].long(), min(arguments["k"], length)
        chosen = torch.zeros(length, dtype=torch.bool, device=row.device)
        chosen[row[:count].clamp(0, max(length - 1, 0))] = True
        ascending = bool((row[1:count] > row[: max(count - 1, 0)]).all())
        if int(chosen.sum()) != count or not ascending or bool((row[count:] != -1).any()):
            return torch.inf
        if count < length:
            gap = logits[t, :length][~chosen].max() - logits[t, :length][chosen].min()
            worst = max(worst, float(gap / _sizes(op, a, t, length).max()))
    return worst


def _sizes(op: Op, a: Arguments, t: int, length: int) -> Tensor:
    """sum_h |w_h| sum_d |q_hd k_d| of the entries that token t sees. Shapes: -> f64 [length]."""
    layout = get_layout(a["layout"])
    q = _scores.query_values(a["q"], a["q_scales"], torch.arange(a["q"].shape[0], device=a["q"].device)).abs()
    pages = (a["k_cache"], a["block_table"], int(a["token_to_req"][t]), slice(0, length), layout, a["rows"])
    keys, factor = _scores.entry_values(*pages, op.name)
    return _scores.scores(q[t : t + 1], a["weights"][t : t + 1].abs(), keys.abs(), factor, False)[0].double()


def _attention(op: Op, arguments: Arguments, mine: list[Tensor]) -> float:
    """Largest L2 error per (token, head) relative to |sum_j p_j |k_j||, in float64; inf if lse is off."""
    worst = 0.0
    lse, out = mine[0].double(), mine[1].double()
    for t in range(arguments["q"].shape[0]):
        exact, wanted, size = _exact(arguments, t)
        if bool(((lse[t] - wanted).abs() > LSE_ABSOLUTE + LSE_RELATIVE * wanted.abs()).any()):
            return torch.inf
        worst = max(worst, float((_lengths(out[t] - exact) / size).max()))
    return worst


def _turned(op: Op, arguments: Arguments, mine: list[Tensor]) -> float:
    """The same for outputs turned back; of codes, what is left beside half a step; inf if a scale is off."""
    a, worst = arguments, 0.0
    value, half = _decoded(mine, a["q"].shape[1])
    if bool(half.isinf().any()):
        return torch.inf
    for t in range(a["q"].shape[0]):
        exact, _, size = _exact(a, t)
        exact = rotate_tail(exact.float(), a["cos_sin"][a["positions"][t]], inverse=True).double()
        over = ((value[t] - exact).abs() - half[t]).clamp(min=0)
        worst = max(worst, float((_lengths(over) / size).max()))
    return worst


def _decoded(mine: list[Tensor], heads: int) -> tuple[Tensor, Tensor]:
    """A turned output as values and half a step of its codes, inf under a scale that is larger than it must.

    Shapes: -> f64 [T, H, 512] twice
    """
    if len(mine) == 1:
        return mine[0].double(), torch.zeros_like(mine[0], dtype=torch.float64)
    codes, scales = mine
    factor = scales.double() if scales.dtype == torch.float32 else _powers(scales)
    factor = factor.reshape(codes.shape[0], heads, -1, 1)
    grid = codes.double().reshape(codes.shape[0], heads, factor.shape[2], -1)
    step = torch.exp2(grid.abs().log2().floor().clamp(min=-6) - 4)
    loose = (grid.abs().amax(-1, keepdim=True) < FULL) & (factor > SMALLEST_SCALE)
    step = step.masked_fill(loose, torch.inf)
    return (grid * factor).flatten(2), (step * factor).flatten(2)


def _powers(words: Tensor) -> Tensor:
    """The scales in words of four exponent bytes. Shapes: i32 [..., n] -> f64 [..., 4 * n]"""
    return torch.exp2(words.contiguous().view(torch.uint8).double() - 127)


def _exact(a: Arguments, t: int) -> tuple[Tensor, Tensor, Tensor]:
    """Output, lse and |sum_j p_j |k_j|| of token t. Shapes: -> f64 [H, 512], [H], [H]"""
    keys = torch.cat([part.double() for part in _keys(a, t)])
    score = a["q"][t].double() @ keys.T * a["scale"]
    lse = score.logsumexp(1)
    p = (score - torch.logaddexp(lse, a["attn_sink"].double()).unsqueeze(1)).exp()
    return p @ keys, lse, _lengths(p @ keys.abs())


def _lengths(x: Tensor) -> Tensor:
    """L2 norms of rows. Shapes: f64 [H, 512] -> f64 [H]"""
    return x.square().sum(1).sqrt()


def _keys(a: Arguments, t: int) -> list[Tensor]:
    """The rows that token t lists, cache by cache."""
    if "kv" in a:
        return [a["kv"][a["indices"][t, : int(a["lens"][t])].long()]]
    parts: list[Tensor] = []
    for name, layout in (("swa", a["layout"]), ("extra", a["extra_layout"])):
        slots = a[f"{name}_slots"][t, : int(a[f"{name}_lens"][t])].long()
        found = get_layout(layout)
        parts.append(found.decode(found.read(a[f"{name}_cache"], slots, a[f"{name}_rows"])))
    return parts


_MEASURES: dict[str, Callable[[Op, Arguments, list[Tensor]], float]] = {
    "matmul": _matmul,
    "logits": _logits,
    "list": _list,
    "attention": _attention,
    "turned attention": _turned,
}
