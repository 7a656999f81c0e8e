"""One thing to time: its arguments, and what it has to move and to multiply at least."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from dsv4core.backend import Backend
from dsv4core.errors import ConfigError
from dsv4core.probe import describe
from dsv4core.samples import Size, sample

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A call of one op, or with `start` something larger that a backend does.

    `make` draws the arguments on the host; they exist while the case is measured. `bytes` are read and
    written once each, `flops` are those of the matrix products. `facts` are the numbers that vary between
    cases; cases of one `curve` are plotted together over the fact named `x`. `start` gets a backend and the
    arguments on its device and returns the call to time, which returns a tensor; `op` is then only a label.
    """

    name: str
    op: str
    make: Callable[[], Arguments]
    bytes: float = 0.0
    flops: float = 0.0
    facts: Mapping[str, int] = field(default_factory=dict[str, int])
    curve: str = ""
    x: str = ""
    start: Callable[[Backend, Arguments], Callable[[], Tensor]] | None = None


def samples(ops: Sequence[str], size: Size) -> list[Case]:
    """The sample call of some ops at one size; what they move and multiply is not known."""
    return [Case(op, op, partial(_sample, op, size)) for op in ops]


def _sample(op: str, size: Size) -> Arguments:
    try:
        return sample(op, size)
    except (RuntimeError, MemoryError) as error:  # torch's for more memory than there is
        raise ConfigError(
            f"--tokens {size.tokens} --context {size.context}: the arguments of {op} cannot be made: "
            f"{describe(error)}; smaller numbers need less memory"
        ) from error


def load(path: Path) -> list[Case]:
    """The cases of a Python file: what its function `cases()` returns.

    Raises ConfigError, with the line of the file, where it does not run or gives something else.
    """
    spec = importlib.util.spec_from_file_location(f"dsv4core_cases_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"--cases {path}: no Python file; name one that has a function cases()")
    sys.path.insert(0, str(path.resolve().parent))  # a file of cases may import its neighbours
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, "cases"):
            raise ConfigError(f"--cases {path}: it has no function cases()")
        found = list(module.cases())
    except ConfigError:
        raise
    except Exception as error:  # the file may do anything
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == spec.origin]
        where = f"line {lines[-1]}: " if lines else ""  # the message of a SyntaxError names the line
        raise ConfigError(
            f"--cases {path}: it does not run: {where}{describe(error)}; the whole traceback: "
            f"cd {path.resolve().parent} && python -c 'import {path.stem}; {path.stem}.cases()'"
        ) from error
    finally:
        sys.path.pop(0)
    wrong = [case for case in found if not isinstance(case, Case)]
    if wrong:
        raise ConfigError(f"--cases {path}: cases() gives {wrong[0]!r}, not a dsv4core.bench.case.Case")
    return found
