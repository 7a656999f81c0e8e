"""Faults in live code: text of one function replaced, compiled, and put back when the block ends.

A mutant changes the code object of the function that everybody already holds, so imported copies, bound ops
and methods are all faulty at once. The reference imports nothing of the core and stays what it is.
"""

from __future__ import annotations
import __future__

import functools
import importlib
import inspect
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import SequenceMatcher
from types import CodeType, FunctionType

MAX_LINES = 10
"""Changed lines that a mutant may have; more would be another program, not a fault."""


class StaleMutantError(Exception):
    """A mutant that no longer fits the code it changes: text not found, found twice, or too many lines."""


@dataclass(frozen=True)
class Edit:
    """One replacement in the source of one function.

    `target` is `module:function` or `module:Class.method`; `old` must be there exactly once, with its
    indentation where it spans lines.
    """

    target: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A faulty backend: its name, the catalogue rows it stands for, and the case that must catch it.

    `case` is the name of a case, or a pattern of names, of family `family`; one of them has to fail.
    """

    name: str
    rows: tuple[str, ...]
    family: str
    case: str
    summary: str
    edits: tuple[Edit, ...]

    @property
    def targets(self) -> tuple[str, ...]:
        """The functions it changes, each once."""
        return tuple(dict.fromkeys(edit.target for edit in self.edits))


def resolve(target: str) -> FunctionType:
    """The plain function behind `module:path`, whatever wraps it; StaleMutantError if there is none."""
    module, _, path = target.partition(":")
    try:
        found: object = importlib.import_module(module)
        for name in path.split("."):
            found = vars(found)[name]
    except (ImportError, KeyError, TypeError):
        raise StaleMutantError(f"{target}: there is no such function") from None
    while not isinstance(found, FunctionType):
        inner = _unwrapped(found)
        if inner is None:
            raise StaleMutantError(f"{target} is a {type(found).__name__}, not a function")
        found = inner
    return inspect.unwrap(found)  # torch's decorators return plain functions too


def mutated_source(target: str, edits: Iterable[Edit]) -> tuple[str, str]:
    """The source of a function before and after the edits; StaleMutantError for text that does not fit."""
    before = after = inspect.getsource(resolve(target))
    for edit in edits:
        count = after.count(edit.old)
        if count != 1:
            raise StaleMutantError(f"{target}: found {count} times, expected once:\n{edit.old}")
        after = after.replace(edit.old, edit.new)
    return before, after


def changed_lines(before: str, after: str) -> int:
    """Lines that differ: the longer side of every changed run of lines."""
    runs = SequenceMatcher(None, before.splitlines(), after.splitlines(), autojunk=False).get_opcodes()
    return sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in runs if tag != "equal")


def compiled(mutant: Mutant) -> list[tuple[FunctionType, CodeType]]:
    """The functions of a mutant with their faulty code; nothing is changed yet.

    Raises StaleMutantError for text that is not there exactly once, for more than `MAX_LINES` changed lines,
    and for code that does not compile or changes nothing.
    """
    result: list[tuple[FunctionType, CodeType]] = []
    lines = 0
    for target in mutant.targets:
        before, after = mutated_source(target, [edit for edit in mutant.edits if edit.target == target])
        if before == after:
            raise StaleMutantError(f"mutant {mutant.name}: {target}: nothing is changed")
        lines += changed_lines(before, after)
        result.append((resolve(target), _compile(mutant.name, resolve(target), after)))
    if lines > MAX_LINES:
        raise StaleMutantError(
            f"mutant {mutant.name}: {lines} changed lines, at most {MAX_LINES} are allowed"
        )
    return result


@contextmanager
def applied(mutant: Mutant) -> Generator[None]:
    """Run a block with the fault in place; everything is as before afterwards, also after an exception."""
    changes = compiled(mutant)
    originals = [function.__code__ for function, _ in changes]
    try:
        for function, code in changes:
            function.__code__ = code
        _forget(mutant)
        yield
    finally:
        for (function, _), code in zip(changes, originals, strict=True):
            function.__code__ = code
        _forget(mutant)


def _compile(name: str, function: FunctionType, source: str) -> CodeType:
    """The code of the function in `source`; decorators are compiled with it and never run."""
    text = f"if True:\n{source}" if source[:1].isspace() else source
    flags = function.__code__.co_flags & __future__.annotations.compiler_flag
    try:
        module = compile(text, f"<mutant {name}>", "exec", flags=flags, dont_inherit=True)
    except SyntaxError as problem:
        raise StaleMutantError(f"mutant {name}: {problem}") from None
    wanted = function.__code__
    found = [c for c in module.co_consts if isinstance(c, CodeType) and c.co_name == wanted.co_name]
    if len(found) != 1 or found[0].co_freevars != wanted.co_freevars:
        raise StaleMutantError(
            f"mutant {name}: {wanted.co_name} depends on what surrounds it: take another function"
        )
    qualified = {"co_qualname": wanted.co_qualname} if sys.version_info >= (3, 11) else {}
    return found[0].replace(**qualified)


def _unwrapped(found: object) -> object:
    """What a decorator of the standard library wraps, or None."""
    if isinstance(found, property):
        return found.fget
    if isinstance(found, functools.cached_property):
        return found.func
    return getattr(found, "__func__", None) or getattr(found, "__wrapped__", None)


def _forget(mutant: Mutant) -> None:
    """Drop what the changed modules remember: results with and without the fault must not mix."""
    for name in {target.partition(":")[0] for target in mutant.targets}:
        for value in vars(sys.modules[name]).values():
            clear = getattr(value, "cache_clear", None)
            if callable(clear):
                clear()
        remembered = vars(sys.modules[name]).get("_tables")
        if isinstance(remembered, dict):
            remembered.clear()
