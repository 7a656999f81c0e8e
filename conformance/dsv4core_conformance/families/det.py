"""Cases of the family DET: the same call gives the same bytes, however often it is made."""

from __future__ import annotations

from typing import Any

import torch

from dsv4core.errors import FallbackError
from dsv4core_conformance.case import NotRun, case
from dsv4core_conformance.check import judge
from dsv4core_conformance.compare import Mismatch, require
from dsv4core_conformance.contracts import CONTRACTS
from dsv4core_conformance.families._calls import between, produced, same_bytes
from dsv4core_conformance.hosts import Moved, cloned, storage_bytes
from dsv4core_conformance.inputs import make
from dsv4core_conformance.inputs.random import options_of
from dsv4core_conformance.subject import Subject

OPS = tuple(CONTRACTS)
LARGE: dict[str, dict[str, Any]] = {
    "sparse_decode": {"tokens": 9, "heads": 16, "window": 128, "extra": 60},
    "sparse_prefill": {"tokens": 9, "heads": 16, "window": 192, "keys": 400},
    "fused_sparse_decode_inv_rope": {"tokens": 9, "heads": 16, "window": 128, "extra": 60},
    "indexer_logits": {"lens": [300, 65, 299], "heads": 8},
    "indexer_topk": {"kind": "ties", "tokens": 9, "width": 3000, "k": 512},
    "sparse_indexer": {"lens": [700, 650, 3], "heads": 8, "k": 128},
    "linear": {"tokens": 33, "inputs": 640, "outputs": 200},
    "grouped_output_projection": {"tokens": 33, "heads": 16, "groups": 4, "lora": 64},
    "compress_norm_rope_store": {"lengths": (300, 128), "ratio": 128},
}
"""Sizes at which work is split between threads, blocks or partial sums."""
ONE_SHAPE: dict[str, dict[str, Any]] = {
    "fused_qnorm_rope_kv_insert": {"positions": range(9)},
    "inverse_rope": {"positions": range(7)},
    "fused_inv_rope_fp8_quant": {"positions": range(7)},
    "fused_sparse_decode_inv_rope": {"positions": range(3)},
    "indexer_logits": {"max_len": 160},
}
"""Options with which arguments and results have the same shapes for every seed."""


@case("op/{op}/det/repeat", op=OPS, catches=("L4", "L5", "I8", "F7"))
def repeated(s: Subject, op: str) -> None:
    """Ten calls with the same arguments, one of them judged, give the same bytes."""
    first = _first(s, op)
    for _ in range(9):
        same_bytes(f"{op}: called again", produced(s, op, make(op, **LARGE.get(op, {}))), first)


@case("op/{op}/det/hundred", op=OPS, level="extended", catches=("L4", "L5", "I8", "F7"))
def repeated_often(s: Subject, op: str) -> None:
    """A hundred calls give the same bytes."""
    first = _first(s, op)
    for _ in range(99):
        same_bytes(f"{op}: called again", produced(s, op, make(op, **LARGE.get(op, {}))), first)


@case("op/{op}/det/after_others", op=OPS, catches=("L5", "I7", "H6"))
def after_other_calls(s: Subject, op: str) -> None:
    """Calls of every other op, and of the same one with other sizes and numbers, leave nothing behind."""
    first = _first(s, op)
    for other in OPS:
        if CONTRACTS[other].optional and other not in s.own_ops:
            continue
        s.call(other, make(other, seed=5))
    same_bytes(f"{op}: after other calls", produced(s, op, make(op, **LARGE.get(op, {}))), first)


@case("op/{op}/det/same_memory", op=OPS, catches=("H4", "H6", "I5", "J4"))
def other_numbers_in_the_same_memory(s: Subject, op: str) -> None:
    """Arguments overwritten in place are read anew, and the results of the call before stay what they were.

    So nothing is remembered by an address or an object, and results have memory of their own.
    """
    first, second = (make(op, seed=seed, **ONE_SHAPE.get(op, {})) for seed in (3, 7))
    for name in ("attn_sink", "cos_sin"):  # the same for every seed
        if name in second:
            second[name] = second[name].flip(0)
    moved = Moved(first, s.device)
    here = moved.arguments
    before = _results(getattr(s.backend.ops, op)(**here))
    kept = [None if r is None else r.clone() for r in before]
    mine = {storage_bytes(v).data_ptr() for v in here.values() if isinstance(v, torch.Tensor) and v.numel()}
    for i, result in enumerate(before):
        shared = result is not None and result.numel() and storage_bytes(result).data_ptr() in mine
        require(not shared, f"{op}: result {i} lies in the memory of an argument")
    for name, value in second.items():
        if isinstance(value, torch.Tensor):
            here[name].copy_(value)
        else:
            here[name] = value
    after = _results(getattr(s.backend.ops, op)(**here))
    same_bytes(f"{op}: results of the call before", _host(before), _host(kept))
    moved.back()
    judge(op, second, first, _host(after))


def _results(result: Any) -> list[torch.Tensor | None]:
    return list(result) if isinstance(result, tuple) else [] if result is None else [result]


def _host(results: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    return [None if r is None else r.cpu() for r in results]


@case("op/{op}/det/threads/{threads}", op=OPS, threads=(1, 2, 5), catches=("L4", "L6"))
def threads(s: Subject, op: str, threads: int) -> None:
    """On a CPU any number of threads gives the bytes of one, attention its own bytes every time.

    The sums of attention are bounded and not exact, and a matrix library may split them among threads.
    """
    if s.device.type != "cpu":
        raise NotRun("threads belong to a CPU")
    first = _first(s, op)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        if CONTRACTS[op].kind in ("attention", "turned"):
            first = _first(s, op)
        got = produced(s, op, make(op, **LARGE.get(op, {})))
    finally:
        torch.set_num_threads(before)
    same_bytes(f"{op}: with {threads} threads", got, first)


@case("op/{op}/det/memory", op=OPS, catches=("L4", "H6"))
def elsewhere_in_memory(s: Subject, op: str) -> None:
    """Where tensors lie, as on another rank, does not show: other addresses, rows further apart."""
    first = _first(s, op)
    moved = make(op, **LARGE.get(op, {}))
    for name, value in moved.items():
        bulky = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float32)
        if bulky and value.ndim > 1 and name not in CONTRACTS[op].writes and name != "state_cache":
            moved[name] = between(value, 1.0, 8, 24)
    same_bytes(f"{op}: with its inputs elsewhere", produced(s, op, moved), first)


def _first(s: Subject, op: str) -> list[torch.Tensor | None]:
    """What the judged call gives."""
    arguments = make(op, **LARGE.get(op, {}))
    results = s.check(op, arguments).results
    return [*results, *(cloned(arguments)[name] for name in CONTRACTS[op].writes)]


@case("op/{op}/random/{seed}", op=OPS, seed=tuple(range(10)), catches=("C6", "C7", "D13", "M5"))
def random_options(s: Subject, op: str, seed: int) -> None:
    """Options drawn for the op's inputs: sizes, layouts, holes, places in memory."""
    _random(s, op, seed)


@case(
    "op/{op}/random/{seed}",
    op=OPS,
    seed=tuple(range(10, 100)),
    level="extended",
    catches=("C6", "C7", "D13", "M5"),
)
def more_random_options(s: Subject, op: str, seed: int) -> None:
    """The same, more often."""
    _random(s, op, seed)


def _random(s: Subject, op: str, seed: int) -> None:
    try:
        options = options_of(op, seed, s.layouts)
    except ValueError as error:
        raise NotRun(str(error)) from None
    drawn = ", ".join(f"{name}={value!r}" for name, value in options.items())
    try:
        s.check(op, make(op, **options))
    except (NotRun, FallbackError):
        raise
    except Exception as error:
        raise Mismatch(
            f"{type(error).__name__}: {error}\n  arguments: make({op!r}, {drawn})\n  again: "
            f"python -m pytest --pyargs dsv4core_conformance --backend {s.name} --level extended "
            f"--case 'op/{op}/random/{seed}'"
        ) from error
