"""Shared memory of a cluster's other blocks, and what softmax needs. Shared addresses are i32."""

from cutlass import Float32, Int32
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import T, dsl_user_op

from dsv4core_cuda.cutedsl.kernels._ptx import _asm, _several


@dsl_user_op
def peer(address, rank, *, loc=None, ip=None):
    """The address that a shared address has in block `rank` of the cluster."""
    text = "mapa.shared::cluster.u32 $0, $1, $2;"
    return Int32(_asm(T.i32(), [Int32(address), Int32(rank)], text, "=r,r,r", loc, ip))


@dsl_user_op
def read_peer(address, n, there, *, loc=None, ip=None):
    """n (1, 2 or 4) i32 at an address of `peer`; zeros where `there` is 0."""
    outs = [f"${i}" for i in range(n)]
    zeros = " ".join(f"mov.b32 {out}, 0;" for out in outs)
    load = f"ld.shared::cluster.v{n}.b32 {{{', '.join(outs)}}}" if n > 1 else "ld.shared::cluster.b32 $0"
    text = f"{{.reg .pred p; setp.ne.s32 p, ${n + 1}, 0; {zeros} @p {load}, [${n}];}}"
    arguments, constraints = [Int32(address), Int32(there)], ",".join(["=&r"] * n) + ",r,r"
    if n == 1:
        return [Int32(_asm(T.i32(), arguments, text, constraints, loc, ip, effects=True))]
    result = llvm.StructType.get_literal([T.i32()] * n)
    return _several(Int32, n, loc, ip, _asm(result, arguments, text, constraints, loc, ip, effects=True))


@dsl_user_op
def write_peer(address, x, *, loc=None, ip=None):
    """An f32 to an address of `peer`."""
    text = "st.shared::cluster.f32 [$0], $1;"
    _asm(None, [Int32(address), Float32(x)], text, "r,f", loc, ip, effects=True)


@dsl_user_op
def send(address, xs, barrier, *, loc=None, ip=None):
    """Four f32 to an address of `peer` that 16 divides; a barrier there counts their 16 bytes."""
    text = "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [$0], {$1, $2, $3, $4}, [$5];"
    values = [Int32(address), *xs, Int32(barrier)]
    _asm(None, values, text, "r,f,f,f,f,r,~{memory}", loc, ip, effects=True)


@dsl_user_op
def own_block(*, loc=None, ip=None):
    """The block's three numbers, read where this stands and not kept from before."""
    result = llvm.StructType.get_literal([T.i32()] * 3)
    text = "mov.u32 $0, %ctaid.x; mov.u32 $1, %ctaid.y; mov.u32 $2, %ctaid.z;"
    return _several(Int32, 3, loc, ip, _asm(result, [], text, "=r,=r,=r", loc, ip, effects=True))


@dsl_user_op
def exp2(x, *, loc=None, ip=None):
    """2^x to about 2 ulp, exact for whole x; 0 at -inf."""
    return Float32(_asm(T.f32(), [Float32(x)], "ex2.approx.ftz.f32 $0, $1;", "=f,f", loc, ip))


@dsl_user_op
def ceil(x, *, loc=None, ip=None):
    """The next whole number up."""
    return Float32(_asm(T.f32(), [Float32(x)], "cvt.rpi.f32.f32 $0, $1;", "=f,f", loc, ip))
