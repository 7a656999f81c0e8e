"""CuTeDSL's kernels beside Triton's on a CUDA device: bytes first, then times, in one run.

    python benchmarks/cutedsl_times.py                   # prints a table
    python benchmarks/cutedsl_times.py --write           # and writes measured.json, which the backend reads
    python benchmarks/cutedsl_times.py --csv FILE

Bytes are compared with Triton's on random and on hostile inputs (wild magnitudes, NaN, infinity, holes), and
with the CPU's on random ones. Times are medians of CUDA graphs over 256 MB of other tensors, taken in turns.
"""

from __future__ import annotations

import argparse
import csv
import json
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

from dsv4core.layout import get_layout  # noqa: E402
from dsv4core.ops import OPS  # noqa: E402
from dsv4core_cuda.cutedsl._measured import FILE  # noqa: E402
from dsv4core_cuda.cutedsl._probe import ARCHITECTURES  # noqa: E402
from dsv4core_cuda.cutedsl.install import launchers  # noqa: E402

LARGE = 32768
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


def insert(tokens: int) -> tuple[Call, int]:
    """Rows to shuffled slots."""
    k = torch.randn(tokens, 512, device=DEVICE).bfloat16()
    pages = max(1, tokens // 64)
    cache = torch.zeros(pages, get_layout("fp8_ds_mla").page_bytes(64), dtype=torch.uint8, device=DEVICE)
    slots = torch.randperm(pages * 64, device=DEVICE)[:tokens]
    call = {"k": k, "k_cache": cache, "slot_mapping": slots, "rows": 64, "layout": "fp8_ds_mla"}
    return call, volume(k) + tokens * (584 + 8)


def gather(tokens: int, requests: int) -> tuple[Call, int]:
    """All rows of some requests, whose pages are shuffled."""
    filled, _ = insert(tokens)
    kernel("quantize_and_insert_k_cache")(**filled)
    rows = tokens // requests
    out = torch.zeros(requests, rows, 512, dtype=torch.bfloat16, device=DEVICE)
    table = torch.randperm(max(1, tokens // 64), device=DEVICE).to(torch.int32).view(requests, -1)
    call = {
        "out": out, "k_cache": filled["k_cache"], "seq_lens": lens(requests, rows), "gather_lens": None,
        "block_table": table, "rows": 64, "offset": 0, "layout": "fp8_ds_mla",
    }  # fmt: skip
    return call, volume(out) + tokens * 584


def cases() -> Iterator[Case]:
    """Every form at both sizes."""
    for op, module in launchers().items():
        for form in module.programs("sm_90a"):
            for tokens in (LARGE, 128):
                if op == "compress_norm_rope_store":
                    _, ratio, layout = form.split()
                    yield op, form, tokens, *compress(tokens, int(ratio), layout)
                elif op == "fused_indexer_q_rope_quant":
                    yield op, form, tokens, *index_queries(tokens, form.split()[1])
                elif op == "quantize_and_insert_k_cache":
                    yield op, form, tokens, *insert(tokens)
                elif op == "dequantize_and_gather_k_cache":
                    yield op, form, tokens, *gather(tokens, 2)
    yield "dequantize_and_gather_k_cache", "fp8_ds_mla", LARGE + 8, *gather(LARGE, 8)
    yield "dequantize_and_gather_k_cache", "fp8_ds_mla", LARGE + 1, *gather(LARGE, 1)
