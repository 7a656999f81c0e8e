"""A kernel that shows whether this device runs what is compiled for it, and rounds as written."""

from cutlass import Float32, Int64, cute

from dsv4core_cuda.cutedsl.kernels._ptx import add, bits, mul, store_words


@cute.kernel
def kernel(out: Int64, x: Float32, y: Float32):
    """Write x * x + y, two roundings, to an f32."""
    if cute.arch.thread_idx()[0] == 0:
        store_words(out, [bits(add(mul(x, x), y))])
