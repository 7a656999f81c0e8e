"""The ops that Triton kernels provide, by name, for whichever backend wants them."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from dsv4core.ops import OPS, OpImpl

PRODUCTS = ("grouped_output_projection", "linear")
"""Plain matrix products: torch's own libraries are the better kernels."""

KERNELS = tuple(name for name, op in OPS.items() if name not in PRODUCTS and not op.optional)


def kernels() -> dict[str, Callable[..., Any]]:
    """Op name -> launcher with the op's signature; each launches at least one kernel of its own."""
    return {name: getattr(import_module(f"{__package__}.{name}"), name) for name in KERNELS}


def products() -> dict[str, Callable[..., Any]]:
    """Op name -> torch statement of the plain matrix products."""
    return {name: OPS[name].body for name in PRODUCTS}


def implementations() -> dict[str, OpImpl]:
    """Op name -> implementation of all but optional ops: a Triton kernel, or torch for plain products."""
    found = {name: OpImpl(function, "triton") for name, function in kernels().items()}
    return found | {name: OpImpl(function, "torch") for name, function in products().items()}
