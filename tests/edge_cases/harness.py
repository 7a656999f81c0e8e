"""One attention layer, mostly of the tiny model, with what a test needs around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsv4core import AttentionConfig, AttentionWeights, PagedCache, cache_specs, get_backend
from dsv4core.layout import get_layout
from dsv4core_conformance.reference import Options, ReferenceConfig, ReferenceLayer, Trace
from dsv4core_conformance.reference.counter import hashed_values

LAYERS = {"tiny": {"swa": 0, "csa": 1, "hca": 2}, "v4-flash": {"swa": 0, "csa": 2, "hca": 3}}
RATIOS = {"swa": 0, "csa": 4, "hca": 128}
MAIN_GROUP = {"csa": "c4", "hca": "c128"}
ALL_CANDIDATES = 4096


def values(*shape: int, stream: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """About normal values that bf16 holds exactly, from an integer hash."""
    return torch.from_numpy(hashed_values(shape, stream)).bfloat16().to(dtype)


def relative(got: Tensor, want: Tensor | np.ndarray) -> float:
    """Relative L2 difference."""
    want = torch.as_tensor(want).double()
    return float((got.double() - want).norm() / want.norm())


def differing_rows(a: Tensor, b: Tensor) -> list[int]:
    """Rows that do not have the same bits."""
    return (a != b).any(dim=1).nonzero()[:, 0].tolist()


def chunks_of(length: int, sizes: Sequence[int]) -> list[int]:
    """`sizes`, repeated and cut so that they add up to `length`."""
    chunks: list[int] = []
    while sum(chunks) < length:
        chunks.append(min(sizes[len(chunks) % len(sizes)], length - sum(chunks)))
    return chunks


def assert_same_bytes(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    """Two snapshots hold the same pages."""
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), f"{key}: {int((a[key] != b[key]).sum())} bytes differ"


class Rig:
    """A layer, its weights, its caches and its reference."""

    def __init__(self, kind: str, profile: str, overrides: Mapping[str, Any], preset: str = "tiny") -> None:
        self.kind, self.profile, self.layer, self.ratio = kind, profile, LAYERS[preset][kind], RATIOS[kind]
        self.config = AttentionConfig.preset(preset, profile=profile, **overrides)
        self.weights = AttentionWeights.random(self.config, self.layer, seed=5)
        self.attention = get_backend("cpu").attention(self.config, self.layer, self.weights)
        self.dtype = torch.float32 if profile == "math" else torch.bfloat16
        self.specs = {spec.group: spec for spec in cache_specs(self.config, self.layer)}

    def hidden(self, length: int, stream: int = 1) -> Tensor:
        return values(length, self.config.hidden_size, stream=stream, dtype=self.dtype)

    def cache(self, tokens: int = 1024, requests: int = 4) -> PagedCache:
        return PagedCache.allocate(
            self.config, [self.layer], tokens, "cpu", max_requests=requests, max_chunk=tokens
        )

    def step(self, cache: PagedCache, parts: Mapping[str, Tensor], pad_to: int | None = None) -> Tensor:
        """One call for new tokens of several requests; padding rows hold finite garbage."""
        plan = cache.plan({request: len(part) for request, part in parts.items()}, pad_to=pad_to)
        hidden = torch.cat(list(parts.values()))
        if pad_to is not None:
            hidden = torch.cat(
                [hidden, torch.full((pad_to - len(hidden), hidden.shape[1]), 1e3).to(hidden.dtype)]
            )
        return self.attention(hidden, cache, plan)

    def run(
        self, hidden: Tensor, chunks: Sequence[int] | None = None, cache: PagedCache | None = None
    ) -> Tensor:
        """Outputs of request "a" over all its tokens, given in chunks (default: all at once)."""
        cache = cache or self.cache(max(256, len(hidden)))
        return torch.cat(
            [self.step(cache, {"a": part}) for part in hidden.split(list(chunks or [len(hidden)]))]
        )

    def trace(
        self, hidden: Tensor, rows: Sequence[int] | None = None, options: Options | None = None
    ) -> Trace:
        """The float64 reference of the same layer, in the same profile unless `options` says otherwise."""
        config, weights = self.config, self.weights.state_dict()
        sizes = ReferenceConfig(
            config.hidden_size,
            config.num_attention_heads,
            config.q_lora_rank,
            config.o_groups,
            config.o_lora_rank,
            config.index_n_heads,
            config.index_topk,
            window=config.sliding_window,
        )
        layer = ReferenceLayer(
            sizes,
            self.ratio,
            {k: v.float().numpy() for k, v in weights.items()},
            options or Options.preset("math" if self.profile == "math" else "vllm"),
        )
        return layer.run(hidden.float().numpy(), rows)

    def rows(self, cache: PagedCache, group: str, request: str = "a") -> Tensor:
        """All rows of a request's pages of one group, decoded; states as [rows, 2W]."""
        spec = self.specs[group]
        layout = get_layout(spec.layout)
        if spec.layout == "state_f32":
            layout = layout.sized(spec.row_width // 2)
        pages = cache.snapshot(request)[spec.key]
        return layout.decode_pages(pages, spec.rows).flatten(0, 1)

    def storage(self, cache: PagedCache) -> list[Tensor]:
        """Every tensor that holds pages of this layer."""
        layer = cache.layer(self.layer)
        found = [layer.swa, layer.compressed, layer.indexer, layer.state, layer.indexer_state]
        return [tensor for tensor in found if tensor is not None]


@cache
def _rig(kind: str, profile: str, overrides: tuple[tuple[str, Any], ...]) -> Rig:
    return Rig(kind, profile, dict(overrides))


def rig(kind: str, profile: str = "math", **overrides: Any) -> Rig:
    """A cached `Rig`; "complete" CSA needs `index_topk=ALL_CANDIDATES`."""
    return _rig(kind, profile, tuple(sorted(overrides.items())))


def ops() -> Any:
    """The op table of the CPU backend."""
    return get_backend("cpu").ops


def pages(rows: Tensor, layout: str = "f32_row", rows_per_page: int = 64) -> Tensor:
    """Pages that hold the given rows from slot 0 on, zeros behind. Shapes: [n, width] -> u8 [N, B]."""
    count = -(-len(rows) // rows_per_page)
    padded = torch.zeros(count * rows_per_page, rows.shape[1], dtype=rows.dtype)
    padded[: len(rows)] = rows
    return get_layout(layout).encode_pages(padded.view(count, rows_per_page, -1))


def decode(
    q: Tensor,
    cache: Tensor,
    slots: Tensor,
    lens: Tensor,
    sink: Tensor,
    *,
    layout: str = "f32_row",
    extra: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """`sparse_decode` on pages of 64 rows with the model's scale. Shapes: -> (out, lse)."""
    out = torch.full_like(q, torch.nan)
    lse = ops().sparse_decode(
        q,
        cache,
        slots.int(),
        lens.int(),
        *(extra or (None, None, None)),
        sink,
        out,
        scale=512**-0.5,
        swa_rows=64,
        extra_rows=64,
        layout=layout,
        extra_layout=layout,
    )
    return out, lse


def prefill(q: Tensor, kv: Tensor, indices: Tensor, lens: Tensor, sink: Tensor) -> tuple[Tensor, Tensor]:
    """`sparse_prefill` with the model's scale. Shapes: -> (out, lse)."""
    out = torch.full_like(q, torch.nan)
    lse = ops().sparse_prefill(q, kv, indices.int(), lens.int(), sink, out, scale=512**-0.5)
    return out, lse
