"""The gate: bounds on a certificate, and what "proved" means.

An artifact that misses its gate is never published. A gate can be tightened, not loosened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from koe5_onnx import Certificate, FidelityError, InputError


@dataclass(frozen=True)
class Gate:
    """Bounds that a certificate must keep."""

    cosine_min: float
    cosine_mean: float
    max_abs_diff: float = float("inf")
    """Largest difference of one component at unit length; inf where only cosines are bounded."""
    batch_cosine_min: float = 0.99999
    """A text alone against the same text in a batch."""

    def tightened(self, wanted: Mapping[str, float]) -> Gate:
        """This gate with some bounds replaced by stricter ones.

        Raises:
            InputError: A name is unknown, or a bound is looser than this gate's.
        """
        bounds = dict(vars(self))
        for name, value in wanted.items():
            if name not in bounds:
                raise InputError(f"no bound is called {name!r}: expected one of {', '.join(bounds)}")
            stricter = value <= bounds[name] if name == "max_abs_diff" else value >= bounds[name]
            if not stricter:  # nan is not
                raise InputError(
                    f"{name}={value:g} is looser than the gate's {bounds[name]:g}: it can only be tightened"
                )
            bounds[name] = value
        return Gate(**bounds)

    def check(self, certificate: Certificate) -> None:
        """Compare a certificate with the bounds.

        Raises:
            FidelityError: One is missed; the message has all figures.
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
                f"too far from PyTorch over {found.texts} texts: {'; '.join(misses)}. "
                f"All figures: {describe(certificate)}"
            )


def describe(certificate: Certificate) -> str:
    """The figures of a certificate on one line."""
    found = certificate.overall
    return (
        f"cosine to PyTorch min {found.cosine_min:.6f}, mean {found.cosine_mean:.6f}; largest difference "
        f"{found.max_abs_diff:.2e}; alone against in a batch {certificate.batch_cosine_min:.7f}"
    )
