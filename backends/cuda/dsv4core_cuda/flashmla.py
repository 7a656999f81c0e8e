"""FlashMLA behind the op contract: what it needs is made, what it cannot do is refused with reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsv4core_cuda.capability import (
    ALIGNMENT,
    ARCHITECTURES,
    DECODE_WIDTH,
    FEWEST_ALONE,
    FEWEST_HEADS,
    ROW_BYTES,
    Answer,
    padded,
    resolve,
    round_up,
)
from dsv4core_cuda.flashmla_library import Library


@dataclass(frozen=True)
class Pages:
    """Rows of a cache that a decode step lists. Shapes: cache u8 [N, B], slots i32 [T, K], lens i32 [T]."""

    cache: Tensor
    slots: Tensor
    lens: Tensor
    rows: int
    layout: str


class FlashMLA:
    """One build of FlashMLA on one architecture, for `fewest` heads and more.

    How decode splits a list depends on all lists of its batch, and so do last bits of the result; with
    `invariant` only prefill comes here, which has one program a token and splits nothing.
    Lists come as the op contract allows them (any negative slot, anything behind a length) unless `trusted`
    says that they are a plan's own: then they are passed on as they are where their form allows it.
    """

    def __init__(
        self, library: Library, architecture: tuple[int, int], fewest: int = FEWEST_HEADS,
        invariant: bool = False,
    ) -> None:  # fmt: skip
        self.library = library
        self.architecture = architecture
        self.fewest = fewest
        self.invariant = invariant
        self.have = ARCHITECTURES[architecture]

    def padded_heads(self, heads: int, layout: str) -> int:
        """The number of heads for a layer to compute: more than it has where FlashMLA will decode."""
        answer = resolve(
            "sparse_decode", self.architecture, heads=heads, layouts=(layout,), fewest=self.fewest
        )
        return padded(heads) if answer.provider == "flashmla" and not self.invariant else heads

    def decodes(self, q: Tensor, swa: Pages, extra: Pages | None, alone: bool = False) -> Answer:
        """Whether a decode step can be given to FlashMLA, and why not.

        `alone`: there is no schedule of other layers to share, which few tokens do not pay for.
        """
        sources = (swa,) if extra is None else (swa, extra)
        answer = resolve(
            "sparse_decode", self.architecture, dtype=_name(q), heads=q.shape[1],
            layouts=tuple(s.layout for s in sources), width=max(s.slots.shape[1] for s in sources),
            fewest=self.fewest,
        )  # fmt: skip
        reasons = list(answer.reasons)
        if self.invariant:
            reasons.append("FlashMLA's decode of a token depends on its batch")
        for source in sources:
            reasons += self._against_pages(source)
        reasons += _against_queries(q)
        if not q.shape[0]:
            reasons.append("there is nothing to compute")
        elif alone and self.fewest > 1 and q.shape[0] < FEWEST_ALONE.get(padded(q.shape[1]), 1):
            reasons.append(f"{q.shape[0]} tokens do not pay for a schedule of their own")
        return Answer("triton", tuple(reasons)) if reasons else answer

    def prefills(self, q: Tensor, kv: Tensor, indices: Tensor) -> Answer:
        """Whether prefill rows can be given to FlashMLA, and why not."""
        answer = resolve(
            "sparse_prefill", self.architecture, dtype=_name(q), heads=q.shape[1], width=indices.shape[1],
            fewest=self.fewest,
        )  # fmt: skip
        reasons = [*answer.reasons, *_against_queries(q)]
        if not q.shape[0] or not kv.shape[0]:
            reasons.append("there is nothing to compute")
        elif kv.data_ptr() % ALIGNMENT or kv.stride(0) * kv.element_size() % ALIGNMENT:
            reasons.append(f"rows of kv are not {ALIGNMENT}-byte aligned")
        return Answer("triton", tuple(reasons)) if reasons else answer

    def decode(
        self, q: Tensor, swa: Pages, extra: Pages | None, sink: Tensor, scale: float, *,
        trusted: bool = False, schedule: Any = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Attend as `sparse_decode` does. Shapes: q bf16 [T, H, 512] -> out bf16 [T, H, 512], lse f32 [T, H].

        `schedule` is one of the library's, shared by calls of equal shapes and lengths; None makes one.
        """
        heads = q.shape[1]
        q, sink = _pad_heads(q, sink)
        slots, lens = _lists(swa, DECODE_WIDTH, trusted)
        more: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)
        if extra is not None and extra.slots.shape[1] and extra.cache.shape[0]:
            extra_slots, extra_lens = _lists(extra, DECODE_WIDTH, trusted)
            more = (_view(extra), extra_slots.unsqueeze(1), extra_lens)
        out, lse = self.library.decode(
            q.unsqueeze(1), _view(swa), slots.unsqueeze(1), lens, *more, sink, scale,
            self.library.schedule() if schedule is None else schedule,
        )  # fmt: skip
        return _own_heads(out.squeeze(1), lse.squeeze(2), heads)

    def prefill(
        self, q: Tensor, kv: Tensor, indices: Tensor, lens: Tensor, sink: Tensor, scale: float, *,
        trusted: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Attend as `sparse_prefill` does. Shapes: -> out bf16 [T, H, 512], lse f32 [T, H]."""
        heads = q.shape[1]
        q, sink = _pad_heads(q, sink)
        source = Pages(kv, indices, lens, 1, "")
        indices, lens = _lists(source, self.have.prefill_width, trusted)
        out, lse = self.library.prefill(q, kv.unsqueeze(1), indices.unsqueeze(1), lens, sink, scale)
        return _own_heads(out, lse, heads)

    def _against_pages(self, source: Pages) -> list[str]:
        """What is wrong with pages: FlashMLA checks none of it on every architecture."""
        cache = source.cache
        if not cache.shape[0]:
            return ["there are no pages"]
        reasons: list[str] = []
        if cache.data_ptr() % ALIGNMENT:
            reasons.append(f"page 0 is not {ALIGNMENT}-byte aligned")
        if cache.shape[0] > 1 and cache.stride(0) % self.have.page_stride:
            reasons.append(f"pages are {cache.stride(0)} bytes apart, no multiple of {self.have.page_stride}")
        if cache.shape[0] * source.rows > 2**31:
            reasons.append("slots pass 2^31")
        return reasons


def _against_queries(q: Tensor) -> list[str]:
    """Queries that are not copied anyway, to pad them, reach copies of 16 bytes as they are."""
    lies = q.data_ptr() | q.element_size() * (q.stride(0) | q.stride(1))
    if padded(q.shape[1]) == q.shape[1] and lies % ALIGNMENT:
        return [f"queries are not {ALIGNMENT}-byte aligned"]
    return []


def _lists(source: Pages, multiple: int, trusted: bool) -> tuple[Tensor, Tensor]:
    from dsv4core_cuda.lists import clean  # imports triton

    slots, lens = source.slots, source.lens
    if trusted and slots.shape[1] == round_up(slots.shape[1], multiple) and slots.stride(1) == 1:
        return slots, lens.contiguous()
    return clean(slots, lens, source.cache.shape[0] * source.rows, multiple)


def _pad_heads(q: Tensor, sink: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and sinks of a number of heads that there is a kernel for; those of a layer already are."""
    missing = padded(q.shape[1]) - q.shape[1]
    if not missing:
        return q, sink.contiguous()
    q = torch.nn.functional.pad(q, (0, 0, 0, missing))
    return q, torch.nn.functional.pad(sink, (0, missing), value=-torch.inf)


def _own_heads(out: Tensor, lse: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    return (out, lse) if out.shape[1] == heads else (out[:, :heads], lse[:, :heads])


def _view(source: Pages) -> Tensor:
    """Pages in the shape that FlashMLA declares, though bytes are split. Shapes: -> u8 [N, rows, 1, 584]."""
    cache, rows = source.cache, source.rows
    step = cache.stride(0) if cache.shape[0] > 1 else round_up(rows * ROW_BYTES, 576)
    return cache.as_strided((cache.shape[0], rows, 1, ROW_BYTES), (step, ROW_BYTES, ROW_BYTES, 1))


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
