"""The one place where a kernel learns that it is interpreted."""

import triton
import triton.language as tl

from dsv4core.kernels.triton._interpreter import prepare


@triton.jit
def _probe():
    pass


# Triton decides when a kernel is declared, and so does this: a variable set later changes neither.
INTERPRETED = tl.constexpr(not isinstance(_probe, triton.JITFunction))

if INTERPRETED.value:
    prepare()
