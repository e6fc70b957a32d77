"""The library's interface to ONNX Runtime and Python."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from kernel_nodes import LEVELS, Kernels, node_model, open_session, python

from koe5_onnx.artifact import PACKED_CPU_GRAPH
from koe5_onnx.engine.graphs import FUSED_OPERATORS

GET_API = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
VERSION_STRING = ctypes.CFUNCTYPE(ctypes.c_void_p)
CREATE_STATUS = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)


class ApiBase(ctypes.Structure):
    _fields_ = (("get_api", GET_API), ("version_string", VERSION_STRING))


def test_an_older_onnxruntime_is_rejected(library: Path) -> None:
    messages: list[bytes] = []

    @CREATE_STATUS
    def create_status(code: int, message: bytes) -> int:
        messages.append(message)
        return 0xBAD  # stands for a pointer to a status

    table = (ctypes.c_void_p * 102)(ctypes.cast(create_status, ctypes.c_void_p).value)
    # This fake ONNX Runtime has only version 1.
    get_api = GET_API(lambda version: ctypes.addressof(table) if version == 1 else None)
    text = ctypes.create_string_buffer(b"1.16.3")
    base = ApiBase(get_api, VERSION_STRING(lambda: ctypes.addressof(text)))
    register = ctypes.CDLL(str(library)).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, ctypes.byref(base)) == 0xBAD
    assert b"version 17" in messages[0]
    assert b"onnxruntime 1.16.3" in messages[0]


LAST_SLOTS = {0: -1, 1: 101, 4: 126, 5: 149, 13: 224, 14: 238, 15: 254, 16: 265, 17: 275}
"""Last slot of OrtApi by API version.

Source: the static_asserts in onnxruntime_c_api.cc of https://github.com/microsoft/onnxruntime"""


def test_each_slot_belongs_to_its_listed_version() -> None:
    header = (Path(__file__).parents[2] / "kernels/src/ort_abi.h").read_text(encoding="utf-8")
    groups = re.split(r"^// version (\d+)$", header, flags=re.MULTILINE)[1:]
    found = {
        int(version): [int(slot) for slot in re.findall(r"Slot<(\d+),", text)]
        for version, text in zip(groups[::2], groups[1::2], strict=True)
    }
    assert list(found) == [1, 5, 14, 15, 17]
    for version, slots in found.items():
        before = max(last for earlier, last in LAST_SLOTS.items() if earlier < version)
        assert slots
        assert all(before < slot <= LAST_SLOTS[version] for slot in slots)


def test_the_installed_library_has_these_slots() -> None:
    """The last function of version 15 returns build information, which shows that the slots are as listed."""
    files = (Path(ort.__file__).parent / "capi").glob("*.so*")
    libraries = [library for library in map(ctypes.CDLL, files) if hasattr(library, "OrtGetApiBase")]
    if not libraries:
        pytest.skip("this onnxruntime does not export OrtGetApiBase")
    get_api_base = libraries[0].OrtGetApiBase
    get_api_base.restype = ctypes.POINTER(ApiBase)
    base = get_api_base().contents
    table = ctypes.cast(base.get_api(17), ctypes.POINTER(ctypes.c_void_p))
    assert all(table[slot] for slot in range(LAST_SLOTS[17] + 1))
    build_info = ctypes.CFUNCTYPE(ctypes.c_char_p)(table[LAST_SLOTS[15]])
    assert build_info().startswith(b"ORT Build Info")


def test_several_sessions_at_once(kernels: Kernels) -> None:
    inputs = {"y": np.ones((4, 32), dtype=np.float32), "offsets": np.array([0, 4], dtype=np.int32)}
    model = node_model("PoolMean", inputs, {"mean": "f32"}, {})
    held = [open_session(kernels.library, model, threads) for threads in (1, 2, 2, 3)]
    del held[1]
    for session in held:
        np.testing.assert_array_equal(session.run(None, inputs)[0], np.ones((1, 32)))


def test_the_number_of_threads_is_optional(library: Path) -> None:
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
        ("avx9", f"is 'avx9', expected {', '.join(reversed(LEVELS))} or none"),
    ],
)
def test_an_unusable_level_has_a_reason(library: Path, package: Path, level: str, reason: str) -> None:
    say = "import koe5_onnx_kernels as k; print(k.unavailable(), k.level())"
    assert reason in (said := python(say, package, KOE5_ONNX_KERNELS_LEVEL=level))
    assert said.endswith(" none")
    assert reason in python(REGISTER, package, KOE5_ONNX_KERNELS_LEVEL=level)


SLOWER = {"avx512_bf16": "avx512_vnni", "neon_i8mm": "neon_dotprod"}
"""Levels that some CPUs do not use by default (Intel's and Apple's), and the default of those CPUs."""


def test_available(library: Path, package: Path, levels: tuple[str, ...]) -> None:
    say = "import koe5_onnx_kernels as k; print(k.unavailable(), k.level())"
    highest = levels[-1]
    assert python(say, package) in (f"None {highest}", f"None {SLOWER.get(highest, highest)}")
    assert python(say, package, KOE5_ONNX_KERNELS_LEVEL=levels[0]) == f"None {levels[0]}"
    # If the CPU lacks the named level, the library selects the best one below it.
    assert python(say, package, KOE5_ONNX_KERNELS_LEVEL=LEVELS[-1]) == f"None {highest}"
    assert python(REGISTER, package) == ""


def test_the_version_is_the_one_that_the_runtime_requires(package: Path) -> None:
    assert python("import koe5_onnx_kernels as k; print(k.OPSET_VERSION)", package) == str(FUSED_OPERATORS)


def test_a_damaged_installation_says_so(package: Path) -> None:
    say = "import koe5_onnx_kernels as k; print(k.unavailable())"
    library = package / "koe5_onnx_kernels" / "libkoe5_kernels.so"
    library.write_bytes(b"not a library")
    assert python(say, package).startswith("the library does not load: ")
    library.unlink()
    assert "is missing. Reinstall koe5-onnx-kernels" in python(say, package)


class Mallinfo2(ctypes.Structure):
    _fields_ = (
        *((f"before_{number}", ctypes.c_size_t) for number in range(7)),
        ("uordblks", ctypes.c_size_t),
        *((f"after_{number}", ctypes.c_size_t) for number in range(2)),
    )


def bytes_in_use() -> int:
    """Return the number of bytes allocated and not freed, according to glibc."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2") or os.environ.get("KOE5_ONNX_TESTS_ARENA") == "0":
        pytest.skip("counting allocations requires glibc 2.33 or later without sanitizers")
    libc.mallinfo2.restype = Mallinfo2
    return int(libc.mallinfo2().uordblks)


def test_runs_leak_no_memory(library: Path) -> None:
    """The graph contains all operators."""
    artifact = Path(__file__).parents[1] / "data" / "tiny-int8"
    session = open_session(library, str(artifact / PACKED_CPU_GRAPH), threads=1)
    feeds = {
        "input_ids": np.array([0, 5, 6, 2], np.int64),
        "position_ids": np.arange(4, dtype=np.int64),
        "offsets": np.array([0, 4], np.int32),
    }
    for _ in range(100):
        session.run(None, feeds)
    before = bytes_in_use()
    for _ in range(4000):
        session.run(None, feeds)
    assert bytes_in_use() - before < 4000 * 8
