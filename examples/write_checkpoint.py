"""Write a synthetic checkpoint, read one layer back, run it: python examples/write_checkpoint.py DIR."""

import sys

import torch

from dsv4core import AttentionConfig, AttentionWeights, PagedCache, get_backend
from dsv4core.checkpoint import Checkpoint, write_synthetic

if len(sys.argv) != 2:
    sys.exit(__doc__)
path = sys.argv[1]
tiny = AttentionConfig.preset("tiny")
write_synthetic(path, tiny, [0, 1, 2], names="hf", scale="ue8m0", shard_bytes=200_000)
config = Checkpoint.open(path).config()
weights = AttentionWeights.from_checkpoint(path, config, layer=1)
attention = get_backend("cpu").attention(config, 1, weights)
cache = PagedCache.allocate(config, [1], capacity_tokens=64)
hidden = torch.ones(20, config.hidden_size, dtype=torch.bfloat16)
out = attention(hidden, cache, cache.plan({"a request": 20}))
print(f"layers {Checkpoint.open(path).layers()}, wq_b {weights.wq_b.dtype}, output {tuple(out.shape)}")
