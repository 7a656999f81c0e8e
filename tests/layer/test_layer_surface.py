"""What the layer accepts, what it reserves, and which formats it runs in."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
from layer_world import KINDS, World, text

from dsv4core import (
    AttentionConfig,
    AttentionWeights,
    Limits,
    OpArgumentError,
    PagedCache,
    WeightsError,
    get_backend,
)
from dsv4core.bench.side import bodies
from dsv4core.runtime import Workspace


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_decode_step_equals_eager(kind: str) -> None:
    torch._dynamo.reset()
    compiled, eager = World(kind), World(kind)
    outputs = []
    for world, wrap in ((compiled, True), (eager, False)):
        world.step({"a": 203, "b": 129})
        call = world.attention.forward
        if wrap:
            call = torch.compile(call, fullgraph=True, backend="aot_eager")
        rows = world.rows({"a": 1, "b": 1})
        outputs.append(call(rows, world.cache, world.cache.plan({"a": 1, "b": 1})))
    assert torch.equal(*outputs)
    assert compiled.same_pages(eager, "a") and compiled.same_pages(eager, "b")


@pytest.mark.skipif(
    not (shutil.which("g++") and Path(sysconfig.get_path("include"), "Python.h").exists()),
    reason="inductor needs g++ and Python's headers",
)
def test_steps_of_other_sizes_compile_with_inductor() -> None:
    torch._dynamo.reset()
    compiled, eager = World("csa"), World("csa")
    call = torch.compile(compiled.attention.forward, fullgraph=True)
    for new in ({"a": 203, "b": 129}, {"a": 1, "b": 20}, {"a": 1, "b": 33}):  # two sizes make a variable
        rows = compiled.rows(new)
        mine = call(rows, compiled.cache, compiled.cache.plan(new))
        assert torch.equal(mine, eager.attention(rows, eager.cache, eager.cache.plan(new)))


def test_layers_compile_one_after_the_other() -> None:
    torch._dynamo.reset()  # then never again: torch takes the index of the second layer for a variable
    for kind in KINDS:
        compiled, eager = World(kind), World(kind)
        for world in (compiled, eager):
            world.step({"a": 203, "b": 129})
        rows, new = compiled.rows({"a": 1, "b": 1}), {"a": 1, "b": 1}
        call = torch.compile(compiled.attention.forward, fullgraph=True, backend="aot_eager")
        mine = call(rows, compiled.cache, compiled.cache.plan(new))
        assert torch.equal(mine, eager.attention(rows, eager.cache, eager.cache.plan(new)))


def test_layers_on_a_device_hold_one_rotation_table_together() -> None:
    config = AttentionConfig.preset("tiny", compress_ratios=(4, 4, 128, 0))
    backend = bodies("meta")
    layers = [backend.attention(config, i, AttentionWeights.random(config, i).to("meta")) for i in range(4)]
    first, second, third, window = (layer._table._base for layer in layers)
    assert first is second is third is not None and window is not first
    layers[0].profile(Limits(max_tokens=1, max_seq_len=100_000, max_requests=1))
    layers[1].profile(Limits(max_tokens=1, max_seq_len=70_000, max_requests=1))
    assert layers[0]._table._base is layers[1]._table._base is not first


@pytest.mark.parametrize("kind", KINDS)
def test_workspace_bound_and_profile(kind: str) -> None:
    config = AttentionConfig.preset("tiny", prefill_chunk_requests=2)
    attention = get_backend("cpu").attention(
        config, KINDS[kind], AttentionWeights.random(config, KINDS[kind], seed=1)
    )
    attention.workspace = Workspace()  # the backend's is shared and may be large already
    limits = Limits(max_tokens=300, max_seq_len=400, max_requests=3)
    cache = PagedCache.allocate(config, [KINDS[kind]], 2048, max_requests=4)
    before = {
        name: part.clone() for name, part in vars(cache.layer(KINDS[kind])).items() if torch.is_tensor(part)
    }
    attention.profile(limits)
    reserved = attention.workspace.reserved(attention.device)
    assert 0 < reserved <= attention.workspace_bytes(limits)
    assert all(torch.equal(getattr(cache.layer(KINDS[kind]), name), part) for name, part in before.items())
    # Up to the limits: two long requests in a chunk, a long prefill alone. None of them makes it grow.
    for new in ({"a": 300}, {"b": 300}, {"a": 100, "b": 100, "c": 100}, {"d": 300}):
        rows = torch.ones(sum(new.values()), 64, dtype=torch.bfloat16)
        attention(rows, cache, cache.plan(new))
        assert attention.workspace.reserved(attention.device) == reserved
    larger = Limits(max_tokens=600, max_seq_len=800, max_requests=3)
    assert attention.workspace_bytes(larger) > attention.workspace_bytes(limits)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(4, 64, dtype=torch.bfloat16),
        torch.zeros(3, 63, dtype=torch.bfloat16),
        torch.zeros(3, 64),
        torch.zeros(1, 3, 64, dtype=torch.bfloat16),
        torch.zeros(3, 64, dtype=torch.bfloat16, device="meta"),
    ],
    ids=["rows", "width", "dtype", "rank", "device"],
)
def test_wrong_hidden_is_named(wrong: torch.Tensor) -> None:
    world = World("csa")
    plan = world.cache.plan({"a": 3})
    with pytest.raises(OpArgumentError, match=r"layer 1.*hidden.*\[3, 64\]"):
        world.attention(wrong, world.cache, plan)
    world.attention(torch.zeros(3, 64, dtype=torch.bfloat16), world.cache, plan)


def test_arguments_of_another_kind_are_named() -> None:
    world, rows = World("swa"), text("a")[:3]
    plan = world.cache.plan({"a": 3})
    calls = {
        "cache": (rows, plan, world.cache),
        "plan": (rows, world.cache, {"a": 3}),
        "hidden": (None, world.cache, plan),
    }
    for argument, given in calls.items():
        with pytest.raises(OpArgumentError, match=rf"'{argument}' must be a .*layer\(hidden, cache, plan\)"):
            world.attention(*given)
    with pytest.raises(OpArgumentError, match=r"'hidden' must be a Tensor.*got a list"):
        world.attention([1], world.cache, plan)


@pytest.mark.parametrize("moved", [("wq_b",), ()], ids=["one", "all"])
def test_weights_elsewhere_are_refused_when_the_layer_is_built(moved: tuple[str, ...]) -> None:
    config = AttentionConfig.preset("tiny")
    tensors = AttentionWeights.random(config, 1).state_dict()
    tensors |= {name: tensors[name].to("meta") for name in moved or tensors}
    with pytest.raises(WeightsError, match=r"layer 1 lie on (cpu, )?meta, backend 'cpu'.*weights\.to"):
        get_backend("cpu").attention(config, 1, AttentionWeights.from_state_dict(tensors))


@pytest.mark.parametrize("kind", KINDS)
def test_strided_weights_run_as_packed_ones(kind: str) -> None:
    """Columns of a wider matrix, or a transposed one: an op would refuse them after `plan` has gone ahead."""
    world = World(kind)
    tensors = AttentionWeights.random(world.config, KINDS[kind], seed=7).state_dict()
    strided = {name: torch.stack([t, t], -1)[..., 0] for name, t in tensors.items()}
    assert not any(tensor.is_contiguous() for tensor in strided.values())
    weights = AttentionWeights.from_state_dict(strided)
    layer = get_backend("cpu").attention(world.config, KINDS[kind], weights)
    cache = PagedCache.allocate(world.config, [KINDS[kind]], 2048)
    rows = text("a")[:140]
    assert torch.equal(layer(rows, cache, cache.plan({"a": 140})), world.step({"a": 140})["a"])


def test_a_layer_without_cache_is_named() -> None:
    world, other = World("csa"), World("hca")
    plan = other.cache.plan({"a": 3})
    with pytest.raises(Exception, match="layer 1 has no cache here"):
        world.attention(torch.zeros(3, 64, dtype=torch.bfloat16), other.cache, plan)


def test_a_cache_of_other_layouts_is_refused_before_a_byte_is_written() -> None:
    """mxfp4 keys fit into pages of fp8 keys: only the layout's id tells them apart (catalogue A5, A15)."""
    for kind, theirs in (("csa", {"profile": "official"}), ("swa", {"main_layout": "bf16_row"})):
        world, config = World(kind), AttentionConfig.preset("tiny", **theirs)
        cache = PagedCache.allocate(config, [KINDS[kind]], 512)
        plan, rows = cache.plan({"a": 140}), text("a")[:140]
        with pytest.raises(OpArgumentError, match=r"layer \d: argument 'cache'.*(index_fp8|fp8_ds_mla)"):
            world.attention(rows, cache, plan)
        assert not any(bool(part.any()) for part in cache.snapshot("a").values())


OTHER_MODELS = {
    "swa": ({"sliding_window": 64}, r"one for sliding_window 128: allocate.*got one for sliding_window 64"),
    "csa": ({"rms_norm_eps": 1e-20}, r"rms_norm_eps 1e-06.*rms_norm_eps 1e-20"),
    "hca": ({"rope_theta": 5e5, "yarn": None}, r"rope_theta 10000.0, yarn_factor 16.0.*yarn_factor None"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_of_another_model_is_refused_before_a_byte_is_written(kind: str) -> None:
    theirs, words = OTHER_MODELS[kind]
    world, rows = World(kind), text("a")[:140]
    cache = PagedCache.allocate(AttentionConfig.preset("tiny", **theirs), [KINDS[kind]], 512)
    with pytest.raises(OpArgumentError, match=rf"layer \d: argument 'cache'.*{words}"):
        world.attention(rows, cache, cache.plan({"a": 140}))
    assert not any(bool(part.any()) for part in cache.snapshot("a").values())
    # Positions, heads and lists are not in any row: such a cache is as good as the layer's own.
    same = AttentionConfig.preset("tiny", max_position_embeddings=4096, index_topk=8, num_attention_heads=8)
    cache = PagedCache.allocate(same, [KINDS[kind]], 512)
    mine = world.attention(rows, cache, cache.plan({"a": 140}))
    assert torch.equal(mine, world.step({"a": 140})["a"])


def test_a_plan_for_another_window_is_refused() -> None:
    world, narrow = World("swa"), AttentionConfig.preset("tiny", sliding_window=64)
    plan = PagedCache.allocate(narrow, [0], 512).plan({"a": 3})
    with pytest.raises(OpArgumentError, match=r"argument 'plan'.*window of 128 tokens.*got one for 64"):
        world.attention(text("a")[:3], world.cache, plan)


def test_a_plan_for_pages_of_other_rows_is_refused() -> None:
    config = AttentionConfig.preset("tiny")
    world, cache = World("swa"), PagedCache.allocate(config, [0], 512, rows={"swa": 128})
    with pytest.raises(OpArgumentError, match=r"argument 'plan'.*128 rows.*swa.*64 rows"):
        world.attention(text("a")[:3], cache, world.cache.plan({"a": 3}))


def test_a_plan_without_the_tables_of_the_layer_is_refused() -> None:
    world, plan = World("hca"), World("swa").cache.plan({"a": 3})
    with pytest.raises(OpArgumentError, match=r"argument 'plan'.*without tables of 'c128'"):
        world.attention(text("a")[:3], world.cache, plan)


@pytest.mark.parametrize("kind", KINDS)
def test_both_scale_formats_of_the_quantised_output_agree(kind: str) -> None:
    worlds = [World(kind, output_quant=quant) for quant in ("f32", "ue8m0x4", None)]
    for new in ({"a": 180, "b": 20}, {"a": 1, "b": 1}):
        f32, packed, plain = (torch.cat(list(world.step(new).values())) for world in worlds)
        assert torch.equal(f32, packed)
        error = float((f32.double() - plain.double()).norm() / plain.double().norm())
        assert 0 < error < 0.05  # e4m3 has four bits of precision


@pytest.mark.parametrize("main", ["fp8_ds_mla", "bf16_row"])
@pytest.mark.parametrize("index", ["index_fp8", "index_mxfp4", "index_mxfp4_hadamard"])
def test_layouts_run_and_decode_equals_prefill(main: str, index: str) -> None:
    steps, whole = (World("csa", main_layout=main, index_layout=index) for _ in range(2))
    parts = [steps.step({"a": n})["a"] for n in (150, 33, 1, 1)]
    once = whole.step({"a": 185})["a"]
    assert steps.same_pages(whole, "a")
    chunked = torch.cat(parts).double()
    assert float((chunked - once.double()).norm() / once.double().norm()) <= 2e-3


def test_index_layouts_choose_and_bytes_differ() -> None:
    digests = set()
    for index in ("index_fp8", "index_mxfp4", "index_mxfp4_hadamard"):
        world = World("csa", index_layout=index)
        world.step({"a": 150})
        digests.add(world.cache.digest("a")["indexer.1"])
    assert len(digests) == 3


def test_layers_of_one_cache_share_the_plan_and_nothing_else() -> None:
    config = AttentionConfig.preset("tiny", compress_ratios=(0, 4, 128, 4))
    backend = get_backend("cpu")
    layers = [backend.attention(config, i, AttentionWeights.random(config, i, seed=i)) for i in range(4)]
    shared = PagedCache.allocate(config, range(4), 1024, max_requests=3)
    own = [PagedCache.allocate(config, [i], 1024, max_requests=3) for i in range(4)]
    for new in ({"a": 270, "b": 3}, {"b": 1, "a": 1}, {"c": 140, "b": 1}):
        rows = torch.randn(
            sum(new.values()), 64, generator=torch.Generator().manual_seed(len(new))
        ).bfloat16()
        plan = shared.plan(new)
        for layer, cache in zip(layers, own, strict=True):
            assert torch.equal(layer(rows, shared, plan), layer(rows, cache, cache.plan(new)))
    for name in "abc":
        assert shared.digest(name) == {k: v for cache in own for k, v in cache.digest(name).items()}
