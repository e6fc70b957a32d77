"""Read the weight files of a checkpoint: names, shapes, dtypes and rows of tensors.

Safetensors and PyTorch's pickled `.bin` files are read through the same interface. torch is imported only for
a `.bin`. Its restricted unpickler (`weights_only`) rejects files with arbitrary code before any of it runs.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy, which safetensors requires)
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from koe5_export.config import read_json
from koe5_onnx import CheckpointError, MissingDependencyError

Array = npt.NDArray[np.float32]

SAFETENSORS = "model.safetensors"
TORCH = "pytorch_model.bin"
INDEX = ".index.json"
"""Suffix of the index of a sharded weight file."""
FLOATS = {"torch.float64": "F64", "torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16"}
"""Names of supported dtypes in torch and in safetensors. Other dtypes, as in quantized weights, are
rejected."""

_ZIP = b"PK\x03\x04"
_MAPPED_BYTES = 64 << 20
"""Number of bytes that are read from one memory map of a `.bin` before the file is mapped again."""
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)
"""Exceptions that `torch.load` raised for deliberately damaged files."""


class Tensor(NamedTuple):
    """Shape and dtype of a tensor in a weight file."""

    shape: tuple[int, ...]
    dtype: str
    """A value of `FLOATS`, or another name if the dtype is not supported."""


class WeightFile(Protocol):
    """Interface of a weight file."""

    @property
    def path(self) -> Path:
        """Path of the file."""

    def tensors(self) -> dict[str, Tensor]:
        """Return shapes and dtypes of all tensors by name.

        Raises:
            CheckpointError: The file is damaged, has no tensors, or contains objects that are not loaded.
            MissingDependencyError: The file is a `.bin`, and torch is not installed.
        """

    def read(self, name: str, rows: slice) -> Array:
        """Read rows of one tensor as float32.

        Raises:
            CheckpointError: The file is damaged.
        """


class SafetensorsFile:
    """A safetensors file.

    Each read opens the file again, because pages that were read through a memory map count as memory of the
    process until the map is closed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def tensors(self) -> dict[str, Tensor]:
        """Return shapes and dtypes of all tensors by name; see `WeightFile`."""
        found = {}
        try:
            with safe_open(self.path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118  (safe_open is not a mapping)
                    tensor = file.get_slice(name)
                    found[name] = Tensor(tuple(tensor.get_shape()), tensor.get_dtype())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.path} is damaged or truncated ({error}). Download it again"
            ) from error
        return found

    def read(self, name: str, rows: slice) -> Array:
        """Read rows of one tensor; see `WeightFile`."""
        try:
            with safe_open(self.path, framework="numpy") as file:
                return np.asarray(file.get_slice(name)[rows]).astype(np.float32)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.path}: {name} cannot be read ({error}). Download it again"
            ) from error


class TorchFile:
    """A file written by `torch.save`.

    Files in the zip format are memory-mapped, and mapped again after reading `_MAPPED_BYTES`. With a single
    map, memory use would grow to the size of the file; with a map per read, all tensor names would be
    unpickled each time. Files written before PyTorch 1.6 cannot be mapped and are loaded completely.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._loaded: Mapping[str, Any] | None = None
        self._read_bytes = 0

    def tensors(self) -> dict[str, Tensor]:
        """Return shapes and dtypes of all tensors by name; see `WeightFile`."""
        return {name: Tensor(tuple(tensor.shape), _dtype(tensor)) for name, tensor in self._load().items()}

    def read(self, name: str, rows: slice) -> Array:
        """Read rows of one tensor; see `WeightFile`."""
        part = self._load()[name].detach()[rows].float()
        array = np.array(part.numpy(), dtype=np.float32)
        self._read_bytes += array.nbytes
        return array

    def _load(self) -> Mapping[str, Any]:
        is_zip = self._is_zip()
        if self._loaded is None or (is_zip and self._read_bytes > _MAPPED_BYTES):
            self._loaded, self._read_bytes = None, 0
            self._loaded = self._unpickle(mmap=is_zip)
        return self._loaded

    def _is_zip(self) -> bool:
        with self.path.open("rb") as stream:
            return stream.read(len(_ZIP)) == _ZIP

    def _unpickle(self, *, mmap: bool) -> dict[str, Any]:
        try:
            import torch
        except ImportError as error:
            raise MissingDependencyError("torch", "reference", f"reading {self.path.name}") from error
        try:
            loaded = torch.load(self.path, map_location="cpu", weights_only=True, mmap=mmap)
        except _DAMAGE as error:
            # torch's message begins with advice to load the file unsafely. Its cause has the actual reason.
            reason = str(error.__context__ or error).partition("\n")[0]
            raise CheckpointError(
                f"{self.path} is damaged, or contains objects other than tensors, which are not loaded "
                f"({reason}). Download it again, or use safetensors weights"
            ) from error
        tensors = {}
        if isinstance(loaded, dict):
            tensors = {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
        if not tensors:
            raise CheckpointError(
                f"{self.path} contains a {type(loaded).__name__} without tensors; expected tensors by name"
            )
        return tensors


def _dtype(tensor: Any) -> str:
    if str(tensor.layout) != "torch.strided":
        return str(tensor.layout)
    return FLOATS.get(str(tensor.dtype), str(tensor.dtype))


def has_weights(folder: Path) -> bool:
    """Return True if a folder has weights, or an index of them, in a supported format."""
    return any((folder / (name + end)).is_file() for name in (SAFETENSORS, TORCH) for end in ("", INDEX))


def weight_files(folder: Path) -> list[WeightFile]:
    """Return the weight files that transformers would load from a folder, sorted by name.

    Raises:
        CheckpointError: There are no weights, an index is damaged, or a shard is missing.
    """
    for name, kind in ((SAFETENSORS, SafetensorsFile), (TORCH, TorchFile)):
        if (folder / name).is_file():
            return [kind(folder / name)]
        if (folder / (name + INDEX)).is_file():
            shards = shard_names(folder / (name + INDEX))
            if missing := [shard for shard in shards if not (folder / shard).is_file()]:
                raise CheckpointError(f"{folder} lacks {', '.join(missing)}, listed in {name}{INDEX}")
            return [kind(folder / shard) for shard in shards]
    raise CheckpointError(
        f"{folder} has no weights. Expected {SAFETENSORS} or {TORCH}, in one file or in shards with an index"
    )


def shard_names(index: Path) -> list[str]:
    """Return the names of the weight files that an index lists, sorted.

    Raises:
        CheckpointError: The index is damaged.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(
            f"{index} has no valid weight_map: expected a JSON object that maps tensor names to file names"
        )
    return sorted(set(map(str, weight_map.values())))
