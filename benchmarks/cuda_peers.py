"""Our ops as the backend runs them beside vLLM's kernels, on the same bytes, taking turns.

Type `python benchmarks/cuda_peers.py vllm=DIR [library=FILE] [--tokens=32768,1]` on an NVIDIA device: where a
wheel was unpacked, whose Triton files run without vLLM, and its op library for the query norm in C++. What
both write is compared first: `differing` bytes of `bytes`. Times are medians of CUDA graphs of calls that
together touch 256 MB where one moves 16 MB or more, and the host's to start one; `share` is of the copy's
bandwidth. `--bytes` only compares, without a device too (TRITON_INTERPRET=1, few tokens).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ["DSV4CORE_CHECK"] = "0"

import _triton_calls  # noqa: E402
import torch  # noqa: E402
from _triton_calls import Arguments, compress_call, copies, kernel, lens, paged, volume  # noqa: E402
from _triton_times import copy_speed  # noqa: E402
from _vllm_peers import Peer, load  # noqa: E402
from cuda_attention import measured  # noqa: E402
from torch import Tensor  # noqa: E402

from dsv4core import get_backend  # noqa: E402
from dsv4core.layout import get_layout  # noqa: E402

TOKENS = (32768, 2048, 128, 1)
PAGES: Arguments = {"rows": 64, "layout": "fp8_ds_mla"}
COLUMNS = ("op", "form", "tokens", "ours_us", "vllm_us", "times", "share", "ours_host_us", "vllm_host_us",
           "differing", "bytes")  # fmt: skip
WRITTEN = ("k_cache", "out", "state_cache")
Case = tuple[str, str, Arguments, int]
"""Op, form, arguments, bytes that have to travel."""


def cases(tokens: int, device: str) -> Iterator[Case]:
    """Every op that writes or reads a cache, and what rotates and quantises, at one number of tokens."""
    t = torch.arange(tokens, device=device)
    turn = {"positions": t, "cos_sin": torch.randn(tokens, 64, device=device)}
    k = torch.randn(tokens, 512, device=device).bfloat16()
    pages = -(-tokens // 64)
    cache = paged("fp8_ds_mla", pages, 64, device)
    slots = torch.randperm(pages * 64, device=device)[:tokens]
    into = {"k_cache": cache, "slot_mapping": slots, **PAGES}
    yield "quantize_and_insert_k_cache", "fp8_ds_mla", {"k": k, **into}, tokens * (1024 + 592)
    heads = torch.randn(tokens, 64, 512, device=device).bfloat16()
    call = {"q": heads, "kv": k, **turn, **into, "eps": 1e-6, "padded_heads": 64}
    yield "fused_qnorm_rope_kv_insert", "64 heads", call, 2 * volume(heads) + tokens * (1024 + 592 + 256)
    call = {"o": heads, **turn, "groups": 8, "scale_format": "f32"}
    yield "fused_inv_rope_fp8_quant", "64 heads", call, volume(heads) * 3 // 2 + tokens * 1280
    del heads, call
    yield from gathers(tokens, cache, device)
    joined = torch.randn(tokens, 1536, device=device).bfloat16()
    weight = torch.randn(1024, device=device).bfloat16()
    call = {"qr": joined[:, :1024], "kv": joined[:, 1024:], "q_weight": weight, "kv_weight": weight[:512]}
    yield "fused_q_kv_rmsnorm", "1024", {**call, "eps": 1e-6}, 2 * volume(joined)
    q, weights = (torch.randn(tokens, 64, *dim, device=device) for dim in ((128,), ()))
    for form, part in (("fp8", 2), ("mxfp4", 4)):
        call = {"q": q.bfloat16(), "weights": weights, **turn, "softmax_scale": 0.1, "head_scale": 0.125}
        size = volume(q) // 2 + volume(q) // 2 // part + 2 * volume(weights) + tokens * 256
        yield "fused_indexer_q_rope_quant", form, {**call, "format": form, "rotate": "none"}, size
    yield from states(tokens, device)
    for ratio, layout in ((4, "fp8_ds_mla"), (128, "fp8_ds_mla"), (4, "index_fp8"), (4, "index_mxfp4")):
        call, size = compress(tokens, ratio, layout, device)
        yield "compress_norm_rope_store", f"ratio {ratio} {layout}", call, size


def gathers(tokens: int, cache: Tensor, device: str) -> Iterator[Case]:
    """The rows of eight requests and of one, whose pages are shuffled."""
    for requests in (8, 1) if tokens >= 512 else (1,):
        each = tokens // requests
        order = torch.randperm(cache.shape[0], device=device).to(torch.int32).view(requests, -1)
        call = {
            "out": torch.zeros(requests, each, 512, dtype=torch.bfloat16, device=device), "k_cache": cache,
            "seq_lens": lens(requests, each).to(device), "gather_lens": None, "block_table": order, **PAGES,
            "offset": 0,
        }  # fmt: skip
        yield "dequantize_and_gather_k_cache", f"{requests} x {each}", call, tokens * (1024 + 584)


def states(tokens: int, device: str) -> Iterator[Case]:
    """States of the three compressors."""
    for ratio, dim in ((4, 512), (128, 512), (4, 128)):
        width = dim * (2 if ratio == 4 else 1)
        kv = torch.randn(tokens, 2 * width, device=device)
        pages = torch.zeros(-(-tokens // 4), 4, 2 * width, device=device)
        call = {
            "kv": kv[:, :width], "score": kv[:, width:], "ape": torch.randn(ratio, width, device=device),
            "positions": torch.arange(tokens, device=device), "state_cache": pages,
            "slot_mapping": torch.arange(tokens, device=device), "ratio": ratio,
        }  # fmt: skip
        yield "save_partial_states", f"ratio {ratio} head {dim}", call, 2 * volume(kv)


def compress(tokens: int, ratio: int, layout: str, device: str) -> tuple[Arguments, int]:
    """A prefill of so many tokens; below 2,048 so many requests that all close a window."""
    record, width = get_layout(layout).record_bytes, get_layout(layout).width or 0
    if tokens >= 2048:
        call = compress_call(tokens, ratio, layout, device)
        return call, volume(call["state_cache"]) + tokens // ratio * record
    call = compress_call(tokens * 2 * ratio, ratio, layout, device)
    closing = torch.arange(tokens, device=device) * 2 * ratio + 2 * ratio - 1
    for name in ("positions", "token_to_req", "slot_mapping", "kv_slot_mapping"):
        call[name] = call[name][closing].contiguous()
    return call, tokens * ((8 if ratio == 4 else 128) * 8 * width * (2 if ratio == 4 else 1) + record)


def written(function: Peer, call: Arguments) -> list[Tensor]:
    """The bytes of everything that a call returns or writes, without what only pads a result."""
    given = {k: v.clone() if k in WRITTEN else v for k, v in call.items()}
    found = function(**given)
    parts: list[Any] = [*found] if isinstance(found, tuple) else [found]
    flat = [y for x in parts for y in (x if isinstance(x, tuple) else (x,))] + [given.get(n) for n in WRITTEN]
    return [x.contiguous().flatten().view(torch.uint8) for x in flat if isinstance(x, Tensor) and x.numel()]


def differing(ours: list[Tensor], theirs: list[Tensor]) -> int:
    """Bytes that differ, -1 where results have other sizes."""
    if [x.numel() for x in ours] != [x.numel() for x in theirs]:
        return -1
    return sum(int((a != b).sum()) for a, b in zip(ours, theirs, strict=True))


def row(
    op: str, form: str, tokens: int, call: Arguments, size: int, ways: dict[str, Peer], copy: float
) -> Any:
    """A line of the table; no times without the copy's speed."""
    found = {name: written(way, call) for name, way in ways.items()}
    wrong, total = differing(found["ours"], found["vllm"]), sum(x.numel() for x in found["ours"])
    del found
    if not copy:
        return op, form, tokens, wrong, total
    many = copies(call, size)
    many = (many if size < 1 << 29 else many[:4]) * (1 + (len(many) == 1))
    times = measured({name: [partial(way, **c) for c in many] for name, way in ways.items()}, rounds=7)
    (ours, host), (theirs, their_host) = times["ours"], times["vllm"]
    us = 1e6 * ours.spread.median
    return (
        op, form, tokens, f"{us:.2f}", f"{1e6 * theirs.spread.median:.2f}", f"{theirs.over(ours).median:.2f}",
        f"{size / copy / us * 1e6:.3f}", f"{1e6 * host:.1f}", f"{1e6 * their_host:.1f}", wrong, total,
    )  # fmt: skip


def backend() -> Callable[[str], Peer]:
    """Our ops: those of the backend, without a device the Triton kernels."""
    if not torch.cuda.is_available():
        return kernel
    table = get_backend("cuda").ops
    return lambda op: getattr(table, op)


def main(arguments: list[str]) -> int:
    """The whole table; of a row that failed its reason."""
    given = dict(a.lstrip("-").split("=", 1) for a in arguments if "=" in a)
    device = _triton_calls.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    tokens = [int(n) for n in given["tokens"].split(",")] if "tokens" in given else TOKENS
    get, copy = backend(), 0.0 if "--bytes" in arguments else copy_speed()
    if "library" in given:
        torch.ops.load_library(given["library"])
    peers = load(Path(given["vllm"]))
    name = torch.cuda.get_device_name() if device == "cuda" else device
    print(f"# {name}, torch {torch.__version__}, copy {copy / 1e12:.2f} TB/s: {' '.join(sys.argv)}")
    print(*(COLUMNS if copy else COLUMNS[:3] + COLUMNS[-2:]), sep=",", flush=True)
    torch.manual_seed(0)
    for count in tokens:
        for op, form, call, size in cases(count, device):
            try:
                ways = {"ours": get(op), "vllm": peers[op]}
                print(*row(op, form, count, call, size, ways, copy), sep=",", flush=True)
            except Exception as failure:
                said = [*str(failure).splitlines(), ""][0]
                print(f"# {op} {form} {count}: {type(failure).__name__}: {said}", flush=True)
            if device == "cuda":
                torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
