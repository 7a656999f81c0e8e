"""The XPU backend: every op a Triton kernel of its own, plain matrix products through torch.

Index scores may come from `vllm-xpu-kernels`, where a setting asks for it and the library passes a check.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from dsv4core.errors import BackendUnavailableError, ConfigError
from dsv4core.kernels.triton import implementations
from dsv4core.ops import OpImpl
from dsv4core.probe import interpreted
from dsv4core.providers import Ranked
from dsv4core_xpu.attention import DeepseekV4XPUAttention
from dsv4core_xpu.vllm_kernels import check, indexer, library, record

log = logging.getLogger("dsv4core")


class XpuBackend:
    """Ops from `dsv4core.kernels.triton`; importing them imports triton, which is why it happens here.

    `settings["device"]` (DSV4CORE_XPU_DEVICE) may name "cuda" for development on another vendor's device. In
    a process with TRITON_INTERPRET=1 tensors stay in host memory.

    `settings["vllm_kernels"]` (DSV4CORE_XPU_VLLM_KERNELS) is "off"; "auto": index scores of vllm-xpu-kernels
    on an XPU, where the library fits and passes its check; or "on", which refuses to do without them and
    holds in interpreted runs too, for tests.
    """

    name = "xpu"
    attention_class = DeepseekV4XPUAttention

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.settings = dict(settings)
        self.device_type = device_type(self.settings)
        self.ops = implementations(self.name)
        self._vllm_kernels()

    @property
    def launches(self) -> int:
        """Kernels started in this process so far: whoever doubts where an op ran compares two readings."""
        from dsv4core.kernels.triton._launch import LAUNCHES

        return LAUNCHES.total()

    def _vllm_kernels(self) -> None:
        """Put the library's index scores before ours where they are wanted, and name what stands against."""
        word = self.settings.get("vllm_kernels", "off")
        if word not in ("off", "auto", "on"):
            raise ConfigError(f"DSV4CORE_XPU_VLLM_KERNELS={word}: expected off, auto or on")
        if word == "off" or (word == "auto" and self.device_type != "xpu"):
            return
        operator, reason = library.load()
        if operator is not None:
            reason = check.wrong(indexer.Scores(operator), torch.device(self.device_type))
        if reason and word == "on":
            raise BackendUnavailableError(f"backend xpu: DSV4CORE_XPU_VLLM_KERNELS=on, but {reason}")
        if operator is None or reason:
            log.warning("xpu: vllm-xpu-kernels is not used: %s", reason)
            self._name({indexer.OP: reason})
            return
        last = self.ops[indexer.OP]
        ranked = Ranked(indexer.OP, (indexer.provider(operator),), last.function)
        source = f"vllm-xpu-kernels {record.here('vllm-xpu-kernels')}, {last.provider}"
        self.ops[indexer.OP] = OpImpl(ranked, source)
        self._name(record.refusals())

    def _name(self, reasons: Mapping[str, str]) -> None:
        """Say beside who computes an op why somebody else does not."""
        for op, reason in reasons.items():
            own = self.ops[op]
            self.ops[op] = OpImpl(own.function, f"{own.provider} ({reason})")


def device_type(settings: Mapping[str, str]) -> str:
    """Where tensors live: host memory under the interpreter, else what the settings name, else an XPU."""
    return "cpu" if interpreted() else settings.get("device", "xpu")
