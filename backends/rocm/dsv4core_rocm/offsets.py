"""Find 32-bit products of strides in the addresses of a compiled Triton kernel.

A cache passes 2^31 elements long before it is large for an AMD device, and there an address wraps in silence.
Triton widens a product only if one side is 64 bits wide before it is multiplied.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

RESULT = re.compile(r"^\s*(%[\w]+)(?::(\d+))?\s*=\s*([\w.]+)(.*)$")
ARGUMENT = re.compile(r"(%\w+): (i32|i64)\b")
NAME = re.compile(r"%\w+(?:#\d+)?")
SAME = (
    "tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape", "tt.trans", "arith.extsi", "arith.extui",
    "arith.trunci", "arith.index_cast",
)  # fmt: skip
ENDS = ("tt.load", "tt.atomic_rmw", "tt.dot", "arith.cmpi", "arith.cmpf", "arith.sitofp", "arith.constant")


@dataclass
class _Flow:
    """What is known of a kernel's values: which are an argument, and which hold a narrow product."""

    arguments: set[str]
    narrow: dict[str, str] = field(default_factory=dict[str, str])
    found: dict[str, str] = field(default_factory=dict[str, str])
    quotients: dict[str, str] = field(default_factory=dict[str, str])

    def step(self, line: str, scopes: list[tuple[str, list[str]]]) -> None:
        """Follow one line."""
        said = line.split(" loc(")[0]
        place = line.rpartition(" loc(")[2].rstrip(")")
        named = RESULT.match(said)
        if said.strip().startswith("scf.yield") and scopes:
            result, inside = scopes[-1]
            for i, value in enumerate(NAME.findall(said.partition(" : ")[0])):
                for other in (f"{result}#{i}", result, *inside[i : i + 1]):
                    self._carry([value], other)
            return
        if named is None:
            return
        result, _, operation, rest = named.groups()
        operands = NAME.findall(rest.partition(" : ")[0])
        if operation in ("scf.for", "scf.if", "scf.while"):
            carried = re.findall(r"(%\w+) = (%\w+(?:#\d+)?)", rest.partition("iter_args(")[2])
            for inner, outer in carried:
                self._carry([outer], inner)
            scopes.append((result, [inner for inner, _ in carried]))
        elif operation in SAME and operands and operands[0] in self.arguments:
            self.arguments.add(result)
            self._carry(operands, result)
        elif operation == "tt.addptr":
            if len(operands) > 1 and operands[1] in self.narrow:
                self.found[f"{operands[1]} at {place}"] = self.narrow[operands[1]]
        elif operation == "arith.divsi":
            self.quotients[result] = operands[1]
            self._carry(operands, result)
        elif operation == "arith.muli" and self.quotients.get(operands[0]) == operands[1]:
            self._carry(operands, result)  # x // n * n, of a remainder: no larger than x
        elif (
            operation == "arith.muli"
            and re.search(r"[ x<]i32>?\s*$", said)
            and set(operands) & self.arguments
        ):
            self.narrow[result] = f"{said.strip()} at {place}"
        elif operation == "arith.select":
            self._carry(operands[1:], result)
        elif operation not in ENDS:
            self._carry(operands, result)

    def _carry(self, sources: list[str], target: str) -> None:
        for source in sources:
            if source in self.narrow:
                self.narrow.setdefault(target, self.narrow[source])


def narrow_products(ttir: str) -> list[str]:
    """Products of an argument in 32 bits that reach an address, as lines of the IR; [] where there are none.

    `ttir` is a module with one function, all calls inlined: `compiled.asm["ttir"]`.
    """
    lines = [line for line in ttir.splitlines() if not line.lstrip().startswith("#loc")]
    head = next((line for line in lines if "tt.func" in line), "")
    flow = _Flow({name for name, _ in ARGUMENT.findall(head)})
    before = -1
    while before != len(flow.narrow) + len(flow.found):  # loops carry values round
        before = len(flow.narrow) + len(flow.found)
        scopes: list[tuple[str, list[str]]] = []
        for line in lines:
            if line.strip().startswith("}") and "else" not in line and scopes:
                scopes.pop()
            flow.step(line, scopes)
            if line.rstrip().endswith("{") and line.lstrip().startswith("scf."):  # one without results
                scopes.append(("", []))
    return sorted(set(flow.found.values()))
