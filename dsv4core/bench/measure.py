"""A case on all its sides: checked, timed in turns, compared pair by pair and with the floors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dsv4core.bench.case import Case
from dsv4core.bench.floors import Floors
from dsv4core.bench.side import Running, Side
from dsv4core.bench.timing import Series, Spread, Timer, alternate


@dataclass(frozen=True)
class Row:
    """One case on one side; times are None where the check failed.

    `over` is how many times longer this side takes than the first one, by pairs of runs. `roof_us` is the
    least time that the device's copy and matrix product allow, `roof` its share of the median.
    """

    case: str
    op: str
    side: str
    provider: str
    ok: bool
    check: str
    median_us: float | None = None
    q1_us: float | None = None
    q3_us: float | None = None
    runs: int = 0
    calls: int = 0
    over: float | None = None
    over_q1: float | None = None
    over_q3: float | None = None
    bytes: float = 0.0
    flops: float = 0.0
    roof_us: float | None = None
    roof: float | None = None
    facts: Mapping[str, int] = field(default_factory=dict[str, int])
    curve: str = ""
    x: str = ""


def measure(
    case: Case,
    sides: Sequence[Side],
    timers: Mapping[str, Timer],
    floors: Mapping[str, Floors],
    runs: int,
    seconds: float = float("inf"),
) -> list[Row]:
    """Rows of one case, a side that has nothing for it left out; `timers` and `floors` by device."""
    arguments = case.make()
    ready = {side.name: (side, side.start(case, arguments)) for side in sides}
    running = {name: (side, started) for name, (side, started) in ready.items() if started is not None}
    verdicts = {name: started.check() for name, (_, started) in running.items()}
    sound = [name for name, verdict in verdicts.items() if verdict.ok]
    times = alternate(
        {name: running[name][1].call for name in sound},
        {name: timers[running[name][0].device] for name in sound},
        runs,
        seconds,
    )
    first = times.get(next(iter(running), ""))
    rows: list[Row] = []
    for name, (side, started) in running.items():
        figures = _figures(times.get(name), first, case, floors.get(side.device))
        rows.append(_row(case, name, started, verdicts[name].ok, verdicts[name].text, figures))
    return rows


def _row(case: Case, side: str, started: Running, ok: bool, check: str, figures: Mapping[str, float]) -> Row:
    return Row(
        case.name, case.op, side, started.provider, ok, check, bytes=case.bytes, flops=case.flops,
        facts=case.facts, curve=case.curve, x=case.x,
        **figures,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip


def _figures(
    series: Series | None, first: Series | None, case: Case, floors: Floors | None
) -> dict[str, float]:
    if series is None:
        return {}
    found = {"runs": len(series.seconds), "calls": series.calls, **_microseconds(series.spread)}
    if first is not None and first is not series:
        pairs = series.over(first)
        found |= {"over": pairs.median, "over_q1": pairs.low, "over_q3": pairs.high}
    if floors is not None and (case.bytes or case.flops):
        least = floors.seconds(case.bytes, case.flops)
        found |= {"roof_us": round(1e6 * least, 2), "roof": least / series.spread.median}
    return found


def _microseconds(spread: Spread) -> dict[str, float]:
    named = {"median_us": spread.median, "q1_us": spread.low, "q3_us": spread.high}
    return {name: round(1e6 * value, 2) for name, value in named.items()}
