"""The builds of FlashMLA and how each is called: the same two ops with other arguments behind them.

Builds since October 2026 keep the kernels for V4 pages in a "legacy" half that has to be asked for.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dsv4core.probe import installed_version

MODULE = "flash_mla"
HEAD_DIM = 512


@dataclass
class Schedule:
    """How decode splits lists over the device: made by the first call, valid for equal shapes and lengths."""

    tile_scheduler_metadata: Tensor | None = None
    num_splits: Tensor | None = None


class Library(Protocol):
    """A build of FlashMLA, in its own shapes: q [T, 1, H, 512], pages [N, rows, 1, 584], lists [T, 1, K]."""

    name: str

    def schedule(self) -> Any:
        """An empty schedule, for `decode` to fill and to use again."""
        ...

    def decode(
        self, q: Tensor, cache: Tensor, slots: Tensor, lens: Tensor, extra: Tensor | None,
        extra_slots: Tensor | None, extra_lens: Tensor | None, sink: Tensor, scale: float, schedule: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Attend over pages. Shapes: -> out [T, 1, H, 512], lse f32 [T, H, 1]."""
        ...

    def prefill(
        self, q: Tensor, kv: Tensor, indices: Tensor, lens: Tensor, sink: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Attend over rows. Shapes: q [T, H, 512], kv [S, 1, 512] -> out [T, H, 512], lse f32 [T, H]."""
        ...


class FlashMLAModule:
    """The Python module `flash_mla`: sgl-flash-mla, tokenspeed-flashmla, or a build of one's own."""

    def __init__(self, module: Any) -> None:
        self.name = _distribution(module)
        self._decode = module.flash_mla_with_kvcache
        self._prefill = module.flash_mla_sparse_fwd
        self._schedule = module.get_mla_metadata
        self._legacy = _legacy(module, self._decode)

    def schedule(self) -> Any:
        """An empty schedule."""
        return self._schedule()[0]

    def decode(
        self, q: Tensor, cache: Tensor, slots: Tensor, lens: Tensor, extra: Tensor | None,
        extra_slots: Tensor | None, extra_lens: Tensor | None, sink: Tensor, scale: float, schedule: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Attend over pages."""
        return self._decode(
            q, cache, None, None, HEAD_DIM, schedule, softmax_scale=scale, is_fp8_kvcache=True,
            indices=slots, attn_sink=sink, extra_k_cache=extra, extra_indices_in_kvcache=extra_slots,
            topk_length=lens, extra_topk_length=extra_lens, **self._legacy,
        )  # fmt: skip

    def prefill(
        self, q: Tensor, kv: Tensor, indices: Tensor, lens: Tensor, sink: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Attend over rows."""
        out, _, lse = self._prefill(
            q, kv, indices, scale, HEAD_DIM, attn_sink=sink, topk_length=lens, **self._legacy
        )
        return out, lse


class FlashMLAOps:
    """A shared library that registers torch ops: vLLM's, or one that was named.

    The first 12 arguments of decode and 7 of prefill are every build's; what follows is known by name.
    """

    BEHIND: dict[str, Any] = {"out_": None, "kv_format": None, "enable_batch_invariant": False}  # noqa: RUF012

    def __init__(self, namespace: str, name: str) -> None:
        ops = getattr(torch.ops, namespace)
        self.name = name
        self._decode, self._decode_tail = ops.sparse_decode_fwd, self._tail(ops.sparse_decode_fwd, 12)
        self._prefill, self._prefill_tail = ops.sparse_prefill_fwd, self._tail(ops.sparse_prefill_fwd, 7)

    def _tail(self, op: Any, count: int) -> dict[str, Any]:
        behind = [a for a in op.default._schema.arguments[count:] if not a.has_default_value()]
        unknown = [a.name for a in behind if a.name not in self.BEHIND]
        if unknown:
            raise TypeError(f"{op} has arguments that nothing here knows: {', '.join(unknown)}")
        return {a.name: self.BEHIND[a.name] for a in behind}

    def schedule(self) -> Any:
        """An empty schedule."""
        return Schedule()

    def decode(
        self, q: Tensor, cache: Tensor, slots: Tensor, lens: Tensor, extra: Tensor | None,
        extra_slots: Tensor | None, extra_lens: Tensor | None, sink: Tensor, scale: float, schedule: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Attend over pages."""
        out, lse, metadata, splits = self._decode(
            q, cache, slots, lens, sink, schedule.tile_scheduler_metadata, schedule.num_splits, extra,
            extra_slots, extra_lens, HEAD_DIM, scale, **self._decode_tail,
        )  # fmt: skip
        schedule.tile_scheduler_metadata, schedule.num_splits = metadata, splits
        return out, lse

    def prefill(
        self, q: Tensor, kv: Tensor, indices: Tensor, lens: Tensor, sink: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Attend over rows."""
        out, _, lse = self._prefill(q, kv, indices, scale, HEAD_DIM, sink, lens, **self._prefill_tail)
        return out, lse


def _legacy(module: Any, decode: Any) -> dict[str, Any]:
    """The argument that asks for the kernels of V4 pages, where a build has two halves."""
    parameters = inspect.signature(decode).parameters
    if "extra_k_cache" not in parameters:
        raise TypeError("it is older than V4: flash_mla_with_kvcache has no extra_k_cache")
    if "use_legacy" not in parameters:
        return {}
    if not module.has_legacy():
        raise RuntimeError("it was built without its legacy half, which has the kernels for V4 pages")
    return {"use_legacy": True}


def _distribution(module: Any) -> str:
    name = "sgl-flash-mla" if hasattr(module, "has_legacy") else "tokenspeed-flashmla"
    version = installed_version(name)
    return f"{name} {version}" if version else f"{MODULE} {getattr(module, '__version__', '')}".strip()
