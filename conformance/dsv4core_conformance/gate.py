"""Loads the suite's pytest options only when the suite itself is asked for.

A plain pytest plugin with a ``--backend`` option would break every project that defines its own.
"""

from typing import Any


def pytest_load_initial_conftests(early_config: Any, parser: Any, args: list[str]) -> None:
    """Import the suite's plugin when an argument names ``dsv4core_conformance``."""
    if any("dsv4core_conformance" in str(arg) for arg in args):
        early_config.pluginmanager.import_plugin("dsv4core_conformance.plugin")
