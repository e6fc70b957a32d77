"""Detect GPUs, diagnose CUDA problems, and set the options of ONNX Runtime's CUDA provider.

GPUs are detected with the NVIDIA driver, not with ONNX Runtime. If a library is missing, ONNX Runtime falls
back to the CPU and reports the reason only on stderr.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from koe5_onnx.errors import ProviderError

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_PROVIDER = "libonnxruntime_providers_cuda.so"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
"""Values of CUdevice_attribute for the compute capability.
Source: https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__TYPES.html"""
_FLASH_CAPABILITY = (8, 0)
"""Minimum compute capability for flash attention.
Source: flash_api.h in contrib_ops/cuda/bert/flash_attention of https://github.com/microsoft/onnxruntime"""
_LIBRARIES = (
    "Run pip install 'onnxruntime-gpu[cuda,cudnn]', or install the CUDA version that ONNX Runtime requires"
)
_OUT_OF_MEMORY = (
    "failed to allocate memory for requested buffer",
    "is smaller than requested bytes",
    "out of memory",
    "status_alloc_failed",
)
"""Lowercase parts of out-of-memory messages from ONNX Runtime, CUDA, cuBLAS and cuDNN.
Source: https://github.com/microsoft/onnxruntime/issues/16307 and strings of the wheel 1.31.1"""
_NO_CUDNN = "cudnn is unavailable"

CAPTURING = {"enable_cuda_graph": "1"}
"""Provider options for capturing CUDA graphs, in addition to `provider_options`."""


@dataclass(frozen=True)
class Gpu:
    """A GPU that the driver reports."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]
    """Compute capability, such as (9, 0)."""


@dataclass(frozen=True)
class Driver:
    """A working NVIDIA driver and its GPUs."""

    cuda: str
    """Highest supported CUDA version, such as "13.0"."""
    gpus: Sequence[Gpu]


def find_driver() -> Driver | str:
    """Return the NVIDIA driver with its GPUs, or a one-line reason why CUDA is not available."""
    try:
        library = load_driver()
    except OSError as error:
        return f"no NVIDIA driver was found ({error})"
    return ask_driver(library)


def load_driver() -> Any:
    """Load the library of the NVIDIA driver, libcuda.

    Raises:
        OSError: The library is not installed.
    """
    return ctypes.CDLL(_DRIVER)


def ask_driver(library: Any) -> Driver | str:
    """Query a loaded libcuda for its GPUs; see `find_driver`.

    Source: https://docs.nvidia.com/cuda/cuda-driver-api/
    """
    code = library.cuInit(0)
    if code:
        return f"the NVIDIA driver cannot be initialized: cuInit returned {code} ({_words(library, code)})"
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    library.cuDeviceGetCount(ctypes.byref(count))
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    if not count.value:
        return f"the NVIDIA driver (CUDA {cuda}) finds no GPU; check CUDA_VISIBLE_DEVICES and nvidia-smi"
    return Driver(cuda, [_gpu(library, number) for number in range(count.value)])


def _gpu(library: Any, number: int) -> Gpu:
    device, memory = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(100)
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.cuDeviceGet(ctypes.byref(device), number)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    library.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device)
    library.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device)
    return Gpu(name.value.decode("utf-8", "replace"), memory.value, (major.value, minor.value))


def _words(library: Any, code: int) -> str:
    words = ctypes.c_char_p()
    library.cuGetErrorString(code, ctypes.byref(words))
    return words.value.decode("utf-8", "replace") if words.value else "unknown"


def require_gpu(number: int) -> Gpu:
    """Return the GPU with index `number`.

    Raises:
        ProviderError: There is no driver, no GPU, or no GPU with this index.
    """
    driver = find_driver()
    if isinstance(driver, str):
        raise ProviderError(f"CUDA cannot be used: {driver}. To use the CPU, set the device to 'cpu'")
    if number >= len(driver.gpus):
        raise ProviderError(
            f"device is 'cuda:{number}', but the number of GPUs is {len(driver.gpus)}: expected at most "
            f"'cuda:{len(driver.gpus) - 1}'"
        )
    return driver.gpus[number]


def preload(ort: Any) -> str:
    """Load CUDA and cuDNN from NVIDIA's Python packages, if installed, and return the errors as text.

    ONNX Runtime prints these errors to stdout, where a command may write its output.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        ort.preload_dlls()
    return said.getvalue().strip()


def missing_library(ort: Any) -> str | None:
    """Return the loader's error for the first missing library of the CUDA provider; None if none is missing.

    The provider library is loaded here without ONNX Runtime. If one of its dependencies is missing, the
    loader says so. Otherwise it reports an undefined symbol, or no error if ONNX Runtime has already loaded
    the library.
    """
    provider = Path(ort.__file__).parent / "capi" / _PROVIDER
    if not provider.is_file():
        return None  # not Linux
    try:
        ctypes.CDLL(str(provider))
    except OSError as error:
        return str(error) if "cannot open shared object file" in str(error) else None
    return None


def why_on_the_cpu(ort: Any) -> str:
    """Return why ONNX Runtime opened a session on the CPU instead of CUDA."""
    if found := missing_library(ort):
        return f"a library is missing ({found}). {_LIBRARIES}"
    return "ONNX Runtime reports the reason on stderr. Run koe5-onnx doctor"


def provider_options(number: int, gpu_mem_limit: int | None) -> dict[str, str]:
    """Return the non-default options of ONNX Runtime's CUDA provider.

    Source: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html

    Args:
        number: Index of the GPU.
        gpu_mem_limit: Limit for the memory arena in bytes; None sets no limit.
    """
    options = {
        # ONNX Runtime 1.31 prints a warning if the number of the GPU is given, even if it is valid.
        **({"device_id": str(number)} if number else {}),
        # The first batches are the largest, so their memory is enough for most later ones. The default
        # strategy doubles the arena, which can take twice as much memory.
        "arena_extend_strategy": "kSameAsRequested",
        # fp16 artifacts are scaled and measured for layer norms that sum in fp32.
        "enable_skip_layer_norm_strict_mode": "1",
        # TF32 has a mantissa of 10 bits, too few for fp32 artifacts.
        "use_tf32": "0",
    }
    return options if gpu_mem_limit is None else options | {"gpu_mem_limit": str(gpu_mem_limit)}


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error of ONNX Runtime says that device memory is exhausted."""
    message = str(error).lower()
    return any(part in message for part in _OUT_OF_MEMORY)


def lacks_cudnn(error: BaseException) -> bool:
    """Return True if a node failed because it requires cuDNN, which is not installed."""
    return _NO_CUDNN in str(error).lower()


def attention_kernel(gpu: Gpu) -> str:
    """Return the attention kernel that ONNX Runtime 1.31 uses for the packed graph (see tests/gpu)."""
    if gpu.capability >= _FLASH_CAPABILITY:
        return "flash attention"
    return "fused attention of TensorRT or CUTLASS; flash attention requires compute capability 8.0"
