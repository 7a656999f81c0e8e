"""Stands in for `cutlass`, so that the source of a CuTeDSL kernel runs on `host_device`.

Modules are replaced: import it in a process of its own. Instructions are those that `sparse_indexer`,
`few_tokens` and the fold of `sparse_decode` use.
"""

from __future__ import annotations

import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from host_device import BASE, Block, Device, Fault, Phase, words

np.seterr(all="ignore")
device = Device(0)


def wrapped(bits: int) -> type:
    """Signed integers of so many bits, whose shifts are by less than that."""
    half, mask = 1 << (bits - 1), (1 << bits) - 1

    class Whole(int):
        def __new__(cls, value: Any = 0) -> Any:
            return int.__new__(cls, ((int(value) + half) & mask) - half)

        def __neg__(self) -> Any:
            return type(self)(-int(self))

    def operator(name: str, swapped: bool) -> Any:
        plain = getattr(int, f"__{name}__")

        def apply(self: Any, other: Any) -> Any:
            a, b = (int(other), int(self)) if swapped else (int(self), int(other))
            if name in ("lshift", "rshift") and not 0 <= b < bits:
                raise Fault(f"a shift of {bits} bits by {b}")
            kind = Int64 if isinstance(other, Int64) else type(self)
            return kind(plain(a, b))

        return apply

    for name in ("add", "sub", "mul", "and", "or", "xor", "lshift", "rshift", "floordiv", "mod"):
        setattr(Whole, f"__{name}__", operator(name, False))
        setattr(Whole, f"__r{name}__", operator(name, True))
    return Whole


Int64 = wrapped(64)
Int32 = wrapped(32)


class Float32(np.float32):
    """What kernels make; results of arithmetic are numpy's own."""

    inf = np.float32(np.inf)


def kind_of(*values: Any) -> type:
    return next((type(x) for x in values if isinstance(x, (Int32, Int64))), Int32)


def counted(*bounds: Any, unroll: int = 1) -> Iterator[Any]:
    return (Int32(i) for i in range(*map(int, bounds)))


def of_warp(what: Any, value: Any, combine: Callable[[list[Any]], Any]) -> Any:
    warp, lane = divmod(device.now.index, 32)
    return device.meet(("warp", warp), 32, lane, what, value, combine)


def of_group(what: Any, value: Any, combine: Callable[[list[Any]], Any] | None = None) -> Any:
    group, member = divmod(device.now.index, 128)
    return device.meet(("group", group), 128, member, what, value, combine)


def named(wait: bool) -> Callable[..., None]:
    def barrier(barrier_id: int, number_of_threads: int) -> None:
        what = ("barrier", number_of_threads)
        device.meet(barrier_id, number_of_threads, device.now.index, what, 0, None, wait)

    return barrier


def reduced(value: Any, kind: str) -> Any:
    function = {"add": sum, "max": max, "min": min}[kind]
    return of_warp(kind, value, lambda all_: [Int32(function(map(int, all_)))] * 32)


def of_block() -> None:
    device.meet("block", threads, device.now.index, "sync", 0, None)


def cluster_arrive() -> None:
    phase = cluster[0].phases[CLUSTER]
    phase.pending -= 1
    device.settle(phase)


def cluster_wait() -> None:
    """Of a thread's next round: it has waited for all before."""
    phase, thread = cluster[0].phases[CLUSTER], device.now
    parity, thread.rounds = thread.rounds % 2, thread.rounds + 1
    while phase.parity == parity:
        phase.waiting.append(thread)
        device.wait()


def ballot(votes: list[bool]) -> list[Any]:
    return [Int32(sum(vote << lane for lane, vote in enumerate(votes)))] * 32


grid = (1, 1, 1)
threads = 0
cluster: list[Block] = []
"""The blocks that run side by side."""
CLUSTER = -1
"""Where the first of them has the cluster's barrier."""
arch = SimpleNamespace(
    thread_idx=lambda: (Int32(device.now.index),),
    block_idx=lambda: tuple(map(Int32, device.now.block.index)),
    grid_dim=lambda: tuple(map(Int32, grid)),
    lane_idx=lambda: Int32(device.now.index % 32),
    make_warp_uniform=lambda x: x,
    sync_threads=of_block,
    cluster_arrive=cluster_arrive,
    cluster_arrive_relaxed=cluster_arrive,
    cluster_wait=cluster_wait,
    fence_view_async_shared=lambda: None,
    sync_warp=lambda: of_warp("sync", 0, lambda all_: all_),
    setmaxregister_decrease=lambda n: of_group(("registers", n), 0),
    setmaxregister_increase=lambda n: of_group(("registers", n), 0),
    shuffle_sync=lambda x, i: of_warp("shuffle", (x, int(i)), lambda a: [a[i][0] for _, i in a]),
    shuffle_sync_down=lambda x, n: of_warp(("down", n), x, lambda a: [a[min(i + n, 31)] for i in range(32)]),
    shuffle_sync_bfly=lambda x, n: of_warp(("bfly", n), x, lambda a: [a[i ^ n] for i in range(32)]),
    warp_redux_sync=reduced,
    vote_ballot_sync=lambda p: of_warp("vote", p, ballot),
    fmax=lambda a, b: larger(a, b),
    popc=lambda x: Int32((int(x) & 0xFFFFFFFF).bit_count()),
    barrier=named(True),
    barrier_arrive=named(False),
)


class Constexpr:
    def __class_getitem__(cls, kind: Any) -> Any:
        return kind


def same(x: Any) -> Any:
    return x


def install() -> None:
    """Put the modules that kernels import in their places."""
    pick = {"min": min, "max": max}
    chosen = {n: lambda a, b, f=f: kind_of(a, b)(f(int(a), int(b))) for n, f in pick.items()}
    contents: dict[str, dict[str, Any]] = {
        "cutlass": {
            "Int32": Int32, "Int64": Int64, "Float32": Float32, "Constexpr": Constexpr, "range": counted,
            "range_constexpr": range, "const_expr": same, "select_": lambda c, a, b: a if c else b, **chosen,
        },
        "cutlass.cute": {
            "arch": arch, "jit": same, "kernel": same, "math": SimpleNamespace(log2=np.log2),
        },
        "cutlass.utils": {}, "cutlass.utils.hopper_helpers": {},
        "cutlass.cute.nvgpu": {"warpgroup": None},
        "cutlass._mlir": {}, "cutlass._mlir.dialects": {"llvm": None},
        "cutlass.cutlass_dsl": {"T": None, "dsl_user_op": same},
    }  # fmt: skip
    for name, values in contents.items():
        module = ModuleType(name)
        vars(module).update(values, __path__=[])
        sys.modules[name] = module
    vars(sys.modules["cutlass"]).update(
        cute=sys.modules["cutlass.cute"], BFloat16=None, utils=sys.modules["cutlass.utils"]
    )
    vars(sys.modules["cutlass.utils"])["hopper_helpers"] = sys.modules["cutlass.utils.hopper_helpers"]
    from dsv4core_cuda.cutedsl.kernels import _ptx

    vars(_ptx).update(PTX)
    from dsv4core_cuda.cutedsl.kernels import _async, _cluster, _listed_rows

    vars(_async).update(ASYNC)
    vars(_cluster).update(OF_CLUSTER)
    vars(_listed_rows).update(load_word=PTX["load_i32"])


def bits(x: Any) -> Any:
    return Int32(np.float32(x).view(np.int32))


def from_bits(x: Any) -> Any:
    return np.int32(int(x)).view(np.float32)


def bf16(x: Any) -> int:
    word = int(bits(x)) & 0xFFFFFFFF
    return 0x7FFF if word & 0x7FFFFFFF > 0x7F800000 else (word + 0x7FFF + (word >> 16 & 1)) >> 16 & 0xFFFF


def larger(a: Any, b: Any) -> Any:
    return np.fmax(np.float32(a), np.float32(b))


def pair_mul(a: Any, b: Any) -> Any:
    low = bf16(from_bits(a << 16) * from_bits(b << 16))
    return Int32(low | bf16(from_bits(a & -65536) * from_bits(b & -65536)) << 16)


def pair_mul_f16(a: Any, b: Any) -> Any:
    x, y = (np.frombuffer(struct.pack("<i", int(v)), np.float16) for v in (a, b))
    return Int32((x * y).view(np.int32)[0])


def accesses(form: str, size: int) -> tuple[Callable[..., Any], Callable[..., None]]:
    kind = {"i": Int32, "q": Int64}[form]

    def read(address: Any, n: int = 1) -> Any:
        device.rest()
        block = device.now.block
        return [kind(x) for x in words(block.bytes, block.place(address, size * n), f"<{n}{form}")]

    def write(address: Any, values: Any) -> None:
        device.rest()
        block, n = device.now.block, len(values)
        words(block.bytes, block.place(address, size * n, True), f"<{n}{form}", *map(kind, values))

    return read, write


def count_shared(address: Any, more: Any) -> Any:
    device.rest()
    return changed(device.now.block.bytes, device.now.block.place(address, 4, True), lambda x: x + more)


def raise_shared(address: Any, least: Any) -> Any:
    return changed(device.now.block.bytes, device.now.block.place(address, 4, True), lambda x: max(x, least))


def count_global(address: Any, more: Any) -> Any:
    device.rest()
    return changed(*device.memory.at(address, 4), lambda x: x + more)


def changed(array: Any, offset: int, function: Callable[[Any], Any]) -> Any:
    (before,) = words(array, offset, "<i")
    words(array, offset, "<i", Int32(function(Int32(before))))
    return Int32(before)


def loaded(form: str, size: int, kind: type) -> Callable[..., Any]:
    def load(address: Any) -> Any:
        found = [kind(x) for x in words(*device.memory.at(address, size), form)]
        return found if len(found) > 1 else found[0]

    return load


def store_words(address: Any, values: Any) -> None:
    words(*device.memory.at(address, 4 * len(values)), f"<{len(values)}i", *map(Int32, values))


def barrier_start(address: Any, arrivals: Any) -> None:
    device.now.block.place(address, 8)
    device.now.block.phases[int(address)] = Phase(int(arrivals), int(arrivals))


def barrier_wait(address: Any, parity: Any) -> None:
    device.rest()
    phase = device.now.block.phase(address)
    while phase.parity == parity:  # the phase of that parity is not over
        phase.waiting.append(device.now)
        device.wait()


def bulk_copy(target: Any, source: Any, size: int, barrier: Any) -> None:
    block, start = device.now.block, int(target) - BASE
    array, offset = device.memory.at(source, size)
    if size % 16 or target % 16 or start < 0 or start + size > len(block.bytes):
        raise Fault(f"a copy of {size} bytes to {int(target):#x}")
    phase = device.arrive(barrier, size)

    def end() -> None:
        block.bytes[start : start + size] = array[offset : offset + size]
        phase.bytes -= size
        device.settle(phase)

    device.copy(end)


def copy_ahead(target: Any, source: Any, size: int) -> None:
    """A copy of 4 to 16 bytes that the thread waits for by groups."""
    thread, group = device.now, len(device.now.groups) - 1
    offset, (array, start) = thread.block.place(target, size, True), device.memory.at(source, size)
    thread.groups[group] += 1

    def end() -> None:
        thread.block.bytes[offset : offset + size] = array[start : start + size]
        thread.groups[group] -= 1
        if thread.due and not any(thread.groups[: thread.due]):
            thread.due = 0
            device.ready.append(thread)

    device.copy(end)


def copies_wait(pending: int) -> None:
    thread = device.now
    closed = len(thread.groups) - 1 - pending
    if any(thread.groups[: max(closed, 0)]):
        thread.due = closed
        device.wait()


def peer(address: Any, rank: Any) -> Any:
    """A shared address with the block's number, which is not 0 there, in its high bits."""
    return Int32(int(address) | (int(rank) + 1) << 24)


def send(address: Any, xs: Any, barrier: Any) -> None:
    there = cluster[(int(address) >> 24) - 1]
    phase = there.phase(int(barrier) & 0xFFFFFF)
    if barrier >> 24 != address >> 24:
        raise Fault("bytes are counted in another block")
    offset = there.place(int(address) & 0xFFFFFF, 16, True)

    def end() -> None:
        words(there.bytes, offset, "<4f", *xs)
        phase.bytes -= 16
        device.settle(phase)

    device.copy(end)


def read_peer(address: Any, n: int, there: Any) -> Any:
    if not there:
        return [Int32(0)] * n
    device.rest()
    block = cluster[(int(address) >> 24) - 1]
    place = block.place(int(address) & 0xFFFFFF, 4 * n)
    return [Int32(x) for x in words(block.bytes, place, f"<{n}i")]


def write_peer(address: Any, x: Any) -> None:
    device.rest()
    block = cluster[(int(address) >> 24) - 1]
    words(block.bytes, block.place(int(address) & 0xFFFFFF, 4, True), "<f", float(x))


def pair_e4m3(low: Any, high: Any) -> Any:
    """By the definition, not by steps: of the codes' magnitudes the nearest, at a tie the even one."""
    found = 0
    for shift, x in ((0, low), (8, high)):
        gaps = np.abs(E4M3 - min(abs(float(x)), 448.0))
        nearest = np.flatnonzero(gaps == gaps.min())
        code = min(nearest, key=lambda i: i % 2)
        found |= (int(code) | 128 * bool(np.signbit(x))) << shift
    return Int32(found)


E4M3 = np.array([(c % 8 + 8 * (c > 7)) * 2.0 ** (max(c // 8, 1) - 10) for c in range(127)])
"""Values of the codes 0 to 126."""

products_of: Counter[str] = Counter()
"""Products of 64 rows that groups have taken, by what they are of."""
THREADS = np.arange(128)
ROWS, COLUMNS = THREADS // 32 * 16 + THREADS % 32 // 4, THREADS % 4 * 2


def products(rows: Any, descriptor: Any, kind: str, before: Any = (), size: int = 64) -> Any:
    """What a group's 128 threads hold of 64 rows times `size` in shared memory, as `wgmma` lays them out."""
    block, steps = device.now.block, len(rows) // 4

    def widened(x: np.ndarray) -> np.ndarray:
        return x.view(np.float16).astype(np.float64) if kind == "f16" else high(x).astype(np.float64)

    def high(x: np.ndarray) -> np.ndarray:
        return (x.astype(np.uint32) << 16).view(np.float32)

    def combine(brought: list[Any]) -> list[Any]:
        products_of[kind] += steps / 8
        held = np.array([[int(w) & 0xFFFFFFFF for w in r] for r, *_ in brought], np.uint32).view(np.uint16)
        a = np.zeros((64, 16 * steps))
        for i in range(8 * steps):
            step, word, half = i // 8, i // 2 % 4, i % 2
            column = 16 * step + COLUMNS + 8 * (word // 2) + half
            a[ROWS + 8 * (word % 2), column] = widened(held[:, i].copy())
        (d,) = {int(d) & (1 << 64) - 1 for _, d, _ in brought}
        at, blocks = ((d & 0x3FFF) << 4) - BASE, steps // 4
        if (at + BASE) % 1024 or d >> 14 != ((1 << 16) | (64 << 32) | (1 << 62)) >> 14:
            raise Fault(f"a descriptor {d:#x}")
        n, chunk = np.arange(size)[:, None], np.arange(8)[None]
        parts = block.bytes[at : at + size * 128 * blocks].reshape(blocks, size, 8, 16)
        b = np.concatenate([part[n, chunk ^ n % 8].reshape(size, 128) for part in parts], 1).copy()
        found = a @ widened(b.view(np.uint16)).T
        places = [(8 * (i // 2 % 2), 8 * (i // 4) + i % 2) for i in range(size // 2)]
        sums = [[found[ROWS[t] + row, COLUMNS[t] + column] for row, column in places] for t in THREADS]
        earlier = [x or [0.0] * len(places) for *_, x in brought]
        return [
            [np.float32(x + y) for x, y in zip(*pair, strict=True)]
            for pair in zip(sums, earlier, strict=True)
        ]

    return of_group("products", (rows, descriptor, before), combine)


def whole_products(rows: Any, descriptor: Any) -> Any:
    """As `products`, of signed bytes, in whole numbers."""
    block = device.now.block

    def combine(brought: list[Any]) -> list[Any]:
        products_of["bytes"] += 1
        held = np.array([[int(w) & 0xFFFFFFFF for w in r] for r, _ in brought], np.uint32).view(np.int8)
        a = np.zeros((64, 128), np.int64)
        for i in range(64):
            step, word, byte = i // 16, i // 4 % 4, i % 4
            a[ROWS + 8 * (word % 2), 32 * step + 16 * (word // 2) + 2 * COLUMNS + byte] = held[:, i]
        (d,) = {int(d) & (1 << 64) - 1 for _, d in brought}
        at = ((d & 0x3FFF) << 4) - BASE
        if (at + BASE) % 1024 or d >> 14 != ((1 << 16) | (64 << 32) | (1 << 62)) >> 14:
            raise Fault(f"a descriptor {d:#x}")
        n, chunk = np.arange(64)[:, None], np.arange(8)[None]
        b = block.bytes[at : at + 8192].reshape(64, 8, 16)[n, chunk ^ n % 8].reshape(64, 128)
        found = a @ b.view(np.int8).astype(np.int64).T
        places = [(8 * (i // 2 % 2), 8 * (i // 4) + i % 2) for i in range(32)]
        return [[Int32(found[ROWS[t] + row, COLUMNS[t] + column]) for row, column in places] for t in THREADS]

    return of_group("whole products", (rows, descriptor), combine)


def permuted(a: Any, b: Any, order: str) -> Any:
    return looked_up(a, b, int(order, 16))


def looked_up(a: Any, b: Any, order: Any) -> Any:
    both = ((int(b) & 0xFFFFFFFF) << 32 | int(a) & 0xFFFFFFFF).to_bytes(8, "little")
    nibbles = [int(order) >> 4 * i & 15 for i in range(4)]
    return Int32(
        int.from_bytes(bytes(both[n] if n < 8 else both[n & 7] // 128 * 255 for n in nibbles), "little")
    )


def mul_clamped(a: Any, b: Any) -> Any:
    found = np.float32(a) * np.float32(b)
    return np.float32(0.0) if np.isnan(found) else np.clip(found, np.float32(0.0), np.float32(1.0))


def read_byte(address: Any) -> Any:
    device.rest()
    block = device.now.block
    return Int32(block.bytes[block.place(address, 1)])


read_words, write_words = accesses("i", 4)
read_wide, write_wide = accesses("q", 8)
PTX = {
    "wait_turn": lambda: None,
    "mul": lambda a, b: np.float32(a) * np.float32(b),
    "add": lambda a, b: np.float32(a) + np.float32(b),
    "fma": lambda a, b, c: np.float32(np.float64(a) * np.float64(b) + np.float64(c)),
    "larger": larger, "bits": bits, "from_bits": from_bits, "pair_mul": pair_mul,
    "pair_bf16": lambda low, high: Int32(bf16(low) | bf16(high) << 16),
    "shared_base": lambda: Int32(BASE), "read_shared": read_words, "write_shared": write_words,
    "read_shared_i64": lambda address: read_wide(address)[0],
    "write_shared_i64": lambda address, x: write_wide(address, [x]),
    "load_words": lambda address, n: list(loaded(f"<{n}i", 4 * n, Int32)(address)),
    "copy_ahead": copy_ahead, "copies_wait": copies_wait,
    "copies_commit": lambda: device.now.groups.append(0), "permuted": permuted,
    "looked_up": looked_up, "mul_clamped": mul_clamped, "read_shared_u8": read_byte,
    "load_i32": loaded("<i", 4, Int32), "store_words": store_words, "load_i64": loaded("<q", 8, Int64),
    "sub": lambda a, b: np.float32(a) - np.float32(b), "pair_e4m3": pair_e4m3,
    "store_u8": lambda address, x: words(*device.memory.at(address, 1), "<B", int(x) & 255),
}  # fmt: skip
OF_CLUSTER = {
    "peer": peer, "send": send, "read_peer": read_peer, "write_peer": write_peer, "exp2": np.exp2,
    "own_block": lambda: arch.block_idx(),
}  # fmt: skip
ASYNC = {
    "barrier_start": barrier_start, "barriers_visible": lambda: None, "barrier_wait": barrier_wait,
    "barrier_arrive": lambda address: device.arrive(address), "bulk_copy": bulk_copy,
    "count_shared": count_shared, "tell_shared": count_shared, "raise_shared": raise_shared,
    "count_global": count_global, "tell_global": count_global, "look_global": loaded("<4i", 16, Int32),
    "store_i64": lambda address, x: words(*device.memory.at(address, 8), "<q", Int64(x)),
    "look_i64": loaded("<q", 8, Int64), "pause": lambda nanoseconds: device.sleep(), "products": products,
    "whole_products": whole_products,
    "products_begin": lambda rows, others, columns: products(rows, others, "bf16", size=columns),
    "products_end": same, "barrier_expect": lambda address, size: device.arrive(address, size),
    "pair_mul_f16": pair_mul_f16, "shifted_down": lambda x, n: Int64((int(x) & (1 << 64) - 1) >> int(n)),
    "leading_zeros": lambda x: Int32(32 - (int(x) & 0xFFFFFFFF).bit_length()),
}  # fmt: skip


def launch(kernel: Any, blocks: tuple[int, int, int], size: int, shared: int, arguments: Any) -> None:
    """Run the blocks of a grid, those of one y and z side by side."""
    global grid, threads, cluster
    grid, threads = blocks, size
    for y, z in product(range(blocks[1]), range(blocks[2])):
        cluster = [Block((x, y, z), shared, x) for x in range(blocks[0])]
        cluster[0].phases[CLUSTER] = Phase(blocks[0] * size, blocks[0] * size)
        device.run(cluster, size, lambda: kernel(*arguments))
