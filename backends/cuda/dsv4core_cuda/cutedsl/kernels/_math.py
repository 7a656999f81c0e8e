"""Approximate functions of f32 that softmax is made of."""

from cutlass import Float32
from cutlass.cutlass_dsl import T, dsl_user_op

from dsv4core_cuda.cutedsl.kernels._ptx import _asm


@dsl_user_op
def exp2(x, *, loc=None, ip=None):
    """2^x to about 2 ulp, exact for whole x; 0 at -inf."""
    return Float32(_asm(T.f32(), [Float32(x)], "ex2.approx.ftz.f32 $0, $1;", "=f,f", loc, ip))


@dsl_user_op
def ceil(x, *, loc=None, ip=None):
    """The next whole number up."""
    return Float32(_asm(T.f32(), [Float32(x)], "cvt.rpi.f32.f32 $0, $1;", "=f,f", loc, ip))
