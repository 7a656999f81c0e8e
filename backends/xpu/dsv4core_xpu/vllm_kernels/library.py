"""The operators of `vllm-xpu-kernels`: loaded where a device is, held against the recorded schemas."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import distribution
from typing import Any

import torch
from torch import Tensor

from dsv4core.probe import describe
from dsv4core_xpu.vllm_kernels.record import here, recorded, unfit

NAMESPACE = "_xpu_C"
SCORES, PRODUCT = "fp8_paged_mqa_logits", "fp8_gemm_w8a16"

Operators = dict[str, Callable[..., Tensor]]


def load() -> tuple[Operators, str]:
    """The operators in use by name, or none and why.

    Only their shared library is loaded: importing the package would load its attention kernels too, 480 MB
    of them. What is loaded stays in the process.
    """
    known = recorded()
    reason = unfit(here(known["distribution"]), here("torch"))
    if reason:
        return {}, reason
    try:
        torch.ops.load_library(str(distribution(known["distribution"]).locate_file(known["library"])))
        found = {name: getattr(getattr(torch.ops, NAMESPACE), name).default for name in known["used"]}
    except Exception as error:  # OSError where a library of oneAPI is missing, AttributeError, RuntimeError
        return {}, f"{known['library']} does not load: {describe(error)}"
    for name, operator in found.items():
        seen, wanted = schema(operator), known["used"][name]["schema"]
        if seen != wanted:
            return {}, f"an operator is {seen}, the adapter was written for {wanted}"
    return found, ""


def schema(operator: Any) -> str:
    """The schema of an operator without its namespace."""
    return str(operator._schema).partition("::")[2]
