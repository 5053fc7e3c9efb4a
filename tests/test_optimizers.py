"""Optimizers against the published formulas in their textbook form, in long double."""

import math

import numpy as np
import pytest

from iwes_mpi.method import optimizers
from iwes_mpi.method.optimizers import adam, optimizer_named, sgd
from iwes_mpi.settings.registry import OPTIMIZERS

D = 40


def gradients(steps):
    """Of very different magnitudes, zeros among them."""
    rng = np.random.default_rng(4)
    scale = 10.0 ** rng.uniform(-6, 3, D)
    scale[:3] = 0
    return rng.standard_normal((steps, D)) * scale


@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9, 0.99])
def test_adam_is_kingma_and_ba_with_the_rearranged_step(beta1):
    """Algorithm 1 with its remark on efficiency: alpha_t = alpha·√(1 − β2^t)/(1 − β1^t), and epsilon unscaled."""
    state = adam.init(D)
    gs = gradients(50).astype(np.longdouble)
    for t in range(1, 51):
        state, step = adam.update(state, gs[t - 1].astype(float), 0.01, beta1)
        # m and v as explicit weighted sums of all gradients so far, not by recursion
        age = np.arange(t - 1, -1, -1)[:, None]
        m = ((1 - np.longdouble(beta1)) * np.longdouble(beta1) ** age * gs[:t]).sum(axis=0)
        v = (np.longdouble(0.001) * np.longdouble(0.999) ** age * gs[:t] ** 2).sum(axis=0)
        alpha = 0.01 * math.sqrt(1 - 0.999**t) / (1 - beta1**t)
        # Where terms of both signs nearly cancel, rounding shows: it is measured in the size of the terms.
        terms = ((1 - beta1) * beta1**age * np.abs(gs[:t])).sum(axis=0)
        error = np.abs(step - (-alpha * m / (np.sqrt(v) + 1e-8)))
        assert (error <= 1e-13 * alpha * terms / (np.sqrt(v) + 1e-8)).all()
        assert state.step == t


def test_adam_moves_by_the_learning_rate_under_a_constant_gradient():
    """Bias correction: from the first step on, each parameter moves by lr against the gradient's sign."""
    state = adam.init(4)
    for _ in range(20):
        state, step = adam.update(state, np.array([3.0, -0.02, 1e4, -7.0]), 0.1, 0.9)
        np.testing.assert_allclose(step, [-0.1, 0.1, -0.1, 0.1], rtol=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_sgd_is_gradient_descent_with_dampened_momentum(momentum):
    state = sgd.init(D)
    gs = gradients(30)
    for t in range(1, 31):
        state, step = sgd.update(state, gs[t - 1], 0.3, momentum)
        weights = (1 - momentum) * momentum ** np.arange(t - 1, -1, -1.0)
        velocity = (weights[:, None] * gs[:t]).sum(axis=0)
        np.testing.assert_allclose(step, -0.3 * velocity, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(state.velocity, velocity, rtol=1e-10, atol=1e-12)
        assert state.step == t


@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_steps_are_pure(name):
    """Nothing given is changed, and the new state shares no memory with the old: a checkpoint may keep it."""
    optimizer = optimizer_named(name)
    state, g = optimizer.update(optimizer.init(D), gradients(1)[0], 0.1, 0.9)[0], gradients(2)[1]
    vectors = [x for x in state if isinstance(x, np.ndarray)]
    copies = [x.copy() for x in (*vectors, g)]
    first, second = optimizer.update(state, g, 0.1, 0.9), optimizer.update(state, g, 0.1, 0.9)
    assert all((a == b).all() for a, b in zip(copies, (*vectors, g), strict=True))
    assert first[1].tobytes() == second[1].tobytes()
    made = [x for x in first[0] if isinstance(x, np.ndarray)]
    assert len(vectors) == len(made) > 0
    for new in made:
        assert not any(np.shares_memory(new, old) for old in (*vectors, g))
        assert not np.shares_memory(new, first[1])


@pytest.mark.parametrize(("name", "learning_rate"), [("adam", 0.01), ("sgd", 0.1)])
def test_finds_the_minimum_of_a_quadratic(name, learning_rate):
    optimizer = optimizer_named(name)
    target, theta, state = np.linspace(-1, 1, D), np.zeros(D), optimizer.init(D)
    for _ in range(600):
        state, step = optimizer.update(state, theta - target, learning_rate, 0.9)
        theta = theta + step
    np.testing.assert_allclose(theta, target, atol=1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_zero_gradient_makes_no_step(name):
    optimizer = optimizer_named(name)
    state, step = optimizer.update(optimizer.init(3), np.zeros(3), 0.1, 0.9)
    assert not step.any()
    assert all(np.isfinite(field).all() for field in state)


# -- the state of an optimizer in a checkpoint ---------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_saved_and_restored(name):
    """The state goes by its own field names, and comes back as its own kind with the same bits."""
    optimizer = optimizer_named(name)
    state, _ = optimizer.update(optimizer.init(D), gradients(1)[0], 0.1, 0.9)
    fields = optimizers.saved(state)
    assert tuple(fields) == optimizer.State._fields
    again = optimizers.restored(name, fields)
    assert type(again) is optimizer.State
    for before, after in zip(state, again, strict=True):
        assert np.asarray(before).tobytes() == np.asarray(after).tobytes()


def test_the_state_of_another_optimizer_is_refused():
    with pytest.raises(ValueError, match=r"holds step, velocity, adam needs \('step', 'm', 'v'\)"):
        optimizers.restored("adam", optimizers.saved(sgd.init(D)))
    with pytest.raises(ValueError, match="m, step, v, sgd needs"):
        optimizers.restored("sgd", optimizers.saved(adam.init(D)))
