"""Device code in NVIDIA's CuTeDSL: importing a module here imports `cutlass`."""
