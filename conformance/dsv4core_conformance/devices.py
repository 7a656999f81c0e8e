"""Every name that a deviation may use for a torch device."""

from __future__ import annotations

from typing import Any

import torch

from dsv4core.runtime import device_name


def device_words(device: torch.device) -> tuple[str, ...]:
    """Names that the `devices` of a deviation are matched with: name, torch type, architecture."""
    words = [device_name(device), str(device), device.type]
    if device.type == "cuda":
        found: Any = torch.cuda.get_device_properties(device)
        architecture = str(getattr(found, "gcnArchName", "")) if torch.version.hip else ""
        words.append(architecture.partition(":")[0] or f"sm_{found.major}{found.minor}")
    return tuple(dict.fromkeys(words))
