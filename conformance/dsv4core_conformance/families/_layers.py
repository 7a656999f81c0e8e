"""Whole layers for the families: run one over requests, read its caches, know what must come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsv4core import AttentionConfig, AttentionWeights, PagedCache
from dsv4core.attention import DeepseekV4Attention
from dsv4core.backend import Backend
from dsv4core.plan import BatchPlan
from dsv4core_conformance.compare import Mismatch, require
from dsv4core_conformance.contracts import DECODE_PREFILL, DECODE_PREFILL_CPU
from dsv4core_conformance.reference.counter import hashed_values
from dsv4core_conformance.reference.options import ReferenceConfig
from dsv4core_conformance.reference.paged import PagedReference, PagedTrace, owned, record_parts
from dsv4core_conformance.subject import Subject

KINDS = {"swa": 0, "csa": 1, "hca": 2}
RATIOS = {"swa": 0, "csa": 4, "hca": 128}
ENTRIES = {"csa": ("c4", "indexer"), "hca": ("c128",), "swa": ()}
LAYER_LAYOUTS = ("fp8_ds_mla", "index_fp8", "state_f32")
"""What a backend must claim to be given layers of the default profile."""
WEIGHT_SEED = 11
STALE = 0x7F  # bytes of NaN in f32, bf16, e4m3 and e8m0 alike: what a page holds before its owner writes
LENGTH = 1200  # of every text

Records = dict[str, tuple[int, NDArray[np.uint8]]]


@cache
def text(request: str, length: int = LENGTH, hidden: int = 64) -> Tensor:
    """Hidden rows of a request, by its name: multiples of 1/16 up to 4, so that projections are exact sums.

    Shapes: -> bf16 [length, hidden]
    """
    stream = int.from_bytes(request.encode()[:4], "big") % 60_000 + 1
    values = np.rint(hashed_values((length, hidden), stream) * 16) / 16
    return torch.from_numpy(values.astype(np.float32)).bfloat16()


def weights_of(config: AttentionConfig, layer: int) -> AttentionWeights:
    """The weights of every world: small integers times powers of two."""
    return AttentionWeights.random(config, layer, seed=WEIGHT_SEED)


# By backend as long as it lives: an address may come back with another backend.
_LAYERS: WeakKeyDictionary[Backend, dict[tuple[Any, ...], DeepseekV4Attention]] = WeakKeyDictionary()


def layer_of(s: Subject, config: AttentionConfig, layer: int) -> DeepseekV4Attention:
    """A layer of the subject, made once."""
    made, key = _LAYERS.setdefault(s.backend, {}), (str(s.device), config, layer)
    if key not in made:
        made[key] = s.attention(config, layer, weights_of(config, layer))
    return made[key]


class World:
    """One tiny layer of a backend with a cache whose pages hold a previous owner's bytes.

    `limits` go to the cache, `overrides` to the configuration; `layer` is for schedules of a case's own.
    Raises what the backend raises.
    """

    def __init__(
        self,
        s: Subject,
        kind: str,
        *,
        tokens: int = 1024,
        requests: int = 4,
        limits: Mapping[str, Any] | None = None,
        stale: int = STALE,
        layer: int | None = None,
        **overrides: Any,
    ) -> None:
        self.s, self.kind, self.ratio = s, kind, RATIOS[kind]
        self.layer = KINDS[kind] if layer is None else layer
        self.config = AttentionConfig.preset("tiny", **overrides)
        self.attention = layer_of(s, self.config, self.layer)
        given = {"max_requests": requests, **(limits or {})}
        self.cache: PagedCache = s.cache(self.config, self.layer, tokens, **given)
        self.plan: BatchPlan | None = None
        for tensor in self.storages().values():
            raw_bytes(tensor).fill_(stale)

    def storages(self) -> dict[str, Tensor]:
        """Pages by group, where they lie."""
        pages = self.cache.layer(self.layer)
        found = {
            "swa": pages.swa, f"c{self.ratio}": pages.compressed, "indexer": pages.indexer,
            f"state_c{self.ratio}": pages.state, "state_indexer": pages.indexer_state,
        }  # fmt: skip
        return {group: tensor for group, tensor in found.items() if tensor is not None}

    def next_rows(self, request: str, count: int) -> Tensor:
        """The next hidden rows of a request's own text. Shapes: -> bf16 [count, hidden]"""
        start = self.cache.length(request) if request in self.cache.requests else 0
        return text(request)[start : start + count]

    def step(
        self, new: Mapping[str, int | Tensor], *, pad_to: int | None = None, plan: BatchPlan | None = None
    ) -> dict[str, Tensor]:
        """One step: numbers of tokens from the requests' own texts, or rows that the case brings.

        Padding rows hold large finite values. Shapes: -> bf16 [n, hidden] per request, on the host
        """
        parts = {r: self.next_rows(r, n) if isinstance(n, int) else n for r, n in new.items()}
        counts = {r: len(part) for r, part in parts.items()}
        rows = torch.cat([*parts.values(), torch.zeros(0, self.config.hidden_size).bfloat16()])
        self.plan = self.cache.plan(counts, pad_to=pad_to) if plan is None else plan
        padding = torch.full((self.plan.num_tokens - len(rows), rows.shape[1]), 1e3).bfloat16()
        out = self.attention(torch.cat([rows, padding]).to(self.s.device), self.cache, self.plan).cpu()
        require(torch.isfinite(out[: len(rows)]).all(), f"{self.kind}: an output is not finite")
        return dict(zip(counts, out.split([*counts.values(), len(padding)])[: len(counts)], strict=True))

    def feed(self, request: str, chunks: Sequence[int]) -> Tensor:
        """A request's own text in chunks; all outputs. Shapes: -> bf16 [sum of chunks, hidden]"""
        return torch.cat([self.step({request: n})[request] for n in chunks])

    def records(self, request: str) -> Records:
        """Every row that a request owns, by group: number of the first, bytes [n, record]."""
        length = self.cache.length(request)
        pages = self.cache.snapshot(request)
        found: Records = {}
        for spec in self.cache.layer(self.layer).specs.values():
            start, end = owned(length, spec.tokens_per_row, spec.sliding)
            first = start // spec.rows * spec.rows
            places = np.arange(start, end) - first
            found[spec.group] = start, read_records(pages[spec.key].cpu().numpy(), places, spec)
        return found


def raw_bytes(tensor: Tensor) -> Tensor:
    """The bytes of pages, in place. Shapes: any [N, ...] -> u8 [N, bytes of a page's rows]"""
    if tensor.dtype == torch.uint8:
        return tensor
    return tensor.view(tensor.shape[0], -1).view(torch.uint8)


def read_records(pages: NDArray[np.uint8], slots: NDArray[np.int64], spec: Any) -> NDArray[np.uint8]:
    """Rows as records: values, then what the layout keeps behind all rows of a page.

    Shapes: u8 [N, B], [n] -> u8 [n, record]
    """
    values, tail = record_parts(spec.layout, spec.row_width)
    page, row = np.divmod(slots, spec.rows)
    front = np.lib.stride_tricks.as_strided(
        pages, (len(pages), spec.rows, values), (pages.strides[0], values, 1), writeable=False
    )[page, row]
    if not tail:
        return front
    place = (spec.rows * values + row * tail)[:, None] + np.arange(tail)
    return np.concatenate([front, pages[page[:, None], place]], axis=1)


@cache
def _reference(config: AttentionConfig, layer: int) -> PagedReference:
    sizes = ReferenceConfig(
        config.hidden_size, config.num_attention_heads, config.q_lora_rank, config.o_groups,
        config.o_lora_rank, config.index_n_heads, config.index_topk, window=config.sliding_window,
    )  # fmt: skip
    weights = weights_of(config, layer).state_dict()
    plain = {name: tensor.float().numpy() for name, tensor in weights.items()}
    ratio = config.compress_ratios[layer]
    return PagedReference(sizes, ratio, plain, config.main_layout, config.index_layout)


@cache
def _trace(config: AttentionConfig, layer: int, request: str, length: int) -> PagedTrace:
    return _reference(config, layer).run(text(request)[:length].float().numpy())


def trace_of(w: World, request: str, length: int) -> PagedTrace:
    """What a request's own text must come to, computed once for at least `length` tokens."""
    return _trace(_judged(w.config), w.layer, request, next(n for n in (24, 300, 600, LENGTH) if n >= length))


def trace_of_rows(w: World, rows: Tensor) -> PagedTrace:
    """What given rows must come to. Shapes: bf16 [S, hidden]"""
    return _reference(_judged(w.config), w.layer).run(rows.float().numpy())


def _judged(config: AttentionConfig) -> AttentionConfig:
    """The same model without what must not change a result."""
    return config.model_copy(update={"decode_threshold": 1, "prefill_chunk_requests": 4})


def same_records(what: str, got: Records, expected: Records) -> None:
    """Every byte of every row that a request owns."""
    require(got.keys() == expected.keys(), f"{what}: groups {sorted(got)}, expected {sorted(expected)}")
    for group, (start, wanted) in expected.items():
        first, mine = got[group]
        require(
            (first, mine.shape) == (start, wanted.shape),
            f"{what}: group {group} holds rows {first} and {mine.shape}, expected {start} and {wanted.shape}",
        )
        wrong = np.argwhere(mine != wanted)
        if len(wrong):
            row, byte = (int(i) for i in wrong[0])
            raise Mismatch(
                f"{what}: group {group}, row {start + row}, byte {byte} of its record: expected "
                f"{wanted[row, byte]:02x}, got {mine[row, byte]:02x}; "
                f"{len(wrong)} bytes in {len(np.unique(wrong[:, 0]))} rows differ"
            )


def right_records(w: World, request: str, trace: PagedTrace | None = None) -> None:
    """The caches of a request are those of the reference, byte for byte."""
    length = w.cache.length(request)
    wanted = trace or trace_of(w, request, length)
    same_records(f"request {request!r} of {length} tokens", w.records(request), wanted.records(length))


def right_outputs(
    w: World, out: Tensor, start: int, request: str = "a", trace: PagedTrace | None = None
) -> None:
    """Outputs of positions start.. are the reference's, within what the contracts of the ops allow.

    Rows whose selection hangs on the rounding of a projection are left out; most must be left.
    """
    wanted = trace or trace_of(w, request, start + len(out))
    part = slice(start, start + len(out))
    error = np.linalg.norm(out.double().numpy() - wanted.out[part], axis=1)
    ratio = np.where(wanted.sure[part], error / wanted.bound[part], 0.0)
    if len(out) > 8:
        require(wanted.sure[part].mean() > 0.75, "the case says nothing: too many rows are near-ties")
    worst = int(np.argmax(ratio)) if len(ratio) else 0
    if len(ratio):
        w.s.errors["layer"] = max(w.s.errors.get("layer", 0.0), float(ratio[worst]))
        require(
            ratio[worst] <= 1,
            f"{w.kind} output of position {start + worst} of {request!r}: error {error[worst]:.3e} > bound "
            f"{wanted.bound[part][worst]:.3e}; {int((ratio > 1).sum())} of {len(ratio)} rows are outside",
        )


def decode_bound(s: Subject) -> float:
    """How far a decoded row may be from the prefilled one."""
    return DECODE_PREFILL_CPU if s.device.type == "cpu" else DECODE_PREFILL


def close_rows(
    s: Subject, what: str, got: Tensor, wanted: Tensor, sure: NDArray[np.bool_] | None = None
) -> None:
    """Rows within the decode-against-prefill bound, relative to each row's own size. Shapes: [n, hidden]"""
    error = (got.double() - wanted.double()).norm(dim=1) / wanted.double().norm(dim=1)
    if sure is not None:
        error = torch.where(torch.from_numpy(sure), error, 0.0)
    worst = int(error.argmax()) if len(error) else 0
    if len(error):
        require(
            float(error[worst]) <= decode_bound(s),
            f"{what}: row {worst} of {len(error)} is {float(error[worst]):.3e} away, more than "
            f"{decode_bound(s):.0e}",
        )


def same_rows(what: str, got: Tensor, wanted: Tensor) -> None:
    """Bit for bit. Shapes: [n, hidden]"""
    wrong = (got != wanted).any(dim=1).nonzero()[:, 0].tolist()
    require(not wrong, f"{what}: rows {wrong[:8]} of {len(got)} do not have the same bits")


def invariant(s: Subject) -> bool:
    """Whether the backend promises that a row's bits do not depend on the other rows."""
    return "batch_invariant_linear" in s.features


def cut(length: int, sizes: Sequence[int]) -> list[int]:
    """`sizes`, repeated and cut so that they add up to `length`."""
    chunks: list[int] = []
    while sum(chunks) < length:
        chunks.append(min(sizes[len(chunks) % len(sizes)], length - sum(chunks)))
    return chunks
