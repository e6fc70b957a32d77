"""What CUDA offers on this machine, why it cannot be used, and how ONNX Runtime is told to use it.

Asks the NVIDIA driver itself: ONNX Runtime opens a session on the CPU where a library is missing, and says
why on stderr only. Knows nothing of graphs; session.py opens sessions with what is here.
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
"""CUdevice_attribute numbers.
Source: https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__TYPES.html"""
_FLASH_CAPABILITY = (8, 0)
"""Source: flash_api.h in contrib_ops/cuda/bert/flash_attention of https://github.com/microsoft/onnxruntime"""
_LIBRARIES = "pip install 'onnxruntime-gpu[cuda,cudnn]', or install the CUDA toolkit that it was built with"
_OUT_OF_MEMORY = (
    "failed to allocate memory for requested buffer",
    "is smaller than requested bytes",
    "out of memory",
    "status_alloc_failed",
)
"""Parts of what ONNX Runtime, CUDA, cuBLAS and cuDNN say, in lower case; no error has a type of its own.
Source: https://github.com/microsoft/onnxruntime/issues/16307 and strings of the wheel 1.31.1"""
_NO_CUDNN = "cudnn is unavailable"

CAPTURING = {"enable_cuda_graph": "1"}
"""Options of a session that captures CUDA graphs, in addition to `provider_options`."""


@dataclass(frozen=True)
class Gpu:
    """One GPU, as the driver counts them."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]
    """Compute capability, as (9, 0)."""


@dataclass(frozen=True)
class Driver:
    """A driver that answers."""

    cuda: str
    """Newest CUDA that it runs, as "13.0"."""
    gpus: Sequence[Gpu]


def find_driver() -> Driver | str:
    """The NVIDIA driver and its GPUs, or on one line why there is none."""
    try:
        library = load_driver()
    except OSError as error:
        return f"no NVIDIA driver is found here ({error})"
    return ask_driver(library)


def load_driver() -> Any:
    """The driver's library, libcuda.

    Raises:
        OSError: There is none.
    """
    return ctypes.CDLL(_DRIVER)


def ask_driver(library: Any) -> Driver | str:
    """What a loaded libcuda says.

    Source: https://docs.nvidia.com/cuda/cuda-driver-api/
    """
    code = library.cuInit(0)
    if code:
        return f"the NVIDIA driver does not start: cuInit gives {code} ({_words(library, code)})"
    version, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    library.cuDeviceGetCount(ctypes.byref(count))
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    if not count.value:
        return f"the NVIDIA driver (CUDA {cuda}) shows no GPU: look at CUDA_VISIBLE_DEVICES and nvidia-smi"
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
    """The GPU of this number.

    Raises:
        ProviderError: No driver, no GPU, or fewer than asked for.
    """
    driver = find_driver()
    if isinstance(driver, str):
        raise ProviderError(f"CUDA cannot be used: {driver}. For the CPU: device='cpu'")
    if number >= len(driver.gpus):
        raise ProviderError(
            f"device is 'cuda:{number}' and the driver shows {len(driver.gpus)}: expected at most "
            f"'cuda:{len(driver.gpus) - 1}'"
        )
    return driver.gpus[number]


def preload(ort: Any) -> str:
    """Load CUDA and cuDNN from NVIDIA's Python packages, where they are installed; what could not be loaded.

    ONNX Runtime prints that to stdout, where embeddings may go.
    """
    said = io.StringIO()
    if hasattr(ort, "preload_dlls"):  # CPU wheels before 1.21 have it not
        with contextlib.redirect_stdout(said):
            ort.preload_dlls()
    return said.getvalue().strip()


def missing_library(ort: Any) -> str | None:
    """The first library that ONNX Runtime's CUDA provider does not find, in the loader's words.

    Loading the provider without ONNX Runtime fails for a missing library before any of its code runs; with
    all libraries there it fails for a symbol, or is loaded already.
    """
    provider = Path(ort.__file__).parent / "capi" / _PROVIDER
    if not provider.is_file():
        return None  # another system than Linux
    try:
        ctypes.CDLL(str(provider))
    except OSError as error:
        return str(error) if "cannot open shared object file" in str(error) else None
    return None


def why_on_the_cpu(ort: Any) -> str:
    """Why ONNX Runtime opened a session on the CPU that was to run on CUDA."""
    if found := missing_library(ort):
        return f"{found}: {_LIBRARIES}"
    return "ONNX Runtime says why on stderr; run koe5-onnx doctor"


def provider_options(number: int, gpu_mem_limit: int | None) -> dict[str, str]:
    """Options of ONNX Runtime's CUDA provider; what is not named stays at its default.

    Source: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html

    Args:
        number: Which GPU.
        gpu_mem_limit: Bytes that the arena may take; None is no limit.
    """
    options = {
        "device_id": str(number),
        # Batches come longest first: what the first one needs is enough for the rest, and doubling would
        # take up to twice of it.
        "arena_extend_strategy": "kSameAsRequested",
        # Sums of a norm in fp32, as certificates and the scale of the residuals assume.
        "enable_skip_layer_norm_strict_mode": "1",
        # TF32 keeps 10 bits of a product: fp32 artifacts promise more.
        "use_tf32": "0",
    }
    return options if gpu_mem_limit is None else options | {"gpu_mem_limit": str(gpu_mem_limit)}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ONNX Runtime failed for want of memory."""
    message = str(error).lower()
    return any(part in message for part in _OUT_OF_MEMORY)


def lacks_cudnn(error: BaseException) -> bool:
    """Whether a node needs cuDNN and ONNX Runtime did not find it: only the run tells."""
    return _NO_CUDNN in str(error).lower()


def attention_kernel(gpu: Gpu) -> str:
    """Which kernel the packed graph's attention takes in ONNX Runtime 1.31 (tests/gpu)."""
    if gpu.capability >= _FLASH_CAPABILITY:
        return "flash attention"
    return "fused attention of TensorRT or CUTLASS; flash attention begins at compute capability 8.0"
