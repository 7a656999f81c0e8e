"""The choice as a function of data: no hardware, no plugins."""

import pytest

from dsv4core.selection import Choice, Request, candidates, select, worrying
from dsv4core.spec import Availability, BackendRow, BackendSpec, Code

FAST = BackendSpec("fast", "gpu", 100, "m:f")
GOOD = BackendSpec("good", "gpu", 90, "m:f")
SAME = BackendSpec("also", "gpu", 90, "m:f")
HOST = BackendSpec("host", "cpu", 10, "m:f")
SPECS = (HOST, GOOD, FAST, SAME)
YES = Availability.available()
NO = Availability.missing(Code.NO_DEVICE, "no device", "buy one")


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("auto", ("fast", "also", "good", "host")),
        ("", ("fast", "also", "good", "host")),
        (" , ", ("fast", "also", "good", "host")),
        ("host", ("host",)),
        ("host, fast", ("host", "fast")),
        ("good,good,,host", ("good", "host")),
        ("host,auto", ("host", "fast", "also", "good")),
    ],
)
def test_order_of_candidates(text: str, order: tuple[str, ...]) -> None:
    assert candidates(Request.parse(text, "test"), SPECS) == order


def test_the_first_that_can_run_wins_and_every_candidate_has_a_verdict() -> None:
    chosen, trace = select(Request.parse("auto", "test"), SPECS, {"fast": NO, "also": NO, "good": YES})
    assert chosen is GOOD
    assert [(verdict.name, verdict.accepted, verdict.reason) for verdict in trace] == [
        ("fast", False, "no device"),
        ("also", False, "no device"),
        ("good", True, "available"),
        ("host", False, "not needed, good comes first"),
    ]
    assert trace[0].hint == "buy one"


def test_nothing_that_can_run() -> None:
    chosen, trace = select(Request.parse("fast,good", "test"), SPECS, {"fast": NO, "good": NO})
    assert chosen is None
    assert [verdict.code for verdict in trace] == [Code.NO_DEVICE, Code.NO_DEVICE]


def test_a_name_without_backend_is_never_chosen() -> None:
    chosen, trace = select(Request.parse("ghost,host", "test"), SPECS, {"host": YES})
    assert chosen is HOST
    assert trace[0].reason == "no backend has this name"


def row(code: Code, priority: int | None, device: str = "") -> BackendRow:
    return BackendRow("x", code is Code.OK, code, "", "", "device", device, "gpu", priority)


@pytest.mark.parametrize(
    ("text", "chosen", "passed", "expected"),
    [
        ("auto", HOST, row(Code.NO_DEVICE, 100), False),
        ("auto", HOST, row(Code.NOT_INSTALLED, 100), False),
        ("auto", HOST, row(Code.NO_OPS, 100), False),
        ("auto", HOST, row(Code.NO_OPS, 100, "1 device"), True),
        ("auto", HOST, row(Code.NOT_INSTALLED, 100, "/dev/x"), True),
        ("auto", HOST, row(Code.PLUGIN_BROKEN, None), True),
        ("auto", HOST, row(Code.VERSION_CONFLICT, 100), True),
        ("auto", HOST, row(Code.DISABLED, 100, "1 device"), False),
        ("auto", FAST, row(Code.PLUGIN_BROKEN, None), False),
        ("auto", GOOD, row(Code.OK, 10), False),
        ("host", HOST, row(Code.PLUGIN_BROKEN, 100), False),
    ],
)
def test_what_auto_warns_about(text: str, chosen: BackendSpec, passed: BackendRow, expected: bool) -> None:
    assert worrying(Choice(Request.parse(text, "test"), chosen, ()), [passed]) is expected


def test_auto_passes_over_what_runs_by_name_only() -> None:
    named = Availability.available("interpreted", by_name=True)
    answers = {"fast": named, "also": named, "good": YES}
    chosen, trace = select(Request.parse("auto", "test"), SPECS, answers)
    assert chosen is GOOD
    assert (trace[0].accepted, trace[0].reason) == (False, "interpreted; only by its name")
    assert trace[0].hint == "DSV4CORE_BACKEND=fast"
    for words in ("fast", "fast,auto", "host,fast"):
        assert select(Request.parse(words, "test"), SPECS, {"fast": named, "host": NO})[0] is FAST
