"""What `dsv4core info --linear` shows: for every kind of projection the chosen kernel and each refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dsv4core.config import AttentionConfig
from dsv4core.errors import LinearError
from dsv4core.linear.kernel import Problem, choose
from dsv4core.tensor_names import expected_shapes

if TYPE_CHECKING:
    from dsv4core.backend import Backend

BF16, F32, U8 = torch.bfloat16, torch.float32, torch.uint8
E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu
STORED = (("bf16", None), ("fp8_block", E8M0), ("fp8_block", F32), ("nvfp4", E4M3), ("mxfp4", E8M0))
LAYER = 2  # of V4-Flash: it has a compressor and an indexer


def problems(device: torch.device) -> list[tuple[str, Problem]]:
    """The projections of a V4-Flash layer that differ for a kernel, in every format."""
    config = AttentionConfig.preset("v4-flash")
    shapes = expected_shapes(config, LAYER)
    found: list[tuple[str, Problem]] = []
    for format, scales in STORED:
        for name, x, out, groups, quantise in (
            ("wq_b", BF16, BF16, 0, False),
            ("wq_b", BF16, BF16, 0, True),
            ("indexer.wq_b", BF16, BF16, 0, False),
            ("wo_a", BF16, BF16, config.o_groups, False),
            ("wo_a", E4M3, BF16, config.o_groups, False),
            ("compressor.wkv", BF16, F32, 0, False),
        ):
            if quantise and format != "fp8_block":
                continue
            rows, inputs = shapes[name]
            found.append((name, Problem(format, scales, rows, inputs, x, out, device, groups, quantise)))
    return found


def report(backend: Backend) -> list[dict[str, Any]]:
    """One entry per kind of projection: the kernel or None, and what every candidate said."""
    rows: list[dict[str, Any]] = []
    for name, problem in problems(torch.device(backend.device_type)):
        row: dict[str, Any] = {"projection": name, "problem": str(problem), "kernel": None}
        try:
            choice = choose(problem, backend.linears.kernels)
            row["kernel"] = choice.kernel.name
            row["refusals"] = {v.name: v.reason for v in choice.verdicts if v.reason}
        except LinearError as error:
            row["refusals"] = {"error": str(error)}
        rows.append(row)
    return rows
