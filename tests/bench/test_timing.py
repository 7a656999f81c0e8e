"""Runs that take turns: who is called when, and what is made of the seconds."""

from __future__ import annotations

import pytest

from dsv4core.bench.timing import CLOCKS, RUN_SECONDS, Series, alternate, spread, timer


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


@pytest.mark.parametrize("clock", CLOCKS)
def test_clocks_call_as_often_as_told(clock: str) -> None:
    calls: list[None] = []
    assert timer(clock, "cpu")(lambda: calls.append(None), 5) >= 0
    assert len(calls) == 5
