"""Fake installed distributions, and the sources of the plugins in them."""

import importlib
import textwrap
from pathlib import Path

from dsv4core import registry


class Site:
    """A folder of fake installed distributions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.modules: list[str] = []

    def add(self, distribution: str, points: dict[str, str], source: str = "", version: str = "1.0") -> None:
        """Install a distribution: its entry points, and ``source`` as every module they name."""
        info = self.path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = "".join(f"{name} = {value}\n" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[dsv4core.backends]\n{lines}")
        for module in points.values():
            if source:
                self.modules.append(module)
                (self.path / f"{module}.py").write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        registry.refresh()


HEADER = """
from dsv4core.hookspecs import hookimpl
from dsv4core.spec import Availability, BackendSpec, Code, Requirement
"""


def backend_source(
    name: str, priority: int = 50, extra: str = "", factory: str = "json:loads", **spec: object
) -> str:
    """Return the source of a plugin with one backend that is always available."""
    fields = "".join(f", {key}={value!r}" for key, value in spec.items())
    return (
        f"{HEADER}\nSPEC = BackendSpec({name!r}, 'cpu', {priority}, {factory!r}{fields})\n"
        f"@hookimpl\ndef dsv4core_backends():\n    return [SPEC]\n{extra}"
    )


def probe_source(answer: str) -> str:
    """Return the source of a probe hook whose answer is an expression."""
    body = f"return ({answer}) if spec.name == SPEC.name else None"
    return f"@hookimpl\ndef dsv4core_probe(spec, depth):\n    {body}\n"
