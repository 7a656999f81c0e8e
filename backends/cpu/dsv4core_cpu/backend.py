"""The CPU backend: runs everywhere torch runs, and what every other backend is compared with."""

from __future__ import annotations

from collections.abc import Mapping

from dsv4core.layout import native_pages
from dsv4core.ops import OPS, OpImpl
from dsv4core_cpu.attention import DeepseekV4CPUAttention
from dsv4core_cpu.native import choose
from dsv4core_cpu.ops import native_ops
from dsv4core_cpu.transcode import converter


class CpuBackend:
    """Native kernels where they can be built, else the torch bodies; the same bytes either way."""

    name = "cpu"
    device_type = "cpu"
    attention_class = DeepseekV4CPUAttention

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.settings = dict(settings)
        self.native = choose(self.settings)
        self.ops = {name: OpImpl(op.body, "torch") for name, op in OPS.items()}
        if self.native is not None:
            self.ops.update({n: OpImpl(f, "native") for n, f in native_ops(self.native).items()})
        # `transcode` has no backend argument: the backend that was created last decides.
        native_pages.register("cpu", None if self.native is None else converter(self.native))
