"""What a projection is called with: any strides, no tokens at all, and nothing of another type or place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dsv4core import LinearError, WeightsError, get_backend
from dsv4core.linear import LinearKernel, Linears, Problem, QuantisedWeight, activation
from dsv4core.numerics import block_fp8, group_fp4
from dsv4core.synthetic import hash_normal

BF16, F32, E4M3 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
KINDS = ("bf16", "ue8m0", "f32", "nvfp4", "mxfp4")


def stored(kind: str, rows: int = 128, inputs: int = 256) -> Tensor | QuantisedWeight:
    matrix = hash_normal((rows, inputs), 0, "w", 0.1)
    if kind == "bf16":
        return matrix.to(BF16)
    if kind in ("nvfp4", "mxfp4"):
        return QuantisedWeight(*(group_fp4.quantise_nv if kind == "nvfp4" else group_fp4.quantise_mx)(matrix))
    return QuantisedWeight(*block_fp8.quantise(matrix, kind))


class Strict(LinearKernel):
    """Reads rows at their stride and nothing else, as kernels do that are given addresses."""

    name, rank = "strict", 90

    def supports(self, problem: Problem):
        return True

    def apply(self, problem: Problem, prepared, x, x_scales):
        assert x.stride(-1) == 1 and (x_scales is None or x_scales.stride(-1) == 1)
        return x.new_zeros(x.shape[0], problem.rows, dtype=problem.out)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantise", [False, True])
def test_strides_change_nothing(kind: str, quantise: bool) -> None:
    x = hash_normal((9, 256), 0, "x", 1.0, dtype=BF16)
    linear = get_backend("cpu").linears.linear(stored(kind), BF16, quantise=quantise)
    want = linear(x)
    for other in (x.t().contiguous().t(), x.repeat_interleave(2, 1)[:, ::2], torch.cat((x, x), 1)[:, :256]):
        assert not other.is_contiguous() and torch.equal(linear(other), want)


def test_kernels_see_channels_side_by_side() -> None:
    linears = Linears(get_backend("cpu").ops, [Strict()])
    x = torch.ones(256, 5, dtype=BF16).t()
    assert linears.linear(stored("bf16"), BF16)(x).shape == (5, 128)
    codes = torch.ones(256, 2, 5, dtype=BF16).to(E4M3).permute(2, 1, 0)
    scales = torch.ones(2, 2, 5).permute(2, 1, 0)
    assert linears.linear(stored("ue8m0"), E4M3, out=BF16, groups=2)(codes, scales).shape == (5, 128)


def test_rows_that_lie_too_far_apart_on_a_device() -> None:
    """Libraries count in 32 bits there; a CPU's do not, and a copy would cost memory."""
    far = torch.empty_strided((3, 128), (1 << 30, 1), dtype=BF16, device="meta")
    assert activation.reachable(far).is_contiguous()
    for near in (far[:1], torch.empty_strided((3, 128), (256, 1), dtype=BF16, device="meta")):
        assert activation.reachable(near) is near
    transposed = torch.empty(1 << 17, 2, 1 << 14, dtype=BF16, device="meta").transpose(0, 1)
    assert activation.reachable(transposed).is_contiguous()
    here = torch.zeros(4, 8, dtype=BF16)[::2]
    assert activation.reachable(here) is here


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("out", [BF16, F32])
@pytest.mark.parametrize("quantise", [False, True])
def test_a_step_without_tokens(kind: str, out: torch.dtype, quantise: bool) -> None:
    linear = get_backend("cpu").linears.linear(stored(kind), BF16, out=out, quantise=quantise)
    got = linear(torch.zeros(0, 256, dtype=BF16))
    assert got.shape == (0, 128) and got.dtype == out


@pytest.mark.parametrize("kind", KINDS)
def test_groups_without_tokens(kind: str) -> None:
    linears = get_backend("cpu").linears
    weight = stored(kind, 128, 512)
    assert linears.linear(weight, BF16, groups=2)(torch.zeros(0, 2, 512, dtype=BF16)).shape == (0, 2, 64)
    codes = torch.zeros(0, 2, 512, dtype=BF16).to(E4M3)
    for scales in (torch.zeros(0, 2, 4), torch.zeros(0, 2, 1, dtype=torch.int32)):
        assert linears.linear(weight, E4M3, out=BF16, groups=2)(codes, scales).shape == (0, 2, 64)


@pytest.mark.parametrize("inputs", [128, 200])
def test_codes_of_no_activations(inputs: int) -> None:
    codes, scales = activation.quantise(torch.zeros(0, inputs))
    assert codes.shape == (0, inputs) and scales.shape == (0, -(-inputs // 128))
    assert activation.rounded(torch.zeros(0, inputs, dtype=BF16)).shape == (0, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_activations_of_another_type_or_place(kind: str) -> None:
    linear = get_backend("cpu").linears.linear(stored(kind), BF16)
    x = torch.zeros(2, 256)
    with pytest.raises(
        LinearError, match=r"multiplies torch.bfloat16 on cpu, x is torch.float32 on cpu; type"
    ):
        linear(x)
    with pytest.raises(LinearError, match=r"x is torch.bfloat16 on meta"):
        linear(x.to("meta", BF16))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("scales", "codes are on cpu, scales on meta, factor on cpu; one device has to hold them all"),
        ("global_scale", "codes are on cpu, scales on cpu, factor on meta"),
        ("weight", "codes are on meta, scales on cpu, factor on cpu"),
    ],
)
def test_parts_of_a_weight_on_two_devices(part: str, message: str) -> None:
    whole = stored("nvfp4")
    assert isinstance(whole, QuantisedWeight)
    parts = {name: getattr(whole, name) for name in ("weight", "scales", "global_scale")}
    with pytest.raises(WeightsError, match=message):
        QuantisedWeight(**{**parts, part: parts[part].to("meta")})
    assert whole.to("meta").scales.device.type == "meta"
