"""The Triton kernels on a CUDA device: bytes against the torch bodies on a CPU first, then times against floors.

    python benchmarks/triton_h100.py             # bytes, then the table
    python benchmarks/triton_h100.py --only bytes | --only times [--part writers,decode,prefill,indexer]

Times are medians of CUDA-graph replays with a cold L2 (the working set is cycled), launch overhead beside them.
"GB/s" counts every input once and every output once; "% copy" is against an elementwise copy kernel in this run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HERE), *(str(HERE / "backends" / name) for name in ("cpu", "cuda", "rocm", "xpu"))]

import torch  # noqa: E402
import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from torch import Tensor  # noqa: E402

from dsv4core.config import AttentionConfig  # noqa: E402
from dsv4core.kernels.triton import portable, sparse_decode  # noqa: E402
from dsv4core.layout import get_layout  # noqa: E402
from dsv4core.ops import OPS  # noqa: E402
from dsv4core.samples import Size, sample  # noqa: E402

DEVICE = "cuda"
EXACT = [n for n in portable.KERNELS if OPS[n].tolerance.kind == "exact" and n != "sparse_indexer"]
CONFIGS = {
    "vllm": {},
    "official": {"profile": "official"},
    "sglang": {"profile": "sglang"},
    "mxfp4": {"index_layout": "index_mxfp4"},
    "other": {"main_layout": "fp8_row", "index_layout": "index_fp8_ue8m0x4"},
    "bf16": {"main_layout": "bf16_row"},
    "fnuz": {"main_layout": "fp8_ds_mla_fnuz"},
}
FLASHMLA = {  # us, from measurements on this kind of card: (heads, keys of the second list, batch)
    (64, 512, 1): 16.0, (64, 512, 8): 20.1, (64, 512, 32): 27.2, (64, 512, 128): 49.5, (64, 512, 512): 183.8,
    (64, 1024, 1): 19.3, (64, 1024, 8): 22.3, (64, 1024, 32): 40.3, (64, 1024, 128): 78.8,
    (64, 1024, 512): 289.9, (128, 1024, 1): 19.0, (128, 1024, 8): 26.0, (128, 1024, 32): 56.1,
    (128, 1024, 128): 108.1, (128, 1024, 512): 484.9,
}  # fmt: skip
PREFILL = {(64, 640): 750.0, (64, 1152): 1200.0, (128, 640): 1510.0, (128, 1152): 2490.0}


def kernel(op: str) -> Callable[..., Any]:
    return getattr(import_module(f"dsv4core.kernels.triton.{op}"), op)


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
    good &= check_compress() and check_logits() and check_attention()
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
            print(
                f"bytes compress {layout:24} ratio {ratio:3} {label:7} {'equal' if not wrong else f'{wrong} DIFFER'}"
            )
    return good


def check_logits() -> bool:
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
    """Against float64, alone against in a batch, and the two ways of cutting."""
    good = True
    for heads, extra in ((64, 512), (128, 1024), (16, 512), (7, 100)):
        call = decode_call(8, heads, extra, "fp8_ds_mla", 1)
        call["swa_lens"][2], call["extra_lens"][2] = 0, 0
        call["extra_slots"][3, ::3] = -1
        call["attn_sink"][0], call["attn_sink"][1] = torch.inf, -torch.inf
        outs = []
        for side in (False, True):
            out = torch.zeros_like(call["q"])
            lse = cut(call, out, side)
            outs.append((out, lse))
        equal = torch.equal(outs[0][0], outs[1][0]) and torch.equal(outs[0][1], outs[1][1])
        alone = {k: v[5:6] if k in PER_TOKEN else v for k, v in call.items()}
        one = torch.zeros_like(call["q"][:1])
        cut(alone, one, None)
        invariant = torch.equal(one, outs[0][0][5:6])
        on_host = {**moved(call, "cpu"), "out": torch.zeros(call["q"].shape, dtype=torch.bfloat16)}
        lse = OPS["sparse_decode"].body(**on_host)
        a, b = outs[0][0].cpu().double(), on_host["out"].double()
        error = float((a - b).norm() / b.norm())
        off = float((outs[0][1].cpu() - lse).nan_to_num(0, 0, 0).abs().max())
        good &= error < 4e-3 and off < 2e-5 and equal and invariant
        print(f"decode {heads:3} heads, 128 + {extra:4}: error {error:.1e}, lse {off:.1e}, cut both ways equal {equal}, "
              f"alone = in a batch {invariant}")  # fmt: skip
    return good


PER_TOKEN = ("q", "swa_slots", "swa_lens", "extra_slots", "extra_lens")


def cut(call: dict[str, Any], out: Tensor, side: bool | None) -> Tensor:
    """`sparse_decode` with the way of cutting chosen."""
    main = sparse_decode.listed(
        call["swa_cache"], call["swa_slots"], call["swa_lens"], call["swa_rows"], call["layout"]
    )
    extra = sparse_decode.listed(
        call["extra_cache"], call["extra_slots"], call["extra_lens"], call["extra_rows"], call["extra_layout"]
    )
    return sparse_decode.attend(call["q"], main, extra, call["attn_sink"], out, call["scale"], side)


# ---- calls of real size, made on the device ----


def paged(layout: str, count: int, rows: int, device: str) -> Tensor:
    """Pages of encoded noise; a few distinct ones repeated, since only their bytes travel."""
    found = get_layout(layout)
    few = min(count, 64)
    base = found.encode_pages(torch.randn(few, rows, found.values, device=device).bfloat16())
    return base.repeat(-(-count // few), 1)[:count].contiguous()


def decode_call(
    batch: int, heads: int, extra: int, layout: str, copies: int
) -> list[dict[str, Any]] | dict[str, Any]:
    """Every request owns shuffled pages; `copies` sets of pages so that a cold cache is really cold."""
    calls = []
    for _ in range(copies):
        swa_pages, extra_pages = batch * 3, batch * (-(-extra // 64) + 1)
        swa_order = torch.randperm(swa_pages, device=DEVICE).view(batch, -1)
        order = torch.randperm(extra_pages, device=DEVICE).view(batch, -1)

        def slots(order: Tensor, count: int) -> Tensor:
            room = order.shape[1] * 64
            chosen = torch.rand(batch, room, device=DEVICE).argsort(1)[:, :count].sort(1).values
            return (order.gather(1, chosen // 64) * 64 + chosen % 64).to(torch.int32)

        q = torch.randn(batch, heads, 512, device=DEVICE).bfloat16()
        calls.append({
            "q": q, "swa_cache": paged(layout, swa_pages, 64, DEVICE), "swa_slots": slots(swa_order, 128),
            "swa_lens": torch.full((batch,), 128, dtype=torch.int32, device=DEVICE),
            "extra_cache": paged(layout, extra_pages, 64, DEVICE), "extra_slots": slots(order, extra),
            "extra_lens": torch.full((batch,), extra, dtype=torch.int32, device=DEVICE),
            "attn_sink": torch.randn(heads, device=DEVICE), "out": torch.empty_like(q), "scale": 512**-0.5,
            "swa_rows": 64, "extra_rows": 64, "layout": layout, "extra_layout": layout,
        })  # fmt: skip
    return calls if copies > 1 else calls[0]


def compress_call(tokens: int, ratio: int, layout: str, device: str) -> dict[str, Any]:
    """One request of `tokens` positions with its states; every boundary closes a window."""
    found = get_layout(layout)
    dim = found.width or 0
    width, rows = dim * (2 if ratio == 4 else 1), 4 if ratio == 4 else 8
    pages, entries = -(-tokens // rows), tokens // ratio
    t = torch.arange(tokens, device=device)
    return {
        "state_cache": torch.randn(pages, rows, 2 * width, device=device), "positions": t,
        "token_to_req": torch.zeros(tokens, dtype=torch.int32, device=device), "slot_mapping": t.clone(),
        "block_table": torch.randperm(pages, device=device).to(torch.int32).view(1, -1),
        "cos_sin": torch.randn(tokens, 64, device=device), "norm_weight": torch.randn(dim, device=device).bfloat16(),
        "k_cache": torch.zeros(-(-entries // 64), found.page_bytes(64), dtype=torch.uint8, device=device),
        "kv_slot_mapping": torch.where((t + 1) % ratio == 0, t // ratio, -1), "ratio": ratio, "head_dim": dim,
        "rows": 64, "layout": layout, "eps": 1e-6, "rotate": found.rotate,
    }  # fmt: skip


@triton.jit
def copy_kernel(x, y, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, i < n), i < n)


def timed(calls: Iterable[Callable[[], Any]], rounds: int = 20) -> tuple[float, float]:
    """Median microseconds of one call in a graph that cycles through `calls`, and of an eager call."""
    calls = list(calls)
    for call in calls:
        call()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for call in calls:
        call()
    eager = (time.perf_counter() - began) / len(calls) * 1e6
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    samples = []
    for _ in range(rounds):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        graph.replay()
        b.record()
        b.synchronize()
        samples.append(a.elapsed_time(b) * 1e3 / len(calls))
    return statistics.median(samples), eager


def copy_speed() -> float:
    """Bytes a second of an elementwise copy of 1 GiB."""
    x = torch.empty(1 << 28, dtype=torch.int32, device=DEVICE)
    y = torch.empty_like(x)
    us, _ = timed([lambda: copy_kernel[(x.numel() // 4096,)](x, y, x.numel(), BLOCK=4096)])
    return 2 * x.numel() * 4 / us * 1e6


def volume(*tensors: Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def writers(copy: float, tokens: int = 32768) -> None:
    t = torch.arange(tokens, device=DEVICE)
    table = torch.randn(tokens, 64, device=DEVICE)
    found = get_layout("fp8_ds_mla")

    def cache(rows_needed: int) -> Tensor:
        return torch.zeros(-(-rows_needed // 64), found.page_bytes(64), dtype=torch.uint8, device=DEVICE)

    def show(name: str, call: Callable[[], Any], size: int) -> None:
        us, eager = timed([call])
        speed = size / us * 1e6
        print(f"{name:52} {us:9.1f} us {speed / 1e9:7.0f} GB/s {100 * speed / copy:5.0f} % copy   floor {size / copy * 1e6:7.1f} us"
              f"   eager {eager:6.1f} us", flush=True)  # fmt: skip

    k = torch.randn(tokens, 512, device=DEVICE).bfloat16()
    slots = torch.randperm(tokens, device=DEVICE)
    pages = cache(tokens)
    keep = {"rows": 64, "layout": "fp8_ds_mla"}
    show(
        "quantize_and_insert",
        lambda: kernel("quantize_and_insert_k_cache")(k, pages, slots, **keep),
        volume(k) + tokens * 592,
    )
    q = torch.randn(tokens, 64, 512, device=DEVICE).bfloat16()
    show(
        "fused_qnorm_rope_kv_insert, 64 heads",
        lambda: kernel("fused_qnorm_rope_kv_insert")(
            q, k, t, table, pages, slots, **keep, eps=1e-6, padded_heads=64
        ),
        2 * volume(q) + volume(k) + tokens * (584 + 256),
    )
    show("inverse_rope, 64 heads", lambda: kernel("inverse_rope")(q, t, table), 2 * volume(q))
    show(
        "fused_inv_rope_fp8_quant, 64 heads",
        lambda: kernel("fused_inv_rope_fp8_quant")(q, t, table, groups=8, scale_format="f32"),
        volume(q) * 3 // 2 + tokens * 64 * 16,
    )
    del q
    for width in (1024, 1536):
        joined = torch.randn(tokens, width + 512, device=DEVICE).bfloat16()
        w, v = torch.randn(width, device=DEVICE).bfloat16(), torch.randn(512, device=DEVICE).bfloat16()
        show(
            f"fused_q_kv_rmsnorm {width}",
            lambda: kernel("fused_q_kv_rmsnorm")(joined[:, :width], joined[:, width:], w, v, eps=1e-6),
            2 * volume(joined),
        )
    for ratio, dim in ((4, 512), (128, 512), (4, 128)):
        width = dim * (2 if ratio == 4 else 1)
        kv = torch.randn(tokens, 2 * width, device=DEVICE)
        state = torch.empty(-(-tokens // 4), 4, 2 * width, device=DEVICE)
        ape = torch.randn(ratio, width, device=DEVICE)
        show(
            f"save_partial_states ratio {ratio} head {dim}",
            lambda: kernel("save_partial_states")(
                kv[:, :width], kv[:, width:], ape, t, state, t, ratio=ratio
            ),
            2 * volume(kv),
        )
    del kv, state
    for ratio, layout in (
        (4, "fp8_ds_mla"),
        (128, "fp8_ds_mla"),
        (4, "index_fp8"),
        (4, "index_mxfp4_hadamard"),
    ):
        call = compress_call(tokens, ratio, layout, DEVICE)
        # Overlapping windows read every state's halves once each: the new half here, the old half one window later.
        size = volume(call["state_cache"]) + tokens // ratio * get_layout(layout).record_bytes
        show(f"compress ratio {ratio} {layout}", lambda: kernel("compress_norm_rope_store")(**call), size)
    for requests, rows in ((8, 4096), (1, 32768)):
        out = torch.empty(requests, rows, 512, dtype=torch.bfloat16, device=DEVICE)
        lens = torch.full((requests,), rows, dtype=torch.int32, device=DEVICE)
        order = torch.randperm(requests * rows // 64, device=DEVICE).to(torch.int32).view(requests, -1)
        show(
            f"dequantize_and_gather {requests} x {rows}",
            lambda: kernel("dequantize_and_gather_k_cache")(out, pages, lens, None, order, **keep, offset=0),
            volume(out) + requests * rows * 584,
        )
    qi = torch.randn(tokens, 64, 128, device=DEVICE).bfloat16()
    w = torch.randn(tokens, 64, device=DEVICE)
    for form, rotation in (("fp8", "none"), ("mxfp4", "hadamard")):
        show(
            f"fused_indexer_q {form} {rotation}",
            lambda: kernel("fused_indexer_q_rope_quant")(
                t, qi, table, w, softmax_scale=0.1, head_scale=0.125, format=form, rotate=rotation
            ),
            volume(qi) * 3 // 2 + 2 * volume(w),
        )


def decode() -> None:
    print(f"{'decode':44} {'us':>9} {'FlashMLA':>9} {'ratio':>6} {'TFLOP/s':>8} {'eager us':>9}")
    for heads, extra in ((64, 512), (64, 1024), (128, 512), (128, 1024)):
        for batch in (1, 8, 32, 128, 512):
            copies = max(2, min(32, (256 << 20) // (batch * (192 + extra + 64) * 584)))
            calls = decode_call(batch, heads, extra, "fp8_ds_mla", copies)
            us, eager = timed([lambda c=c: kernel("sparse_decode")(**c) for c in calls])
            peer = FLASHMLA.get((heads, extra, batch))
            flops = batch * heads * (128 + extra) * 512 * 4 / us / 1e6
            ratio = f"{peer / us:6.2f}" if peer else "      "
            print(
                f"{heads:3} heads, 128 + {extra:4} keys, batch {batch:4} {'':8} {us:9.1f} {peer or 0:9.1f} {ratio} {flops:8.0f} {eager:9.1f}",
                flush=True,
            )
            if batch <= 32:
                for side in (False, True):
                    us, _ = timed([lambda c=c, s=side: cut(c, c["out"], s) for c in calls])
                    print(
                        f"{'':20} {'side by side' if side else 'one program a token':24} {us:9.1f}",
                        flush=True,
                    )
            del calls


def prefill() -> None:
    for heads, keys in PREFILL:
        tokens, rows = 4096, 32768
        q = torch.randn(tokens, heads, 512, device=DEVICE).bfloat16()
        kv = torch.randn(rows, 512, device=DEVICE).bfloat16()
        indices = torch.randint(0, rows, (tokens, keys), dtype=torch.int32, device=DEVICE)
        lens = torch.full((tokens,), keys, dtype=torch.int32, device=DEVICE)
        sink, out = torch.randn(heads, device=DEVICE), torch.empty_like(q)
        us, eager = timed(
            [lambda: kernel("sparse_prefill")(q, kv, indices, lens, sink, out, scale=512**-0.5)], 8
        )
        flops = tokens * heads * keys * 512 * 4 / us / 1e6
        print(f"prefill {heads} heads, {keys} keys: {us:9.1f} us, FlashMLA {PREFILL[heads, keys]:.0f}, ratio "
              f"{PREFILL[heads, keys] / us:.2f}, {flops:.0f} TFLOP/s", flush=True)  # fmt: skip


def indexer(copy: float) -> None:
    for batch, entries in ((1, 1 << 20), (32, 1 << 20), (32, 1 << 16), (1, 1 << 16), (128, 1 << 14)):
        pages = paged("index_fp8", min(batch * entries // 64, 1 << 19), 64, DEVICE)
        per = entries // 64
        order = (
            torch.randperm(max(pages.shape[0], batch * per), device=DEVICE)[: batch * per] % pages.shape[0]
        )
        q = torch.randn(batch, 64, 128, device=DEVICE).to(torch.float8_e4m3fn)
        w = torch.randn(batch, 64, device=DEVICE)
        lens = torch.full((batch,), entries, dtype=torch.int32, device=DEVICE)
        call = (
            q,
            None,
            w,
            pages,
            lens,
            torch.arange(batch, dtype=torch.int32, device=DEVICE),
            order.to(torch.int32).view(batch, per),
        )
        size = batch * entries * (132 + 4)
        us, eager = timed(
            [lambda: kernel("indexer_logits")(*call, rows=64, layout="index_fp8", max_len=entries)], 8
        )
        flops = batch * entries * 64 * 256 / us / 1e6
        print(f"indexer_logits batch {batch:3} entries {entries:8}: {us:9.1f} us, {size / us / 1e3:6.0f} GB/s "
              f"{100 * size / us * 1e6 / copy:4.0f} % copy, {flops:5.0f} TFLOP/s, eager {eager:6.1f} us", flush=True)  # fmt: skip
        logits = kernel("indexer_logits")(*call, rows=64, layout="index_fp8", max_len=entries)
        us, _ = timed([lambda: kernel("indexer_topk")(logits, lens, k=512)], 8)
        print(
            f"indexer_topk   batch {batch:3} entries {entries:8}: {us:9.1f} us, {volume(logits) / us / 1e3:6.0f} GB/s",
            flush=True,
        )
        del logits, pages


def main() -> int:
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
        copy = copy_speed()
        print(f"copy {copy / 1e12:.2f} TB/s", flush=True)
        parts = chosen.part.split(",")
        for name, run in (("writers", lambda: writers(copy)), ("decode", decode), ("prefill", prefill),
                          ("indexer", lambda: indexer(copy))):  # fmt: skip
            if name in parts:
                run()
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
