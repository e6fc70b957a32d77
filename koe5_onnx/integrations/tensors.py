"""Convert between NumPy arrays and PyTorch tensors. PyTorch is imported only to create tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from koe5_onnx import MissingDependencyError


def rows(embeddings: Any) -> npt.NDArray[np.float32]:
    """Convert an array, a tensor or a list of either, of shape [n, dim] or [dim], to float32[n, dim]."""
    if isinstance(embeddings, list | tuple):
        embeddings = [_array(one) for one in embeddings]
    return np.atleast_2d(np.asarray(_array(embeddings), dtype=np.float32))


def _array(value: Any) -> Any:
    return value.detach().cpu().numpy() if _is_tensor(value) else value


def _is_tensor(value: Any) -> bool:
    """Detect tensors by their methods, without importing PyTorch."""
    return hasattr(value, "detach") and hasattr(value, "cpu")


def like(result: npt.NDArray[np.float32], *arguments: Any) -> Any:
    """Return `result` as a tensor if one of `arguments` is a tensor or a list of tensors."""
    first = [one[0] if isinstance(one, list | tuple) and one else one for one in arguments]
    return import_torch().from_numpy(result) if any(map(_is_tensor, first)) else result


def import_torch() -> Any:
    """Import torch.

    Raises:
        MissingDependencyError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError("torch", "reference", "returning embeddings as tensors") from error
    return torch
