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
SCORES = "fp8_paged_mqa_logits"


def load() -> tuple[Callable[..., Tensor] | None, str]:
    """The operator for index scores, or None and why.

    Only its shared library is loaded: importing the package would load its attention kernels too, 480 MB of
    them. What is loaded stays in the process.
    """
    known = recorded()
    reason = unfit(here(known["distribution"]), here("torch"))
    if reason:
        return None, reason
    try:
        file = distribution(known["distribution"]).locate_file(known["library"])
        torch.ops.load_library(str(file))
        operator = getattr(getattr(torch.ops, NAMESPACE), SCORES).default
    except Exception as error:  # OSError where a library of oneAPI is missing, AttributeError, RuntimeError
        return None, f"{known['library']} does not load: {describe(error)}"
    seen, wanted = schema(operator), known["used"][SCORES]["schema"]
    if seen != wanted:
        return None, f"it is {seen}, the adapter was written for {wanted}"
    return operator, ""


def schema(operator: Any) -> str:
    """The schema of an operator without its namespace."""
    return str(operator._schema).partition("::")[2]
