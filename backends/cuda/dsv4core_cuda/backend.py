"""The CUDA backend: Triton kernels for every op."""

from __future__ import annotations

from collections.abc import Mapping

from dsv4core.errors import BackendUnavailableError
from dsv4core.probe import interpreted
from dsv4core_cuda.attention import DeepseekV4CUDAAttention


class CudaBackend:
    """Ops from `dsv4core.kernels.triton`; importing them imports triton, which is why it happens here."""

    name = "cuda"
    attention_class = DeepseekV4CUDAAttention

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.settings = dict(settings)
        self.device_type = "cpu" if interpreted() else "cuda"
        try:
            from dsv4core.kernels.triton import portable
        except ImportError as error:
            raise BackendUnavailableError(f"backend cuda: its kernels need triton: {error}") from error
        self.ops = portable.implementations()
