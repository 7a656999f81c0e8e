"""Ranks that share the heads of a layer: what they hold and read, what they compute and cache."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from dsv4core import (
    AttentionConfig,
    AttentionWeights,
    ConfigError,
    PagedCache,
    TensorParallel,
    WeightsError,
    get_backend,
)
from dsv4core.checkpoint import write_synthetic
from dsv4core.linear import QuantisedWeight
from dsv4core.parallel import REPLICATED, SLICED
from dsv4core.synthetic import hash_normal
from dsv4core_conformance.reference import Options, ReferenceConfig, ReferenceLayer

RANKS = 4
MATMUL = 4e-3
LAYER = 5e-3  # from float64 over equal cache codes (docs/tensor-parallel.md)
# Four groups of two heads; every cut of an fp8 matrix falls between blocks of 128.
CONFIG = AttentionConfig.preset("tiny", num_attention_heads=8, o_groups=4, o_lora_rank=128)
STEPS = (139, 1)
FORMATS = ("bf16", "fp8_block")
CASES = list(product(FORMATS, (2, 4), (0, 1, 2)))


def hidden() -> torch.Tensor:
    return hash_normal((sum(STEPS), CONFIG.hidden_size), 0, "hidden", 1.0, dtype=torch.bfloat16)


def run(attention, layer: int) -> tuple[torch.Tensor, dict[str, str]]:
    """Outputs of a prefill and a decode step, and what the cache holds then."""
    cache = PagedCache.allocate(CONFIG, [layer], 300)
    steps = [attention(part, cache, cache.plan({"a": len(part)})) for part in hidden().split(list(STEPS))]
    return torch.cat(steps), cache.digest("a")


def worker(rank: int, path: str) -> None:
    """One process: every layer as one of four, then as one of two."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}/meet", rank=rank, world_size=RANKS)
    pairs = [dist.new_group([first, first + 1]) for first in (0, 2)]
    found = {}
    groups = {4: None, 2: pairs[rank // 2]}
    for format, size, layer in CASES:
        parallel = TensorParallel.of(groups[size])
        read: list[tuple[str, int, int]] = []
        weights = AttentionWeights.from_checkpoint(
            f"{path}/{format}", CONFIG, layer, parallel=parallel, progress=lambda *a, r=read: r.append(a)
        )
        attention = get_backend("cpu").attention(CONFIG, layer, weights, parallel)
        held = {name: weight.nbytes for name, weight in weights.flat().items()}
        found[format, size, layer] = (*run(attention, layer), held, read[-1][1])
    torch.save(found, f"{path}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory):
    """What four processes found, and the whole weights."""
    path = tmp_path_factory.mktemp("ranks")
    for format in FORMATS:
        write_synthetic(path / format, CONFIG, [0, 1, 2], format=format, shard_bytes=1 << 20)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = "import sys; sys.path.insert(0, {!r}); import test_tensor_parallel as t; t.worker({}, {!r})"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", command.format(str(Path(__file__).parent), rank, str(path))], env=environ
        )
        for rank in range(RANKS)
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0] * RANKS
    finally:
        for process in processes:
            process.kill()
    ranks = [torch.load(path / f"rank{rank}.pt") for rank in range(RANKS)]
    whole = {
        (format, layer): AttentionWeights.from_checkpoint(path / format, CONFIG, layer)
        for format, layer in product(FORMATS, range(3))
    }
    return ranks, whole


def test_ranks_equal_one_process(world) -> None:
    ranks, weights = world
    for format, size, layer in CASES:
        whole, digest = run(get_backend("cpu").attention(CONFIG, layer, weights[format, layer]), layer)
        for rank in ranks:
            out, cached, _, _ = rank[format, size, layer]
            assert cached == digest, "every rank writes the bytes of the unsharded layer"
            assert torch.equal(out, ranks[0][format, size, layer][0]), "one sum for all"
            assert float((out - whole).float().norm() / whole.float().norm()) <= MATMUL


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_ranks_and_one_process_against_float64(world, layer: int, format: str) -> None:
    """Each by itself, over rows that attend to every entry."""
    ranks, weights = world
    c, weight = CONFIG, weights[format, layer]
    sizes = ReferenceConfig(
        c.hidden_size, c.num_attention_heads, c.q_lora_rank, c.o_groups, c.o_lora_rank, c.index_n_heads,
        c.index_topk, eps=c.rms_norm_eps, theta=c.rope_theta, compress_theta=c.compress_rope_theta,
    )  # fmt: skip
    arrays = {name: tensor.float().numpy() for name, tensor in weight.dequantised().state_dict().items()}
    ratio, options = c.layer(layer).ratio, replace(Options.preset("vllm"), p_dtype="fp32")
    last = min(sum(STEPS), 4 * c.index_topk + 3 if ratio == 4 else sum(STEPS)) - 1
    rows = [0, last // 2, last]
    reference = ReferenceLayer(sizes, ratio, arrays, options)
    exact = torch.from_numpy(reference.run(hidden().double().numpy(), rows)["out"])
    whole, _ = run(get_backend("cpu").attention(c, layer, weight), layer)
    shared = [ranks[0][format, size, layer][0] for size in (2, 4)]
    for out in (whole, *shared):
        assert float((out[rows].double() - exact).norm() / exact.norm()) <= LAYER


def test_bytes_held_and_read(world) -> None:
    ranks, weights = world
    for format, size, layer in CASES:
        full = {name: weight.nbytes for name, weight in weights[format, layer].flat().items()}
        for rank in ranks:
            _, _, held, read = rank[format, size, layer]
            assert held == {n: b // size if n in SLICED else b for n, b in full.items()}
            assert all(full[name] % size == 0 for name in SLICED)
            assert read == sum(held.values()), "nothing but its share"


def test_every_tensor_is_sliced_or_replicated() -> None:
    assert sorted(SLICED) == ["attn_sink", "wo_a", "wo_b", "wq_b"]
    assert not set(SLICED) & set(REPLICATED) and {"wq_a", "wkv", "indexer.wq_b"} <= set(REPLICATED)


class Heads:
    """An op table that keeps what the attention kernels made of every head."""

    def __init__(self, ops) -> None:
        self.ops, self.seen = ops, []

    def __getattr__(self, name: str):
        return getattr(self.ops, name)

    def inverse_rope(self, o: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        self.seen.append(o.clone())
        return self.ops.inverse_rope(o, *rest)


def heads_of(attention, layer: int) -> torch.Tensor:
    attention.ops = Heads(attention.ops)
    run(attention, layer)
    return torch.cat(attention.ops.seen)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_each_rank_has_the_sinks_of_its_heads(layer: int) -> None:
    """Sinks of distinct, audible values: shards 0, 3 and 7 of 8 are slices of the unsharded heads."""
    config = CONFIG.model_copy(update={"o_groups": 8})
    sizes = {"num_attention_heads": 8, "o_groups": 8, "o_lora_rank": 128}
    weights = AttentionWeights.random(AttentionConfig.preset("tiny", **sizes), layer, seed=3)
    tensors = {**weights.state_dict(), "attn_sink": torch.linspace(-2.0, 5.0, 8)}
    weights = AttentionWeights.from_state_dict(tensors)
    backend = get_backend("cpu")
    whole = heads_of(backend.attention(config, layer, weights), layer)
    for rank in (0, 3, 7):
        place = TensorParallel(rank, 8, group=None)
        share = weights.sharded(place)
        assert share.attn_sink.tolist() == weights.attn_sink[rank : rank + 1].tolist()
        attention = backend.attention(place.local(config), layer, share)
        assert torch.equal(heads_of(attention, layer), whole[:, rank : rank + 1])
    wrong = AttentionWeights.from_state_dict({**share.state_dict(), "attn_sink": weights.attn_sink[:1]})
    attention = backend.attention(place.local(config), layer, wrong)
    assert not torch.equal(heads_of(attention, layer), whole[:, 7:])


def test_slices_of_quantised_weights_join_to_the_whole(tmp_path: Path) -> None:
    path = write_synthetic(tmp_path / "x", CONFIG, [1], projections="all")
    whole = AttentionWeights.from_checkpoint(path, CONFIG, 1)
    for name, weight in whole.flat().items():
        parts = [whole.sharded(TensorParallel(rank, 4)).flat()[name] for rank in range(4)]
        if name not in SLICED:
            assert all(part is weight for part in parts)
            continue
        dense = [part.dequantised() if isinstance(part, QuantisedWeight) else part for part in parts]
        matrix = weight.dequantised() if isinstance(weight, QuantisedWeight) else weight
        assert torch.equal(torch.cat(dense, dim=SLICED[name]), matrix)


def test_what_cannot_be_shared(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 ranks cannot share the 4 groups"):
        TensorParallel(0, 3).local(CONFIG)
    with pytest.raises(ConfigError, match="rank 4 of 4 does not exist"):
        TensorParallel(4, 4)
    tiny = AttentionConfig.preset("tiny")
    path = write_synthetic(tmp_path / "x", tiny, [0])
    with pytest.raises(WeightsError, match=r"wo_a \[32, 1024\] is cut at 0 and 16 .* 128 values share a sc"):
        AttentionWeights.from_checkpoint(path, tiny, 0, parallel=TensorParallel(0, 2))
    whole, place = AttentionWeights.random(CONFIG, 0), TensorParallel(0, 2)
    with pytest.raises(
        WeightsError, match=r"layer 0 are those of all 8 heads, and one rank has 4: type weights.sharded\("
    ):
        get_backend("cpu").attention(CONFIG, 0, whole, place)
    get_backend("cpu").attention(CONFIG, 0, whole.sharded(place), place)
    get_backend("cpu").attention(CONFIG, 0, whole, TensorParallel(0, 1))
    with pytest.raises(WeightsError, match="wq_b is"):
        get_backend("cpu").attention(CONFIG, 0, whole.sharded(TensorParallel(0, 4)), place)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_uneven_shares_are_refused(rank: int) -> None:
    with pytest.raises(
        WeightsError,
        match=r"wq_b \[4096, 24\] cannot be shared by 3 ranks: 4096 in dimension 0 is no multiple",
    ):
        AttentionWeights.random(CONFIG, 0).sharded(TensorParallel(rank, 3))
