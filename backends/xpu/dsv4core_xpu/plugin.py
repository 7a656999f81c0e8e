"""The XPU backend as data and a probe; this release recognises Intel devices and ships no ops for them.

Intel's extension for PyTorch is not looked at: stock torch drives the device, and importing the extension
next to another minor version of torch ends the process.
"""

from typing import Any

from dsv4core.hookspecs import hookimpl
from dsv4core.probe import counted, other_build, probe_device
from dsv4core.spec import Availability, BackendSpec, Depth, Requirement

HINT = "use the cpu backend: DSV4CORE_BACKEND=cpu"
TORCH_FIRST = (
    "install torch from the XPU index first: "
    "python -m pip install torch --index-url https://download.pytorch.org/whl/xpu"
)

SPEC = BackendSpec(
    name="xpu",
    device_type="xpu",
    priority=80,
    factory="",
    requires=(Requirement("torch", version=">=2.8", hint=TORCH_FIRST),),
    extra="xpu",
)


@hookimpl
def dsv4core_backends() -> list[BackendSpec]:
    """Provide the backend ``xpu``."""
    return [SPEC]


@hookimpl
def dsv4core_probe(spec: BackendSpec, depth: Depth) -> Availability | None:
    """Answer for ``xpu``: torch's build, then the number of devices, then whether there are ops."""
    return probe_device(spec, depth, _look, HINT) if spec.name == SPEC.name else None


def _look(torch: Any) -> Availability:
    count = torch.xpu.device_count()  # enumerates devices, makes no context
    build = getattr(torch.version, "xpu", None)
    kind = "a CUDA build" if torch.version.cuda else "a ROCm build" if torch.version.hip else ""
    if count == 0 and (kind or build is None):
        return other_build(torch, kind or "built without XPU", TORCH_FIRST)
    return counted(torch, count, ("XPU", str(build)), "check the driver with sycl-ls and ZE_AFFINITY_MASK")
