"""DeepSeek-V4 attention on an NVIDIA device."""

from __future__ import annotations

from dsv4core.ops_attention import OpsAttention


class DeepseekV4CUDAAttention(OpsAttention):
    """Decode and prefill through the ops."""
