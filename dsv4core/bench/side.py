"""Who is timed: a backend, the portable bodies, or somebody else's kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, Protocol

from torch import Tensor

from dsv4core.backend import Backend
from dsv4core.bench.case import Arguments, Case
from dsv4core.bench.gate import Outputs, Verdict, alike, fresh, judge, outputs, placed
from dsv4core.ops import OPS, OpImpl
from dsv4core.spec import BackendSpec

BODIES = "bodies"


@dataclass(frozen=True)
class Running:
    """A case ready to be timed: the call, where it comes from, and the check that comes first."""

    call: Callable[[], Any]
    provider: str
    check: Callable[[], Verdict]


class Side(Protocol):
    """Somebody who can run cases."""

    name: str
    device: str

    def start(self, case: Case, arguments: Arguments) -> Running | None:
        """The case with these arguments, which lie on the host; None where this side has nothing for it."""
        ...


class BackendSide:
    """A backend of this package. An op is called without the checks of its arguments, a `start` with them."""

    def __init__(self, backend: Backend) -> None:
        self.name, self.device, self.backend = backend.name, backend.device_type, backend

    def start(self, case: Case, arguments: Arguments) -> Running:
        """The bound op, or what the case starts."""
        moved = placed(arguments, self.device)
        if case.start is not None:
            call = case.start(self.backend, moved)
            return Running(call, self.name, partial(self._step, case.start, arguments, call))
        function = getattr(self.backend.ops, case.op).implementation
        return Running(
            partial(function, **moved),
            self.backend.ops.provenance[case.op],
            partial(judge, OPS[case.op], function, arguments, self.device),
        )

    def _step(
        self,
        start: Callable[[Backend, Arguments], Callable[[], Tensor]],
        arguments: Arguments,
        call: Callable[[], Tensor],
    ) -> Verdict:
        """A step against the same step on the bodies, from the same caches."""
        wanted = start(bodies("cpu"), arguments)()
        return alike([call().cpu()], [wanted])


class Peer:
    """A library of its own: `convert` makes its call out of ours, or None where it does other work."""

    def __init__(self, name: str, device: str, convert: Convert) -> None:
        self.name, self.device, self._convert = name, device, convert

    def start(self, case: Case, arguments: Arguments) -> Running | None:
        """The peer's call, its arguments converted beforehand."""
        if case.start is not None:
            return None
        made = self._convert(case.op, fresh(OPS[case.op], arguments))
        return (
            None
            if made is None
            else Running(made.call, self.name, partial(_likeness, case.op, arguments, made))
        )


@dataclass(frozen=True)
class PeerCall:
    """A peer's call, and its results in the order of the op's results and written arguments."""

    call: Callable[[], Any]
    results: Callable[[], Outputs]


Convert = Callable[[str, Arguments], PeerCall | None]


def bodies(device: str) -> Backend:
    """The portable bodies as a backend of their own, on any device."""
    ops = {name: OpImpl(op.body, "torch") for name, op in OPS.items()}
    return Backend(BackendSpec(BODIES, device, 0, ""), SimpleNamespace(device_type=device), ops)


def _likeness(op: str, arguments: Arguments, made: PeerCall) -> Verdict:
    try:
        theirs = made.results()
    except Exception as error:  # whatever a foreign library raises is its result
        return Verdict(False, f"raised {type(error).__name__}: {error}")
    return alike(theirs, outputs(OPS[op], OPS[op].body, fresh(OPS[op], arguments)))
