"""Speed of interpreted runs: what Triton's interpreter does again and again is done once.

Before every launch, and before every call of a small function inside it, the interpreter replaces the language
by its own. Here that happens once for the process. It also computes for every integer operation whether it
overflowed, and throws the answer away unless kernels are debugged; that is left out. A Triton whose interpreter
is made differently runs as it does by itself.
"""

import dataclasses
from types import SimpleNamespace

import triton.language as tl


def prepare() -> None:
    """Make interpreted runs of this process fast."""
    from triton.runtime import interpreter

    replace = getattr(interpreter, "_patch_lang", None)
    if replace is not None:
        replace(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
        interpreter._patch_lang = lambda function: _Nothing
    builder = getattr(interpreter, "interpreter_builder", None)
    options = getattr(builder, "options", None)
    if getattr(options, "sanitize_overflow", False) and not getattr(options, "debug", True):
        builder.options = dataclasses.replace(options, sanitize_overflow=False)


class _Nothing:
    """A scope in which nothing was replaced."""

    @staticmethod
    def restore() -> None:
        """Nothing to undo."""
