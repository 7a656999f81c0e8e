"""RoPE tables: the pinned words and hashes of CA1 rule 6, and growth that changes no bit."""

import hashlib

import numpy as np
import pytest
import torch

from dsv4core.config import YarnConfig
from dsv4core.numerics import tables

MAIN = """3f800000 3f3ff911 3f0ff59a 3ed7e89b 3ea1e89b 3e72d423 3e361887 3e088d77
3dcccccd 3d99940d 3d6655c2 3d2cba15 3d0186e3 3cc2434f 3c91ad39 3c5a7bf2
3c23d70a 3bf5b9b0 3bb8449c 3b8a2e77 3b4f3e38 3b1b690d 3ae91528 3aaec98e
3a83126f 3a44948c 3a136a16 39dd1725 39a5cb60 3978a815 393a7753 390bd472"""
COMPRESS = """3f800000 3f300a3a 3ef21c1f 3ea67d01 3e64f92e 3e1d7475 3dd88cb4 3d94e963
3d4ccccd 3d0cd4fb 3cc1b019 3c8530ce 3c372dbf 3bfbed88 3bad3d5e 3b6e4237
3b147ae1 3ab714e0 3a5ebdb6 3a0530ce 399bb3af 39305978 38be904d 383e9b5f
37a3d70c 36b443d0 3677eba6 362a7be8 35ea77ff 35a13bdc 355dbf30 35187c4d"""
MAIN_SHA256 = "d9b35d9b3516346a8f01e2bd50bad8de28cd08e11992adf8c3948ec17851d337"
COMPRESS_SHA256 = "28f837a34c4b35adaf811ce2f9ca55146deb4ab31678aee3d9fbccd20fb65c47"
KINDS = {
    "main": (10000.0, None, MAIN, MAIN_SHA256),
    "compress": (160000.0, YarnConfig(), COMPRESS, COMPRESS_SHA256),
}


@pytest.fixture(autouse=True)
def fresh_tables(monkeypatch):
    monkeypatch.setattr(tables, "_tables", {})


@pytest.mark.parametrize("kind", KINDS)
def test_inv_freq_words(kind):
    theta, yarn, words, _ = KINDS[kind]
    got = tables.inv_freq(theta, yarn)
    assert got.dtype == torch.float32
    assert [f"{w:08x}" for w in got.numpy().view(np.uint32)] == words.split()


@pytest.mark.parametrize("kind", KINDS)
def test_sha256_of_the_first_65536_rows(kind):
    theta, yarn, _, digest = KINDS[kind]
    table = tables.cos_sin(theta, yarn, 65536)
    assert table.shape == (65536, 64)
    assert hashlib.sha256(table.numpy().tobytes()).hexdigest() == digest


def test_growth_keeps_bits_and_is_shared():
    yarn = YarnConfig()
    small = tables.cos_sin(160000.0, yarn, 10).clone()
    assert small.shape == (10, 64)
    grown = tables.cos_sin(160000.0, yarn, 5000)
    assert torch.equal(grown[:10], small)
    assert tables.cos_sin(160000.0, YarnConfig(), 4000).data_ptr() == grown.data_ptr()
    at_once = tables._rows(tables.inv_freq(160000.0, yarn), 0, 5000)
    assert torch.equal(grown, at_once)
    assert tables.cos_sin(10000.0, None, 0).shape == (0, 64)


def test_layers_share_one_table_on_a_device():
    """A table of its own for each of 43 layers would be 10.75 GiB at a million positions."""
    yarn = YarnConfig()
    first = tables.cos_sin(160000.0, yarn, 5000, "meta")
    assert first.is_meta and first.shape == (5000, 64) and first.dtype == torch.float32
    assert tables.cos_sin(160000.0, YarnConfig(), 3, torch.device("meta"))._base is first._base
    assert tables.cos_sin(160000.0, yarn, 5000)._base is not first._base
    assert tables.cos_sin(160000.0, yarn, 9000, "meta").shape == (9000, 64)
    assert tables.cos_sin(10000.0, None, 5000, "meta")._base is not first._base


def test_angle_is_an_fp32_product_far_out():
    position = 1_000_003
    frequencies = tables.inv_freq(160000.0, YarnConfig()).numpy()
    angle = np.float32(position) * frequencies
    want = np.concatenate([np.cos(angle.astype(np.float64)), np.sin(angle.astype(np.float64))])
    got = tables._rows(torch.from_numpy(frequencies), position, position + 1)[0]
    assert np.array_equal(got.numpy(), want.astype(np.float32))


def test_yarn_with_a_degenerate_ramp_stays_finite():
    same = YarnConfig(beta_fast=32.0, beta_slow=31.9, original_max_position_embeddings=64)
    assert torch.isfinite(tables.inv_freq(10000.0, same)).all()
    plain = tables.inv_freq(10000.0, YarnConfig(factor=1.0))
    assert torch.allclose(plain, tables.inv_freq(10000.0, None), rtol=2e-7)
