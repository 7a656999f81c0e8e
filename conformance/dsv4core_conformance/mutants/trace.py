"""Which functions a case goes through: a fault elsewhere cannot change what it says."""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from types import CodeType, FrameType


@contextmanager
def visited(functions: Mapping[CodeType, str]) -> Generator[set[str]]:
    """Collect the names of functions that are entered while the block runs, in any thread it starts."""
    seen: set[str] = set()

    def notice(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code in functions:
            seen.add(functions[frame.f_code])

    before = sys.getprofile()
    threading.setprofile(notice)
    sys.setprofile(notice)
    try:
        yield seen
    finally:
        sys.setprofile(before)
        threading.setprofile(None)  # type: ignore[arg-type]
