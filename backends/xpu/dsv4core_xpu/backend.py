"""The XPU backend: every op a Triton kernel of its own, plain matrix products through torch.

Index scores and products with fp8 weights may come from `vllm-xpu-kernels`, where a setting asks for it and
the library passes a check.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from dsv4core.errors import BackendUnavailableError, ConfigError
from dsv4core.kernels.triton import implementations
from dsv4core.linear import LinearKernel
from dsv4core.linear.triton_kernel import TritonLinear
from dsv4core.ops import OpImpl
from dsv4core.probe import interpreted
from dsv4core.providers import Ranked
from dsv4core_xpu.attention import DeepseekV4XPUAttention
from dsv4core_xpu.vllm_kernels.linear import BlockProduct

log = logging.getLogger("dsv4core")

VARIABLE = "DSV4CORE_XPU_VLLM_KERNELS"


class XpuBackend:
    """Ops from `dsv4core.kernels.triton`; importing them imports triton, which is why it happens here.

    `settings["device"]` (DSV4CORE_XPU_DEVICE) may name "cuda" for development on another vendor's device. In
    a process with TRITON_INTERPRET=1 tensors stay in host memory.

    `settings["vllm_kernels"]` (DSV4CORE_XPU_VLLM_KERNELS) is "off"; "auto": what vllm-xpu-kernels has for us,
    on an XPU, where the library fits and passes its check; or "on", which refuses to do without and holds in
    interpreted runs too, for tests. `linear_kernels` are the candidates for stored weights.
    """

    name = "xpu"
    attention_class = DeepseekV4XPUAttention

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.settings = dict(settings)
        self.device_type = device_type(self.settings)
        self.ops = implementations(self.name)
        self.linear_kernels: list[LinearKernel] = [TritonLinear()]
        self._vllm_kernels()

    @property
    def launches(self) -> int:
        """Kernels started in this process so far: whoever doubts where an op ran compares two readings."""
        from dsv4core.kernels.triton._launch import LAUNCHES

        return LAUNCHES.total()

    def _vllm_kernels(self) -> None:
        """Put the library's index scores and products before ours where they are wanted and pass."""
        word = self.settings.get("vllm_kernels", "off")
        if word not in ("off", "auto", "on"):
            raise ConfigError(f"{VARIABLE}={word}: expected off, auto or on")
        if word == "off" or (word == "auto" and self.device_type != "xpu"):
            self.linear_kernels.append(BlockProduct(None, f"{VARIABLE}={word}, on {self.device_type}"))
            return
        from dsv4core_xpu.vllm_kernels import check, indexer, record  # not where the option is off
        from dsv4core_xpu.vllm_kernels.library import PRODUCT, SCORES

        operators, missing = check.passed(torch.device(self.device_type))
        if missing and word == "on":
            reasons = "; ".join(dict.fromkeys(missing.values()))
            raise BackendUnavailableError(f"backend xpu: {VARIABLE}=on, but {reasons}")
        for name, reason in missing.items():
            log.warning("xpu: %s of vllm-xpu-kernels is not used: %s", name, reason)
        self.linear_kernels.append(BlockProduct(operators.get(PRODUCT), missing.get(PRODUCT, "")))
        if SCORES in operators:
            last = self.ops[indexer.OP]
            ranked = Ranked(indexer.OP, (indexer.provider(operators[SCORES]),), last.function)
            source = f"vllm-xpu-kernels {record.here('vllm-xpu-kernels')}, {last.provider}"
            self.ops[indexer.OP] = OpImpl(ranked, source)
        else:
            self._name({indexer.OP: missing[SCORES]})
        if operators:
            self._name(record.refusals())

    def _name(self, reasons: Mapping[str, str]) -> None:
        """Say beside who computes an op why somebody else does not."""
        for op, reason in reasons.items():
            own = self.ops[op]
            self.ops[op] = OpImpl(own.function, f"{own.provider} ({reason})")


def device_type(settings: Mapping[str, str]) -> str:
    """Where tensors live: host memory under the interpreter, else what the settings name, else an XPU."""
    return "cpu" if interpreted() else settings.get("device", "xpu")
