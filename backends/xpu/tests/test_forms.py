"""How many forms of a kernel compile, and when: all with a layer's first steps, whatever comes later.

Nothing runs here. Triton's front door answers as on a device: by kernel, constants, options and what it would
specialise on (types, integers that are 1 or multiples of 16, pointers to multiples of 16 bytes).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime import JITFunction
from triton.runtime.interpreter import InterpretedFunction

import dsv4core_xpu.plugin as plugin
from dsv4core import AttentionConfig, AttentionWeights, PagedCache
from dsv4core.backend import Backend
from dsv4core.kernels.triton import _attention_split, _launch, _select, _tuning, aot
from dsv4core.kernels.triton._tuning import Place
from dsv4core.kernels.triton.quantised_linear import quantised_linear
from dsv4core.kernels.triton.sparse_decode import attend, listed
from dsv4core.layout import get_layout
from dsv4core.plan import BatchPlan
from dsv4core.plan.groups import GROUPS
from dsv4core_xpu.backend import XpuBackend

I32 = torch.int32
TOKENS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 129, 512)
CONTEXTS = (256, 8192, 8448, 65536, 66560, 131072)  # more than one span of top-k, and lists of ratio 128
WARM = ([(203, 256)], [(1, 256), (140, 512)], [(1, 256), (1, 256)])
"""Steps of a server's warm-up: prefill alone, beside a decode, decode; new tokens and lengths of requests."""


class Compiler:
    """What Triton compiled, by kernel; `started` says whether a launch, not a warm-up, had to wait for it."""

    def __init__(self) -> None:
        self.made: dict[Any, Any] = {}
        self.forms: Counter[str] = Counter()
        self.waited: Counter[str] = Counter()
        self.functions: dict[Any, Any] = {}

    def run(self, kernel: Any, arguments: tuple[Any, ...], meta: dict[str, Any], warmup: bool) -> Any:
        assert meta.pop("enable_fp_fusion") is False
        if isinstance(kernel, InterpretedFunction):
            plain = self.functions.get(kernel)
            if plain is None:
                plain = self.functions[kernel] = JITFunction(kernel.fn, **kernel.kwargs)
            kernel = plain
        asked = aot._launch(kernel, arguments, meta)
        assert set(kernel.arg_names) == set(asked.signature) and not set(asked.constants) - set(
            kernel.arg_names
        ), "an argument is missing, or one that no kernel has"
        parts = (asked.signature, asked.constants, asked.options)
        key = (kernel.__name__, *(tuple(sorted(part.items())) for part in parts), asked.divisible)
        if key not in self.made:
            self.made[key] = object()
            self.forms[kernel.__name__] += 1
            self.waited[kernel.__name__] += not warmup
        return self.made[key]


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """Launches as on a device, of a process that has compiled nothing."""
    found = Compiler()

    def run(self: Any, *arguments: Any, grid: Any, warmup: bool, **meta: Any) -> Any:
        return found.run(self, arguments, meta, warmup)

    for kind in (InterpretedFunction, JITFunction):
        monkeypatch.setattr(kind, "run", run)
    for module in (_launch, _attention_split, _select):
        monkeypatch.setattr(module, "interpreted", False)
    monkeypatch.setattr(_launch, "_ready", set())
    monkeypatch.setenv("DSV4CORE_CHECK", "0")
    return found


def step(attention: Any, cache: PagedCache, requests: list[tuple[int, int]], spare: int = 0) -> None:
    """A step of requests with so many new tokens and lengths; tables are `spare` pages wider than needed."""
    config, longest = attention.config, max(length for _, length in requests)
    tables = {
        group: torch.zeros(
            len(requests), -(-longest // GROUPS[group].tokens_per_page) + spare, dtype=I32
        )
        for group in {spec.group for spec in cache.layer(attention.layer.index).specs.values()}
    }  # fmt: skip
    plan = BatchPlan.build(
        config, query_lens=[n for n, _ in requests], seq_lens=[n for _, n in requests], tables=tables
    )
    hidden = torch.empty(plan.num_tokens, config.hidden_size, dtype=torch.bfloat16)
    attention(hidden, cache, plan)


def sweep(attention: Any, cache: PagedCache) -> None:
    """Decodes, prefills and both, of all sizes; contexts and tables of all widths."""
    for tokens in TOKENS:
        step(attention, cache, [(1, 512)] * tokens)
        step(attention, cache, [(1, 8448), (max(tokens, 5), max(tokens, 256)), (1, 256)], spare=3)
    step(attention, cache, [(2048, 2048)])
    for context in CONTEXTS:
        step(attention, cache, [(1, context)] * 3)
        step(attention, cache, [(64, context), (1, context)], spare=7)


HOPPER = {"weigh_hopper_kernel": 2, "use_kept_kernel": 4, "decode_hopper_kernel": 1}
"""One or several tiles of keys a program; four numbers of channels; a program for all keys."""
LAYER = {
    "fused_q_kv_rmsnorm_kernel": 1, "fused_qnorm_rope_kv_insert_kernel": 1, "dequantize_and_gather_kernel": 1,
    "combine_topk_swa_kernel": 1, "prefill": 1, "inverse_rope_kernel": 1,
}  # fmt: skip
RATIO_4 = {
    "save_partial_states_kernel": 2, "compress_norm_rope_store_kernel": 2, "fused_indexer_q_kernel": 1,
    "index_scores_kernel": 1, "select_kernel": 3, "compute_global_topk_kernel": 1,
}  # fmt: skip
"""Entries and index rows have their own widths; top-k of one span, of a span among several, of the spans."""
RATIO_128 = {
    "save_partial_states_kernel": 1, "compress_norm_rope_store_kernel": 1, "dequantize_and_gather_kernel": 2,
}  # fmt: skip
"""Entries have pages of two rows, the window has pages of 64; Gluon takes pages of one kind."""


def forms(family: str, ratio: int) -> dict[str, int]:
    """All that a layer ever compiles, by kernel."""
    hopper = family == "sm90"
    triton = {"sparse_attention_kernel": 1, "weigh_keys_kernel": 1, "use_weights_kernel": 2 if hopper else 1}
    decode = HOPPER if hopper and ratio != 128 else triton
    if hopper and not ratio:
        decode = {"decode_hopper_kernel": 1}  # two tiles of keys are never cut
    found = {**LAYER, **{0: {}, 4: RATIO_4, 128: RATIO_128}[ratio], **decode}
    found["prefill_hopper_kernel" if hopper else "sparse_prefill_kernel"] = found.pop("prefill")
    return found


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize(("family", "heads"), [("sm90", 8), ("sm90", 66), ("gfx942", 8), ("arc_b", 8)])
def test_a_layer_compiles_all_it_ever_takes_with_its_first_steps(
    compiler: Compiler, family: str, heads: int, layer: int
) -> None:
    config = AttentionConfig.preset("tiny", num_attention_heads=heads, index_n_heads=16, index_topk=512)
    own = XpuBackend({})
    backend = Backend(plugin.SPEC, own, own.ops)
    attention = backend.attention(config, layer, AttentionWeights.random(config, layer, 3))
    cache = PagedCache.allocate(config, [layer], 256)
    with _launch.launched_as(family):
        for requests in WARM:
            step(attention, cache, requests)
        assert compiler.forms == forms(family, attention.layer.ratio)
        sweep(attention, cache)
    assert compiler.forms == forms(family, attention.layer.ratio)


def decode(tokens: int, heads: int, extra: int) -> None:
    """Attention over pages of one layout and one number of rows."""
    layout, found = "fp8_ds_mla", get_layout("fp8_ds_mla")
    cache = torch.empty(4, found.page_bytes(64), dtype=torch.uint8)
    lens, q = torch.empty(tokens, dtype=I32), torch.empty(tokens, heads, 512, dtype=torch.bfloat16)
    lists = [listed(cache, torch.empty(tokens, n, dtype=I32), lens, 64, layout) for n in (128, extra)]
    attend(q, *lists, torch.empty(heads), torch.empty_like(q), 1.0)


@pytest.mark.parametrize("family", ["sm90", "sm100", "gfx950", "default"])
@pytest.mark.parametrize("first", [1, 12, 33, 300])
def test_decode_of_any_batch_compiles_for_all(compiler: Compiler, family: str, first: int) -> None:
    with _launch.launched_as(family):
        decode(first, 128, 512)
        known = compiler.forms.copy()
        for tokens in range(1, 70):
            decode(tokens, 128, 64)
            decode(tokens, 128, 1024)
    assert compiler.forms == known and compiler.waited.total() <= 2


def test_while_arguments_are_tuned_a_launch_compiles_itself_alone(compiler: Compiler) -> None:
    taken: list[Place] = []

    def choose(place: Place) -> dict[str, int]:
        taken.append(place)
        return {k: v for k, v in _tuning.row_at(place).items() if k != "least"}

    with _launch.launched_as("sm90"), _tuning.trial(choose):
        decode(2, 64, 512)
    assert [place.kernel for place in taken] == ["sparse_attention", "use_kept"]
    assert compiler.forms == {"weigh_hopper_kernel": 1, "use_kept_kernel": 1}


def test_a_form_that_a_device_refuses_is_refused_when_it_is_launched(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = compiler.run

    def run(kernel: Any, arguments: Any, meta: dict[str, Any], warmup: bool) -> Any:
        if meta.get("CHANNELS") == 256:
            raise RuntimeError("out of resources")
        return made(kernel, arguments, meta, warmup)

    monkeypatch.setattr(compiler, "run", run)
    with _launch.launched_as("sm90"):
        decode(1, 128, 512)
        with pytest.raises(RuntimeError, match="out of resources"):
            decode(20, 128, 512)


@pytest.mark.parametrize("quantise", [False, True])
def test_products_of_any_number_of_tokens(compiler: Compiler, quantise: bool) -> None:
    with _launch.launched_as("sm90"):
        for rows, inputs in ((1536, 4096), (8192, 1024), (4096, 8192)):
            weight = torch.empty(rows, inputs, dtype=torch.uint8)
            scales = torch.empty(-(-rows // 128), inputs // 128)

            def product(tokens: int, weight: Tensor = weight, scales: Tensor = scales) -> None:
                x = torch.empty(tokens, 1, weight.shape[1], dtype=torch.uint8 if quantise else torch.bfloat16)
                by = torch.empty(tokens, 1, weight.shape[1] // 128) if quantise else None
                quantised_linear(x, by, weight, scales, None, format="fp8_block", out_dtype=torch.bfloat16)

            product(3)
            known = compiler.forms.copy()
            for tokens in range(1, 400):
                product(tokens)
            assert compiler.forms == known
