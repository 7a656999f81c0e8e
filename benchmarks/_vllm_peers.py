"""vLLM's Triton kernels, file by file out of an unpacked wheel; what they import elsewhere is stood in for.

vLLM itself is not installed and not imported. Its C++ query norm is taken where a library has registered it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

OPS = "vllm.models.deepseek_v4.common.ops"
PACKAGES = (
    "vllm", "vllm.model_executor", "vllm.model_executor.warmup", "vllm.models", "vllm.models.common",
    "vllm.models.common.ops", "vllm.models.deepseek_v4", "vllm.models.deepseek_v4.common", OPS, "vllm.utils",
    "vllm.v1", "vllm.v1.attention", "vllm.v1.attention.ops",
)  # fmt: skip
INDEX = {"index_fp8": (128, 128, 4, False), "index_mxfp4": (32, 64, 4, True)}
"""Values of a scale, bytes of a record's codes and of its scales, mxfp4; a main record has 64, 576 and 8."""
QUERY_NORM = "fused_deepseek_v4_qnorm_rope_kv_rope_quant_insert"
Peer = Callable[..., Any]


def load(place: Path) -> dict[str, Peer]:
    """Op -> vLLM's kernel for it, with our arguments. `place` holds the folder `vllm` of a wheel."""
    _stand_in(place)
    names = ("cache_utils", "fused_compress_quant_cache", "fused_indexer_q", "fused_inv_rope_fp8_quant",
             "save_partial_states")  # fmt: skip
    files = SimpleNamespace(**{name: import_module(f"{OPS}.{name}") for name in names})
    norms = import_module("vllm.models.common.ops.fused_qk_rmsnorm")
    peers = {
        "quantize_and_insert_k_cache": _insert(files.cache_utils),
        "dequantize_and_gather_k_cache": _gather(files.cache_utils),
        "compress_norm_rope_store": _compress(files.fused_compress_quant_cache),
        "fused_indexer_q_rope_quant": _index_queries(files.fused_indexer_q),
        "fused_inv_rope_fp8_quant": _inverse(files.fused_inv_rope_fp8_quant),
        "save_partial_states": _states(files.save_partial_states),
        "fused_q_kv_rmsnorm": lambda qr, kv, q_weight, kv_weight, *, eps: norms.fused_q_kv_rmsnorm(
            qr, kv, q_weight, kv_weight, eps
        ),
    }
    if hasattr(torch.ops._C, QUERY_NORM):
        peers["fused_qnorm_rope_kv_insert"] = _query_norm
    return peers


def _module(name: str, *, path: list[str] | None = None, **names: Any) -> None:
    found = ModuleType(name)
    found.__spec__ = ModuleSpec(name, None, is_package=path is not None)
    if path is not None:
        found.__path__ = found.__spec__.submodule_search_locations = path
    vars(found).update(names)
    sys.modules[name] = found


def _stand_in(place: Path) -> None:
    """Packages that run no code of their own, and the little that the files take from elsewhere in vLLM."""
    for name in PACKAGES:
        _module(name, path=[str(place / name.replace(".", "/"))])
    platform = SimpleNamespace(
        device_type="cuda", is_cuda=lambda: True, is_rocm=lambda: False, is_xpu=lambda: False,
        is_cpu=lambda: False, is_fp8_fnuz=lambda: False, fp8_dtype=lambda: torch.float8_e4m3fn,
        is_arch_support_pdl=torch.cuda.is_available,
    )  # fmt: skip
    envs = {"VLLM_TRITON_JIT_WARMUP_NUM_THREADS": 1}
    _module("vllm.envs", **envs)
    vars(sys.modules["vllm"])["envs"] = sys.modules["vllm.envs"]
    _module("vllm.platforms", current_platform=platform)
    _module("vllm.triton_utils", triton=triton, tl=tl, HAS_TRITON=True)
    _module("vllm.transformers_utils", path=[])
    _module("vllm.transformers_utils.deepseek_v4_utils", get_compress_ratios=None)
    _module("vllm.utils.import_utils", has_cutedsl=lambda: False)
    _module("vllm.utils.torch_utils", direct_register_custom_op=lambda **_: None)
    _module(
        "vllm.utils.deep_gemm", mqa_logits_use_mx_scales=lambda: False,
        get_tma_aligned_size=lambda x, size: -(-x // (16 // size)) * (16 // size),
    )  # fmt: skip
    quant = "vllm.model_executor.layers.quantization.utils.quant_utils"
    _module(quant, get_fp8_min_max=lambda: (-448.0, 448.0))


def _insert(file: Any) -> Peer:
    def call(k: Tensor, k_cache: Tensor, slot_mapping: Tensor, *, rows: int, layout: str) -> None:
        file.quantize_and_insert_k_cache(k, k_cache, slot_mapping, rows)

    return call


def _gather(file: Any) -> Peer:
    def call(
        out: Tensor, k_cache: Tensor, seq_lens: Tensor, gather_lens: Tensor | None, block_table: Tensor, *,
        rows: int, offset: int, layout: str,
    ) -> None:  # fmt: skip
        file._DEQUANTIZE_AND_GATHER_K_CACHE_KERNEL(
            out, k_cache, seq_lens, gather_lens, block_table, rows, offset
        )

    return call


def _compress(file: Any) -> Peer:
    def call(
        state_cache: Tensor, positions: Tensor, token_to_req: Tensor, slot_mapping: Tensor,
        block_table: Tensor, cos_sin: Tensor, norm_weight: Tensor, k_cache: Tensor, kv_slot_mapping: Tensor,
        *, ratio: int, head_dim: int, rows: int, layout: str, eps: float, rotate: str,
    ) -> None:  # fmt: skip
        block, codes, scales, fp4 = INDEX.get(layout, (64, 576, 8, False))
        pages = k_cache.as_strided(
            (k_cache.shape[0], rows, codes + scales), (k_cache.stride(0), codes + scales, 1)
        )
        file.compress_norm_rope_store_triton(
            state_cache, slot_mapping.shape[0], token_to_req, positions, slot_mapping, block_table,
            state_cache.shape[1], state_cache.shape[2] // 2, cos_sin, pages,
            SimpleNamespace(slot_mapping=kv_slot_mapping), {"launch_pdl": False}, head_dim, 64, ratio,
            ratio == 4, fp4, norm_weight, eps, block, codes, scales,
        )  # fmt: skip

    return call


def _index_queries(file: Any) -> Peer:
    def call(
        positions: Tensor, q: Tensor, cos_sin: Tensor, weights: Tensor, *, softmax_scale: float,
        head_scale: float, format: str, rotate: str,
    ) -> Any:  # fmt: skip
        return file.fused_indexer_q_rope_quant(
            positions, q, cos_sin, weights, softmax_scale, head_scale, format == "mxfp4"
        )

    return call


def _inverse(file: Any) -> Peer:
    def call(o: Tensor, positions: Tensor, cos_sin: Tensor, *, groups: int, scale_format: str) -> Any:
        tokens, heads, dim = o.shape
        each = heads // groups
        aligned = -(-tokens // 4) * 4
        codes, scales = file._fused_inv_rope_fp8_quant_kernel_impl(
            o, positions, cos_sin, each, 128, dim // 128, dim - 64, 32, False, 448.0, aligned, tokens, groups,
            each * dim, each * dim // 128, True,
        )  # fmt: skip
        return codes.transpose(0, 1), scales.transpose(0, 1)

    return call


def _states(file: Any) -> Peer:
    def call(
        kv: Tensor, score: Tensor, ape: Tensor, positions: Tensor, state_cache: Tensor, slot_mapping: Tensor,
        *, ratio: int,
    ) -> None:  # fmt: skip
        file._SAVE_PARTIAL_STATES_KERNEL(
            kv, score, ape, positions, state_cache, slot_mapping, state_cache.shape[1], kv.shape[1], ratio
        )

    return call


def _query_norm(
    q: Tensor, kv: Tensor, positions: Tensor, cos_sin: Tensor, k_cache: Tensor, slot_mapping: Tensor, *,
    rows: int, layout: str, eps: float, padded_heads: int,
) -> Tensor:  # fmt: skip
    op = getattr(torch.ops._C, QUERY_NORM)
    return op(q, kv, k_cache, slot_mapping, positions, cos_sin, padded_heads, eps, rows)
