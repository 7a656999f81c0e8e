"""Instructions that CuTeDSL does not choose by itself: explicit roundings (CA1 rule 1), wide accesses.

A plain `a * b + c` may be contracted into one rounding; `mul.rn` and `add.rn` may not. Addresses are i64.
"""

from cutlass import Float32, Int32, Int64, cute
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
def mul_clamped(a, b, *, loc=None, ip=None):
    """a * b, rounded once, and what of it lies in [0, 1]; 0 for NaN. Shapes: f32."""
    text = "mul.rn.sat.f32 $0, $1, $2;"
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
def wait_turn(*, loc=None, ip=None):
    """Wait until what was launched before is done, its writes visible; what comes behind may start waiting.

    First of all in a kernel whose `Program` is `early`: nothing of global memory is touched before it.
    """
    text = "griddepcontrol.launch_dependents; griddepcontrol.wait;"
    _asm(None, [], text, "~{memory}", loc, ip, effects=True)


@dsl_user_op
def load_words(address, n, *, loc=None, ip=None):
    """n (2 or 4) i32 from global memory, at an address that 4 n divides.

    Not through the read-only path and said to have effects, so that no compiler moves it behind a store:
    what a thread loads at once is under way at once.
    """
    outs = ", ".join(f"${i}" for i in range(n))
    result = llvm.StructType.get_literal([T.i32()] * n)
    value = _asm(
        result, [Int64(address)], f"ld.global.L1::no_allocate.v{n}.b32 {{{outs}}}, [${n}];",
        ",".join(["=r"] * n) + ",l", loc, ip, effects=True,
    )  # fmt: skip
    return _several(Int32, n, loc, ip, value)


@dsl_user_op
def fetch_line(address, *, loc=None, ip=None):
    """Begin to bring the 128 bytes around an address of global memory to the last-level cache."""
    _asm(None, [Int64(address)], "prefetch.global.L2 [$0];", "l", loc, ip, effects=True)


@dsl_user_op
def store_words(address, words, *, loc=None, ip=None):
    """1, 2 or 4 i32 to global memory, at an address that their size divides."""
    n = len(words)
    ins = ", ".join(f"${i + 1}" for i in range(n))
    wide = f".v{n}.b32 [$0], {{{ins}}};" if n > 1 else ".b32 [$0], $1;"
    _asm(None, [Int64(address), *words], "st.global" + wide, "l" + ",r" * n, loc, ip, effects=True)


@dsl_user_op
def larger(a, b, *, loc=None, ip=None):
    """The larger of two f32; a NaN loses."""
    return Float32(_asm(T.f32(), [Float32(a), Float32(b)], "max.f32 $0, $1, $2;", "=f,f,f", loc, ip))


@dsl_user_op
def add_down(a, b, *, loc=None, ip=None):
    """a + b, rounded towards minus infinity. Shapes: f32."""
    return Float32(_asm(T.f32(), [Float32(a), Float32(b)], "add.rm.f32 $0, $1, $2;", "=f,f,f", loc, ip))


@dsl_user_op
def pair_bf16(low, high, *, loc=None, ip=None):
    """Two f32 rounded to bf16 (to nearest even, NaN stays NaN), in one i32."""
    text = "cvt.rn.bf16x2.f32 $0, $2, $1;"
    return Int32(_asm(T.i32(), [Float32(low), Float32(high)], text, "=r,f,f", loc, ip))


@dsl_user_op
def pair_e4m3(low, high, *, loc=None, ip=None):
    """Two f32 to e4m3fn in one rounding each, saturating, in the low half of an i32."""
    text = "{.reg .b16 t; cvt.rn.satfinite.e4m3x2.f32 t, $2, $1; cvt.u32.u16 $0, t;}"
    return Int32(_asm(T.i32(), [Float32(low), Float32(high)], text, "=r,f,f", loc, ip))


@dsl_user_op
def from_i64(x, *, loc=None, ip=None):
    """f32 of i64, rounded once to nearest even."""
    return Float32(_asm(T.f32(), [Int64(x)], "cvt.rn.f32.s64 $0, $1;", "=f,l", loc, ip))


@dsl_user_op
def wide_mul(a, b, *, loc=None, ip=None):
    """i32 * i32 as i64."""
    return Int64(_asm(T.i64(), [Int32(a), Int32(b)], "mul.wide.s32 $0, $1, $2;", "=l,r,r", loc, ip))


@dsl_user_op
def shared_base(*, loc=None, ip=None):
    """The address of this block's dynamic shared memory, as i32."""
    return Int32(cute.arch.get_dyn_smem(Int32, 16, loc=loc, ip=ip).toint(loc=loc, ip=ip))


@dsl_user_op
def copy_ahead(target, source, size, *, loc=None, ip=None):
    """Begin to copy 4, 8 or 16 bytes from global to shared memory (`cp.async`)."""
    kind = "cg" if size == 16 else "ca"
    text = f"cp.async.{kind}.shared.global [$0], [$1], {size};"
    _asm(None, [Int32(target), Int64(source)], text, "r,l", loc, ip, effects=True)


@dsl_user_op
def copies_commit(*, loc=None, ip=None):
    """Close a group of copies."""
    _asm(None, [], "cp.async.commit_group;", "", loc, ip, effects=True)


@dsl_user_op
def copies_wait(pending, *, loc=None, ip=None):
    """Wait until no more than `pending` groups of this thread's copies are under way."""
    _asm(None, [], f"cp.async.wait_group {pending};", "", loc, ip, effects=True)


@dsl_user_op
def read_shared(address, n, *, loc=None, ip=None):
    """n (1, 2 or 4) i32 from shared memory."""
    if n == 1:
        text = "ld.shared.b32 $0, [$1];"
        return [Int32(_asm(T.i32(), [Int32(address)], text, "=r,r", loc, ip, effects=True))]
    outs = ", ".join(f"${i}" for i in range(n))
    result = llvm.StructType.get_literal([T.i32()] * n)
    text, constraints = f"ld.shared.v{n}.b32 {{{outs}}}, [${n}];", ",".join(["=r"] * n) + ",r"
    return _several(Int32, n, loc, ip, _asm(result, [Int32(address)], text, constraints, loc, ip, True))


@dsl_user_op
def read_shared_u8(address, *, loc=None, ip=None):
    """A byte of shared memory."""
    return Int32(_asm(T.i32(), [Int32(address)], "ld.shared.u8 $0, [$1];", "=r,r", loc, ip, effects=True))


@dsl_user_op
def read_shared_i64(address, *, loc=None, ip=None):
    """An i64 from shared memory."""
    return Int64(_asm(T.i64(), [Int32(address)], "ld.shared.b64 $0, [$1];", "=l,r", loc, ip, effects=True))


@dsl_user_op
def write_shared(address, words, *, loc=None, ip=None):
    """1, 2 or 4 i32 to shared memory."""
    n = len(words)
    ins = ", ".join(f"${i + 1}" for i in range(n))
    wide = f".v{n}.b32 [$0], {{{ins}}};" if n > 1 else ".b32 [$0], $1;"
    _asm(None, [Int32(address), *words], "st.shared" + wide, "r" + ",r" * n, loc, ip, effects=True)


@dsl_user_op
def write_shared_i64(address, value, *, loc=None, ip=None):
    """An i64 to shared memory."""
    _asm(None, [Int32(address), Int64(value)], "st.shared.b64 [$0], $1;", "r,l", loc, ip, effects=True)


@dsl_user_op
def load_i32(address, *, loc=None, ip=None):
    """An i32 from global memory that nobody writes meanwhile."""
    return Int32(_asm(T.i32(), [Int64(address)], "ld.global.nc.b32 $0, [$1];", "=r,l", loc, ip))


@dsl_user_op
def load_i64(address, *, loc=None, ip=None):
    """An i64 from global memory that nobody writes meanwhile."""
    return Int64(_asm(T.i64(), [Int64(address)], "ld.global.nc.b64 $0, [$1];", "=l,l", loc, ip))


@dsl_user_op
def load_u8_pair(address, *, loc=None, ip=None):
    """Two bytes of global memory in one i32, at an even address."""
    text = "{.reg .b16 t; ld.global.b16 t, [$1]; cvt.u32.u16 $0, t;}"
    return Int32(_asm(T.i32(), [Int64(address)], text, "=r,l", loc, ip, effects=True))


@dsl_user_op
def load_bf16(address, *, loc=None, ip=None):
    """A bf16 from global memory, widened."""
    text = "{.reg .b16 z, t; mov.b16 z, 0; ld.global.nc.b16 t, [$1]; mov.b32 $0, {z, t};}"
    return Float32(_asm(T.f32(), [Int64(address)], text, "=f,l", loc, ip))


@dsl_user_op
def store_u16(address, value, *, loc=None, ip=None):
    """The low 16 bits of i32 to global memory."""
    text = "{.reg .b16 t; cvt.u16.u32 t, $1; st.global.b16 [$0], t;}"
    _asm(None, [Int64(address), Int32(value)], text, "l,r", loc, ip, effects=True)


@dsl_user_op
def store_u8(address, value, *, loc=None, ip=None):
    """The low 8 bits of i32 to global memory."""
    text = "{.reg .b16 t; cvt.u16.u32 t, $1; st.global.b8 [$0], t;}"
    _asm(None, [Int64(address), Int32(value)], text, "l,r", loc, ip, effects=True)


def _two(text):
    @dsl_user_op
    def operation(a, b, *, loc=None, ip=None):
        return Int32(_asm(T.i32(), [Int32(a), Int32(b)], f"{text} $0, $1, $2;", "=r,r,r", loc, ip))

    return operation


pair_add = _two("add.rn.bf16x2")
"""Sums of two pairs of bf16, rounded once."""
pair_mul = _two("mul.rn.bf16x2")
"""Products of two pairs of bf16, rounded once."""
pair_least = _two("min.u16x2")
"""The smaller of two pairs of u16."""
pair_most = _two("max.u16x2")
"""The larger of two pairs of u16."""


@dsl_user_op
def permuted(a, b, order, *, loc=None, ip=None):
    """Four bytes of two words: nibbles of `order`, the lowest first, choose from a (0..3) and b (4..7).

    A nibble of 8 and more gives the sign of the byte that its other bits choose, eight times.
    """
    return Int32(_asm(T.i32(), [Int32(a), Int32(b)], f"prmt.b32 $0, $1, $2, {order};", "=r,r,r", loc, ip))


@dsl_user_op
def looked_up(a, b, order, *, loc=None, ip=None):
    """As `permuted`, of an `order` that is computed: the low half of an i32."""
    text = "prmt.b32 $0, $1, $2, $3;"
    return Int32(_asm(T.i32(), [Int32(a), Int32(b), Int32(order)], text, "=r,r,r,r", loc, ip))


@dsl_user_op
def from_pair_e4m3(codes, *, loc=None, ip=None):
    """The two f32 of the e4m3fn codes in the low half of an i32."""
    result = llvm.StructType.get_literal([T.f32()] * 2)
    text = (
        "{.reg .b16 c, l, h; .reg .b32 p; cvt.u16.u32 c, $2; cvt.rn.f16x2.e4m3x2 p, c; mov.b32 {l, h}, p; "
        "cvt.f32.f16 $0, l; cvt.f32.f16 $1, h;}"
    )
    return _several(Float32, 2, loc, ip, _asm(result, [Int32(codes)], text, "=f,=f,r", loc, ip))


@dsl_user_op
def chosen_bytes(a, order, *, loc=None, ip=None):
    """Four bytes of a word: nibbles of `order`, the lowest first, choose."""
    return Int32(_asm(T.i32(), [Int32(a), Int32(order)], "prmt.b32 $0, $1, 0, $2;", "=r,r,r", loc, ip))
