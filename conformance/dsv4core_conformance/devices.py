"""What a torch device is called: by its vendor, and by every name that a deviation may use for it."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch


def device_name(device: torch.device) -> str:
    """The device's name as its maker prints it; the processor's model for a CPU."""
    if device.type == "cpu":
        return _cpu_model()
    module: Any = torch.get_device_module(device.type)
    named = getattr(module, "get_device_name", None)
    return str(named(device)) if named is not None else str(device)


def device_words(device: torch.device) -> tuple[str, ...]:
    """Names that the `devices` of a deviation are matched with: name, torch type, architecture."""
    words = [device_name(device), str(device), device.type]
    if device.type == "cuda":
        found: Any = torch.cuda.get_device_properties(device)
        architecture = str(getattr(found, "gcnArchName", "")) if torch.version.hip else ""
        words.append(architecture.partition(":")[0] or f"sm_{found.major}{found.minor}")
    return tuple(dict.fromkeys(words))


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
