"""Stands in for `cutlass`, so that the source of a CuTeDSL kernel runs on `host_device`.

Modules are replaced: import it in a process of its own. Instructions are those that `sparse_indexer`,
`few_tokens` and the fold of `sparse_decode` use.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from host_device import BASE, words
from host_launch import arch, launched
from host_memory import (
    accesses,
    barrier_start,
    barrier_wait,
    bulk_copy,
    copies_wait,
    copy_ahead,
    count_global,
    count_shared,
    loaded,
    peer,
    raise_shared,
    read_byte,
    read_peer,
    send,
    store_words,
    write_peer,
)
from host_numbers import (
    Float32,
    Int32,
    Int64,
    bf16,
    bits,
    from_bits,
    kind_of,
    larger,
    looked_up,
    mul_clamped,
    pair_e4m3,
    pair_mul,
    pair_mul_f16,
    permuted,
)
from host_products import products, whole_products


def counted(*bounds: Any, unroll: int = 1) -> Iterator[Any]:
    return (Int32(i) for i in range(*map(int, bounds)))


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
    "copies_commit": lambda: launched.device.now.groups.append(0), "permuted": permuted,
    "looked_up": looked_up, "mul_clamped": mul_clamped, "read_shared_u8": read_byte,
    "load_i32": loaded("<i", 4, Int32), "store_words": store_words, "load_i64": loaded("<q", 8, Int64),
    "sub": lambda a, b: np.float32(a) - np.float32(b), "pair_e4m3": pair_e4m3,
    "store_u8": lambda address, x: words(*launched.device.memory.at(address, 1), "<B", int(x) & 255),
}  # fmt: skip
OF_CLUSTER = {
    "peer": peer, "send": send, "read_peer": read_peer, "write_peer": write_peer, "exp2": np.exp2,
    "own_block": lambda: arch.block_idx(),
}  # fmt: skip
ASYNC = {
    "barrier_start": barrier_start, "barriers_visible": lambda: None, "barrier_wait": barrier_wait,
    "barrier_arrive": lambda address: launched.device.arrive(address), "bulk_copy": bulk_copy,
    "count_shared": count_shared, "tell_shared": count_shared, "raise_shared": raise_shared,
    "count_global": count_global, "tell_global": count_global, "look_global": loaded("<4i", 16, Int32),
    "store_i64": lambda address, x: words(*launched.device.memory.at(address, 8), "<q", Int64(x)),
    "look_i64": loaded("<q", 8, Int64), "pause": lambda nanoseconds: launched.device.sleep(),
    "products": products, "whole_products": whole_products,
    "products_begin": lambda rows, others, columns: products(rows, others, "bf16", size=columns),
    "products_end": same, "barrier_expect": lambda address, size: launched.device.arrive(address, size),
    "pair_mul_f16": pair_mul_f16, "shifted_down": lambda x, n: Int64((int(x) & (1 << 64) - 1) >> int(n)),
    "leading_zeros": lambda x: Int32(32 - (int(x) & 0xFFFFFFFF).bit_length()),
}  # fmt: skip
