"""What becomes of a case: sides without it, sides that fail, figures against the first side and the floor."""

from __future__ import annotations

import pytest
import torch

from dsv4core import get_backend
from dsv4core.bench.case import Arguments, Case
from dsv4core.bench.floors import Floors
from dsv4core.bench.gate import Verdict, alike
from dsv4core.bench.measure import measure
from dsv4core.bench.side import BODIES, BackendSide, Peer, PeerCall, Running, bodies
from dsv4core.ops import OPS
from dsv4core.samples import sample

CASE = Case("thing", "linear", dict, bytes=100.0, flops=10.0)


class Fixed:
    """A side whose calls take the seconds that it says."""

    device = "cpu"

    def __init__(self, name: str, seconds: float, verdict: Verdict | None = None, has: bool = True) -> None:
        self.name, self.seconds, self.has = name, seconds, has
        self.verdict = verdict or Verdict(True, "fine")

    def start(self, case: Case, arguments: Arguments) -> Running | None:
        return Running(lambda: self.seconds, "made up", lambda: self.verdict) if self.has else None


def run(*sides: Fixed):
    timers = {"cpu": lambda call, repeat: call()}
    return measure(CASE, sides, timers, {"cpu": Floors(copy=50.0, gemm=100.0)}, 3)


def test_figures_stand_against_the_first_side_and_the_floor() -> None:
    first, second = run(Fixed("a", 4.0), Fixed("b", 6.0))
    assert first.over is None and second.over == 1.5
    assert first.roof_us == 2e6 and first.roof == 0.5 and second.roof == pytest.approx(1 / 3)
    assert first.median_us == 4e6 and first.runs == 3 and first.calls == 1


def test_a_side_without_the_case_is_left_out() -> None:
    assert [row.side for row in run(Fixed("a", 1.0), Fixed("b", 1.0, has=False))] == ["a"]


def test_what_fails_its_check_gets_no_time() -> None:
    wrong, right = run(Fixed("a", 1.0, Verdict(False, "bad")), Fixed("b", 1.0))
    assert not wrong.ok and wrong.median_us is None and wrong.check == "bad"
    assert right.ok and right.median_us == 1e6 and right.over is None  # there is nothing to compare with


def test_bodies_are_a_backend() -> None:
    backend = bodies("cpu")
    assert backend.name == BODIES and set(backend.ops.provenance.values()) == {"torch"}
    side = BackendSide(backend)
    started = side.start(Case("x", "inverse_rope", dict), sample("inverse_rope"))
    assert started.check() == Verdict(True, "bit-identical")


def test_a_step_is_compared_with_the_bodies() -> None:
    def wrong_on_cpu(backend, arguments):
        return lambda: torch.full((4,), 2.0 if backend.name == "cpu" else 1.0)

    case = Case("step", "doubling", dict, start=wrong_on_cpu)
    assert not BackendSide(get_backend("cpu")).start(case, {}).check().ok
    assert BackendSide(bodies("cpu")).start(case, {}).check().ok


def test_alike_counts_bytes_compares_lists_as_sets_and_numbers_in_l2() -> None:
    ones = torch.ones(1000)
    assert alike([ones * 1.001], [ones]).ok and not alike([ones * 1.1], [ones]).ok
    data = torch.arange(200, dtype=torch.uint8)
    assert alike([data], [data]).text == "bytes differ 0" and not alike([data.flip(0)], [data]).ok
    listed = torch.arange(100, dtype=torch.int32).view(1, 100)
    shifted = torch.cat((listed[:, 1:], torch.tensor([[500]], dtype=torch.int32)), 1)
    assert alike([listed.flip(1)], [listed]).ok and alike([shifted], [listed]).ok
    assert not alike([listed + 50], [listed]).ok
    assert alike([None], [ones]) == Verdict(True, "not compared")
    assert not alike([ones[:5]], [ones]).ok
    assert not alike([ones * torch.nan], [ones]).ok


def test_a_peer_gets_copies_of_what_it_writes_and_is_compared() -> None:
    arguments = sample("quantize_and_insert_k_cache")
    before = arguments["k_cache"].clone()

    def convert(op: str, a: Arguments) -> PeerCall | None:
        def write() -> None:
            OPS[op].body(**a)

        def results():
            write()
            return [a["k_cache"]]

        return PeerCall(write, results) if op == "quantize_and_insert_k_cache" else None

    peer = Peer("other", "cpu", convert)
    started = peer.start(Case("x", "quantize_and_insert_k_cache", dict), arguments)
    assert started is not None and started.check() == Verdict(True, "bytes differ 0")
    assert torch.equal(arguments["k_cache"], before)
    assert peer.start(Case("x", "linear", dict), sample("linear")) is None
    assert peer.start(Case("x", "step", dict, start=lambda b, a: lambda: torch.ones(1)), {}) is None
