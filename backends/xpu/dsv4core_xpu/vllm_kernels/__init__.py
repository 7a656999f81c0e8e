"""`vllm-xpu-kernels`, an optional provider of index scores.

Its compiled code needs the very torch it was built with, so the release that was read is known by metadata
(`record`) and nothing is loaded before there is a device (`library`). `indexer` is the adapter, `check` what
it has to pass, `operators.json` what was read of every operator near an op of the contract, by file and line.
"""
