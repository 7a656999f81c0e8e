"""The matrix of bad inputs of every op: one documented error that says what is wrong, and nothing written."""

from __future__ import annotations

import bad_inputs
import pytest
import torch
from bad_inputs import LEGAL, RAISES, STRUCTURE, VARIANTS, Case

from dsv4core.errors import OpArgumentError
from dsv4core.ops import OPS, OpTable


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8).clone()


def attempt(ops: OpTable, op: str, case: Case) -> str:
    """What is wrong with the outcome of a call, empty when nothing is."""
    written = {n: case.arguments[n] for n in OPS[op].mutates}
    written = {n: t for n, t in written.items() if isinstance(t, torch.Tensor) and t.device.type == "cpu"}
    before = {n: bytes_of(t) for n, t in written.items()}
    try:
        getattr(ops, op)(**case.arguments)
    except OpArgumentError as error:
        changed = [n for n, t in written.items() if not torch.equal(bytes_of(t), before[n])]
        if changed:
            return f"{case.label}: {changed} changed before {error}"
        if case.outcome == LEGAL:
            return f"{case.label}: legal, but {error}"
        known = {*OPS[op].signature.parameters}
        if error.op != op or error.argument not in known or not error.expected or not error.got:
            return f"{case.label}: incomplete {error}"
        if case.named is not None and error.argument != case.named:
            return f"{case.label}: names {error.argument}: {error}"
        return ""
    except Exception as error:
        return f"{case.label}: {type(error).__name__}: {error}"
    return f"{case.label}: accepted" if case.outcome == RAISES else ""


def failures(ops: OpTable, op: str, cases: list[Case]) -> list[str]:
    return [problem for case in cases if (problem := attempt(ops, op, case))]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_sample_itself_is_legal(ops: OpTable, variant: str) -> None:
    op, make = VARIANTS[variant]
    assert not failures(ops, op, [Case("as it is", make(op), LEGAL)])


@pytest.mark.parametrize("kind", STRUCTURE)
@pytest.mark.parametrize("variant", VARIANTS)
def test_structure(ops: OpTable, variant: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, make = VARIANTS[variant]
    cases = list(STRUCTURE[kind](op, make(op)))
    assert not failures(ops, op, cases)
    monkeypatch.setenv("DSV4CORE_CHECK", "0")  # always checked, whatever the mode
    assert not failures(ops, op, [case for case in STRUCTURE[kind](op, make(op)) if case.outcome == RAISES])


@pytest.mark.parametrize("variant", VARIANTS)
def test_values(ops: OpTable, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV4CORE_CHECK", "1")
    op, make = VARIANTS[variant]
    assert not failures(ops, op, list(bad_inputs.values(op, make(op))))
