"""The decode kernel of our own behind the op contract: what it cannot take is refused with reasons."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv4core.probe import describe
from dsv4core_cuda.capability import (
    ALIGNMENT,
    ARCHITECTURES,
    CLUSTER_KEYS,
    CLUSTER_TOKENS,
    DECODE_LAYOUT,
    FEWEST_HEADS,
    ROW_BYTES,
    Architecture,
    against_cluster,
)
from dsv4core_cuda.cutedsl import sparse_decode as kernel
from dsv4core_cuda.cutedsl._probe import reason_against
from dsv4core_cuda.flashmla import Pages

STORES = 8
"""Bytes of an output that are written at once."""
MOST_TOKENS = 65535
"""Tokens of a launch: they are the grid's z."""


class ClusterDecode:
    """`cutedsl.sparse_decode` where it measured faster; `any_batch`: wherever it can."""

    def __init__(self, architecture: tuple[int, int], any_batch: bool = False) -> None:
        self.architecture, self.any_batch = architecture, any_batch

    def unusable(self) -> str:
        """Run it on the current device, where it is compiled for that: "" or why it cannot be used."""
        if not ARCHITECTURES.get(self.architecture, Architecture("unknown")).cluster:
            return f"there is no cluster kernel for SM{self.architecture[0]}{self.architecture[1]}"
        reason = reason_against(self.architecture)
        if reason:
            return reason
        try:
            return check(torch.device("cuda", torch.cuda.current_device()))
        except Exception as error:  # a driver or compiler of another age fails in ways of its own
            return f"CuTeDSL does not run here: {describe(error)}"

    def limits(self) -> str:
        """What it takes, in words."""
        if self.any_batch:
            return f"every batch with more than {CLUSTER_KEYS} keys over {DECODE_LAYOUT}"
        rows = [
            f"{heads} heads, {keys} keys: {tokens} tokens"
            for heads, found in CLUSTER_TOKENS.items()
            for keys, tokens in found
        ]
        return f"up to {'; '.join(rows)}"

    def against(self, q: Tensor, swa: Pages, extra: Pages | None) -> tuple[str, ...]:
        """Every reason against decoding these arguments here; none where it decodes."""
        sources = (swa,) if extra is None or not extra.cache.shape[0] else (swa, extra)
        reasons = against_cluster(
            self.architecture, dtype=str(q.dtype).removeprefix("torch."), heads=q.shape[1],
            layouts=tuple(s.layout for s in sources), keys=sum(s.slots.shape[1] for s in sources),
            tokens=q.shape[0], any_batch=self.any_batch,
        )  # fmt: skip
        if not q.shape[0]:
            reasons += ("there is nothing to compute",)
        if q.shape[0] > MOST_TOKENS:
            reasons += (f"a launch has {MOST_TOKENS} tokens at most",)
        if (q.data_ptr() | 2 * q.stride(0) | 2 * q.stride(1)) % ALIGNMENT:
            reasons += (f"queries are not {ALIGNMENT}-byte aligned",)
        for source in sources:
            cache = source.cache
            if not cache.shape[0]:
                reasons += ("there are no pages",)
            elif (cache.data_ptr() | cache.stride(0)) % ALIGNMENT:
                reasons += (f"pages are not {ALIGNMENT}-byte aligned",)
            if cache.shape[0] * source.rows >= 2**31:
                reasons += ("slots pass 2^31",)
            if source.rows * ROW_BYTES >= 2**31:
                reasons += ("a page passes 2^31 bytes",)
        return reasons

    def decode(
        self, q: Tensor, swa: Pages, extra: Pages | None, sink: Tensor, out: Tensor, scale: float
    ) -> Tensor:
        """Attend as `sparse_decode` does; writes `out`, bf16 by stores of 8 bytes. -> lse f32 [T, H]."""
        target = out
        if out.dtype != q.dtype or (out.data_ptr() | 2 * out.stride(0) | 2 * out.stride(1)) % STORES:
            target = torch.empty(out.shape, dtype=q.dtype, device=out.device)
        lse = kernel.decode(q, swa, _listed(extra), sink, target, scale, _alike(q))
        if target is not out:
            out.copy_(target)
        return lse

    def decode_turned(
        self, q: Tensor, swa: Pages, extra: Pages | None, sink: Tensor, positions: Tensor, cos_sin: Tensor,
        scale: float, groups: int, scale_format: str,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Attend, turn outputs back and round them once, as `fused_sparse_decode_inv_rope` does.

        -> bf16 [T, H, 512] and None ("none"), or e4m3 [T, G, H*512/G] and scales ("f32", "ue8m0x4").
        """
        return kernel.decode_turned(
            q, swa, _listed(extra), sink, positions, cos_sin, scale, groups, scale_format, _alike(q)
        )


def _alike(q: Tensor) -> bool:
    """Whether rows are cut by the width of their lists alone."""
    return q.shape[1] < FEWEST_HEADS


def _listed(extra: Pages | None) -> Pages | None:
    """The second list, None where it can have no row."""
    return extra if extra is not None and extra.slots.shape[1] and extra.cache.shape[0] else None


def check(device: torch.device) -> str:
    """Run both kernels on one key of weight 1: the output is that key, bit for bit. "" or what is wrong.

    Turned back by a quarter, its rotated channels 2 and 0 in turn become 0 and -2.
    """
    page = torch.zeros(2, 65 * 576, dtype=torch.uint8, device=device)
    code = torch.arange(448, device=device).remainder(0x7E).to(torch.uint8)
    tail = torch.tensor([2.0, 0.0], dtype=torch.bfloat16, device=device).repeat(32)
    page[1, 576 : 576 + 448] = code
    page[1, 576 + 448 : 2 * 576] = tail.view(torch.uint8)
    page[1, 64 * 576 + 8 : 64 * 576 + 15] = 127
    key = torch.cat((code.view(torch.float8_e4m3fn).bfloat16(), tail))
    back = torch.cat((key[:448], -tail.roll(1)))
    q = torch.zeros(1, 64, 512, dtype=torch.bfloat16, device=device)
    slots = torch.full((1, 640), 65, dtype=torch.int32, device=device)
    one = torch.ones(1, dtype=torch.int32, device=device)
    sink = torch.full((64,), -torch.inf, dtype=torch.float32, device=device)
    quarter = torch.tensor([0.0, 1.0], device=device).repeat_interleave(32).expand(2, 64).contiguous()
    pages = Pages(page, slots, one, 64, "fp8_ds_mla")
    for size, scale_format in ((16, "f32"), (64, "none")):
        out = torch.full_like(q, torch.nan)
        form = kernel.cut(size, 640, kernel.SEGMENTS)
        lse = kernel.decode(q, pages, None, sink, out, 1.0, form=form)
        if not torch.equal(out[0], key.expand(64, 512)) or bool(lse.any()):
            return f"CuTeDSL's decode of a single key is not that key on this device ({size} heads a block)"
        turned, scales = kernel.decode_turned(
            q, pages, None, sink, one.long(), quarter, 1.0, 1, scale_format, form=form
        )
        found = turned.float().view(64, 4, 128) * (1.0 if scales is None else scales.view(64, 4, 1))
        if not torch.equal(found.view(64, 512), back.float().expand(64, 512)):
            return f"CuTeDSL's decode does not turn a single key back on this device ({size} heads a block)"
    return ""
