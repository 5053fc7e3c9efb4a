"""ClipUp against the paper's algorithm in long double, and by what it promises."""

import numpy as np
import pytest

from iwes_mpi.method.optimizers import clipup

D = 30


def gradients(steps, seed=1):
    """Of lengths that differ by many orders of magnitude."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((steps, D)) * 10.0 ** rng.uniform(-9, 9, (steps, 1))


def published(gs, alpha, momentum, v_max):
    """Algorithm 1 of Toklu et al. (2020), on ascent directions: the velocities."""
    v, found = np.zeros(D, dtype=np.longdouble), []
    for g in gs.astype(np.longdouble):
        v = momentum * v + alpha * g / np.sqrt((g * g).sum())
        speed = np.sqrt((v * v).sum())
        if speed > v_max:
            v = v_max * v / speed
        found.append(v)
    return np.array(found, dtype=float)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("drift", [0.0, 3.0], ids=["random gradients", "gradients that agree"])
def test_it_is_the_published_algorithm(momentum, drift):
    gs = gradients(60)
    gs += drift * np.linalg.norm(gs, axis=1, keepdims=True) * np.ones(D) / np.sqrt(D)
    expected = published(gs, 0.15, momentum, 2 * 0.15)
    state = clipup.init(D)
    for t, g in enumerate(gs):
        state, step = clipup.update(state, -g, 0.15, momentum)  # `update` goes down, the paper up
        np.testing.assert_allclose(step, expected[t], rtol=1e-10, atol=1e-13)
        assert (state.velocity == step).all()
        assert state.step == t + 1
    if drift and momentum >= 0.9:
        assert np.linalg.norm(step) == pytest.approx(0.3, rel=1e-12), "the test wants the limit reached"


@pytest.mark.parametrize("scale", [1e-300, 1e-5, 1.0, 1e200])
def test_the_gradients_length_does_not_matter(scale):
    for g in gradients(5):
        one, other = (clipup.update(clipup.init(D), h, 0.1, 0.9)[1] for h in (g, scale * (g / np.linalg.norm(g))))
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_the_first_step_has_the_length_that_its_rate_says():
    g = gradients(1)[0]
    _, step = clipup.update(clipup.init(D), g, clipup.rate(0.7, D, 100), 0.9)
    assert np.linalg.norm(step) == pytest.approx(0.7)
    assert (np.sign(step) == -np.sign(g)).all()


def test_no_step_is_longer_than_twice_the_rate():
    state, longest = clipup.init(D), 0.0
    g = gradients(1)[0]
    for t in range(50):
        rate = 0.1 if t < 30 else 0.01  # the limit follows a schedule at once
        state, step = clipup.update(state, g, rate, 0.9)
        length = np.linalg.norm(step)
        assert length <= 2 * rate * (1 + 1e-12)
        longest = max(longest, length)
    assert longest == pytest.approx(0.2)


def test_a_gradient_of_zero_lets_the_velocity_fade():
    state, first = clipup.update(clipup.init(D), gradients(1)[0], 0.1, 0.9)
    state, second = clipup.update(state, np.zeros(D), 0.1, 0.9)
    np.testing.assert_allclose(second, 0.9 * first, rtol=1e-15)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_is_not_hidden(bad):
    g = gradients(1)[0]
    g[3] = bad
    with np.errstate(invalid="ignore"):
        assert not np.isfinite(clipup.update(clipup.init(D), g, 0.1, 0.9)[1]).all()
