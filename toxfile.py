"""Environments with ``vendor_torch = true`` use the torch of the interpreter that runs tox, and no other.

torch for a device comes from its vendor, often from no package index at all; a package that asks for torch
would make pip put another build in its place.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

from tox.plugin import impl

UNAVAILABLE = 4

NO_TORCH = """{env}: nothing was installed: {python} has no torch, and this environment fetches none.
Install your vendor's torch and tox side by side, then run tox from there:
    python -m pip install torch --index-url <your vendor's index>
    python -m pip install tox
    python -m tox -e {env}"""


@impl
def tox_add_env_config(env_conf: Any, state: Any) -> None:
    """Declare the setting; every environment has it, few set it."""
    meaning = "use the torch of the interpreter that runs tox"
    env_conf.add_config("vendor_torch", of_type=bool, default=False, desc=meaning)


@impl
def tox_on_install(tox_env: Any, arguments: Any, section: str, of_type: str) -> None:
    """Before pip runs: make that torch visible, or stop; and do not ask pip for torch."""
    if not tox_env.conf["vendor_torch"]:
        return
    folders = torch_folders()
    if not folders:
        logging.error(NO_TORCH.format(env=tox_env.conf.name, python=sys.executable))
        raise SystemExit(UNAVAILABLE)
    if of_type == "package":
        versions = [found.version for found in importlib.metadata.distributions(name="torch")]
        logging.warning("torch %s of %s", versions[0] if versions else "(no version)", folders[0])
    (tox_env.env_site_package_dir() / "vendor_torch.pth").write_text("\n".join(folders) + "\n")
    for package in arguments if isinstance(arguments, list) else ():
        if hasattr(package, "deps"):
            package.deps = [need for need in package.deps if need.name != "torch"]


def torch_folders() -> list[str]:
    """Where this interpreter imports torch from, then its other site folders; empty without torch."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return []
    sites = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return list(dict.fromkeys([str(Path(found.origin).parents[1]), *sites]))
