"""The weight files of a checkpoint: names, shapes, types and rows of the tensors in them.

Reads safetensors and PyTorch's pickled `.bin` behind one interface. torch is imported only to read a `.bin`,
and only tensors are unpickled: a file that asks for anything else is refused before any of its code runs.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import ml_dtypes  # noqa: F401  (gives numpy the name bfloat16, which safetensors looks up)
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from koe5_export.config import read_json
from koe5_onnx import CheckpointError, MissingDependencyError

Array = npt.NDArray[np.float32]

SAFETENSORS = "model.safetensors"
TORCH = "pytorch_model.bin"
INDEX = ".index.json"
"""What the name of an index adds to the name of the file that its shards replace."""
FLOATS = {"torch.float64": "F64", "torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16"}
"""Types that are weights as they stand; others are quantized and mean nothing without their scales."""

_ZIP = b"PK\x03\x04"
_MAPPED_BYTES = 64 << 20
"""Bytes that are read through one mapping of a `.bin` before the file is mapped anew."""
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
"""What `torch.load` raises for damaged files, found by damaging some."""


class Tensor(NamedTuple):
    """What a file says about one of its tensors."""

    shape: tuple[int, ...]
    dtype: str
    """A value of FLOATS, or the file's own word for another type."""


class WeightFile(Protocol):
    """One file of tensors."""

    @property
    def path(self) -> Path:
        """The file."""

    def tensors(self) -> dict[str, Tensor]:
        """Describe every tensor by its name in the file.

        Raises:
            CheckpointError: The file is damaged, or holds more than tensors.
            MissingDependencyError: It is a `.bin`, and torch is not installed.
        """

    def read(self, name: str, rows: slice) -> Array:
        """Read rows of one tensor as float32.

        Raises:
            CheckpointError: The file is damaged.
        """


class SafetensorsFile:
    """A safetensors file.

    Each read opens the file anew: what was read through a mapping counts as memory for as long as it exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def tensors(self) -> dict[str, Tensor]:
        """Describe every tensor; see `WeightFile`."""
        found = {}
        try:
            with safe_open(self.path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                    tensor = file.get_slice(name)
                    found[name] = Tensor(tuple(tensor.get_shape()), tensor.get_dtype())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.path} is damaged or cut short ({error}): download it again"
            ) from error
        return found

    def read(self, name: str, rows: slice) -> Array:
        """Read rows of one tensor; see `WeightFile`."""
        try:
            with safe_open(self.path, framework="numpy") as file:
                return np.asarray(file.get_slice(name)[rows]).astype(np.float32)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.path}: {name} cannot be read ({error}): download it again"
            ) from error


class TorchFile:
    """A file that `torch.save` wrote.

    The zip format is mapped, and mapped anew after `_MAPPED_BYTES`: one mapping for all reads would end up as
    large as the file, and one for each read costs the time to unpickle all names. The format before PyTorch
    1.6 cannot be mapped: such a file stays in memory whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._loaded: Mapping[str, Any] | None = None
        self._read_bytes = 0

    def tensors(self) -> dict[str, Tensor]:
        """Describe every tensor; see `WeightFile`."""
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
            # torch puts advice to load the file with less care in front of its reason.
            reason = str(error.__context__ or error).partition("\n")[0]
            raise CheckpointError(
                f"{self.path} is damaged, or holds more than tensors, which is never loaded ({reason}). "
                "Download it again, or use safetensors weights."
            ) from error
        tensors = {}
        if isinstance(loaded, dict):
            tensors = {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
        if not tensors:
            raise CheckpointError(
                f"{self.path} holds a {type(loaded).__name__} without tensors: expected tensors by name"
            )
        return tensors


def _dtype(tensor: Any) -> str:
    if str(tensor.layout) != "torch.strided":
        return str(tensor.layout)
    return FLOATS.get(str(tensor.dtype), str(tensor.dtype))


def has_weights(folder: Path) -> bool:
    """Return whether a folder holds weights, or an index of them, in a format that can be read."""
    return any((folder / (name + end)).is_file() for name in (SAFETENSORS, TORCH) for end in ("", INDEX))


def weight_files(folder: Path) -> list[WeightFile]:
    """Return the weight files of a checkpoint in name order, the same ones that transformers would load.

    Raises:
        CheckpointError: There are none, an index is damaged, or a shard is missing.
    """
    for name, kind in ((SAFETENSORS, SafetensorsFile), (TORCH, TorchFile)):
        if (folder / name).is_file():
            return [kind(folder / name)]
        if (folder / (name + INDEX)).is_file():
            shards = shard_names(folder / (name + INDEX))
            if missing := [shard for shard in shards if not (folder / shard).is_file()]:
                raise CheckpointError(f"{folder} lacks {', '.join(missing)}: {name}{INDEX} names them")
            return [kind(folder / shard) for shard in shards]
    raise CheckpointError(
        f"{folder} has no weights: expected {SAFETENSORS} or {TORCH}, whole or in shards with an index"
    )


def shard_names(index: Path) -> list[str]:
    """Return the file names that an index refers to, sorted.

    Raises:
        CheckpointError: The index is damaged.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index} has no weight_map: expected tensor names and their files")
    return sorted(set(map(str, weight_map.values())))
