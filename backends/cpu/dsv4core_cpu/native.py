"""Building and loading the C++ kernels: once per source, torch, compiler and processor, into a cache folder.

The library is plain C functions that take addresses and strides, so nothing of torch's headers is compiled.
It leaves OpenMP undefined and finds torch's own copy when it is loaded: one team of threads, not two.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from dsv4core.errors import ConfigError

log = logging.getLogger("dsv4core")

SOURCES = Path(__file__).with_name("native")
MODES = ("auto", "off", "require")
FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
FLAGS += ("-fvisibility=hidden", "-Wno-maybe-uninitialized", "-Wno-uninitialized")
AVX2 = ("avx2", "fma", "f16c", "bmi2")
AVX512 = (*AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq")
AVX512_BF16 = (*AVX512, "avx512_bf16", "avx512_vnni", "avx512vbmi")
# Best first. Names are those of the kernel's list of features; the compiler writes them without underscores,
# but for AMX, which has a hyphen.
LEVELS: dict[str, tuple[str, ...]] = {
    "amx": (*AVX512_BF16, "amx_tile", "amx_bf16"),
    "avx512_bf16": AVX512_BF16,
    "avx512": AVX512,
    "avx2": AVX2,
    "portable": (),
}
HINT = "install a C++17 compiler and ninja, or set DSV4CORE_CPU_NATIVE=off to stay with torch"


class BuildError(RuntimeError):
    """The kernels cannot be built or loaded here; the message says why."""


@dataclass(frozen=True)
class Native:
    """The loaded library and the level of instructions it was compiled for."""

    library: ctypes.CDLL
    level: str


def choose(settings: Mapping[str, str]) -> Native | None:
    """The kernels the settings ask for, or None for the torch bodies.

    `native`: "off", "require" (an error when they cannot be had) or "auto" (a log line). `level`: a lower
    level than the processor's best, for comparisons. `cache`: the folder to build in. `cxxflags`: more flags
    for compiler and linker, such as `-fsanitize=address`.
    """
    mode = settings.get("native", "") or "auto"
    if mode not in MODES:
        raise ConfigError(f"DSV4CORE_CPU_NATIVE={mode}: expected {' or '.join(MODES)}")
    if mode == "off":
        return None
    level = settings.get("level", "") or best_level()
    if level not in LEVELS:
        raise ConfigError(f"DSV4CORE_CPU_LEVEL={level}: expected {' or '.join(LEVELS)}")
    try:
        return load(level, settings.get("cache", ""), settings.get("cxxflags", ""))
    except (BuildError, OSError) as error:
        if mode == "require":
            raise ConfigError(f"DSV4CORE_CPU_NATIVE=require, but {error}; {HINT}") from error
        log.warning("cpu: the torch bodies run, several times slower: %s; %s", error, HINT)
        return None


def best_level() -> str:
    """The first level whose every feature this processor has."""
    have = features()
    return next(name for name, needed in LEVELS.items() if have.issuperset(needed))


@cache
def features() -> frozenset[str]:
    """What the kernel says the processor can do; nothing where there is no such list."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


@cache
def load(level: str, folder: str = "", more: str = "") -> Native:
    """The library of a level, built if the cache has none. Raises BuildError."""
    place = _folder(folder) / f"{level}-{_fingerprint(level, more)}"
    compiler = _compiler()
    # Without a compiler a library that another one has made is as good.
    found = sorted(place.glob("*.so")) if compiler is None else [place / f"{_identity(compiler)}.so"]
    if not found:
        raise BuildError("there is no C++ compiler (CXX, c++, g++ or clang++)")
    if not found[0].exists():
        place.mkdir(parents=True, exist_ok=True)
        with (place / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the second of two processes waits and finds the library
            if not found[0].exists():
                _build(level, more, place, found[0])
    return Native(ctypes.CDLL(str(found[0])), level)


def _folder(chosen: str) -> Path:
    """The cache folder, or a temporary one of this user where that cannot be written."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = Path(chosen) if chosen else Path(base) / "dsv4core" / "native"
    try:
        path.mkdir(parents=True, exist_ok=True)
        if os.access(path, os.W_OK):
            return path
    except OSError:
        pass
    path = Path(tempfile.gettempdir()) / f"dsv4core-native-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise BuildError(f"{path} belongs to somebody else")
    return path


def _files() -> list[Path]:
    return sorted(path for path in SOURCES.iterdir() if path.suffix in (".cpp", ".h"))


def _flags(level: str, more: str = "") -> list[str]:
    machine = [f"-m{name.replace('amx_', 'amx-').replace('_', '')}" for name in LEVELS[level]]
    return [
        *FLAGS,
        *machine,
        *(["-mprefer-vector-width=512"] if "avx512f" in LEVELS[level] else []),
        *more.split(),
    ]


def _fingerprint(level: str, more: str) -> str:
    digest = hashlib.sha256(repr((torch.__version__, _flags(level, more))).encode())
    for path in _files():
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _compiler() -> Path | None:
    chosen = os.environ.get("CXX", "").split()  # may be a wrapper with the compiler behind it
    names = chosen[:1] or ["c++", "g++", "clang++"]
    found = next((path for path in map(shutil.which, names) if path), None)
    return Path(found).resolve() if found else None


def _identity(compiler: Path) -> str:
    stat = compiler.stat()
    return hashlib.sha256(f"{compiler}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:12]


def _build(level: str, more: str, place: Path, target: Path) -> None:
    """Compile in a folder of its own and move the result into place in one step."""
    try:
        from torch.utils import cpp_extension  # imports setuptools: only when there is something to build
    except ImportError as error:
        raise BuildError(f"torch's extension builder cannot be imported ({error})") from error
    log.info("cpu: compiling the %s kernels into %s", level, place)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        try:
            made = cpp_extension.load(  # pyright: ignore[reportUnknownMemberType]
                f"dsv4core_cpu_{level}",
                [str(path) for path in _files() if path.suffix == ".cpp"],
                extra_cflags=_flags(level, more),
                extra_ldflags=more.split(),
                build_directory=folder,
                is_python_module=False,
                with_cuda=False,
            )
        except Exception as error:  # a missing tool, a compiler's message, a full disk: all mean no library
            raise BuildError(f"the {level} kernels do not compile: {_reason(error)}") from error
        os.replace(str(made), target)


def _reason(error: Exception) -> str:
    """The line of a compiler's output that says what is wrong."""
    lines = str(error).splitlines() or [type(error).__name__]
    return next((line.strip() for line in lines if "error:" in line), lines[0])
