"""From a kernel's source to a cubin: compiled once for a machine, then read from a folder."""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import re
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from dsv4core import env
from dsv4core.errors import BackendUnavailableError
from dsv4core.probe import installed_version
from dsv4core_cuda.cutedsl._driver import Loaded, load
from dsv4core_cuda.cutedsl._probe import PACKAGE

SETTING = "cache"
"""DSV4CORE_CUDA_CACHE: the folder of compiled kernels."""
KERNELS = Path(__file__).with_name("kernels")
COMPILER = Path(__file__).with_name("_compiler.py")
Constant = bool | int | float | str

EARLY_ACCESS = re.compile(r"\b(ld|st|red|atom|prefetch|cp\.async)[.\w:]*\.global\S*")
"""What touches global memory."""

log = logging.getLogger("dsv4core")
_compiling = threading.Lock()


@dataclass(eq=False)
class Program:
    """A kernel with its constants and the shape of its blocks; compiled when a device first needs it.

    `kernel`: the function `kernel` of `kernels/<kernel>.py`. `arguments`: a letter for each that a launch
    gives, "q" an address or i64, "i" i32, "f" f32; `constants` follow them. `shared`: bytes of dynamic shared
    memory. `cluster`: blocks of a cluster along x. `alone`: registers are given out as if a multiprocessor
    had no other block; the compiler otherwise keeps some for more of them and may rather spill. `early`: its
    blocks start while what is before them on the stream ends, and wait for that (`_ptx.wait_turn`).
    """

    kernel: str
    arguments: str
    constants: tuple[Constant, ...]
    threads: int
    shared: int = 0
    cluster: int = 1
    alone: bool = False
    early: bool = False
    _loaded: dict[int, Loaded] = field(default_factory=dict[int, Loaded])

    def on(self, device: int) -> Loaded:
        """The kernel on a device, loaded (and compiled) by the first call."""
        found = self._loaded.get(device)
        if found is None:
            layout = struct.Struct("@" + self.arguments)
            code = partial(cubin, self)
            found = load(device, code, layout, self.threads, self.shared, self.cluster, self.early)
            self._loaded[device] = found
        return found


def cubin(program: Program, arch: str, anew: bool = False) -> bytes:
    """The machine code of a program for an architecture ("sm_90a"), from the folder or the compiler.

    `anew`: compiled whatever the folder has, which a driver refused. A folder that cannot be read or written
    costs compiling again in the next process, nothing else.
    """
    file = folder() / f"{program.kernel}-{arch}-{key(program, arch)}.cubin"
    if not anew and (kept := _read(file)):
        return kept
    code = compile_for(program, arch)
    whole = file.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        whole.write_bytes(code)
        os.replace(whole, file)  # other processes see all of it or nothing
    except OSError as error:
        log.warning("cuda: machine code of %s is not kept: %s", program.kernel, error)
        with suppress(OSError):
            whole.unlink(missing_ok=True)
    return code


def _read(file: Path) -> bytes:
    """What a file holds; nothing where it is not there or not for this user."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


def folder() -> Path:
    """Where compiled kernels are kept."""
    named = env.settings("cuda").get(SETTING)
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dsv4core" / "cutedsl"


def key(program: Program, arch: str) -> str:
    """A name for the code that a program compiles to: its source, its constants, the compiler, the device."""
    shape = (program.threads, program.shared, program.cluster, program.alone)
    made_of = (program.arguments, program.constants, shape)
    text = repr((_sources(program.kernel), installed_version(PACKAGE), arch, made_of))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@cache
def _sources(kernel: str) -> str:
    """A hash of a kernel's file, of what compiles it, and of the files that all kernels share (`_*.py`)."""
    files = [KERNELS / f"{kernel}.py", COMPILER, *sorted(KERNELS.glob("_[a-z]*.py"))]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def compile_for(program: Program, arch: str) -> bytes:
    """Compile for an architecture, with or without a device.

    Of an `early` program nothing may touch global memory before it waits, which loads that compilers may move
    could do: its PTX is read.

    Raises BackendUnavailableError without CuTeDSL.
    """
    try:
        from dsv4core_cuda.cutedsl import _compiler
    except ImportError as error:
        reason = f"{program.kernel} has to be compiled, which needs {PACKAGE}: {error}"
        raise BackendUnavailableError(f"backend cuda: {reason}; python -m pip install {PACKAGE}") from error
    module = importlib.import_module(f"dsv4core_cuda.cutedsl.kernels.{program.kernel}")
    with _compiling:
        code, ptx = _compiler.machine_code(module.kernel, program, arch)
    if program.early and (found := EARLY_ACCESS.search(ptx.partition("griddepcontrol.wait")[0])):
        raise RuntimeError(f"dsv4core cuda kernels: {program.kernel} does not wait before {found[0]}")
    return code
