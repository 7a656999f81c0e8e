"""Times of the Triton kernels on a CUDA device, beside floors and beside FlashMLA where it is installed."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from _triton_calls import (
    DEVICE,
    compress_call,
    copies,
    copy_kernel,
    cut,
    decode_calls,
    kernel,
    lens,
    paged,
    prefill_call,
    timed,
    volume,
)
from _triton_peer import peer_calls, peer_decode, peer_prefill, peer_time

from dsv4core.layout import get_layout

TOKENS = 32768
TENSOR = 786e12  # bf16 operations a second of a large matrix product on an H100
PAGES: dict[str, Any] = {"rows": 64, "layout": "fp8_ds_mla"}


def copy_speed() -> float:
    """Bytes a second of an elementwise copy of 1 GiB."""
    x = torch.empty(1 << 28, dtype=torch.int32, device=DEVICE)
    y = torch.empty_like(x)
    us, _ = timed([partial(copy_kernel[(x.numel() // 4096,)], x, y, x.numel(), BLOCK=4096)])
    return 2 * volume(x) / us * 1e6


def show(name: str, op: str, call: dict[str, Any], size: int, copy: float) -> None:
    """One line: time, bytes a second, share of the copy, floor, host time of a launch."""
    us, eager = timed([partial(kernel(op), **c) for c in copies(call, size)])
    share, floor = 100 * size / us * 1e6 / copy, size / copy * 1e6
    print(
        f"{name:44} {us:9.1f} us {size / us / 1e3:6.0f} GB/s {share:4.0f} % of copy, floor {floor:7.1f} us, "
        f"host {eager:6.1f} us",
        flush=True,
    )


def writers(copy: float) -> None:
    """Cache writers, gather and rotations at T = 32,768."""
    t = torch.arange(TOKENS, device=DEVICE)
    table = torch.randn(TOKENS, 64, device=DEVICE)
    k = torch.randn(TOKENS, 512, device=DEVICE).bfloat16()
    cache = paged("fp8_ds_mla", TOKENS // 64, 64, DEVICE)
    slots = torch.randperm(TOKENS, device=DEVICE)
    insert = {"k_cache": cache, "slot_mapping": slots, **PAGES}
    row = 584 + 8
    show(
        "quantize_and_insert",
        "quantize_and_insert_k_cache",
        {"k": k, **insert},
        volume(k) + TOKENS * row,
        copy,
    )
    q = torch.randn(TOKENS, 64, 512, device=DEVICE).bfloat16()
    rotation = {"positions": t, "cos_sin": table}
    show(
        "q norm + RoPE + insert, 64 heads", "fused_qnorm_rope_kv_insert",
        {"q": q, "kv": k, **rotation, **insert, "eps": 1e-6, "padded_heads": 64},
        2 * volume(q) + volume(k) + TOKENS * (row + 256), copy,
    )  # fmt: skip
    show("inverse_rope, 64 heads", "inverse_rope", {"o": q, **rotation}, 2 * volume(q), copy)
    show(
        "fused_inv_rope_fp8_quant, 64 heads", "fused_inv_rope_fp8_quant",
        {"o": q, **rotation, "groups": 8, "scale_format": "f32"}, volume(q) * 3 // 2 + TOKENS * 1024, copy,
    )  # fmt: skip
    del q
    norms(copy)
    states(copy, t)
    for ratio, layout in (
        (4, "fp8_ds_mla"),
        (128, "fp8_ds_mla"),
        (4, "index_fp8"),
        (4, "index_mxfp4_hadamard"),
    ):
        call = compress_call(TOKENS, ratio, layout, DEVICE)
        # Every state is read once: its newer half by this window, its older half by the next.
        size = volume(call["state_cache"]) + TOKENS // ratio * get_layout(layout).record_bytes
        show(f"compress ratio {ratio} {layout}", "compress_norm_rope_store", call, size, copy)
    for requests in (8, 1):
        rows = TOKENS // requests
        order = torch.randperm(TOKENS // 64, device=DEVICE).to(torch.int32).view(requests, -1)
        call = {
            "out": torch.empty(requests, rows, 512, dtype=torch.bfloat16, device=DEVICE), "k_cache": cache,
            "seq_lens": lens(requests, rows), "gather_lens": None, "block_table": order, **PAGES, "offset": 0,
        }  # fmt: skip
        size = volume(call["out"]) + TOKENS * 584
        show(f"gather {requests} x {rows}", "dequantize_and_gather_k_cache", call, size, copy)
    qi, w = torch.randn(TOKENS, 64, 128, device=DEVICE).bfloat16(), torch.randn(TOKENS, 64, device=DEVICE)
    scales = {"softmax_scale": 0.1, "head_scale": 0.125}
    for form, turn, part in (("fp8", "none", 2), ("mxfp4", "hadamard", 4)):
        show(
            f"fused_indexer_q {form} {turn}", "fused_indexer_q_rope_quant",
            {"q": qi, "weights": w, **rotation, **scales, "format": form, "rotate": turn},
            volume(qi) + volume(qi) // part + 2 * volume(w), copy,
        )  # fmt: skip


def norms(copy: float) -> None:
    """Norms of the two projections, from columns of one tensor."""
    for width in (1024, 1536):
        joined = torch.randn(TOKENS, width + 512, device=DEVICE).bfloat16()
        call = {
            "qr": joined[:, :width], "kv": joined[:, width:], "eps": 1e-6,
            "q_weight": torch.randn(width, device=DEVICE).bfloat16(),
            "kv_weight": torch.randn(512, device=DEVICE).bfloat16(),
        }  # fmt: skip
        show(f"fused_q_kv_rmsnorm {width}", "fused_q_kv_rmsnorm", call, 2 * volume(joined), copy)


def states(copy: float, t: torch.Tensor) -> None:
    """States of the three compressors."""
    for ratio, dim in ((4, 512), (128, 512), (4, 128)):
        width = dim * (2 if ratio == 4 else 1)
        kv = torch.randn(TOKENS, 2 * width, device=DEVICE)
        call = {
            "kv": kv[:, :width], "score": kv[:, width:], "ape": torch.randn(ratio, width, device=DEVICE),
            "positions": t, "state_cache": torch.empty(TOKENS // 4, 4, 2 * width, device=DEVICE),
            "slot_mapping": t, "ratio": ratio,
        }  # fmt: skip
        show(
            f"save_partial_states ratio {ratio} head {dim}", "save_partial_states", call, 2 * volume(kv), copy
        )


def decode() -> None:
    """Decode beside FlashMLA on the same calls; for few tokens both ways of cutting."""
    for heads, extra in ((64, 512), (64, 1024), (128, 512), (128, 1024)):
        for batch in (1, 8, 32, 128, 512):
            calls = decode_calls(batch, heads, extra, "fp8_ds_mla")
            theirs, said = peer_time([partial(peer_decode, c) for c in peer_calls(calls)])
            us, eager = timed([partial(kernel("sparse_decode"), **c) for c in calls])
            flops = batch * heads * (128 + extra) * 512 * 4 / us / 1e6
            both = ""
            if batch <= 32:
                one, two = (
                    timed([partial(cut, c, c["out"], side) for c in calls])[0] for side in (False, True)
                )
                both = f"  (one program a token {one:.1f}, side by side {two:.1f})"
            print(
                f"decode {heads:3} heads, 128 + {extra:4} keys, batch {batch:3}: {us:8.1f} us, ratio "
                f"{theirs / us:4.2f}, {flops:4.0f} TFLOP/s, host {eager:5.1f} us, {said}, {len(calls)} calls"
                + both,
                flush=True,
            )
            del calls


def prefill() -> None:
    """Prefill of 4096 queries over 32,768 gathered rows, beside FlashMLA on the same tensors."""
    for heads in (64, 128):
        for keys in (640, 1152):
            call = prefill_call(heads, keys)
            given = [call[name] for name in ("q", "kv", "indices", "lens", "attn_sink")]
            theirs, said = peer_time([partial(peer_prefill, *given)], 8)
            us, eager = timed([partial(kernel("sparse_prefill"), **call)], 8)
            flops = call["q"].shape[0] * heads * keys * 512 * 4 / us / 1e6
            print(
                f"prefill {heads:3} heads, {keys:4} keys: {us:8.1f} us, ratio {theirs / us:4.2f}, "
                f"{flops:.0f} TFLOP/s, host {eager:5.1f} us, {said}",
                flush=True,
            )


def indexer(copy: float) -> None:
    """Logits against the copy or the tensor peak, whichever binds; top-k apart."""
    for layout in ("index_fp8", "index_mxfp4"):
        for batch, entries in ((1, 1 << 20), (32, 1 << 20), (32, 1 << 16), (1, 1 << 16), (128, 1 << 14)):
            _indexed(layout, batch, entries, copy)


def _indexed(layout: str, batch: int, entries: int, copy: float) -> None:
    per = entries // 64
    pages = paged(layout, batch * per, 64, DEVICE)
    order = torch.randperm(batch * per, device=DEVICE).to(torch.int32).view(batch, per)
    scales = None
    if layout == "index_mxfp4":
        q = torch.randint(0, 256, (batch, 64, 64), dtype=torch.uint8, device=DEVICE)
        scales = torch.randint(120, 130, (batch, 64, 4), dtype=torch.uint8, device=DEVICE)
    else:
        q = torch.randn(batch, 64, 128, device=DEVICE).to(torch.float8_e4m3fn)
    w = torch.randn(batch, 64, device=DEVICE)
    seen = lens(batch, entries)
    requests = torch.arange(batch, dtype=torch.int32, device=DEVICE)
    call = {
        "q": q, "q_scales": scales, "weights": w, "k_cache": pages, "context_lens": seen,
        "token_to_req": requests, "block_table": order, "rows": 64, "layout": layout, "max_len": entries,
    }  # fmt: skip
    size = int(batch * entries * (get_layout(layout).record_bytes + 4))
    calls = [partial(kernel("indexer_logits"), **c) for c in copies(call, size)]
    us, eager = timed(calls * max(1, 4 // len(calls)), 8)  # a graph of one call would time its own start
    flops = batch * entries * 64 * 256
    floor = max(size / copy, flops / TENSOR) * 1e6
    print(
        f"indexer_logits {layout:11} batch {batch:3}, {entries:7} entries: {us:8.1f} us, "
        f"{size / us / 1e3:5.0f} GB/s, {flops / us / 1e6:4.0f} TFLOP/s, floor {floor:7.1f} us, "
        f"{100 * floor / us:3.0f} % of it, host {eager:5.1f} us",
        flush=True,
    )
    logits = calls[0]()
    if layout == "index_fp8":
        us, _ = timed([partial(kernel("indexer_topk"), logits, seen, k=512)] * 4, 8)
        print(
            f"indexer_topk batch {batch:3}, {entries:7} entries: {us:8.1f} us, "
            f"{volume(logits) / us / 1e3:5.0f} GB/s",
            flush=True,
        )
