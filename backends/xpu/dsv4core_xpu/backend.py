"""The XPU backend: every op a Triton kernel of its own, plain matrix products through torch."""

from __future__ import annotations

from collections.abc import Mapping

from dsv4core.kernels.triton import implementations
from dsv4core.probe import interpreted
from dsv4core_xpu.attention import DeepseekV4XPUAttention


class XpuBackend:
    """Ops from `dsv4core.kernels.triton`; importing them imports triton, which is why it happens here.

    `settings["device"]` (DSV4CORE_XPU_DEVICE) may name "cuda" for development on another vendor's device. In
    a process with TRITON_INTERPRET=1 tensors stay in host memory.
    """

    name = "xpu"
    attention_class = DeepseekV4XPUAttention

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.settings = dict(settings)
        self.device_type = device_type(self.settings)
        self.ops = implementations(self.name)

    @property
    def launches(self) -> int:
        """Kernels started in this process so far: whoever doubts where an op ran compares two readings."""
        from dsv4core.kernels.triton._launch import LAUNCHES

        return LAUNCHES.total()


def device_type(settings: Mapping[str, str]) -> str:
    """Where tensors live: host memory under the interpreter, else what the settings name, else an XPU."""
    return "cpu" if interpreted() else settings.get("device", "xpu")
