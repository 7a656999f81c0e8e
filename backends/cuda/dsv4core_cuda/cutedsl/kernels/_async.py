"""Bulk copies behind barriers, counters, and products of 64 rows in registers. Shared addresses are i32."""

from cutlass import Float32, Int32, Int64
from cutlass._mlir.dialects import llvm
from cutlass.cutlass_dsl import T, dsl_user_op

from dsv4core_cuda.cutedsl.kernels._ptx import _asm, _several


@dsl_user_op
def barrier_start(address, arrivals, *, loc=None, ip=None):
    """A barrier that a phase of takes so many arrivals."""
    text = "mbarrier.init.shared.b64 [$0], $1;"
    _asm(None, [Int32(address), Int32(arrivals)], text, "r,r", loc, ip, effects=True)


@dsl_user_op
def barriers_visible(*, loc=None, ip=None):
    """What was initialised is there for copies, too."""
    text = "fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;"
    _asm(None, [], text, "", loc, ip, effects=True)


@dsl_user_op
def barrier_arrive(address, *, loc=None, ip=None):
    """Arrive at a barrier of this block."""
    _asm(None, [Int32(address)], "mbarrier.arrive.shared.b64 _, [$0];", "r", loc, ip, effects=True)


@dsl_user_op
def barrier_wait(address, parity, *, loc=None, ip=None):
    """Wait until the phase of a parity is over."""
    text = (
        "{.reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [$0], $1; @p bra over;"
        " bra again; over: }"
    )
    _asm(None, [Int32(address), Int32(parity)], text, "r,r,~{memory}", loc, ip, effects=True)


@dsl_user_op
def bulk_copy(target, source, size, barrier, *, loc=None, ip=None):
    """Begin to copy `size` bytes (16 divides all) to shared memory; the barrier's phase waits for them."""
    text = (
        f"mbarrier.arrive.expect_tx.shared.b64 _, [$2], {size};"
        f" cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [$0], [$1], {size}, [$2];"
    )
    values = [Int32(target), Int64(source), Int32(barrier)]
    _asm(None, values, text, "r,l,r,~{memory}", loc, ip, effects=True)


@dsl_user_op
def count_shared(address, more, *, loc=None, ip=None):
    """Add to an i32 in shared memory; what was there."""
    text = "atom.shared.add.u32 $0, [$1], $2;"
    return Int32(_asm(T.i32(), [Int32(address), Int32(more)], text, "=r,r,r,~{memory}", loc, ip, True))


@dsl_user_op
def tell_shared(address, more, *, loc=None, ip=None):
    """Add to an i32 in shared memory."""
    text = "red.shared.add.u32 [$0], $1;"
    _asm(None, [Int32(address), Int32(more)], text, "r,r,~{memory}", loc, ip, effects=True)


@dsl_user_op
def count_global(address, more, *, loc=None, ip=None):
    """Add to an i32 in global memory, after everything that this thread has seen; what was there."""
    text = "atom.acq_rel.gpu.global.add.u32 $0, [$1], $2;"
    return Int32(_asm(T.i32(), [Int64(address), Int32(more)], text, "=r,l,r,~{memory}", loc, ip, True))


@dsl_user_op
def tell_global(address, more, *, loc=None, ip=None):
    """Add to an i32 in global memory, in no order with anything."""
    text = "red.relaxed.gpu.global.add.u32 [$0], $1;"
    _asm(None, [Int64(address), Int32(more)], text, "l,r,~{memory}", loc, ip, effects=True)


@dsl_user_op
def look_global(address, *, loc=None, ip=None):
    """Four i32 of global memory that others are adding to."""
    result = llvm.StructType.get_literal([T.i32()] * 4)
    text = "ld.volatile.global.v4.b32 {$0, $1, $2, $3}, [$4];"
    return _several(Int32, 4, loc, ip, _asm(result, [Int64(address)], text, "=r,=r,=r,=r,l", loc, ip, True))


@dsl_user_op
def store_i64(address, value, *, loc=None, ip=None):
    """An i64 to global memory."""
    _asm(None, [Int64(address), Int64(value)], "st.global.b64 [$0], $1;", "l,l,~{memory}", loc, ip, True)


@dsl_user_op
def look_i64(address, *, loc=None, ip=None):
    """An i64 of global memory that another block wrote."""
    text = "ld.volatile.global.b64 $0, [$1];"
    return Int64(_asm(T.i64(), [Int64(address)], text, "=l,l,~{memory}", loc, ip, True))


@dsl_user_op
def pause(nanoseconds, *, loc=None, ip=None):
    """Let others run for about so long."""
    _asm(None, [Int32(nanoseconds)], "nanosleep.u32 $0;", "r", loc, ip, effects=True)


@dsl_user_op
def products(rows, queries, kind, before=(), *, loc=None, ip=None):
    """A warpgroup's 64 rows of channels times 64 rows in shared memory, waited for: 32 f32 a thread.

    `rows`: a step of 4 words for each 16 channels, pairs of `kind` ("f16" or "bf16"). `queries`: the
    descriptor of blocks of 64 channels, 8 KB each, rows of 128 bytes exchanged as `wgmma` wants them.
    `before`: what other channels have given, 32 f32 that these are added to.
    """
    n = len(rows)
    out = ", ".join(f"${i}" for i in range(32))
    steps = []
    for s in range(n // 4):
        a = ", ".join(f"${32 + 4 * s + i}" for i in range(4))
        offset = s % 4 * 2 + s // 4 * 512  # in 16 bytes
        steps.append(f"add.s64 d, ${32 + n}, {offset};")
        steps.append(
            f"wgmma.mma_async.sync.aligned.m64n64k16.f32.{kind}.{kind} {{{out}}}, {{{a}}}, d,"
            f" {'more' if s or before else 'none'}, 1, 1, 0;"
        )
    text = (
        "{.reg .pred none, more; .reg .b64 d; setp.ne.b32 none, 0, 0; setp.eq.b32 more, 0, 0;"
        " wgmma.fence.sync.aligned; " + " ".join(steps) + " wgmma.commit_group.sync.aligned;"
        " wgmma.wait_group.sync.aligned 0;}"
    )
    result = llvm.StructType.get_literal([T.f32()] * 32)
    tied = [str(i) for i in range(32)] if before else []
    constraints = ",".join(["=&f"] * 32 + ["r"] * n + ["l"] + tied) + ",~{memory}"
    values = [*rows, Int64(queries), *before]
    return _several(Float32, 32, loc, ip, _asm(result, values, text, constraints, loc, ip, True))


@dsl_user_op
def whole_products(rows, queries, *, loc=None, ip=None):
    """As `products`, of whole numbers: 32 i32 a thread, exact.

    `rows`: 4 steps of 4 words, each four s8. `queries`: the descriptor of one block of 128 channels, 8 KB.
    """
    out = ", ".join(f"${i}" for i in range(32))
    text = "{.reg .pred none, more; .reg .b64 d; setp.ne.b32 none, 0, 0; setp.eq.b32 more, 0, 0;"
    text += " wgmma.fence.sync.aligned;"
    for s in range(4):
        a = ", ".join(f"${32 + 4 * s + i}" for i in range(4))
        text += f" add.s64 d, $48, {2 * s}; wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8"
        text += f" {{{out}}}, {{{a}}}, d, {'more' if s else 'none'};"
    text += " wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;}"
    result = llvm.StructType.get_literal([T.i32()] * 32)
    constraints = ",".join(["=&r"] * 32 + ["r"] * 16 + ["l"]) + ",~{memory}"
    values = [*rows, Int64(queries)]
    return _several(Int32, 32, loc, ip, _asm(result, values, text, constraints, loc, ip, True))


@dsl_user_op
def products_begin(rows, others, columns, *, loc=None, ip=None):
    """Begin what `products` does with bf16 and 8, 16, .. `columns` rows of the other operand.

    -> columns / 2 f32 a thread, there after `products_end`.
    """
    n = columns // 2
    out = ", ".join(f"${i}" for i in range(n))
    text = "{.reg .pred none, more; .reg .b64 d; setp.ne.b32 none, 0, 0; setp.eq.b32 more, 0, 0;"
    text += " wgmma.fence.sync.aligned;"
    for s in range(8):
        a = ", ".join(f"${n + 4 * s + i}" for i in range(4))
        text += f" add.s64 d, ${n + 32}, {s % 4 * 2 + s // 4 * columns * 8};"  # in 16 bytes
        text += f" wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16 {{{out}}}, {{{a}}}, d,"
        text += f" {'more' if s else 'none'}, 1, 1, 0;"
    text += " wgmma.commit_group.sync.aligned;}"
    result = llvm.StructType.get_literal([T.f32()] * n)
    constraints = ",".join(["=&f"] * n + ["r"] * 32 + ["l"]) + ",~{memory}"
    values = [*rows, Int64(others)]
    return _several(Float32, n, loc, ip, _asm(result, values, text, constraints, loc, ip, True))


@dsl_user_op
def products_end(dots, *, loc=None, ip=None):
    """Wait for a warpgroup's products; they are the f32 that it had begun."""
    n = len(dots)
    result = llvm.StructType.get_literal([T.f32()] * n)
    constraints = ",".join(["=f"] * n + [str(i) for i in range(n)]) + ",~{memory}"
    text = "wgmma.wait_group.sync.aligned 0;"
    return _several(Float32, n, loc, ip, _asm(result, dots, text, constraints, loc, ip, True))


@dsl_user_op
def barrier_expect(address, size, *, loc=None, ip=None):
    """Arrive at a barrier whose phase then waits for `size` bytes, too."""
    text = f"mbarrier.arrive.expect_tx.shared.b64 _, [$0], {size};"
    _asm(None, [Int32(address)], text, "r,~{memory}", loc, ip, effects=True)


@dsl_user_op
def pair_mul_f16(a, b, *, loc=None, ip=None):
    """Products of two pairs of f16, rounded once."""
    return Int32(_asm(T.i32(), [Int32(a), Int32(b)], "mul.rn.f16x2 $0, $1, $2;", "=r,r,r", loc, ip))


@dsl_user_op
def raise_shared(address, least, *, loc=None, ip=None):
    """Make an i32 in shared memory no less than `least`."""
    text = "red.shared.max.s32 [$0], $1;"
    _asm(None, [Int32(address), Int32(least)], text, "r,r,~{memory}", loc, ip, effects=True)


@dsl_user_op
def shifted_down(x, by, *, loc=None, ip=None):
    """The bits of i64 moved down, zeros behind them."""
    return Int64(_asm(T.i64(), [Int64(x), Int32(by)], "shr.u64 $0, $1, $2;", "=l,l,r", loc, ip))


@dsl_user_op
def leading_zeros(x, *, loc=None, ip=None):
    """Zero bits above the highest one of i32."""
    return Int32(_asm(T.i32(), [Int32(x)], "clz.b32 $0, $1;", "=r,r", loc, ip))
