"""The ROCm backend as data and a probe; this release recognises AMD devices and ships no ops for them."""

from pathlib import Path
from typing import Any

from dsv4core.hookspecs import hookimpl
from dsv4core.probe import counted, other_build, probe_device
from dsv4core.spec import Availability, BackendSpec, Depth, Requirement

HINT = "use the cpu backend: DSV4CORE_BACKEND=cpu"
TORCH_FIRST = "install torch from AMD's or PyTorch's ROCm index first, then dsv4core"
CONTROL = Path("/dev/kfd")

SPEC = BackendSpec(
    name="rocm",
    device_type="cuda",  # torch's name for AMD devices too
    priority=90,
    factory="",
    requires=(Requirement("torch", version=">=2.8", hint=TORCH_FIRST),),
    extra="rocm",
)


@hookimpl
def dsv4core_backends() -> list[BackendSpec]:
    """Provide the backend ``rocm``."""
    return [SPEC]


@hookimpl
def dsv4core_probe(spec: BackendSpec, depth: Depth) -> Availability | None:
    """Answer for ``rocm``: torch's build, then the number of devices, then whether there are ops."""
    return probe_device(spec, depth, _look, HINT) if spec.name == SPEC.name else None


@hookimpl
def dsv4core_linear_kernels(backend: Any) -> list[Any] | None:
    """Offer the Triton kernel for stored weights."""
    if backend.name != SPEC.name:
        return None
    from dsv4core.linear.triton_kernel import TritonLinear  # imports torch

    return [TritonLinear()]


def _look(torch: Any) -> Availability:
    build = torch.version.hip
    driver = str(CONTROL) if CONTROL.exists() else ""
    if build is None:
        kind = "a CUDA build" if torch.version.cuda else "built without ROCm"
        return other_build(torch, kind, TORCH_FIRST, driver)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    hint = "check rocm-smi, HIP_VISIBLE_DEVICES and access to /dev/kfd" if driver else ""
    return counted(torch, count, ("ROCm", build), hint, driver)
