"""Refusals that name the line of aiter's source, and the architecture that is played."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dsv4core_rocm.aiter.entries import recorded

LINES: dict[str, Any] = recorded("conventions")["lines"]


class Refused(Exception):
    """An argument that is not in aiter's form."""


def arch() -> str:
    """The architecture: DSV4CORE_ROCM_GFX, gfx950 by default."""
    return os.environ.get("DSV4CORE_ROCM_GFX", "gfx950")


def need(ok: bool, line: str, got: object) -> None:
    """Refuse what breaks a convention."""
    if not ok:
        said = LINES[line]
        raise Refused(f"{said['file']}:{said['line']}: {said['means']}; got {got}")


def told(value: object) -> str:
    """A value as refusals show it."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)} with strides {list(value.stride())}"
    return repr(value)


def typed(value: object, dtype: torch.dtype, dims: int, line: str) -> Tensor:
    """A contiguous tensor of that type and number of dimensions."""
    ok = isinstance(value, Tensor) and value.dtype == dtype and value.ndim == dims and value.is_contiguous()
    need(ok, line, told(value))
    assert isinstance(value, Tensor)
    return value


def starts(value: object, rows: int, room: int, dtype_line: str, line: str) -> list[int]:
    """Row starts: a true prefix sum over a list that is long enough."""
    tensor = typed(value, torch.int32, 1, dtype_line)
    need(tensor.shape[0] == rows + 1, line, told(tensor))
    found = [int(n) for n in tensor]
    rising = all(a <= b for a, b in pairwise(found))
    need(found[0] == 0 and rising and found[-1] <= room, line, found)
    return found


def number(value: object, line: str) -> float:
    """A plain float."""
    need(isinstance(value, float), line, told(value))
    assert isinstance(value, float)
    return value
