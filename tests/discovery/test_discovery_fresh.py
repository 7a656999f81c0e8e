"""What a fresh process pays for discovery, and what it must not import."""

import json
from collections.abc import Callable

HEAVY = (
    "torch",
    "pydantic",
    "numpy",
    "triton",
    "cutlass",
    "aiter",
    "flash_mla",
    "intel_extension_for_pytorch",
)

DISCOVER = """
    import dsv4core
    rows = dsv4core.backends()
    import json, sys
    print(json.dumps({"names": [row.name for row in rows], "modules": sorted(sys.modules)}))
"""


def test_discovery_finds_the_built_in_backends_and_imports_nothing_heavy(fresh: Callable[..., str]) -> None:
    found = json.loads(fresh(DISCOVER))
    assert [name for name in found["names"] if name in ("cuda", "rocm", "xpu", "cpu")] == [
        "cuda",
        "rocm",
        "xpu",
        "cpu",
    ]
    assert not set(HEAVY) & set(found["modules"])


def test_import_alone_is_light(fresh: Callable[..., str]) -> None:
    loaded = json.loads(fresh("import dsv4core, json, sys; print(json.dumps(sorted(sys.modules)))"))
    assert not {*HEAVY, "pluggy", "importlib.metadata"} & set(loaded)


def test_discovery_does_little_beyond_what_nobody_can_do_without(fresh: Callable[..., str]) -> None:
    """Its time is benchmarks/discovery.py's; this is what that time is made of, the same on every machine.

    Modules that pluggy and the search for entry points import are there before, and two of the standard
    library that are small. What is left are our own modules and plugins: no mail parser, no logging.
    """
    code = """
        import contextvars, dataclasses, importlib.metadata, json, sys
        import pluggy
        importlib.metadata.entry_points(group="dsv4core.backends")
        before, read = set(sys.modules), []
        sys.addaudithook(lambda event, args: read.append(str(args[0])) if event == "open" else None)
        import dsv4core
        rows = dsv4core.backends()
        read = [name for name in read if name.endswith(("METADATA", "PKG-INFO"))]
        print(json.dumps({"modules": sorted(set(sys.modules) - before), "read": read,
                          "plugins": [row.plugin for row in rows]}))
    """
    found = json.loads(fresh(code))
    ours = {name for name in found["modules"] if name.partition(".")[0] == "dsv4core"}
    plugins = {part for plugin in found["plugins"] for part in (plugin, plugin.partition(".")[0])}
    assert not set(found["modules"]) - ours - plugins
    assert len(ours) <= 16, ours
    assert len(found["read"]) == len(set(found["read"])), "metadata is read once for each distribution"


def test_a_backend_is_listed_without_torch(fresh: Callable[..., str]) -> None:
    code = """
        import sys
        sys.modules["torch"] = None
        import dsv4core
        for row in dsv4core.backends():
            print(row.name, row.code.value)
    """
    found = dict(line.split() for line in fresh(code).splitlines())
    assert {found[name] for name in ("cuda", "rocm", "xpu", "cpu")} == {"not_installed"}
