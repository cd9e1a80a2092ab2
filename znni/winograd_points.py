"""The exact matrices of Winograd's minimal filtering F(m, r), by Cook and Toom's construction on chosen points.

``y = A [(G g) * (B d)]`` are the m outputs of correlating n = m + r - 1 samples d with a kernel g of r, after n
products. The points are 0, pairs of +-p, and infinity; they decide the error. On layers of random weights F(4, 3),
nested in 3D, has a third of the error with +-5/8, +-3/2 that it has with the usual +-1, +-2.

After Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR'16; on points, Barabasz, Anderson,
Soodhalter and Gregg, "Error analysis and improving the accuracy of Winograd convolution for deep neural networks",
TOMS'20.
"""

from __future__ import annotations

from fractions import Fraction
from math import prod

import numpy as np

#: By the number of points n: the p of the pairs +-p. `pyx/winograd_lanes.h` has the same.
PAIRS = {4: (Fraction(1),), 6: (Fraction(5, 8), Fraction(3, 2)), 8: (Fraction(1, 2), Fraction(1), Fraction(2))}

Matrix = list[list[Fraction]]


def finite_points(n: int) -> list[Fraction]:
    """The n - 1 finite points, in the order of the rows."""
    return [Fraction(0), *(sign * p for p in PAIRS[n] for sign in (1, -1))]


def _product(points: list[Fraction]) -> list[Fraction]:
    """Coefficients of prod(x - p), lowest first."""
    coefficients = [Fraction(1)]
    for p in points:
        shifted = [Fraction(0), *coefficients]
        coefficients = [high - p * low for high, low in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return coefficients


def matrices(m: int, r: int) -> tuple[Matrix, Matrix, Matrix]:
    """A (m, n), G (n, r) and B (n, n) of F(m, r), exactly.

    Where r is 1 there is nothing to save: n = m, and all three are the identity, of m = 1.
    """
    if r == 1:
        return [[Fraction(1)]], [[Fraction(1)]], [[Fraction(1)]]
    points = finite_points(m + r - 1)
    a = [[*(p**k for p in points), Fraction(k == m - 1)] for k in range(m)]
    g = [[p**k / prod(p - q for q in points if q != p) for k in range(r)] for p in points]
    g.append([Fraction(k == r - 1) for k in range(r)])
    b = [[*_product([q for q in points if q != p]), Fraction(0)] for p in points]
    b.append(_product(points))
    return a, g, b


def kernel_transform(m: int, r: int) -> np.ndarray:
    """G of F(m, r) as float64 (n, r)."""
    return np.array([[float(v) for v in row] for row in matrices(m, r)[1]])
