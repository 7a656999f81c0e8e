"""Asking for backends by argument, block and environment."""

import gc
import logging
import threading

import pytest
import torch
from fake_plugins import Site, backend_source, probe_source

import dsv4core
from dsv4core import registry, selection
from dsv4core.spec import Code

ABSENT = "Availability.missing(Code.NO_DEVICE, 'no /dev/acme0', 'load the acme kernel module')"
FOUND = "Availability.available()"


@pytest.fixture
def acme(site: Site) -> Site:
    """Two third-party backends: ``acme`` cannot run here, ``zinc`` can."""
    site.add("dsv4core-acme", {"acme": "acme_absent"}, backend_source("acme", 70, probe_source(ABSENT)))
    site.add("dsv4core-zinc", {"zinc": "zinc_found"}, backend_source("zinc", 5, probe_source(FOUND)))
    return site


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        (None, "cpu"),
        ("", "cpu"),
        ("auto", "cpu"),
        ("cpu", "cpu"),
        ("zinc", "zinc"),
        ("acme,zinc", "zinc"),
        (" zinc , cpu ", "zinc"),
    ],
)
def test_every_form_of_the_variable(
    acme: Site, monkeypatch: pytest.MonkeyPatch, variable: str | None, name: str
) -> None:
    if variable is not None:
        monkeypatch.setenv("DSV4CORE_BACKEND", variable)
    assert selection.resolve().spec.name == name


def test_exactly_this_one_or_an_error_with_the_table(acme: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV4CORE_BACKEND", "acme")
    with pytest.raises(dsv4core.BackendUnavailableError) as caught:
        dsv4core.get_backend()
    first, title, *table = str(caught.value).splitlines()
    assert first == (
        "backend 'acme' (DSV4CORE_BACKEND=acme) cannot run here: no /dev/acme0 (load the acme kernel module)"
    )
    assert title == "Backends here:"
    assert [line.split()[0] for line in table] == ["cuda", "rocm", "xpu", "acme", "cpu", "zinc"]
    assert "  acme  no /dev/acme0  (load the acme kernel module)" in table
    assert "  cpu   available" in table


def test_a_list_of_which_none_can_run(acme: Site) -> None:
    with pytest.raises(dsv4core.BackendUnavailableError, match="none of the backends asked for"):
        dsv4core.get_backend("acme,xpu")


@pytest.mark.parametrize("source", ["argument", "use", "variable", "list"])
def test_an_unknown_name_is_answered_with_the_nearest_and_the_table(
    acme: Site, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setenv("DSV4CORE_BACKEND", {"variable": "xpuu", "list": "cpu,xpuu"}.get(source, "cpu"))
    said = {"argument": "xpuu, the argument", "use": "xpuu, use()", "variable": "DSV4CORE_BACKEND=xpuu"}
    with pytest.raises(dsv4core.UnknownBackendError) as caught:
        if source == "use":
            with dsv4core.use("xpuu"):
                pytest.fail("the block must not be entered")
        else:
            dsv4core.get_backend("xpuu" if source == "argument" else None)
    text = str(caught.value)
    shown = said.get(source, "DSV4CORE_BACKEND=cpu,xpuu")
    assert text.startswith(f"no backend is called 'xpuu' ({shown}). Did you mean 'xpu'?\nBackends here:\n")
    assert all(f"  {name} " in text for name in ("cuda", "rocm", "xpu", "acme", "cpu", "zinc"))


@pytest.mark.parametrize("given", [torch.device("cpu"), ["cuda", "cpu"], 3])
def test_what_is_no_name_is_refused(given: object) -> None:
    with pytest.raises(dsv4core.UnknownBackendError, match=r"by comma \('cuda,cpu'\), not "):
        dsv4core.get_backend(given)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [None, 3, ["cpu"], b"cpu"])
def test_use_refuses_what_is_no_name_when_it_is_called(given: object) -> None:
    with pytest.raises(dsv4core.UnknownBackendError, match=r"use takes a name .* \('cuda,cpu'\), not "):
        dsv4core.use(given)  # type: ignore[arg-type]


def test_use_refuses_an_unknown_name_when_it_is_called() -> None:
    with pytest.raises(dsv4core.UnknownBackendError, match=r"called 'nope' \(nope, use\(\)\)"):
        dsv4core.use("nope")


def test_use_without_a_block_says_that_it_chose_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "dsv4core"):
        with dsv4core.use("cpu"):
            pass
        assert not caplog.records
        dsv4core.use("cuda")
        gc.collect()
    assert caplog.messages == ["use('cuda') chose nothing: type `with use('cuda'):`"]


def test_use_as_a_decorator(acme: Site, caplog: pytest.LogCaptureFixture) -> None:
    @dsv4core.use("zinc")
    def chosen(inner: bool = False) -> str:
        return (chosen() if inner else "") + selection.resolve().spec.name

    assert [chosen(), chosen(), chosen(inner=True)] == ["zinc", "zinc", "zinczinc"]
    assert chosen.__name__ == "chosen" and selection.resolve().spec.name == "cpu"
    gc.collect()
    assert "chose nothing" not in caplog.text


def test_one_block_may_be_entered_again(acme: Site) -> None:
    block = dsv4core.use("zinc")
    with block, dsv4core.use("cpu"), block:
        assert selection.resolve().spec.name == "zinc"
    assert selection.resolve().spec.name == "cpu"


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(dsv4core.UnknownBackendError, match=r"called 'quux' \(quux, the argument\)\.\n"):
        dsv4core.get_backend("quux")


def test_precedence_and_nesting_of_use(acme: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV4CORE_BACKEND", "zinc")
    assert selection.resolve().spec.name == "zinc"
    with dsv4core.use("cpu"):
        assert selection.resolve().spec.name == "cpu"
        with dsv4core.use("zinc"):
            assert selection.resolve().spec.name == "zinc"
            assert selection.resolve("cpu").spec.name == "cpu"
        assert selection.resolve().spec.name == "cpu"
        with dsv4core.use("auto"):
            assert str(selection.resolve().request) == "auto, use()"
        with pytest.raises(ZeroDivisionError), dsv4core.use("zinc"):
            raise ZeroDivisionError
        assert selection.resolve().spec.name == "cpu"
    assert selection.resolve().spec.name == "zinc"


def test_use_does_not_leak_into_other_threads(acme: Site) -> None:
    seen: list[str] = []
    with dsv4core.use("zinc"):
        thread = threading.Thread(target=lambda: seen.append(selection.resolve().spec.name))
        thread.start()
        thread.join()
    assert seen == ["cpu"]


def test_naming_cpu_asks_no_other_probe(acme: Site) -> None:
    selection.resolve("cpu")
    assert {key for key in registry.get_registry()._answers if key[1] == "device"} == {("cpu", "device")}


def test_disabled_backends_are_not_probed(acme: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV4CORE_DISABLE_BACKENDS", "cuda, cpu")
    assert selection.resolve().spec.name == "zinc"
    rows = {row.name: row for row in dsv4core.backends()}
    assert rows["cpu"].code is rows["cuda"].code is Code.DISABLED
    assert rows["cpu"].hint == "take it out of DSV4CORE_DISABLE_BACKENDS"
    with pytest.raises(dsv4core.BackendUnavailableError, match="disabled by DSV4CORE_DISABLE_BACKENDS"):
        dsv4core.get_backend("cpu")


def test_a_disabled_name_that_nobody_has_is_named(
    acme: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DSV4CORE_DISABLE_BACKENDS", "zink, acme, quux")
    with caplog.at_level(logging.WARNING, "dsv4core"):
        dsv4core.backends()
        dsv4core.backends()
    assert caplog.messages == [
        "DSV4CORE_DISABLE_BACKENDS names 'zink', which no backend is called; did you mean 'zinc'?",
        "DSV4CORE_DISABLE_BACKENDS names 'quux', which no backend is called",
    ]


def test_a_created_backend_is_shared_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    selection._created.clear()
    with caplog.at_level(logging.INFO, "dsv4core"):
        first = dsv4core.get_backend("cpu")
        assert dsv4core.get_backend() is first
    chosen = [
        record.getMessage() for record in caplog.records if record.getMessage().startswith("backend cpu (")
    ]
    assert chosen == ["backend cpu (cpu, the argument)"]
    assert first.name == "cpu"


@pytest.mark.parametrize(("variable", "warns"), [("auto", True), ("cpu", False)])
def test_auto_warns_with_the_table_when_a_better_backend_is_broken(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, warns: bool
) -> None:
    site.add("dsv4core-acme", {"acme": "acme_broken_warn"}, "import does_not_exist_sdk")
    monkeypatch.setenv("DSV4CORE_BACKEND", variable)
    selection._created.clear()
    with caplog.at_level(logging.WARNING, "dsv4core"):
        assert dsv4core.get_backend().name == "cpu"
    table = "plugin failed to load: ModuleNotFoundError: No module named 'does_not_exist_sdk'"
    assert (table in caplog.text) is warns


def test_unknown_variables_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DSV4CORE_BACKND", "cpu")
    monkeypatch.setenv("DSV4CORE_CPU_NATVE", "off")
    monkeypatch.setenv("DSV4CORE_CPU_LEVEL", "avx2")
    with caplog.at_level(logging.WARNING, "dsv4core"):
        dsv4core.backends()
    assert "DSV4CORE_BACKND is set, but nothing reads it; did you mean DSV4CORE_BACKEND?" in caplog.text
    assert "DSV4CORE_CPU_NATVE is set, but nothing reads it; did you mean DSV4CORE_CPU_NATIVE?" in caplog.text
    assert "DSV4CORE_CPU_LEVEL" not in caplog.text
