"""e4m3 and e2m1 encoders against a search of the value table, over all bf16 inputs and many fp32 ones."""

import numpy as np
import pytest
import torch

from dsv4core.numerics import e2m1, e4m3, ue8m0


def e4m3_table() -> np.ndarray:
    """The 127 magnitudes of OCP e4m3fn, from the format's definition, as doubles."""
    magnitudes = [f / 8 * 2.0**-6 for f in range(8)]
    magnitudes += [(1 + f / 8) * 2.0 ** (e - 7) for e in range(1, 16) for f in range(8)]
    return np.array(magnitudes[:127])


E2M1_TABLE = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def nearest(table: np.ndarray, x: np.ndarray, sign: int) -> np.ndarray:
    """Index of the nearest magnitude, ties to the even index, saturating; `sign` added for negative bits."""
    value = np.minimum(np.abs(x.astype(np.float64)), table[-1])
    upper = np.clip(np.searchsorted(table, value), 1, len(table) - 1)
    lower = upper - 1
    below, above = value - table[lower], table[upper] - value
    even = np.where(upper % 2 == 0, upper, lower)
    code = np.where(below < above, lower, np.where(above < below, upper, even))
    return (code + np.where(np.signbit(x), sign, 0)).astype(np.uint8)


def finite_bf16() -> np.ndarray:
    bits = np.arange(65536, dtype=np.uint32)
    bits = bits[(bits & 0x7F80) != 0x7F80]
    return (bits << 16).view(np.float32)


def fp32_edges(table: np.ndarray) -> np.ndarray:
    """Every value and midpoint with fp32 neighbours; zeros, subnormals, huge numbers; random bits."""
    middles = (table[1:] + table[:-1]) / 2
    around = np.concatenate([table, middles, [table[-1] * 1.0625, table[-1] * 2]]).astype(np.float32)
    bits = around.view(np.int32)
    neighbours = np.concatenate([np.maximum(bits + d, 0) for d in (-2, -1, 0, 1, 2)]).astype(np.int32)
    rng = np.random.default_rng(0)
    wild = rng.integers(0, 0x7F800000, 200_000).astype(np.int32)
    near = (rng.standard_normal(200_000) * table[-1] / 2).astype(np.float32).view(np.int32) & 0x7FFFFFFF
    tiny = np.array([0, 1, 2, 0x007FFFFF, 0x00800000, 0x7F7FFFFF], dtype=np.int32)
    magnitude = np.concatenate([neighbours, wild, near, tiny]).view(np.float32)
    return np.concatenate([magnitude, -magnitude])


FORMATS = [(e4m3, e4m3_table(), 0x80), (e2m1, E2M1_TABLE, 8)]


@pytest.mark.parametrize(("codec", "table", "sign"), FORMATS, ids=["e4m3", "e2m1"])
@pytest.mark.parametrize("inputs", ["bf16", "fp32"])
def test_encoder_equals_table_search(codec, table, sign, inputs):
    x = finite_bf16() if inputs == "bf16" else fp32_edges(table)
    assert inputs == "fp32" or x.size == 65280
    got = codec.encode(torch.from_numpy(x)).numpy()
    want = nearest(table, x, sign)
    wrong = np.nonzero(got != want)[0]
    assert wrong.size == 0, [(float(x[i]), int(got[i]), int(want[i])) for i in wrong[:5]]


@pytest.mark.parametrize(("codec", "table", "sign"), FORMATS, ids=["e4m3", "e2m1"])
def test_decode_then_encode_is_the_identity(codec, table, sign):
    codes = np.array([c for c in range(2 * sign) if c % sign < len(table)], dtype=np.uint8)
    values = codec.decode(torch.from_numpy(codes))
    want = np.where(codes >= sign, -1.0, 1.0) * table[codes % sign]
    assert np.array_equal(values.numpy().astype(np.float64), want)
    assert np.array_equal(np.signbit(values.numpy()), codes >= sign)
    assert np.array_equal(codec.encode(values).numpy(), codes)


def test_e4m3_equals_the_torch_type():
    x = torch.from_numpy(np.concatenate([finite_bf16(), fp32_edges(e4m3_table())]))
    cast = x.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    assert torch.equal(e4m3.encode(x), cast)
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    values = every.view(torch.float8_e4m3fn).float()
    assert torch.equal(e4m3.decode(every).nan_to_num(777), values.nan_to_num(777))


def test_non_finite_inputs_saturate():
    x = torch.tensor([float("inf"), -float("inf"), float("nan")])
    assert e4m3.encode(x)[:2].tolist() == [0x7E, 0xFE]
    assert int(e4m3.encode(x)[2]) & 0x7F == 0x7E
    assert e2m1.encode(x)[:2].tolist() == [7, 15]
    assert int(e2m1.encode(x)[2]) & 7 == 7


def test_signed_zero_and_small_negatives_keep_their_sign():
    x = torch.tensor([0.0, -0.0, -1e-30, 1e-30])
    assert e4m3.encode(x).tolist() == [0, 0x80, 0x80, 0]
    assert e2m1.encode(x).tolist() == [0, 8, 8, 0]


def test_pack_puts_the_even_element_low():
    codes = torch.arange(16, dtype=torch.uint8).repeat(4).view(2, 32)
    packed = e2m1.pack(codes)
    assert packed.shape == (2, 16)
    assert packed[0, :3].tolist() == [0x10, 0x32, 0x54]
    assert torch.equal(e2m1.unpack(packed), codes)
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    assert torch.equal(e2m1.pack(e2m1.unpack(every)), every)


def test_strided_and_empty_inputs():
    x = torch.randn(6, 10)
    assert torch.equal(e4m3.encode(x[::2, 1:5]), e4m3.encode(x[::2, 1:5].contiguous()))
    assert e4m3.encode(torch.empty(0, 4)).shape == (0, 4)
    before = x.clone()
    e4m3.encode(x)
    assert torch.equal(x, before)


def fnuz_table() -> np.ndarray:
    """The magnitudes of codes 0x00..0x7f of e4m3 FNUZ, bias 8, from the format's definition."""
    return np.array(
        [f / 8 * 2.0**-7 for f in range(8)]
        + [(1 + f / 8) * 2.0 ** (e - 8) for e in range(1, 16) for f in range(8)]
    )


@pytest.mark.parametrize("inputs", ["bf16", "fp32"])
def test_fnuz_encoder_equals_table_search(inputs):
    writable = fnuz_table()[:127]  # writers saturate at 224, so 240 is never written
    assert (writable[-1], fnuz_table()[-1]) == (224, 240)
    x = finite_bf16() if inputs == "bf16" else fp32_edges(writable)
    assert inputs == "fp32" or x.size == 65280
    got = e4m3.encode_fnuz(torch.from_numpy(x)).numpy()
    want = nearest(writable, x, 0x80)
    want[want == 0x80] = 0
    wrong = np.nonzero(got != want)[0]
    assert wrong.size == 0, [(float(x[i]), int(got[i]), int(want[i])) for i in wrong[:5]]
    assert not (got == 0x80).any()


def test_fnuz_decode_equals_the_table_and_the_torch_type():
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    values = e4m3.decode_fnuz(every)
    assert np.array_equal(values[:128].double().numpy(), fnuz_table())
    assert np.array_equal(values[129:].double().numpy(), -fnuz_table()[1:])
    assert values[128].isnan()
    assert torch.equal(values.nan_to_num(777), every.view(torch.float8_e4m3fnuz).float().nan_to_num(777))
    legal = every[(every != 0x80) & ((every & 0x7F) != 0x7F)]
    assert torch.equal(e4m3.encode_fnuz(e4m3.decode_fnuz(legal)), legal)


def test_fnuz_has_one_zero_and_saturates():
    x = torch.tensor([0.0, -0.0, -1e-30, -(2.0**-11), float("inf"), -float("inf"), 225.0, -240.0])
    assert e4m3.encode_fnuz(x).tolist() == [0, 0, 0, 0, 0x7E, 0xFE, 0x7E, 0xFE]
    assert int(e4m3.encode_fnuz(torch.tensor(float("nan")))) & 0x7F == 0x7E


def test_fnuz_scale_over_every_bf16_amax():
    amax = finite_bf16()
    amax = np.maximum(amax[amax >= 0], np.float32(ue8m0.FLOOR_E4M3))
    exponent = ue8m0.exponent_e4m3_fnuz(torch.from_numpy(amax)).numpy()
    wide = amax.astype(np.float64)
    assert (wide <= 224 * np.exp2(exponent.astype(np.float64))).all()
    assert (wide > 224 * np.exp2(exponent.astype(np.float64) - 1)).all(), "the smallest such E"
    assert exponent.min() + 127 == 106
    # One larger than OCP's everywhere: that is why the two layouts convert without loss.
    assert np.array_equal(exponent, ue8m0.exponent_e4m3(torch.from_numpy(amax)).numpy() + 1)
