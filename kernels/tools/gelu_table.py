"""Writes src/gelu_table.inc: the polynomials of gelu.h.

GELU(x) = max(x, 0) - h(|x|) with h(a) = a (1 - Phi(a)), Phi the normal distribution: h is smooth, at most
0.17, and nothing cancels. h is cut into 32 segments around i * STEP; each is a polynomial of degree 4 in
t = a / STEP - i, found by Chebyshev interpolation in float64.

    python tools/gelu_table.py > src/gelu_table.inc
"""

import math
import sys

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev

Array = npt.NDArray[np.float64]
SEGMENTS = 32
DEGREE = 4
END = 6.0
"""h(6) is 6e-9: from here on GELU(x) is x or 0."""
STEP = END / (SEGMENTS - 1)


def tail(a: Array) -> Array:
    """a (1 - Phi(a))."""
    return np.asarray(0.5 * a * np.array([math.erfc(x / math.sqrt(2)) for x in a]))


def segment(index: int) -> Array:
    """Coefficients of t**0 to t**DEGREE, for t in -0.5..0.5."""
    nodes = np.cos(np.pi * (np.arange(64) + 0.5) / 64)
    series = chebyshev.chebfit(nodes, tail((nodes / 2 + index) * STEP), DEGREE)
    coefficients = chebyshev.cheb2poly(series) * 2.0 ** np.arange(DEGREE + 1)
    if index in (0, SEGMENTS - 1):  # exactly 0 at 0, and from END on
        coefficients[0] = 0.0
    return np.asarray(coefficients)


def literals(values: npt.NDArray[np.float32]) -> str:
    """Float literals of C++, eight to a line."""
    texts = [f"{float(value):.9e}f" for value in values]
    lines = [", ".join(texts[i : i + 8]) for i in range(0, len(texts), 8)]
    return ",\n     ".join(lines)


def main() -> None:
    """The table on standard output."""
    table = np.array([segment(i) for i in range(SEGMENTS)], dtype=np.float32)
    lines = [
        "// Written by tools/gelu_table.py. One row a power of t, one column a segment.",
        f"static constexpr float kGeluSteps = {1 / STEP:.9e}f;  // segments for each unit of |x|",
        f"alignas(64) static const float kGeluTable[{DEGREE + 1}][{SEGMENTS}] = {{",
        *(f"    {{{literals(power)}}}," for power in table.T),
        "};",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
