"""Embeddings cut to fewer dimensions: which ones a model was trained for, and how they are cut.

Every interface (calls, command line, server, integrations) goes through these two functions, so all of them
allow the same dimensions and return the same bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from koe5_onnx.artifact.manifest import Contract
from koe5_onnx.errors import InputError


def require_dim(dim: int | None, contract: Contract, name: str = "dim") -> None:
    """Check that embeddings may be cut to `dim` components; None keeps all.

    Args:
        dim: Number of components.
        contract: The artifact's.
        name: What the caller calls `dim`, for the message.

    Raises:
        InputError: It is neither the full width nor one that the model was trained for.
    """
    if dim is None or dim in contract.dims:
        return
    if contract.matryoshka_dims:
        raise InputError(f"{name} is {dim}: expected one of {', '.join(map(str, contract.dims))}")
    raise InputError(
        f"{name} is {dim}: expected {contract.dim}, as this model was not trained to be shortened"
    )


def shorten(
    embeddings: npt.NDArray[np.float32], dim: int | None, contract: Contract
) -> npt.NDArray[np.float32]:
    """Keep the first `dim` components; scale them to unit length if the contract normalizes.

    This is `truncate_dim=dim, normalize_embeddings=True` of sentence-transformers, or without the latter for
    a contract that does not normalize.

    Args:
        embeddings: float32[n, contract.dim].
        dim: As `require_dim` accepts it.
        contract: The artifact's.

    Returns:
        float32[n, dim]; the same array for None and the full width.
    """
    if dim is None or dim == contract.dim:
        return embeddings
    rows = np.ascontiguousarray(embeddings[:, :dim])
    return unit(rows) if contract.normalize else rows


def unit(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scale each row to unit length; a row of zeros stays one."""
    # The bound is that of torch.nn.functional.normalize.
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
