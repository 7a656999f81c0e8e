"""Finding a build of FlashMLA that loads, without importing what is not asked for."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from dsv4core import env
from dsv4core.probe import describe, installed_version, module_exists
from dsv4core_cuda.flashmla_library import MODULE, FlashMLAModule, FlashMLAOps, Library

VARIABLE = "DSV4CORE_FLASHMLA_LIBRARY"
NAMESPACES = ("_flashmla_C", "flash_mla_legacy")
HINT = "python -m pip install --no-deps sgl-flash-mla"
TIMES_BEST = {MODULE: 1.02, "vllm": 1.19}
"""Module -> how many times as long as the fastest build its decode took at most, for 1 to 512 tokens of 64
and 128 heads on an H100 (`benchmarks/results/h100-attention.csv`). The first is sgl's and tokenspeed's."""
Against = Callable[[Library], str]
"""Why a library that loads is not to be used, "" where it is."""


def find(against: Against = lambda library: "") -> tuple[Library | None, str]:
    """The first build that loads and that nothing is `against`, and why not another; or None and why.

    The variable comes first and alone; then what `TIMES_BEST` has, fastest first. vLLM is not imported.
    """
    named = env.read(VARIABLE)
    if named:
        library, reason = _loaded(Path(named), f"{VARIABLE}={named}")
        reason = against(library) if library is not None else reason
        return (None if reason else library), reason
    reasons: list[str] = []
    for name in sorted(TIMES_BEST, key=TIMES_BEST.__getitem__):
        for library, reason in _module() if name == MODULE else _vllm():
            reason = against(library) if library is not None else reason
            if library is not None and not reason:
                return library, "; ".join(reasons + _slower(name))
            reasons.append(reason)
    return None, "; ".join(reasons) or f"FlashMLA is not installed ({HINT})"


def _slower(chosen: str) -> list[str]:
    """What is installed beside the chosen build, and how much slower it measured."""
    behind = [n for n in TIMES_BEST if TIMES_BEST[n] > TIMES_BEST[chosen] and module_exists(n)]
    return [f"{n} is slower: up to {TIMES_BEST[n]} times the best decode on an H100" for n in behind]


def _module() -> Iterator[tuple[Library | None, str]]:
    if module_exists(MODULE):
        try:
            yield FlashMLAModule(importlib.import_module(MODULE)), ""
        except (Exception, SystemExit) as error:  # each build fails in its own way without its device
            yield None, f"{MODULE} does not load: {describe(error)}"


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


def _vllm() -> Iterator[tuple[Library | None, str]]:
    try:
        found = importlib.util.find_spec("vllm") if module_exists("vllm") else None
    except ValueError:  # a module of that name without a spec: what somebody made in its place
        return
    places = found.submodule_search_locations if found is not None else None
    for file in [file for place in places or () for file in sorted(Path(place).glob("_flashmla_C*.so"))]:
        yield _loaded(file, f"vllm {installed_version('vllm') or ''}".strip())
