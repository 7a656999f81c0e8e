"""NVFP4 projections of V4-Flash on the CPU backend beside torch's product of the dequantised matrix in bf16.

python benchmarks/linear_cpu.py [--threads 1 2] [--tokens 1 8 64 512]: every product is first held against f64
of the same operands, then both take turns over copies of the matrix that no cache holds. Above 1 is faster.
"""

from __future__ import annotations

import argparse
from statistics import median
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv4core import get_backend
from dsv4core.linear import Linear, QuantisedWeight
from dsv4core.numerics import group_fp4

SHAPES = {
    "wq_a + wkv": (1536, 4096),
    "wq_b": (32768, 1024),
    "wo_b": (4096, 8192),
    "indexer.wq_b": (8192, 1024),
}
COLD = 256 << 20  # bytes of copies of the dequantised matrix
RUNS, SECONDS = 15, 1.5
BF16 = torch.bfloat16


def drawn(rows: int, inputs: int) -> QuantisedWeight:
    """Random codes and scales, the factor of a matrix with deviation 0.02."""
    codes = torch.randint(0, 256, (rows, inputs // 2), dtype=torch.uint8)
    scales = torch.rand(rows, inputs // group_fp4.NV_GROUP).add_(0.5).to(torch.float8_e4m3fn)
    return QuantisedWeight(codes, scales, torch.tensor([0.02 / 3]))


def compare(product: list[Linear], dense: list[Tensor], x: Tensor) -> tuple[float, float, float]:
    """Medians of both in seconds, and of the ratio, over pairs of runs."""
    times: list[tuple[float, float]] = []
    begin = perf_counter()
    for run in range(RUNS):
        ours, theirs = product[run % len(product)], dense[run % len(dense)]
        start = perf_counter()
        ours(x)
        middle = perf_counter()
        F.linear(x, theirs)
        times.append((middle - start, perf_counter() - middle))
        if perf_counter() - begin > SECONDS and run > 4:
            break
    return median(a for a, _ in times), median(b for _, b in times), median(b / a for a, b in times)


def main() -> None:
    """Print one line per shape and number of tokens."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parsed = parser.parse_args()
    torch.manual_seed(0)
    linears = get_backend("cpu").linears
    print("projection        shape          threads  T     native ms  torch ms   ratio  relative L2")
    for name, (rows, inputs) in SHAPES.items():
        weight = drawn(rows, inputs)
        count = max(2, COLD // (2 * rows * inputs))
        product = [linears.linear(weight, BF16) for _ in range(count)]  # each repacks its own
        kernel = product[0].choice.kernel.name
        assert kernel == "native", f"{kernel} was chosen: {product[0].choice.verdicts}"
        dense = [weight.dequantised(BF16) for _ in range(count)]
        for threads in parsed.threads:
            torch.set_num_threads(threads)
            for tokens in parsed.tokens:
                x = torch.randn(tokens, inputs).to(BF16)
                wanted = x[:8].double() @ weight.dequantised().double().T
                error = float((product[0](x)[:8].double() - wanted).norm() / wanted.norm())
                assert error < 4e-3, f"{name}, {tokens} tokens: relative L2 {error:.1e}"
                ours, theirs, ratio = compare(product, dense, x)
                print(
                    f"{name:17s} {[rows, inputs]!s:14s} {threads:7d}  {tokens:4d} {ours * 1e3:10.2f}"
                    f" {theirs * 1e3:9.2f} {ratio:6.2f}x  {error:.1e}", flush=True,
                )  # fmt: skip


if __name__ == "__main__":
    main()
