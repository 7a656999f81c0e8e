"""Kernels of our own in CuTeDSL, for ops where they measure faster than Triton's.

A launcher here has its op's name and imports torch only; its kernel in `kernels/` is NVIDIA's language and is
imported when it has to be compiled (`_build`). Compiled kernels are kept on disk and started through the
driver (`_driver`), so that a second process needs neither the compiler nor its import.
"""
