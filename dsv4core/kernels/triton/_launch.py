"""How a kernel is started: no contraction, on its tensors' device, counted."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor

from dsv4core.errors import OpArgumentError
from dsv4core.kernels.triton._flags import INTERPRETED
from dsv4core.ops._contract import check_mode

LAUNCHES: Counter[str] = Counter()
"""Launches by kernel name since the process began; conformance reads it around a call."""

interpreted = bool(INTERPRETED.value)
if interpreted:
    from dsv4core.kernels.triton import _lockstep as lockstep

AMD_ONLY = ("waves_per_eu", "matrix_instr_nonkdim")
"""Launch arguments that no other compiler takes: wavefronts to leave room for, rows of a matrix product."""

Recorder = Callable[[Any, tuple[Any, ...], dict[str, Any]], None]
_recorder: Recorder | None = None
assumed: str | None = None
"""A family of `_devices` whose launch arguments are taken, whatever the device is."""

Forms = Callable[[], Iterable[dict[str, Any]]]
ahead = True
"""Whether a kernel's first launch compiles its other forms; not while launch arguments are being tuned."""
_ready: set[Any] = set()  # compiled kernels, whose other forms are compiled too


@contextmanager
def recorded(recorder: Recorder, device: str) -> Iterator[None]:
    """Hand launches to `recorder` instead of starting them, as on a device of that class (`_tuning`).

    Ahead-of-time compilation learns this way what would be launched, on a machine without the device.
    """
    global _recorder
    _recorder = recorder
    try:
        with launched_as(device):
            yield
    finally:
        _recorder = None


@contextmanager
def launched_as(device: str) -> Iterator[None]:
    """Cut kernels as for a device of that class, wherever they run."""
    global assumed
    before, assumed = assumed, device
    try:
        yield
    finally:
        assumed = before


def launch(
    kernel: Any,
    programs: int | tuple[int, ...],
    anchor: Tensor,
    *arguments: Any,
    forms: Forms = tuple,
    start: bool = True,
    **meta: Any,
) -> bool:
    """Start `kernel` over `programs` on the device of `anchor`; nothing to do starts nothing.

    `enable_fp_fusion=False` is CA1 rule 1: no multiply and add may become one rounding. A kernel with EARLY
    learns from it that it starts beside the one before (`_early`). `forms` gives all that `meta` can be with
    other tokens, contexts and tables: the first launch compiles them, so that no later batch waits for a
    compiler. True says that it was the first, for a caller whose other forms are other kernels: without
    `start` those are compiled in the same way.
    """
    grid = (programs,) if isinstance(programs, int) else programs
    if 0 in grid:
        return False
    meta = _complete(kernel, meta)
    if _recorder is not None:
        _recorder(kernel, arguments, meta)
        return False
    if interpreted and anchor.device.type == "cpu":
        LAUNCHES[kernel.__name__] += 1
        lockstep.run(kernel, grid, arguments, meta)
        return False
    with on(anchor.device):
        if start and not _start(kernel, grid, arguments, meta):
            return False
        for form in (meta, *forms()):
            _compile(kernel, arguments, _complete(kernel, form))
    return start


def _complete(kernel: Any, meta: dict[str, Any]) -> dict[str, Any]:
    if "EARLY" in kernel.arg_names:
        meta.setdefault("EARLY", bool(meta.get("launch_pdl", 0)))
    if assumed is None or _recorder is not None:
        return meta
    return {name: value for name, value in meta.items() if name not in AMD_ONLY}


def _start(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], meta: dict[str, Any]) -> bool:
    """Whether it was the first launch of what Triton compiled for it."""
    LAUNCHES[kernel.__name__] += 1
    made = kernel[grid](*arguments, enable_fp_fusion=False, **meta)
    if made in _ready or not ahead or interpreted or torch.compiler.is_compiling():
        return False
    _ready.add(made)
    return True


def _compile(kernel: Any, arguments: tuple[Any, ...], meta: dict[str, Any]) -> None:
    """Compile and load, so that neither happens while a graph is captured."""
    with suppress(Exception):  # whatever a device refuses it refuses when that is launched
        made = kernel.warmup(*arguments, grid=(1,), enable_fp_fusion=False, **meta)
        getattr(made, "run", None)  # Triton loads what it compiled when it is asked for this
        _ready.add(made)


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensors'."""
    if device.type == "cpu":
        return nullcontext()
    module = torch.get_device_module(device)
    return nullcontext() if module.current_device() == device.index else module.device(device)


def power(n: int, least: int = 1) -> int:
    """The next power of two that holds n."""
    return max(least, 1 << max(n - 1, 0).bit_length())


def pieces(n: int, size: int) -> int:
    """How many blocks of `size` cover n."""
    return -(-n // size)


def alignment(pages: Tensor) -> int:
    """The largest power of two up to 16 that divides every page's address: parents may start anywhere."""
    places = pages.data_ptr() | (pages.stride(0) * pages.element_size() if pages.shape[0] > 1 else 0) | 16
    return places & -places


def value_checks(tensor: Tensor) -> bool:
    """Whether numbers inside tensors are checked: reading them stops a device, so only where asked."""
    mode = check_mode()
    return mode == "1" or (mode != "0" and tensor.device.type == "cpu")


def supported(op: str, argument: str, layout: str, known: tuple[str, ...]) -> str:
    """The layout, if a kernel knows it; f32 rows are for comparisons on the CPU only."""
    if layout not in known:
        expected = f"one of {', '.join(known)}; the cpu backend has {layout}"
        raise OpArgumentError(op, argument, expected, repr(layout))
    return layout
