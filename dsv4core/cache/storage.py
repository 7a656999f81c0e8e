"""The tensors behind a cache: made here, or an engine's own, checked before anything is written to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4core.cache.specs import BASE_ALIGNMENT, CacheSpec
from dsv4core.cache.zeroed import zeroed
from dsv4core.errors import CacheError


@dataclass(frozen=True, eq=False)
class LayerCache:
    """The caches of one layer, as ops take them; None where the layer has no such cache.

    `model` is `model_of` the config that the cache was made with: what the bytes of rows depend on.
    Shapes: swa, compressed, indexer u8 [N, B]; state, indexer_state f32 [N, rows, 2W] with any stride(0).
    """

    swa: Tensor
    compressed: Tensor | None
    indexer: Tensor | None
    state: Tensor | None
    indexer_state: Tensor | None
    specs: Mapping[str, CacheSpec]
    model: Mapping[str, int | float | None]


def layer_cache(
    specs: Iterable[CacheSpec], tensors: Mapping[str, Tensor], model: Mapping[str, int | float | None]
) -> LayerCache:
    """Return the view of one layer on the tensors of a cache."""
    by_group = {spec.group: spec for spec in specs}
    found = {group: tensors[spec.key] for group, spec in by_group.items()}
    return LayerCache(
        swa=found["swa"],
        compressed=found.get("c4", found.get("c128")),
        indexer=found.get("indexer"),
        state=found.get("state_c4", found.get("state_c128")),
        indexer_state=found.get("state_indexer"),
        specs=by_group,
        model=model,
    )


@torch.inference_mode(False)  # pages made inside of the mode could not be written outside
def new_storage(spec: CacheSpec, pages: int, device: torch.device) -> Tensor:
    """Return zeroed pages in the form that ops take; `CacheError` where the host cannot map so many."""
    try:
        whole = zeroed(pages * spec.page_bytes, device).view(pages, spec.page_bytes)
    except (OSError, OverflowError) as error:
        raise CacheError(
            f"cache {spec.key!r}: {pages} pages of {spec.page_bytes} bytes cannot be mapped in host memory "
            f"({error}): take a smaller capacity_tokens"
        ) from None
    return whole if spec.dtype == "u8" else _rows_of_state(whole.view(torch.float32), spec)


def adopt_storage(spec: CacheSpec, tensor: Tensor) -> Tensor:
    """Return an engine's tensor in the form that ops take, not copied; raise `CacheError` if it cannot be."""
    what = (
        f"tensor {spec.key!r} ({tensor.dtype}, shape {list(tensor.shape)}, strides {list(tensor.stride())})"
    )
    if tensor.dim() == 3 and spec.dtype == "u8":
        raise CacheError(
            f"{what}: a page is not rows of {spec.record_bytes} bytes, its scales lie behind all values; "
            f"pass the bytes as torch.uint8 [pages, {spec.page_bytes}]"
        )
    wanted = f"torch.uint8 [pages, at least {spec.payload_bytes}] with stride(1) = 1"
    if spec.dtype == "f32":
        wanted += f", or torch.float32 [pages, {spec.rows}, {spec.row_width}] with any stride(0)"
    state_view = spec.dtype == "f32" and tensor.dtype == torch.float32 and tensor.dim() == 3
    if state_view:
        fits = tensor.shape[1:] == (spec.rows, spec.row_width) and tensor.stride()[1:] == (spec.row_width, 1)
    else:
        fits = tensor.dtype == torch.uint8 and tensor.dim() == 2
        fits = fits and tensor.shape[1] >= spec.payload_bytes and tensor.stride(1) == 1
    if not fits or tensor.shape[0] < 1:
        raise CacheError(
            f"{what} does not fit layout {spec.layout!r} with {spec.rows} rows a page: pass {wanted}"
        )
    step = tensor.stride(0) * tensor.element_size()
    if tensor.shape[0] > 1 and step < spec.payload_bytes:
        raise CacheError(
            f"{what}: pages are {step} bytes apart but {spec.payload_bytes} bytes long: they overlap"
        )
    address = 0 if tensor.is_meta else tensor.data_ptr()
    if address % BASE_ALIGNMENT or step % BASE_ALIGNMENT:
        raise CacheError(
            f"{what}: page 0 is {address % BASE_ALIGNMENT} bytes and the page distance "
            f"{step % BASE_ALIGNMENT} bytes off a multiple of {BASE_ALIGNMENT}, and kernels fetch "
            f"{BASE_ALIGNMENT} bytes at a time: start the pages at a multiple of {BASE_ALIGNMENT}, with "
            f"pages of {spec.page_bytes} bytes for example"
        )
    if spec.dtype == "u8" or state_view:
        return tensor
    return _rows_of_state(tensor[:, : spec.payload_bytes].view(torch.float32), spec)


def shared_bytes(specs: Mapping[str, CacheSpec], tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Return two keys whose pages overlap in memory, or None; a pair of one group if there is one.

    Layers may share an allocation, each with its own bytes of every page; they may not share bytes.
    """
    keys = [key for key in specs if not tensors[key].is_meta]
    if not keys:
        return None
    starts: list[Tensor] = []
    for key in keys:
        tensor = tensors[key]
        step = tensor.stride(0) * tensor.element_size()
        starts.append(torch.arange(tensor.shape[0], device="cpu") * step + tensor.data_ptr())
    start = torch.cat(starts)
    counts = torch.tensor([len(s) for s in starts], device="cpu")
    owner = torch.repeat_interleave(torch.arange(len(keys), device="cpu"), counts)
    start, order = start.sort()
    owner = owner[order]
    size = torch.tensor([specs[key].payload_bytes for key in keys], device="cpu")
    reach, reacher = (start + size[owner]).cummax(0)
    bad = torch.nonzero(start[1:] < reach[:-1]).flatten()
    codes = owner[reacher[bad]] * len(keys) + owner[bad + 1]
    found = torch.nonzero(torch.bincount(codes, minlength=1)).flatten()
    pairs = [(keys[int(code) // len(keys)], keys[int(code) % len(keys)]) for code in found]
    same = [(a, b) for a, b in pairs if specs[a].group == specs[b].group]
    return (same or pairs or [None])[0]


def _rows_of_state(whole: Tensor, spec: CacheSpec) -> Tensor:
    values = spec.rows * spec.row_width
    return whole[:, :values].view(whole.shape[0], spec.rows, spec.row_width)
