"""What a fresh process pays for discovery, and what it must not import."""

import json
from collections.abc import Callable
from pathlib import Path

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
    import time
    start, busy = time.perf_counter(), time.process_time()
    import dsv4core
    rows = dsv4core.backends()
    took = min(time.perf_counter() - start, time.process_time() - busy)
    import json, sys
    print(json.dumps({"took": took, "names": [row.name for row in rows], "modules": sorted(sys.modules)}))
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


def test_discovery_takes_less_than_80_ms(fresh: Callable[..., str], tmp_path: Path) -> None:
    """The best of at least seven processes; a loaded machine gets more tries, not a wider limit.

    Files are warm and compiled after the first, as those of an installed package are (in a checkout with
    PYTHONDONTWRITEBYTECODE set they never would be), so that processor time is what discovery costs; waiting
    for other processes is not counted.
    """
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    times: list[float] = []
    while len(times) < 7 or (min(times) >= 0.080 and len(times) < 40):
        times.append(json.loads(fresh(DISCOVER, **compiled))["took"])
    assert min(times) < 0.080, [f"{1e3 * took:.0f} ms" for took in times]


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
