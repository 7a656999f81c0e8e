"""The CUDA backend: Triton kernels for every op, CuTeDSL's where faster, FlashMLA where it is and runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from dsv4core.errors import BackendUnavailableError, ConfigError
from dsv4core.kernels.triton import implementations
from dsv4core.ops import OPS, OpImpl
from dsv4core.ops.fused_sparse_decode_inv_rope import NAME as TURNED
from dsv4core.probe import describe, interpreted
from dsv4core_cuda import ops, products
from dsv4core_cuda.attention import DeepseekV4CUDAAttention
from dsv4core_cuda.capability import CLUSTER_TOKENS, FEWEST_HEADS, resolve
from dsv4core_cuda.cluster import ClusterDecode
from dsv4core_cuda.cutedsl.install import CHOICES as KERNELS
from dsv4core_cuda.cutedsl.install import replaced
from dsv4core_cuda.flashmla import FlashMLA
from dsv4core_cuda.flashmla_check import check
from dsv4core_cuda.flashmla_find import find
from dsv4core_cuda.flashmla_library import Library
from dsv4core_cuda.schedule import Schedules
from dsv4core_cuda.streams import SideStreams

log = logging.getLogger("dsv4core")

CHOICES = ("auto", "cutedsl", "flashmla", "triton")
DEPENDENT = {
    "flashmla": "FlashMLA splits a token's list by all lists of its batch, and last bits follow",
    "cutedsl": "our kernel cuts a list by its width, the longest request's, and last bits follow",
}
"""Who decodes a token otherwise beside other tokens, and how."""
INTERPRETED = "this process interprets kernels, on host tensors"
STREAM_TOKENS = 256
"""Tokens up to which a layer forks side streams, unless DSV4CORE_CUDA_STREAM_TOKENS says otherwise."""


class CudaBackend:
    """Ops from `dsv4core.kernels.triton`; importing them imports triton, which is why it happens here.

    `settings`: "attention" (DSV4CORE_CUDA_ATTENTION) is auto, triton, or flashmla, which refuses to do
    without it and pads any number of heads, or cutedsl: our own decode kernel for every batch;
    "batch_invariant" (DSV4CORE_CUDA_BATCH_INVARIANT) is 1 for decode whose bits do not depend on the batch;
    "fuse_output" (DSV4CORE_CUDA_FUSE_OUTPUT) is 1 for layers that take `fused_sparse_decode_inv_rope`;
    "stream_tokens" (DSV4CORE_CUDA_STREAM_TOKENS) is the number of tokens up to which a layer forks side
    streams; "kernels" (DSV4CORE_CUDA_KERNELS) is auto, cutedsl or triton (`cutedsl.install`). `flash` and
    `cluster` are who attends before Triton, or None; `reason` says why, also why no other build of FlashMLA,
    and `cluster_reason`.
    """

    name = "cuda"
    attention_class = DeepseekV4CUDAAttention

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.settings = dict(settings)
        self.device_type = "cpu" if interpreted() else "cuda"
        self.ops = implementations(self.name)
        self.ops["grouped_output_projection"] = OpImpl(products.grouped_output_projection, "torch")
        self.ops |= self._cutedsl()
        self.stream_tokens = _count(self.settings.get("stream_tokens", ""), STREAM_TOKENS)
        self.batch_invariant = _switch("BATCH_INVARIANT", self.settings.get("batch_invariant", ""))
        self.fuse_output = _switch("FUSE_OUTPUT", self.settings.get("fuse_output", ""))
        self.streams, self.schedules = SideStreams(), Schedules()
        self.flash, self.reason = self._flashmla()
        self.cluster, self.cluster_reason = self._cluster()
        if self.fuse_output and self.cluster is None:
            log.warning("cuda: DSV4CORE_CUDA_FUSE_OUTPUT=1 changes nothing here: %s", self.cluster_reason)
        self._bind()

    def _bind(self) -> None:
        """Put who attends in front of Triton's kernels."""
        decode, prefill = (self.ops[name].function for name in ("sparse_decode", "sparse_prefill"))
        provider = f"triton ({self.reason})"
        if self.flash is not None:
            provider = f"flashmla ({'; '.join(filter(None, (self.flash.library.name, self.reason)))})"
            prefill = ops.sparse_prefill(self.flash, prefill)
        self.ops["sparse_prefill"] = OpImpl(prefill, provider)
        flash = None if self.batch_invariant else self.flash
        if flash is not self.flash:
            provider = "triton (DSV4CORE_CUDA_BATCH_INVARIANT=1)"
        if self.cluster is not None:
            provider = f"cutedsl ({self.cluster.limits()}), else {provider}"
        if self.cluster is not None or flash is not None:
            decode = ops.sparse_decode(flash, decode, self.cluster)
        self.ops["sparse_decode"] = OpImpl(decode, provider)
        if self.cluster is not None:  # an optional op: without it a layer takes one after the other
            body = OPS[TURNED].body
            turned = ops.fused_sparse_decode_inv_rope(body, self.cluster)
            self.ops[TURNED] = OpImpl(turned, f"cutedsl ({self.cluster.limits()}), else torch")

    def _choice(self, name: str, known: tuple[str, ...]) -> str:
        """A setting of a few words; unset and empty are "auto"."""
        wanted = self.settings.get(name) or "auto"
        if wanted not in known:
            raise ConfigError(f"DSV4CORE_CUDA_{name.upper()}={wanted}: expected {', '.join(known)}")
        return wanted

    def _cutedsl(self) -> dict[str, OpImpl]:
        """Ops whose CuTeDSL kernels measured faster on this device's architecture."""
        wanted = self._choice("kernels", KERNELS)
        if wanted == "cutedsl" and interpreted():
            raise BackendUnavailableError(f"backend cuda: DSV4CORE_CUDA_KERNELS=cutedsl, but {INTERPRETED}")
        if interpreted() or not torch.cuda.is_available():
            return {}
        return replaced(self.ops, wanted, torch.cuda.get_device_capability())

    def _flashmla(self) -> tuple[FlashMLA | None, str]:
        """The adapter, or None and why."""
        wanted = self._choice("attention", CHOICES)
        if wanted in DEPENDENT and self.batch_invariant:
            raise ConfigError(
                f"DSV4CORE_CUDA_ATTENTION={wanted} and DSV4CORE_CUDA_BATCH_INVARIANT=1 exclude each other: "
                f"{DEPENDENT[wanted]}; unset one of them"
            )
        if wanted in ("cutedsl", "triton"):
            return None, f"DSV4CORE_CUDA_ATTENTION={wanted}"
        fewest = 1 if wanted == "flashmla" else FEWEST_HEADS
        flash, reason = (None, INTERPRETED) if interpreted() else _on_device(fewest, self.batch_invariant)
        if flash is None and wanted == "flashmla":
            raise BackendUnavailableError(f"backend cuda: DSV4CORE_CUDA_ATTENTION=flashmla, but {reason}")
        if flash is None:
            log.info("cuda: attention by Triton kernels: %s", reason)
        return flash, reason

    def _cluster(self) -> tuple[ClusterDecode | None, str]:
        """Our own decode kernel, or None and why."""
        wanted = self._choice("attention", CHOICES)
        if wanted in ("flashmla", "triton"):
            return None, f"DSV4CORE_CUDA_ATTENTION={wanted}"
        if self.batch_invariant:
            return None, "DSV4CORE_CUDA_BATCH_INVARIANT=1"
        if wanted == "auto" and not CLUSTER_TOKENS:
            return None, "no number of tokens is in its table yet"
        found, reason = None, INTERPRETED
        if not interpreted():
            found, reason = _compiled(wanted == "cutedsl")
        if found is None and wanted == "cutedsl":
            raise BackendUnavailableError(f"backend cuda: DSV4CORE_CUDA_ATTENTION=cutedsl, but {reason}")
        if found is None:
            log.info("cuda: no decode kernel of CuTeDSL: %s", reason)
        return found, reason


def _compiled(any_batch: bool) -> tuple[ClusterDecode | None, str]:
    """Our own decode kernel on the current device, after it has run."""
    if not torch.cuda.is_available():
        return None, "no device"
    architecture = torch.cuda.get_device_capability()
    found = ClusterDecode(architecture, any_batch)
    reason = found.unusable()
    return (None, reason) if reason else (found, "")


def _on_device(fewest: int, invariant: bool = False) -> tuple[FlashMLA | None, str]:
    """The adapter, and why no other build; or None and why: architecture, what is installed, what runs."""
    if not torch.cuda.is_available():
        return None, "no device"
    architecture = torch.cuda.get_device_capability()
    answer = resolve("sparse_decode", architecture)
    if answer.provider != "flashmla":
        return None, "; ".join(answer.reasons)
    device = torch.device("cuda", torch.cuda.current_device())

    def against(library: Library) -> str:
        try:
            return check(library, architecture, device)
        except Exception as error:  # a build for other devices fails in ways of its own
            return f"{library.name} does not run here: {describe(error)}"

    library, reason = find(against)
    return (None if library is None else FlashMLA(library, architecture, fewest, invariant)), reason


def _count(text: str, default: int) -> int:
    if not text:
        return default
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"DSV4CORE_CUDA_STREAM_TOKENS={text}: expected a number of tokens, 0 for none")
    return int(text)


def _switch(name: str, text: str) -> bool:
    if text not in ("", "0", "1"):
        raise ConfigError(f"DSV4CORE_CUDA_{name}={text}: expected 0 or 1")
    return text == "1"
