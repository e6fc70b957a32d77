"""Arrays where callers may have tensors: taken and given back, with PyTorch only where it is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from koe5_onnx import MissingDependencyError


def rows(embeddings: Any) -> npt.NDArray[np.float32]:
    """[n, dim] or [dim], of arrays, tensors or lists of either, as float32[n, dim]."""
    if isinstance(embeddings, list | tuple):
        embeddings = [_array(one) for one in embeddings]
    return np.atleast_2d(np.asarray(_array(embeddings), dtype=np.float32))


def _array(value: Any) -> Any:
    return value.detach().cpu().numpy() if _is_tensor(value) else value


def _is_tensor(value: Any) -> bool:
    """Told by its methods, so that PyTorch is not imported to ask."""
    return hasattr(value, "detach") and hasattr(value, "cpu")


def like(result: npt.NDArray[np.float32], *arguments: Any) -> Any:
    """The result as a tensor where an argument is one, or a list of them."""
    first = [one[0] if isinstance(one, list | tuple) and one else one for one in arguments]
    return import_torch().from_numpy(result) if any(map(_is_tensor, first)) else result


def import_torch() -> Any:
    """The module torch.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError("torch", "reference", "giving embeddings as tensors") from error
    return torch
