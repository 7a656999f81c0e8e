"""Sorting the tensors of a state dict into the weights of a layer, with every complaint at once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dsv4core.errors import WeightsError
from dsv4core.linear import QuantisedWeight, Weight
from dsv4core.tensor_names import (
    ALL_NAMES,
    DEEPSEEK_NAMES,
    FACTOR,
    QUANTISABLE,
    SCALE,
    STATIC,
    canonical,
    dotted,
    split,
)

FLOATS = (torch.bfloat16, torch.float32)
PACKED = (torch.uint8, torch.int8)
QUANTISED = (torch.float8_e4m3fn, *PACKED)
FIRST = ("wq_a", DEEPSEEK_NAMES["wq_a"])  # every layer has it, under one of these names


def named_weights(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Weight]:
    """Weights behind the prefix by bare name; raises for names and types that are not understood."""
    start = dotted(prefix)
    found: dict[str, Tensor] = {}
    spelling: dict[str, str] = {}
    problems: list[str] = []
    strange: set[str] = set()
    for full, tensor in tensors.items():
        if not full.startswith(start):
            continue
        bare = full.removeprefix(start)
        if bare.endswith(STATIC) and canonical(bare.removesuffix(STATIC)) in QUANTISABLE:
            continue
        if not isinstance(tensor, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            problems.append(f"{full} is {_kind(tensor)}; a torch.Tensor is expected")
            strange.add(split(canonical(bare))[0])
            continue
        name = canonical(bare)
        if split(name)[0] not in ALL_NAMES:
            problems.append(f"{full} is not a tensor of an attention layer")
        elif name in found:
            problems.append(f"{full} is there twice, the other time as {spelling[name]}")
        found[name], spelling[name] = tensor, full
    if not found and not problems:
        near = sorted({repr(full.split(stem)[0]) for full in tensors for stem in FIRST if stem in full})
        there = f"there are {', '.join(near[:4])}" if near else f"no name holds {' or '.join(FIRST)}"
        raise WeightsError(f"no tensor name begins with {start!r}; {there}")
    weights: dict[str, Weight] = {}
    for name, tensor in found.items():
        if split(name)[0] in strange:
            continue
        stem, suffix = split(name)
        if suffix:
            if stem not in found:
                problems.append(f"{spelling[name]} has no {stem} to scale")
            continue
        scales, factor = found.get(name + SCALE), found.get(name + FACTOR)
        tensor = tensor.view(torch.uint8) if tensor.dtype == torch.int8 else tensor
        factor = factor.reshape(1) if factor is not None and factor.numel() == 1 else factor
        problem = type_problem(name, tensor, scales, factor)
        if problem:
            problems.append(f"{spelling[name]}{problem}")
        else:
            weights[name] = tensor if scales is None else QuantisedWeight(tensor, scales, factor)
    if problems:
        raise WeightsError(f"tensors behind {start!r}: {'; '.join(problems)}")
    return weights


def _kind(value: object) -> str:
    kind = type(value)
    return "None" if value is None else f"a {kind.__module__}.{kind.__qualname__}"


def type_problem(
    name: str, tensor: Tensor, scales: Tensor | None = None, factor: Tensor | None = None
) -> str:
    """What speaks against the types of one tensor and its scales, after its name; empty when nothing does."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.dtype in FLOATS:
        scaled = scales is not None or factor is not None
        return f" is {kind} but has scales, which belong to float8_e4m3fn and packed e2m1" if scaled else ""
    if tensor.dtype not in QUANTISED or name not in QUANTISABLE:
        quantised = ", or float8_e4m3fn and uint8 (e2m1 pairs) with scales" if name in QUANTISABLE else ""
        return f" is {kind}; only bfloat16 and float32 are read{quantised}"
    if scales is None:
        return f" is {kind} without scales ({name}.scale, {name}.weight_scale_inv or {name}.weight_scale)"
    found = QuantisedWeight.problem(tensor, scales, factor)
    return f": {found}" if found else ""
