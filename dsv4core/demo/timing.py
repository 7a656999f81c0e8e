"""Seconds per op of a running layer."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

from dsv4core.ops import OpTable


class TimedOps:
    """An op table that keeps a stopwatch per op and the last result of each.

    Put it in a layer's `ops`. Wall time, so it is meant for devices that finish a call before they return.
    """

    def __init__(self, table: OpTable) -> None:
        self.table = table
        self.seconds: dict[str, float] = defaultdict(float)
        self.last: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self.table, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = self.last[name] = call(*args, **kwargs)
            self.seconds[name] += time.perf_counter() - start
            return result

        return timed

    @staticmethod
    def around(table: OpTable) -> tuple[OpTable, TimedOps]:
        """The timed table twice: as what a layer expects and as what it is."""
        timed = TimedOps(table)
        return cast(OpTable, timed), timed
