"""Put CuTeDSL's kernels in front of Triton's, for the forms that measured faster, after one has run."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType

import torch

from dsv4core.errors import BackendUnavailableError
from dsv4core.ops import OpImpl
from dsv4core.probe import describe
from dsv4core_cuda.cutedsl._build import Program
from dsv4core_cuda.cutedsl._measured import faster, rows
from dsv4core_cuda.cutedsl._probe import ARCHITECTURES, reason_against

OPS = (
    "compress_norm_rope_store",
    "dequantize_and_gather_k_cache",
    "fused_indexer_q_rope_quant",
    "fused_qnorm_rope_kv_insert",
    "sparse_indexer",
)
"""Ops with a launcher here, in a module of the same name."""

CHOICES = ("auto", "cutedsl", "triton")
CHECK = Program("check", "qff", (), 32)


def launchers() -> dict[str, ModuleType]:
    """Op -> its module: `programs(arch)` by form, and `bind(fallback, forms, arch)`."""
    return {op: import_module(f"dsv4core_cuda.cutedsl.{op}") for op in OPS}


def replaced(ops: Mapping[str, OpImpl], wanted: str, architecture: tuple[int, int]) -> dict[str, OpImpl]:
    """The ops that change. `wanted` (DSV4CORE_CUDA_KERNELS): auto, cutedsl for every form there is, triton.

    Raises BackendUnavailableError where cutedsl is asked for and cannot be had.
    """
    if wanted == "triton":
        return {}
    modules = launchers()
    arch = ARCHITECTURES.get(architecture, "")
    if wanted == "auto":
        chosen = faster(rows(arch))
    else:
        chosen = {op: dict.fromkeys(module.programs(arch), 0) for op, module in modules.items()}
    if not chosen:
        return {}
    reason = reason_against(architecture) or wrong()
    if reason and wanted == "cutedsl":
        raise BackendUnavailableError(f"backend cuda: DSV4CORE_CUDA_KERNELS=cutedsl, but {reason}")
    found: dict[str, OpImpl] = {}
    for op, forms in chosen.items():
        if not forms:
            continue
        if reason:
            found[op] = OpImpl(ops[op].function, f"{ops[op].provider} ({reason})")
        else:
            bound = modules[op].bind(ops[op].function, forms, arch)
            said = ", ".join(f"{form}{f' from {n} tokens' * (n > 1)}" for form, n in sorted(forms.items()))
            found[op] = OpImpl(bound, f"cutedsl ({said}), else {ops[op].provider}")
    return found


def wrong() -> str:
    """Run a kernel that rounds twice where a contraction would round once: "" or what is wrong."""
    device = torch.device("cuda", torch.cuda.current_device())
    x, y = (struct.unpack("f", struct.pack("f", value))[0] for value in (1.1, -1.21))
    out = torch.zeros(1, dtype=torch.float32, device=device)
    try:
        CHECK.on(device.index)((1, 1, 1), out.data_ptr(), x, y)
        found = out.item()
    except (Exception, SystemExit) as error:  # drivers and compilers of another age fail in their own ways
        return f"CuTeDSL does not run here: {describe(error)}"
    a, b = (torch.tensor(value, dtype=torch.float32, device="cpu") for value in (x, y))
    expected = a.square().add(b).item()
    return "" if found == expected else f"CuTeDSL computes {found} on this device, not {expected}"
