"""The CPU backend as data; its probe is the core's: torch is there, recent enough, and imports."""

from __future__ import annotations

from typing import Any

from dsv4core.hookspecs import hookimpl
from dsv4core.spec import BackendSpec, Requirement

SPEC = BackendSpec(
    name="cpu",
    device_type="cpu",
    priority=10,
    factory="dsv4core_cpu.backend:CpuBackend",
    requires=(Requirement("torch", version=">=2.8", hint='python -m pip install "torch>=2.8"'),),
    extra="cpu",
    features=frozenset({"batch_invariant_linear", "portable_bodies"}),
    layouts=(
        "fp8_ds_mla",
        "fp8_ds_mla_fnuz",
        "index_fp8",
        "index_fp8_ue8m0x4",
        "index_fp8_hadamard_f32",
        "index_mxfp4",
        "index_mxfp4_hadamard",
        "state_f32",
        "bf16_row",
        "fp8_row",
        "f32_row",
        "index_f32",
    ),
    settings=("native", "level", "cache", "cxxflags"),
)


@hookimpl
def dsv4core_backends() -> list[BackendSpec]:
    """Provide the backend ``cpu``."""
    return [SPEC]


@hookimpl
def dsv4core_linear_kernels(backend: Any) -> list[Any] | None:
    """Offer the native NVFP4 product, built or not."""
    if backend.name != SPEC.name:
        return None
    from dsv4core_cpu.linear import NativeLinear  # imports torch

    return [NativeLinear(backend.native)]
