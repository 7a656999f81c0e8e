"""The CUDA backend as data and a probe: Triton kernels, and FlashMLA where it is installed and runs.

No library is imported here: what `flash_mla` can do is found out when the backend is created, on its device.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsv4core.hookspecs import hookimpl
from dsv4core.kernels.triton import LAYOUTS
from dsv4core.probe import counted, installed_version, other_build, probe_kernels
from dsv4core.spec import Availability, BackendSpec, Code, Depth, Requirement

TORCH_FIRST = "install a CUDA build of torch: https://pytorch.org/get-started/locally"
TRITON = "torch's CUDA wheels bring it: python -m pip install triton"
FLASHMLA = ("sgl-flash-mla", "tokenspeed-flashmla", "vllm")
CONTROL = Path("/dev/nvidiactl")
DRIVER = Path("/proc/driver/nvidia/version")

SPEC = BackendSpec(
    name="cuda",
    device_type="cuda",
    priority=100,
    factory="dsv4core_cuda.backend:CudaBackend",
    requires=(Requirement("torch", version=">=2.8", hint='python -m pip install "torch>=2.8"'),),
    extra="cuda",
    features=frozenset({"graph_capture"}),
    layouts=LAYOUTS,
    settings=("attention", "batch_invariant", "cache", "fuse_output", "kernels", "stream_tokens"),
)


@hookimpl
def dsv4core_backends() -> list[BackendSpec]:
    """Provide the backend ``cuda``."""
    return [SPEC]


@hookimpl
def dsv4core_probe(spec: BackendSpec, depth: Depth) -> Availability | None:
    """Answer for ``cuda``: the interpreter, or torch's build and the number of devices; then triton."""
    if spec.name != SPEC.name:
        return None
    return probe_kernels(spec, depth, _installed, _look, TRITON)


@hookimpl
def dsv4core_info(spec: BackendSpec) -> list[str] | None:
    """Show the kernel driver, when one is loaded, and what brings FlashMLA; nothing is imported."""
    if spec.name != SPEC.name:
        return None
    lines = DRIVER.read_text().splitlines()[:1] if DRIVER.exists() else []
    found = [f"{name} {version}" for name in FLASHMLA if (version := installed_version(name))]
    if found:
        lines.append(f"FlashMLA from: {', '.join(found)} (`info --ops` says whether it is used)")
    return lines


def _installed() -> Availability:
    """What the installed files say: builds for something else carry that in torch's version."""
    version = installed_version("torch") or ""
    local = version.partition("+")[2]
    if local.startswith(("cpu", "rocm", "xpu")):
        reason = f"torch {version} is not a CUDA build"
        return Availability.missing(Code.NO_DEVICE, reason, TORCH_FIRST)
    return Availability.available()


@hookimpl
def dsv4core_linear_kernels(backend: Any) -> list[Any] | None:
    """Offer Triton's kernel, our own and those of torch, DeepGEMM and FlashInfer, available or not."""
    if backend.name != SPEC.name:
        return None
    from dsv4core_cuda.linear import kernels  # imports torch

    return kernels()


def _look(torch: Any) -> Availability:
    build = torch.version.cuda
    driver = str(CONTROL) if CONTROL.exists() else ""
    if build is None:
        kind = "a ROCm build" if torch.version.hip else "built without CUDA"
        return other_build(torch, kind, TORCH_FIRST, driver)
    with _no_context():
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    hint = "check nvidia-smi and CUDA_VISIBLE_DEVICES" if driver else ""
    return counted(torch, count, ("CUDA", build), hint, driver)


@contextmanager
def _no_context() -> Generator[None]:
    """Count devices through NVML: the runtime's own count would break workers that are forked later."""
    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
