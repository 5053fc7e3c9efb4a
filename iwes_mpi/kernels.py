"""The estimator of Campos et al. (2018), eqs. 3 and 4, in compiled kernels with exact integer sums.

Notation (used throughout): a population was drawn around theta^t as x_{i±} = theta^t ± sigma·epsilon_i; by now
theta has moved to theta^{t+k}; delta = (theta^t − theta^{t+k}) / sigma, shape (d,), and r = ‖delta‖.

Importance weight, eq. 4, for both members of a mirrored pair from one dot product s_i = epsilon_i·delta:

    log c_{i±} = −r²/2 ∓ s_i

Gradient, eq. 3 times sigma, with utilities u:

    g = (1/Σc) Σ_i Σ_± c_{i±} u_{i±} (±epsilon_i + delta)
      = (1/Σc) [ Σ_i a_i epsilon_i + (Σ c u) delta ],     a_i = c_{i+} u_{i+} − c_{i−} u_{i−}

Every sum over samples is a sum of 64-bit integers (fixed point), so it is exact: the same for any split of the
pairs over ranks and any order.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.jit import float_bits, kernel

WEIGHT_KERNELS = ("cancelled", "density-ratio", "precomputed")  # the position is the kernel's id
CANCELLED, DENSITY_RATIO, PRECOMPUTED = range(3)

MAX_ABS_EPSILON = 8.0  # checked when the noise table is filled; bounds every term of a sum
BLOCK = 256  # noise elements per entry of the squared-norm prefix table
_LOG_MAX = 709.7  # exp of it is the largest weight reported: beyond lies infinity

# Adding 1.5·2^52 to a float64 of magnitude below 2^51 leaves its nearest integer in the low bits. This rounds and
# converts in one instruction that every SIMD width has, unlike a conversion to int64.
_MAGIC = 1.5 * 2.0**52
_MAGIC_BITS = int(np.float64(_MAGIC).view(np.int64))

# Positions in the vector of integer scalars that travels with the gradient
SUM_C, SUM_C2, SUM_CU, N_CLIPPED = range(4)
N_SCALARS = 4


class FixedPoint(NamedTuple):
    """Binary exponents that turn real sums into integer ones, for one population size."""

    gradient: int  # a term of the gradient is rounded to a multiple of 2^-gradient
    scalar: int  # a weight is rounded to a multiple of 2^-scalar


def fixed_point(n_pairs: int) -> FixedPoint:
    """The finest exponents at which no sum over `n_pairs` pairs can overflow 63 bits.

    With |u| ≤ 1 and 0 ≤ c ≤ 1 a pair adds at most 2·8 to an element of the gradient, and at most 2 to a scalar.
    A million pairs leave 2^-38 for the gradient: 4e-12.

    Raises
    ------
    ValueError
        If `n_pairs` is not between 1 and 2^30.
    """
    if not 1 <= n_pairs <= 2**30:
        raise ValueError(f"n_pairs must lie between 1 and 2^30, got {n_pairs}")
    pairs = (n_pairs - 1).bit_length()  # n_pairs ≤ 2^pairs
    term = int(math.log2(2 * MAX_ABS_EPSILON))
    # A single term must also stay below 2^51, where the magic number works.
    return FixedPoint(gradient=min(62 - term - pairs, 50 - term), scalar=min(62 - 1 - pairs, 50))


@kernel(reassociate=True)
def dot(row, delta):
    """Σ_j row[j]·delta[j] of two float32 vectors: float32 within groups of four, float64 across them.

    A group takes one product from each quarter of the vectors, which keeps the float32 arithmetic vectorised. Where
    theta moved along this very noise, s is in the thousands and cancels against r²/2: longer float32 sums, of
    thousands of terms with one sign, would leave errors of 1e-4 in log c.
    """
    q = delta.shape[0] // 4
    a0, a1, a2, a3 = row[:q], row[q : 2 * q], row[2 * q : 3 * q], row[3 * q : 4 * q]
    b0, b1, b2, b3 = delta[:q], delta[q : 2 * q], delta[2 * q : 3 * q], delta[3 * q : 4 * q]
    total = 0.0
    for j in range(q):
        total += np.float64((a0[j] * b0[j] + a1[j] * b1[j]) + (a2[j] * b2[j] + a3[j] * b3[j]))
    for j in range(4 * q, delta.shape[0]):
        total += np.float64(row[j]) * np.float64(delta[j])
    return total


@kernel(reassociate=True)
def sum_squares(values):
    """Σ_j values[j]² in float64."""
    total = 0.0
    for j in range(values.shape[0]):
        total += np.float64(values[j]) * np.float64(values[j])
    return total


@kernel(reassociate=True)
def _squared_distances(row, delta):
    """‖epsilon + delta‖² and ‖−epsilon + delta‖², the exponents of eq. 4's numerator for a pair's two members."""
    plus, minus = 0.0, 0.0
    for j in range(delta.shape[0]):
        epsilon = np.float64(row[j])
        plus += (delta[j] + epsilon) * (delta[j] + epsilon)
        minus += (delta[j] - epsilon) * (delta[j] - epsilon)
    return plus, minus


@kernel
def squared_norm(table, prefix, start, d):
    """‖table[start : start + d]‖² in O(1): prefix sums over whole blocks, the two ragged ends by hand.

    Parameters
    ----------
    table : float32 (size,)
    prefix : float64 (size // BLOCK + 1,)
        prefix[b] is the sum of squares of the first b blocks.
    start, d : int
    """
    stop = start + d
    first, last = (start + BLOCK - 1) // BLOCK, stop // BLOCK
    if first >= last:
        return sum_squares(table[start:stop])
    ends = sum_squares(table[start : first * BLOCK]) + sum_squares(table[last * BLOCK : stop])
    return prefix[last] - prefix[first] + ends


@kernel
def _pair_log_weights(method, table, start, prefix, delta, delta32, r2):
    """log c_{i+} and log c_{i−} (eq. 4) of the pair whose noise starts at `start`, by one of the three methods."""
    d = delta.shape[0]
    row = table[start : start + d]
    if method == CANCELLED:
        s = dot(row, delta32)
        return -0.5 * r2 - s, -0.5 * r2 + s
    plus, minus = _squared_distances(row, delta)
    denominator = squared_norm(table, prefix, start, d) if method == PRECOMPUTED else sum_squares(row)
    return 0.5 * (denominator - plus), 0.5 * (denominator - minus)


@kernel
def log_weights(method, table, starts, prefix, delta, delta32, r2, out):
    """Log importance weights of pairs, unclipped.

    Parameters
    ----------
    method : int
        Position in `WEIGHT_KERNELS`.
    table : float32 (size,)
        The noise table.
    starts : int64 (n,)
        Where in the table each pair's epsilon starts.
    prefix : float64
        As in `squared_norm`; used by "precomputed" alone.
    delta, delta32 : float64 (d,), float32 (d,)
        (theta^t − theta^{t+k}) / sigma.
    r2 : float
        ‖delta‖².
    out : float64 (n, 2)
        Filled with log c_{i+}, log c_{i−}.
    """
    for i in range(starts.shape[0]):
        out[i, 0], out[i, 1] = _pair_log_weights(method, table, starts[i], prefix, delta, delta32, r2)


@kernel
def _term(x, a):
    """round(a·x), exactly."""
    return float_bits(np.float64(x) * a + _MAGIC) - _MAGIC_BITS


@kernel
def _add_rows(total, table, starts, a):
    """total[j] += Σ_m round(a[m]·row_m[j]), exactly, over the four rows that begin at starts[m].

    Four at once: the running total passes through the cache once instead of four times.
    """
    d = total.shape[0]
    row0, row1 = table[starts[0] : starts[0] + d], table[starts[1] : starts[1] + d]
    row2, row3 = table[starts[2] : starts[2] + d], table[starts[3] : starts[3] + d]
    a0, a1, a2, a3 = a[0], a[1], a[2], a[3]
    for j in range(d):
        total[j] += _term(row0[j], a0) + _term(row1[j], a1) + _term(row2[j], a2) + _term(row3[j], a3)


@kernel
def _add_rows_twice(total_a, total_b, table, starts, a, b):
    """`_add_rows` with coefficients a into one total and b into another, reading each row once."""
    d = total_a.shape[0]
    row0, row1 = table[starts[0] : starts[0] + d], table[starts[1] : starts[1] + d]
    row2, row3 = table[starts[2] : starts[2] + d], table[starts[3] : starts[3] + d]
    a0, a1, a2, a3 = a[0], a[1], a[2], a[3]
    b0, b1, b2, b3 = b[0], b[1], b[2], b[3]
    for j in range(d):
        total_a[j] += _term(row0[j], a0) + _term(row1[j], a1) + _term(row2[j], a2) + _term(row3[j], a3)
        total_b[j] += _term(row0[j], b0) + _term(row1[j], b1) + _term(row2[j], b2) + _term(row3[j], b3)


@kernel
def weigh_and_accumulate(
    method, weigh, table, starts, prefix, delta, delta32, r2, log_clip, log_reference, utilities,
    gradient_exponent, scalar_exponent, log_c, sums, scalars,
):  # fmt: skip
    """Weigh pairs and add their part of eq. 3's sums, in fixed point, reading each noise row from memory once.

    Four pairs at a time: their weights need the whole rows, which the accumulation then finds in the cache.

    Parameters
    ----------
    method, table, starts, prefix, delta, delta32, r2
        As in `log_weights`.
    weigh : bool
        Whether to compute `log_c`; otherwise it is taken as given.
    log_clip : float
        Weights are clipped at exp(log_clip); inf for no clipping.
    log_reference : float
        Subtracted from every log weight, so that no weight exceeds 1. The estimator does not change.
    utilities : float64 (n, 2)
        Between −1 and 1.
    gradient_exponent, scalar_exponent : int
        From `fixed_point`.
    log_c : float64 (n, 2)
        Unclipped log weights, filled if `weigh`.
    sums : int64 (1 or 2, d)
        Added to: Σ (c₊u₊ − c₋u₋) epsilon · 2^gradient_exponent; with a second row also Σ (c₊ − c₋) epsilon, which
        centring needs.
    scalars : int64 (N_SCALARS,)
        Added to: Σc, Σc², Σcu, each · 2^scalar_exponent, and the number of weights at the clip.

    Returns
    -------
    float
        The largest weight after clipping and before `log_reference` is subtracted, at most exp(709.7); 0 without
        pairs.
    """
    n = starts.shape[0]
    gradient_scale = 2.0**gradient_exponent
    scalar_scale = 2.0**scalar_exponent
    a = np.empty(4)
    b = np.empty(4)
    group = np.empty(4, dtype=np.int64)
    largest = -np.inf
    for first in range(0, n, 4):
        for m in range(4):
            i = first + m
            group[m] = starts[min(i, n - 1)]
            a[m] = 0.0
            b[m] = 0.0
            if i >= n:  # a group is filled up with copies of its last row, which count nothing
                continue
            if weigh:
                log_c[i, 0], log_c[i, 1] = _pair_log_weights(method, table, starts[i], prefix, delta, delta32, r2)
            for member in range(2):
                sign = 1.0 - 2.0 * member
                clipped = min(log_clip, log_c[i, member])
                largest = max(largest, clipped)
                c = math.exp(min(0.0, clipped - log_reference))
                cu = c * utilities[i, member]
                a[m] += sign * cu
                b[m] += sign * c
                scalars[SUM_C] += np.int64(np.rint(c * scalar_scale))
                scalars[SUM_C2] += np.int64(np.rint(c * c * scalar_scale))
                scalars[SUM_CU] += np.int64(np.rint(cu * scalar_scale))
                scalars[N_CLIPPED] += log_c[i, member] >= log_clip
            a[m] *= gradient_scale
            b[m] *= gradient_scale
        if sums.shape[0] > 1:
            _add_rows_twice(sums[0], sums[1], table, group, a, b)
        else:
            _add_rows(sums[0], table, group, a)
    return math.exp(min(_LOG_MAX, largest))


@kernel
def perturb(theta, sigma, row, sign, out):
    """out = float32(theta + sign·sigma·row): the parameters one episode runs with, shapes (d,)."""
    for j in range(out.shape[0]):
        out[j] = np.float32(theta[j] + sign * sigma * np.float64(row[j]))


@kernel
def block_square_sums(table, first, out):
    """out[b] = Σ of squares of block `first + b` of the table: what the prefix table is summed from."""
    for b in range(out.shape[0]):
        start = (first + b) * BLOCK
        out[b] = sum_squares(table[start : start + BLOCK])


def norm(vector: NDArray[np.float64]) -> float:
    """Euclidean norm, the same bits on every rank (no BLAS, whose kernels may depend on alignment)."""
    return math.sqrt(sum_squares(vector))
