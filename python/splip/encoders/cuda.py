"""As much of the CUDA driver as running an engine takes, through ctypes: no toolkit, no torch."""

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


class Gpu(NamedTuple):
    number: int
    name: str
    capability: tuple[int, int]


@functools.cache
def _driver() -> Any | None:
    """libcuda, initialised; None without a driver or a device."""
    with contextlib.suppress(OSError):
        library = ctypes.CDLL("libcuda.so.1")
        if library.cuInit(0) == 0:
            return library
    return None


def _call(function: str, *args: Any) -> None:
    library = _driver()
    if library is None:
        raise RuntimeError("no CUDA driver")
    code = getattr(library, function)(*args)
    if code:
        text = ctypes.c_char_p()
        library.cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"{function}: {(text.value or b'unknown error').decode()} ({code})")


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """The GPUs of this machine; empty without a driver."""
    if _driver() is None:
        return ()
    count = ctypes.c_int()
    _call("cuDeviceGetCount", ctypes.byref(count))
    found = []
    for index in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(128)
        _call("cuDeviceGet", ctypes.byref(device), index)
        _call("cuDeviceGetName", name, len(name), device)
        numbers = []
        for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
            number = ctypes.c_int()
            _call("cuDeviceGetAttribute", ctypes.byref(number), attribute, device)
            numbers.append(number.value)
        found.append(Gpu(index, name.value.decode(errors="replace"), (numbers[0], numbers[1])))
    return tuple(found)


class Device:
    """A GPU's primary context (the one that every CUDA library shares) and a stream on it."""

    def __init__(self, index: int) -> None:
        self._device, self._context, self._stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        _call("cuDeviceGet", ctypes.byref(self._device), index)
        _call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        with self.current():
            _call("cuStreamCreate", ctypes.byref(self._stream), 1)  # 1: does not wait for the default stream

    @property
    def stream(self) -> int:
        return int(self._stream.value or 0)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the context this thread's while it works."""
        _call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            _call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def allocate(self, size: int) -> int:
        pointer = ctypes.c_uint64()
        _call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        return pointer.value

    def free(self, pointer: int) -> None:
        _call("cuMemFree_v2", ctypes.c_uint64(pointer))

    def upload(self, pointer: int, array: np.ndarray) -> None:
        """Queue a copy; the array must live until :meth:`wait`."""
        source, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        _call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(pointer), source, size, self._stream)

    def download(self, array: np.ndarray, pointer: int) -> None:
        """Queue a copy; the array is filled after :meth:`wait`."""
        target, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        _call("cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(pointer), size, self._stream)

    def wait(self) -> None:
        _call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        with self.current():
            _call("cuStreamDestroy_v2", self._stream)
        _call("cuDevicePrimaryCtxRelease_v2", self._device)
