"""Finding a build of FlashMLA that loads, without importing what is not asked for."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import torch

from dsv4core import env
from dsv4core.probe import describe, installed_version, module_exists
from dsv4core_cuda.flashmla_library import MODULE, FlashMLAModule, FlashMLAOps, Library

VARIABLE = "DSV4CORE_FLASHMLA_LIBRARY"
NAMESPACES = ("_flashmla_C", "flash_mla_legacy")
HINT = "python -m pip install --no-deps sgl-flash-mla"


def find() -> tuple[Library | None, str]:
    """A build that loads, or None and why; nothing is run yet.

    The variable comes first and alone; then the module, then vLLM's library, which is loaded without
    importing vLLM.
    """
    named = env.read(VARIABLE)
    if named:
        return _loaded(Path(named), f"{VARIABLE}={named}")
    reasons: list[str] = []
    if module_exists(MODULE):
        try:
            return FlashMLAModule(importlib.import_module(MODULE)), ""
        except (Exception, SystemExit) as error:  # each build fails in its own way without its device
            reasons.append(f"{MODULE} does not load: {describe(error)}")
    for file in _vllm():
        library, reason = _loaded(file, f"vllm {installed_version('vllm') or ''}".strip())
        if library is not None:
            return library, ""
        reasons.append(reason)
    return None, "; ".join(reasons) or f"FlashMLA is not installed ({HINT})"


def _loaded(file: Path, name: str) -> tuple[Library | None, str]:
    if not file.is_file():
        return None, f"{name}: there is no such file"
    try:
        torch.ops.load_library(str(file))
        namespace = next(n for n in NAMESPACES if hasattr(getattr(torch.ops, n), "sparse_decode_fwd"))
        return FlashMLAOps(namespace, name), ""
    except StopIteration:
        return None, f"{file} has none of the ops {', '.join(f'{n}.sparse_decode_fwd' for n in NAMESPACES)}"
    except Exception as error:
        return None, f"{file} does not load: {describe(error)}"


def _vllm() -> list[Path]:
    try:
        found = importlib.util.find_spec("vllm") if module_exists("vllm") else None
    except ValueError:  # a module of that name without a spec: what somebody made in its place
        return []
    places = found.submodule_search_locations if found is not None else None
    return [file for place in places or () for file in sorted(Path(place).glob("_flashmla_C*.so"))]
