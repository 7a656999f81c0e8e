"""Cases on a CPU that plays a device: what goes there or comes back is a copy, as between two memories."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from dsv4core_conformance.case import load_cases
from dsv4core_conformance.families import bigoff, rope
from dsv4core_conformance.inputs import vast
from dsv4core_conformance.subject import Subject, open_subject

CPU, DEVICE = torch.device("cpu"), torch.device("hpu")


class Elsewhere(TorchFunctionMode):
    """Tensors "on" `DEVICE` lie on the CPU; `to` and `cpu` copy the view alone, not its storage."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Iterable[Any] = (), kwargs: Any = None
    ) -> Any:
        """The op on the CPU, with a copy where it moves a tensor."""
        given: Mapping[str, Any] = kwargs or {}
        moves = func is Tensor.cpu or (func is Tensor.to and any(map(_names_it, (*args, *given.values()))))
        args, named = tree_map(lambda v: CPU if _names_it(v) else v, (tuple(args), dict(given)))
        if func is Tensor.cpu:
            func, args = Tensor.to, (args[0], CPU)
        return func(*args, **{**named, "copy": True} if moves else named)


def _names_it(value: object) -> bool:
    return isinstance(value, torch.device) and value == DEVICE


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Subject:
    """The CPU backend as if it ran on a device, whose vast memory is taken where it is touched."""
    real = vast.vast
    for module in (vast, bigoff, rope):
        monkeypatch.setattr(module, "vast", lambda size, device: real(size, CPU))
    subject = open_subject("cpu")
    subject.device = DEVICE
    return subject


def chosen(*patterns: str) -> list[str]:
    return [name for name in load_cases() if any(fnmatch(name, pattern) for pattern in patterns)]


@pytest.mark.parametrize(
    "name",
    chosen("op/*/det/same_memory", "op/*/rope/*_near", "op/*/bigoff/*_4_gib", "op/*/bigoff/rows_*"),
)
def test_case(elsewhere: Subject, name: str) -> None:
    """Families that move arguments themselves judge them as `Subject.call` does, storage for storage."""
    with Elsewhere():
        load_cases()[name].run(elsewhere)
