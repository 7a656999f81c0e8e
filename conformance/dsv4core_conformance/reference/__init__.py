"""An independent float64 reference of DeepSeek-V4 attention, in numpy and the standard library only.

It is written from the mathematics and shares no code with the library it judges: nothing in this package
imports `dsv4core` or torch, and a test reads the syntax trees to make sure. One sequence, from position 0:

    layer = ReferenceLayer(ReferenceConfig.v4_flash(), 4, weights, Options.preset("vllm"))
    trace = layer.run(hidden, rows=[2_599])
    trace["out"], trace["selection"], trace["entries"]
"""

from .layer import ReferenceLayer, Trace
from .options import Options, ReferenceConfig, Yarn

__all__ = ["Options", "ReferenceConfig", "ReferenceLayer", "Trace", "Yarn"]
