"""Who computes an op: candidates in order, each of which says whether it can take a call, or why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dsv4core.ops import OPS

Call = Mapping[str, Any]
Answer = Literal[True] | str

TAKEN: Counter[str] = Counter()
"""Calls by provider since the process began: whoever doubts where an op ran compares two readings."""


@dataclass(frozen=True)
class Provider:
    """One way to compute an op.

    `supports(call)` is True or the reason why not; it looks at types, shapes, strides and layouts, never at
    numbers, so it costs no stop of the device. `run(call)` returns the op's result. `direct(call)`, where
    there is one, writes the output alone.
    """

    name: str
    rank: int
    supports: Callable[[Call], Answer]
    run: Callable[[Call], Any] | None
    direct: Callable[[Call], None] | None = None


class Ranked:
    """An op with several providers: the first of falling rank that supports a call takes it.

    `last` has the op's signature and takes everything that the others leave.
    """

    def __init__(self, op: str, providers: tuple[Provider, ...], last: Callable[..., Any]) -> None:
        self.op = op
        self.providers = tuple(sorted(providers, key=lambda provider: -provider.rank))
        self.last = last
        self._names = tuple(OPS[op].signature.parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the op."""
        call = dict(zip(self._names, args, strict=False)) | kwargs
        for provider in self.providers:
            if provider.run is not None and provider.supports(call) is True:
                TAKEN[provider.name] += 1
                return provider.run(call)
        return self.last(*args, **kwargs)

    def without_sums(self, call: Call) -> None:
        """Compute only what the op writes; a provider that cannot return the op's result may take this."""
        for provider in self.providers:
            if provider.direct is not None and provider.supports(call) is True:
                TAKEN[f"{provider.name}, direct"] += 1
                provider.direct(call)
                return
        self(**call)

    def explain(self, *args: Any, **kwargs: Any) -> list[tuple[str, Answer]]:
        """What every provider says to a call, in their order."""
        call = dict(zip(self._names, args, strict=False)) | kwargs
        return [(provider.name, provider.supports(call)) for provider in self.providers]
