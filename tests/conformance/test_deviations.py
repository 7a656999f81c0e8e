"""Declared deviations: strict, about cases that exist, with reasons, and never a way around a claim."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

import pytest
import toy

from dsv4core.spec import BackendSpec, Deviation
from dsv4core_conformance import deviations
from dsv4core_conformance.case import Case
from dsv4core_conformance.deviations import DeviationError
from dsv4core_conformance.subject import Subject

NAMES = ["op/sparse_decode/sink/five", "op/sparse_decode/sink/zero", "op/linear/det/repeat"]
URL = "https://example.org/issues/1"
GOOD = ["suite/det/pass", "op/linear/det/pass", "op/linear/det/fail"]


def deviation(
    case: str = "op/linear/det/fail", kind: str = "notimpl", reason: str = "why", **more: Any
) -> Deviation:
    return Deviation(case, kind, reason, **more)  # type: ignore[arg-type]


def resolve(*found: Deviation, devices: tuple[str, ...] = ("Some GPU", "cuda:0", "cuda", "sm_90")) -> Any:
    return deviations.resolve(found, NAMES, devices, "0.2.0", date(2026, 6, 15))


def test_a_declared_failure_makes_the_run_partial(suite: Callable) -> None:
    declared = [deviation(url=URL, raises="Mismatch")]
    ran = suite(GOOD, declared=declared)
    assert ran.code == 0 and ran.report["verdict"] == "partial"
    assert ran.outcomes()["op/linear/det/fail"] == "declared"
    assert ran.case("op/linear/det/fail")["detail"] == f"notimpl: why ({URL})"
    (item,) = ran.report["deviations"]
    assert item["cases"] == ["op/linear/det/fail"] and item["active"] is True and item["kind"] == "notimpl"
    assert "declared notimpl op/linear/det/fail: 1 cases; why" in ran.out


def test_strict_makes_partial_fail(suite: Callable) -> None:
    assert suite(GOOD, "--strict", declared=[deviation()]).code == 1


def test_runxfail_shows_the_failure(suite: Callable) -> None:
    assert suite(GOOD, "--runxfail", declared=[deviation()]).outcomes()["op/linear/det/fail"] == "fail"


def test_a_surprise_pass_fails(suite: Callable) -> None:
    ran = suite(GOOD, declared=[deviation("suite/det/p*")])
    assert ran.code == 1 and ran.outcomes()["suite/det/pass"] == "fail"
    assert (
        "stale deviation 'suite/det/p*': the case passes (notimpl: why)"
        in ran.case("suite/det/pass")["detail"]
    )


@pytest.mark.parametrize(
    ("name", "raises", "outcome"),
    [
        ("op/linear/det/fail", "Mismatch", "declared"),
        ("op/linear/det/fail", "AssertionError", "declared"),
        ("op/linear/det/fail", None, "declared"),
        ("op/linear/det/fail", "OpArgumentError", "fail"),
        ("suite/det/crash", "Mismatch", "fail"),
        ("suite/det/crash", "ValueError", "declared"),
    ],
)
def test_another_exception_than_the_declared_one_fails(
    suite: Callable, name: str, raises: str | None, outcome: str
) -> None:
    ran = suite(["suite/det/pass", "op/linear/det/pass", name], declared=[deviation(name, raises=raises)])
    assert ran.outcomes()[name] == outcome
    if outcome == "fail":
        assert f"declares {raises}, raised was" in ran.case(name)["detail"]


def test_a_declared_case_that_cannot_run_here_is_not_run(suite: Callable) -> None:
    names = [*GOOD, "suite/race/streams", "op/toy_op/det/portable"]
    ran = suite(names, declared=[deviation("suite/race/*"), deviation("op/toy_op/*"), deviation()])
    assert ran.outcomes()["suite/race/streams"] == "not run"
    assert ran.outcomes()["op/toy_op/det/portable"] == "portable"


def test_a_deviation_of_other_devices_does_nothing_here(suite: Callable) -> None:
    ran = suite(GOOD, declared=[deviation(devices=("gfx942",))])
    assert ran.code == 1 and ran.report["deviations"][0]["active"] is False


@pytest.mark.parametrize("names", [GOOD])
def test_what_is_declared_wrongly_ends_the_run(suite: Callable, names: list[str]) -> None:
    ran = suite(names, declared=[deviation("op/linear/det/fial")])
    assert ran.code == 4 and not ran.report
    assert "'op/linear/det/fial' matches no case; did you mean 'op/linear/det/fail'?" in ran.out


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (
            deviation("op/sparse_dekode/sink/five"),
            "matches no case; did you mean 'op/sparse_decode/sink/five'?",
        ),
        (deviation("OP/Linear/*"), "matches no case; did you mean 'op/linear/det/repeat'?"),
        (deviation("nothing/of/the/kind"), "'nothing/of/the/kind' matches no case"),
        (
            deviation(NAMES[0], kind="notimp"),
            "has kind 'notimp', not notimpl, notyet, never; did you mean notimpl?",
        ),
        (deviation(NAMES[0], reason=" "), "gives no reason"),
        (deviation(NAMES[0], kind="never"), "is never: give a url or the devices it is about"),
        (deviation(NAMES[0], kind="notyet"), "is notyet: give a url or the devices it is about"),
        (deviation(NAMES[0], url="issue 5"), "has the url 'issue 5'"),
        (deviation(NAMES[0], raises="a mismatch"), "raises 'a mismatch': give the name of an exception"),
        (deviation(NAMES[0], until="2026-06-14"), "held until 2026-06-14; this is 0.2.0 on 2026-06-15"),
        (deviation(NAMES[0], until="0.1"), "held until 0.1"),
        (deviation(NAMES[0], until="soon"), "has until='soon': give a date"),
        (deviation(NAMES[0], until="2026-02-30"), "has until='2026-02-30': give a date"),
    ],
)
def test_rules_of_one_declaration(found: Deviation, text: str) -> None:
    with pytest.raises(DeviationError) as caught:
        resolve(found)
    assert text in str(caught.value)


def test_every_breach_is_listed() -> None:
    with pytest.raises(DeviationError, match=r"gives no reason.*matches no case"):
        resolve(deviation(NAMES[0], reason=""), deviation("x"))


def test_until_holds_to_its_end() -> None:
    for until in ("2026-06-15", "2027-01-01", "0.2", "0.2.0", "0.3"):
        assert resolve(deviation(NAMES[0], until=until))[0].active


@pytest.mark.parametrize(
    ("globs", "active"),
    [
        ((), True),
        (("some*",), True),
        (("cuda",), True),
        (("SM_9?",), True),
        (("gfx942", "sm_80"), False),
    ],
)
def test_devices_are_globs_over_every_name(globs: tuple[str, ...], active: bool) -> None:
    (item,) = resolve(deviation(NAMES[0], kind="never", devices=globs, url=URL))
    assert item.active is active
    assert bool(deviations.by_case([item])) is active


def test_the_first_of_two_deviations_speaks_for_a_case() -> None:
    found = deviations.by_case(
        resolve(deviation("op/sparse*", reason="first"), deviation("op/*", reason="second"))
    )
    assert [found[name].deviation.reason for name in NAMES] == ["first", "first", "second"]


def nothing(subject: Subject) -> None:
    raise AssertionError


CASES: list[Case] = [
    toy.make("op/linear/a", nothing, ops=["linear"]),
    toy.make("op/linear/b", nothing, ops=["linear"], needs=frozenset({"batch_invariant_linear"})),
    toy.make("op/linear/device", nothing, ops=["linear"]),
    toy.make("layer/swa/a", nothing, ops=["linear", "inverse_rope"]),
    toy.make("layout/bf16_row/a", nothing, ops=["inverse_rope"], layouts=("bf16_row",)),
    toy.make("op/inverse_rope/a", nothing, ops=["inverse_rope"]),
    toy.make("suite/mutant/right/inverse_rope", nothing, ops=["inverse_rope"], family="mutant"),
]


@pytest.mark.parametrize(
    ("globs", "refused"),
    [
        (["op/linear/a"], None),
        (["op/linear/*"], "all 3 cases of op linear are declared to fail: drop the claim instead"),
        (["op/linear/a", "op/linear/b", "op/*/device"], "op linear"),
        (["layout/bf16_row/*"], "layout bf16_row"),
        (["op/linear/b"], "feature batch_invariant_linear"),
        (["op/inverse_rope/*", "layout/bf16_row/*"], "all 2 cases of op inverse_rope"),
        (["*"], "op inverse_rope"),
    ],
)
def test_a_claim_cannot_be_waived_whole(globs: list[str], refused: str | None) -> None:
    names = [case.id for case in CASES]
    found = [deviation(glob) for glob in globs]
    declared = deviations.resolve(found, names, ["cpu"], "0.2.0", date(2026, 6, 15))
    claims = deviations.claims_of(
        ["linear", "inverse_rope"], ["bf16_row"], ["batch_invariant_linear", "unused"]
    )
    if refused is None:
        deviations.refuse_whole_claims(declared, CASES, claims)
    else:
        with pytest.raises(DeviationError, match="drop the claim instead") as caught:
            deviations.refuse_whole_claims(declared, CASES, claims)
        assert refused in str(caught.value)


def test_waiving_a_whole_op_ends_the_run(suite: Callable) -> None:
    ran = suite(GOOD, declared=[deviation("op/linear/*")])
    assert ran.code == 4 and "all 2 cases of op linear are declared to fail" in ran.out


def test_plugins_that_do_not_answer_properly() -> None:
    class Hook:
        def __init__(self, answer: Callable[[], Any]) -> None:
            self.answer = answer

        def dsv4core_deviations(self, spec: BackendSpec) -> Any:
            return self.answer()

    spec = BackendSpec("toy", "cpu", 5, "")
    with pytest.raises(DeviationError, match="backend 'toy' returned str, not Deviation objects"):
        deviations.collect(spec, Hook(lambda: [["op/*"]]))
    with pytest.raises(DeviationError, match="backend 'toy' failed: TypeError"):
        deviations.collect(spec, Hook(lambda: [5]))
