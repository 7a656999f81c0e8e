"""What stored weights and fp8 activations cost the projections of a V4-Flash layer, as relative L2.

python benchmarks/linear_errors.py [--tokens 64]: random weights with the statistics of the release, normal
activations, on the CPU backend. Every column is the distance of a product from the float64 product of the
operands named in its head.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from dsv4core import AttentionConfig, AttentionWeights, get_backend
from dsv4core.linear import QuantisedWeight
from dsv4core.numerics import block_fp8, group_fp4
from dsv4core.synthetic import hash_normal
from dsv4core.tensor_names import QUANTISABLE, RELEASED

LAYER = 2
BF16 = torch.bfloat16


def off(got: Tensor, want: Tensor) -> float:
    """Relative L2 distance."""
    return float((got.double() - want).norm() / want.norm())


def rows_of(name: str, weight: Tensor, tokens: int) -> list[float]:
    """One line of the table."""
    linears, x = get_backend("cpu").linears, hash_normal((tokens, weight.shape[1]), 1, name, 1.0, dtype=BF16)
    fp8 = QuantisedWeight(*block_fp8.quantise(weight, "ue8m0"))
    stored, plain = x.double() @ fp8.dequantised().double().T, x.double() @ weight.double().T
    found = [
        off(linears.linear(fp8, BF16)(x), stored),
        off(linears.linear(fp8.dequantised(BF16), BF16)(x), stored),
        off(linears.linear(fp8, BF16, quantise=True)(x), stored),
    ]
    four = (QuantisedWeight(*group_fp4.quantise_nv(weight)), QuantisedWeight(*group_fp4.quantise_mx(weight)))
    return found + [off(linears.linear(w, BF16)(x), plain) for w in (fp8, *four)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=64)
    tokens = parser.parse_args().tokens
    weights = AttentionWeights.random(AttentionConfig.preset("v4-flash"), LAYER).state_dict()
    heads = ("projection", "fp8", "the same, dense", "fp8 activations", "storing fp8", "nvfp4", "mxfp4")
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for name in QUANTISABLE:
        cells = " | ".join(f"{value:.1e}" for value in rows_of(name, weights[name], tokens))
        print(f"| `{name}`{'' if name in RELEASED else ' (bf16 in releases)'} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
