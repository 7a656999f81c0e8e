"""Kernels of other libraries on our arguments: one module each, loaded from where its user says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import cast

from dsv4core import env
from dsv4core.bench.side import Peer
from dsv4core.errors import ConfigError

MODULES: Mapping[str, str] = {"vllm-cpu": "dsv4core.bench.peers.vllm_cpu"}
"""Peers by name; a module has `load(path) -> Peer`."""


def load(text: str) -> list[Peer]:
    """The peers of `NAME=PATH[,NAME=PATH]`. Raises ConfigError."""
    peers: list[Peer] = []
    for word in filter(None, map(str.strip, text.split(","))):
        name, equals, path = word.partition("=")
        if name not in MODULES:
            near = env.nearest(name, MODULES)
            hint = f"; did you mean {near}?" if near else "."
            raise ConfigError(f"--peers {name}: not known{hint} The peers are: {', '.join(MODULES)}")
        if not equals or not Path(path).exists():
            raise ConfigError(f"--peers {name}: {path or 'no path'} is not there; type {name}=PATH")
        loader = cast("Callable[[Path], Peer]", import_module(MODULES[name]).load)
        try:
            peers.append(loader(Path(path)))
        except (OSError, RuntimeError, ImportError) as error:
            raise ConfigError(f"--peers {name}: {path} cannot be loaded: {error}") from None
    return peers
