"""The updates made from one population, rule by rule, against formulas and brute force in long double."""

import math

import numpy as np
import pytest
import reference

from iwes_mpi.method import kernels
from iwes_mpi.method.batch import Batch
from iwes_mpi.method.estimator import Estimator
from iwes_mpi.method.phases import Phases
from iwes_mpi.method.report import Stop
from iwes_mpi.method.state import initial_state
from iwes_mpi.method.updates import Updater
from iwes_mpi.mpi.group import alone
from iwes_mpi.policy import network
from iwes_mpi.settings.config import Config

SIZES = network.layout(9, (), 4)  # 40 parameters
D, SIGMA = 40, 0.05
BASE = {"sigma": SIGMA, "learning_rate": 0.01, "l2": 0.0, "iw_updates": 4, "min_ess": 0.0, "clip": 1.0}


def epsilons(noise, batch):
    return np.stack([noise.values[start : start + D] for start in batch.starts]).astype(np.longdouble)


def start(noise, n=25, seed=1, layout=SIZES):
    """A state, and a population around its theta."""
    rng = np.random.default_rng(seed)
    state = initial_state(3, layout, "adam")
    starts = rng.integers(0, noise.values.size - state.theta.size, size=n)
    utilities = rng.permutation(2 * n).reshape(n, 2) / (2 * n - 1) - 0.5
    return state, Batch(state.theta.copy(), SIGMA, starts, utilities)


def run(noise, state, batches, **settings):
    config = Config(**BASE | settings)
    updater = Updater(config, alone(), noise, Phases())
    return updater.update(state, batches, config.learning_rate)


# -- the trust region ----------------------------------------------------------------------------------------


def test_a_step_is_shortened_to_its_bound_and_keeps_its_direction(noise):
    free, batch = start(noise)
    run(noise, free, [batch], iw_updates=0)
    move = free.theta - batch.center
    r = np.linalg.norm(move) / SIGMA
    for bound in (0.1 * r, 0.9 * r, 1.1 * r):
        state, batch = start(noise)
        run(noise, state, [batch], iw_updates=0, max_step=bound)
        np.testing.assert_allclose(state.theta - batch.center, move * min(1, bound / r), rtol=1e-9, atol=1e-15)
        assert (state.optimizer.m == free.optimizer.m).all(), "Adam's moments are of gradients, not of steps"


def test_a_step_out_of_the_trust_region_ends_on_its_edge(noise):
    free, batch = start(noise)
    updates = run(noise, free, [batch])
    assert [u.stop for u in updates] == [Stop.NOT] * 4 + [Stop.UPDATES]
    bound = (updates[2].kl + updates[3].kl) / 2
    state, batch = start(noise)
    bounded = run(noise, state, [batch], max_kl=bound)
    assert [u.kl for u in bounded] == [u.kl for u in updates[:3]]
    assert [u.stop for u in bounded] == [Stop.NOT, Stop.NOT, Stop.KL]
    assert bounded[-1].accepted
    delta = (state.theta - batch.center) / SIGMA
    assert delta @ delta / 2 == pytest.approx(bound, rel=1e-12)
    reached, batch = start(noise)
    run(noise, reached, [batch], iw_updates=2)
    move = reached.theta - batch.center
    assert np.linalg.norm(move) > SIGMA * math.sqrt(2 * bound)
    cosine = move @ (state.theta - batch.center) / np.linalg.norm(move) / np.linalg.norm(state.theta - batch.center)
    assert cosine == pytest.approx(1, abs=1e-12)
    assert (state.optimizer.v == reached.optimizer.v).all()


def test_lost_overlap_and_the_ess_rule_say_why(noise):
    state, batch = start(noise)
    far = run(noise, state, [batch], learning_rate=3.0)
    assert [u.stop for u in far] == [Stop.NOT, Stop.OVERLAP]
    state, batch = start(noise)
    free = run(noise, state, [batch])
    threshold = (free[1].estimate.ess + free[2].estimate.ess) / 2
    state, batch = start(noise)
    ruled = run(noise, state, [batch], min_ess=threshold)
    assert [u.stop for u in ruled] == [Stop.NOT, Stop.NOT, Stop.ESS]
    assert [u.accepted for u in ruled] == [True, True, False]


# -- the length of a step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(), (16, 16)])
@pytest.mark.parametrize("sigma", [0.02, 0.3])
def test_step_in_sigma_is_the_length_of_the_first_step(noise, hidden, sigma):
    from iwes_mpi.method.optimizers import optimizer_named

    layout = network.layout(9, hidden, 4)
    state, batch = start(noise, layout=layout)
    batch = batch._replace(sigma=sigma)
    rate = optimizer_named("adam").rate(0.7 * sigma, state.theta.size, batch.starts.size)
    run(noise, state, [batch], iw_updates=0, sigma=sigma, learning_rate=rate)
    assert np.linalg.norm(state.theta - batch.center) / sigma == pytest.approx(0.7, rel=1e-4)


# -- which samples count -------------------------------------------------------------------------------------


def test_cross_fitting_weighs_each_half_in_turn(noise):
    """Each update is that of the estimator on every other pair, and nothing of the others enters."""
    state, batch = start(noise)
    thetas = []
    updates = run(noise, state, [batch], cross_fit=True, iw_updates=3)
    replay, _ = start(noise)
    adam = reference.Adam(D, 0.01)
    theta = replay.theta.astype(np.longdouble)
    for k, update in enumerate(updates):
        half = batch.half(k % 2)
        assert half.starts.tolist() == batch.starts[k % 2 :: 2].tolist()
        log_c, score = reference.importance(epsilons(noise, half), (theta - batch.center) / SIGMA, SIGMA)
        expected = reference.iwes(log_c, score, half.utilities, 1.0)
        assert update.estimate.ess == pytest.approx(float(expected.ess), rel=1e-4)
        theta = theta + adam.step(-expected.gradient)
        thetas.append(theta)
    np.testing.assert_allclose(state.theta, thetas[-1].astype(float), rtol=1e-5, atol=1e-7)


def test_cross_fitting_removes_the_in_sample_excess(noise):
    """Var(s) is r²(1 + (2/π)·d/n) on the pairs that theta followed with Adam's first step, and r² on the others."""
    d, n = 2000, 200
    rng = np.random.default_rng(5)
    starts = rng.permutation(noise.values.size // d)[:n] * d  # no two overlap
    batch = Batch(np.zeros(d), 1.0, starts, rng.permutation(2 * n).reshape(n, 2) / (2 * n - 1) - 0.5)
    halves = batch.half(0), batch.half(1)
    gradient = Estimator(alone(), noise, Phases()).estimate([halves[0]], batch.center).gradient
    delta = np.sign(gradient) / math.sqrt(d)  # r = 1
    spread = [float(np.mean((np.stack([noise.values[s : s + d] for s in h.starts]) @ delta) ** 2)) for h in halves]
    assert spread[0] == pytest.approx(1 + 2 / math.pi * d / (n / 2), rel=0.25)
    assert spread[1] == pytest.approx(1, rel=0.4)
    assert spread[0] > 5 * spread[1]


@pytest.mark.parametrize("clip", [1.0, math.inf])
def test_weights_per_pair(noise, clip):
    """Both members get the mean of their two weights; eq. 3 is otherwise as it is."""
    _, batch = start(noise)
    rng = np.random.default_rng(8)
    delta = 0.8 * rng.standard_normal(D) / math.sqrt(D)
    log_c, score = reference.importance(epsilons(noise, batch), delta, SIGMA)
    c = np.exp(np.minimum(log_c, np.log(np.longdouble(clip))))
    c[:] = c.mean(axis=1, keepdims=True)
    gradient = np.einsum("im,imd->d", c * batch.utilities, score) / c.sum()
    found = Estimator(alone(), noise, Phases(), clip=clip, per_pair=True).estimate(
        [batch], batch.center + SIGMA * delta
    )
    np.testing.assert_allclose(found.gradient, gradient.astype(float), rtol=2e-4, atol=1e-6)
    assert found.ess == pytest.approx(float(c.sum() ** 2 / (c.size * (c * c).sum())), rel=1e-5)


def test_the_control_repeats_the_first_gradient(noise):
    """K + 1 steps of Adam on one gradient, weight decay at the present theta."""
    state, batch = start(noise)
    updates = run(noise, state, [batch], repeat_gradient=True, l2=0.1)
    log_c, score = reference.importance(epsilons(noise, batch), np.zeros(D), SIGMA)
    gradient = reference.iwes(log_c, score, batch.utilities, 1.0).gradient
    adam, theta = reference.Adam(D, 0.01), batch.center.astype(np.longdouble)
    for _ in range(5):
        theta = theta + adam.step(-gradient + np.longdouble(0.1) * theta)
    assert len(updates) == 5
    np.testing.assert_allclose(state.theta, theta.astype(float), rtol=1e-6, atol=1e-9)


def test_older_populations_add_to_the_effective_samples(noise):
    """The ESS rule counts in samples of the newest population, so two that lie close allow more than one does."""
    state, newest = start(noise)
    older = start(noise, seed=2)[1]._replace(center=newest.center + 1e-4)
    gentle = {"min_ess": 1.0, "iw_updates": 1, "clip": math.inf, "learning_rate": 0.002}
    updates = run(noise, state, [older, newest], **gentle)
    assert updates[1].estimate.ess < 1
    assert [u.accepted for u in updates] == [True, True]
    state, newest = start(noise)
    assert [u.accepted for u in run(noise, state, [newest], **gentle)] == [True, False]


def test_a_theta_that_is_infinite_ends_the_updates(noise):
    state, batch = start(noise)
    updates = run(noise, state, [batch], learning_rate=1e308, optimizer="adam")
    assert len(updates) <= 2
    assert not math.isfinite(kernels.norm(state.theta)) or updates[-1].stop is Stop.OVERLAP
