"""What every op must give: one function per op over numpy arrays, by name.

`REFERENCE[op](arguments, dtypes)` takes tensors as arrays (bf16 as float32 of the same value, one-byte floats
as bytes) with `dtypes` naming what they were, writes in place what the op writes, and returns the results.
"""

from __future__ import annotations

from .attending import ATTENDING
from .caching import CACHE

REFERENCE = {**CACHE, **ATTENDING}
