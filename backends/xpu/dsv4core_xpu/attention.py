"""DeepSeek-V4 attention on an XPU."""

from __future__ import annotations

from dsv4core.ops_attention import OpsAttention


class DeepseekV4XPUAttention(OpsAttention):
    """Decode and prefill through the Triton ops: pages are dequantised inside the kernels, the sink counts.

    Nothing is padded, since the kernels take any number of heads. There are no side streams: every op runs on
    the current stream, so nothing of torch is replaced or patched while a layer is built, and graphs are
    those of `dsv4core.runtime`.
    """
