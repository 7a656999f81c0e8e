"""Conversions of whole pages on their bytes, where decoding and encoding again would be several times slower.

Each takes views [n, rows, bytes] of source and result pages and says whether it has filled the result; it
has not where a byte was met that needs the general way (NaN codes, scales that no writer makes).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dsv4core.layout.rounding import in_blocks, packed
from dsv4core.numerics import e2m1
from dsv4core.numerics.minifloat import look_up

Views = tuple[Tensor, ...]
Shortcut = Callable[[Views, Views], bool]

NOPE, BLOCK, SCALES = 448, 64, 7
MXFP4_BLOCK, HIGHEST_MXFP4 = 32, 250  # a scale above that may overflow
BF16_RECORD, MLA_RECORD = (1024,), (576, 8)
NAN, NEGATIVE_ZERO, SIGN = 0x7F, 0x80, 0x80
LIFT = 2.0**120  # e4m3 bits moved into a bf16 are the value times 2^-120
SIGN_AND_CODE = 0x87F0 - 0x10000
ONE_PRODUCT = 2.0**7  # scales up to here times LIFT are bf16 numbers
INFINITY = 0x7F80
FLOOR_BITS = 0x38D1  # the floor 1e-4 cut to bf16; every amax near it has the same E


def mla_to_plain(source: Views, sink: Views) -> bool:
    """`fp8_ds_mla` to rows of bf16 or f32."""
    return _mla_to_plain(source, sink, LIFT)


def fnuz_to_plain(source: Views, sink: Views) -> bool:
    """`fp8_ds_mla_fnuz` to rows of bf16 or f32: without special codes FNUZ is half of OCP."""
    codes = packed(source[0][..., :NOPE])
    return not _has(codes, NEGATIVE_ZERO) and _mla_to_plain(source, sink, LIFT / 2)


def _mla_to_plain(source: Views, sink: Views, lift: float) -> bool:
    front, tail = source
    scale = _power(tail[..., :SCALES].to(torch.int16).clamp(1, 254) - 127)
    nope = _values(in_blocks(packed(front[..., :NOPE]), BLOCK), lift, scale)
    target = _typed(sink[0], sink[0].shape[-1] // 512)
    rope = packed(front[..., NOPE:]).view(torch.bfloat16)
    if nope is None or target is None or not _finite(rope):
        return False
    target[..., :NOPE] = nope.flatten(-2)
    target[..., NOPE:] = rope
    return True


def row_to_plain(source: Views, sink: Views) -> bool:
    """`fp8_row` to rows of bf16 or f32."""
    values, target = _values(source[0], LIFT), _typed(sink[0], sink[0].shape[-1] // 512)
    return _put(values, target)


def index_to_f32(source: Views, sink: Views) -> bool:
    """`index_fp8` to `index_f32`; a scale that is a power of two is a bf16 in its upper half."""
    bits = packed(source[1]).view(torch.int32)
    if not _legal(_is_power(bits), bits == 0, source[0]):
        return False
    scale = (bits >> 16).to(torch.int16).view(torch.bfloat16)
    return _put(_values(source[0], LIFT, scale), _typed(sink[0], 4))


def packed_to_f32(source: Views, sink: Views) -> bool:
    """`index_fp8_ue8m0x4` to `index_f32`."""
    scale = _power(source[1][..., 0].to(torch.int16).clamp(1, 254) - 127)
    return _put(_values(source[0], LIFT, scale), _typed(sink[0], 4))


def mxfp4_to_f32(source: Views, sink: Views) -> bool:
    """`index_mxfp4` to `index_f32`: a byte is a pair of values, looked up together."""
    byte, target = packed(source[1]), _typed(sink[0], 4)
    if byte.numel() and int(byte.max()) > HIGHEST_MXFP4:
        return False
    every = torch.arange(256, dtype=torch.int32, device=byte.device).to(torch.uint8).unsqueeze(-1)
    pairs = e2m1.decode(e2m1.unpack(every)).to(torch.bfloat16).view(torch.int32).squeeze(-1)
    values = look_up(pairs, packed(source[0])).view(torch.bfloat16)
    scale = _power(byte.to(torch.int16).clamp(min=1) - 127)
    return _put(in_blocks(values, MXFP4_BLOCK).mul_(scale).flatten(-2), target)


def bf16_to_f32(source: Views, sink: Views) -> bool:
    """`bf16_row` to `f32_row`."""
    values = packed(source[0]).view(torch.bfloat16)
    return _finite(values) and _put(values, _typed(sink[0], 4))


def bf16_to_mla(source: Views, sink: Views) -> bool:
    """`bf16_row` to `fp8_ds_mla`: the bytes that a writer makes."""
    row = packed(source[0])
    words = row.view(torch.int16)
    nope = in_blocks(words[..., :NOPE], BLOCK)
    amax = (nope & 0x7FFF).amax(dim=-1)
    if amax.numel() == 0 or int(amax.max()) >= INFINITY or not _finite(words[..., NOPE:]):
        return False
    floored = amax.clamp(min=FLOOR_BITS)
    exponent = (floored >> 7) - 135 + ((floored & 0x7F) > 0x60).to(torch.int16)
    codes = (nope.view(torch.bfloat16) * _power(-exponent)).to(torch.float8_e4m3fn)
    front, tail = sink
    front[..., :NOPE] = codes.view(torch.uint8).flatten(-2)
    front[..., NOPE:] = row[..., 2 * NOPE :]
    fresh = ~row.view(torch.int64).any(dim=-1, keepdim=True)
    tail[..., SCALES:] = 0
    tail[..., :SCALES] = (exponent + 127).to(torch.uint8).masked_fill_(fresh, 0)
    return True


def mla_to_fnuz(source: Views, sink: Views) -> bool:
    """`fp8_ds_mla` to `fp8_ds_mla_fnuz`, which reads a code as half the value: the scale byte grows by 1."""
    return _relabel(source, sink, 1)


def fnuz_to_mla(source: Views, sink: Views) -> bool:
    """`fp8_ds_mla_fnuz` to `fp8_ds_mla`: the scale byte shrinks by 1."""
    return _relabel(source, sink, -1)


def _relabel(source: Views, sink: Views, step: int) -> bool:
    front, tail = source
    codes, scale = packed(front[..., :NOPE]), packed(tail[..., :SCALES])
    special = _has(codes, NEGATIVE_ZERO)  # in FNUZ that byte is NaN
    # 0x7f and 0xff: NaN, or 240 in FNUZ, are no code of the other.
    if (step < 0 and special) or _has(codes, NAN) or _has(codes, NAN | SIGN):
        return False
    fresh = scale == 0
    if bool(((scale == 1) | (scale >= 254)).any()) or (
        bool(fresh.any()) and bool((fresh & (front != 0).any(dim=-1, keepdim=True)).any())
    ):
        return False
    sink[0].copy_(front)
    if special:
        sign = (codes == NEGATIVE_ZERO).view(torch.uint8).bitwise_left_shift_(7)
        sink[0][..., :NOPE] = codes.bitwise_xor_(sign)
    sink[1][..., SCALES:] = 0
    sink[1][..., :SCALES] = torch.where(fresh, scale, (scale.to(torch.int16) + step).to(torch.uint8))
    return True


def index_to_packed(source: Views, sink: Views) -> bool:
    """`index_fp8` to `index_fp8_ue8m0x4`: the exponent of the f32 scale, four times."""
    bits = packed(source[1]).view(torch.int32)
    if not _legal(_is_power(bits), bits == 0, source[0]):
        return False
    sink[0].copy_(source[0])
    sink[1].copy_(((bits >> 23) * 0x01010101).view(torch.uint8))
    return True


def packed_to_index(source: Views, sink: Views) -> bool:
    """`index_fp8_ue8m0x4` to `index_fp8`."""
    first = source[1][..., :1].to(torch.int32)
    if not _legal((first > 0) & (first < 255), first == 0, source[0]):
        return False
    sink[0].copy_(source[0])
    sink[1].copy_((first << 23).view(torch.uint8))
    return True


def f32_to_bf16(source: Views, sink: Views) -> bool:
    """`f32_row` to `bf16_row`."""
    values = packed(source[0]).view(torch.float32).to(torch.bfloat16)
    return _finite(values) and _put(values, _typed(sink[0], 2))


def plain_to_row(source: Views, sink: Views) -> bool:
    """Rows of bf16 or f32 to `fp8_row`, saturating."""
    values = packed(source[0]).view(torch.bfloat16 if source[0].shape[-1] == 1024 else torch.float32)
    if not bool(values.isfinite().all()):
        return False
    sink[0].copy_(values.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8))
    return True


def _via(first: Shortcut, sizes: tuple[int, ...], second: Shortcut) -> Shortcut:
    """Two conversions, with records of these sizes between them."""

    def both(source: Views, sink: Views) -> bool:
        between = tuple(source[0].new_zeros((*source[0].shape[:-1], size)) for size in sizes)
        return first(source, between) and second(between, sink)

    return both


def _legal(usual: Tensor, zero: Tensor, codes: Tensor) -> bool:
    """Whether scales are usual, or zero beside codes that are all zero.

    Shapes: bool [..., 1] twice, u8 [..., n].
    """
    if not bool(zero.any()):
        return bool(usual.all())
    return bool((usual | zero).all()) and not bool((codes[zero.squeeze(-1)] != 0).any())


def _power(exponent: Tensor) -> Tensor:
    """2^E for blocks, by bits. Shapes: i16 [..., n], -126 <= E <= 127 -> bf16 [..., n, 1]."""
    return ((exponent + 127) << 7).view(torch.bfloat16).unsqueeze(-1)


def _finite(values: Tensor) -> bool:
    """Whether no bf16 is NaN or infinite. Shapes: bf16 or its bits as i16, any."""
    return values.numel() == 0 or int((values.view(torch.int16) & 0x7FFF).max()) < INFINITY


def _is_power(bits: Tensor) -> Tensor:
    """Whether f32 bits are a normal power of two. Shapes: i32 any -> bool the same."""
    return ((bits & 0x7FFFFF) == 0) & (bits > 0) & (bits < 0x7F800000)


def _has(codes: Tensor, byte: int) -> bool:
    """Whether a byte occurs, by reductions where it is the extreme of a byte type, which are the fastest."""
    if codes.numel() == 0:
        return False
    if byte == NEGATIVE_ZERO:
        return int(codes.view(torch.int8).min()) == -128
    if byte == NAN:
        return int(codes.view(torch.int8).max()) == 127
    return int(codes.max()) == 255


def _values(codes: Tensor, lift: float, scale: Tensor | None = None) -> Tensor | None:
    """Codes times a scale as bf16: bits moved, then exact products. None where a code is NaN.

    Shapes: u8 [..., n], bf16 [..., 1] -> bf16 [..., n].
    """
    if _has(codes, NAN) or _has(codes, NAN | SIGN):
        return None
    # Widening a signed byte fills the upper half with its sign: the mask keeps one bit of it.
    wide = codes.view(torch.int8).to(torch.int16).bitwise_left_shift_(4).bitwise_and_(SIGN_AND_CODE)
    values = wide.view(torch.bfloat16)
    if scale is None:
        return values.mul_(lift)
    if scale.numel() and float(scale.max()) <= ONE_PRODUCT:
        return values.mul_(scale * lift)
    return values.mul_(lift).mul_(scale)


def _typed(view: Tensor, size: int) -> Tensor | None:
    """Bytes as bf16 (2) or f32 (4), or None where they do not lie on such words."""
    if any(place % size for place in (view.storage_offset(), *view.stride()[:-1])):
        return None
    return view.view(torch.bfloat16 if size == 2 else torch.float32)


def _put(values: Tensor | None, target: Tensor | None) -> bool:
    if values is None or target is None:
        return False
    target.copy_(values)
    return True


SHORTCUTS: dict[tuple[str, str], Shortcut] = {
    ("fp8_ds_mla", "bf16_row"): mla_to_plain,
    ("fp8_ds_mla", "f32_row"): mla_to_plain,
    ("fp8_ds_mla_fnuz", "bf16_row"): fnuz_to_plain,
    ("fp8_ds_mla_fnuz", "f32_row"): fnuz_to_plain,
    ("fp8_row", "bf16_row"): row_to_plain,
    ("fp8_row", "f32_row"): row_to_plain,
    ("bf16_row", "f32_row"): bf16_to_f32,
    ("index_fp8", "index_f32"): index_to_f32,
    ("index_fp8_ue8m0x4", "index_f32"): packed_to_f32,
    ("index_mxfp4", "index_f32"): mxfp4_to_f32,
    ("bf16_row", "fp8_ds_mla"): bf16_to_mla,
    ("f32_row", "bf16_row"): f32_to_bf16,
    ("f32_row", "fp8_row"): plain_to_row,
    ("bf16_row", "fp8_row"): plain_to_row,
    ("f32_row", "fp8_ds_mla"): _via(f32_to_bf16, BF16_RECORD, bf16_to_mla),
    ("f32_row", "fp8_ds_mla_fnuz"): _via(
        _via(f32_to_bf16, BF16_RECORD, bf16_to_mla), MLA_RECORD, mla_to_fnuz
    ),
    ("bf16_row", "fp8_ds_mla_fnuz"): _via(bf16_to_mla, MLA_RECORD, mla_to_fnuz),
    ("fp8_row", "fp8_ds_mla"): _via(row_to_plain, BF16_RECORD, bf16_to_mla),
    ("fp8_row", "fp8_ds_mla_fnuz"): _via(
        _via(row_to_plain, BF16_RECORD, bf16_to_mla), MLA_RECORD, mla_to_fnuz
    ),
    ("fp8_ds_mla", "fp8_ds_mla_fnuz"): mla_to_fnuz,
    ("fp8_ds_mla_fnuz", "fp8_ds_mla"): fnuz_to_mla,
    ("index_fp8", "index_fp8_ue8m0x4"): index_to_packed,
    ("index_fp8_ue8m0x4", "index_fp8"): packed_to_index,
}
