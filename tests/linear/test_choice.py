"""Which kernel a projection gets: ranks, refusals, the variable, plugins, and what `info` shows of it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from dsv4core import (
    AttentionConfig,
    AttentionWeights,
    LinearError,
    PagedCache,
    PluginError,
    WeightsError,
    get_backend,
)
from dsv4core.backend import Backend, create_backend
from dsv4core.cli import main
from dsv4core.linear import Linear, LinearKernel, Linears, Problem, QuantisedWeight
from dsv4core.linear.report import problems
from dsv4core.numerics import block_fp8, group_fp4
from dsv4core.selection import registry
from dsv4core.synthetic import hash_normal

BF16 = torch.bfloat16


class Repacked(LinearKernel):
    """A kernel as a third party would bring one: first where it can run, with a weight of its own order."""

    name = "repacked"

    def __init__(self, rank: int = 90, reason: str = "") -> None:
        self.rank, self.reason, self.prepared, self.applied = rank, reason, 0, 0

    def supports(self, problem: Problem):
        if problem.format != "nvfp4":
            return f"it takes nvfp4, not {problem.format}"
        if problem.groups:
            return "it knows no groups"
        return self.reason or True

    def prepare(self, weight, problem: Problem):
        self.prepared += 1
        return weight.dequantised(BF16).t().contiguous()

    def apply(self, problem: Problem, prepared, x, x_scales):
        self.applied += 1
        return (x @ prepared).to(problem.out)


def nvfp4() -> QuantisedWeight:
    return QuantisedWeight(*group_fp4.quantise_nv(hash_normal((64, 128), 0, "w", 0.1)))


def candidates(*kernels: LinearKernel) -> Linears:
    return Linears(get_backend("cpu").ops, kernels)


def test_the_highest_rank_that_takes_it() -> None:
    mine, lower = Repacked(), Repacked(rank=10)
    lower.name = "lower"
    linears = candidates(lower, mine)
    linear = linears.linear(nvfp4(), BF16)
    verdicts = [(v.name, v.rank, v.reason) for v in linear.choice.verdicts]
    assert verdicts == [
        ("repacked", 90, ""), ("lower", 10, "not needed, repacked comes first"),
        ("op", 0, "not needed, repacked comes first"),
    ]  # fmt: skip
    x = hash_normal((3, 128), 0, "x", 1.0, dtype=BF16)
    first, second = linear(x), linear(x)
    assert (mine.prepared, mine.applied, lower.prepared) == (1, 2, 0) and torch.equal(first, second)
    plain = linears.linear(torch.zeros(64, 128, dtype=BF16), BF16)
    assert plain.choice.kernel.name == "op"
    assert plain.choice.verdicts[0].reason == "it takes nvfp4, not bf16"


def test_a_candidate_that_cannot_answer_stops_nobody() -> None:
    class Broken(Repacked):
        def supports(self, problem: Problem):
            raise OSError("no driver")

    linear = candidates(Broken()).linear(nvfp4(), BF16)
    assert linear.choice.kernel.name == "op"
    assert linear.choice.verdicts[0].reason == "it failed to answer: OSError: no driver"


def test_the_variable_forces_and_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    linears = candidates(Repacked())
    monkeypatch.setenv("DSV4CORE_LINEAR", "op")
    choice = linears.linear(nvfp4(), BF16).choice
    assert choice.kernel.name == "op"
    assert [v.reason for v in choice.verdicts] == ["", "not needed, op comes first"]
    monkeypatch.setenv("DSV4CORE_LINEAR", "repacked")
    assert linears.linear(nvfp4(), BF16).choice.verdicts[1].reason == "not needed, repacked comes first"
    with pytest.raises(
        LinearError, match=r"no linear kernel takes bf16 \[8, 128\]: repacked: it takes nvfp4"
    ) as caught:
        linears.linear(torch.zeros(8, 128, dtype=BF16), BF16)
    assert "type DSV4CORE_LINEAR=repacked,op" in str(caught.value)
    monkeypatch.setenv("DSV4CORE_LINEAR", "repacked,op")
    assert linears.linear(torch.zeros(8, 128, dtype=BF16), BF16).choice.kernel.name == "op"
    monkeypatch.setenv("DSV4CORE_LINEAR", "repackd")
    with pytest.raises(
        LinearError, match=r"DSV4CORE_LINEAR=repackd: there are repacked, op. Did you mean 'repa"
    ):
        linears.linear(nvfp4(), BF16)


def test_a_name_twice_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV4CORE_LINEAR", "repacked, op,repacked,op")
    choice = candidates(Repacked()).linear(nvfp4(), BF16).choice
    assert [(v.name, v.reason) for v in choice.verdicts] == [
        ("repacked", ""),
        ("op", "not needed, repacked comes first"),
    ]


@pytest.mark.parametrize("answer", [None, False, "", 1, torch.tensor(True), ["no"]])
def test_an_answer_that_is_neither_true_nor_a_reason(answer) -> None:
    class Vague(Repacked):
        def supports(self, problem: Problem):
            return answer

    choice = candidates(Vague()).linear(nvfp4(), BF16).choice
    assert choice.kernel.name == "op"
    assert choice.verdicts[0].reason == f"it answered {answer!r}, not True or a reason"


def test_a_candidate_that_wants_to_leave_stops_nobody() -> None:
    class Leaving(Repacked):
        def supports(self, problem: Problem):
            raise SystemExit(3)

    choice = candidates(Leaving()).linear(nvfp4(), BF16).choice
    assert choice.kernel.name == "op"
    assert choice.verdicts[0].reason == "it failed to answer: SystemExit: 3"


def test_a_kernel_that_cannot_prepare_is_named_with_the_way_out() -> None:
    class Failing(Repacked):
        def prepare(self, weight, problem: Problem):
            raise self.error

    kernel = Failing()
    kernel.error = OSError("libfast.so: no such file")
    with pytest.raises(
        LinearError, match=r"repacked cannot prepare nvfp4, e4m3 scales \[64, 128\]: OSError: libfast.so"
    ) as caught:
        candidates(kernel).linear(nvfp4(), BF16)
    assert str(caught.value).endswith("; DSV4CORE_LINEAR=op does without it")
    assert caught.value.__cause__ is kernel.error
    kernel.error = WeightsError("said by dsv4core")
    with pytest.raises(WeightsError, match=r"^said by dsv4core$"):
        candidates(kernel).linear(nvfp4(), BF16)


def test_two_of_one_name() -> None:
    with pytest.raises(LinearError, match="two linear kernels are called 'repacked'"):
        candidates(Repacked(), Repacked())


class Plugin:
    """In the place of the registry: one plugin's hooks, and a provider without ops."""

    name, origin, backends = "mine", "mine 1.0", ("cpu",)

    def __init__(self, offer) -> None:
        self.offer = offer
        self.provider = SimpleNamespace(name="mine", device_type="cpu", ops={})

    def creator(self, name):
        return self.dsv4core_create

    def each(self, hook):
        return [(self, getattr(self, hook))]

    def dsv4core_create(self, spec, settings):
        return self.provider

    def dsv4core_op_overrides(self, backend):
        return []

    def dsv4core_linear_kernels(self, backend):
        return [self.offer]


def test_a_plugin_offers_kernels() -> None:
    spec = registry.get_registry().specs["cpu"]
    backend = create_backend(spec, Plugin([Repacked()]))
    assert [kernel.name for kernel in backend.linears.kernels] == ["repacked", "op"]
    with pytest.raises(
        PluginError, match=r"returned str; expected objects derived from dsv4core.linear.Linear"
    ):
        create_backend(spec, Plugin(["fast"]))


def test_a_whole_layer_on_a_third_party_kernel(tmp_path) -> None:
    """nvfp4 everywhere: every plain projection goes through the kernel, and the layer stays what it was."""
    from dsv4core.checkpoint import write_synthetic

    config = AttentionConfig.preset("tiny", hidden_size=128, q_lora_rank=64, o_lora_rank=64)
    path = write_synthetic(tmp_path / "x", config, [2], format="nvfp4", projections="all")
    weights = AttentionWeights.from_checkpoint(path, config, 2)
    cpu, mine = get_backend("cpu"), Repacked()
    own = Backend(cpu.spec, cpu.provider, cpu.provider.ops, [mine])
    outputs = []
    for backend in (cpu, own):
        attention = backend.attention(config, 2, weights)
        cache = PagedCache.allocate(config, [2], 200)
        hidden = hash_normal((130, 128), 0, "hidden", 1.0, dtype=BF16)
        outputs.append(attention(hidden, cache, cache.plan({"a": 130})))
    assert isinstance(attention.wq_b, Linear) and attention.wq_b.choice.kernel is mine
    assert mine.prepared == 6, "wq_a, wkv, wq_b, wo_b and both of the compressor"
    assert attention.wo_a.choice.verdicts[0].reason == "it knows no groups"
    assert float((outputs[0] - outputs[1]).float().norm() / outputs[0].float().norm()) < 2e-2


def test_info_shows_choices_and_refusals(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    assert main(["info", "--linear", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["linear"]
    assert len(report) == len(problems(torch.device("cpu"))) and len(report) > 20
    assert {row["kernel"] for name, row in report.items() if "nvfp4" not in name} == {"op"}
    monkeypatch.setenv("DSV4CORE_LINEAR", "none")
    assert main(["info", "--linear"]) == 2, "like every variable that holds what it may not"
    text = capsys.readouterr().out
    assert "DSV4CORE_LINEAR=none  there are native, op." in text
    assert "wq_b: fp8_block, UE8M0 scales [32768, 1024]  ->  none" in text
    assert "DSV4CORE_LINEAR=none: there are native, op." in text


def test_fp8_activations_are_asked_for_with_fp8_weights_only() -> None:
    config = AttentionConfig.preset("tiny", activation_quant="ue8m0", q_lora_rank=128)
    tensors = AttentionWeights.random(config, 1).state_dict()
    for name in ("wq_a", "wkv", "wq_b", "wo_b", "indexer.wq_b"):
        tensors[name], tensors[f"{name}.scale"] = block_fp8.quantise(tensors[name], "ue8m0")
    attention = get_backend("cpu").attention(config, 1, AttentionWeights.from_state_dict(tensors))
    assert (
        attention.w_qkv.problem.quantise
        and attention.wq_b.problem.quantise
        and attention.wo_b.problem.quantise
    )
    assert attention.indexer.wq_b.problem.quantise
    assert not attention.wo_a.problem.quantise and not attention.indexer.weights_proj.problem.quantise
    assert not attention.compressor.projection.problem.quantise
    with pytest.raises(Exception, match="activation_quant 'ue8m0' does not go with profile 'math'"):
        AttentionConfig.preset("tiny", profile="math", activation_quant="ue8m0")
