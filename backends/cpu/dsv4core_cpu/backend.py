"""The CPU backend: runs everywhere torch runs, and what every other backend is compared with."""

from __future__ import annotations

from collections.abc import Mapping

from dsv4core.ops import OPS, OpImpl
from dsv4core_cpu.attention import DeepseekV4CPUAttention


class CpuBackend:
    """All ops through the torch bodies of the contract, which are exact and independent of the batch."""

    name = "cpu"
    device_type = "cpu"
    attention_class = DeepseekV4CPUAttention

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.settings = dict(settings)
        self.ops = {name: OpImpl(op.body, "torch") for name, op in OPS.items()}
