"""Shared memory by address, of this block and of its cluster's others. Addresses are i32 (shared), i64 (global)."""

from cutlass import Float32, Int32, Int64
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import T, dsl_user_op

from dsv4core_cuda.cutedsl.kernels._ptx import _asm, _several


@dsl_user_op
def copy_async(shared, address, *, loc=None, ip=None):
    """Start copying 16 bytes from global to shared memory."""
    text = "cp.async.cg.shared.global [$0], [$1], 16;"
    _asm(None, [Int32(shared), Int64(address)], text, "r,l", loc, ip, effects=True)


@dsl_user_op
def store_shared(shared, words, *, loc=None, ip=None):
    """1, 2 or 4 i32 to this block's shared memory."""
    n = len(words)
    ins = ", ".join(f"${i + 1}" for i in range(n))
    wide = f".v{n}.b32 [$0], {{{ins}}};" if n > 1 else ".b32 [$0], $1;"
    _asm(None, [Int32(shared), *words], "st.shared" + wide, "r" + ",r" * n, loc, ip, effects=True)


@dsl_user_op
def load_shared(shared, n, *, loc=None, ip=None):
    """n (1, 2 or 4) f32 of this block's shared memory."""
    return _load("ld.shared", shared, n, loc, ip)


@dsl_user_op
def load_peer(shared, n, *, loc=None, ip=None):
    """n (1, 2 or 4) f32 of a cluster's shared memory, at an address of `peer`."""
    return _load("ld.shared::cluster", shared, n, loc, ip)


def _load(op, shared, n, loc, ip):
    if n == 1:
        return [Float32(_asm(T.f32(), [Int32(shared)], f"{op}.f32 $0, [$1];", "=f,r", loc, ip, effects=True))]
    outs = ", ".join(f"${i}" for i in range(n))
    value = _asm(
        llvm.StructType.get_literal([T.f32()] * n), [Int32(shared)], f"{op}.v{n}.f32 {{{outs}}}, [${n}];",
        ",".join(["=f"] * n) + ",r", loc, ip, effects=True,
    )  # fmt: skip
    return _several(Float32, n, loc, ip, value)


@dsl_user_op
def store_peer(shared, x, *, loc=None, ip=None):
    """An f32 to a cluster's shared memory, at an address of `peer`."""
    text = "st.shared::cluster.f32 [$0], $1;"
    _asm(None, [Int32(shared), Float32(x)], text, "r,f", loc, ip, effects=True)


@dsl_user_op
def peer(shared, rank, *, loc=None, ip=None):
    """The address that a shared address has in block `rank` of the cluster."""
    text = "mapa.shared::cluster.u32 $0, $1, $2;"
    return Int32(_asm(T.i32(), [Int32(shared), Int32(rank)], text, "=r,r,r", loc, ip))
