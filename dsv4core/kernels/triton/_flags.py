"""The one place where a kernel learns that it is interpreted."""

import triton.language as tl
from triton import knobs

from dsv4core.kernels.triton._interpreter import prepare

# Triton decides when it is imported, and so does this: a variable set later changes neither.
INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))

if INTERPRETED.value:
    prepare()
