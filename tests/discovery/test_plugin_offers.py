"""What plugins add to backends of others: one that fails is named and left out, and the backend works."""

import logging

import pytest
from fake_plugins import HEADER, Site, backend_source

import dsv4core
from dsv4core import selection
from dsv4core.errors import PluginError

KERNEL = """
def kernel(name="swift", rank=90):
    from dsv4core.linear import LinearKernel

    class Swift(LinearKernel):
        def supports(self, problem):
            return "never"

        def apply(self, problem, prepared, x, x_scales):
            raise AssertionError

    made = Swift()
    if name is not None:
        made.name = name
    if rank is not None:
        made.rank = rank
    return made

"""


def hook_source(hook: str, *body: str) -> str:
    lines = "".join(f"    {line}\n" for line in body)
    return f"{KERNEL}\n@hookimpl\ndef {hook}(backend):\n{lines}"


def test_good_kernels_and_ops_are_taken(site: Site) -> None:
    linear = hook_source("dsv4core_linear_kernels", "yield kernel()")
    ops = hook_source("dsv4core_op_overrides", "return {'fused_q_kv_rmsnorm': lambda *given: given}")
    site.add("dsv4core-swift", {"swift": "swift_good"}, HEADER + linear + ops)
    selection._created.clear()
    backend = dsv4core.get_backend("cpu")
    assert "swift" in [kernel.name for kernel in backend.linears.kernels]


@pytest.mark.parametrize(
    ("hook", "body", "reason"),
    [
        ("dsv4core_linear_kernels", ["raise OSError('no licence')"], "OSError: no licence"),
        ("dsv4core_linear_kernels", ["raise SystemExit(3)"], "SystemExit: 3"),
        (
            "dsv4core_linear_kernels",
            ["return kernel()"],
            "it returned a Swift; a list of kernels is expected",
        ),
        ("dsv4core_linear_kernels", ["yield kernel()", "raise OSError('half')"], "OSError: half"),
        ("dsv4core_linear_kernels", ["return ['fast']"], "it returned str; expected objects derived from"),
        ("dsv4core_linear_kernels", ["return [kernel(None)]"], "Swift has name None and rank 90; expected"),
        ("dsv4core_linear_kernels", ["return [kernel(7)]"], "Swift has name 7 and rank 90"),
        ("dsv4core_linear_kernels", ["return [kernel(rank=None)]"], "Swift has name 'swift' and rank None"),
        ("dsv4core_linear_kernels", ["return [kernel(rank='1')]"], "Swift has name 'swift' and rank '1'"),
        ("dsv4core_op_overrides", ["raise OSError('no licence')"], "OSError: no licence"),
        ("dsv4core_op_overrides", ["return [print]"], "it returned a list; a mapping from op names is"),
        ("dsv4core_op_overrides", ["return {'linear': 3}"], "op linear is a int; a function is expected"),
        ("dsv4core_op_overrides", ["return {'lineal': print}"], "it overrides lineal; the ops are"),
    ],
)
def test_a_plugin_that_fails_is_left_out_with_a_warning(
    site: Site, caplog: pytest.LogCaptureFixture, hook: str, body: list[str], reason: str
) -> None:
    site.add("dsv4core-swift", {"swift": "swift_bad"}, HEADER + hook_source(hook, *body))
    selection._created.clear()
    with caplog.at_level(logging.WARNING, "dsv4core"):
        backend = dsv4core.get_backend("cpu")
    assert "swift" not in [kernel.name for kernel in backend.linears.kernels]
    assert f"backend cpu goes without: {hook} of plugin 'swift' (dsv4core-swift 1.0) failed:" in caplog.text
    assert reason in caplog.text
    assert "uninstall dsv4core-swift, or type DSV4CORE_PLUGINS=" in caplog.text
    assert ",swift" not in caplog.text and "=swift" not in caplog.text


def test_the_backend_of_that_plugin_does_not_run_without_it(site: Site) -> None:
    bad = hook_source("dsv4core_linear_kernels", "raise OSError('no licence')")
    factory = "swift_own:make"
    make = (
        "\ndef make(settings):\n"
        "    from types import SimpleNamespace\n"
        "    return SimpleNamespace(name='swift', device_type='cpu', ops={})\n"
    )
    site.add("dsv4core-swift", {"swift": "swift_own"}, backend_source("swift", factory=factory) + make + bad)
    with pytest.raises(PluginError, match=r"backend 'swift': .* of plugin 'swift' .* no licence"):
        dsv4core.get_backend("swift")
    selection._created.clear()
    assert dsv4core.get_backend("cpu").name == "cpu"


def test_two_plugins_of_one_op_are_named(site: Site) -> None:
    for name in ("swift", "rapid"):
        source = hook_source("dsv4core_op_overrides", "return {'linear': lambda *given, **more: given}")
        site.add(f"dsv4core-{name}", {name: f"{name}_op"}, HEADER + source)
    selection._created.clear()
    with pytest.raises(PluginError, match=r"two plugins override linear of 'cpu', '(swift|rapid)' and"):
        dsv4core.get_backend("cpu")
