"""Kernels that more than one backend shares; imported when a backend builds its ops, never before."""
