"""Finding FlashMLA: each build's way of being called, and each way of not being usable."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from fake_flash_mla import FakeFlashMLA

import dsv4core_cuda.backend as backend_module
from dsv4core.errors import BackendUnavailableError, ConfigError
from dsv4core_cuda import flashmla_find
from dsv4core_cuda.backend import CudaBackend
from dsv4core_cuda.flashmla import FlashMLA
from dsv4core_cuda.flashmla_find import find
from dsv4core_cuda.flashmla_library import FlashMLAModule, FlashMLAOps

DECODE = (
    "(Tensor q, Tensor kv, Tensor indices, Tensor? topk_length, Tensor? attn_sink, Tensor? metadata, "
    "Tensor? num_splits, Tensor? extra_kv, Tensor? extra_indices, Tensor? extra_topk_length, int d_v, "
    "float sm_scale{}) -> (Tensor, Tensor, Tensor?, Tensor?)"
)
PREFILL = (
    "(Tensor q, Tensor kv, Tensor indices, float sm_scale, int d_v, Tensor? attn_sink, Tensor? topk_length{})"
    " -> (Tensor, Tensor, Tensor)"
)


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(flashmla_find.VARIABLE, raising=False)
    monkeypatch.setattr(flashmla_find, "module_exists", lambda name: name in sys.modules)
    monkeypatch.delitem(sys.modules, "flash_mla", raising=False)


def installed(monkeypatch: pytest.MonkeyPatch, found: Any) -> None:
    module = ModuleType("flash_mla")
    module.__dict__.update(vars(found))
    monkeypatch.setitem(sys.modules, "flash_mla", module)


def test_nothing_is_installed() -> None:
    found, reason = find()
    assert found is None and "not installed" in reason and "--no-deps" in reason


def test_the_module_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, FakeFlashMLA().module())
    found, reason = find()
    assert isinstance(found, FlashMLAModule) and not reason


@pytest.mark.parametrize("error", [SystemExit(127), OSError("libcuda.so.1"), AttributeError("ops")])
def test_a_module_that_does_not_load_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(flashmla_find, "module_exists", lambda name: name == "flash_mla")
    monkeypatch.setattr(flashmla_find.importlib, "import_module", fail)
    found, reason = find()
    assert found is None and type(error).__name__ in reason


def test_builds_without_the_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    halves = FakeFlashMLA().module()
    halves.has_legacy = lambda: False
    installed(monkeypatch, halves)
    assert "without its legacy half" in find()[1]
    old = FakeFlashMLA().module()
    old.flash_mla_with_kvcache = lambda q, k_cache, block_table: None
    installed(monkeypatch, old)
    assert "older than V4" in find()[1]


def register(namespace: str, decode_tail: str, prefill_tail: str, calls: list[tuple[Any, ...]]) -> Any:
    """Ops as a library of that name would register them."""
    ops = torch.library.Library(namespace, "DEF")
    ops.define("sparse_decode_fwd" + DECODE.format(decode_tail))
    ops.define("sparse_prefill_fwd" + PREFILL.format(prefill_tail))

    def decode(*args: Any) -> tuple[Any, ...]:
        calls.append(args)
        meta = torch.ones(1) if args[5] is None else args[5] + 1
        return args[0].clone(), torch.zeros(1), meta, torch.ones(2)

    def prefill(*args: Any) -> tuple[Any, ...]:
        calls.append(args)
        return args[0].clone(), torch.zeros(1), torch.full((1,), 2.0)

    ops.impl("sparse_decode_fwd", decode, "CompositeExplicitAutograd")
    ops.impl("sparse_prefill_fwd", prefill, "CompositeExplicitAutograd")
    return ops


@pytest.mark.parametrize(
    ("namespace", "decode_tail", "prefill_tail", "tail"),
    [
        ("fake_sgl", ", str? kv_format=None", ", bool log2=False, bool return_stats=True", ()),
        ("fake_vllm", ", Tensor? out_", ", Tensor? out_", (None,)),
        ("fake_vllm_new", ", Tensor? out_, bool enable_batch_invariant", ", Tensor? out_", (None, False)),
    ],
)  # fmt: skip
def test_ops_are_called_by_their_schema(
    namespace: str, decode_tail: str, prefill_tail: str, tail: tuple[Any, ...]
) -> None:
    calls: list[tuple[Any, ...]] = []
    kept = register(namespace, decode_tail, prefill_tail, calls)
    build = FlashMLAOps(namespace, "fake")
    t = [torch.full((1,), float(i)) for i in range(9)]
    schedule = build.schedule()
    for count in (1, 2):  # the second call gets what the first returned
        build.decode(*t[:4], t[4], t[5], t[6], t[7], 0.5, schedule)
        assert int(schedule.tile_scheduler_metadata) == count
    q, kv, listed, length, extra, extra_listed, extra_length, sink = t[:8]
    order = [q, kv, listed, length, sink, None, None, extra, extra_listed, extra_length, 512, 0.5]
    given = calls[1]
    assert all(given[i] is order[i] for i in (0, 1, 2, 3, 4, 7, 8, 9))
    assert given[10:12] == (512, 0.5) and (given[12:] or ()) in (tail, (None,))
    assert float(given[5]) == 1.0 and given[6].tolist() == [1.0, 1.0]
    _, lse = build.prefill(*t[:5], 0.25)
    assert float(lse) == 2.0 and calls[2][3:5] == (0.25, 512)
    del kept


def test_an_unknown_argument_is_refused() -> None:
    kept = register("fake_future", ", int surprise", "", [])
    with pytest.raises(TypeError, match="surprise"):
        FlashMLAOps("fake_future", "fake")
    del kept


def test_the_variable_names_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(flashmla_find.VARIABLE, str(tmp_path / "none.so"))
    assert "no such file" in find()[1]
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    monkeypatch.setenv(flashmla_find.VARIABLE, str(broken))
    assert "does not load" in find()[1]


def test_vllm_is_not_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "vllm"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "_flashmla_C.abi3.so").write_bytes(b"no library")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(flashmla_find, "module_exists", lambda name: name == "vllm")
    found, reason = find()
    assert found is None and "_flashmla_C.abi3.so does not load" in reason and "vllm" not in sys.modules


@pytest.fixture
def vllm_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """vLLM beside FlashMLA's module, with a library that loads."""
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    (tmp_path / "vllm" / "_flashmla_C.abi3.so").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(flashmla_find, "module_exists", lambda name: name in ("flash_mla", "vllm"))
    monkeypatch.setattr(flashmla_find, "_loaded", lambda file, name: (SimpleNamespace(name=name), ""))
    installed(monkeypatch, FakeFlashMLA().module())
    return SimpleNamespace(file=tmp_path)


@pytest.mark.usefixtures("vllm_too")
def test_the_fastest_build_is_taken_and_the_other_named() -> None:
    found, reason = find()
    assert isinstance(found, FlashMLAModule) and reason.startswith("vllm is slower: up to 1.19 times")


@pytest.mark.usefixtures("vllm_too")
def test_a_build_that_does_not_run_leaves_the_next_one() -> None:
    found, reason = find(lambda library: "" if library.name.startswith("vllm") else "wrong on this device")
    assert found is not None and found.name.startswith("vllm") and reason == "wrong on this device"
    assert find(lambda library: "no") == (None, "no; no")


@pytest.mark.parametrize("spec", [None, "none"])
def test_a_module_made_in_the_place_of_vllm_is_none(
    monkeypatch: pytest.MonkeyPatch, spec: str | None
) -> None:
    made = ModuleType("vllm")  # its __spec__ is None
    if spec is not None:
        del made.__spec__
    monkeypatch.setitem(sys.modules, "vllm", made)
    found, reason = find()
    assert found is None and "not installed" in reason


def test_the_backend_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CudaBackend({}).ops["sparse_decode"].provider == f"triton ({backend_module.INTERPRETED})"
    chosen = CudaBackend({"attention": "triton"})
    assert chosen.ops["sparse_prefill"].provider == "triton (DSV4CORE_CUDA_ATTENTION=triton)"
    with pytest.raises(BackendUnavailableError, match="interprets kernels"):
        CudaBackend({"attention": "flashmla"})
    for wrong in (
        {"attention": "cutlass"},
        {"kernels": "fast"},
        {"stream_tokens": "many"},
        {"stream_tokens": "²"},
        {"batch_invariant": "yes"},
        {"fuse_output": "2"},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong)).upper()):
            CudaBackend(wrong)
    assert CudaBackend({"attention": "", "kernels": "", "stream_tokens": ""}).stream_tokens == 256


def test_a_switch_that_changes_nothing_says_so(caplog: pytest.LogCaptureFixture) -> None:
    CudaBackend({"fuse_output": "1", "attention": "triton"})
    assert "FUSE_OUTPUT=1 changes nothing here: DSV4CORE_CUDA_ATTENTION=triton" in caplog.text


@pytest.mark.parametrize(
    ("architecture", "found", "words"),
    [
        ((8, 0), None, "no sparse_decode kernel for SM80"),
        ((12, 0), None, "no sparse_decode kernel for SM120"),
        ((9, 0), (None, "not here"), "not here"),
        ((9, 0), (SimpleNamespace(name="broken 1.0"), ""), "broken 1.0 does not run here"),
    ],
)
def test_architecture_first_then_the_library_then_whether_it_runs(
    monkeypatch: pytest.MonkeyPatch, architecture: tuple[int, int], found: Any, words: str
) -> None:
    def look(against: Any) -> Any:
        assert found is not None, "an architecture without kernels needs no library"
        return (None, against(found[0])) if found[0] else found

    monkeypatch.setattr(backend_module, "find", look)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: architecture)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    flash, reason = backend_module._on_device(33)
    assert flash is None and words in reason


def test_a_library_that_runs_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    flash = FlashMLA(FlashMLAModule(FakeFlashMLA().module()), (9, 0))
    monkeypatch.setattr(backend_module, "_on_device", lambda fewest, invariant: (flash, "another is slower"))
    monkeypatch.setattr(backend_module, "interpreted", lambda: False)
    monkeypatch.setattr(flash.library, "name", "a build 1.0")
    made = CudaBackend({})
    assert made.device_type == "cuda"
    assert made.ops["sparse_prefill"].provider == "flashmla (a build 1.0; another is slower)"
    assert made.ops["sparse_decode"].provider.startswith("flashmla (")
    invariant = CudaBackend({"batch_invariant": "1"}).ops
    assert invariant["sparse_decode"].provider == "triton (DSV4CORE_CUDA_BATCH_INVARIANT=1)"
    assert invariant["sparse_prefill"].provider.startswith("flashmla (")
    for wanted in ("flashmla", "cutedsl"):
        with pytest.raises(ConfigError, match=f"ATTENTION={wanted} and .* exclude each other"):
            CudaBackend({"batch_invariant": "1", "attention": wanted})
    assert made.ops["inverse_rope"].provider == "triton"
