"""CuTeDSL's kernels beside Triton's on a CUDA device: bytes first, then times, in one run.

    python benchmarks/cutedsl_times.py                   # prints a table
    python benchmarks/cutedsl_times.py --write           # and writes measured.csv, which the backend reads
    python benchmarks/cutedsl_times.py --csv FILE
    python benchmarks/cutedsl_times.py --wide            # index entries in mxfp4 as products of bf16

Bytes are compared with Triton's on random and on hostile inputs (wild magnitudes, NaN, infinity, holes), and
with the CPU's on random ones. Times are medians of CUDA graphs over 256 MB of other tensors, taken in turns.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "backends" / "cuda")]
os.environ["DSV4CORE_CHECK"] = "0"

import torch  # noqa: E402
from _triton_calls import DEVICE, compress_call, copies, copy_kernel, kernel, lens, timed, volume  # noqa: E402
from torch import Tensor  # noqa: E402

from dsv4core.layout import CacheLayout, get_layout  # noqa: E402
from dsv4core.ops import OPS  # noqa: E402
from dsv4core_cuda.cutedsl._measured import Row, write  # noqa: E402
from dsv4core_cuda.cutedsl._probe import ARCHITECTURES  # noqa: E402
from dsv4core_cuda.cutedsl.install import launchers  # noqa: E402

LARGE = 32768
SIZES = (LARGE, 1024, 128, 32, 1)
INDEXED = (32, 8, 1)
"""Tokens of a step that chooses among `ENTRIES` index entries each."""
ENTRIES, CHOSEN = 1 << 20, 512
ARCH = ARCHITECTURES[torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)]
Call = dict[str, Any]
Case = tuple[str, str, int, Call, int]
"""Op, form, tokens, arguments, bytes that have to travel."""


def compress(tokens: int, ratio: int, layout: str) -> tuple[Call, int]:
    """A prefill of so many tokens; fewer than LARGE: so many requests that all close a window."""
    record = get_layout(layout).record_bytes
    if tokens == LARGE:
        call = compress_call(tokens, ratio, layout, DEVICE)
        return call, volume(call["state_cache"]) + tokens // ratio * record
    call = compress_call(tokens * 2 * ratio, ratio, layout, DEVICE)
    closing = torch.arange(tokens, device=DEVICE) * 2 * ratio + 2 * ratio - 1
    for name in ("positions", "token_to_req", "slot_mapping", "kv_slot_mapping"):
        call[name] = call[name][closing].contiguous()
    window = (2 * ratio if ratio == 4 else ratio) * 8 * (get_layout(layout).width or 0)
    return call, tokens * (window + record)


def index_queries(tokens: int, rotate: str) -> tuple[Call, int]:
    """Queries of 64 index heads."""
    q = torch.randn(tokens, 64, 128, device=DEVICE).bfloat16()
    weights = torch.randn(tokens, 64, device=DEVICE)
    call = {
        "positions": torch.arange(tokens, device=DEVICE), "q": q, "cos_sin": angles(tokens),
        "weights": weights, "softmax_scale": 0.1, "head_scale": 0.125, "format": "mxfp4", "rotate": rotate,
    }  # fmt: skip
    return call, volume(q) * 5 // 4 + tokens * 64 * 12 + tokens * 256


def angles(count: int) -> Tensor:
    """A table of any numbers."""
    return torch.randn(count, 64, device=DEVICE)


def norm_and_insert(tokens: int) -> tuple[Call, int]:
    """Queries of 64 heads and a key for each token, to shuffled slots."""
    q, kv = (torch.randn(tokens, *heads, 512, device=DEVICE).bfloat16() for heads in ((64,), ()))
    pages = max(1, tokens // 64)
    cache = torch.zeros(pages, get_layout("fp8_ds_mla").page_bytes(64), dtype=torch.uint8, device=DEVICE)
    call = {
        "q": q, "kv": kv, "positions": torch.arange(tokens, device=DEVICE), "cos_sin": angles(tokens),
        "k_cache": cache, "slot_mapping": torch.randperm(pages * 64, device=DEVICE)[:tokens],
        "rows": 64, "layout": "fp8_ds_mla", "eps": 1e-6, "padded_heads": 64,
    }  # fmt: skip
    return call, 2 * volume(q) + volume(kv) + tokens * (584 + 8 + 256)


def gather(tokens: int, requests: int, whole: bool) -> tuple[Call, int]:
    """Rows of some requests, whose pages are shuffled: all of them, or the last half."""
    filled, _ = norm_and_insert(tokens)
    kernel("fused_qnorm_rope_kv_insert")(**filled)
    rows = tokens // requests
    given = rows if whole else rows // 2
    out = torch.zeros(requests, max(1, given), 512, dtype=torch.bfloat16, device=DEVICE)
    pages = filled["k_cache"].shape[0]
    table = torch.randperm(pages, device=DEVICE).to(torch.int32).view(requests, -1)
    call = {
        "out": out, "k_cache": filled["k_cache"], "seq_lens": lens(requests, rows),
        "gather_lens": None if whole else lens(requests, given), "block_table": table,
        "rows": 64, "offset": 0, "layout": "fp8_ds_mla",
    }  # fmt: skip
    return call, requests * given * (1024 + 584)


def mxfp4_rows(pages: int, layout: CacheLayout, wide: bool) -> Tensor:
    """Pages of encoded noise, whose rows have scales within a factor of 4.

    `wide`: pages of any codes, whose rows have scales within a factor of 16, a third of them beyond 8.
    """
    found = layout.encode_pages(torch.randn(pages, 64, 128, device=DEVICE))
    if wide:
        found[:, :4096].random_(0, 256)
        found[:, 4096:4352].random_(122, 127)
    return found


def index_entries(tokens: int, layout: str, wide: bool = False) -> tuple[Call, int]:
    """`ENTRIES` index entries for each token, of 64 heads; requests take pages by turns.

    Their bytes bind: on an H100 the products of 64 heads take half the time of fp8, two fifths of mxfp4's as
    bytes, three quarters as bf16 (`wide`).
    """
    found, pages = get_layout(layout), ENTRIES // 64
    cache = torch.zeros(max(tokens, 8) * pages, found.page_bytes(64), dtype=torch.uint8, device=DEVICE)
    for part in cache.split(1 << 14):
        if layout.startswith("index_mxfp4"):
            part.copy_(mxfp4_rows(len(part), found, wide))
        else:
            codes = 64 * 128
            values = torch.randn(len(part), codes, device=DEVICE).to(torch.float8_e4m3fn)
            part[:, :codes] = values.view(torch.uint8)
            scales = torch.randint(122, 127, (len(part), 64), dtype=torch.int32, device=DEVICE)
            words = scales * 0x01010101 if layout.endswith("ue8m0x4") else scales << 23
            part[:, codes : codes + 256] = words.view(torch.uint8)
    if layout.startswith("index_mxfp4"):
        rows = mxfp4_rows(tokens, found, wide)  # 64 heads are laid out as the 64 entries of a page
        q = rows[:, :4096].reshape(tokens, 64, 64).contiguous()
        scales = rows[:, 4096:4352].reshape(tokens, 64, 4).contiguous()
    else:
        q, scales = torch.randn(tokens, 64, 128, device=DEVICE).to(torch.float8_e4m3fn), None
    call = {
        "q": q, "q_scales": scales, "weights": torch.randn(tokens, 64, device=DEVICE), "k_cache": cache,
        "context_lens": torch.full((tokens,), ENTRIES, dtype=torch.int32, device=DEVICE),
        "token_to_req": torch.arange(tokens, dtype=torch.int32, device=DEVICE),
        "block_table": torch.arange(tokens * pages, dtype=torch.int32, device=DEVICE).view(pages, tokens).t(),
        "rows": 64, "layout": layout, "k": CHOSEN, "workspace_bytes": 256 << 20,
        "rotate": found.rotate,
    }  # fmt: skip
    return call, tokens * ENTRIES * found.record_bytes


def turned(call: Call) -> list[Call]:
    """Calls that read other pages each, as many as the cache has."""
    pages, each = len(call["k_cache"]), call["block_table"].numel()
    return [{**call, "block_table": (call["block_table"] + i) % pages} for i in range(0, pages, each)]


def cases(wide: bool) -> Iterator[Case]:
    """Every form of every op that has a kernel, at every size; `wide`: see `mxfp4_rows`, and nothing else."""
    if wide:
        for tokens in INDEXED:
            yield "sparse_indexer", "index_mxfp4", tokens, *index_entries(tokens, "index_mxfp4", wide)
        return
    for op, module in launchers().items():
        for form in module.programs(ARCH):
            for tokens in INDEXED if op == "sparse_indexer" else SIZES:
                if op == "compress_norm_rope_store":
                    _, ratio, layout = form.split()
                    yield op, form, tokens, *compress(tokens, int(ratio), layout)
                elif op == "fused_indexer_q_rope_quant":
                    yield op, form, tokens, *index_queries(tokens, form.split()[1])
                elif op == "dequantize_and_gather_k_cache":
                    yield op, form, tokens, *gather(tokens, 1, form.endswith("whole"))
                elif op == "fused_qnorm_rope_kv_insert":
                    yield op, form, tokens, *norm_and_insert(tokens)
                elif op == "sparse_indexer":
                    yield op, form, tokens, *index_entries(tokens, form)


def wild(call: Call) -> Call:
    """The call with magnitudes from 2^-40 to 2^40, and one NaN and one infinity in what reaches a page."""
    found = dict(call)
    for name in ("state_cache", "q", "kv"):
        if name in call:
            x = call[name].float()
            x = x * torch.exp2(torch.randint(-40, 41, x.shape[:-1], device=DEVICE).float())[..., None]
            found[name] = x.to(call[name].dtype)
    if "kv" in call:
        found["kv"][0, 3], found["kv"][-1, 500], found["kv"][-1, 9] = torch.nan, torch.inf, -torch.inf
    if "state_cache" in call:
        half = found["state_cache"].shape[-1] // 2
        found["state_cache"][..., half:].clamp_(-300, 300)
    return found


def results(function: Callable[..., Any], call: Call) -> list[Tensor]:
    """The bytes of everything that a call returns or writes."""
    given = {k: v.clone() if k in ("k_cache", "out") else v for k, v in call.items()}
    found = function(**given)
    tensors = [*(found if isinstance(found, tuple) else (found,)), given.get("out"), given.get("k_cache")]
    return [t.contiguous().view(torch.uint8) for t in tensors if t is not None]


def differing(op: str, function: Callable[..., Any], call: Call, cpu: bool) -> int:
    """Bytes that differ from Triton's for the call and a wild one, with `cpu` from the body's too.

    Of lists of entries Triton's alone: nobody waits for a million scores of a CPU.
    """
    count, listed = 0, op == "sparse_indexer"
    cpu = cpu and not listed
    for given in (call,) if listed else (call, wild(call)):
        ours, theirs = results(function, given), results(kernel(op), given)
        count += sum(int((a != b).sum()) for a, b in zip(ours, theirs, strict=True))
    if cpu:
        host = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in call.items()}
        pairs = zip(results(function, call), results(OPS[op].body, host), strict=True)
        count += sum(int((a.cpu() != b).sum()) for a, b in pairs)
    return count


def in_turns(calls: list[Call], *functions: Callable[..., Any]) -> list[tuple[float, float]]:
    """Microseconds in a graph and on the host of each function, the better of two turns."""
    turns = [[timed([partial(f, **c) for c in calls]) for f in functions] for _ in range(2)]
    return [(min(a[0], b[0]), min(a[1], b[1])) for a, b in zip(*turns, strict=True)]


def copy_speed() -> float:
    """Bytes a second of an elementwise copy of 1 GiB."""
    x = torch.empty(1 << 28, dtype=torch.int32, device=DEVICE)
    y = torch.empty_like(x)
    us, _ = timed([partial(copy_kernel[(x.numel() // 4096,)], x, y, x.numel(), BLOCK=4096)])
    return 2 * volume(x) / us * 1e6


COLUMNS = ("op", "form", "tokens", "cutedsl_us", "triton_us", "floor_us", "share_of_copy", "cutedsl_host_us",
           "triton_host_us", "differing_bytes")  # fmt: skip


def measured(copy: float, wide: bool) -> Iterator[tuple[Any, ...]]:
    """A row for every case, printed as it comes."""
    modules = launchers()
    for op, form, tokens, call, size in cases(wide):
        ours = modules[op].bind(refuse, {form: 0}, ARCH)
        wrong = differing(op, ours, call, tokens == 32)
        calls = copies(call, size) if tokens == LARGE else [call] * 8
        if op == "sparse_indexer":
            calls = turned(call)
        calls *= 1 + (len(calls) == 1)  # a graph of one call would time its own start
        (us, host), (theirs, their_host) = in_turns(calls, ours, kernel(op))
        floor = size / copy * 1e6
        row = (op, form, tokens, round(us, 2), round(theirs, 2), round(floor, 2), round(floor / us, 3),
               round(host, 1), round(their_host, 1), wrong)  # fmt: skip
        print(*row, sep=",", flush=True)
        yield row


def refuse(*_: Any, **__: Any) -> None:
    """Stands where a call would go on to Triton."""
    raise AssertionError("the call was passed on")


def main() -> int:
    """Compare, time, print; 1 where a byte differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="what is measured becomes the backend's choice")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--wide", action="store_true", help="only index entries whose scales lie far apart")
    chosen = parser.parse_args()
    if chosen.wide and chosen.write:
        parser.error("--wide has index entries that nobody writes, --write is for usual ones: one of the two")
    copy = copy_speed()
    device = torch.cuda.get_device_name()
    print(f"# {device}, torch {torch.__version__}, copy {copy / 1e12:.2f} TB/s", *COLUMNS, sep="\n# ")
    found = list(measured(copy, chosen.wide))
    if chosen.csv:
        with chosen.csv.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *found])
    if chosen.write:
        write(ARCH, [Row(*row[:5]) for row in found])
    return 1 if any(row[-1] for row in found) else 0


if __name__ == "__main__":
    raise SystemExit(main())
