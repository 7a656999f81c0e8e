"""The ROCm backend as data and a probe: Triton kernels and, where it is installed, aiter on AMD devices.

torch calls AMD devices "cuda" too; `torch.version.hip` is what tells them apart. aiter is looked at by its
metadata only: importing it without ROCm fails, and with ROCm it starts to compile.
"""

from pathlib import Path
from typing import Any

from dsv4core.hookspecs import hookimpl
from dsv4core.kernels.triton import LAYOUTS
from dsv4core.probe import counted, installed_version, other_build, probe_kernels
from dsv4core.spec import Availability, BackendSpec, Code, Depth, Requirement

TORCH_FIRST = (
    "install torch from the ROCm index first: "
    "python -m pip install torch --index-url https://download.pytorch.org/whl/rocm6.4"
)
TRITON = "torch's ROCm wheels bring triton-rocm; on a CPU: python -m pip install triton"
AITER = ("amd-aiter", "aiter")
CONTROL = Path("/dev/kfd")

SPEC = BackendSpec(
    name="rocm",
    device_type="cuda",  # torch's name for AMD devices too
    priority=90,
    factory="dsv4core_rocm.backend:RocmBackend",
    requires=(Requirement("torch", version=">=2.8", hint=TORCH_FIRST),),
    extra="rocm",
    features=frozenset({"graph_capture"}),
    layouts=LAYOUTS,
    settings=("aiter", "gfx"),
)


@hookimpl
def dsv4core_backends() -> list[BackendSpec]:
    """Provide the backend ``rocm``."""
    return [SPEC]


@hookimpl
def dsv4core_probe(spec: BackendSpec, depth: Depth) -> Availability | None:
    """Answer for ``rocm``: the interpreter, or torch's build and the number of devices; then triton."""
    if spec.name != SPEC.name:
        return None
    return probe_kernels(spec, depth, _installed, _look, TRITON)


@hookimpl
def dsv4core_info(spec: BackendSpec) -> list[str] | None:
    """Show the driver, every device with wavefront and fp8 dialect, and aiter's version; imports nothing."""
    if spec.name != SPEC.name:
        return None
    from dsv4core_rocm import gfx  # a table, which discovery need not build

    lines = [f"amdgpu {version}"] if (version := gfx.driver()) else []
    lines += [
        f"{device.name} ({device.products}): wavefront {device.wavefront}, fp8 {device.fp8}"
        for device in gfx.installed()
    ]
    found = aiter_versions()
    if found:
        lines.append(f"aiter from: {', '.join(found)} (`info --ops` says where it is used)")
    return lines


def aiter_versions() -> list[str]:
    """Distributions that bring aiter, with their versions, from metadata alone."""
    return [f"{name} {version}" for name in AITER if (version := installed_version(name))]


def _installed() -> Availability:
    """What the installed files say: a ROCm build of torch carries that in its version."""
    version = installed_version("torch") or ""
    if "+rocm" in version or "+" not in version:  # AMD's own wheels and source builds may carry nothing
        return Availability.available()
    return Availability.missing(Code.NO_DEVICE, f"torch {version} is not a ROCm build", TORCH_FIRST)


@hookimpl
def dsv4core_linear_kernels(backend: Any) -> list[Any] | None:
    """Offer the Triton kernel for stored weights."""
    if backend.name != SPEC.name:
        return None
    from dsv4core.linear.triton_kernel import TritonLinear  # imports torch

    return [TritonLinear()]


def _look(torch: Any) -> Availability:
    build = torch.version.hip
    control = str(CONTROL) if CONTROL.exists() else ""
    if build is None:
        kind = "a CUDA build" if torch.version.cuda else "built without ROCm"
        return other_build(torch, kind, TORCH_FIRST, control)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    hint = "check rocm-smi, HIP_VISIBLE_DEVICES and access to /dev/kfd" if control else ""
    found = counted(torch, count, ("ROCm", build), hint, control)
    return Availability.available(found.reason + _architectures(), found.device) if found.ok else found


def _architectures() -> str:
    from dsv4core_rocm import gfx

    text = ", ".join(dict.fromkeys(device.name for device in gfx.installed()))
    return f" ({text})" if text else ""
