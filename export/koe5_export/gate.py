"""The gate: bounds on the figures of a certificate. An artifact outside the bounds is not kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from koe5_onnx import Certificate, FidelityError, InputError


@dataclass(frozen=True)
class Gate:
    """Bounds on a certificate; they can be tightened but not loosened."""

    cosine_min: float
    """Smallest allowed cosine between an embedding and its reference."""
    cosine_mean: float
    """Smallest allowed mean cosine between embeddings and their references."""
    max_abs_diff: float = float("inf")
    """Largest allowed difference between corresponding components of unit-length embeddings; inf for any."""
    batch_cosine_min: float = 0.99999
    """Smallest allowed cosine between the embeddings of a text alone and in a batch with other texts."""

    def tightened(self, wanted: Mapping[str, float]) -> Gate:
        """Return this gate with some bounds replaced by stricter ones.

        Raises:
            InputError: A name is unknown, or a bound is looser than this gate's.
        """
        bounds = dict(vars(self))
        for name, value in wanted.items():
            if name not in bounds:
                raise InputError(f"{name!r} is not a bound; expected one of {', '.join(bounds)}")
            stricter = value <= bounds[name] if name == "max_abs_diff" else value >= bounds[name]
            if not stricter:  # also rejects nan
                raise InputError(
                    f"{name}={value:g} is looser than {bounds[name]:g}. Gates can only be tightened"
                )
            bounds[name] = value
        return Gate(**bounds)

    def check(self, certificate: Certificate) -> None:
        """Check that a certificate is within the bounds.

        Raises:
            FidelityError: A value is outside its bound. The message has all values.
        """
        found = certificate.overall
        misses = [
            f"{name} {value:.7g}, allowed {bound:.7g}"
            for name, value, bound, good in (
                ("cosine_min", found.cosine_min, self.cosine_min, found.cosine_min >= self.cosine_min),
                ("cosine_mean", found.cosine_mean, self.cosine_mean, found.cosine_mean >= self.cosine_mean),
                (
                    "max_abs_diff",
                    found.max_abs_diff,
                    self.max_abs_diff,
                    found.max_abs_diff <= self.max_abs_diff,
                ),
                (
                    "batch_cosine_min",
                    certificate.batch_cosine_min,
                    self.batch_cosine_min,
                    certificate.batch_cosine_min >= self.batch_cosine_min,
                ),
            )
            if not good
        ]
        if misses:
            raise FidelityError(
                f"the artifact fails its gate on {found.texts} texts: {'; '.join(misses)}. "
                f"All values: {describe(certificate)}"
            )


def describe(certificate: Certificate) -> str:
    """Return the values of a certificate on one line."""
    found = certificate.overall
    return (
        f"cosine to PyTorch min {found.cosine_min:.6f}, mean {found.cosine_mean:.6f}; largest difference "
        f"{found.max_abs_diff:.2e}; alone vs. in a batch {certificate.batch_cosine_min:.7f}"
    )
