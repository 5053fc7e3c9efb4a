"""Compiled kernels of the estimator: sums over the noise of pairs, and their fixed-point form.

Every sum over samples is a sum of 64-bit integers (fixed point), so it is exact: the same for any split of the
pairs over ranks and any order. The notation is `estimator`'s.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.compiled.jit import float_bits, kernel
from iwes_mpi.method import weight_kernels

MAX_ABS_EPSILON = 8.0  # checked when the noise table is filled; bounds every term of a sum
BLOCK = 256  # noise elements per entry of the squared-norm prefix table
LOG_MAX = 709.7  # exp of it is the largest weight reported: beyond lies infinity

# Adding 1.5·2^52 to a float64 of magnitude below 2^51 leaves its nearest integer in the low bits. This rounds and
# converts in one instruction that every SIMD width has, unlike a conversion to int64.
_MAGIC = 1.5 * 2.0**52
_MAGIC_BITS = int(np.float64(_MAGIC).view(np.int64))


@kernel(reassociate=True)
def dot(row, delta):
    """Σ_j row[j]·delta[j] of two float32 vectors: float32 within groups of four, float64 across them.

    A group takes one product from each quarter of the vectors, which keeps the float32 arithmetic vectorized. Where
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
def squared_distances(row, delta):
    """‖epsilon − delta‖² and ‖−epsilon − delta‖², the exponents of eq. 4's numerator for a pair's two members."""
    plus, minus = 0.0, 0.0
    for j in range(delta.shape[0]):
        epsilon = np.float64(row[j])
        plus += (epsilon - delta[j]) * (epsilon - delta[j])
        minus += (epsilon + delta[j]) * (epsilon + delta[j])
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


# -- sums of eq. 3 -------------------------------------------------------------------------------------------


class FixedPoint(NamedTuple):
    """Binary exponents that turn real sums into integer ones, for one population size."""

    gradient: int  # a term of the gradient is rounded to a multiple of 2^-gradient
    scalar: int  # a weight is rounded to a multiple of 2^-scalar


class Pairs(NamedTuple):
    """Pairs of a population, as a rank weighs them."""

    table: NDArray[np.float32]  # (size,) the noise table
    starts: NDArray[np.int64]  # (n,) where in the table each pair's epsilon starts
    utilities: NDArray[np.float64]  # (n, 2) between -1 and 1
    stretch: float  # between 0 and 1, times epsilon in the gradient: batches of other sigmas count by theirs


class Bounds(NamedTuple):
    """What weights are bounded by."""

    log_clip: float  # weights are clipped at exp(log_clip); inf for no clipping
    log_reference: float  # subtracted from every log weight, so that none exceeds 1; the estimator does not change
    per_pair: bool = False  # whether both members of a pair get the mean of their weights


class Sums(NamedTuple):
    """Integer sums over pairs, added to."""

    # (1 or 2, d) Σ (c₊u₊ − c₋u₋) epsilon · 2^gradient; with a second row also Σ (c₊ − c₋) epsilon, for centering
    gradient: NDArray[np.int64]
    scalars: NDArray[np.int64]  # (N_SCALARS,) Σc, Σc², Σcu, each · 2^scalar, and the number of weights at the clip


SUM_C, SUM_C2, SUM_CU, N_CLIPPED = range(4)  # positions in `Sums.scalars`
N_SCALARS = 4


@kernel
def log_weights(weights, starts, out):
    """Log importance weights of pairs, unclipped.

    Parameters
    ----------
    weights : NamedTuple
        Of a weight kernel.
    starts : int64 (n,)
        Where in the table each pair's epsilon starts.
    out : float64 (n, 2)
        Filled with log c_{i+}, log c_{i−}.
    """
    for i in range(starts.shape[0]):
        out[i, 0], out[i, 1] = weight_kernels.log_weights(weights, starts[i])


@kernel
def log_ratios(table, starts, delta, half_square, ratio, constant, out):
    """Log densities of pairs under another search distribution, less those under their own.

    A pair's members are x± = center ± sigma·epsilon. With center' and sigma' of the other distribution,
    delta = (center' − center)/sigma' and ratio = sigma/sigma', they are
    −½‖delta‖² ± ratio·epsilon·delta + ½(1 − ratio²)‖epsilon‖² + constant.

    Parameters
    ----------
    table : float32 (size,)
    starts : int64 (n,)
    delta : float32 (d,)
    half_square : float
        ½‖delta‖².
    ratio, constant : float
        The constant is d·log(sigma/sigma').
    out : float64 (n, 2)
        Filled.
    """
    d = delta.shape[0]
    for i in range(starts.shape[0]):
        row = table[starts[i] : starts[i] + d]
        s = ratio * dot(row, delta)
        both = constant - half_square
        if ratio != 1.0:
            both += 0.5 * (1.0 - ratio * ratio) * sum_squares(row)
        out[i, 0], out[i, 1] = both + s, both - s  # eq. 4


@kernel
def subtract_log_mixture(own_share, shares, others, log_c):
    """log_c −= log(own_share + Σ_m shares[m]·exp(others[m])): the denominator of the balance heuristic, in place.

    Parameters
    ----------
    own_share : float
        Share of the pairs' own batch among all samples.
    shares : float64 (m,)
        Shares of the other batches.
    others : float64 (m, n, 2)
        From `log_ratios`, for each of the other batches.
    log_c : float64 (n, 2)
        Log densities under the present search distribution, less those under the pairs' own.
    """
    for i in range(log_c.shape[0]):
        for member in range(2):
            top = 0.0
            for m in range(shares.shape[0]):
                top = max(top, others[m, i, member])
            total = own_share * math.exp(-top)
            for m in range(shares.shape[0]):
                total += shares[m] * math.exp(others[m, i, member] - top)
            log_c[i, member] -= top + math.log(total)  # eq. 4 over the mixture


@kernel
def keep_samples(log_ratios, uniform, alpha, out):
    """Which samples importance mixing keeps: each with probability min(1, (1 − alpha)·p'/p).

    Parameters
    ----------
    log_ratios : float64 (n, 2)
        log p'/p, with p the distribution that the samples count as drawn from, and p' the one that is wanted.
    uniform : float64 (n, 2)
        Random numbers from [0, 1).
    alpha : float
        Minimal refresh rate.
    out : int64 (n, 2)
        Filled with 0 and 1.
    """
    for i in range(out.shape[0]):
        for member in range(2):
            out[i, member] = uniform[i, member] < (1.0 - alpha) * math.exp(min(LOG_MAX, log_ratios[i, member]))


@kernel
def accept_samples(log_ratios, uniform, alpha, out):
    """Which fresh samples importance mixing takes: each with probability max(alpha, 1 − p/p').

    Parameters are those of `keep_samples`, but `log_ratios` is log p/p': samples are drawn from p' here.
    """
    for i in range(out.shape[0]):
        for member in range(2):
            out[i, member] = uniform[i, member] < max(alpha, -math.expm1(min(0.0, log_ratios[i, member])))


@kernel
def weigh_and_accumulate(weights, pairs, bounds, exponents, log_c, sums):
    """Weigh pairs and add their part of eq. 3's sums, in fixed point, reading each noise row from memory once.

    Four pairs at a time: their weights need the whole rows, which the accumulation then finds in the cache.

    Parameters
    ----------
    weights : NamedTuple or None
        Of a weight kernel; None to take `log_c` as given.
    pairs : Pairs
    bounds : Bounds
    exponents : FixedPoint
    log_c : float64 (n, 2)
        Unclipped log weights, filled unless they are given.
    sums : Sums
        Added to.

    Returns
    -------
    float
        The largest weight after clipping and before `log_reference` is subtracted, at most exp(709.7); 0 without
        pairs.
    """
    table, starts, utilities = pairs.table, pairs.starts, pairs.utilities
    scalars = sums.scalars
    n = starts.shape[0]
    gradient_scale = pairs.stretch * 2.0**exponents.gradient
    scalar_scale = 2.0**exponents.scalar
    a = np.empty(4)
    b = np.empty(4)
    both = np.empty(2)
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
            if weights is not None:
                log_c[i, 0], log_c[i, 1] = weight_kernels.log_weights(weights, starts[i])
            for member in range(2):
                clipped = min(bounds.log_clip, log_c[i, member])
                largest = max(largest, clipped)
                both[member] = math.exp(min(0.0, clipped - bounds.log_reference))  # c, eq. 4, clipped
                scalars[N_CLIPPED] += log_c[i, member] >= bounds.log_clip
            if bounds.per_pair:
                both[:] = 0.5 * (both[0] + both[1])
            for member in range(2):
                sign, c = 1.0 - 2.0 * member, both[member]
                cu = c * utilities[i, member]
                a[m] += sign * cu  # eq. 3: c₊u₊ − c₋u₋
                b[m] += sign * c
                scalars[SUM_C] += np.int64(np.rint(c * scalar_scale))  # eq. 3: Σc
                scalars[SUM_C2] += np.int64(np.rint(c * c * scalar_scale))
                scalars[SUM_CU] += np.int64(np.rint(cu * scalar_scale))  # eq. 3: Σcu
            a[m] *= gradient_scale
            b[m] *= gradient_scale
        if sums.gradient.shape[0] > 1:
            _add_rows_twice(sums.gradient[0], sums.gradient[1], table, group, a, b)
        else:
            _add_rows(sums.gradient[0], table, group, a)  # eq. 3: Σ (c₊u₊ − c₋u₋) epsilon
    return math.exp(min(LOG_MAX, largest))


# -- small kernels -------------------------------------------------------------------------------------------


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
