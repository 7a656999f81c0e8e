"""Cases of the family BIGOFF: pages and rows behind 2^31 and 2^32 bytes and elements, and just below.

The op is called on memory of 4 to 19 GiB of which a few pages are touched, and judged by the same call on
small memory: what the touched pages hold afterwards is compared there, and where an offset of 32 bits would
have led to is looked at on its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dsv4core_conformance.case import case
from dsv4core_conformance.check import judge
from dsv4core_conformance.compare import require
from dsv4core_conformance.families._calls import TURNED
from dsv4core_conformance.hosts import Arguments, Moved, cloned
from dsv4core_conformance.inputs import make
from dsv4core_conformance.inputs.vast import GIB, vast, vast_rows
from dsv4core_conformance.inputs.writers import PAGES
from dsv4core_conformance.subject import Subject

PACKED = 1_002_240
"""Bytes from page to page where many layers share a block: page 2143 passes 2^31."""
BEFORE = 2 * GIB
"""Bytes before page 0, so that an offset wrapped to a negative number lands in memory of ours."""
FOREIGN = 0x11
"""What lies where a wrapped offset would read: finite numbers that belong to no row."""
# Which arguments name pages: tables hold pages, slots hold page * rows + row.
NAMES: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "fused_qnorm_rope_kv_insert": (("k_cache", "slot_mapping", "rows"),),
    "quantize_and_insert_k_cache": (("k_cache", "slot_mapping", "rows"),),
    "dequantize_and_gather_k_cache": (("k_cache", "block_table", ""),),
    "save_partial_states": (("state_cache", "slot_mapping", "state"),),
    "compress_norm_rope_store": (("k_cache", "kv_slot_mapping", "rows"), ("state_cache", "block_table", "")),
    "indexer_logits": (("k_cache", "block_table", ""),),
    "sparse_indexer": (("k_cache", "block_table", ""),),
    **dict.fromkeys(
        ("sparse_decode", TURNED),
        (("swa_cache", "swa_slots", "swa_rows"), ("extra_cache", "extra_slots", "extra_rows")),
    ),
}
# Options with which every one of at least four pages is used.
SMALL: Mapping[str, dict[str, Any]] = {
    "fused_qnorm_rope_kv_insert": {"rows": 4, "pages": 4, "tokens": 14},
    "quantize_and_insert_k_cache": {"rows": 4, "pages": 4, "tokens": 14},
    "save_partial_states": {"pages": 4, "tokens": 14},
    "compress_norm_rope_store": {"rows": 2, "pages": 4, "lengths": (17, 13)},
    "sparse_decode": {"pages": 4},
    TURNED: {"pages": 4},
}
FAR = (
    {"name": "2_gib", "limit": 2 * GIB, "stride": PACKED},
    {"name": "4_gib", "limit": 4 * GIB, "stride": PACKED},
    {"name": "8_gib", "limit": 8 * GIB, "stride": PACKED},
    {"name": "16_gib", "limit": 16 * GIB, "stride": PACKED},
    {"name": "4_gib_dense", "limit": 4 * GIB, "stride": 0},
)
ROWS: Mapping[str, tuple[str, ...]] = {
    "fused_q_kv_rmsnorm": ("qr",),
    "fused_qnorm_rope_kv_insert": ("q", "kv"),
    "quantize_and_insert_k_cache": ("k",),
    "dequantize_and_gather_k_cache": ("out",),
    "save_partial_states": ("kv", "score"),
    "fused_indexer_q_rope_quant": ("q",),
    "indexer_logits": ("q",),
    "indexer_topk": ("logits",),
    "sparse_indexer": ("q",),
    "combine_topk_swa_indices": ("topk",),
    "compute_global_topk_indices_and_lens": ("topk",),
    "sparse_decode": ("q", "out", "swa_slots"),
    TURNED: ("q", "swa_slots"),
    "sparse_prefill": ("q", "kv", "out", "indices"),
    "inverse_rope": ("o",),
    "fused_inv_rope_fp8_quant": ("o",),
    "grouped_output_projection": ("o",),
    "linear": ("x",),
}


class FarPages:
    """The pages of one argument, each at a place around a limit in a vast memory."""

    def __init__(self, small: Tensor, limit: int, stride: int, device: torch.device) -> None:
        self.small = small
        size = small[0].numel() * small.element_size()
        stride = stride or size
        middle = limit // stride
        # Below, above, the one that the limit cuts, below, above, ...
        steps = (-1, 1, 0, *(sign * n for n in range(2, len(small)) for sign in (-1, 1)))
        self.ids = [middle + step for step in steps[: len(small)]]
        self.memory = vast(BEFORE + (max(self.ids) + 1) * stride, device)
        inner = torch.empty(small.shape[1:], device="meta").stride()
        typed, item = self.memory.view(small.dtype), small.element_size()
        shape = (max(self.ids) + 1, *small.shape[1:])
        self.pages = typed.as_strided(shape, (stride // item, *inner), BEFORE // item)
        self.places = [BEFORE + page * stride for page in self.ids]
        self.size = size
        for place in self.wrapped():
            self.memory[place : place + size] = FOREIGN
        for i, page in enumerate(self.ids):
            self.pages[page] = small[i].to(device)

    def wrapped(self) -> list[int]:
        """Where the pages would be if their offsets had 32 bits, signed or not, in bytes or elements."""
        found: list[int] = []
        for place in self.places:
            for width in (32, 33, 34):
                low = place - (1 << width)
                real = any(abs(low - other) < self.size for other in self.places)
                if low >= 0 and not real:
                    found.append(low)
        return found

    def untouched(self, op: str) -> None:
        """Nothing was written where a wrapped offset leads to."""
        for place in self.wrapped():
            found = self.memory[place : place + self.size]
            require(
                bool((found == FOREIGN).all()),
                f"{op}: {place - BEFORE:,} bytes from page 0 was written: an offset lost its upper bits",
            )

    def moved(self, index: Tensor, rows: int) -> Tensor:
        """Slots (or with rows = 1 table entries) of the far pages for those of the small ones."""
        ids = torch.tensor(self.ids, dtype=torch.int64)
        known = (index >= 0) & (index < len(ids) * rows)
        safe = torch.where(known, index, 0).long()
        far = ids[safe // rows] * rows + safe % rows
        return torch.where(known, far, index.long()).to(index.dtype)

    def back(self) -> Tensor:
        """The small pages as they are now, in memory laid out as it was."""
        for i, page in enumerate(self.ids):
            self.small[i] = self.pages[page].cpu()
        return self.small


@case(
    "op/{op}/bigoff/pages_around_{far}",
    op=tuple(PAGES), far=FAR, catches=("G1", "G2", "G3", "G4", "G6", "G7", "J5"), limit=120,
)  # fmt: skip
def far_pages(s: Subject, op: str, limit: int, stride: int) -> None:
    """Pages on both sides of the limit are written and read where they are."""
    small = make(op, **SMALL.get(op, {}))
    before, after = cloned(small), cloned(small)
    far: dict[str, FarPages] = {}
    big: dict[str, Tensor] = {}
    for argument, index, rows in NAMES[op]:
        far[argument] = FarPages(after[argument], limit, stride, s.device)
        big[argument] = far[argument].pages
        per_page = small[argument].shape[1] if rows == "state" else small[rows] if rows else 1
        big[index] = far[argument].moved(small[index], per_page).to(s.device)
    results = _call(s, op, after, big)
    for argument, pages in far.items():
        after[argument] = pages.back()
        pages.untouched(op)
    s.errors[op] = max(judge(op, before, after, results), s.errors.get(op, 0.0))


@case(
    "op/{op}/bigoff/rows_past_2_32_elements",
    op=tuple(ROWS), catches=("G4", "G5", "G9", "G10"), limit=120,
)  # fmt: skip
def far_rows(s: Subject, op: str) -> None:
    """Inputs and outputs whose last row begins behind 2^32 elements, and others behind 2^31."""
    for argument in ROWS[op]:
        small = make(op)
        before, after = cloned(small), cloned(small)
        step = -(-(5 << 30) // (64 * (len(small[argument]) - 1))) * 64
        far = vast_rows(small[argument], step, s.device)
        results = _call(s, op, after, {argument: far})
        after[argument].copy_(far)
        s.errors[op] = max(judge(op, before, after, results), s.errors.get(op, 0.0))


@case("op/{op}/bigoff/slot_numbers_past_2_31", op=("compressed_slot_mapping",), catches=("G6", "G7"))
def far_slots(s: Subject, op: str) -> None:
    """Slots of the last pages that a table can name: page * rows + row needs 64 bits."""
    a = make(op)
    table = a["block_table"]
    a["block_table"] = torch.where(table >= 0, 2**31 - 1 - table, table)
    s.check(op, a)


def _call(s: Subject, op: str, small: Arguments, far: dict[str, Tensor]) -> list[Tensor | None]:
    """The op with `far` in place of some arguments; the others come back as it left them."""
    moved = Moved({name: value for name, value in small.items() if name not in far}, s.device)
    result = getattr(s.backend.ops, op)(**moved.arguments, **far)
    moved.back()
    parts = list(result) if isinstance(result, tuple) else [] if result is None else [result]
    return [part.cpu() if isinstance(part, Tensor) else None for part in parts]
