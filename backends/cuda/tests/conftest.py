"""Tests of the CUDA backend without a device: kernels interpreted, FlashMLA a recording stand-in.

Type `TRITON_INTERPRET=1 python -m pytest backends/cuda/tests` where triton is installed: triton reads the
variable once, when it is imported, so a process that runs other tests must not set it.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

if os.environ.get("TRITON_INTERPRET") != "1" or find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
