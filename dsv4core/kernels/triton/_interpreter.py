"""Speed of interpreted runs: Triton's interpreter prepares the language anew for every call of a function.

Kernels made of small functions spend most of their time there. While a kernel runs, what is prepared stays
prepared, so every time but the first is skipped. Nothing else changes, and a Triton whose interpreter is made
differently runs as it does by itself.
"""

import inspect
from typing import Any

import triton.language as tl


def prepare_once() -> None:
    """Replace the interpreter's preparation by one that looks whether it is done."""
    from triton.runtime import interpreter

    original = getattr(interpreter, "_patch_lang", None)
    if original is None or hasattr(original, "ready"):
        return

    def prepare(function: Any) -> Any:
        modules = frozenset(
            id(value)
            for value in function.__globals__.values()
            if inspect.ismodule(value) and value in (tl, tl.core)
        )
        if prepare.ready and modules <= prepare.ready:
            return _Nothing
        inner = original(function)
        if prepare.ready or not hasattr(inner, "restore"):
            return inner
        prepare.ready = modules
        return _Outermost(inner, prepare)

    prepare.ready = frozenset()  # type: ignore[attr-defined]
    interpreter._patch_lang = prepare


class _Outermost:
    """The scope of a kernel's launch: undoing it ends the time in which nothing has to be prepared."""

    def __init__(self, inner: Any, prepare: Any) -> None:
        self.inner, self.prepare = inner, prepare

    def restore(self) -> None:
        """Undo the preparation."""
        self.prepare.ready = frozenset()
        self.inner.restore()


class _Nothing:
    """A scope in which nothing was done."""

    @staticmethod
    def restore() -> None:
        """Nothing to undo."""
