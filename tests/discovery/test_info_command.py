"""``dsv4core info`` and the frame of the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_plugins import Site, backend_source

from dsv4core import cli
from dsv4core.cli import info

LIBRARY = "libtorch_cpu.so: cannot open shared object file"
RUN = "import sys; from dsv4core.cli import main; sys.exit(main({words!r}))"


@pytest.fixture
def broken_torch(tmp_path: Path) -> Path:
    """Return a folder with a torch that raises on import."""
    folder = tmp_path / "broken"
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text(f"raise OSError({LIBRARY!r})\n")
    return folder


def test_info_works_when_torch_is_broken(fresh: Callable[..., str], broken_torch: Path) -> None:
    report = json.loads(fresh(RUN.format(words=["info", "--json"]), broken_torch))
    assert report["chosen"]["name"] == "cpu"
    assert report["depth"] == "static"
    assert {row["name"] for row in report["backends"]} >= {"cuda", "rocm", "xpu", "cpu"}
    assert report["versions"]["pluggy"]


def test_info_says_that_torch_is_broken_when_it_looks(fresh: Callable[..., str], broken_torch: Path) -> None:
    report = json.loads(fresh(RUN.format(words=["info", "--json", "--probe"]), broken_torch, code_expected=4))
    rows = {row["name"]: row for row in report["backends"]}
    assert {row["code"] for row in rows.values()} == {"import_failed"}
    assert f"OSError: {LIBRARY}" in rows["cpu"]["reason"]
    assert report["chosen"]["name"] is None
    text = fresh(RUN.format(words=["info", "--ops"]), broken_torch, code_expected=4)
    assert "libtorch_cpu.so" in text


def test_info_imports_no_torch_for_its_backends(fresh: Callable[..., str]) -> None:
    code = """
        import sys
        from dsv4core.cli import info
        info.selection.resolve(depth="static")
        print("torch" in sys.modules)
    """
    assert fresh(code).strip() == "False"


def test_info_as_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV4CORE_BACKND", "cpu")
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    for part in (
        "Backends (by installed files; --probe looks at devices)",
        "is not an XPU build",
        "cpu (auto, the default)",
        "DSV4CORE_BACKND=cpu  nothing reads this; did you mean DSV4CORE_BACKEND?",
        "intel_extension_for_pytorch",
    ):
        assert part in text


def test_info_shows_where_ops_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--ops", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["depth"] == "device"
    assert "sparse_decode" in report["ops"]


def test_info_shows_layouts_with_fingerprints(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["info", "--json"])
    layouts = json.loads(capsys.readouterr().out)["layouts"]
    assert len(layouts["fp8_ds_mla"]) == 12


@pytest.mark.parametrize(("backend", "code"), [("xpuu", 2), ("xpu", 4), ("cpu", 0)])
def test_info_reports_a_choice_that_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, backend: str, code: int
) -> None:
    monkeypatch.setenv("DSV4CORE_BACKEND", backend)
    assert cli.main(["info"]) == code
    assert f"DSV4CORE_BACKEND={backend}" in capsys.readouterr().out


def test_info_says_what_a_variable_may_hold(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSV4CORE_FALLBACK", "eror")
    assert cli.main(["info"]) == 2
    said = capsys.readouterr().out
    assert "DSV4CORE_FALLBACK=eror  expected error or warn or allow; did you mean error?" in said


def test_info_shows_everything_beside_a_wrong_trace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DSV4CORE_TRACE", "yes")
    assert cli.main(["info"]) == 2
    said = capsys.readouterr().out
    assert "DSV4CORE_TRACE=yes  expected 0 or 1" in said and "Layouts" in said and "cpu (auto" in said
    assert caplog.messages == ["DSV4CORE_TRACE=yes: expected 0 or 1; nothing is traced"]


def test_info_shows_broken_plugins(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.add("dsv4core-acme", {"acme": "acme_info"}, "import does_not_exist_sdk")
    assert cli.main(["info"]) == 0
    assert "No module named 'does_not_exist_sdk'" in capsys.readouterr().out


def test_a_plugin_that_fails_to_describe_itself_is_named(site: Site) -> None:
    extra = "@hookimpl\ndef dsv4core_info(spec):\n    raise OSError('driver gone')\n"
    site.add("dsv4core-acme", {"acme": "acme_details"}, backend_source("acme", extra=extra))
    details = info.collect()["details"]
    assert details["acme"] == ["a plugin failed to describe itself: OSError: driver gone"]


CHECKOUT = """
[project]
name = "dsv4core"

[project.entry-points."dsv4core.backends"]
cpu = "dsv4core_cpu.plugin"
cuda = "dsv4core_cuda.plugin"
rocm = "dsv4core_rocm.plugin"
{last}

[project.entry-points.pytest11]
dsv4core = "dsv4core_conformance.gate"

[tool.other]
"""


@pytest.mark.parametrize(
    ("last", "changed"),
    [
        ('xpu = "dsv4core_xpu.plugin"', None),
        ('xpu = "dsv4core_xpu.elsewhere"', "xpu"),
        ("", "xpu"),
        ('xpu = "dsv4core_xpu.plugin"\ntpu = "dsv4core_tpu.plugin"', "tpu"),
    ],
)
def test_entry_points_of_a_checkout_are_compared_with_the_installed_ones(
    tmp_path: Path, last: str, changed: str | None
) -> None:
    (tmp_path / "pyproject.toml").write_text(CHECKOUT.format(last=last))
    notes = info.entry_point_differences(tmp_path)
    assert len(notes) == (changed is not None)
    assert changed is None or f"({changed})" in notes[0]


def test_a_folder_that_is_no_checkout_has_nothing_to_compare(tmp_path: Path) -> None:
    assert info.entry_point_differences(tmp_path) == []
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\n')
    assert info.entry_point_differences(tmp_path) == []


def test_this_checkout_is_installed_as_it_is_written() -> None:
    assert info.entry_point_differences(Path(info.__file__).resolve().parents[2]) == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 2),
        (["--help"], 0),
        (["--version"], 0),
        (["nonsense"], 2),
        (["info", "--nonsense"], 2),
        (["info", "--help"], 0),
    ],
)
def test_exit_codes_of_the_frame(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == code
    capsys.readouterr()


def test_a_wrong_log_level_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DSV4CORE_LOG", "debgu")
    assert cli.main(["info"]) == 2
    assert (
        "DSV4CORE_LOG=debgu: expected debug or info or warning or error; did you mean debug?"
        in capsys.readouterr().err
    )


def test_only_the_subcommand_asked_for_is_imported(fresh: Callable[..., str]) -> None:
    code = """
        import sys
        from dsv4core import cli
        cli.build_parser("info")
        print("dsv4core.cli.layout" in sys.modules)
    """
    assert fresh(code).strip() == "False"
