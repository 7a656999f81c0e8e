"""Whether a build computes anything on this device: importing it says nothing about that."""

from __future__ import annotations

import torch

from dsv4core_cuda.flashmla import FlashMLA, Pages
from dsv4core_cuda.flashmla_library import HEAD_DIM, Library


def check(library: Library, architecture: tuple[int, int], device: torch.device) -> str:
    """Run both ops once, on one key of weight 1: the output is that key, bit for bit. "" or what is wrong."""
    flash = FlashMLA(library, architecture)
    page = torch.zeros(2, 65 * 576, dtype=torch.uint8, device=device)
    code = torch.arange(448, device=device).remainder(0x7E).to(torch.uint8)
    page[1, 576 : 576 + 448] = code
    page[1, 64 * 576 + 8 : 64 * 576 + 15] = 127
    key = torch.zeros(1, HEAD_DIM, dtype=torch.bfloat16, device=device)
    key[0, :448] = code.view(torch.float8_e4m3fn).bfloat16()
    q = torch.zeros(1, 64, HEAD_DIM, dtype=torch.bfloat16, device=device)
    listed = torch.full((1, 128), -1, dtype=torch.int32, device=device)
    lens = torch.ones(1, dtype=torch.int32, device=device)
    sink = torch.full((64,), -torch.inf, dtype=torch.float32, device=device)
    swa = Pages(page, listed.clone().index_fill_(1, lens.long() - 1, 65), lens, 64, "fp8_ds_mla")
    results = {
        "decode": flash.decode(q, swa, None, sink, 1.0, trusted=True),
        "prefill": flash.prefill(
            q, key, listed.index_fill_(1, lens.long() - 1, 0), lens, sink, 1.0, trusted=True
        ),
    }
    for name, (out, lse) in results.items():
        if not torch.equal(out[0], key.expand(64, HEAD_DIM)) or bool(lse.any()):
            return f"{library.name}: {name} of a single key is not that key on this device"
    return ""
