"""CuTeDSL's kernels without a device: what decides about them, what names their code, what is launched."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv4core.errors import BackendUnavailableError
from dsv4core.kernels.triton import portable
from dsv4core.samples import Size, sample
from dsv4core_cuda.cutedsl import _build, _driver, _measured, _probe, install, sparse_indexer
from dsv4core_cuda.cutedsl._build import Program, cubin, key
from dsv4core_cuda.cutedsl._measured import Row, faster

H100 = (9, 0)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    def install_version(version: str | None) -> None:
        for module in (_probe, _build):
            monkeypatch.setattr(module, "installed_version", lambda name: version)

    return install_version


def test_the_probe_decides_by_architecture_and_version(installed: Callable[[str | None], None]) -> None:
    installed("4.8.1")
    assert [a for a in ((8, 0), H100, (10, 0), (10, 3), (12, 0)) if not _probe.reason_against(a)] == [
        H100, (10, 0), (10, 3), (12, 0)
    ]  # fmt: skip
    assert "SM89" in _probe.reason_against((8, 9))
    installed("4.9.0")
    assert "4.9.0 is installed, >=4.8,<4.9 is wanted" in _probe.reason_against(H100)
    installed(None)
    assert "python -m pip install" in _probe.reason_against(H100)


def test_the_name_of_compiled_code_changes_with_all_that_it_depends_on(
    installed: Callable[[str | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("4.8.1")
    base = Program("check", "qff", (), 32)
    names = {key(base, "sm_90a"), key(base, "sm_100a")}
    others = [
        Program("index_q_mxfp4", "qff", (), 32),
        Program("check", "qfq", (), 32),
        Program("check", "qff", (1,), 32),
        Program("check", "qff", (), 64),
        Program("check", "qff", (), 32, shared=16),
        Program("check", "qff", (), 32, cluster=2),
        Program("check", "qff", (), 32, alone=True),
    ]
    names |= {key(other, "sm_90a") for other in others}
    installed("4.8.2")
    names.add(key(base, "sm_90a"))
    monkeypatch.setattr(_build, "_sources", lambda kernel: "other")
    names.add(key(base, "sm_90a"))
    assert len(names) == 11


def test_a_kernel_is_compiled_once_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV4CORE_CUDA_CACHE", str(tmp_path / "new"))
    calls: list[str] = []

    def compiler(program: Program, arch: str) -> bytes:
        calls.append(arch)
        return b"code of " + arch.encode()

    monkeypatch.setattr(_build, "compile_for", compiler)
    program = Program("check", "qff", (), 32)
    for arch in ("sm_90a", "sm_90a", "sm_100a"):
        assert cubin(program, arch) == b"code of " + arch.encode()
    assert calls == ["sm_90a", "sm_100a"]
    assert sorted(f.name.split("-")[1] for f in (tmp_path / "new").iterdir()) == ["sm_100a", "sm_90a"]


def test_a_folder_that_does_not_serve_costs_compiling_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged or unreadable file, a folder that cannot be made: a step goes on."""
    monkeypatch.setattr(_build, "compile_for", lambda program, arch: b"code")
    monkeypatch.setenv("DSV4CORE_CUDA_CACHE", str(tmp_path))
    program = Program("check", "qff", (), 32)
    assert cubin(program, "sm_90a") == b"code"
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask()
    for damaged in (b"", b"cod"):
        file.write_bytes(damaged)
        assert cubin(program, "sm_90a", anew=damaged != b"") == file.read_bytes() == b"code"
    file.unlink()
    file.mkdir()  # neither read nor replaced, also by root
    assert cubin(program, "sm_90a") == b"code"
    assert [f.name for f in tmp_path.iterdir()] == [file.name]
    (tmp_path / "file").touch()
    monkeypatch.setenv("DSV4CORE_CUDA_CACHE", str(tmp_path / "file" / "below"))
    assert cubin(program, "sm_90a") == b"code"
    assert caplog.text.count("machine code of check is not kept") == 2
    monkeypatch.setenv("DSV4CORE_CUDA_CACHE", "~/kernels")
    assert _build.folder() == Path.home() / "kernels"


def umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def test_without_the_compiler_the_reason_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dsv4core_cuda.cutedsl._compiler", None)
    with pytest.raises(BackendUnavailableError, match=r"has to be compiled.*pip install nvidia-cutlass"):
        _build.compile_for(Program("check", "qff", (), 32), "sm_90a")


def test_arguments_lie_where_a_kernel_looks_for_them() -> None:
    assert list(_driver._pointers(struct.Struct("@iqfi"), 1000)) == [1000, 1008, 1016, 1020]


def test_a_form_is_chosen_from_the_size_on_at_which_it_is_faster() -> None:
    rows = (
        Row("a", "always", 1, 2.0, 3.0), Row("a", "always", 9, 2.0, 3.0), Row("a", "never", 1, 2.0, 2.0),
        Row("b", "small", 1, 1.0, 9.0), Row("b", "small", 9, 9.0, 1.0), Row("b", "large", 1, 1.0, 2.0),
        Row("b", "large", 5, 2.0, 1.0), Row("b", "large", 7, 1.0, 2.0), Row("b", "large", 9, 1.0, 2.0),
    )  # fmt: skip
    forms = faster(rows)
    assert forms == {"a": {"always": 1}, "b": {"large": 7}}
    asked = [("large", 6), ("large", 7), ("small", 99)]
    assert [_measured.chosen(forms["b"], *of) for of in asked] == [False, True, False]
    assert _measured.rows("sm_70") == ()


def test_blocks_of_a_token_by_the_time_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few multiprocessors idle at long contexts; at short ones, starts are not worth it."""
    monkeypatch.setattr(sparse_indexer, "processors", lambda device: 132)
    for tokens in range(1, 600):
        blocks = sparse_indexer.splits(tokens, 4096, 0) * tokens
        assert blocks / (-(-blocks // 132) * 132) >= 0.8, tokens
    assert [sparse_indexer.splits(tokens, 512, 0) for tokens in (1, 8, 64, 128, 200, 300)] == [
        132,
        16,
        2,
        1,
        3,
        3,
    ]
    assert [sparse_indexer.splits(tokens, 32, 0) for tokens in (96, 200, 300, 9999)] == [1, 1, 1, 1]


def test_tokens_beyond_the_workspace_go_in_equal_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros before each run, the same memory for all, every token once, within `workspace_bytes`."""
    monkeypatch.setenv("DSV4CORE_CHECK", "0")
    monkeypatch.setattr(sparse_indexer, "processors", lambda device: 132)
    launched: list[tuple[str, Any, Any]] = []
    monkeypatch.setattr(
        Program, "on", lambda self, device: lambda grid, *values: launched.append((self.kernel, grid, values))
    )
    given = sample("sparse_indexer", Size(tokens=50, context=40)) | {"k": 8}
    taken = 4 * sparse_indexer.WORKSPACE + 8 * 8
    op = sparse_indexer.bind(lambda *a, **k: pytest.fail("passed on"), {given["layout"]: 0}, "sm_90a")
    assert op(**given | {"workspace_bytes": 20 * taken}).shape == (50, 8)
    assert [kernel for kernel, _, _ in launched] == ["clear", "sparse_indexer"] * 3
    runs = [(grid, values) for kernel, grid, values in launched if kernel == "sparse_indexer"]
    assert [(grid[:2], values[14]) for grid, values in runs] == [((7, 17), 0), ((7, 17), 17), ((7, 16), 34)]
    assert len({values[8:10] for _, values in runs}) == 1
    assert [values[1] * 16 for kernel, _, values in launched if kernel == "clear"] == [
        4 * sparse_indexer.WORKSPACE * n for n in (17, 17, 16)
    ]
    launched.clear()
    op(**given | {"workspace_bytes": 50 * (taken + 8 * 8)})
    assert [(grid, values[14:16]) for kernel, grid, values in launched if kernel != "clear"] == [
        ((2, 50, 1), (0, 2))
    ]


def test_every_group_of_threads_has_its_own_stages_of_the_ring() -> None:
    for form, program in sparse_indexer.programs("sm_90a").items():
        stages = int(program.constants[2])
        page = 64 * (68 if form.startswith("index_mxfp4") else 132)
        assert stages % sparse_indexer.GROUPS == 0 and 0 < stages * page <= sparse_indexer.RING, form
        assert program.shared <= 227 * 1024


def test_every_measured_form_has_a_kernel_and_every_kernel_was_measured() -> None:
    rows = _measured.rows("sm_90a")
    for op, module in install.launchers().items():
        assert {row.form for row in rows if row.op == op} == set(module.programs("sm_90a")), op
    assert {row.op for row in rows} == set(install.OPS)


def test_the_choice_is_in_the_provenance(
    installed: Callable[[str | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ops = portable.implementations()
    installed("4.8.1")
    row = Row(install.OPS[0], "ratio 4 index_fp8", 1, 1.0, 2.0)
    monkeypatch.setattr(install, "rows", lambda arch: (row,))
    monkeypatch.setattr(install, "wrong", lambda: "")
    found = install.replaced(ops, "auto", H100)
    assert {op: i.provider for op, i in found.items()} == {
        install.OPS[0]: "cutedsl (ratio 4 index_fp8), else triton"
    }
    assert set(install.replaced(ops, "cutedsl", H100)) == set(install.OPS)
    assert install.replaced(ops, "triton", H100) == {}
    monkeypatch.setattr(install, "wrong", lambda: "it computes nonsense")
    found = install.replaced(ops, "auto", H100)
    assert found[install.OPS[0]].provider == "triton (it computes nonsense)"
    assert found[install.OPS[0]].function is ops[install.OPS[0]].function


def test_what_cannot_be_had_is_refused_with_the_reason(installed: Callable[[str | None], None]) -> None:
    ops = portable.implementations()
    installed(None)
    with pytest.raises(BackendUnavailableError, match="KERNELS=cutedsl, but CuTeDSL is not installed"):
        install.replaced(ops, "cutedsl", H100)
    with pytest.raises(BackendUnavailableError, match="SM80"):
        install.replaced(ops, "cutedsl", (8, 0))


CALLS: dict[str, Callable[[dict[str, Any]], None]] = {
    "compress_norm_rope_store": lambda c: c.update(state_cache=c["state_cache"][:, :, 1:]),
    "dequantize_and_gather_k_cache": lambda c: c.update(k_cache=c["k_cache"].view(-1)[1:].view(1, -1)),
    "fused_indexer_q_rope_quant": lambda c: c.update(cos_sin=c["cos_sin"][:, 1:]),
    "fused_qnorm_rope_kv_insert": lambda c: c.update(layout="bf16_row"),
    "sparse_indexer": lambda c: c.update(workspace_bytes=4096),
}
"""What makes a call one for the other kernel."""


@pytest.mark.parametrize("op", install.OPS)
def test_a_launch_fits_its_kernel_and_other_calls_go_on(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grids and arguments are recorded: a letter for each, whole numbers where one says so."""
    monkeypatch.setenv("DSV4CORE_CHECK", "0")
    given = sample(op, Size(tokens=5, context=40))
    if op == "fused_indexer_q_rope_quant":
        given |= {"format": "mxfp4", "rotate": "hadamard"}
    module = install.launchers()[op]
    monkeypatch.setattr(module, "processors", lambda device: 132, raising=False)
    launched: list[tuple[Any, ...]] = []
    passed_on: list[Any] = []

    def on(self: Program, device: Any) -> Any:
        return lambda grid, *values: launched.append((self, grid, values))

    monkeypatch.setattr(Program, "on", on)
    forms = dict.fromkeys(module.programs("sm_90a"), 2)
    op_here = module.bind(lambda *a, **k: passed_on.append((a, k)), forms, "sm_90a")
    op_here(**given)
    program, grid, values = launched.pop()  # behind zeros, for the indexer
    kinds = {"q": int, "i": int, "f": float}
    assert [type(v) for v in values] == [kinds[letter] for letter in program.arguments]
    assert len(grid) == 3 and all(isinstance(n, int) and n > 0 for n in grid)
    changed = dict(given)
    CALLS[op](changed)
    op_here(**changed)
    assert [p.kernel for p, _, _ in launched] == ["clear"] * (op == "sparse_indexer") and len(passed_on) == 1
    module.bind(lambda *a, **k: passed_on.append((a, k)), dict.fromkeys(forms, 9999), "sm_90a")(**given)
    assert len(launched) == (op == "sparse_indexer") and len(passed_on) == 2
