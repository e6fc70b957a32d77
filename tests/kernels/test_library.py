"""The library as ONNX Runtime and Python meet it: what it refuses, and what it says."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from kernel_nodes import Kernels, node_model, open_session, python

GET_API = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
VERSION_STRING = ctypes.CFUNCTYPE(ctypes.c_void_p)
CREATE_STATUS = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)


class ApiBase(ctypes.Structure):
    _fields_ = (("get_api", GET_API), ("version_string", VERSION_STRING))


def test_an_older_onnxruntime_is_refused(library: Path) -> None:
    messages: list[bytes] = []

    @CREATE_STATUS
    def create_status(code: int, message: bytes) -> int:
        messages.append(message)
        return 0xBAD  # stands for a status: not null

    table = (ctypes.c_void_p * 102)(ctypes.cast(create_status, ctypes.c_void_p).value)
    # Version 1 is all that this ONNX Runtime has.
    get_api = GET_API(lambda version: ctypes.addressof(table) if version == 1 else None)
    text = ctypes.create_string_buffer(b"1.16.3")
    base = ApiBase(get_api, VERSION_STRING(lambda: ctypes.addressof(text)))
    register = ctypes.CDLL(str(library)).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, ctypes.byref(base)) == 0xBAD
    assert b"needs version 17" in messages[0]
    assert b"found onnxruntime 1.16.3" in messages[0]


def test_sessions_come_and_go(kernels: Kernels) -> None:
    inputs = {"y": np.ones((4, 32), dtype=np.float32), "offsets": np.array([0, 4], dtype=np.int32)}
    model = node_model("PoolMean", inputs, {"mean": "f32"}, {})
    held = [open_session(kernels.library, model, threads) for threads in (1, 2, 2, 3)]
    del held[1]
    for session in held:
        np.testing.assert_array_equal(session.run(None, inputs)[0], np.ones((1, 32)))


def test_threads_need_not_be_named(library: Path) -> None:
    inputs = {"y": np.ones((4, 32), dtype=np.float32), "offsets": np.array([0, 4], dtype=np.int32)}
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library))
    session = ort.InferenceSession(node_model("PoolMean", inputs, {"mean": "f32"}, {}), options)
    np.testing.assert_array_equal(session.run(None, inputs)[0], np.ones((1, 32)))


REGISTER = """
import koe5_onnx_kernels, onnxruntime
try:
    onnxruntime.SessionOptions().register_custom_ops_library(str(koe5_onnx_kernels.library()))
except Exception as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("level", "reason"),
    [
        ("none", "KOE5_ONNX_KERNELS_LEVEL is none"),
        ("avx9", "is 'avx9': expected amx, avx512_bf16, avx512_vnni, avx_vnni, avx2 or none"),
    ],
)
def test_a_reason_where_it_cannot_be_used(library: Path, package: Path, level: str, reason: str) -> None:
    say = "import koe5_onnx_kernels as k; print(k.unavailable(), k.level())"
    assert reason in (said := python(say, package, KOE5_ONNX_KERNELS_LEVEL=level))
    assert said.endswith(" none")
    assert reason in python(REGISTER, package, KOE5_ONNX_KERNELS_LEVEL=level)


def test_available(library: Path, package: Path, levels: tuple[str, ...]) -> None:
    say = "import koe5_onnx_kernels as k; print(k.unavailable(), k.level())"
    assert python(say, package) == f"None {levels[-1]}"
    assert python(say, package, KOE5_ONNX_KERNELS_LEVEL=levels[0]) == f"None {levels[0]}"
    # Above what the CPU has, or at it: nothing is raised.
    assert python(say, package, KOE5_ONNX_KERNELS_LEVEL="amx") == f"None {levels[-1]}"
    assert python(REGISTER, package) == ""


def test_a_damaged_installation_says_so(package: Path) -> None:
    say = "import koe5_onnx_kernels as k; print(k.unavailable())"
    library = package / "koe5_onnx_kernels" / "libkoe5_kernels.so"
    library.write_bytes(b"not a library")
    assert python(say, package).startswith("the library does not load: ")
    library.unlink()
    assert "is missing: reinstall koe5-onnx-kernels" in python(say, package)


class Mallinfo2(ctypes.Structure):
    _fields_ = (
        *((f"before_{number}", ctypes.c_size_t) for number in range(7)),
        ("uordblks", ctypes.c_size_t),
        *((f"after_{number}", ctypes.c_size_t) for number in range(2)),
    )


def bytes_in_use() -> int:
    """What the process has allocated and not freed, by glibc's own count."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2") or os.environ.get("KOE5_ONNX_TESTS_ARENA") == "0":
        pytest.skip("allocations are counted by glibc 2.33 or later, without sanitizers")
    libc.mallinfo2.restype = Mallinfo2
    return int(libc.mallinfo2().uordblks)


def test_a_run_leaves_no_memory_behind(library: Path) -> None:
    """On a graph with all operators: what each run left would fill a server's memory in days."""
    artifact = Path(__file__).parents[1] / "data" / "tiny-int8"
    session = open_session(library, str(artifact / "model.fused.onnx"), threads=1)
    feeds = {
        "input_ids": np.array([0, 5, 6, 2], np.int64),
        "places": np.arange(4, dtype=np.int64),
        "offsets": np.array([0, 4], np.int32),
    }
    for _ in range(100):
        session.run(None, feeds)
    before = bytes_in_use()
    for _ in range(4000):
        session.run(None, feeds)
    assert bytes_in_use() - before < 4000 * 8
