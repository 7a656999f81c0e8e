"""A few toy cases in place of the real families, and pytest plugins of toy backends with deviations.

Also a pytest plugin itself (`-p toy`): a process of its own then runs the cases that `TOY_CASES` names.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

import pytest
import torch

from dsv4core.errors import FallbackError
from dsv4core.ops import OpTable
from dsv4core.samples import sample
from dsv4core_conformance import case as case_module
from dsv4core_conformance.case import Case, NotRun
from dsv4core_conformance.compare import Mismatch, same_storage
from dsv4core_conformance.subject import Subject


def make(
    name: str, run: Callable[[Subject], None], *, ops: Iterable[str] = (), family: str = "det", **more: object
) -> Case:
    """A case by name and function, everything else as plain as can be."""
    values: dict[str, object] = {
        "level": "core",
        "layouts": (),
        "needs": frozenset(),
        "catches": (),
        "limit": 30.0,
        "summary": "A toy.",
    }
    return Case(id=name, family=family, ops=tuple(ops), run=run, **(values | more))  # type: ignore


def passes(subject: Subject) -> None:
    subject.errors["linear"] = 1e-3


def fails(subject: Subject) -> None:
    raise Mismatch("linear: relative L2 error 8.000e-03 > bound 4e-03", ratio=2.0)


def breaks_a_byte(subject: Subject) -> None:
    """Two pages of 64 rows inside a larger storage; one pad byte of page 1 differs."""
    storage = torch.full((3 * 40_000,), 0xA5, dtype=torch.uint8)
    pages = storage[100:].as_strided((2, 37_440), (40_000, 1), 100)
    expected = storage.numpy().copy()
    expected[100 + 40_000 + 64 * 576 + 7] = 0
    same_storage("quantize_and_insert_k_cache: k_cache", pages, expected, layout="fp8_ds_mla", rows=64)


def crashes(subject: Subject) -> None:
    raise ValueError("no such kernel")


def needs_a_device(subject: Subject) -> None:
    raise NotRun("needs two streams")


def an_op_leaves_its_case_out(subject: Subject) -> None:
    def refuses(*args: object, **kwargs: object) -> None:
        raise FallbackError("not for 5 heads")

    OpTable("toy", {"inverse_rope": refuses}, "error").inverse_rope(**sample("inverse_rope"))


def an_op_expects_to_fail(subject: Subject) -> None:
    def refuses(*args: object, **kwargs: object) -> None:
        pytest.xfail("as everybody knows")

    OpTable("toy", {"inverse_rope": refuses}, "error").inverse_rope(**sample("inverse_rope"))


def ends_the_session(subject: Subject) -> None:
    pytest.exit("enough", 0)


def a_missing_op(subject: Subject) -> None:
    OpTable("toy", {}, "error").inverse_rope(**sample("inverse_rope"))


def ends_the_process(subject: Subject) -> None:
    os._exit(3)


def hangs(subject: Subject) -> None:
    time.sleep(60)


CASES = {
    case.id: case
    for case in (
        make("suite/det/pass", passes),
        make("op/linear/det/pass", passes, ops=["linear"]),
        make("op/linear/det/fail", fails, ops=["linear"]),
        make("layout/fp8_ds_mla/insert/pad", breaks_a_byte, family="bytes", level="layout"),
        make("suite/det/crash", crashes),
        make("op/linear/det/left_out", an_op_leaves_its_case_out, ops=["linear"]),
        make("op/linear/det/expected", an_op_expects_to_fail, ops=["linear"]),
        make("op/linear/det/exit", ends_the_session, ops=["linear"]),
        make("op/linear/det/missing", a_missing_op, ops=["linear"]),
        make("suite/race/streams", needs_a_device, family="race"),
        make("suite/det/unclaimed", passes, layouts=("no_such_layout",)),
        make("op/toy_op/det/portable", passes, ops=["toy_op"]),
        make("suite/det/long", passes, level="extended"),
        make("suite/det/hang", hangs, limit=0.5),
        make("suite/det/gone", ends_the_process),
    )
}


def use(names: Iterable[str]) -> None:
    """Make these the only cases of this process."""
    case_module.FAMILIES = ()
    case_module.CASES.clear()
    case_module.CASES.update({name: CASES[name] for name in names})


if os.environ.get("TOY_CASES"):
    use(os.environ["TOY_CASES"].split())

__all__ = ["CASES", "make", "use"]
