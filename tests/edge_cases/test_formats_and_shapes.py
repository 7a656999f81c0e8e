"""Edge cases 24-27: tiny rows, the fp8 dialect, padded heads, positions up to the last one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from harness import decode, ops, pages, prefill, relative, rig, values

from dsv4core import BatchPlan
from dsv4core.layout import get_layout
from dsv4core.numerics.tables import cos_sin
from dsv4core_conformance.reference.attention import attend
from dsv4core_conformance.reference.compressor import rms_norm
from dsv4core_conformance.reference.options import Yarn
from dsv4core_conformance.reference.pages import encode_pages
from dsv4core_conformance.reference.rope import inverse_frequencies, rotate

LAST = 2**20 - 1


@pytest.mark.parametrize("magnitude", [0.0, 1e-38, 1e-6, 1e-4, 0.02734375, 0.03])
def test_24_zero_and_tiny_rows(magnitude: float) -> None:
    row = torch.full((1, 512), magnitude).bfloat16()
    cache = pages(torch.ones(64, 512), "fp8_ds_mla")
    ops().quantize_and_insert_k_cache(row, cache, torch.tensor([3]), rows=64, layout="fp8_ds_mla")
    scales = cache[0, 64 * 576 + 3 * 8 : 64 * 576 + 4 * 8]
    # The floor is on the maximum (1e-4), not on the scale: byte 105 is 2^-22.
    byte = {0.0: 105, 1e-38: 105, 1e-6: 105, 1e-4: 105, 0.02734375: 113, 0.03: 114}[magnitude]
    assert scales.tolist() == [byte] * 7 + [0]
    read = get_layout("fp8_ds_mla").decode_pages(cache, 64)[0, 3]
    assert torch.isfinite(read.float()).all()
    assert (read.float() - row.float()).abs().max() <= max(magnitude / 16, 2.0**-32)


@pytest.mark.parametrize(("layout", "smallest"), [("index_fp8", 105), ("index_mxfp4", 1)])
def test_24_scale_floors_of_the_index_layouts(layout: str, smallest: int) -> None:
    page = get_layout(layout).encode_pages(torch.zeros(1, 64, 128))
    front = 64 * 128 if layout == "index_fp8" else 64 * 64
    scales = page[0, front : front + 256]
    exponents = scales.view(torch.float32).log2() + 127 if layout == "index_fp8" else scales
    assert exponents.unique().tolist() == [smallest]
    assert not get_layout(layout).decode_pages(page, 64).any()


@pytest.mark.parametrize("kind", ["swa", "csa", "hca"])
def test_24_a_layer_fed_with_zeros(kind: str) -> None:
    layer = rig(kind, "vllm")
    for scale in (0.0, 1e-30):
        hidden = layer.hidden(140) * scale
        cache = layer.cache()
        out = layer.run(hidden, [131, 1, 8], cache)
        assert torch.isfinite(out.float()).all()
        assert torch.isfinite(layer.rows(cache, "swa").float()).all()


def test_25_bytes_are_ocp_unless_the_layout_says_otherwise() -> None:
    row = torch.zeros(1, 1, 512)
    row[..., :8] = torch.tensor([448, -448, 240, -240, 0.0, -0.0, 1.0, 2.0**-9])
    page = get_layout("fp8_ds_mla").encode_pages(row)
    # Byte 0x80 is -0 here and NaN in FNUZ; 240 is 0x77 here and 0x7F in FNUZ.
    assert page[0, :8].tolist() == [0x7E, 0xFE, 0x77, 0xF7, 0x00, 0x80, 0x38, 0x01]
    assert page[0, 576] == 127
    assert np.array_equal(page.numpy(), encode_pages("fp8_ds_mla", row.numpy()))
    read = get_layout("fp8_ds_mla").decode_pages(page, 1)[0, 0]
    assert torch.equal(read.float(), row[0, 0])
    assert torch.signbit(read[5])
    cache = torch.zeros(1, 37440, dtype=torch.uint8)
    ops().quantize_and_insert_k_cache(
        row[0].bfloat16(), cache, torch.tensor([0]), rows=64, layout="fp8_ds_mla"
    )
    assert torch.equal(cache[0, :576], page[0, :576])


def test_26_padded_heads() -> None:
    heads, padded = 3, 16
    q, kv = (
        values(2, heads, 512, stream=61, dtype=torch.bfloat16),
        values(2, 512, stream=62, dtype=torch.bfloat16),
    )
    table = cos_sin(1e4, None, 64)
    arguments = {"rows": 64, "layout": "fp8_ds_mla", "eps": 1e-6}
    cache = torch.zeros(2, 37440, dtype=torch.uint8)
    positions, slots = torch.tensor([5, 6]), torch.tensor([5, 6])
    narrow = ops().fused_qnorm_rope_kv_insert(
        q, kv, positions, table, cache, slots, padded_heads=heads, **arguments
    )
    wide = ops().fused_qnorm_rope_kv_insert(
        q, kv, positions, table, cache, slots, padded_heads=padded, **arguments
    )
    assert wide.shape == (2, padded, 512)
    assert torch.equal(wide[:, :heads], narrow)
    assert not wide[:, heads:].any()
    sink = values(heads, stream=63)
    padded_sink = torch.cat([sink, torch.full((padded - heads,), -torch.inf)])
    lists, lens = torch.tensor([[5, 6], [6, -1]]), torch.tensor([2, 1])
    workspace = values(64, 512, stream=64, dtype=torch.bfloat16)
    for live, all_heads in (
        (
            decode(narrow, cache, lists, lens, sink, layout="fp8_ds_mla"),
            decode(wide, cache, lists, lens, padded_sink, layout="fp8_ds_mla"),
        ),
        (prefill(narrow, workspace, lists, lens, sink), prefill(wide, workspace, lists, lens, padded_sink)),
    ):
        assert relative(all_heads[0][:, :heads], live[0]) < 1e-6
        assert torch.allclose(all_heads[1][:, :heads], live[1], rtol=1e-6)
        assert torch.isfinite(all_heads[0].float()).all()


@pytest.mark.parametrize(("theta", "yarn"), [(1e4, None), (1.6e5, Yarn())])
def test_27_long_positions(theta: float, yarn: Yarn | None) -> None:
    positions = torch.tensor([0, 65_535, 65_536, 65_537, 1_000_000, LAST])
    table = cos_sin(theta, rig("csa").config.yarn if yarn else None, LAST + 1)
    q, kv = values(6, 2, 512, stream=65), values(6, 512, stream=66)
    cache = pages(torch.zeros(64, 512))
    rotated = ops().fused_qnorm_rope_kv_insert(
        q, kv, positions, table, cache, torch.arange(6), rows=64, layout="f32_row", eps=1e-6, padded_heads=2
    )
    frequencies = inverse_frequencies(theta, yarn)
    expected = rotate(kv.double().numpy(), positions.numpy(), frequencies)
    assert relative(get_layout("f32_row").decode_pages(cache, 64)[0, :6], expected) < 1e-6
    expected = rotate(rms_norm(q.double().numpy(), None, 1e-6), positions.numpy(), frequencies)
    assert relative(rotated, expected) < 1e-6
    back = ops().inverse_rope(rotated, positions, table)
    assert relative(back, rms_norm(q.double().numpy(), None, 1e-6)) < 1e-6


def test_27_an_entry_is_rotated_to_its_first_token() -> None:
    position = LAST  # completes the entry that starts three tokens earlier
    table = cos_sin(1.6e5, rig("csa").config.yarn, LAST + 1)
    state = torch.zeros(2, 4, 512)
    state[..., :256] = values(8, 256, stream=67).view(2, 4, 256)
    state[..., 256:] = values(8, 256, stream=68).view(2, 4, 256)
    target = torch.zeros(1, 64 * 512, dtype=torch.uint8)
    width = (position // 4) + 1
    blocks = torch.full((1, width), -1, dtype=torch.int32)
    blocks[0, -2:] = torch.tensor([0, 1])
    ops().compress_norm_rope_store(
        state,
        torch.tensor([position]),
        torch.zeros(1, dtype=torch.int32),
        torch.tensor([7]),
        blocks,
        table,
        torch.ones(128),
        target,
        torch.tensor([9]),
        ratio=4,
        head_dim=128,
        rows=64,
        layout="index_f32",
        eps=1e-6,
        rotate="none",
    )
    entry = get_layout("index_f32").decode_pages(target, 64)[0, 9]
    flat = state.view(8, 512).double().numpy()
    kv = np.concatenate([flat[:4, :128], flat[4:, 128:256]])
    score = np.concatenate([flat[:4, 256:384], flat[4:, 384:]])
    weights = np.exp(score - score.max(axis=0))
    pooled = (weights * kv).sum(axis=0) / weights.sum(axis=0)
    frequencies = inverse_frequencies(1.6e5, Yarn())
    expected = rotate(rms_norm(pooled, np.ones(128), 1e-6)[None], [position - 3], frequencies)[0]
    assert relative(entry, expected) < 1e-6
    assert (
        relative(entry, rotate(rms_norm(pooled, np.ones(128), 1e-6)[None], [position], frequencies)[0]) > 1e-2
    )


@pytest.mark.parametrize("profile", ["math", "vllm"])
def test_27_a_layer_at_the_last_position(profile: str) -> None:
    layer = rig("swa", profile)
    config, count = layer.config, 256
    start = LAST + 1 - count  # the newest token's window holds only tokens of this test
    hidden = layer.hidden(count)
    cache = layer.cache(count)
    (spec,) = layer.specs.values()
    table = torch.full((1, (LAST + 1) // spec.rows), -1, dtype=torch.int32)
    pages_used = -(-(count + 128) // spec.rows)
    table[0, -pages_used:] = torch.arange(pages_used, dtype=torch.int32).flip(0)
    outputs = []
    for first, size in ((0, 250), *((i, 1) for i in range(250, count))):
        plan = BatchPlan.build(
            config, query_lens=[size], seq_lens=[start + first + size], tables={spec.group: table}
        )
        outputs.append(layer.attention(hidden[first : first + size], cache, plan))
    weights = {name: tensor.double().numpy() for name, tensor in layer.weights.state_dict().items()}
    x, frequencies = hidden.double().numpy(), inverse_frequencies(1e4, None)
    positions = np.arange(start, LAST + 1)
    kv = rotate(rms_norm(x @ weights["wkv"].T, weights["kv_norm"], 1e-6), positions, frequencies)[-128:]
    qr = rms_norm(x[-1:] @ weights["wq_a"].T, weights["q_norm"], 1e-6)
    q = rotate(rms_norm((qr @ weights["wq_b"].T).reshape(1, -1, 512), None, 1e-6), [LAST], frequencies)
    o = rotate(attend(q[0], kv, weights["attn_sink"], 512**-0.5)[0][None], [LAST], frequencies, inverse=True)
    z = np.einsum("gi,goi->go", o.reshape(2, -1), weights["wo_a"].reshape(2, 16, -1))
    expected = z.reshape(-1) @ weights["wo_b"].T
    assert relative(outputs[-1][0], expected) < (2e-6 if profile == "math" else 6e-2)
