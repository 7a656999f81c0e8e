"""The ROCm backend: aiter where it is there and fits a call, Triton kernels for everything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch

from dsv4core.errors import ConfigError
from dsv4core.kernels.triton import implementations
from dsv4core.ops import OpImpl
from dsv4core.probe import interpreted
from dsv4core.providers import Provider, Ranked
from dsv4core_rocm import layouts
from dsv4core_rocm.aiter import decode, entries, indexer, prefill
from dsv4core_rocm.attention import DeepseekV4ROCMAttention
from dsv4core_rocm.gfx import DEVICES, Gfx, gfx

PROVIDERS: dict[str, tuple[str, Callable[[Gfx, Callable[..., Any]], Provider]]] = {
    "sparse_decode": ("pa_decode_sparse", decode.provider),
    "sparse_prefill": ("pa_sparse_prefill_opus", prefill.provider),
    "indexer_logits": ("fp8_mqa_logits", indexer.logits),
    "indexer_topk": ("top_k_per_row_prefill", indexer.topk),
}
"""Op -> aiter's entry point and what makes a provider of it."""


class RocmBackend:
    """Ops from `dsv4core.kernels.triton`, some with aiter's kernels before them.

    `settings["aiter"]` (DSV4CORE_ROCM_AITER) is "auto" (on a device, where it is installed), "on" (also in
    interpreted runs, for tests) or "off". `settings["gfx"]` (DSV4CORE_ROCM_GFX) names the architecture where
    there is no AMD device to ask; on another vendor's, for development, kernels are cut as for that one.
    """

    name = "rocm"
    attention_class = DeepseekV4ROCMAttention

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.settings = dict(settings)
        self.device_type = "cpu" if interpreted() else "cuda"
        self.ops: dict[str, OpImpl] = implementations(self.name)
        layouts.provide()
        self.gfx = _gfx(self.settings)
        if "gfx" in self.settings and torch.version.hip is None and not interpreted():
            self.ops = {op: _cut_for(self.gfx, own) for op, own in self.ops.items()}
        self.aiter = entries.load() if self._wants_aiter() else entries.Loaded({})
        for op, (entry, make) in PROVIDERS.items():
            function = self.aiter.functions.get(entry)
            if function is not None:
                last = self.ops[op]
                source = "fake aiter" if self.aiter.fake else "aiter"
                ranked = Ranked(op, (make(self.gfx, function),), last.function)
                self.ops[op] = OpImpl(ranked, f"{source}, {last.provider}")

    def _wants_aiter(self) -> bool:
        word = self.settings.get("aiter", "auto")
        if word not in ("auto", "on", "off"):
            raise ConfigError(f"DSV4CORE_ROCM_AITER={word}: expected auto, on or off")
        return word == "on" or (word == "auto" and torch.version.hip is not None and not interpreted())


def _cut_for(device: Gfx, own: OpImpl) -> OpImpl:
    """An op whose kernels take the launch arguments of an architecture that is not here."""
    from dsv4core.kernels.triton._devices import family
    from dsv4core.kernels.triton._launch import launched_as

    name = family("hip", device.name)

    @wraps(own.function)
    def cut(*args: Any, **kwargs: Any) -> Any:
        with launched_as(name):
            return own.function(*args, **kwargs)

    return OpImpl(cut, own.provider) if own.provider == "triton" else own


def _gfx(settings: Mapping[str, str]) -> Gfx:
    """The architecture that the settings name, else the current device's, else the oldest one in use."""
    named = settings.get("gfx")
    if named is not None:
        if named not in DEVICES:
            raise ConfigError(f"DSV4CORE_ROCM_GFX={named}: expected one of {', '.join(DEVICES)}")
        return DEVICES[named]
    if torch.version.hip is None or not torch.cuda.is_available():
        return DEVICES["gfx942"]
    return gfx(torch.cuda.get_device_properties(torch.cuda.current_device()).gcnArchName)
