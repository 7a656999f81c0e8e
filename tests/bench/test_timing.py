"""Runs that take turns: who is called when, and what is made of the seconds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dsv4core.bench import timing
from dsv4core.bench.timing import CLOCKS, RUN_SECONDS, Series, alternate, in_turn, spread, timer
from dsv4core.errors import BackendError


def test_sides_take_turns_and_the_first_round_is_not_counted() -> None:
    called: list[tuple[str, int]] = []

    def fake(name: str, seconds: float):
        def run(call, repeat: int) -> float:
            called.append((name, repeat))
            return seconds

        return run

    times = alternate(
        {"a": lambda: None, "b": lambda: None},
        {"a": fake("a", RUN_SECONDS / 4), "b": fake("b", 2 * RUN_SECONDS)},
        3,
    )
    assert called == [("a", 1), ("b", 1), *[("a", 4), ("b", 1)] * 3]
    assert times["a"] == Series((RUN_SECONDS / 4,) * 3, 4) and times["b"].calls == 1


def test_the_seconds_end_a_case_but_not_before_three_runs() -> None:
    times = alternate({"a": lambda: None}, {"a": lambda call, repeat: 1.0}, 100, seconds=0.0)
    assert len(times["a"].seconds) == 3


def test_pairs_are_compared_run_by_run() -> None:
    slow, fast = Series((10.0, 2.0, 30.0), 1), Series((5.0, 1.0, 15.0), 1)
    assert slow.over(fast) == spread([2.0, 2.0, 2.0])
    assert slow.spread.median == 10.0
    with pytest.raises(ValueError):
        slow.over(Series((1.0,), 1))


def test_spread_is_median_and_quartiles() -> None:
    found = spread([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)
    assert spread([7.0]).median == 7.0


@pytest.mark.parametrize("clock", sorted({*CLOCKS} - {"graph"}))
def test_clocks_call_as_often_as_told(clock: str) -> None:
    calls: list[None] = []
    assert timer(clock, "cpu")(lambda: calls.append(None), 5) >= 0
    assert len(calls) == 5


def test_a_cpu_has_no_graph_clock() -> None:
    with pytest.raises(BackendError, match="no graphs"):
        timer("graph", "cpu")(lambda: None, 1)


class Event:
    """One of a device whose work takes no time but 3 ms a replay."""

    clock = 0.0

    def __init__(self, device: str, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = Event.clock

    def synchronize(self) -> None: ...

    def elapsed_time(self, other: Event) -> float:
        return other.at - self.at


def test_a_graph_is_captured_once_for_a_number_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    captures: list[object] = []

    def captured(call: Callable[[], object], device: str, warm_ups: int) -> object:
        captures.append(call())
        return replay, captures[-1]

    def replay() -> None:
        Event.clock += 3.0

    monkeypatch.setattr(timing, "captured", captured)
    monkeypatch.setattr(torch, "Event", Event)
    clock = timer("graph", "cuda")
    calls = in_turn([lambda: "a", lambda: "b"])
    assert [clock(calls, n) for n in (1, 3, 3)] == pytest.approx([3e-3, 1e-3, 1e-3])
    assert captures == [["a"], ["b", "a", "b"]]
    clock(lambda: "c", 1)
    clock(calls, 3)
    assert len(captures) == 3


def test_a_run_has_the_least_number_of_calls() -> None:
    def run(call: object, repeat: int) -> float:
        return RUN_SECONDS / 4

    assert alternate({"a": lambda: None}, {"a": run}, 3, least=9)["a"].calls == 9
