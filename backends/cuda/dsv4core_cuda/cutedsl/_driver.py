"""Loading and starting machine code through the CUDA driver: what a launch costs is two calls from here."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from functools import cache
from threading import Lock

import torch

from dsv4core.errors import BackendUnavailableError
from dsv4core_cuda.cutedsl._probe import ARCHITECTURES

STATIC_SHARED = 48 * 1024
"""Shared memory that a block may have without asking for more."""
CLUSTER_DIMENSION = 4  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
EARLY_START = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
PORTABLE_CLUSTER = 8
"""Blocks of a cluster that every device takes without being asked."""
NON_PORTABLE_CLUSTER = 14  # CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute, its value as words."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint * 16))


class _Shape(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p), ("attributes", ctypes.c_void_p), ("count", ctypes.c_uint),
    )  # fmt: skip


class Loaded:
    """A kernel on one device. Arguments are packed into memory of its own and copied by the driver's call."""

    def __init__(
        self, handle: int, device: int, layout: struct.Struct, threads: int, shared: int, cluster: int,
        early: bool,
    ) -> None:  # fmt: skip
        self.handle, self.device, self.layout = ctypes.c_void_p(handle), device, layout
        self._memory = ctypes.create_string_buffer(layout.size)
        self._pointers = _pointers(layout, ctypes.addressof(self._memory))
        wanted = [_Attribute(id=CLUSTER_DIMENSION, value=(cluster, 1, 1))] * (cluster > 1)
        wanted += [_Attribute(id=EARLY_START, value=(1,))] * early
        self._attributes = (_Attribute * len(wanted))(*wanted)
        self._shape = _Shape(block=(threads, 1, 1), shared=shared, count=len(wanted))
        self._shape.attributes = ctypes.addressof(self._attributes)
        self._launch, self._lock = driver().cuLaunchKernelEx, Lock()

    def __call__(self, grid: tuple[int, int, int], *arguments: int | float) -> None:
        """Start it on the device's current stream; a grid without a block starts nothing."""
        if 0 in grid:
            return
        if torch.cuda.current_device() != self.device:
            with torch.cuda.device(self.device):
                self(grid, *arguments)
            return
        stream = torch._C._cuda_getCurrentRawStream(self.device)
        shape = self._shape
        with self._lock:
            self.layout.pack_into(self._memory, 0, *arguments)
            shape.grid, shape.stream = grid, stream
            failed = self._launch(ctypes.byref(shape), self.handle, self._pointers, None)
            if failed and bind(self.device):
                failed = self._launch(ctypes.byref(shape), self.handle, self._pointers, None)
        if failed:
            check(failed, "cuLaunchKernelEx")

    def clusters(self, blocks: int, shared: int) -> int:
        """How many clusters of blocks with so many bytes of shared memory the device runs at once."""
        cuda, found = driver(), ctypes.c_int()
        attribute = _Attribute(id=CLUSTER_DIMENSION, value=(blocks, 1, 1))
        shape = _Shape(grid=(blocks, 1, 1), block=self._shape.block, shared=shared, count=1)
        shape.attributes = ctypes.addressof(attribute)
        with torch.cuda.device(self.device):
            bind(self.device)
            done = cuda.cuKernelSetAttribute(MAX_DYNAMIC_SHARED, shared, self.handle, self.device)
            check(done, f"{shared} bytes of shared memory")
            done = cuda.cuKernelSetAttribute(NON_PORTABLE_CLUSTER, 1, self.handle, self.device)
            check(done, f"clusters of {blocks} blocks")
            done = cuda.cuOccupancyMaxActiveClusters(ctypes.byref(found), self.handle, ctypes.byref(shape))
            check(done, "cuOccupancyMaxActiveClusters")
        return found.value


def _pointers(layout: struct.Struct, base: int) -> ctypes.Array[ctypes.c_void_p]:
    """Where each argument lies: the driver reads them as C would, each at a multiple of its size."""
    letters = layout.format[1:]
    ends = [struct.calcsize("@" + letters[: i + 1]) for i in range(len(letters))]
    places = [base + end - struct.calcsize(letter) for end, letter in zip(ends, letters, strict=True)]
    return (ctypes.c_void_p * len(places))(*places)


def load(
    device: int, code: Callable[..., bytes], layout: struct.Struct, threads: int, shared: int, cluster: int,
    early: bool,
) -> Loaded:  # fmt: skip
    """Load the one kernel of a cubin; `code(architecture, anew)` gives it, kept or compiled anew.

    Raises BackendUnavailableError for a device of an architecture without kernels.
    """
    found = torch.cuda.get_device_capability(device)
    if found not in ARCHITECTURES:
        known = ", ".join(f"SM{major}{minor}" for major, minor in ARCHITECTURES)
        raise BackendUnavailableError(
            f"backend cuda: CuTeDSL kernels are for {known}, device {device} is SM{found[0]}{found[1]}: "
            "show the process devices of one kind (CUDA_VISIBLE_DEVICES), or set "
            "DSV4CORE_CUDA_KERNELS=triton and DSV4CORE_CUDA_ATTENTION=triton"
        )
    library, kernel, count = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_uint()
    cuda = driver()
    with torch.cuda.device(device):
        bind(device)

        def loaded(anew: bool) -> int:
            image = code(ARCHITECTURES[found], anew)
            return cuda.cuLibraryLoadData(ctypes.byref(library), image, None, None, 0, None, None, 0)

        if loaded(False):  # code that was kept may be damaged
            check(loaded(True), "load")
        check(cuda.cuLibraryGetKernelCount(ctypes.byref(count), library), "cuLibraryGetKernelCount")
        if count.value != 1:
            raise BackendUnavailableError(f"backend cuda: a cubin with {count.value} kernels, 1 expected")
        check(cuda.cuLibraryEnumerateKernels(ctypes.byref(kernel), 1, library), "cuLibraryEnumerateKernels")
        if shared > STATIC_SHARED:
            done = cuda.cuKernelSetAttribute(MAX_DYNAMIC_SHARED, shared, kernel, device)
            check(done, f"{shared} bytes of shared memory")
        if cluster > PORTABLE_CLUSTER:
            done = cuda.cuKernelSetAttribute(NON_PORTABLE_CLUSTER, 1, kernel, device)
            check(done, f"clusters of {cluster} blocks")
        function = ctypes.c_void_p()
        # Brings the code to the device now: a first launch inside a capture must not.
        check(cuda.cuKernelGetFunction(ctypes.byref(function), kernel), "cuKernelGetFunction")
    assert kernel.value is not None
    return Loaded(kernel.value, device, layout, threads, shared, cluster, early)


def bind(device: int) -> bool:
    """Make a device's primary context, which torch uses, the calling thread's if it has none: whether so.

    A thread has none before its first call of the CUDA runtime; to choose the device that it is on already is
    no such call in torch.
    """
    cuda, current = driver(), ctypes.c_void_p()
    check(cuda.cuCtxGetCurrent(ctypes.byref(current)), "cuCtxGetCurrent")
    if current.value is not None:
        return False
    check(cuda.cuCtxSetCurrent(_primary(device)), "cuCtxSetCurrent")
    return True


@cache
def _primary(device: int) -> ctypes.c_void_p:
    """A device's primary context, held until the process ends."""
    number, context = ctypes.c_int(), ctypes.c_void_p()
    check(driver().cuDeviceGet(ctypes.byref(number), device), "cuDeviceGet")
    check(driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), number), "cuDevicePrimaryCtxRetain")
    return context


def check(code: int, what: str) -> None:
    """Raise for a result of the driver that is not success."""
    if code:
        text = ctypes.c_char_p()
        driver().cuGetErrorString(code, ctypes.byref(text))
        reason = (text.value or b"unknown").decode()
        raise RuntimeError(f"dsv4core cuda kernels: {what}: CUDA error {code} ({reason})")


@cache
def driver() -> ctypes.CDLL:
    """The driver's library. Raises OSError where there is none."""
    library = ctypes.CDLL("libcuda.so.1")
    pointer, unsigned = ctypes.c_void_p, ctypes.c_uint
    library.cuLaunchKernelEx.argtypes = [pointer] * 4
    library.cuOccupancyMaxActiveClusters.argtypes = [pointer] * 3
    library.cuLibraryLoadData.argtypes = [
        pointer, ctypes.c_char_p, pointer, pointer, unsigned, pointer, pointer, unsigned
    ]  # fmt: skip
    return library


@cache
def processors(device: int) -> int:
    """Multiprocessors of a device."""
    return torch.cuda.get_device_properties(device).multi_processor_count
