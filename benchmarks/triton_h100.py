"""The Triton kernels on a CUDA device: bytes against the torch bodies on a CPU, then times against floors.

    python benchmarks/triton_h100.py             # bytes, then the table
    python benchmarks/triton_h100.py --only bytes | --only times [--part writers,decode,prefill,indexer]

Times are medians of CUDA-graph replays over calls that together pass the cache several times, with the host's
time for a launch beside them. GB/s counts every input once and every output once; the share is of an
elementwise copy in the same run. It needs torch for CUDA, triton, numpy, pydantic, pluggy and packaging.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
import triton  # noqa: E402
from _triton_calls import DEVICE, compress_call, cut, decode_calls, kernel, prefill_call  # noqa: E402
from torch import Tensor  # noqa: E402

from dsv4core.config import AttentionConfig  # noqa: E402
from dsv4core.kernels.triton import portable  # noqa: E402
from dsv4core.kernels.triton.calls import CONFIGS  # noqa: E402
from dsv4core.ops import OPS  # noqa: E402
from dsv4core.samples import Size, sample  # noqa: E402

EXACT = [n for n in portable.KERNELS if OPS[n].tolerance.kind == "exact" and n != "sparse_indexer"]


def moved(given: dict[str, Any], device: str) -> dict[str, Any]:
    """Arguments on a device with their strides kept, through their storages."""
    homes: dict[int, Tensor] = {}

    def move(t: Tensor) -> Tensor:
        key = t.untyped_storage().data_ptr()
        if key not in homes:
            home = torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage())
            homes[key] = home.to(device, copy=True)
        empty = torch.empty(0, dtype=t.dtype, device=device)
        return empty.set_(homes[key].untyped_storage(), t.storage_offset(), t.shape, t.stride())

    return {k: move(v) if isinstance(v, Tensor) else v for k, v in given.items()}


def raw(t: Tensor) -> Tensor:
    """The bytes of a tensor."""
    flat = t.contiguous().flatten()
    return flat if flat.dtype == torch.bool else flat.view(torch.uint8)


def differing(op: str, given: dict[str, Any]) -> int:
    """Bytes that differ between the device and the torch body on a CPU."""
    mine, theirs = moved(given, DEVICE), moved(given, "cpu")
    got, expected = kernel(op)(**mine), OPS[op].body(**theirs)
    got, expected = (x if isinstance(x, tuple) else (x,) for x in (got, expected))
    wrong = 0
    for a, b in zip(got, expected, strict=True):
        if a is not None:
            wrong += int((raw(a.cpu()) != raw(b)).sum())
    for name in mine:
        if isinstance(mine[name], Tensor):
            wrong += int((raw(mine[name].cpu()) != raw(theirs[name])).sum())
    return wrong


def wild(given: dict[str, Any], seed: int) -> dict[str, Any]:
    """The same call with activations and states of very different sizes, row by row."""
    g = torch.Generator().manual_seed(seed)
    scales = torch.tensor([0.0, 1e-30, 1e-6, 1.0, 448.0, 1e18, 1e-4, 450.0])
    made = dict(given)
    for name in ("q", "kv", "k", "qr", "o", "state_cache"):
        t = made.get(name)
        if isinstance(t, Tensor) and t.dtype in (torch.bfloat16, torch.float32):
            x = torch.randn(t.shape, generator=g)
            x *= scales[torch.randint(0, 8, (t.shape[0],), generator=g)].view(-1, *[1] * (t.dim() - 1))
            made[name] = x.to(t.dtype)
    return made


def check_bytes() -> bool:
    """Every op that is exact, in every layout, then those with a bound."""
    good = True
    for config, changes in CONFIGS.items():
        flash = AttentionConfig.preset("v4-flash", **changes)
        for op in EXACT:
            size = Size(tokens=33, context=200, config=flash)
            for label, given in (("sample", sample(op, size)), ("wild", wild(sample(op, size), 3))):
                wrong = differing(op, given)
                good &= wrong == 0
                if wrong or config == "vllm":
                    print(f"bytes {op:40} {config:9} {label:7} {'equal' if not wrong else f'{wrong} DIFFER'}")
    for check in (check_compress, check_topk, check_logits, check_attention):
        good &= check()
    return good


def check_compress() -> bool:
    """Both ratios at size, every layout of an entry."""
    good = True
    for layout, ratio in (("fp8_ds_mla", 4), ("fp8_ds_mla", 128), ("bf16_row", 128), ("index_fp8", 4),
                          ("index_mxfp4_hadamard", 4), ("index_fp8_hadamard_f32", 4)):  # fmt: skip
        given = moved(compress_call(512, ratio, layout, "cpu"), "cpu")
        for label, call in (("normal", given), ("wild", wild(given, 1))):
            wrong = differing("compress_norm_rope_store", call)
            good &= wrong == 0
            said = "equal" if not wrong else f"{wrong} DIFFER"
            print(f"bytes compress {layout:24} ratio {ratio:3} {label:7} {said}")
    return good


def check_topk() -> bool:
    """Rows long enough to be cut into spans, with ties and infinities."""
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 150000, generator=g)
    logits[1] = logits[1].mul(4).round()
    logits[2, 1000:] = -torch.inf
    lens = torch.tensor([150000, 149999, 150000, 40000], dtype=torch.int32)
    good = all(
        differing("indexer_topk", {"logits": logits, "context_lens": lens, "k": k}) == 0 for k in (512, 2048)
    )
    print(f"top-k of 150,000: {'equal' if good else 'DIFFERS'}")
    return good


def check_logits() -> bool:
    """Scores within their bound, the same list whole and in chunks."""
    good = True
    for config in ("vllm", "official", "sglang", "mxfp4", "other"):
        flash = AttentionConfig.preset("v4-flash", **CONFIGS[config])
        given = sample("indexer_logits", Size(tokens=9, context=3000, config=flash))
        got = kernel("indexer_logits")(**moved(given, DEVICE)).cpu()
        body = OPS["indexer_logits"].body(**given)
        error = float(((got - body).abs() / body.abs().amax(1, keepdim=True)).max())
        rest = {k: v for k, v in given.items() if k != "max_len"}
        listed = kernel("sparse_indexer")(**moved(rest, DEVICE), k=512, workspace_bytes=1 << 26).cpu()
        same = torch.equal(listed, OPS["indexer_topk"].body(got, given["context_lens"], k=512))
        small = kernel("sparse_indexer")(**moved(rest, DEVICE), k=512, workspace_bytes=1 << 14).cpu()
        chunked = torch.equal(small, listed)
        good &= error < 1e-5 and same and chunked
        print(f"logits {config:9} error / row maximum {error:.1e}; list {same}, in chunks {chunked}")
    return good


def check_attention() -> bool:
    """Against float64, and every row alone against in batches of up to 512, both ways of cutting."""
    good = True
    for heads, extra in ((64, 512), (128, 1024), (16, 512), (7, 100)):
        call = decode_calls(8, heads, extra, "fp8_ds_mla", cold=1)[0]
        call["swa_lens"][2], call["extra_lens"][2] = 0, 0
        call["extra_slots"][3, ::3] = -1
        call["attn_sink"][0], call["attn_sink"][1] = torch.inf, -torch.inf
        out = torch.zeros_like(call["q"])
        lse = cut(call, out, None)
        on_host = {**moved(call, "cpu"), "out": torch.zeros(call["q"].shape, dtype=torch.bfloat16)}
        expected = OPS["sparse_decode"].body(**on_host)
        a, b = out.cpu().double(), on_host["out"].double()
        error = float((a - b).norm() / b.norm())
        off = float((lse.cpu() - expected).nan_to_num(0, 0, 0).abs().max())
        good &= error < 4e-3 and off < 2e-5
        print(f"decode {heads:3} heads, 128 + {extra:4}: error {error:.1e}, lse {off:.1e}", flush=True)
    for heads in (64, 128, 7):
        good &= check_prefill(heads)
    for heads in (1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 33, 63, 64, 65, 96, 127, 128):
        good &= check_batches(heads)
    return good


def check_prefill(heads: int) -> bool:
    """Prefill with holes, short and empty lists and a row that nobody lists."""
    call = prefill_call(heads, 200, tokens=64, rows=1000)
    call["lens"][:5] = torch.tensor([0, 1, 64, 65, 199])
    call["indices"][5, ::3], call["indices"][6, :64] = -1, 1000
    call["kv"][900] = torch.nan
    call["indices"][call["indices"] == 900] = 901
    on_host = {**moved(call, "cpu"), "out": torch.zeros(call["q"].shape, dtype=torch.bfloat16)}
    lse, expected = kernel("sparse_prefill")(**call), OPS["sparse_prefill"].body(**on_host)
    a, b = call["out"].cpu().double(), on_host["out"].double()
    error = float((a - b).norm() / b.norm())
    off = float((lse.cpu() - expected).nan_to_num(0, 0, 0).abs().max())
    print(f"prefill {heads:3} heads: error {error:.1e}, lse {off:.1e}", flush=True)
    return error < 4e-3 and off < 2e-5


def check_batches(heads: int) -> bool:
    """Rows of a batch of 512 with lists of every length, equal to the same rows in smaller batches."""
    call = decode_calls(512, heads, 300, "fp8_ds_mla", cold=1)[0]
    call["swa_lens"] = torch.randint(0, 129, (512,), dtype=torch.int32, device=DEVICE)
    call["extra_lens"] = torch.randint(0, 301, (512,), dtype=torch.int32, device=DEVICE)
    call["extra_slots"][3, ::3] = -1
    whole = torch.zeros_like(call["q"])
    lse = cut(call, whole, False)
    differ = 0
    for size in (1, 2, 8, 32, 128, 512):
        for start in range(0, min(512, 16 * size), size):
            rows = slice(start, start + size)
            part = {k: v[rows] if k in PER_TOKEN else v for k, v in call.items()}
            for side in (None, False, True):
                out = torch.zeros_like(part["q"])
                got = cut(part, out, side)
                differ += not (torch.equal(raw(out), raw(whole[rows])) and torch.equal(got, lse[rows]))
    print(f"decode {heads:3} heads, rows alone to 512 together: {differ or 'none'} differ", flush=True)
    return not differ


PER_TOKEN = ("q", "swa_slots", "swa_lens", "extra_slots", "extra_lens")


def main() -> int:
    """Check, then measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=("bytes", "times"))
    parser.add_argument("--part", default="writers,decode,prefill,indexer")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}", flush=True
    )
    good = True
    if chosen.only != "times":
        began = time.perf_counter()
        good = check_bytes()
        print(
            f"bytes: {'all equal' if good else 'NOT EQUAL'} ({time.perf_counter() - began:.0f} s)", flush=True
        )
    if chosen.only != "bytes":
        import _triton_times as times

        copy = times.copy_speed()
        print(f"copy {copy / 1e12:.2f} TB/s", flush=True)
        runs = {
            "writers": lambda: times.writers(copy), "decode": times.decode, "prefill": times.prefill,
            "indexer": lambda: times.indexer(copy),
        }  # fmt: skip
        for part in chosen.part.split(","):
            runs[part]()
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
