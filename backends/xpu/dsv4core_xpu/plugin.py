"""The XPU backend as data and a probe: Triton kernels on what stock torch calls an XPU.

Intel's extension for PyTorch is looked at by its metadata only: stock torch drives the device, and importing
the extension next to another minor version of torch ends the process.
"""

from dataclasses import replace
from typing import Any

from dsv4core import env
from dsv4core.hookspecs import hookimpl
from dsv4core.kernels.triton import LAYOUTS
from dsv4core.probe import counted, installed_version, other_build, probe_kernels
from dsv4core.spec import Availability, BackendSpec, Code, Depth, Requirement

TORCH_FIRST = (
    "install torch from the XPU index first: "
    "python -m pip install torch --index-url https://download.pytorch.org/whl/xpu"
)
TRITON = "torch's XPU wheels bring triton-xpu; on a CPU: python -m pip install triton"
IPEX = "intel_extension_for_pytorch"
VLLM = "vllm-xpu-kernels"

SPEC = BackendSpec(
    name="xpu",
    device_type="xpu",
    priority=80,
    factory="dsv4core_xpu.backend:XpuBackend",
    requires=(Requirement("torch", version=">=2.8", hint=TORCH_FIRST),),
    extra="xpu",
    features=frozenset({"graph_capture"}),
    layouts=LAYOUTS,
    settings=("device", "vllm_kernels"),
)


@hookimpl
def dsv4core_backends() -> list[BackendSpec]:
    """Provide the backend ``xpu``."""
    return [SPEC]


@hookimpl
def dsv4core_probe(spec: BackendSpec, depth: Depth) -> Availability | None:
    """Answer for ``xpu``: torch, the interpreter or a device, then triton, which is not imported."""
    if spec.name != SPEC.name:
        return None
    return probe_kernels(spec, depth, _installed, _on_device, TRITON)


@hookimpl
def dsv4core_info(spec: BackendSpec) -> list[str] | None:
    """Say what other Intel packages that are installed would add; only their metadata is read."""
    if spec.name != SPEC.name:
        return None
    torch = installed_version("torch") or "none"
    here = {name: installed_version(name) for name in OTHERS}
    return [OTHERS[name](version, torch) for name, version in here.items() if version] or None


@hookimpl
def dsv4core_linear_kernels(backend: Any) -> list[Any] | None:
    """Offer the Triton kernel for stored weights and that of vllm-xpu-kernels, available or not."""
    return backend.linear_kernels if backend.name == SPEC.name else None


def _ipex(version: str, torch: str) -> str:
    build = "" if "+xpu" in version else ", a CPU build"
    same = torch.split(".")[:2] == version.split(".")[:2]
    fit = f"fits torch {torch}" if same else f"does not fit torch {torch}: importing it would end the process"
    adds = "adds no op of this package, so it is left alone; end of life upstream"
    return f"{IPEX} {version}{build} ({fit}): {adds}"


def _vllm(version: str, torch: str) -> str:
    from dsv4core_xpu.vllm_kernels.record import unfit  # reads a file, only where the package is installed

    reason = unfit(version, torch)
    use = "index scores and fp8 products with DSV4CORE_XPU_VLLM_KERNELS=auto, after a check on the device; "
    why = "its writers' bits and its lists' order are not this contract's (docs/triton.md, each operator)"
    return f"{VLLM} {version} (beside torch {torch}): {f'not used: {reason}' if reason else use + why}"


OTHERS = {IPEX: _ipex, VLLM: _vllm}


def _installed() -> Availability:
    """What the installed files say: an XPU build of torch carries that in its version."""
    version = installed_version("torch") or ""
    if env.settings(SPEC.name).get("device") in ("cuda", "cpu") or "+xpu" in version:
        return Availability.available()
    return Availability.missing(Code.NO_DEVICE, f"torch {version} is not an XPU build", TORCH_FIRST)


def _on_device(torch: Any) -> Availability:
    """An XPU, or the device that the settings name."""
    wanted = env.settings(SPEC.name).get("device", "xpu")
    if wanted == "cuda":
        return _borrowed(torch)
    if wanted != "xpu":
        reason = f"DSV4CORE_XPU_DEVICE={wanted}: expected xpu or, for development, cuda"
        return Availability.missing(Code.UNSUPPORTED_DEVICE, reason, "unset DSV4CORE_XPU_DEVICE")
    return _look(torch)


def _borrowed(torch: Any) -> Availability:
    """The same kernels on an NVIDIA or AMD device, for development."""
    if not torch.cuda.is_available():
        reason = f"DSV4CORE_XPU_DEVICE=cuda, but torch {torch.__version__} sees no such device"
        return Availability.missing(Code.NO_DEVICE, reason, "unset DSV4CORE_XPU_DEVICE")
    reason = "for development, on a foreign device (DSV4CORE_XPU_DEVICE=cuda)"
    return Availability.available(reason, "cuda", by_name=True)


def _look(torch: Any) -> Availability:
    count = torch.xpu.device_count()  # enumerates devices, makes no context
    build = getattr(torch.version, "xpu", None)
    kind = "a CUDA build" if torch.version.cuda else "a ROCm build" if torch.version.hip else ""
    if count == 0 and (kind or build is None):
        return other_build(torch, kind or "built without XPU", TORCH_FIRST)
    found = counted(torch, count, ("XPU", str(build)), "check the driver with sycl-ls and ZE_AFFINITY_MASK")
    return replace(found, reason=f"{found.reason}: {_abilities(torch)}") if found.ok else found


def _abilities(torch: Any) -> str:
    """The first device: its name, driver and what it can do, for whoever reads a report."""
    from dsv4core.kernels.triton._devices import devices, family  # not before there is a device to describe

    here = torch.xpu.get_device_properties(0)
    known = devices()[family("xpu", {"name": here.name})]
    double = "fp64" if getattr(here, "has_fp64", False) else "no fp64"
    small = "fp8 conversions" if known.e4m3 else "fp8 converted in integers"
    return f"{here.name}, driver {getattr(here, 'driver_version', 'unknown')}, {double}, {small}"
