"""Writes src/gelu_table.inc: the polynomials of gelu.h.

GELU(x) = x Phi(x), Phi the normal distribution, is cut into 31 segments around i * STEP for i from -15 to 15.
Each is a polynomial of degree 3 in x, found by Chebyshev interpolation in float64 and multiplied by SHRINK,
as the kept values are; the first segment is 0 and the last one x. Segment i has the column i modulo 32.

    python tools/gelu_table.py > src/gelu_table.inc
"""

import math
import sys

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev, polynomial

Array = npt.NDArray[np.float64]
COLUMNS = 32
LAST = 15
DEGREE = 3
END = 5.0
"""From here on GELU(x) is x or 0 within 1.5e-6."""
STEP = END / LAST
SHRINK = 1 / 256
"""kGeluShrink of linear_kernels.h."""


def gelu(x: Array) -> Array:
    """x Phi(x)."""
    return np.asarray(0.5 * x * np.array([math.erfc(-value / math.sqrt(2)) for value in x]))


def segment(index: int) -> Array:
    """Coefficients of x**0 to x**DEGREE, for x from (index - 0.5) STEP to (index + 0.5) STEP."""
    coefficients = np.zeros(DEGREE + 1)
    if abs(index) >= LAST:
        coefficients[1] = index >= LAST
        return coefficients
    nodes = np.cos(np.pi * (np.arange(64) + 0.5) / 64)
    series = chebyshev.chebfit(nodes, gelu((nodes / 2 + index) * STEP), DEGREE)
    power = np.ones(1)
    for coefficient in chebyshev.cheb2poly(series):  # of nodes = 2 x / STEP - 2 index
        coefficients[: power.size] += coefficient * power
        power = polynomial.polymul(power, [-2.0 * index, 2 / STEP])
    if index == 0:  # exactly 0 at 0
        coefficients[0] = 0.0
    return coefficients


def literals(values: npt.NDArray[np.float32]) -> str:
    """Float literals of C++, eight to a line."""
    texts = [f"{float(value):.9e}f" for value in values]
    lines = [", ".join(texts[i : i + 8]) for i in range(0, len(texts), 8)]
    return ",\n     ".join(lines)


def main() -> None:
    """The table on standard output."""
    table = np.zeros((COLUMNS, DEGREE + 1), dtype=np.float32)
    for index in range(-LAST, LAST + 1):
        table[index % COLUMNS] = segment(index) * SHRINK
    lines = [
        "// Written by tools/gelu_table.py. One row a power of x, one column a segment.",
        f"static constexpr float kGeluEnd = {END}f;",
        f"static constexpr float kGeluSteps = {1 / STEP:.9e}f;  // segments for each unit of x",
        f"alignas(64) static const float kGeluTable[{DEGREE + 1}][{COLUMNS}] = {{",
        *(f"    {{{literals(power)}}}," for power in table.T),
        "};",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
