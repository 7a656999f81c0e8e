"""What does not fit together is refused before a byte is written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsv4core_conformance.case import case
from dsv4core_conformance.contracts import CONTRACTS
from dsv4core_conformance.families._calls import refused
from dsv4core_conformance.inputs import make
from dsv4core_conformance.subject import Subject


@case("op/{op}/shapes/refused", op=tuple(CONTRACTS), catches=("D15", "C2", "M9"))
def refused_shapes(s: Subject, op: str) -> None:
    """Tensors of another rank or type, and none where one is needed, are refused before a byte is written."""
    for name, value in make(op).items():
        if not isinstance(value, Tensor):
            continue
        for word, other in (
            ("with one more dimension", value.unsqueeze(0)),
            ("with one more dimension behind", value.unsqueeze(-1)),
            ("with one dimension less", value[0]),
            ("of float64", torch.zeros(value.shape, dtype=torch.float64)),
            ("of int16", torch.zeros(value.shape, dtype=torch.int16)),
            ("that is a list", [0]),
        ):
            refused(s, op, {**make(op), name: other}, f"{name} {word}", name)


TIED = {
    "fused_indexer_q_rope_quant": ("positions", "weights", "q.2", "cos_sin.1", "weights.1"),
    "indexer_logits": ("weights", "weights.1", "context_lens", "token_to_req", "q.2"),
    "indexer_topk": ("context_lens",),
    "sparse_indexer": ("weights", "weights.1", "context_lens", "token_to_req", "q.2"),
    "compute_global_topk_indices_and_lens": ("token_to_req", "is_valid"),
    "combine_topk_swa_indices": ("query_start_loc", "gather_lens"),
    "sparse_decode": (
        "swa_slots",
        "swa_lens",
        "extra_slots",
        "extra_lens",
        "attn_sink",
        "out",
        "out.1",
        "out.2",
        "q.2",
    ),
    "sparse_prefill": ("indices", "lens", "attn_sink", "out", "out.1", "out.2", "q.2", "kv.1"),
    "fused_sparse_decode_inv_rope": (
        "swa_slots",
        "swa_lens",
        "extra_slots",
        "extra_lens",
        "attn_sink",
        "positions",
        "cos_sin.1",
        "q.2",
    ),
    "grouped_output_projection": ("wo_a", "wo_a.1", "o.2"),
    "linear": ("weight.1", "x.1"),
}
"""Dimensions that another argument fixes."""


@case("op/{op}/shapes/tied", op=tuple(TIED), catches=("H1", "D15", "C3"))
def tied_shapes(s: Subject, op: str) -> None:
    """One element more, or fewer, than the other arguments say is refused before a byte is written."""
    for word in TIED[op]:
        name, _, dim = word.partition(".")
        for step in (1, -1):
            value = make(op)[name]
            size = value.shape[int(dim or 0)] + step
            shape = [size if d == int(dim or 0) else n for d, n in enumerate(value.shape)]
            plain = torch.zeros(shape, dtype=torch.uint8 if value.element_size() == 1 else value.dtype)
            refused(s, op, {**make(op), name: plain.view(value.dtype)}, f"{name} of shape {shape}")


@case("op/{op}/shapes/parameters", op=tuple(CONTRACTS), catches=("M9", "A17"))
def refused_parameters(s: Subject, op: str) -> None:
    """Numbers and names of the wrong kind are refused with the op's error, not by an assertion somewhere."""
    optional = {"extra_rows", "extra_layout"}
    for name, value in make(op).items():
        if isinstance(value, Tensor) or value is None or name in optional:
            continue
        wrong: tuple[Any, ...] = (None, b"x", [1])
        if isinstance(value, str):
            wrong += ("", "nothing that is known", 3)
        elif isinstance(value, bool | int):
            wrong += ("1", 1.5, True)
        elif isinstance(value, float):
            wrong += (float("nan"), float("inf"), "1")
        for other in wrong:
            refused(s, op, {**make(op), name: other}, f"{name}={other!r}")
