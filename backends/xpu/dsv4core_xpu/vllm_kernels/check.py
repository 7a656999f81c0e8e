"""Whether the operators compute on this device what the contract wants, on fixed calls made to go wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsv4core.layout import get_layout
from dsv4core.linear import Problem, QuantisedWeight
from dsv4core.ops import OPS
from dsv4core.ops.indexer_logits import BOUND
from dsv4core.probe import describe
from dsv4core.synthetic import hash_normal
from dsv4core_xpu.vllm_kernels.indexer import LAYOUTS, LOAD, ROWS, Scores
from dsv4core_xpu.vllm_kernels.library import PRODUCT, SCORES, Operators, load
from dsv4core_xpu.vllm_kernels.linear import BLOCK, BlockProduct

LENS = (0, 1, 63, 64, 65, 150, 191, 192, 130)
REQUESTS = (2, 0, 1, 2, 0, 1, 1, 0, 2)
PAGES, WIDTH, LONGEST = 11, 4, 190
NAN_BYTE = 0x7F  # as a code and, four times, as a scale


def passed(device: torch.device) -> tuple[Operators, dict[str, str]]:
    """The operators that compute on a device what they are wanted for, and by name why the others do not."""
    found, reason = load()
    if not found:
        return {}, {SCORES: reason, PRODUCT: reason}
    with torch.device("cpu"):  # whatever an engine has made torch's default while it builds this
        wrong = {
            SCORES: wrong_scores(Scores(found[SCORES]), device),
            PRODUCT: wrong_products(BlockProduct(found[PRODUCT]), device),
        }
    missing = {name: reason for name, reason in wrong.items() if reason}
    return {name: found[name] for name in wrong if name not in missing}, missing


def wrong_scores(scores: Scores, device: torch.device) -> str:
    """What is wrong with the scores on this device, or "".

    Every score is compared with the contract's float64 one within the contract's bound: scores are no cache
    bytes, and no two matrix units add in one order. What nobody may see is NaN: rows behind a context, pages
    that no table names.
    """
    for heads in (64, 4):
        call = made(heads)
        try:
            there = {k: _moved(v, device) for k, v in call.items()}
            fits = scores.supports(there)
            if fits is not True:
                return f"the call that checks it does not fit: {fits}"
            got = scores.run(there).cpu()
        except Exception as error:  # another architecture, a driver, a library of another make
            return f"it does not run here: {describe(error)}"
        reason = judged(call, got)
        if reason:
            return f"{reason} ({heads} heads)"
    return ""


def wrong_products(product: BlockProduct, device: torch.device) -> str:
    """What is wrong with the products on this device, or "": every token within the bound of `linear`.

    Scales differ by three powers of two from block to block, and no two sides have as many blocks.
    """
    for rows, inputs in ((384, 256), (256, 640)):
        shape = rows // BLOCK, inputs // BLOCK
        scales = torch.exp2(torch.arange(shape[0] * shape[1]).view(shape) * 5 % 7 * 3 - 12).float()
        code = (torch.arange(rows * inputs).view(rows, inputs) * 97 // 3 % 255).to(torch.uint8)
        code[code == NAN_BYTE] = 128
        weight = QuantisedWeight(code.view(torch.float8_e4m3fn), scales)
        x = hash_normal((5, inputs), 3, "x", 1.0, dtype=torch.bfloat16)
        exact = x.double() @ weight.dequantised().double().T
        there = weight.to(device)
        problem = Problem.of(there, torch.bfloat16, torch.bfloat16)
        try:
            got = product.apply(problem, product.prepare(there, problem), x.to(device), None).cpu()
        except Exception as error:
            return f"it does not run here: {describe(error)}"
        if got.shape != exact.shape or got.dtype != torch.bfloat16:
            return f"products are {got.dtype} {list(got.shape)}, not bf16 {list(exact.shape)}"
        off = float(((got.double() - exact).norm(dim=1) / exact.norm(dim=1)).max())
        if not off <= OPS["linear"].tolerance.bound:
            return f"products are {off:.1e} off ({rows} x {inputs})"
    return ""


def judged(call: dict[str, Any], got: Tensor) -> str:
    """What is wrong with these scores of a call in host memory, or ""."""
    exact = OPS["indexer_logits"].body(**call)
    sizes = {"q": call["q"].view(torch.uint8) & 0x7F, "weights": call["weights"].abs()}
    sizes["q"] = sizes["q"].view(torch.float8_e4m3fn)
    pages = call["k_cache"].clone()
    pages[:, : ROWS * 128] &= 0x7F
    allowed = BOUND.bound * OPS["indexer_logits"].body(**{**call, **sizes, "k_cache": pages})
    if got.shape != exact.shape or got.dtype != exact.dtype:
        return f"scores are {got.dtype} {list(got.shape)}, not {exact.dtype} {list(exact.shape)}"
    hidden = exact.isinf()
    if not bool((got[hidden] == -torch.inf).all()):
        return "an entry behind its context has a score"
    far = ~((got - exact).abs() <= allowed) & ~hidden  # NaN is far
    if bool(far.any()):
        token, entry = (int(i) for i in far.nonzero()[0])
        seen, true = float(got[token, entry]), float(exact[token, entry])
        return f"{int(far.sum())} scores are off; entry {entry} of token {token} is {seen:g}, not {true:g}"
    return ""


def made(heads: int, layout: str = LAYOUTS[0]) -> dict[str, Any]:
    """Arguments of `indexer_logits`: shuffled pages with gaps, all codes, scales 2^-12 to 2^11."""
    tokens, source = len(LENS), get_layout(layout)
    size = source.page_bytes(ROWS)
    pages = torch.full((PAGES, size + LOAD), NAN_BYTE, dtype=torch.uint8)[:, LOAD:]
    table = (torch.arange(3 * WIDTH).view(3, WIDTH) * 7 % PAGES).int()
    table[:, WIDTH - 1] = -1
    code = torch.arange(3 * LONGEST * 128).view(3, LONGEST, 128) * 97 // 3 % 255
    code = torch.where(code == 127, 128, code)  # every code that is a number
    scale = torch.exp2(torch.arange(3 * LONGEST).view(3, LONGEST) * 5 % 24 - 12).float()
    record = torch.cat((code.to(torch.uint8), scale.unsqueeze(-1).view(torch.uint8).view(3, -1, 4)), -1)
    longest = [max(n for n, r in zip(LENS, REQUESTS, strict=True) if r == request) for request in range(3)]
    for request, length in enumerate(longest):
        entry = torch.arange(min(length, LONGEST))
        slots = table[request, entry // ROWS] * ROWS + entry % ROWS
        source.write(pages, slots, record[request, : len(entry)], ROWS)
    q = torch.arange(tokens * heads * 128).view(tokens, heads, 128) * 89 // 5 % 255
    q = torch.where(q == 127, 128, q).to(torch.uint8).view(torch.float8_e4m3fn)
    return {
        "q": q, "q_scales": None, "weights": hash_normal((tokens, heads), 5, "w", 1.0) / 3,
        "k_cache": pages, "context_lens": torch.tensor(LENS, dtype=torch.int32),
        "token_to_req": torch.tensor(REQUESTS, dtype=torch.int32), "block_table": table,
        "rows": ROWS, "layout": layout, "max_len": LONGEST, "rotate": source.rotate,
    }  # fmt: skip


def _moved(value: Any, device: torch.device) -> Any:
    """On the device, with strides and the place in the allocation: a copy would make pages dense."""
    if not isinstance(value, Tensor):
        return value
    home = value.as_strided((value.untyped_storage().nbytes() // value.element_size(),), (1,), 0)
    return home.to(device).as_strided(value.shape, value.stride(), value.storage_offset())
