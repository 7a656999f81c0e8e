"""Loads the suite's pytest options only when the suite itself is asked for.

A plain pytest plugin with a ``--backend`` option would break every project that defines its own.
"""

from typing import Any


def pytest_load_initial_conftests(early_config: Any, parser: Any, args: list[str]) -> None:
    """Import the suite's plugin when an argument names ``dsv4core_conformance``.

    Raises pytest.UsageError (exit code 4) where something that the suite stands on is missing or broken.
    """
    if any("dsv4core_conformance" in str(arg) for arg in args):
        try:
            early_config.pluginmanager.import_plugin("dsv4core_conformance.plugin")
        except Exception as error:
            cause = error.__cause__ or error  # pytest wraps what an import raises, not in every version
            if not isinstance(cause, (ImportError, OSError)):
                raise
            import pytest

            why = "the suite cannot be loaded; `dsv4core info --probe` shows what is missing"
            raise pytest.UsageError(f"nothing was run: {why}: {type(cause).__name__}: {cause}") from error
