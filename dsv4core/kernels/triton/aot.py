"""Compile what an op would launch for a device that is not there: registers, spills, matrix instructions.

Run it in a process without TRITON_INTERPRET. An op's own launcher is called with host tensors of real sizes
while launches are recorded, so signature, constants and specialisation are those of a run. Which targets
there are depends on the installed Triton: the usual one has NVIDIA's and AMD's, triton-xpu has Intel's.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends import backends
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dsv4core.kernels.triton._devices import Device, devices
from dsv4core.kernels.triton._launch import AMD_ONLY, recorded

TYPES = {
    torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.uint8: "*u8", torch.int32: "*i32",
    torch.int64: "*i64", torch.bool: "*i1", torch.float8_e4m3fn: "*fp8e4nv",
}  # fmt: skip
XPU_ABILITIES = (
    "fp16", "fp64", "bfloat16_conversions", "subgroup_2d_block_io", "subgroup_matrix_multiply_accumulate",
    "subgroup_matrix_multiply_accumulate_tensor_float32",
)  # fmt: skip
META = ("num_warps", "num_stages", "num_ctas", "maxnreg", "launch_pdl", *AMD_ONLY)


def targets() -> tuple[str, ...]:
    """The families of devices that this Triton compiles for."""
    found = {n: GPUTarget(*d.target) for n, d in devices().items() if d.target}
    compilers = [backend.compiler for backend in backends.values()]
    return tuple(n for n, target in found.items() if any(c.supports_target(target) for c in compilers))


@dataclass
class Launch:
    """One recorded launch: the kernel and how it is specialised."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    divisible: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.__name__


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel takes: registers, spills, shared memory, matrix instructions.

    Spills are bytes of stack on NVIDIA's devices and registers on AMD's. `dots`: products in the source.
    """

    registers: int
    spills: int
    shared: int
    matrix: int
    dots: int


def record(call: Callable[[], Any], target: str) -> list[Launch]:
    """The launches of a call, as `target` would be given them."""
    found: list[Launch] = []

    def note(kernel: Any, arguments: tuple[Any, ...], meta: dict[str, Any]) -> None:
        found.append(_launch(kernel, arguments, meta))

    with recorded(note, target):
        call()
    return found


def _launch(kernel: Any, arguments: tuple[Any, ...], meta: dict[str, Any]) -> Launch:
    options = {k: v for k, v in meta.items() if k in META}
    constants = {k: v for k, v in meta.items() if k not in META}
    general = {p.name for p in kernel.params if p.do_not_specialize}
    signature: dict[str, str] = {}
    divisible: list[str] = []
    for name, value in zip(kernel.arg_names, arguments, strict=False):
        if isinstance(value, Tensor):
            signature[name] = TYPES[value.dtype]
            if name not in general and value.data_ptr() % 16 == 0:
                divisible.append(name)
        elif value is None or isinstance(value, (bool, str)):
            constants[name] = value
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1 and name not in general:
            constants[name] = 1
        else:
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
            if name not in general and value % 16 == 0:
                divisible.append(name)
    ordered = {n: signature.get(n, "constexpr") for n in kernel.arg_names}
    return Launch(kernel, ordered, constants, tuple(divisible), options)


def compiled_for(launch: Launch, target: str) -> Any:
    """Compile one launch for a target: triton's object, with the text of every stage."""
    device = devices()[target]
    place = {name: (i,) for i, name in enumerate(launch.kernel.arg_names)}
    source = _source_of(launch.kernel)(
        fn=launch.kernel,
        signature=launch.signature,
        constexprs={place[n]: v for n, v in launch.constants.items()},
        attrs={place[n]: [["tt.divisibility", 16]] for n in launch.divisible},
    )
    options = {"enable_fp_fusion": False, **launch.options}
    return triton.compile(source, target=_target(device), options=options)


def _source_of(kernel: Any) -> Any:
    """The class of Triton's that compiles a kernel: Gluon has its own."""
    if not getattr(kernel, "is_gluon", bool)():  # triton-xpu on the package index is older than Gluon
        return ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    return GluonASTSource


def compile_for(launch: Launch, target: str) -> Usage:
    """Compile one launch for a target."""
    device, compiled = devices()[target], compiled_for(launch, target)
    matrix = re.compile(device.matrix)
    shared, source = int(compiled.metadata.shared), compiled.asm.get("ttir") or compiled.asm["source"]
    dots = source.count("tt.dot ") + source.count("warp_group_dot ")
    if device.backend == "xpu":  # registers are given out later, by the driver's own compiler
        return Usage(0, 0, shared, len(matrix.findall(compiled.asm["llir"])), dots)
    if device.backend == "hip":
        text = compiled.asm["amdgcn"]
        return Usage(
            _number(text, "vgpr_count"),
            _number(text, "vgpr_spill_count") + _number(text, "sgpr_spill_count"),
            shared, len(matrix.findall(text)), dots,
        )  # fmt: skip
    words = resources(compiled.asm["cubin"])
    found = len(matrix.findall(compiled.asm["ptx"]))
    spills = words.get("STACK", 0) + words.get("LOCAL", 0)
    return Usage(words.get("REG", 0), spills, shared, found, dots)


def _target(device: Device) -> GPUTarget:
    """Triton's name of a family.

    Intel's compiler wants a device's properties, and a helper built with SYCL that looks up its architecture;
    both are answered here.
    """
    backend, arch, warp = device.target
    if backend != "xpu":
        return GPUTarget(backend, arch, warp)

    def answer(*_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(parse_device_arch=lambda number: arch)

    compiler = backends["intel"].compiler
    inner = next(f.__globals__ for f in vars(compiler).values() if hasattr(f, "__globals__"))
    inner["compile_module_from_src"] = answer
    known = {f"has_{what}": True for what in XPU_ABILITIES}
    sizes = {"max_work_group_size": 1024, "max_num_sub_groups": 64, "sub_group_sizes": [16, 32]}
    names = {"name": device.of, "platform_name": "", "vendor": "Intel"}
    names |= {"driver_version": "1.6", "version": "1.6"}
    more = {"architecture": 0, "device_id": 0, "gpu_eu_count": 512, "gpu_subslice_count": 64}
    limits = {"max_compute_units": 512, "max_shared_mem": device.shared}
    return GPUTarget(backend, {**known, **sizes, **names, **more, **limits}, warp)


def _number(text: str, word: str) -> int:
    found = re.search(rf"\.{word}:\s+(\d+)", text)
    return int(found[1]) if found else 0


def resources(cubin: bytes) -> dict[str, int]:
    """What the kernel of a cubin takes, by the names of cuobjdump: REG, STACK, LOCAL, SHARED."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [str(tool), "-res-usage", file.name], capture_output=True, text=True, check=False
        )
    return {word: int(size) for word, size in re.findall(r"(\w+):(\d+)", done.stdout + done.stderr)}
