"""Every test that the contract has for an op, run on the native kernels."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[3] / "tests" / "ops"
# Modules may use one name twice; the file's name in front keeps all of them.
for _file in sorted(_TESTS.glob("test_*.py")):
    for _name, _test in vars(import_module(_file.stem)).items():
        if _name.startswith("test_"):
            globals()[f"{_file.stem}__{_name}"] = _test
