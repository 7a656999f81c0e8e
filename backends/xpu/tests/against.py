"""Calls of a Triton op beside the torch body on the same arguments; every byte of every storage compared."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from dsv4core.config import AttentionConfig
from dsv4core.kernels.triton.calls import CONFIGS
from dsv4core.layout import get_layout
from dsv4core.ops import OPS
from dsv4core.samples import Size, sample

POISON = 0xA5
MAIN = ("vllm", "other", "bf16", "fnuz")
INDEX = ("vllm", "official", "sglang", "mxfp4", "other")


def arguments(op: str, config: str = "vllm", tokens: int = 5, context: int = 40) -> dict[str, Any]:
    """A sample of an op with one of the configurations."""
    made = AttentionConfig.preset("tiny", **CONFIGS[config])
    return sample(op, Size(tokens=tokens, context=context, config=made))


def kernel(op: str) -> Any:
    """The launcher of an op."""
    return getattr(import_module(f"dsv4core.kernels.triton.{op}"), op)


def in_parent(pages: Tensor, lead: int, gap: int) -> Tensor:
    """The same pages inside a poisoned allocation: `lead` bytes before them, `gap` bytes behind each."""
    count, size = pages.shape
    parent = torch.full((lead + count * (size + gap),), POISON, dtype=torch.uint8)
    view = parent.as_strided((count, size), (size + gap, 1), lead)
    view.copy_(pages)
    return view


def spread(tensor: Tensor, step: int = 2) -> Tensor:
    """The same numbers with gaps between them: legal for lists, tables, positions and slots."""
    wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] * step), 77, dtype=tensor.dtype)
    wide[..., ::step] = tensor
    return wide[..., ::step]


def columns(tensor: Tensor, left: int = 8, right: int = 24) -> Tensor:
    """The same rows as a column slice of something wider."""
    wide = torch.full((*tensor.shape[:-1], left + tensor.shape[-1] + right), 55, dtype=tensor.dtype)
    wide[..., left : left + tensor.shape[-1]] = tensor
    return wide[..., left : left + tensor.shape[-1]]


def storage(tensor: Tensor) -> Tensor:
    home = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(home, 0, (home.nbytes(),))


def twin(tensor: Tensor) -> Tensor:
    """A copy with storage, offset and strides of its own."""
    home = storage(tensor).clone().untyped_storage()
    return torch.empty(0, dtype=tensor.dtype).set_(
        home, tensor.storage_offset(), tensor.shape, tensor.stride()
    )


def exact(op: str, given: dict[str, Any]) -> list[Tensor | None]:
    """Bit-identical results and storages, those that are written and those that are not."""
    mine = {k: twin(v) if isinstance(v, Tensor) else v for k, v in given.items()}
    theirs = {k: twin(v) if isinstance(v, Tensor) else v for k, v in given.items()}
    got, expected = kernel(op)(**mine), OPS[op].body(**theirs)
    got = got if isinstance(got, tuple) else (got,)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            wrong = int((raw(a) != raw(b)).sum())
            assert wrong == 0, f"result {i}: {wrong} of {a.numel()} differ"
    for name, tensor in mine.items():
        if isinstance(tensor, Tensor):
            wrong = (storage(tensor) != storage(theirs[name])).nonzero().flatten()
            assert not len(wrong), f"{name}: {len(wrong)} bytes differ, the first at {wrong[:4].tolist()}"
    return list(got)


def raw(tensor: Tensor) -> Tensor:
    flat = tensor.contiguous().flatten()
    return flat if flat.dtype == torch.bool else flat.view(torch.uint8)


def corners(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """bf16 rows of very different sizes: zeros, tiny, huge, block maxima at the edges of exponents, ties."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g)
    flat = x.view(-1, shape[-1])
    scales = (0.0, 1e-30, 1e-6, 1.0, 448.0, 1e30, 3e38, 1e-4, 450.0, 2.0**-126)
    for i, row in enumerate(flat):
        row.mul_(scales[i % len(scales)]).clamp_(-3.3e38, 3.3e38)
        row[:: 7 + i] = 0.0
        row[1 :: 11 + i] = -0.0
        if i % 3 == 0:
            row[::64] = float(scales[i % len(scales)]) * 0.875
    return x.to(torch.bfloat16)


def pages(layout: str, count: int, rows: int, seed: int = 1) -> Tensor:
    """Encoded random pages."""
    found = get_layout(layout)
    g = torch.Generator().manual_seed(seed)
    return found.encode_pages(torch.randn(count, rows, found.values, generator=g).to(torch.bfloat16))
