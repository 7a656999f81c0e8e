"""Block sizes, warps and stages by device: data, chosen by measurement, never searched for at run time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv4core.kernels.triton import _launch


@dataclass(frozen=True)
class Attention:
    """How `sparse_attention_kernel` is cut: heads a program, keys a tile, warps, stages of the key loads.

    `few`: programs up to which the device is so idle that tiles are scored side by side instead.
    """

    heads: int
    keys: int
    warps: int
    stages: int
    few: int = 24


# By device, for ever fewer heads: the first row whose programs are filled is taken, else the last.
# sm100: Triton 3.7 compiles 64 heads to a trap there, so it takes the form of sm80.
ATTENTION: dict[str, tuple[Attention, ...]] = {
    "interpreter": (Attention(64, 128, 4, 1, 0), Attention(16, 128, 4, 1, 0)),
    "sm80": (Attention(32, 32, 8, 1), Attention(16, 32, 8, 1)),
    "sm90": (Attention(64, 64, 8, 2), Attention(32, 32, 8, 1), Attention(16, 32, 8, 1)),
    "sm100": (Attention(32, 32, 8, 1), Attention(16, 32, 8, 1)),
    "sm120": (Attention(32, 32, 8, 1), Attention(16, 32, 8, 1)),
    "gfx942": (Attention(16, 16, 4, 1),),
    "gfx950": (Attention(16, 16, 4, 1),),
    "xpu": (Attention(16, 32, 8, 1),),
}


def attention(tensor: Tensor, heads: int) -> Attention:
    """The row for a device and a number of heads: nothing else, or bits would depend on the batch."""
    table = ATTENTION[device_class(tensor)]
    return next((row for row in table if row.heads <= heads), table[-1])


def device_class(tensor: Tensor) -> str:
    """The row of a table for a tensor's device; an unknown device takes the nearest modest one."""
    if _launch.assumed is not None:
        return _launch.assumed
    if _launch.interpreted or tensor.device.type == "cpu":
        return "interpreter"
    if tensor.device.type == "xpu":
        return "xpu"
    if torch.version.hip:
        name = torch.cuda.get_device_properties(tensor.device).gcnArchName.partition(":")[0]
        return name if name in ATTENTION else "gfx942"
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return {9: "sm90", 10: "sm100", 12: "sm120"}.get(major, "sm80") if (major, minor) != (10, 3) else "sm100"


def native_e4m3(tensor: Tensor) -> bool:
    """Whether the device converts f32 to and from OCP e4m3 in one rounding: NVIDIA from SM90 on.

    SM89 goes through half precision and rounds twice; gfx942's own format is FNUZ.
    """
    return device_class(tensor) in ("sm90", "sm100", "sm120")
