"""Memory that a driver locks: blocks of it, what is locked and given back, and a driver that refuses."""

from __future__ import annotations

import gc
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from koe5_onnx import cuda
from koe5_onnx.page_locked import Block, PageLocked

THREADS_OWN, PRIMARY = 77, 5


class Driver:
    """libcuda's functions for one GPU, and what they were asked."""

    def __init__(self, **codes):
        self.codes, self.current, self.locked, self.asked = codes, THREADS_OWN, {}, []

    def __getattr__(self, name):
        return lambda *_arguments: self.codes.get(name, 0)

    def cuDevicePrimaryCtxRetain(self, context, device):  # noqa: N802 - the names are NVIDIA's
        context._obj.value = PRIMARY
        return self.codes.get("cuDevicePrimaryCtxRetain", 0)

    def cuCtxGetCurrent(self, context):  # noqa: N802
        context._obj.value = self.current
        return 0

    def cuCtxSetCurrent(self, context):  # noqa: N802
        self.current = context.value
        return self.codes.get("cuCtxSetCurrent", 0)

    def cuMemHostRegister_v2(self, address, size, flags):  # noqa: N802
        assert self.current == PRIMARY
        assert (address.value % 4096, size.value % 4096, flags.value) == (0, 0, 1)
        self.locked[address.value] = size.value
        return self.codes.get("cuMemHostRegister_v2", 0)

    def cuMemHostUnregister(self, address):  # noqa: N802
        assert self.current == PRIMARY
        del self.locked[address.value]
        return 0


def test_arrays_of_a_block():
    block = Block(4096)
    one = block.copy_of(np.arange(5, dtype=np.int32))
    two = block.empty((2, 3), np.float32)
    two[...] = 7
    assert one.tolist() == [0, 1, 2, 3, 4]
    assert (one.dtype, two.shape) == (np.int32, (2, 3))
    starts = [array.__array_interface__["data"][0] - block.address for array in (one, two)]
    assert starts == [0, 256]
    block.clear()
    assert block.empty((1,), np.int64).__array_interface__["data"][0] == block.address


def test_a_block_is_locked_used_again_and_given_back():
    driver = Driver()
    memory = PageLocked(0, driver)
    with memory.block(100) as block:
        assert driver.locked == {block.address: 1 << 20}
        first = block.address
    with memory.block(1 << 20) as block:
        assert block.address == first
    del block
    with memory.block((1 << 20) + 1) as block:
        assert block.size_bytes == 1 << 21
    gc.collect()
    assert driver.locked == {block.address: 1 << 21}
    assert memory.problem is None
    assert driver.current == THREADS_OWN
    del block, memory
    gc.collect()
    assert driver.locked == {}


def test_batches_at_the_same_time_have_blocks_of_their_own():
    memory = PageLocked(0, Driver())
    with memory.block(10) as one, memory.block(10) as two:
        assert one.address != two.address

    def use(number):
        with memory.block(8000) as block:
            mine = block.copy_of(np.full(1000, number))
            return bool((mine == number).all())

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(use, range(200)))


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        ({"cuInit": 100}, "gives no context: error 100"),
        ({"cuDevicePrimaryCtxRetain": 2}, "gives no context: error 2"),
        ({"cuMemHostRegister_v2": 1}, "locks no pages: error 1"),
        ({"cuCtxSetCurrent": 201}, "locks no pages: error 201"),
    ],
)
def test_a_driver_that_refuses_leaves_ordinary_memory(codes, words):
    memory = PageLocked(0, Driver(**codes))
    with memory.block(100) as block:
        assert block.copy_of(np.arange(3)).tolist() == [0, 1, 2]
    assert words in memory.problem
    del block, memory
    gc.collect()  # nothing is unlocked that was not locked: the played driver would fail


@pytest.mark.skipif(isinstance(cuda.find_driver(), cuda.Driver), reason="this machine has a GPU")
def test_without_a_driver():
    memory = PageLocked(0)
    assert "libcuda.so.1" in memory.problem
    with memory.block(100) as block:
        assert block.size_bytes == 1 << 20


def test_a_forked_child_unlocks_nothing(monkeypatch):
    driver = Driver()
    memory = PageLocked(0, driver)
    with memory.block(100):
        pass
    monkeypatch.setattr(os, "getpid", lambda: -1)
    del memory
    gc.collect()
    assert len(driver.locked) == 1
