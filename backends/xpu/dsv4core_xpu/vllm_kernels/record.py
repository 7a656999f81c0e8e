"""What was read of `vllm-xpu-kernels`, and whether the installed one is that; imports no torch."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from dsv4core.probe import installed_version


def recorded() -> dict[str, Any]:
    """The record: release and torch, operators `used`, `lines` relied on, and by op those `refused`."""
    return json.loads(files(__package__).joinpath("operators.json").read_text())


def unfit(version: str, torch: str) -> str:
    """Why a release of the library is not to be loaded beside a torch, or "".

    A release declares no torch, though it needs the very one it was built for and beside another may end the
    process when it is loaded; so only the release that was read is taken, with the torch its README names.
    """
    known = recorded()
    if version.partition("+")[0] != known["release"]:
        return f"the adapter was written for release {known['release']}, this is {version or 'none'}"
    if not torch.startswith(f"{known['torch']}.") or "+xpu" not in torch:
        return f"it was built for torch {known['torch']}+xpu, this is {torch or 'none'}"
    return ""


def here(distribution: str) -> str:
    """The installed version of a distribution, or ""."""
    return installed_version(distribution) or ""


def refusals() -> dict[str, str]:
    """For every op that an operator comes near: the operators and why they do not serve it."""
    return {
        op: "; ".join(f"{near['operator'].partition('.')[2]}: {near['why']}" for near in found)
        for op, found in recorded()["refused"].items()
    }
