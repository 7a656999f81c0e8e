"""DeepSeek-V4 attention on a CPU."""

from __future__ import annotations

from dsv4core.ops_attention import OpsAttention


class DeepseekV4CPUAttention(OpsAttention):
    """Any number of heads, any profile; nothing to pad and no streams to fork."""
