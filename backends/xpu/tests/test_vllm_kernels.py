"""`vllm-xpu-kernels`: what is refused and why, what takes a call, against a stand-in on host tensors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import against
import pytest
import torch
import vllm_fake
from torch import Tensor

from dsv4core.backend import Backend
from dsv4core.errors import BackendUnavailableError, ConfigError, OpArgumentError
from dsv4core.linear import Problem, QuantisedWeight
from dsv4core.numerics import block_fp8
from dsv4core.ops import OPS
from dsv4core.providers import TAKEN, Ranked
from dsv4core.synthetic import hash_normal
from dsv4core_xpu.backend import XpuBackend
from dsv4core_xpu.plugin import SPEC, _vllm
from dsv4core_xpu.vllm_kernels import check, indexer, library, record
from dsv4core_xpu.vllm_kernels.linear import BlockProduct

KNOWN = record.recorded()
SCORES, PRODUCT = library.SCORES, library.PRODUCT
HOST = torch.device("cpu")
WHEEL = os.environ.get("DSV4CORE_VLLM_XPU_KERNELS_WHEEL", "")
DOCS = Path(__file__).parents[3] / "docs" / "triton.md"


def refusal(**settings: Any) -> str:
    """Why DSV4CORE_XPU_VLLM_KERNELS=on cannot be had with such a library."""
    with vllm_fake.installed(**settings), pytest.raises(BackendUnavailableError, match="=on, but") as error:
        XpuBackend({"vllm_kernels": "on"})
    return str(error.value)


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({"vllm-xpu-kernels": None}, "written for release 0.1.16.2, this is none"),
        ({"vllm-xpu-kernels": "0.1.16.3"}, "written for release 0.1.16.2, this is 0.1.16.3"),
        ({"torch": "2.13.0+xpu"}, "built for torch 2.14+xpu, this is 2.13.0+xpu"),
        ({"torch": "2.140.0+xpu"}, "built for torch 2.14+xpu"),
        ({"torch": "2.14.0"}, "built for torch 2.14+xpu"),
    ],
)
def test_another_release_or_torch_is_never_loaded(
    versions: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with vllm_fake.installed(versions=versions):
        monkeypatch.setattr(torch.ops, "load_library", lambda path: pytest.fail("it was loaded"))
        operators, reason = library.load()
    assert not operators and words in reason


def test_a_library_that_does_not_load_is_named() -> None:
    with vllm_fake.installed(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.ops, "load_library", lambda path: (_ for _ in ()).throw(OSError("libsycl.so.9")))
        assert "does not load: OSError: libsycl.so.9" in library.load()[1]
        patch.setattr(torch.ops, "load_library", lambda path: None)
        assert "does not load: AttributeError" in library.load()[1]


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        (SCORES, "Tensor weights", "Tensor context_lens"),
        (SCORES, "Tensor context_lens", "Tensor block_tables"),
        (PRODUCT, "Tensor A", "Tensor B"),
        (PRODUCT, "Tensor? B_scale_", "Tensor? bias_"),
    ],
)
def test_another_order_of_arguments_is_not_called(name: str, first: str, second: str) -> None:
    known = KNOWN["used"][name]["schema"]
    other = known.replace(f"{first}, {second}", f"{second}, {first}")
    assert other != known and "the adapter was written for" in refusal(schemas={name: other})


def test_settings() -> None:
    with pytest.raises(ConfigError, match="expected off, auto or on"):
        XpuBackend({"vllm_kernels": "yes"})
    with vllm_fake.installed(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.ops, "load_library", lambda path: pytest.fail("it was loaded"))
        for settings in ({}, {"vllm_kernels": "off"}, {"vllm_kernels": "auto"}):  # host tensors are no XPU
            own = XpuBackend(settings)
            assert {impl.provider for impl in own.ops.values()} == {"triton", "torch"}
            assert "DSV4CORE_XPU_VLLM_KERNELS=" in str(own.linear_kernels[1].supports(problem(256, 256)))


def test_nothing_of_the_check_is_imported_where_the_option_is_off() -> None:
    code = (
        "import sys; from dsv4core_xpu.backend import XpuBackend; XpuBackend({});"
        "print(*(n for n in sys.modules if n.startswith('dsv4core_xpu.vllm_kernels.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["dsv4core_xpu.vllm_kernels.linear"]


def test_auto_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv4core_xpu.backend.device_type", lambda settings: "xpu")
    sources = {op: impl.provider for op, impl in XpuBackend({"vllm_kernels": "auto"}).ops.items()}
    assert sources["indexer_logits"] == "triton (the adapter was written for release 0.1.16.2, this is none)"
    assert sources["inverse_rope"] == "triton"


@pytest.mark.parametrize("name", [SCORES, PRODUCT])
def test_auto_keeps_what_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> Tensor:
        raise RuntimeError("no image for this device")

    monkeypatch.setattr("dsv4core_xpu.backend.device_type", lambda settings: "xpu")
    passed = check.passed
    monkeypatch.setattr(check, "passed", lambda device: passed(HOST))
    with vllm_fake.installed(**{name: fails}):
        own = XpuBackend({"vllm_kernels": "auto"})
    source, answer = own.ops["indexer_logits"].provider, own.linear_kernels[1].supports(problem(256, 256))
    assert ("no image" in source) is (name == SCORES) and ("no image" in str(answer)) is (name == PRODUCT)
    assert (answer is True) is (name == SCORES)
    assert own.ops["inverse_rope"].provider == f"triton ({record.refusals()['inverse_rope']})"


def broken(how: Callable[[dict[str, Any]], None], after: Callable[[Tensor], Tensor] = lambda x: x) -> Any:
    """A stand-in that spoils its arguments or its result."""

    def scores(*args: Any) -> Tensor:
        names = ("q_fp8", "kv_cache_fp8", "weights", "context_lens", "block_tables", "m", "max_model_len")
        call = dict(zip(names, args, strict=True))
        how(call)
        return after(vllm_fake.scores(*call.values()))

    return scores


def spoil(name: str, change: Callable[[Tensor], Tensor]) -> Any:
    """A stand-in that takes another tensor for one of its own."""
    return broken(lambda call: call.update({name: change(call[name])}))


def raises(call: dict[str, Any]) -> None:
    vllm_fake.demand(False, "xe2")


def interleaved(cache: Tensor) -> Tensor:
    """Pages read as records of 132 bytes."""
    pages = cache.flatten(1).view(-1, 64, 132)
    return torch.cat((pages[..., :128].flatten(1), pages[..., 128:].flatten(1)), 1).view(cache.shape)


WRONG_OPERATORS = {
    "raises": (broken(raises), "Only|PVC"),
    "lens off by one": (spoil("context_lens", lambda x: x + 1), "behind its context has a score"),
    "lens short": (spoil("context_lens", lambda x: (x - 1).clamp(min=0)), "scores are off"),
    "weights in bf16": (spoil("weights", lambda x: x.bfloat16().float()), "scores are off"),
    "heads reversed": (spoil("weights", lambda x: x.flip(1).contiguous()), "scores are off"),
    "pages off by one": (spoil("block_tables", lambda x: (x + 1) % check.PAGES), "scores are off"),
    "records of 132 bytes": (spoil("kv_cache_fp8", interleaved), "scores are off"),
    "sign of the queries": (spoil("q_fp8", lambda x: (x.view(torch.uint8) & 127).view(x.dtype)), "are off"),
    "scores in bf16": (broken(lambda call: None, lambda x: x.bfloat16().float()), "scores are off"),
    "scores in f16": (broken(lambda call: None, lambda x: x.half().float()), "scores are off"),
    "zeros for -inf": (broken(lambda call: None, lambda x: x.nan_to_num(neginf=0)), "has a score"),
    "NaN": (broken(lambda call: None, lambda x: torch.where(x > 1, torch.nan, x)), "scores are off"),
    "shape": (broken(lambda call: None, lambda x: x[:, :-1].contiguous()), "scores are torch.float32 \\["),
    "dtype": (broken(lambda call: None, lambda x: x.double()), "scores are torch.float64"),
}


@pytest.mark.parametrize("name", WRONG_OPERATORS)
def test_a_wrong_operator_is_refused(name: str) -> None:
    operator, words = WRONG_OPERATORS[name]
    assert re.search(words, refusal(**{SCORES: operator}))


class Changed(indexer.Scores):
    """An adapter that hands over something else."""

    def run(self, call: Any) -> Tensor:
        return super().run(call | {self.name: self.change(call[self.name])})


class Transposed(Changed):
    name, change = "token_to_req", staticmethod(lambda x: x.flip(0))


class OneRequest(Changed):
    name, change = "token_to_req", staticmethod(lambda x: x * 0)


class Narrow(Changed):
    name, change = "block_table", staticmethod(lambda x: x[:, :2])


class Short(Changed):
    name, change = "max_len", staticmethod(lambda x: x - 1)


class Dense(Changed):
    name, change = "k_cache", staticmethod(lambda x: x.contiguous())


class Swapped(indexer.Scores):
    def run(self, call: Any) -> Tensor:
        return indexer.Scores(
            lambda q, k, w, lens, table, m, n: self.function(q, k, w, table, lens, m, n)
        ).run(call)


@pytest.mark.parametrize("adapter", [Transposed, OneRequest, Narrow, Short, Swapped])
def test_a_wrong_adapter_is_refused(adapter: type[indexer.Scores]) -> None:
    assert check.wrong_scores(adapter(vllm_fake.scores), HOST)


@pytest.mark.parametrize("adapter", [indexer.Scores, Dense])  # a copy of the pages is wasteful, not wrong
def test_a_right_adapter_passes(adapter: type[indexer.Scores]) -> None:
    assert not check.wrong_scores(adapter(vllm_fake.scores), HOST)


def problem(rows: int, inputs: int, **more: Any) -> Problem:
    """A projection stored in fp8."""
    kinds = {"x": torch.bfloat16, "out": torch.bfloat16} | more
    return Problem(more.get("format", "fp8_block"), torch.float32, rows, inputs, device=HOST, **{
        name: value for name, value in kinds.items() if name != "format"
    })  # fmt: skip


def spoiled(change: Callable[..., Any]) -> Any:
    """The product of other operands: `change` takes and gives x, codes [in, out] and scales."""
    return lambda x, codes, scales, bias: vllm_fake.product(*change(x, codes, scales), bias)


WRONG_PRODUCTS = {
    "raises": (spoiled(lambda x, w, s: (x[:, :1], w, s)), "does not run here"),
    "scales of the other side": (
        spoiled(lambda x, w, s: (x, w, s.flatten().view(s.shape[::-1]).t().contiguous())),
        "products are .* off",
    ),
    "no scales": (spoiled(lambda x, w, s: (x, w, torch.ones_like(s))), "products are .* off"),
    "scales of channels": (
        spoiled(lambda x, w, s: (x, w, s[:1].repeat_interleave(128, 1).contiguous())),
        "products are .* off",
    ),
    "fp8 activations": (
        spoiled(lambda x, w, s: (x.to(torch.float8_e4m3fn).to(x.dtype), w, s)),
        "products are .* off",
    ),
    "tokens reversed": (spoiled(lambda x, w, s: (x.flip(0), w, s)), "products are .* off"),
    "f32": (lambda *args: vllm_fake.product(*args).float(), "products are torch.float32"),
    "transposed": (lambda *args: vllm_fake.product(*args).t(), "products are torch.bfloat16 \\["),
    "NaN": (lambda *args: vllm_fake.product(*args).fill_(torch.nan), "products are nan off"),
}


@pytest.mark.parametrize("name", WRONG_PRODUCTS)
def test_a_wrong_product_is_refused(name: str) -> None:
    operator, words = WRONG_PRODUCTS[name]
    assert re.search(words, refusal(**{PRODUCT: operator}))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (problem(256, 256), ""),
        (problem(256, 128), "two at least along the inputs"),
        (problem(250, 256), "whole blocks of 128"),
        (problem(256, 320), "whole blocks of 128"),
        (problem(256, 256, quantise=True), "bf16 activations"),
        (problem(256, 256, groups=2), "bf16 activations"),
        (problem(256, 256, format="nvfp4"), "fp8_block weights"),
        (problem(256, 256, out=torch.float32), "takes and gives bf16"),
    ],
)
def test_what_the_product_does_not_take_is_said(given: Problem, words: str) -> None:
    answer = BlockProduct(vllm_fake.product).supports(given)
    assert words in str(answer) if words else answer is True


@pytest.mark.parametrize("scales", ["f32", "ue8m0"])
def test_a_projection_takes_the_product(scales: Any) -> None:
    dense = hash_normal((256, 384), 0, "w", 0.1) * torch.logspace(-2, 1, 384)
    weight = QuantisedWeight(*block_fp8.quantise(dense, scales))
    with vllm_fake.installed():
        own = XpuBackend({"vllm_kernels": "on"})
        backend = Backend(SPEC, own, own.ops, linear_kernels=own.linear_kernels)
        applied = backend.linears.linear(weight, torch.bfloat16)
        x = hash_normal((5, 384), 0, "x", 1.0, dtype=torch.bfloat16)
        got, empty = applied(x), applied(x[:0])
    want = x.double() @ weight.dequantised().double().T
    assert float((got.double() - want).norm() / want.norm()) < 4e-3 and empty.shape == (0, 256)


@pytest.mark.parametrize("layout", indexer.LAYOUTS)
def test_the_checking_call_shows_every_code_and_the_hidden_ones_are_nan(layout: str) -> None:
    call = check.made(4, layout)
    codes = set(call["q"].view(torch.uint8).flatten().tolist())
    assert codes == set(range(256)) - {127, 255}
    assert int((call["k_cache"] == 127).sum()) > 8000 and call["k_cache"].data_ptr() % 64 == 0
    assert not check.judged(call, OPS["indexer_logits"].body(**call))


@pytest.fixture
def ops() -> Any:
    """The table of ops with the stand-in in front."""
    with vllm_fake.installed():
        own = XpuBackend({"vllm_kernels": "on"})
        yield Backend(SPEC, own, own.ops).ops


def given(config: str = "vllm", **changes: Any) -> dict[str, Any]:
    """Arguments on pages as a cache has them."""
    call = against.arguments("indexer_logits", config, context=130)
    count, size = call["k_cache"].shape
    pages = torch.zeros(count, size // 64 * 64 + 128, dtype=torch.uint8)[:, :size].copy_(call["k_cache"])
    return {"rotate": "none"} | call | {"k_cache": pages} | changes


@pytest.mark.parametrize("config", against.INDEX)
def test_a_call_that_fits_is_taken_and_others_are_triton_s(config: str, ops: Any) -> None:
    call, before = given(config), TAKEN[indexer.NAME]
    result, body = ops.indexer_logits(**call), OPS["indexer_logits"].body(**call)
    assert TAKEN[indexer.NAME] - before == (call["layout"] in indexer.LAYOUTS)
    assert torch.equal(result.isinf(), body.isinf())
    assert torch.allclose(result, body, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"rows": 32}, "pages of 64 rows, these have 32"),
        ({"layout": "index_mxfp4"}, "the layout is index_mxfp4"),
        ({"rotate": "hadamard"}, "not the layout's"),
        ({"q": torch.zeros(5, 4, 129).to(torch.float8_e4m3fn)}, "not the layout's"),
        ({"q_scales": torch.zeros(5, 4, 4, dtype=torch.uint8)}, "not the layout's"),
        ({"k_cache": torch.zeros(9, 8704, dtype=torch.uint8)[:, 32:]}, "starts elsewhere"),
        ({"k_cache": torch.zeros(9, 8649, dtype=torch.uint8)}, "starts elsewhere"),
        ({"k_cache": torch.zeros(0, 8640, dtype=torch.uint8)}, "no page"),
        ({"max_len": 0}, "no entry"),
    ],
)
def test_what_does_not_fit_is_said(changes: dict[str, Any], words: str, ops: Any) -> None:
    ranked = ops.indexer_logits.implementation
    assert isinstance(ranked, Ranked)
    ((name, answer),) = ranked.explain(**given(**changes))
    assert name == indexer.NAME and (words in str(answer) if words else answer is True)


def test_checked_mode_names_an_entry_without_a_page(ops: Any) -> None:
    call = given()
    call["block_table"] = call["block_table"].clone().index_fill_(1, torch.tensor([1]), -1)
    with pytest.raises(OpArgumentError, match="block_table"):
        ops.indexer_logits(**call)


def test_where_ops_come_from_names_what_stands_against(ops: Any) -> None:
    sources = ops.provenance
    assert sources["indexer_logits"] == "vllm-xpu-kernels 0.1.16.2+fake, triton"
    assert sources["sparse_decode"] == "triton"
    for op, reason in record.refusals().items():
        assert sources[op] == f"triton ({reason})"


def test_info_says_what_it_is_for() -> None:
    assert "index scores and fp8 products with DSV4CORE_XPU_VLLM" in _vllm("0.1.16.2", "2.14.0+xpu")
    assert "not used: it was built for torch 2.14+xpu" in _vllm("0.1.16.2", "2.13.0+xpu")


def test_the_documentation_has_every_operator_with_file_and_line() -> None:
    text = DOCS.read_text()
    for op, entries in KNOWN["refused"].items():
        assert op in OPS
        for near in entries:
            name, place = near["operator"].partition(".")[2], f"{Path(near['file']).name}:{near['line']}"
            assert f"| `{name}` | {near['why']} | {place} |" in text


@pytest.mark.skipif(not WHEEL, reason="DSV4CORE_VLLM_XPU_KERNELS_WHEEL names no wheel")
def test_schemas_are_those_of_the_wheel() -> None:
    wanted = {(library.NAMESPACE, said["schema"]) for said in KNOWN["used"].values()}
    for entries in KNOWN["refused"].values():
        wanted |= {(near["operator"].partition(".")[0], near["schema"]) for near in entries}
    with zipfile.ZipFile(WHEEL) as wheel:
        for name in ("_C", "_xpu_C"):
            code = wheel.read(f"vllm_xpu_kernels/{name}.abi3.so")
            words = re.findall(rb"\w+\([ -~]*\) *-> [ -~]+", code)
            there = {" ".join(word.decode().split()) for word in words}
            assert {schema for space, schema in wanted if space == name} <= there
