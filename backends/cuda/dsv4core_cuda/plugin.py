"""The CUDA backend as data and a probe; this release recognises NVIDIA devices and ships no ops for them."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsv4core.hookspecs import hookimpl
from dsv4core.probe import counted, other_build, probe_device
from dsv4core.spec import Availability, BackendSpec, Depth, Requirement

HINT = "use the cpu backend: DSV4CORE_BACKEND=cpu"
CONTROL = Path("/dev/nvidiactl")
DRIVER = Path("/proc/driver/nvidia/version")

SPEC = BackendSpec(
    name="cuda",
    device_type="cuda",
    priority=100,
    factory="",
    requires=(Requirement("torch", version=">=2.8", hint='python -m pip install "torch>=2.8"'),),
    extra="cuda",
)


@hookimpl
def dsv4core_backends() -> list[BackendSpec]:
    """Provide the backend ``cuda``."""
    return [SPEC]


@hookimpl
def dsv4core_probe(spec: BackendSpec, depth: Depth) -> Availability | None:
    """Answer for ``cuda``: torch's build, then the number of devices, then whether there are ops."""
    return probe_device(spec, depth, _look, HINT) if spec.name == SPEC.name else None


@hookimpl
def dsv4core_info(spec: BackendSpec) -> list[str] | None:
    """Show the version of the kernel driver, when one is loaded."""
    if spec.name != SPEC.name or not DRIVER.exists():
        return None
    return [DRIVER.read_text().splitlines()[0]]


@hookimpl
def dsv4core_linear_kernels(backend: Any) -> list[Any] | None:
    """Offer Triton's kernel and those of torch, DeepGEMM and FlashInfer, available or not."""
    if backend.name != SPEC.name:
        return None
    from dsv4core_cuda.linear import kernels  # imports torch

    return kernels()


def _look(torch: Any) -> Availability:
    build = torch.version.cuda
    driver = str(CONTROL) if CONTROL.exists() else ""
    if build is None:
        kind = "a ROCm build" if torch.version.hip else "built without CUDA"
        hint = "install a CUDA build of torch: https://pytorch.org/get-started/locally" if driver else ""
        return other_build(torch, kind, hint, driver)
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
