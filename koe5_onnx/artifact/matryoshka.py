"""Smaller embeddings: fewer components (Matryoshka embeddings), or components in int8 or in one bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from koe5_onnx.artifact.manifest import Contract
from koe5_onnx.errors import InputError


def require_dim(dim: int | None, contract: Contract, name: str = "dim") -> None:
    """Check that the model supports embeddings of `dim` components.

    Args:
        dim: Number of components; None keeps all.
        contract: The artifact's contract.
        name: Name of the caller's argument, for the error message.

    Raises:
        InputError: `dim` is neither the full dimension nor one that the model was trained for.
    """
    if dim is None or dim in contract.dims:
        return
    if contract.matryoshka_dims:
        raise InputError(f"{name} is {dim}: expected one of {', '.join(map(str, contract.dims))}")
    raise InputError(
        f"{name} is {dim}: expected {contract.dim}, the only dimension that this model was trained for"
    )


def shorten(
    embeddings: npt.NDArray[np.float32], dim: int | None, contract: Contract
) -> npt.NDArray[np.float32]:
    """Keep the first `dim` components, and scale the result to unit length if the contract normalizes.

    Equivalent to `truncate_dim=dim, normalize_embeddings=contract.normalize` in sentence-transformers.

    Args:
        embeddings: float32[n, contract.dim].
        dim: Number of components, valid according to `require_dim`; None keeps all.
        contract: The artifact's contract.

    Returns:
        float32[n, dim]. The array itself if `dim` is None or the full dimension.
    """
    if dim is None or dim == contract.dim:
        return embeddings
    rows = np.ascontiguousarray(embeddings[:, :dim])
    return unit(rows) if contract.normalize else rows


def unit(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scale each row of float32[n, dim] to unit length; zero rows stay zero."""
    # Same epsilon as torch.nn.functional.normalize.
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def to_int8(embeddings: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Quantize rows to integers from -127 to 127. Return int8[n, dim], and the scale per row, float32[n]."""
    scale = np.abs(embeddings).max(axis=1, initial=0) / np.float32(127)
    # Avoid a division by zero for a row of zeros, which a trained model does not produce.
    values = np.rint(embeddings / np.where(scale, scale, 1)[:, None]).astype(np.int8)
    return values, scale.astype(np.float32)


def to_bits(embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Convert components to bits, 1 if above 0: uint8[n, dim / 8].

    The first component of eight is the highest bit of their byte.
    """
    return np.packbits(embeddings > 0, axis=1)
