"""Attention of few tokens straight over pages of `fp8_ds_mla`: a cluster for a token and some heads.

Outputs come as they are, or turned back and rounded once, to bf16 or e4m3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, lru_cache

import torch
from torch import Tensor

from dsv4core.ops import OPS
from dsv4core.ops.fused_inv_rope_fp8_quant import FORMATS as SCALES
from dsv4core.ops.fused_inv_rope_fp8_quant import NAME as QUANTISED
from dsv4core.ops.fused_sparse_decode_inv_rope import UNQUANTISED
from dsv4core_cuda.cutedsl._build import Program
from dsv4core_cuda.flashmla import Pages

SEGMENTS = 8
"""Segments of a row at most where they depend on its width alone; every device has clusters of so many."""
MOST_BLOCKS = 9
"""Blocks of a cluster at most where the device is asked: 1152 keys are nine tiles."""
ALONE = 120 << 10
"""Bytes of shared memory of which a multiprocessor has one block's; every form takes more."""
ANGLES = 256
"""Bytes of a position's cosines and sines, which a form has in shared memory that turns outputs back."""
FORMATS = (UNQUANTISED, *SCALES)
"""What `decode_turned` stores: bf16 without scales, or e4m3 and scales."""
PROBE = Program("check", "qff", (), 32)
ARGUMENTS = "q" * 10 + "f" + "q" * 8 + "i" * 8 + "qqi"


@dataclass(frozen=True)
class Kind:
    """A kernel: keys of a tile, threads; microseconds of a cluster on an H100, and of every tile of a block.

    Measured by `benchmarks/cutedsl_decode.py --cuts`; only their order decides.
    """

    kernel: str
    keys: int
    threads: int
    once: float
    tile: float


KINDS = {
    16: Kind("sparse_decode", 128, 256, 4.5, 5.5),
    32: Kind("sparse_decode", 128, 256, 5.6, 7.0),
    64: Kind("sparse_decode_wide", 64, 512, 9.0, 2.9),
}
"""By heads of a block."""


Room = tuple[int, ...]
"""By blocks of a cluster: how many clusters a device runs at once."""


@dataclass(frozen=True)
class Form:
    """How a row is cut: heads of a block, blocks of a cluster, which split the keys, and tiles of a block."""

    heads: int
    blocks: int
    tiles: int


@cache
def program(heads: int, blocks: int, scale_format: str = "") -> Program:
    """The kernel for so many heads of a block and blocks of a cluster; one of FORMATS turns outputs back."""
    kind = KINDS[heads]
    fold = heads * (12 * blocks + 4 * (blocks + 1)) + (ANGLES if scale_format else 0)
    if kind.keys == 64:
        shared = 2 * 64 * 1024 + heads * 1024 + 2 * (heads * 128 + heads * 4 + 256)
    else:
        shared = kind.keys * 1024 + heads * (1024 + 2 * kind.keys + 96)
    sizes, formats = (
        (blocks,) if kind.keys == 64 else (heads, blocks),
        (scale_format,) if scale_format else (),
    )
    alone, shared = kind.keys == 64, shared + fold
    return Program(kind.kernel, ARGUMENTS, sizes + formats, kind.threads, shared, blocks, alone, early=True)


def cut(heads: int, width: int, blocks: int) -> Form:
    """The form with so many heads a block and at most so many blocks."""
    tiles = max(1, -(-width // KINDS[heads].keys))
    each = -(-tiles // blocks)
    return Form(heads, -(-tiles // each), each)


def fixed(tokens: int, heads: int, width: int, room: Room) -> Form:
    """The form whose bits for a row depend on nothing but the row: segments by its width alone.

    Blocks of 16 heads are done sooner, blocks of 32 decode each row half as often; no bit depends on it.
    """
    most = max((blocks for blocks in range(1, SEGMENTS + 1) if room[blocks]), default=1)
    few = cut(16, width, most)
    if heads % 32 or tokens * heads // 16 <= room[few.blocks]:
        return few
    return cut(32, width, most)


@lru_cache(maxsize=1024)
def fastest(tokens: int, heads: int, width: int, room: Room) -> Form:
    """The form that should be done first: how often it fills the device, times what a cluster takes."""

    def time(form: Form) -> float:
        clusters, kind = tokens * heads // form.heads, KINDS[form.heads]
        return -(-clusters // room[form.blocks]) * (kind.once + kind.tile * form.tiles)

    sizes = [n for n in KINDS if heads % n == 0]
    forms = {cut(n, width, blocks) for n in sizes for blocks in range(1, MOST_BLOCKS + 1)}
    return min((form for form in forms if room[form.blocks]), key=time)


@cache
def room_of(device: int) -> Room:
    """Clusters of 0, 1, .. MOST_BLOCKS blocks that a device runs at once, a block a multiprocessor.

    A cluster lies in one group of multiprocessors, and how large groups are, a device's driver knows; where
    a process has a share of a device, large clusters may never run, and one block always does.
    """
    probe = PROBE.on(device)
    one, *more = (probe.clusters(blocks, ALONE) for blocks in range(1, MOST_BLOCKS + 1))
    return (0, max(1, one), *more)


def programs(arch: str) -> dict[str, Program]:
    """A program of every number of heads, for ahead-of-time compilation; its matrix products are SM90's."""
    if arch != "sm_90a":
        return {}
    names = {"": "", **{found: f", turned back, scales {found}" for found in FORMATS}}
    return {f"{n} heads a block{name}": program(n, 5, found) for n in KINDS for found, name in names.items()}


def reciprocal(rows: int) -> tuple[int, int]:
    """m and s so that x // rows is (x * m) >> s for every x from 0 to 2^31 - 1."""
    shift = 31 + (rows - 1).bit_length()
    return -(-(1 << shift) // rows), shift


def decode(
    q: Tensor, swa: Pages, extra: Pages | None, sink: Tensor, out: Tensor, scale: float, alike: bool = False,
    form: Form | None = None,
) -> Tensor:  # fmt: skip
    """`sparse_decode` over pages that are 16-byte aligned; `alike`: bits of a row depend on it alone.

    `form` is one of one's own, to measure.
    """
    lse = sink.new_empty(q.shape[0], q.shape[1])
    results = out.data_ptr(), lse.data_ptr(), out.stride(0), out.stride(1)
    _start((), q, swa, extra, sink, results, scale, alike, form)
    return lse


def decode_turned(
    q: Tensor, swa: Pages, extra: Pages | None, sink: Tensor, positions: Tensor, cos_sin: Tensor,
    scale: float, groups: int, scale_format: str, alike: bool = False, form: Form | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """`fused_sparse_decode_inv_rope` over pages that are 16-byte aligned; the rest as `decode`.

    Angles that cannot be copied 16 bytes at a time, or whose rows lie apart, are brought together for the
    step: another kernel would give other bits, and where a table lies may change none. Outputs of a token
    lie head behind head whatever the groups are, and so do scales.
    """
    out: Tensor
    scales: Tensor | None
    if scale_format == UNQUANTISED:
        out, scales = q.new_empty(q.shape), None
    else:
        out, scales = OPS[QUANTISED].fake(q, positions, cos_sin, groups=groups, scale_format=scale_format)
    positions = positions.contiguous()
    if cos_sin.data_ptr() % 16 or not cos_sin.is_contiguous():
        cos_sin = cos_sin[positions.clamp(0, cos_sin.shape[0] - 1)]
        positions = torch.arange(q.shape[0], device=q.device)
    beside = 0 if scales is None else scales.data_ptr()
    results = out.data_ptr(), beside, positions.data_ptr(), cos_sin.data_ptr()
    _start((scale_format,), q, swa, extra, sink, results, scale, alike, form)
    return out, scales


def _packed(source: Pages) -> Pages:
    """A list as the kernel reads it: a row's slots side by side, and so are lengths; rows may lie apart."""
    slots, lens = source.slots, source.lens
    apart = slots.shape[1] > 1 and slots.stride(1) != 1
    if not apart and lens.is_contiguous():  # a layer's own; every step asks
        return source
    return replace(source, slots=slots.contiguous() if apart else slots, lens=lens.contiguous())


def _start(
    formats: tuple[str, ...], q: Tensor, swa: Pages, extra: Pages | None, sink: Tensor,
    results: tuple[int, int, int, int], scale: float, alike: bool, form: Form | None,
) -> None:  # fmt: skip
    """Launch a form; `results`: out, then lse and two strides, with a format scales, positions, angles."""
    tokens, heads, _ = q.shape
    swa, extra = _packed(swa), _packed(extra) if extra else None
    more = extra or swa
    width, extra_width = swa.slots.shape[1], extra.slots.shape[1] if extra else 0
    device = q.device.index
    if form is None:
        form = (fixed if alike else fastest)(tokens, heads, width + extra_width, room_of(device))
    (part, shift), (extra_part, extra_shift) = reciprocal(swa.rows), reciprocal(more.rows)
    out, beside, third, fourth = results
    program(form.heads, form.blocks, *formats).on(device)(
        (form.blocks, heads // form.heads, tokens),
        q.data_ptr(), swa.cache.data_ptr(), swa.slots.data_ptr(), swa.lens.data_ptr(), more.cache.data_ptr(),
        more.slots.data_ptr(), more.lens.data_ptr(), sink.data_ptr(), out, beside, scale, q.stride(0),
        q.stride(1), third, fourth, swa.cache.stride(0), more.cache.stride(0), swa.slots.stride(0),
        more.slots.stride(0), swa.cache.shape[0] * swa.rows, more.cache.shape[0] * more.rows, width,
        extra_width, swa.rows, more.rows, heads, form.tiles, part, extra_part, shift | extra_shift << 6,
    )  # fmt: skip
