"""Rows to bytes and back: against numpy written from the format, and round trips over every layout."""

import math

import numpy as np
import pytest
import torch

from dsv4core.errors import LayoutError
from dsv4core.layout import get_layout
from dsv4core.numerics.hadamard import hadamard128

IDS = [
    "fp8_ds_mla",
    "fp8_ds_mla_fnuz",
    "fp8_row",
    "index_fp8",
    "index_fp8_ue8m0x4",
    "index_fp8_hadamard_f32",
    "index_mxfp4",
    "index_mxfp4_hadamard",
    "bf16_row",
    "f32_row",
    "index_f32",
]
E4M3 = np.array(
    [f / 8 * 2.0**-6 for f in range(8)]
    + [(1 + f / 8) * 2.0 ** (e - 7) for e in range(1, 16) for f in range(8)]
)[:127]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def layout_of(layout_id):
    return get_layout("state_f32").sized(256) if layout_id == "state_f32" else get_layout(layout_id)


def rows_of(layout, n=37, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, layout.values, generator=generator)
    x *= torch.exp2(torch.randint(-12, 12, (n, 1), generator=generator).float()) * scale
    return x if layout.value_dtype == "f32" else x.bfloat16()


def search(table, x, sign):
    """Nearest value of the table, ties to the even index."""
    distance = np.abs(np.minimum(np.abs(x), table[-1])[..., None] - table)
    best = distance == distance.min(axis=-1, keepdims=True)
    code = np.where(best[..., ::2].any(-1), best[..., ::2].argmax(-1) * 2, best.argmax(-1))
    return (code + np.where(np.signbit(x), sign, 0)).astype(np.uint8)


def block_exponent(block, largest, floor):
    mantissa, exponent = math.frexp(max(float(np.abs(block).max()), float(np.float32(floor))))
    top, shift = math.frexp(largest)
    return exponent - shift + (mantissa > top)


def numpy_row(layout_id, x):
    """Front and tail bytes of one row of doubles that bf16 holds."""
    if layout_id == "fp8_ds_mla":
        exponents = [block_exponent(b, 448, 1e-4) for b in x[:448].reshape(7, 64)]
        codes = search(E4M3, x[:448] / np.repeat(np.exp2(exponents), 64), 0x80)
        rope = (x[448:].astype(np.float32).view(np.uint32) >> 16).astype("<u2").view(np.uint8)
        return np.concatenate([codes, rope]), np.array([e + 127 for e in exponents] + [0], np.uint8)
    if layout_id == "fp8_ds_mla_fnuz":
        exponents = [block_exponent(b, 224, 1e-4) for b in x[:448].reshape(7, 64)]
        codes = search(E4M3 / 2, x[:448] / np.repeat(np.exp2(exponents), 64), 0x80)
        rope = (x[448:].astype(np.float32).view(np.uint32) >> 16).astype("<u2").view(np.uint8)
        tail = np.array([e + 127 for e in exponents] + [0], np.uint8)
        return np.concatenate([np.where(codes == 0x80, 0, codes).astype(np.uint8), rope]), tail
    if layout_id == "fp8_row":
        return search(E4M3, x, 0x80), np.zeros(0, np.uint8)
    if layout_id == "index_fp8_hadamard_f32":
        scale = np.float32(max(np.abs(x).max(), np.float32(1e-4))) / np.float32(448)
        codes = search(E4M3, (x.astype(np.float32) / scale).astype(np.float64), 0x80)
        return codes, np.array([scale], "<f4").view(np.uint8)
    if layout_id == "index_fp8_ue8m0x4":
        exponent = block_exponent(x, 448, 1e-4)
        return search(E4M3, x / 2.0**exponent, 0x80), np.full(4, exponent + 127, np.uint8)
    if layout_id == "index_fp8":
        exponent = block_exponent(x, 448, 1e-4)
        return search(E4M3, x / 2.0**exponent, 0x80), np.array([2.0**exponent], "<f4").view(np.uint8)
    exponents = [block_exponent(b, 6, 6 * 2.0**-126) for b in x.reshape(4, 32)]
    codes = search(E2M1, x / np.repeat(np.exp2(exponents), 32), 8)
    return codes[0::2] | (codes[1::2] << 4), np.array([e + 127 for e in exponents], np.uint8)


@pytest.mark.parametrize("layout_id", IDS[:8])
@pytest.mark.parametrize("rows", [1, 2, 64])
def test_pages_equal_independent_bytes(layout_id, rows):
    layout = get_layout(layout_id)
    values = rows_of(layout, 2 * rows, seed=rows).bfloat16()
    values[0] = 0
    values[-1, ::2] = -0.0
    pages = layout.encode_pages(values.view(2, rows, -1)).numpy()
    for page in range(2):
        want = np.zeros(layout.page_bytes(rows), np.uint8)
        for row in range(rows):
            front, tail = numpy_row(layout_id, values[page * rows + row].double().numpy())
            want[row * front.size : (row + 1) * front.size] = front
            start = rows * front.size + row * tail.size
            want[start : start + tail.size] = tail
        assert np.array_equal(pages[page], want)


@pytest.mark.parametrize("amax", [0.0, 1e-30, 1e-4, 0.0273, 0.02734375, 1.0, 7.0, 7.03125, 448, 450, 3e38])
def test_block_maxima_at_the_edges(amax):
    layout = get_layout("fp8_ds_mla")
    row = torch.zeros(512).bfloat16()
    row[::64] = amax
    exact = row.double().numpy()
    front, tail = numpy_row("fp8_ds_mla", exact)
    assert np.array_equal(layout.encode(row).numpy(), np.concatenate([front, tail]))
    assert torch.isfinite(layout.decode(layout.encode(row))).all()


@pytest.mark.parametrize("layout_id", [*(i for i in IDS if i != "index_fp8_hadamard_f32"), "state_f32"])
def test_decode_then_encode_keeps_values(layout_id):
    layout = layout_of(layout_id)
    once = layout.decode(layout.encode(rows_of(layout)))
    assert once.dtype == layout.dtype
    assert torch.equal(layout.decode(layout.encode(once)), once)


@pytest.mark.parametrize(
    ("layout_id", "bound"),
    [
        ("fp8_ds_mla", 0.035),
        ("fp8_ds_mla_fnuz", 0.035),
        ("index_fp8_ue8m0x4", 0.035),
        ("index_fp8_hadamard_f32", 0.035),
        ("index_fp8", 0.035),
        ("index_mxfp4", 0.16),
        ("bf16_row", 0.0),
        ("f32_row", 0.0),
        ("index_f32", 0.0),
        ("state_f32", 0.0),
    ],
)
def test_error_of_a_round_trip(layout_id, bound):
    layout = layout_of(layout_id)
    x = rows_of(layout)
    error = (layout.decode(layout.encode(x)).double() - x.double()).norm(dim=-1) / x.double().norm(dim=-1)
    assert error.max() <= bound


@pytest.mark.parametrize("layout_id", [*IDS, "state_f32"])
def test_shapes(layout_id):
    layout = layout_of(layout_id)
    x = rows_of(layout, 12)
    flat = layout.encode(x)
    assert flat.shape == (12, layout.record_bytes)
    assert flat.dtype == torch.uint8
    assert torch.equal(layout.encode(x.view(3, 4, -1)), flat.view(3, 4, -1))
    assert torch.equal(layout.encode(x[0]), flat[0])
    assert torch.equal(layout.decode(flat[5]), layout.decode(flat)[5])
    assert layout.encode(x[:0]).shape == (0, layout.record_bytes)
    assert layout.decode(flat[:0]).shape == (0, layout.values)
    wide = torch.zeros(12, layout.values + 7, dtype=x.dtype)
    wide[:, 3 : 3 + layout.values] = x
    assert torch.equal(layout.encode(wide[:, 3 : 3 + layout.values]), flat)
    loose = torch.zeros(12, layout.record_bytes + 5, dtype=torch.uint8)
    loose[:, 1 : 1 + layout.record_bytes] = flat
    assert torch.equal(layout.decode(loose[:, 1 : 1 + layout.record_bytes]), layout.decode(flat))
    assert torch.equal(layout.decode(loose[3:4, 1 : 1 + layout.record_bytes]), layout.decode(flat[3:4]))
    assert torch.equal(layout.encode(wide[3:4, 3 : 3 + layout.values]), flat[3:4])


@pytest.mark.parametrize("layout_id", [*IDS, "state_f32"])
def test_results_share_no_memory_with_inputs(layout_id):
    layout = layout_of(layout_id)
    x = rows_of(layout, 2)
    record = layout.encode(x)
    before = record.clone()
    layout.decode(record).fill_(1)
    x.fill_(1)
    assert torch.equal(record, before)
    pages = layout.encode_pages(x.view(1, 2, -1))
    before = pages.clone()
    layout.decode_pages(pages, 2).fill_(2)
    assert torch.equal(pages, before)


@pytest.mark.parametrize("layout_id", [i for i in IDS if i not in ("fp8_row", "f32_row", "index_f32")])
def test_fp32_rows_are_rounded_to_bf16_first(layout_id):
    layout = get_layout(layout_id)
    x = torch.randn(50, layout.values, generator=torch.Generator().manual_seed(3)) * 3
    assert torch.equal(layout.encode(x), layout.encode(x.bfloat16()))


@pytest.mark.parametrize("layout_id", ["f32_row", "index_f32"])
def test_fp32_layouts_do_not_round(layout_id):
    layout = get_layout(layout_id)
    x = torch.randn(5, layout.values)
    assert torch.equal(layout.decode(layout.encode(x)), x)
    assert torch.equal(layout.encode(x), x.view(torch.uint8))


@pytest.mark.parametrize("layout_id", [*IDS, "state_f32"])
def test_a_page_never_holds_what_is_not_finite(layout_id):
    layout = layout_of(layout_id)
    x = torch.zeros(3, layout.values)
    x[:, 0] = torch.tensor([float("nan"), float("inf"), 3.4e38])
    x[:, -1] = torch.tensor([float("nan"), -float("inf"), -3.4e38])
    assert torch.isfinite(layout.decode(layout.encode(x))).all()
    assert torch.isfinite(layout.decode(layout.encode(torch.full_like(x, float("nan"))))).all()


@pytest.mark.parametrize("layout_id", IDS)
def test_a_zeroed_page_decodes_to_zeros(layout_id):
    layout = get_layout(layout_id)
    assert not layout.decode_pages(torch.zeros(2, layout.page_bytes(4), dtype=torch.uint8), 4).any()


def test_the_codec_does_not_rotate():
    plain, rotated = get_layout("index_mxfp4"), get_layout("index_mxfp4_hadamard")
    x = rows_of(plain)
    assert torch.equal(plain.encode(x), rotated.encode(x))
    assert (plain.rotate, rotated.rotate) == ("none", "hadamard")
    assert not torch.equal(plain.encode(hadamard128(x)), plain.encode(x))


def test_the_eighth_scale_byte_is_zero():
    record = get_layout("fp8_ds_mla").encode(torch.randn(9, 512) * 1e3)
    assert not record[:, 583].any()
    assert record[:, 576:583].all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(3, 511), r"encodes bf16 or f32 \[\.\.\., 512\], got float32 \[3, 511\]"),
        (torch.zeros(3, 512).double(), "got float64"),
        (torch.zeros(3, 512).half(), "got float16"),
        (torch.tensor(1.0), r"got float32 \[\]"),
    ],
)
def test_wrong_values_are_refused(values, message):
    with pytest.raises(LayoutError, match=message):
        get_layout("fp8_ds_mla").encode(values)


def test_wrong_records_and_pages_are_refused():
    layout = get_layout("fp8_ds_mla")
    with pytest.raises(LayoutError, match=r"decodes u8 \[\.\.\., 584\], got uint8 \[2, 576\]"):
        layout.decode(torch.zeros(2, 576, dtype=torch.uint8))
    with pytest.raises(LayoutError, match="got int32"):
        layout.decode(torch.zeros(2, 584, dtype=torch.int32))
    with pytest.raises(LayoutError, match=r"\[N, rows, 512\], got float32 \[4, 512\]"):
        layout.encode_pages(torch.zeros(4, 512))


def test_fp8_row_rounds_once_from_f32_and_saturates():
    layout = get_layout("fp8_row")
    x = torch.zeros(512)
    # 1.0625 is the tie of 1 and 1.125: bf16 first would lose what lies above it.
    x[:6] = torch.tensor([1.0625 + 2.0**-12, 1e6, -1e6, float("inf"), float("nan"), 2.0**-9])
    codes = layout.encode(x)
    assert codes[:6].tolist() == [0x39, 0x7E, 0xFE, 0x7E, 0x00, 0x01]
    assert int(layout.encode(x.bfloat16())[0]) == 0x38
    assert layout.decode(codes)[:2].tolist() == [1.125, 448.0]


def test_index_fp8_variants_share_codes_and_exponent():
    plain, packed = get_layout("index_fp8"), get_layout("index_fp8_ue8m0x4")
    x = rows_of(plain, 200)
    a, b = plain.encode(x), packed.encode(x)
    assert torch.equal(a[:, :128], b[:, :128])
    assert (b[:, 128:] == b[:, 128:129]).all()
    assert torch.equal(a[:, 128:].contiguous().view(torch.int32).squeeze(1) >> 23, b[:, 128].int())
    assert torch.equal(plain.decode(a), packed.decode(b))


def test_plain_scale_over_every_bf16_amax():
    bits = torch.arange(0x7F80, dtype=torch.int32)
    x = torch.zeros(bits.numel(), 128)
    x[:, 5] = (bits << 16).view(torch.float32)
    record = get_layout("index_fp8_hadamard_f32").encode(x)
    amax = np.maximum(x[:, 5].numpy(), np.float32(1e-4))
    want = (amax.astype(np.float64) / 448).astype(np.float32)  # double then float rounds a quotient correctly
    assert np.array_equal(record[:, 128:].numpy().copy().view("<f4")[:, 0], want)
    assert (record[amax > np.float32(1e-4), 5] == 0x7E).all()


def test_factors_multiply_to_what_decode_gives():
    for layout_id in IDS:
        layout = get_layout(layout_id)
        record = layout.encode(rows_of(layout, 20).bfloat16())
        values, factor = layout.factors(record)
        assert (factor is not None) == (layout_id == "index_fp8_hadamard_f32")
        assert torch.equal(values if factor is None else values * factor[:, None], layout.decode(record))
