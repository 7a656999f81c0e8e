"""Portable Triton kernels, one op a file.

They are the XPU backend, the base of ROCm's, and CUDA's where no library reaches. Importing a module here
imports triton. `TRITON_INTERPRET=1` must be in the environment before that.
"""
