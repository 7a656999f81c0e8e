"""Third-party plugins, good and bad: each becomes rows, none disturbs the others."""

import logging

import pytest
from fake_plugins import HEADER, Site, backend_source, probe_source

import dsv4core
from dsv4core import registry, selection
from dsv4core.spec import BackendRow, Code

BUILT_IN = ["cuda", "rocm", "xpu", "cpu"]


def row_of(distribution: str) -> BackendRow:
    (row,) = [row for row in dsv4core.backends() if row.distribution == distribution]
    return row


def assert_built_ins_unharmed() -> None:
    rows = {row.name: row for row in dsv4core.backends() if row.distribution == "dsv4core"}
    assert list(rows) == BUILT_IN
    assert rows["cpu"].available


def test_a_good_plugin_becomes_a_backend(site: Site) -> None:
    site.add("dsv4core-acme", {"acme": "acme_good"}, backend_source("acme"))
    row = row_of("dsv4core-acme")
    assert (row.name, row.available, row.priority, row.version) == ("acme", True, 50, "1.0")
    assert_built_ins_unharmed()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import does_not_exist_sdk", "ModuleNotFoundError: No module named 'does_not_exist_sdk'"),
        ("import os\nos.exit(127)", "AttributeError"),
        ("import sys\nsys.exit(127)", "SystemExit: 127"),
        ("def broken(:", "SyntaxError"),
        (backend_source("my-backend"), "'my-backend' cannot name a backend"),
        (backend_source("auto"), "'auto' cannot name a backend"),
        (backend_source("acme", factory="no_colon"), "factory 'no_colon' is not of the form"),
        (
            HEADER + "@hookimpl\ndef dsv4core_backends():\n    return ['acme']\n",
            "returned str, not BackendSpec",
        ),
        (
            HEADER + "@hookimpl\ndef dsv4core_backends():\n    raise OSError('no licence')\n",
            "OSError: no licence",
        ),
        (
            backend_source("acme") + "@hookimpl\ndef dsv4core_probee(spec, depth):\n    return None\n",
            "unknown hook 'dsv4core_probee'; did you mean 'dsv4core_probe'?",
        ),
        (
            backend_source("acme") + "@hookimpl\ndef dsv4core_info(spec, surprise):\n    return None\n",
            "PluginValidationError",
        ),
    ],
    ids=[
        "missing-module",
        "ipex-like-exit",
        "sys-exit",
        "syntax",
        "hyphen",
        "reserved",
        "factory",
        "not-a-spec",
        "raises",
        "pending-hook",
        "hook-arguments",
    ],
)
def test_a_broken_plugin_is_a_row_with_its_reason(site: Site, source: str, reason: str) -> None:
    site.add("dsv4core-acme", {"acme": "acme_broken"}, source)
    row = row_of("dsv4core-acme")
    assert (row.name, row.available, row.code) == ("acme", False, Code.PLUGIN_BROKEN)
    assert reason in row.reason
    assert row.hint == "update or uninstall dsv4core-acme"
    assert_built_ins_unharmed()
    with pytest.raises(dsv4core.BackendUnavailableError, match="backend 'acme'"):
        dsv4core.get_backend("acme")


@pytest.mark.parametrize(
    ("field", "form"),
    [
        ("name=3", "a string"),
        ("device_type=None", "a string"),
        ("priority='5'", "a whole number"),
        ("factory=None", "a string"),
        ("requires=[Requirement('json')]", "a tuple of Requirement"),
        ("requires=('json',)", "a tuple of Requirement"),
        ("extra=1", "a string or None"),
        ("layouts='f32_row'", "a tuple of strings"),
        ("features={'fast'}", "a frozenset of strings"),
        ("api_version='1'", "a whole number"),
        ("settings=(1,)", "a tuple of strings or None"),
        ("settings='device'", "a tuple of strings or None"),
    ],
)
def test_a_field_of_another_type_is_a_row(site: Site, field: str, form: str) -> None:
    good = "name='acme', device_type='cpu', priority=50, factory='json:loads'"
    name = field.partition("=")[0]
    fields = ", ".join([part for part in good.split(", ") if not part.startswith(f"{name}=")] + [field])
    source = f"{HEADER}\n@hookimpl\ndef dsv4core_backends():\n    return [BackendSpec({fields})]\n"
    site.add("dsv4core-acme", {"acme": "acme_types"}, source)
    row = row_of("dsv4core-acme")
    assert row.code is Code.PLUGIN_BROKEN
    assert f": {name} is " in row.reason and row.reason.endswith(f"; it must be {form}")
    assert_built_ins_unharmed()


PROVIDER = """
class Provider:
    name, device_type = "acme", "cpu"
    def __init__(self, settings):
        {body}
"""


@pytest.mark.parametrize(
    ("body", "factory", "reason"),
    [
        ("self.ops = [print]", "Provider", "ops of Provider is a list; a provider has .* a mapping ops"),
        ("self.ops = {'linear': 'fast'}", "Provider", "op linear is a str; a function is expected"),
        ("raise OSError('no licence')", "Provider", "OSError: no licence; DSV4CORE_DISABLE_BACKENDS=acme"),
        ("import no_such_sdk", "Provider", "No module named 'no_such_sdk'; DSV4CORE_DISABLE_BACKENDS=acme"),
        ("self.ops = {}", "Supplier", "no attribute 'Supplier'; DSV4CORE_DISABLE_BACKENDS=acme"),
    ],
)
def test_a_broken_provider_is_named(site: Site, body: str, factory: str, reason: str) -> None:
    source = backend_source("acme", factory=f"acme_provider:{factory}") + PROVIDER.format(body=body)
    site.add("dsv4core-acme", {"acme": "acme_provider"}, source)
    with pytest.raises(dsv4core.PluginError, match=f"backend 'acme'.*{reason}"):
        dsv4core.get_backend("acme")


@pytest.mark.parametrize("body", ["raise RuntimeError('asked for ' + spec.name)", "return object()"])
def test_a_plugin_creates_no_backend_of_others(site: Site, body: str) -> None:
    rude = f"@hookimpl\ndef dsv4core_create(spec, settings):\n    {body}\n"
    site.add("dsv4core-acme", {"acme": "acme_creates"}, backend_source("acme", extra=rude))
    selection._created.clear()
    assert type(dsv4core.get_backend("cpu").provider).__name__ == "CpuBackend"
    with pytest.raises(dsv4core.PluginError, match=r"asked for acme|object lacks name"):
        dsv4core.get_backend("acme")


def test_a_plugin_creates_its_own_backend(site: Site) -> None:
    extra = (
        "from types import SimpleNamespace\n@hookimpl\ndef dsv4core_create(spec, settings):\n"
        "    return SimpleNamespace(name=spec.name, device_type='cpu', ops={}, settings=settings)\n"
    )
    site.add("dsv4core-acme", {"acme": "acme_own"}, backend_source("acme", extra=extra))
    assert dsv4core.get_backend("acme").provider.settings == {}


def test_a_provider_that_exits_is_an_error(site: Site) -> None:
    source = backend_source("acme", factory="acme_exits:Provider") + PROVIDER.format(
        body="raise SystemExit(3)"
    )
    site.add("dsv4core-acme", {"acme": "acme_exits"}, source)
    with pytest.raises(dsv4core.PluginError, match="backend 'acme' cannot be created: SystemExit: 3"):
        dsv4core.get_backend("acme")


def test_a_plugin_whose_module_is_gone_is_a_row(site: Site) -> None:
    site.add("dsv4core-acme", {"acme": "acme_gone"})
    assert "No module named 'acme_gone'" in row_of("dsv4core-acme").reason


def test_a_broken_plugin_does_not_hide_a_good_one(site: Site) -> None:
    site.add("dsv4core-aaa", {"aaa": "aaa_broken"}, "raise RuntimeError('first in line')")
    site.add("dsv4core-zzz", {"zzz": "zzz_good"}, backend_source("zzz"))
    assert not row_of("dsv4core-aaa").available
    assert row_of("dsv4core-zzz").available
    assert_built_ins_unharmed()


def test_metadata_that_is_no_text_hides_no_backend(site: Site) -> None:
    site.add("dsv4core-acme", {"acme": "acme_latin"}, backend_source("acme"))
    (site.path / "dsv4core_acme-1.0.dist-info" / "METADATA").write_bytes(
        b"Name: dsv4core-acme\nAuthor: M\xfcller\n"
    )
    rows = {row.name: row for row in dsv4core.backends()}
    assert rows["acme"].available and rows["acme"].distribution == ""
    assert_built_ins_unharmed()


def test_a_torch_whose_metadata_is_no_text_has_no_version(site: Site) -> None:
    site.add("torch", {}, version="0.1")
    (site.path / "torch-0.1.dist-info" / "METADATA").write_bytes(b"Name: torch\nVersion: 0.1\nAuthor: \xff\n")
    registry.refresh()
    assert_built_ins_unharmed()
    assert dsv4core.get_backend("cpu").name == "cpu"


def test_two_plugins_of_one_name_of_which_one_has_no_metadata(site: Site) -> None:
    site.add("dsv4core-acme", {"acme": "acme_named"}, backend_source("acme"))
    site.add("nameless", {"acme": "acme_nameless"}, backend_source("acme"))
    (site.path / "nameless-1.0.dist-info" / "METADATA").unlink()
    assert "taken by acme_nameless" in row_of("dsv4core-acme").reason
    assert "None" not in row_of("dsv4core-acme").reason
    assert_built_ins_unharmed()


def test_a_built_in_plugin_name_is_refused_to_others(site: Site) -> None:
    """The fake comes first on sys.path, where plain metadata order would let it win."""
    site.add("dsv4core-evil", {"cuda": "evil_cuda"}, backend_source("cuda", 99))
    row = row_of("dsv4core-evil")
    assert row.name == "cuda"
    assert row.code is Code.PLUGIN_BROKEN
    assert "is taken by dsv4core" in row.reason
    assert "dsv4core_cuda.plugin" in row.reason
    assert registry.get_registry().specs["cuda"].priority == 100
    assert_built_ins_unharmed()


def test_a_built_in_backend_name_is_refused_under_another_entry_point(site: Site) -> None:
    site.add("dsv4core-evil", {"evil": "evil_backend"}, backend_source("cpu", 99))
    row = row_of("dsv4core-evil")
    assert row.name == "cpu"
    assert "the backend name 'cpu' of dsv4core-evil 1.0 is taken by dsv4core" in row.reason
    assert dsv4core.backends()[-1] == row
    assert_built_ins_unharmed()


def test_two_third_parties_with_one_name(site: Site) -> None:
    site.add("dsv4core-acme", {"acme": "acme_one"}, backend_source("acme", 20))
    site.add("dsv4core-acme-too", {"acme": "acme_two"}, backend_source("acme", 30))
    assert row_of("dsv4core-acme").available
    assert "taken by dsv4core-acme 1.0" in row_of("dsv4core-acme-too").reason


def test_one_module_under_two_entry_points_is_loaded_once(site: Site) -> None:
    site.add("dsv4core-acme", {"acme": "acme_shared", "acme_again": "acme_shared"}, backend_source("acme"))
    rows = {row.name: row for row in dsv4core.backends()}
    assert rows["acme"].available
    assert "already loaded by another entry point" in rows["acme_again"].reason


def test_another_api_version_is_reported(site: Site) -> None:
    site.add("dsv4core-acme", {"acme": "acme_future"}, backend_source("acme", api_version=7))
    row = row_of("dsv4core-acme")
    assert row.code is Code.API_MISMATCH
    assert row.reason == "dsv4core-acme 1.0 speaks plugin interface 7, this dsv4core 1"


@pytest.mark.parametrize("priority", [0, 100, -1])
def test_a_priority_outside_the_open_range_is_refused(site: Site, priority: int) -> None:
    site.add("dsv4core-acme", {"acme": "acme_greedy"}, backend_source("acme", priority))
    assert row_of("dsv4core-acme").reason == f"priority {priority} is outside 1..99"


def test_a_plugin_without_backends_is_kept_but_has_no_row(site: Site) -> None:
    source = HEADER + "@hookimpl\ndef dsv4core_op_overrides(backend):\n    return {}\n"
    site.add("dsv4core-fast", {"fast": "fast_ops"}, source)
    assert [row.name for row in dsv4core.backends()] == BUILT_IN
    assert "fast" in [plugin.name for plugin in registry.get_registry().plugins]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("1 / 0", "its probe failed: ZeroDivisionError: division by zero"), ("'yes'", "its probe returned str")],
)
def test_a_broken_probe_is_a_reason(site: Site, answer: str, reason: str) -> None:
    site.add("dsv4core-acme", {"acme": "acme_probe"}, backend_source("acme", extra=probe_source(answer)))
    row = row_of("dsv4core-acme")
    assert row.code is Code.PLUGIN_BROKEN
    assert reason in row.reason
    assert_built_ins_unharmed()


def test_a_probe_is_not_asked_about_the_backends_of_others(site: Site) -> None:
    rude = "@hookimpl\ndef dsv4core_probe(spec, depth):\n    raise RuntimeError('asked about ' + spec.name)\n"
    site.add("dsv4core-acme", {"acme": "acme_rude"}, backend_source("acme", extra=rude))
    assert "asked about acme" in row_of("dsv4core-acme").reason
    assert_built_ins_unharmed()


def test_requirements_answer_for_a_plugin_without_probe(site: Site) -> None:
    source = backend_source("acme").replace(
        "'json:loads')", "'json:loads', (Requirement('no_such_sdk'),), 'fast')"
    )
    site.add("dsv4core-acme", {"acme": "acme_needs"}, source)
    row = row_of("dsv4core-acme")
    assert (row.code, row.reason) == (Code.NOT_INSTALLED, "module 'no_such_sdk' is not installed")
    assert row.hint == 'python -m pip install "dsv4core[fast]"'


@pytest.mark.parametrize(
    ("version", "code"),
    [
        (">=99", Code.VERSION_CONFLICT),
        ("==1.*", Code.OK),
        (">=1.0", Code.OK),
        (">=0.9", Code.OK),
        ("<1", Code.VERSION_CONFLICT),
    ],
)
def test_a_requirement_may_name_a_version(site: Site, version: str, code: Code) -> None:
    source = backend_source("acme").replace(
        "'json:loads')", f"'json:loads', (Requirement('acme_sdk', 'acme-sdk', {version!r}),))"
    )
    site.add("acme-sdk", {}, version="1.0")
    (site.path / "acme_sdk.py").write_text("raise RuntimeError('a static probe must not import this')")
    site.add("dsv4core-acme", {"acme": "acme_versions"}, source)
    assert row_of("dsv4core-acme").code is code


def test_a_plugin_that_imports_something_heavy_is_named(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.add("dsv4core-acme", {"acme": "acme_heavy"}, "import sys\nsys.modules.setdefault('triton', sys)\n")
    import sys

    had = "triton" in sys.modules
    try:
        with caplog.at_level(logging.WARNING, "dsv4core"):
            dsv4core.backends()
        assert had or "plugin 'acme' (dsv4core-acme 1.0) imports triton during discovery" in caplog.text
    finally:
        if not had:
            sys.modules.pop("triton", None)


def test_dsv4core_plugins_empty_means_built_ins_only(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.add("dsv4core-acme", {"acme": "acme_allowed"}, "raise RuntimeError('must not be imported')")
    monkeypatch.setenv("DSV4CORE_PLUGINS", "")
    row = row_of("dsv4core-acme")
    assert (row.code, row.hint) == (Code.DISABLED, "add acme to DSV4CORE_PLUGINS")
    assert_built_ins_unharmed()


def test_dsv4core_plugins_names_those_to_load(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site.add("dsv4core-acme", {"acme": "acme_listed"}, backend_source("acme"))
    site.add("dsv4core-zinc", {"zinc": "zinc_unlisted"}, backend_source("zinc"))
    monkeypatch.setenv("DSV4CORE_PLUGINS", "acme, zink")
    with caplog.at_level(logging.WARNING, "dsv4core"):
        assert row_of("dsv4core-acme").available
    assert row_of("dsv4core-zinc").code is Code.DISABLED
    assert "DSV4CORE_PLUGINS names 'zink', which is not installed; did you mean 'zinc'?" in caplog.text


def test_trace_writes_every_hook_call(
    site: Site, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DSV4CORE_TRACE", "1")
    try:
        dsv4core.backends()
    finally:
        logging.getLogger("dsv4core.trace").handlers.clear()
    written = capfd.readouterr().err
    assert "dsv4core_backends() -> cpu (dsv4core" in written
    assert "dsv4core_probe(spec='cuda', depth='static')" in written
