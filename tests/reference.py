"""Naive references, written from the papers' equations in long double; slow, and independent of the package.

Salimans et al. (2017): Evolution Strategies as a Scalable Alternative to Reinforcement Learning, and its code.
Campos, Giro-i-Nieto and Torres (2018): Importance Weighted Evolution Strategies, eqs. 3 and 4.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

Long = np.longdouble


# -- Campos et al. (2018) ------------------------------------------------------------------------------------


def log_density(x, mean, sigma):
    """log N(x; mean, sigma²·I) of one sample, shapes (d,)."""
    z = (x - mean) / Long(sigma)
    return -np.sum(z * z) / 2 - x.size * np.log(Long(sigma) * np.sqrt(2 * Long(np.pi)))


def importance(epsilon, delta, sigma=0.02):
    """Eq. 4 as it stands, two densities per sample, and the score of each sample at the new center.

    Parameters
    ----------
    epsilon : (n, d)
    delta : (d,)
        (theta^{t+k} − theta^t) / sigma.

    Returns
    -------
    log_c : (n, 2)
    score : (n, 2, d)
        sigma·∇_theta log N(x; theta^{t+k}, sigma²·I).
    """
    n, d = epsilon.shape
    sigma = Long(sigma)
    old = np.linspace(-1, 1, d).astype(Long)  # theta^t; nothing may depend on it
    new = old + sigma * delta.astype(Long)  # theta^{t+k}
    log_c = np.empty((n, 2), dtype=Long)
    score = np.empty((n, 2, d), dtype=Long)
    for i in range(n):
        for member, sign in enumerate((1, -1)):
            x = old + sign * sigma * epsilon[i].astype(Long)
            log_c[i, member] = log_density(x, new, sigma) - log_density(x, old, sigma)
            score[i, member] = (x - new) / sigma
    return log_c, score


def mixture(batches, theta, sigma):
    """Weights of the samples of several populations as one drawn from their mixture, and their scores at theta.

    Veach and Guibas (1995), section 3.3: c = p(x) / Σ_m (N_m/N) p_m(x), whichever of them x was drawn from.

    Parameters
    ----------
    batches : sequence of (center, sigma, epsilon)
        Shapes (d,), (), (n, d).
    theta, sigma :
        The search distribution N(theta, sigma²·I) at which gradient and weights are wanted.

    Returns
    -------
    log_c : list of (n, 2)
    score : list of (n, 2, d)
        sigma·∇_theta log N(x; theta, sigma²·I).
    """
    theta, sigma = theta.astype(Long), Long(sigma)
    total = sum(len(epsilon) for _, _, epsilon in batches)
    log_c, score = [], []
    for center, own_sigma, epsilon in batches:
        log_c.append(np.empty((len(epsilon), 2), dtype=Long))
        score.append(np.empty((len(epsilon), 2, theta.size), dtype=Long))
        for i, row in enumerate(epsilon):
            for member, sign in enumerate((1, -1)):
                x = center.astype(Long) + sign * Long(own_sigma) * row.astype(Long)
                terms = [np.log(Long(len(e)) / total) + log_density(x, c.astype(Long), s) for c, s, e in batches]
                top = max(terms)
                denominator = top + np.log(sum(np.exp(term - top) for term in terms))
                log_c[-1][i, member] = log_density(x, theta, sigma) - denominator
                score[-1][i, member] = (x - theta) / sigma
    return log_c, score


class IWES(NamedTuple):
    """Eq. 3 for one population, and the diagnostics of its weights."""

    gradient: np.ndarray  # (d,) sigma times eq. 3
    sum_c2: Long
    ess: Long
    mean_weight: Long
    max_weight: Long
    clipped_share: float


def iwes(log_c, score, utilities, clip=math.inf, center=False) -> IWES:
    """Eq. 3 with clipped weights; centered: with the weighted mean utility as a baseline. `utilities` (n, 2)."""
    clip = Long(clip)
    c = np.exp(np.minimum(log_c, np.log(clip)))
    u = utilities.astype(Long)
    if center:
        u = u - np.sum(c * u) / np.sum(c)
    gradient = np.einsum("im,imd->d", c * u, score) / np.sum(c)
    ess = np.sum(c) ** 2 / (c.size * np.sum(c * c))
    return IWES(gradient, np.sum(c * c), ess, np.mean(c), np.max(c), float(np.mean(log_c >= np.log(clip))))


def normal_cdf(x):
    """Φ(x)."""
    return 0.5 * math.erfc(-x / math.sqrt(2))


def ess_clipped(r):
    """ESS of weights clipped at 1 when D is independent of the noise.

    log c ~ N(−r²/2, r²), so E min(1, c) = P(log c > 0) + E[c; log c < 0] and likewise for the square.
    """
    mean = normal_cdf(-r / 2) + normal_cdf(-r / 2)
    square = normal_cdf(-r / 2) + math.exp(r * r) * normal_cdf(-1.5 * r)
    return mean * mean / square


# -- Salimans et al. (2017) ----------------------------------------------------------------------------------


def centered_ranks(returns):
    """The reference code's fitness shaping: rank by argsort, to [−0.5, 0.5]. Ties are in arbitrary order."""
    flat = returns.ravel()
    ranks = np.empty(flat.size)
    ranks[np.argsort(flat)] = np.arange(flat.size)
    return (ranks / (flat.size - 1) - 0.5).reshape(returns.shape)


class Adam:
    """The reference code's Adam: a step size with both bias corrections in it."""

    def __init__(self, d, stepsize, beta1=0.9, beta2=0.999, epsilon=1e-8):
        self.stepsize, self.beta1, self.beta2, self.epsilon = stepsize, beta1, beta2, epsilon
        self.t, self.m, self.v = 0, np.zeros(d, dtype=Long), np.zeros(d, dtype=Long)

    def step(self, globalg):
        self.t += 1
        a = self.stepsize * math.sqrt(1 - self.beta2**self.t) / (1 - self.beta1**self.t)
        self.m = self.beta1 * self.m + (1 - self.beta1) * globalg
        self.v = self.beta2 * self.v + (1 - self.beta2) * (globalg * globalg)
        return -a * self.m / (np.sqrt(self.v) + self.epsilon)


class SGD:
    """The reference code's SGD with (dampened) momentum."""

    def __init__(self, d, stepsize, momentum=0.9):
        self.stepsize, self.momentum, self.v = stepsize, momentum, np.zeros(d, dtype=Long)

    def step(self, globalg):
        self.v = self.momentum * self.v + (1 - self.momentum) * globalg
        return -self.stepsize * self.v


def es_update(theta, optimizer, epsilon, returns, l2):
    """One update of the reference ES: theta after it. `epsilon` (n, d), `returns` (n, 2)."""
    ranks = centered_ranks(returns)
    g = (ranks[:, 0] - ranks[:, 1]).astype(Long) @ epsilon.astype(Long)
    g /= returns.size
    return theta + optimizer.step(-g + l2 * theta)


# -- policy --------------------------------------------------------------------------------------------------


def mlp(theta, sizes, x, bias=True, relu=False):
    """Tanh or ReLU hidden layers, linear output; `theta` holds per layer the weights (inputs, outputs), then biases."""
    x = np.asarray(x, dtype=np.float64)
    theta = np.asarray(theta, dtype=np.float64)
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        weights, biases, theta = np.split(theta, [inputs * outputs, (inputs + bias) * outputs])
        x = x @ weights.reshape(inputs, outputs) + (biases if bias else 0)
        if layer < len(sizes) - 2:
            x = np.where(x > 0, x, 0) if relu else np.tanh(x)
    assert theta.size == 0
    return x
