"""Optimisers against the published formulas in their textbook form, in long double."""

import math

import numpy as np
import pytest

from iwes_mpi.method import optimizers

D = 40


def gradients(steps):
    """Of very different magnitudes, zeros among them."""
    rng = np.random.default_rng(4)
    scale = 10.0 ** rng.uniform(-6, 3, D)
    scale[:3] = 0
    return rng.standard_normal((steps, D)) * scale


def test_adam_is_kingma_and_ba_with_the_rearranged_step():
    """Algorithm 1 with its remark on efficiency: alpha_t = alpha·√(1 − β2^t)/(1 − β1^t), and epsilon unscaled."""
    state = optimizers.initial_state(D)
    gs = gradients(50).astype(np.longdouble)
    for t in range(1, 51):
        state, step = optimizers.adam(state, gs[t - 1].astype(float), 0.01)
        # m and v as explicit weighted sums of all gradients so far, not by recursion
        age = np.arange(t - 1, -1, -1)[:, None]
        m = (np.longdouble(0.1) * np.longdouble(0.9) ** age * gs[:t]).sum(axis=0)
        v = (np.longdouble(0.001) * np.longdouble(0.999) ** age * gs[:t] ** 2).sum(axis=0)
        alpha = 0.01 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        np.testing.assert_allclose(step, (-alpha * m / (np.sqrt(v) + 1e-8)).astype(float), rtol=1e-10, atol=0)
        assert state.step == t


def test_adam_moves_by_the_learning_rate_under_a_constant_gradient():
    """Bias correction: from the first step on, each parameter moves by lr against the gradient's sign."""
    state = optimizers.initial_state(4)
    for _ in range(20):
        state, step = optimizers.adam(state, np.array([3.0, -0.02, 1e4, -7.0]), 0.1)
        np.testing.assert_allclose(step, [-0.1, 0.1, -0.1, 0.1], rtol=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_sgd_is_gradient_descent_with_dampened_momentum(momentum):
    state = optimizers.initial_state(D)
    gs = gradients(30)
    for t in range(1, 31):
        state, step = optimizers.sgd(state, gs[t - 1], 0.3, momentum)
        weights = (1 - momentum) * momentum ** np.arange(t - 1, -1, -1.0)
        np.testing.assert_allclose(step, -0.3 * (weights[:, None] * gs[:t]).sum(axis=0), rtol=1e-10, atol=1e-12)
        assert state.step == t
        assert not state.v.any()


@pytest.mark.parametrize("step", [optimizers.adam, lambda *a: optimizers.sgd(*a, momentum=0.9)], ids=["adam", "sgd"])
def test_steps_are_pure(step):
    """Nothing given is changed, and the new state shares no memory with the old: a checkpoint may keep it."""
    state, g = step(optimizers.initial_state(D), gradients(1)[0], 0.1)[0], gradients(2)[1]
    copies = [x.copy() for x in (state.m, state.v, g)]
    first, second = step(state, g, 0.1), step(state, g, 0.1)
    assert all((a == b).all() for a, b in zip(copies, (state.m, state.v, g), strict=True))
    assert first[1].tobytes() == second[1].tobytes()
    assert not np.shares_memory(first[0].m, state.m)
    assert not np.shares_memory(first[1], first[0].m)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_finds_the_minimum_of_a_quadratic(name):
    target, theta, state = np.linspace(-1, 1, D), np.zeros(D), optimizers.initial_state(D)
    for _ in range(600):
        gradient = theta - target
        if name == "adam":
            state, step = optimizers.adam(state, gradient, 0.01)
        else:
            state, step = optimizers.sgd(state, gradient, 0.1, 0.9)
        theta = theta + step
    np.testing.assert_allclose(theta, target, atol=1e-3)


def test_zero_gradient_makes_no_step():
    for state, step in (
        optimizers.adam(optimizers.initial_state(3), np.zeros(3), 0.1),
        optimizers.sgd(optimizers.initial_state(3), np.zeros(3), 0.1, 0.9),
    ):
        assert not step.any()
        assert np.isfinite(state.v).all()
