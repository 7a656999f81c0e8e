"""fp8 projections of V4-Flash beside bf16 cuBLAS on a CUDA device.

python benchmarks/linear_h100.py [--tokens 1 8 64 4096] [--shapes wq_b 4096x2048]: every product is first held
against float32 of the same operands, then timed inside a CUDA graph over as many copies of the weight as four
times the L2 cache holds, ways taking turns. `times bf16` is the median over the turns; above 1 is faster than
bf16. fp8 activations: with the kernel that quantises them. DSV4CORE_CUDA_KERNELS=cutedsl times `few_tokens`
for shapes that it is not chosen for, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv4core.bench.timing import alternate, in_turn, timer
from dsv4core.linear import Linear, LinearKernel, Problem, QuantisedWeight, activation
from dsv4core.linear.kernel import Choice
from dsv4core.numerics import block_fp8
from dsv4core_cuda.linear import kernels

SHAPES = {  # name -> outputs, inputs, groups
    "wq_a + wkv": (1536, 4096, 0), "wq_b": (32768, 1024, 0), "wo_a": (8192, 4096, 8), "wo_b": (4096, 8192, 0),
    "indexer.wq_b": (8192, 1024, 0),
}  # fmt: skip
COLD = 210_000_000  # bytes: four times the cache of an H100
DEVICE = "cuda"
BASE = "bf16 cuBLAS"
BF16 = torch.bfloat16
BOUND = 4e-3  # against the operands as they are multiplied
Call = Callable[[], Tensor]


def copies(weight: QuantisedWeight, tokens: int) -> list[QuantisedWeight]:
    """The same weight in other places, so that no call finds it in the cache."""
    count = 2 if tokens > 1024 else max(2, -(-COLD // weight.nbytes))
    parts = weight.weight, weight.scales
    return [
        QuantisedWeight(*(part.view(torch.uint8).clone().view(part.dtype) for part in parts))
        for _ in range(count)
    ]


def plain(x: Tensor, matrix: Tensor, groups: int) -> Tensor:
    """bf16 (or f32) through cuBLAS. Shapes: x [T, in] or [T, G, in] -> [T, rows]."""
    if not groups:
        return F.linear(x, matrix)
    return torch.bmm(x.transpose(0, 1), matrix.view(groups, -1, x.shape[2]).mT)


def candidate(kernel: LinearKernel, weight: QuantisedWeight, groups: int, quantise: bool) -> Linear | str:
    """The projection by one kernel, or why not; activations of groups come quantised from an op before."""
    x = torch.float8_e4m3fn if groups and quantise else BF16
    problem = Problem.of(weight, x, BF16, groups=groups, quantise=quantise and not groups)
    answer = kernel.supports(problem)
    if answer is not True:
        return answer
    return Linear(problem, Choice(kernel, ()), kernel.prepare(weight, problem))


def measure(name: str, tokens: int, rounds: int) -> None:
    """One shape: bf16, every kernel with bf16 and with fp8 activations, in turns."""
    rows, inputs, groups = SHAPES.get(name) or (*map(int, name.split("x")), 0)
    codes, scales = block_fp8.quantise(torch.randn(rows, inputs, device=DEVICE) * inputs**-0.5, "ue8m0")
    weight = QuantisedWeight(codes, scales)
    matrix = weight.dequantised(BF16)
    x = torch.randn(tokens, *([groups] if groups else []), inputs, device=DEVICE).to(BF16)
    places = 2 if tokens > 1024 else max(2, -(-COLD // matrix.nbytes))
    calls: dict[str, list[Call]] = {BASE: [partial(plain, x, matrix.clone(), groups) for _ in range(places)]}
    errors: dict[str, float] = {}
    for quantise in (False, True):
        meant = activation.rounded(x.flatten(0, -2)).view(x.shape) if quantise else x
        exact = plain(meant.float(), matrix.float(), groups)
        exact = exact.transpose(0, 1).flatten(1) if groups else exact
        given = (x,)
        if groups and quantise:
            codes, factors = activation.quantise(x.flatten(0, -2))
            given = (codes.view(x.shape), factors.view(tokens, groups, -1))
        for kernel in kernels():
            made = [candidate(kernel, w, groups, quantise) for w in copies(weight, tokens)]
            linears = [found for found in made if isinstance(found, Linear)]
            if linears:
                way = f"{kernel.name} with {'fp8' if quantise else 'bf16'} activations"
                errors[way] = float((linears[0](*given).flatten(1).float() - exact).norm() / exact.norm())
                calls[way] = [partial(linear, *given) for linear in linears]
    graphs = dict.fromkeys(calls, timer("graph", DEVICE))
    most = max(map(len, calls.values()))
    found = alternate({way: in_turn(c) for way, c in calls.items()}, graphs, rounds, least=most)
    for way, series in found.items():
        error = errors.get(way, 0.0)
        print(
            f"{name},{tokens},{way},{1e6 * series.spread.median:.1f},{found[BASE].over(series).median:.2f},"
            f"{error:.1e}{'' if error <= BOUND else ',TOO LARGE'}",
            flush=True,
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 64, 4096])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="names, or outputs x inputs")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.manual_seed(0)
    print(f"# {torch.cuda.get_device_name()}, torch {torch.__version__}, {' '.join(sys.argv)}")
    print("projection,tokens,way,us,times bf16,error", flush=True)
    for name in args.shapes:
        for tokens in args.tokens:
            measure(name, tokens, args.rounds)


if __name__ == "__main__":
    main()
