"""Compile every Triton kernel for devices that are not here, and compare it with a written baseline.

    python benchmarks/triton_aot.py                      # all targets against benchmarks/triton_aot.json
    python benchmarks/triton_aot.py --target sm90 --case "sparse*"
    python benchmarks/triton_aot.py --write              # a new baseline

Run it without TRITON_INTERPRET. It fails when a kernel does not compile, spills more than the baseline
allows, takes more shared memory than the target has, or lost its matrix instructions.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
os.environ["DSV4CORE_CHECK"] = "0"

import torch  # noqa: E402
import triton  # noqa: E402

from dsv4core.config import AttentionConfig  # noqa: E402
from dsv4core.kernels.triton import aot, portable  # noqa: E402
from dsv4core.kernels.triton._tuning import devices  # noqa: E402
from dsv4core.layout import get_layout  # noqa: E402
from dsv4core.samples import Size, sample  # noqa: E402

BASELINE = HERE / "triton_aot.json"
MATRIX = ("sparse_attention_kernel", "score_tiles_kernel", "use_tiles_kernel", "index_scores_kernel")
SLACK = 64  # spilled bytes that a baseline may be passed by: another release of Triton moves some
Call = tuple[str, dict[str, Any]]


def _sample(op: str, tokens: int = 3, **config: Any) -> Call:
    return op, sample(
        op, Size(tokens=tokens, context=200, config=AttentionConfig.preset("v4-flash", **config))
    )


def _decode(tokens: int, heads: int = 64, extra: int = 512, **config: Any) -> Call:
    op, given = _sample("sparse_decode", tokens, **config)
    given["swa_slots"] = given["swa_slots"].repeat(1, 2)
    given["extra_slots"] = given["extra_slots"].repeat(1, extra // 64)
    for name in ("q", "out"):
        given[name] = given[name][:, :1].repeat(1, heads, 1)
    given["attn_sink"] = given["attn_sink"][:1].repeat(heads)
    return op, given


def _compress(layout: str, ratio: int) -> Call:
    op, given = _sample("compress_norm_rope_store")
    found = get_layout(layout)
    dim = found.width or 0
    width = 2 * dim * (2 if ratio == 4 else 1)
    return op, {
        **given, "state_cache": torch.zeros(9, 4 if ratio == 4 else 8, width), "ratio": ratio,
        "head_dim": dim, "norm_weight": torch.ones(dim), "layout": layout, "rotate": found.rotate,
        "k_cache": torch.zeros(1, found.page_bytes(64), dtype=torch.uint8),
    }  # fmt: skip


def _with(made: Call, **changes: Any) -> Call:
    return made[0], {**made[1], **changes}


CASES: dict[str, Callable[[], Call]] = {
    **{name: (lambda name=name: _sample(name)) for name in portable.KERNELS if name != "sparse_decode"},
    "fused_indexer_q_rope_quant mxfp4 hadamard": lambda: _sample(
        "fused_indexer_q_rope_quant", profile="official"
    ),
    "quantize_and_insert_k_cache bf16_row": lambda: _sample(
        "quantize_and_insert_k_cache", main_layout="bf16_row"
    ),
    "indexer_topk short rows": lambda: ("indexer_topk", sample("indexer_topk", Size(tokens=3, context=40))),
    "compress ratio 128": lambda: _compress("fp8_ds_mla", 128),
    "compress index_fp8": lambda: _compress("index_fp8", 4),
    "compress index_mxfp4_hadamard": lambda: _compress("index_mxfp4_hadamard", 4),
    "indexer_logits mxfp4": lambda: _sample("indexer_logits", profile="official"),
    "sparse_indexer in chunks": lambda: _with(_sample("sparse_indexer"), k=64, workspace_bytes=1664),
    "sparse_decode 64 heads": lambda: _decode(60),
    "sparse_decode 64 heads, few tokens": lambda: _decode(1),
    "sparse_decode 16 heads": lambda: _decode(60, 16),
    "sparse_decode bf16_row": lambda: _decode(60, main_layout="bf16_row"),
    "sparse_decode two layouts": lambda: _with(_decode(60), extra_layout="fp8_ds_mla_fnuz"),
}  # fmt: skip


def usages(case: str, target: str) -> dict[str, aot.Usage]:
    """What the kernels of a case take on a target, by kernel."""
    op, arguments = CASES[case]()
    function = getattr(import_module(f"dsv4core.kernels.triton.{op}"), op)
    found: dict[str, aot.Usage] = {}
    for launch in aot.record(lambda: function(**arguments), target):
        if launch.name not in found:
            found[launch.name] = aot.compile_for(launch, target)
    return found


def judge(target: str, kernel: str, usage: aot.Usage, before: dict[str, int] | None) -> list[str]:
    """What is wrong with a compiled kernel."""
    wrong: list[str] = []
    if usage.shared > devices()[target].shared:
        wrong.append(f"{usage.shared} bytes of shared memory, {target} has {devices()[target].shared}")
    if kernel in MATRIX and usage.matrix == 0:
        wrong.append("no matrix instruction")
    if before is None:
        wrong.append("not in the baseline (--write)")
    elif usage.spills > before["spills"] + SLACK:
        wrong.append(f"spills {usage.spills}, the baseline has {before['spills']}")
    elif usage.matrix < before["matrix"] // 2:
        wrong.append(f"{usage.matrix} matrix instructions, the baseline has {before['matrix']}")
    return wrong


def main() -> int:
    """Compile, print, compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", action="append", choices=tuple(aot.TARGETS))
    parser.add_argument("--case", default="*")
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    known = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    began, failures = time.perf_counter(), 0
    print(f"triton {triton.__version__}\n{'target':7} {'case':44} {'kernel':36} regs spills shared matrix")
    for target in chosen.target or aot.TARGETS:
        for case in (c for c in CASES if fnmatchcase(c, chosen.case)):
            try:
                found = usages(case, target)
            except Exception as error:  # whatever a compiler raises is the finding
                failures += 1
                print(f"{target:7} {case:44} does not compile: {type(error).__name__}: {str(error)[-300:]}")
                continue
            for kernel, u in found.items():
                key = f"{case} / {kernel}"
                before = known.get(target, {}).get(key)
                wrong = [] if chosen.write and kernel not in MATRIX else judge(target, kernel, u, before)
                wrong = [w for w in wrong if not (chosen.write and "baseline" in w)]
                failures += bool(wrong)
                numbers = f"{u.registers:4} {u.spills:6} {u.shared:6} {u.matrix:6}"
                said = "".join(f"  WRONG: {w}" for w in wrong)
                print(f"{target:7} {case:44} {kernel:36} {numbers}{said}", flush=True)
                if chosen.write:
                    known.setdefault(target, {})[key] = {"spills": u.spills, "matrix": u.matrix}
    if chosen.write:
        BASELINE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    print(f"{failures} wrong, {time.perf_counter() - began:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
