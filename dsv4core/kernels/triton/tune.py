"""Choose launch arguments by measurement on the device that is here: what `dsv4core tune` does.

Every row of the table that a call uses is improved one argument at a time, to its double or its half, as long
as that is faster by more than noise and gives the same results. Nothing of this happens in a user's run: the
table is a file.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from dsv4core.bench.gate import outputs
from dsv4core.kernels.triton import _launch, _tuning
from dsv4core.kernels.triton._devices import Device, devices
from dsv4core.kernels.triton._tuning import Place, row_at
from dsv4core.kernels.triton.calls import Call
from dsv4core.ops import OPS

COLD = 256 << 20  # bytes of arguments that calls go through, several times a last-level cache
FASTER = 0.97  # of the time before; what gains less is noise
FAR = 8  # times what a row had is as far as its sizes grow
SWITCHES = ("APART", "few", "hopper", "launch_pdl", "matrix_instr_nonkdim")  # no sizes of one kernel
LIMITS = {"num_warps": 16, "num_stages": 5, **dict.fromkeys(SWITCHES, 0)}
Row = dict[str, int]
Compare = Callable[[Mapping[str, Callable[[], Any]]], dict[str, float]]


@dataclass(frozen=True)
class Outcome:
    """A row before and after, with seconds of a call; the same where nothing was faster."""

    place: Place
    before: Row
    after: Row
    seconds_before: float
    seconds_after: float


def tune(
    calls: Mapping[str, Callable[[], Call]], device: str, kernels: tuple[str, ...], compare: Compare,
    cold: int = COLD, seconds: float = float("inf"),
) -> Iterator[Outcome]:  # fmt: skip
    """Improve the rows of `kernels` (all, if empty) that calls use.

    `compare` times functions side by side; a timed call goes through copies of its arguments of `cold` bytes.
    After `seconds` nothing new is tried: rows not reached by then have no outcome.
    """
    done: set[Place] = set()
    end = time.monotonic() + seconds
    for make in calls.values():
        if time.monotonic() >= end:
            return
        op, arguments = make()
        trial = _Trial(op, arguments, device, compare, cold, end)
        for place in trial.used():
            if place not in done and (not kernels or place.kernel in kernels) and time.monotonic() < end:
                done.add(place)
                yield trial.improve(place)


def reached(make: Callable[[], Call], device: str) -> set[str]:
    """The kernels whose rows a call takes in a family of devices; nothing is started."""
    op, arguments = make()
    found: set[str] = set()

    def note(place: Place) -> Row:
        found.add(place.kernel)
        return {k: v for k, v in row_at(place).items() if k != "least"}

    function = getattr(import_module(f"{__package__}.{op}"), op)
    with _launch.recorded(lambda *_: None, device), _tuning.trial(note):
        function(**arguments)
    return found


class _Trial:
    """One call on the device, whose launches take other rows than the table's."""

    def __init__(
        self, op: str, arguments: dict[str, Any], device: str, compare: Compare, cold: int, end: float
    ) -> None:
        self.op, self.compare, self.end = OPS.get(op), compare, end  # a kernel of `calls.products` has none
        self.function = getattr(import_module(f"{__package__}.{op}"), op)
        size = sum(v.numel() * v.element_size() for v in arguments.values() if isinstance(v, Tensor))
        self.copies = [_on(device, arguments) for _ in range(max(1, min(16, cold // max(size, 1))))]
        self.rows: dict[Place, Row] = {}

    def used(self) -> list[Place]:
        """The rows that the call takes; their arguments are remembered as the start."""
        self.wanted = self.run()
        return list(self.rows)

    def run(self) -> list[Tensor | None]:
        """Results of the call, and what it wrote, on the host."""
        arguments = self.copies[0]
        if self.op is None:
            result = self.call(**arguments)
            return [part.cpu() for part in (result if isinstance(result, tuple) else (result,))]
        cleared = {name: torch.zeros_like(arguments[name]) for name in self.op.mutates}
        return outputs(self.op, self.call, {**arguments, **cleared})

    def call(self, **arguments: Any) -> Any:
        """The op, with the rows chosen so far."""
        with _tuning.trial(self.chosen):
            return self.function(**arguments)

    def chosen(self, place: Place) -> Row:
        """The row on trial at a place, at first the table's."""
        return dict(self.rows.setdefault(place, {k: v for k, v in row_at(place).items() if k != "least"}))

    def cold(self) -> None:
        """The call on every copy of its arguments."""
        for arguments in self.copies:
            self.call(**arguments)

    def improve(self, place: Place) -> Outcome:
        """Change one argument after another while that helps; a noisy clock makes no row be tried twice."""
        first = best = self.rows[place]
        tried = [first]
        before = after = 0.0
        changed = True
        while changed:
            changed = False
            for name, value in [(n, v) for n, old in best.items() for v in (old * 2, old // 2)]:
                other = {**best, name: value}
                most = LIMITS.get(name, FAR * first[name])
                if not 0 < value <= most or other in tried or time.monotonic() >= self.end:
                    continue
                tried.append(other)
                if not self.same(place, other):
                    continue
                times = self.times(place, best, other)
                if times is None:
                    continue
                before = before or times["best"]
                after = after or times["best"]
                if times["other"] < FASTER * times["best"]:
                    best, after, changed = other, times["other"], True
        self.rows[place] = best
        return Outcome(place, first, best, before, after)

    def times(self, place: Place, best: Row, other: Row) -> dict[str, float] | None:
        """Seconds of the call with either row; None where a device refuses the call when it is timed."""
        rows = {"best": best, "other": other}
        try:
            return self.compare({word: self.with_row(place, row) for word, row in rows.items()})
        except Exception:  # out of memory for a graph, a launch that cannot be captured: a no, like in `same`
            return None

    def same(self, place: Place, row: Row) -> bool:
        """Whether a row compiles and its results are the table's: the same bits, or within the op's bound."""
        kept, self.rows[place] = self.rows[place], row
        try:
            return all(map(self.close, self.wanted, self.run()))
        except Exception:  # too many registers, too much shared memory: whatever a compiler says is a no
            return False
        finally:
            self.rows[place] = kept

    def close(self, a: Tensor | None, b: Tensor | None) -> bool:
        """Whether two results agree as far as the op's contract asks."""
        if a is None or b is None:
            return a is b
        if self.op is None or self.op.tolerance.kind == "exact":
            return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
        a, b = a.double().nan_to_num(posinf=0, neginf=0), b.double().nan_to_num(posinf=0, neginf=0)
        return bool((a - b).norm() <= self.op.tolerance.bound * a.norm())

    def with_row(self, place: Place, row: Row) -> Callable[[], None]:
        """The cold call with a row."""

        def go() -> None:
            self.rows[place] = row
            self.cold()

        return go


def _on(device: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: v.to(device, copy=True) if isinstance(v, Tensor) else v for k, v in arguments.items()}


def tuned_file(name: str, outcomes: list[Outcome], measured: str) -> str:
    """The text of a family's file with the rows found; rows that came from the default become its own.

    `measured`: where outcomes come from; beside what the file had, where they leave some of its kernels out.
    """
    found = devices()[name]
    kernels = {kernel: [dict(row) for row in rows] for kernel, rows in found.kernels.items()}
    for outcome in outcomes:
        place = outcome.place
        default = devices()[place.family].kernels[place.kernel]
        rows = kernels.setdefault(place.kernel, [dict(row) for row in default])
        rows[place.number].update(outcome.after)
    tried = {outcome.place.kernel for outcome in outcomes}
    if tried < set(kernels) and found.measured != measured:
        added = f"{', '.join(sorted(tried))}: {measured}" if tried else ""
        notes = [note for note in found.measured.split("; ") if note and note != added]
        measured = "; ".join([*notes, *filter(None, [added])])
    return text(replace(found, kernels=kernels, measured=measured))


def text(device: Device) -> str:
    """A family's file: one row a line, so that a change is one line of a diff."""
    plain = {f.name: getattr(device, f.name) for f in fields(device) if f.name != "kernels"}
    plain = {k: v for k, v in plain.items() if v or k in ("of", "measured", "e4m3")}
    lines = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in plain.items()]
    kernels = []
    for kernel, rows in device.kernels.items():
        inner = ",\n".join(f"   {json.dumps(dict(row))}" for row in rows)
        kernels.append(f"  {json.dumps(kernel)}: [\n{inner}\n  ]")
    body = ",\n".join(kernels)
    return "{\n" + ",\n".join([*lines, f' "kernels": {{\n{body}\n }}']) + "\n}\n"
