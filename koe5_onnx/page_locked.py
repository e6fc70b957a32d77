"""Host memory that stays where it is, so that a GPU fetches and stores by itself: page-locked by the driver.

From ordinary memory a copy goes through a buffer of the driver, on the processor. Blocks are made as batches
need them and used again; where the driver refuses, they are ordinary memory, and copies take a little longer.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from koe5_onnx.cuda import load_driver

Array = npt.NDArray[Any]

_PORTABLE = 1
"""CU_MEMHOSTREGISTER_PORTABLE: page-locked for every context of the process.
Source: https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__MEM.html"""
_ALIGNMENT = 256
_LEAST_BYTES = 1 << 20


class Block:
    """One piece of memory, cut into arrays anew for each batch."""

    def __init__(self, size_bytes: int) -> None:
        self._memory = mmap.mmap(-1, size_bytes)
        self._bytes = np.frombuffer(self._memory, dtype=np.uint8)
        self._used = 0

    @property
    def address(self) -> int:
        """Where it begins: at a page."""
        return int(self._bytes.ctypes.data)

    @property
    def size_bytes(self) -> int:
        """Its size."""
        return len(self._bytes)

    def clear(self) -> None:
        """Take it for the next batch; arrays given out before are overwritten."""
        self._used = 0

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """An array of the block, not yet written."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        start, self._used = self._used, self._used + padded_bytes(size)
        return self._bytes[start : start + size].view(dtype).reshape(shape)

    def copy_of(self, array: Array) -> Array:
        """The same array in the block."""
        copy = self.empty(array.shape, array.dtype)
        copy[...] = array
        return copy


def padded_bytes(size_bytes: int) -> int:
    """What an array of so many bytes takes of a block."""
    return -(-size_bytes // _ALIGNMENT) * _ALIGNMENT


class PageLocked:
    """Blocks for the batches of one GPU: each batch has one to itself.

    Args:
        gpu: Its number.
        driver: The loaded libcuda; None for the one of this system.
    """

    def __init__(self, gpu: int, driver: Any = None) -> None:
        self._driver = _Driver(gpu, driver)
        self._free: list[Block] = []
        self._lock = threading.Lock()

    @property
    def problem(self) -> str | None:
        """Why blocks are ordinary memory; None where they are page-locked."""
        return self._driver.problem

    @contextmanager
    def block(self, size_bytes: int) -> Iterator[Block]:
        """A block of so many bytes at least, for one batch."""
        with self._lock:
            block = self._free.pop() if self._free else None
        if block is None or block.size_bytes < size_bytes:
            block = self._make(size_bytes)
        try:
            yield block
        finally:
            block.clear()
            with self._lock:
                self._free.append(block)

    def _make(self, size_bytes: int) -> Block:
        # Twice as much each time, as locking takes long and batches grow one by one.
        block = Block(1 << (max(_LEAST_BYTES, size_bytes) - 1).bit_length())
        if self._driver.lock(block.address, block.size_bytes):
            weakref.finalize(block, self._driver.unlock, block.address)
        return block


class _Driver:
    """The few functions of libcuda that lock pages, called in the context that ONNX Runtime uses too."""

    def __init__(self, gpu: int, library: Any) -> None:
        self.problem: str | None = None
        self._process = os.getpid()
        self._context = ctypes.c_void_p()
        device = ctypes.c_int()
        try:
            self._library = library or load_driver()
            code = (
                self._library.cuInit(0)
                or self._library.cuDeviceGet(ctypes.byref(device), gpu)
                or self._library.cuDevicePrimaryCtxRetain(ctypes.byref(self._context), device)
            )
        except OSError as error:
            self.problem = str(error)
        else:
            self.problem = f"the driver gives no context: error {code}" if code else None

    def lock(self, address: int, size_bytes: int) -> bool:
        """Page-lock memory; False where that failed."""
        if self.problem is not None:
            return False
        arguments = ctypes.c_void_p(address), ctypes.c_size_t(size_bytes), ctypes.c_uint(_PORTABLE)
        code = self._in_context(lambda: self._library.cuMemHostRegister_v2(*arguments))
        if code:
            self.problem = f"the driver locks no pages: error {code}"
        return not code

    def unlock(self, address: int) -> None:
        """Give locked memory back; a forked child, whose driver is not alive, leaves it to its parent."""
        if self._process == os.getpid():
            self._in_context(lambda: self._library.cuMemHostUnregister(ctypes.c_void_p(address)))

    def _in_context(self, call: Any) -> int:
        """The code of `call`, made in the GPU's primary context; the thread's own context is put back."""
        before = ctypes.c_void_p()
        code = self._library.cuCtxGetCurrent(ctypes.byref(before)) or self._library.cuCtxSetCurrent(
            self._context
        )
        if code:
            return int(code)
        try:
            return int(call())
        finally:
            self._library.cuCtxSetCurrent(before)
