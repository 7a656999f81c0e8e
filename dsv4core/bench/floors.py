"""What the device itself can do, measured in the same run: the least time that an op can take."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dsv4core.bench.timing import Timer

COPY_BYTES = 256 << 20
SIDE = {"cpu": 1024}  # of the square product; large enough to reach the rate, small enough not to wait
SIDE_ELSEWHERE = 8192


@dataclass(frozen=True)
class Floors:
    """Bytes per second of a copy, read and written counted, and operations per second of a bf16 product."""

    copy: float
    gemm: float

    def seconds(self, size: float, flops: float) -> float:
        """The least time for that many bytes and operations, whichever is longer."""
        return max(size / self.copy, flops / self.gemm)


def measure(device: str, timer: Timer, runs: int = 25) -> Floors:
    """The best of some runs of torch's own copy and matrix product."""
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    n = SIDE.get(device, SIDE_ELSEWHERE)
    x = torch.randn(n, n, dtype=torch.bfloat16, device=device)
    y = torch.randn_like(x)

    def copy() -> None:
        target.copy_(source)

    def product() -> None:
        torch.nn.functional.linear(x, y)

    copied, multiplied = (min(timer(call, 1) for _ in range(runs)) for call in (copy, product))
    return Floors(2 * COPY_BYTES / copied, 2 * n**3 / multiplied)
