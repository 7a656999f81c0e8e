"""A stand-in for `vllm-xpu-kernels` on host tensors, with the recorded schemas and what its source demands.

As a pytest plugin (`-p vllm_fake`, this folder on PYTHONPATH, DSV4CORE_XPU_VLLM_KERNELS=on) it is there for a
whole run; `installed` puts it there for a test. Its version ends in +fake, which reports show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from dsv4core_xpu.vllm_kernels import library, record

Operator = Callable[..., Tensor]
LINES = record.recorded()["lines"]
VERSIONS = {"vllm-xpu-kernels": f"{record.recorded()['release']}+fake", "torch": "2.14.0+xpu"}


def demand(holds: bool, name: str) -> None:
    """Raise like TORCH_CHECK, with the line that says so."""
    if not holds:
        said = LINES[name]
        raise RuntimeError(f"{said['file']}:{said['line']}: {said['means']}")


def scores(
    q_fp8: Tensor, kv_cache_fp8: Tensor, weights: Tensor, context_lens: Tensor, block_tables: Tensor,
    schedule_metadata: Tensor | None, max_model_len: int,
) -> Tensor:  # fmt: skip
    """What the source does, row of pages by row of pages, in f32."""
    check(q_fp8, kv_cache_fp8, weights, context_lens, block_tables)
    batch, queries, _, dim = q_fp8.shape
    pages, rows = kv_cache_fp8.shape[:2]
    flat = kv_cache_fp8.view(pages, rows * (dim + 4))
    codes = flat[:, : rows * dim].view(pages, rows, dim).view(torch.float8_e4m3fn)
    scales = flat[:, rows * dim :].view(pages, rows, 4).view(torch.float32)[..., 0]
    out = torch.full((batch * queries, max_model_len), -torch.inf)
    for r in range(batch):
        length = int(context_lens[r])
        for place, page in enumerate(block_tables[r].tolist()):
            first = place * rows
            if first >= min(length, max_model_len) or not 0 <= page < pages:
                continue
            for j in range(queries):
                dots = codes[page].float() @ q_fp8[r, j].float().T * scales[page].unsqueeze(1)
                found = (dots.clamp(min=0) * weights[r * queries + j]).sum(1)
                last = min(first + rows, length - queries + j + 1, max_model_len)
                out[r * queries + j, first:last] = found[: max(last - first, 0)]
    return out


def check(q: Tensor, cache: Tensor, weights: Tensor, lens: Tensor, tables: Tensor) -> None:
    """What the operator refuses, and what it would read wrongly."""
    demand(q.dim() == 4 and q.dtype == torch.float8_e4m3fn, "q")
    demand(cache.dim() == 4 and cache.dtype == torch.uint8, "cache")
    demand(cache.shape[2:] == (1, q.shape[3] + 4), "cache")
    demand(cache.shape[1] == 64, "rows")
    demand(weights.dtype == torch.float32, "weights")
    demand(weights.shape == (q.shape[0] * q.shape[1], q.shape[2]), "weights")
    demand(lens.dtype == torch.int32 and lens.shape == q.shape[:1], "lens")
    demand(tables.dtype == torch.int32 and tables.dim() == 2 and tables.shape[0] == q.shape[0], "tables")
    demand(all(t.is_contiguous() for t in (q, weights, lens, tables)), "contiguous")
    demand(cache.data_ptr() % 64 == 0 and cache.stride(0) % 64 == 0, "block_load")


def product(A: Tensor, B: Tensor, B_scale_: Tensor | None, bias_: Tensor | None) -> Tensor:
    """bf16 by fp8 [in, out] with scales of square blocks, or of channels where there is one row of them."""
    assert B_scale_ is not None and bias_ is None
    demand(B.dtype == torch.float8_e4m3fn, "fp8_weight")
    demand(B_scale_.is_contiguous(), "scales_contiguous")
    scales = B_scale_
    if scales.dim() == 2 and scales.shape[0] > 1:
        size = B.shape[0] // scales.shape[0]
        scales = scales.repeat_interleave(size, 0).repeat_interleave(size, 1)
    demand(scales.shape in (B.shape, (1, B.shape[1])), "blocks")
    return (A.float() @ (B.float() * scales)).to(A.dtype)


@contextmanager
def installed(
    versions: dict[str, str] | None = None,
    schemas: dict[str, str] | None = None,
    **operators: Operator,
) -> Iterator[None]:
    """The library in this process: its metadata, and what loading it registers."""
    made: list[torch.library.Library] = []

    def load(path: str) -> None:
        assert path.endswith(record.recorded()["library"])
        home = torch.library.Library(library.NAMESPACE, "FRAGMENT")
        for name, operator in ({library.SCORES: scores, library.PRODUCT: product} | operators).items():
            home.define((schemas or {}).get(name, record.recorded()["used"][name]["schema"]))
            home.impl(name, operator, "CPU")
        made.append(home)

    known: Any = VERSIONS | (versions or {})
    place = mock.Mock(locate_file=lambda name: Path("/site") / name)
    with (
        mock.patch.object(record, "installed_version", known.get),
        mock.patch.object(library, "distribution", lambda name: place),
        mock.patch.object(torch.ops, "load_library", load),
    ):
        try:
            yield
        finally:
            for home in made:
                home._destroy()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """As a plugin: before a backend is made, and to the end of the run."""
    whole = installed()
    whole.__enter__()
    config.add_cleanup(lambda: whole.__exit__(None, None, None))
