"""`vllm-xpu-kernels`, an optional provider of index scores and of products with fp8 weights.

Its compiled code needs the very torch it was built with, so the release that was read is known by metadata
(`record`) and nothing is loaded before there is a device (`library`). `indexer` and `linear` are adapters,
`check` what they have to pass, `operators.json` what was read of every operator near an op, file and line.
"""
