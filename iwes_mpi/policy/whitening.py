"""The whitening matrix of a covariance, C^(−1/2), by a Jacobi method in a fixed order.

Of all matrices that whiten, the symmetric one (ZCA) leaves the whitened observations nearest to the observations
themselves, does not depend on their order, and moves no more than the covariance does: what theta means stays the same
while the statistics settle. It has a lower bound on eigenvalues, as mean and deviation have one on variances; with a
diagonal covariance both are the same. The triangular one (Cholesky) would cost half as much, but its last coordinates
are what is left of observations that those before them explain: small differences, blown up.

LAPACK is not asked: a run must give the same bits on all ranks, and kernels of a BLAS may depend on alignment.
"""

import math

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.compiled.jit import kernel

_TOLERANCE = 1e-13  # cosine of the angle between two rows that counts as a right one
_SWEEPS = 60  # some ten are enough
_ROUNDING = 1e-15  # share of the largest covariance below which eigenvalues are not resolved


def inverse_root(covariance: NDArray[np.float64], floor: float) -> NDArray[np.float64]:
    """C^(−1/2) with the eigenvalues of C bounded from below by `floor`.

    Parameters
    ----------
    covariance : float64 (n, n)
        Symmetric, and no eigenvalue below 0 but by rounding.
    floor : float

    Returns
    -------
    float64 (n, n)
        Symmetric to rounding.
    """
    half = int(np.frexp(np.abs(covariance).max(initial=0.0))[1]) // 2
    rows = np.ldexp(covariance, -2 * half)  # exact, and no square of it can overflow
    bound = max(math.ldexp(floor, -2 * half), _ROUNDING)
    root = np.zeros_like(rows)
    _orthogonalise(rows, bound)
    _sum_directions(rows, bound, root)
    return np.ldexp(root, -half)


@kernel(reassociate=True)
def _orthogonalise(rows, bound):
    """Rotate the rows (n, n) of a covariance, in place, until all are orthogonal (Hestenes 1958).

    Then each is an eigenvector times its eigenvalue. Where both are below `bound` nothing depends on them exactly.
    """
    n = rows.shape[0]
    for _ in range(_SWEEPS):
        done = True
        for p in range(n - 1):
            for q in range(p + 1, n):
                pp, qq, pq = 0.0, 0.0, 0.0
                for j in range(n):
                    pp += rows[p, j] * rows[p, j]
                    qq += rows[q, j] * rows[q, j]
                    pq += rows[p, j] * rows[q, j]
                if not abs(pq) > _TOLERANCE * max(bound, math.sqrt(pp)) * max(bound, math.sqrt(qq)):
                    continue
                done = False
                zeta = (qq - pp) / (2.0 * pq)
                t = math.copysign(1.0, zeta) / (abs(zeta) + math.hypot(1.0, zeta))
                c = 1.0 / math.sqrt(1.0 + t * t)
                s = c * t
                for j in range(n):
                    a, b = rows[p, j], rows[q, j]
                    rows[p, j] = c * a - s * b
                    rows[q, j] = s * a + c * b
        if done:
            return


@kernel
def _sum_directions(rows, bound, root):
    """Fill root (n, n) with Σ_i max(λ_i, bound)^(−1/2)·u_i·u_iᵀ from rows λ_i·u_i."""
    n = rows.shape[0]
    rest = 1.0 / math.sqrt(bound)  # the factor of all directions that are not listed
    for i in range(n):
        root[i, i] = rest
    for i in range(n):
        square = 0.0
        for j in range(n):
            square += rows[i, j] * rows[i, j]
        eigenvalue = math.sqrt(square)
        if not eigenvalue <= bound:
            share = (1.0 / math.sqrt(eigenvalue) - rest) / square
            for a in range(n):
                for b in range(n):
                    root[a, b] += share * rows[i, a] * rows[i, b]
