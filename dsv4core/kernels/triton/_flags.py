"""The one place where a kernel learns that it is interpreted."""

import triton.language as tl
from triton import knobs

# Triton decides when it is imported, and so does this: a variable set later changes neither.
INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))
