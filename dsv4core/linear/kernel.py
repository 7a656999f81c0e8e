"""What a linear kernel is, and which one gets a projection: the best that takes it, every refusal kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dsv4core import env
from dsv4core.errors import LinearError
from dsv4core.linear.weight import Weight, format_id

VARIABLE = "DSV4CORE_LINEAR"


@dataclass(frozen=True)
class Problem:
    """A projection before its kernel is chosen.

    `format`, `scales`, `rows` and `inputs` describe the weight. `groups` is 0, or the number of groups of the
    output projection, whose rows / groups outputs have inputs of their own. `x` is the type of activations
    (float8_e4m3fn: quantised by the op before), `out` of the result; `quantise` asks for fp8 activations
    inside.
    """

    format: str
    scales: torch.dtype | None
    rows: int
    inputs: int
    x: torch.dtype
    out: torch.dtype
    device: torch.device
    groups: int = 0
    quantise: bool = False

    @staticmethod
    def of(
        weight: Weight, x: torch.dtype, out: torch.dtype, *, groups: int = 0, quantise: bool = False
    ) -> Problem:
        """The problem of a weight."""
        scales = None if isinstance(weight, Tensor) else weight.scales.dtype
        rows, inputs = weight.shape
        return Problem(format_id(weight), scales, rows, inputs, x, out, weight.device, groups, quantise)

    def __str__(self) -> str:
        """One line for people."""
        names = {None: "", torch.float32: ", f32 scales", torch.float8_e4m3fn: ", e4m3 scales"}
        text = f"{self.format}{names.get(self.scales, ', UE8M0 scales')} [{self.rows}, {self.inputs}]"
        text += f", {self.groups} groups" if self.groups else ""
        text += ", fp8 activations" if self.quantise or self.x == torch.float8_e4m3fn else ""
        return text + (", f32 out" if self.out == torch.float32 else "")


class LinearKernel(ABC):
    """A way to multiply by a stored matrix: x @ weight^T.

    The candidate with the highest `rank` that supports a problem gets it. `name` is what DSV4CORE_LINEAR and
    `dsv4core info --linear` say.
    """

    name: str
    rank: int

    @abstractmethod
    def supports(self, problem: Problem) -> Literal[True] | str:
        """True, or why not, in words. Asked before weights are looked at; must not touch the device."""

    def prepare(self, weight: Weight, problem: Problem) -> Any:
        """What `apply` works on, made once after loading: a repacked copy, or the weight itself."""
        return weight

    @abstractmethod
    def apply(self, problem: Problem, prepared: Any, x: Tensor, x_scales: Tensor | None) -> Tensor:
        """The product. `Linear` hands it x in the problem's type, on its device, with channels side by side.

        Shapes: x [T, in] -> problem.out [T, rows]; with groups x [T, H, 512], or float8_e4m3fn [T, G, in]
        with the scales of `fused_inv_rope_fp8_quant` -> [T, G, rows / G].
        """


@dataclass(frozen=True)
class Verdict:
    """What a candidate said: `reason` is empty where it was chosen."""

    name: str
    rank: int
    reason: str


@dataclass(frozen=True)
class Choice:
    """The kernel of a problem, and why every other candidate is not it."""

    kernel: LinearKernel
    verdicts: tuple[Verdict, ...]


def ranked(kernels: Iterable[LinearKernel]) -> list[LinearKernel]:
    """Candidates, best first. Raises LinearError where two share a name."""
    found = sorted(kernels, key=lambda kernel: (-kernel.rank, kernel.name))
    names = [kernel.name for kernel in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise LinearError(f"two linear kernels are called {twice[0]!r}; block a plugin in DSV4CORE_PLUGINS")
    return found


def forced_names(kernels: Sequence[LinearKernel]) -> tuple[str, ...]:
    """What DSV4CORE_LINEAR names. Raises LinearError for a name that no kernel has."""
    names, there = env.read_names(VARIABLE), [kernel.name for kernel in kernels]
    for name in names:
        if name not in there:
            near = env.nearest(name, there)
            hint = f" Did you mean {near!r}?" if near else ""
            raise LinearError(f"{VARIABLE}={name}: there are {', '.join(there)}.{hint}")
    return names


def choose(problem: Problem, kernels: Sequence[LinearKernel]) -> Choice:
    """The first of `ranked` kernels that takes a problem; DSV4CORE_LINEAR names the only ones to be asked.

    Raises LinearError for a name that is not there and where nothing takes the problem, with every reason.
    """
    forced = forced_names(kernels)
    by_name = {kernel.name: kernel for kernel in kernels}
    chosen: LinearKernel | None = None
    verdicts: list[Verdict] = []
    for kernel in [by_name[name] for name in forced] + [k for k in kernels if k.name not in forced]:
        if chosen is not None:
            reason = f"not needed, {chosen.name} comes first"
        elif forced and kernel.name not in forced:
            reason = f"not named by {VARIABLE}={','.join(forced)}"
        else:
            answer = _ask(kernel, problem)
            reason = "" if answer is True else answer
            chosen = kernel if answer is True else None
        verdicts.append(Verdict(kernel.name, kernel.rank, reason))
    if chosen is None:
        reasons = "; ".join(f"{v.name}: {v.reason}" for v in verdicts if not forced or v.name in forced)
        hint = f"; type {VARIABLE}={','.join(forced)},op to let the op take the rest" if forced else ""
        raise LinearError(f"no linear kernel takes {problem}: {reasons}{hint}")
    return Choice(chosen, tuple(verdicts))


def _ask(kernel: LinearKernel, problem: Problem) -> Literal[True] | str:
    try:
        answer: Any = kernel.supports(problem)
    except (Exception, SystemExit) as error:  # a provider that cannot even answer does not stop the others
        return f"it failed to answer: {type(error).__name__}: {error}"
    if answer is True or (isinstance(answer, str) and answer):
        return answer
    return f"it answered {answer!r}, not True or a reason"
