"""Tests of the CUDA backend: without a device kernels are interpreted and FlashMLA is a recording stand-in.

Type `TRITON_INTERPRET=1 python -m pytest backends/cuda/tests` where triton is installed: triton reads the
variable once, when it is imported, so a process that runs other tests must not set it. Without the variable,
on a device, the same command runs `test_device_*.py`.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None:
    collect_ignore_glob = ["test_device_*.py"]
elif torch.cuda.is_available():
    collect_ignore_glob = ["test_[!d]*.py"]
else:
    collect_ignore_glob = ["test_*.py"]
