"""The XPU backend as data and a probe; this release recognises Intel devices and ships no ops for them.

Intel's extension for PyTorch is not looked at: stock torch drives the device, and importing the extension
next to another minor version of torch ends the process.
"""

from typing import Any

from dsv4core.hookspecs import hookimpl
from dsv4core.probe import AVAILABLE, import_torch, unmet, with_ops
from dsv4core.spec import Availability, BackendSpec, Code, Depth, Requirement

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
    if spec.name != SPEC.name:
        return None
    answer = unmet(spec)
    if answer is not None:
        return answer
    if depth == "static":
        return with_ops(spec, AVAILABLE, HINT)
    torch = import_torch()
    return torch if isinstance(torch, Availability) else with_ops(spec, _look(torch), HINT)


def _look(torch: Any) -> Availability:
    count = torch.xpu.device_count()  # enumerates devices, makes no context
    if count == 0:
        kind = "a CUDA build" if torch.version.cuda else "a ROCm build" if torch.version.hip else ""
        if kind or getattr(torch.version, "xpu", None) is None:
            reason = f"torch {torch.__version__} is {kind or 'built without XPU'}"
            return Availability.missing(Code.NO_DEVICE, reason, TORCH_FIRST)
        reason = f"torch {torch.__version__} (XPU {torch.version.xpu}) sees no device"
        return Availability.missing(
            Code.NO_DEVICE, reason, "check the driver with sycl-ls and ZE_AFFINITY_MASK"
        )
    devices = f"{count} XPU device{'s' if count > 1 else ''}"
    saw = f"torch {torch.__version__} sees {devices}"
    return Availability.available(saw, devices)
