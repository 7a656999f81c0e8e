"""Instructions that CuTeDSL does not choose by itself: explicit roundings (CA1 rule 1), wide loads and stores.

A plain `a * b + c` may be contracted into one rounding; `mul.rn` and `add.rn` may not. Addresses are i64.
"""

from cutlass import Float32, Int32, Int64
from cutlass._mlir import ir
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import T, dsl_user_op


def _asm(result, arguments, text, constraints, loc, ip, effects=False):
    values = [a.ir_value(loc=loc, ip=ip) for a in arguments]
    return llvm.inline_asm(result, values, text, constraints, has_side_effects=effects, loc=loc, ip=ip)


@dsl_user_op
def mul(a, b, *, loc=None, ip=None):
    """a * b, rounded once. Shapes: f32."""
    text = "mul.rn.f32 $0, $1, $2;"
    return Float32(_asm(T.f32(), [Float32(a), Float32(b)], text, "=f,f,f", loc, ip))


@dsl_user_op
def add(a, b, *, loc=None, ip=None):
    """a + b, rounded once. Shapes: f32."""
    text = "add.rn.f32 $0, $1, $2;"
    return Float32(_asm(T.f32(), [Float32(a), Float32(b)], text, "=f,f,f", loc, ip))


@dsl_user_op
def sub(a, b, *, loc=None, ip=None):
    """a - b, rounded once. Shapes: f32."""
    text = "sub.rn.f32 $0, $1, $2;"
    return Float32(_asm(T.f32(), [Float32(a), Float32(b)], text, "=f,f,f", loc, ip))


@dsl_user_op
def fma(a, b, c, *, loc=None, ip=None):
    """a * b + c, rounded once: only where the product is exact. Shapes: f32."""
    text = "fma.rn.f32 $0, $1, $2, $3;"
    return Float32(_asm(T.f32(), [Float32(a), Float32(b), Float32(c)], text, "=f,f,f,f", loc, ip))


@dsl_user_op
def div(a, b, *, loc=None, ip=None):
    """a / b, correctly rounded. Shapes: f32."""
    text = "div.rn.f32 $0, $1, $2;"
    return Float32(_asm(T.f32(), [Float32(a), Float32(b)], text, "=f,f,f", loc, ip))


@dsl_user_op
def sqrt(a, *, loc=None, ip=None):
    """The square root, correctly rounded. Shapes: f32."""
    return Float32(_asm(T.f32(), [Float32(a)], "sqrt.rn.f32 $0, $1;", "=f,f", loc, ip))


@dsl_user_op
def bits(x, *, loc=None, ip=None):
    """The bits of f32, as i32."""
    return Int32(llvm.bitcast(T.i32(), Float32(x).ir_value(loc=loc, ip=ip), loc=loc, ip=ip))


@dsl_user_op
def from_bits(x, *, loc=None, ip=None):
    """f32 from its bits."""
    return Float32(llvm.bitcast(T.f32(), Int32(x).ir_value(loc=loc, ip=ip), loc=loc, ip=ip))


def _several(kind, n, loc, ip, value):
    return [kind(llvm.extractvalue(kind.mlir_type, value, [i], loc=loc, ip=ip)) for i in range(n)]


@dsl_user_op
def load_words(address, n, *, loc=None, ip=None):
    """n (2 or 4) i32 from global memory that nobody writes meanwhile, at an address that 4 n divides."""
    outs = ", ".join(f"${i}" for i in range(n))
    result = llvm.StructType.get_literal([T.i32()] * n)
    value = _asm(
        result, [Int64(address)], f"ld.global.nc.L1::no_allocate.v{n}.b32 {{{outs}}}, [${n}];",
        ",".join(["=r"] * n) + ",l", loc, ip,
    )  # fmt: skip
    return _several(Int32, n, loc, ip, value)


@dsl_user_op
def store_words(address, words, *, loc=None, ip=None):
    """1, 2 or 4 i32 to global memory, at an address that their size divides."""
    n = len(words)
    ins = ", ".join(f"${i + 1}" for i in range(n))
    wide = f".v{n}.b32 [$0], {{{ins}}};" if n > 1 else ".b32 [$0], $1;"
    _asm(None, [Int64(address), *words], "st.global" + wide, "l" + ",r" * n, loc, ip, effects=True)
