"""The source of the CuTeDSL product of few tokens on the host; imported in a process of its own."""

from __future__ import annotations

import host_cutlass
import numpy as np
import torch
from host_device import Device, Fault
from host_launch import launch, launched
from host_numbers import Int32, Int64

from dsv4core_cuda.cutedsl.few_tokens import ROWS, SEGMENT, WIDTHS, program

host_cutlass.install()


def differing(tokens: int, blocks: int, byte: bool, seed: int) -> str:
    """What is wrong with a product whose sums are exact, by two clusters of so many blocks: "" or text."""
    from dsv4core_cuda.cutedsl.kernels.few_tokens import kernel

    rng = np.random.default_rng(seed)
    outputs, inputs = 2 * ROWS, SEGMENT * blocks
    codes = rng.integers(0, 256, (outputs, inputs), np.uint8)
    codes[codes & 127 == 127] = 0
    x = torch.from_numpy(rng.integers(-8, 9, (tokens, inputs + 8))).bfloat16()
    scales = rng.integers(120, 125, (outputs // 128, inputs // 128), np.uint8)
    factors = np.exp2(scales.astype(np.float32) - 127)
    out = np.full((tokens, outputs), 0x7FC1, np.uint16)
    launched.device = device = Device(seed)
    arrays = x.view(torch.int16).numpy(), codes, scales if byte else factors, out
    addresses = [Int64(device.memory.add(np.ascontiguousarray(a))) for a in arrays]
    numbers = [Int32(n) for n in (tokens, inputs, outputs)]
    given = [*addresses, Int64(2 * x.stride(0)), *numbers]
    form = program(next(width for width in WIDTHS if tokens <= width), blocks, byte)
    try:
        launch(kernel, (blocks, 2, 1), form.threads, form.shared, [*given, *form.constants])
    except Fault as fault:
        return f"fault: {fault}"
    w = torch.from_numpy(codes).view(torch.float8_e4m3fn).double().numpy()
    w = w * factors.repeat(128, 0).repeat(128, 1)
    exact = torch.from_numpy(x[:, :inputs].double().numpy() @ w.T)
    found = torch.from_numpy(out.view(np.int16)).view(torch.bfloat16).double()
    wrong = ((found - exact).abs() > exact.abs() * 2**-8 + 1e-3).sum()
    return f"{int(wrong)} of {found.numel()} differ" if wrong else ""
