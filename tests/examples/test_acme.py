"""The example backend: data in its plugin, two ops equal to the contract, one refusal that is declared."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dsv4core.backend import Backend
from dsv4core.errors import OpArgumentError
from dsv4core.ops import OPS
from dsv4core.samples import sample
from dsv4core_conformance.subject import Subject

ACME = Path(__file__).parents[2] / "examples" / "dsv4core-acme"


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Its module of ops, imported from the folder."""
    monkeypatch.syspath_prepend(str(ACME))
    from dsv4core_acme import backend

    yield backend
    for name in [name for name in sys.modules if name.startswith("dsv4core_acme")]:
        del sys.modules[name]


@pytest.mark.parametrize("op", ["inverse_rope", "save_partial_states"])
def test_its_ops_give_the_bits_of_the_contract(backend: ModuleType, op: str) -> None:
    ours, theirs = sample(op), sample(op)
    expected = OPS[op].body(**theirs)
    result = backend.AcmeBackend({}).ops[op](**ours)
    for name in ("state_cache", "o"):
        if name in ours:
            assert torch.equal(ours[name].view(torch.uint8), theirs[name].view(torch.uint8))
    assert (result is None) == (expected is None)
    if expected is not None:
        assert torch.equal(result.view(torch.uint8), expected.view(torch.uint8))


def test_what_it_declares_is_refused(backend: ModuleType) -> None:
    arguments = sample("inverse_rope")
    shape, strides = arguments["o"].shape, (2**30, *arguments["o"].stride()[1:])
    far = torch.empty(0, dtype=torch.bfloat16, device="meta").new_empty_strided(shape, strides)
    with pytest.raises(OpArgumentError, match="within 2147483648 elements"):
        backend.inverse_rope(**{**arguments, "o": far})


def test_it_may_be_told_its_device(backend: ModuleType) -> None:
    assert backend.AcmeBackend({"device": "cuda:1"}).device_type == "cuda"


@pytest.mark.parametrize("fallback", ["error", "allow"])
def test_exactly_its_two_ops_are_judged(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, fallback: str
) -> None:
    from dsv4core_acme.plugin import SPEC

    monkeypatch.setenv("DSV4CORE_FALLBACK", fallback)
    provider = backend.AcmeBackend({})
    bound = Backend(SPEC, provider, provider.ops)
    subject = Subject(bound, torch.device("cpu"), "device", SPEC.features, frozenset(SPEC.layouts))
    assert subject.own_ops == {"inverse_rope", "save_partial_states"}


def test_its_plugin_is_data(tmp_path: Path) -> None:
    code = (
        "import sys, dsv4core_acme.plugin; assert not {'torch', 'dsv4core_acme.backend'} & set(sys.modules)"
    )
    search = f"import sys; sys.path[:0] = {[str(ACME), *sys.path]!r}\n"
    subprocess.run([sys.executable, "-c", search + code], check=True, cwd=tmp_path, timeout=60)
