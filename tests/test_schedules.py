"""Schedules of sigma and the learning rate: by their formulas, and as an iteration follows them."""

import math

import numpy as np
import pytest
from fakes import build, rugged

from iwes_mpi.files.columns import rows_of
from iwes_mpi.method.schedules import factor, learning_rate_at
from iwes_mpi.settings.registry import SCHEDULES
from iwes_mpi.settings.wrong_input import WrongInput

MOVING = ["cosine", "exponential", "linear"]
ENDS = [0.2, 5.0, 1e-9, 3e9, 1.0]


def factors(name, end, iterations, beyond=0):
    return np.array([factor(name, end, i, iterations) for i in range(iterations + 1 + beyond)])


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", MOVING)
@pytest.mark.parametrize("iterations", [1, 2, 7, 1000])
def test_from_one_to_the_end(name, end, iterations):
    """Exactly at both ends, monotone in between, never outside; and it stays at the end, for ever after."""
    found = factors(name, end, iterations, beyond=5)
    assert found[0] == 1
    assert (found[iterations:] == end).all()
    assert factor(name, end, 10**15, iterations) == end
    steps = np.diff(found[: iterations + 1]) * math.copysign(1, end - 1)
    # Where steps are smaller than a value's rounding, that shows.
    assert (steps >= -2 * np.spacing(max(1, end))).all()
    if end != 1:
        assert (steps > 0).mean() > 0.9 or name == "exponential"
    assert (found >= min(1, end) * (1 - 1e-13)).all()
    assert (found <= max(1, end) * (1 + 1e-13)).all()


def test_linear_goes_in_equal_steps():
    np.testing.assert_allclose(factors("linear", 0.2, 8), np.linspace(1, 0.2, 9), rtol=1e-14)


def test_exponential_goes_by_equal_factors():
    for end in ENDS:
        np.testing.assert_allclose(factors("exponential", end, 8), np.geomspace(1, end, 9), rtol=1e-12)


def test_cosine_is_half_a_cosine():
    found = factors("cosine", 1 / 3, 12)
    np.testing.assert_allclose(found, 2 / 3 + np.cos(np.pi * np.arange(13) / 12) / 3, rtol=1e-14)
    steps = -np.diff(found)
    assert steps[0] == pytest.approx(steps[-1])
    assert steps.argmax() in (5, 6), "fastest in the middle"


def test_constant_never_changes():
    assert (factors("constant", 0.2, 8, beyond=5) == 1).all()


def test_every_schedule_is_tested():
    assert sorted([*MOVING, "constant"]) == list(SCHEDULES.names)


def test_an_unknown_one_is_refused():
    with pytest.raises(WrongInput, match="must be one of constant, cosine, exponential, linear, got 'stepwise'"):
        factor("stepwise", 0.1, 3, 10)


# -- in an iteration -----------------------------------------------------------------------------------------


def digests(world, noise, iterations=4, **settings):
    run, _ = build(world, noise, rugged, **{"learning_rate": 0.02, "iw_updates": 2} | settings)
    return [run.iterate().theta_digest for _ in range(iterations)]


def test_constant_leaves_theta_to_the_bit_as_it_is_without_schedules(world, noise):
    """Whatever the ends are; and so does every schedule that goes from a value to the same."""
    plain = digests(world, noise)
    assert len(set(plain)) == 4
    assert digests(world, noise, sigma_end=0.5, learning_rate_end=3.0, schedule_iterations=2) == plain
    for name in MOVING:
        ends = {"sigma_end": 1.0, "learning_rate_end": 1.0, "schedule_iterations": 3}
        assert digests(world, noise, sigma_schedule=name, learning_rate_schedule=name, **ends) == plain
    assert digests(world, noise, sigma_schedule="linear", sigma_end=0.8, schedule_iterations=3) != plain
    assert digests(world, noise, learning_rate_schedule="linear", learning_rate_end=0.5) != plain


@pytest.mark.parametrize("name", MOVING)
def test_sigma_of_an_iteration(world, noise, name):
    """It perturbs the population, measures the move in the log's KL, and is what the log says."""
    run, runner = build(
        world, noise, rugged, sigma_schedule=name, sigma_end=4.0, schedule_iterations=3, n_eval=0, iw_updates=1,
        learning_rate=0.01,
    )  # fmt: skip
    for iteration in range(6):
        theta = run.state.theta.copy()
        runner.tasks.clear()
        report = run.iterate()
        row, updates = rows_of(report)
        sigma = 0.05 * factor(name, 4.0, iteration, 3)
        assert row.sigma == sigma
        assert (sigma == 0.2) == (iteration >= 3)
        for task, start in zip(runner.tasks[::2], report.population.starts, strict=True):
            epsilon = noise.values[start : start + theta.size]
            np.testing.assert_allclose(task.theta, theta + sigma * epsilon, rtol=1e-6, atol=1e-7)
        assert updates[1].kl == pytest.approx((updates[0].update_norm / sigma) ** 2 / 2, rel=1e-9)


@pytest.mark.parametrize("name", MOVING)
def test_learning_rate_of_an_iteration(world, noise, name):
    """Gradient descent without momentum: each step, also of a reuse, is the scheduled rate times the gradient."""
    run, _ = build(
        world, noise, rugged, optimizer="sgd", momentum=0.0, l2=0.0, learning_rate=0.4, learning_rate_schedule=name,
        learning_rate_end=0.25, schedule_iterations=3, iw_updates=2,
    )  # fmt: skip
    for iteration in range(6):
        _, updates = rows_of(run.iterate())
        rate = 0.4 * factor(name, 0.25, iteration, 3)
        assert len(updates) == 3
        for update in updates:
            assert update.update_norm == pytest.approx(rate * update.grad_norm, rel=1e-12)


def test_steps_in_units_of_sigma_follow_its_schedule(world, noise):
    """Without a learning rate of its own, Adam's first step is step_in_sigma·sigma long, in every iteration's sigma."""
    settings = {"learning_rate": None, "step_in_sigma": 0.5, "sigma_schedule": "linear", "schedule_iterations": 2}
    run, _ = build(world, noise, rugged, l2=0.0, sigma_end=0.5, **settings)
    d = run.state.theta.size
    for iteration, sigma in ((0, 0.05), (1, 0.0375), (2, 0.025), (9, 0.025)):
        assert learning_rate_at(run.config, iteration, d) == pytest.approx(0.5 * sigma / math.sqrt(d))
    _, updates = rows_of(run.iterate())
    assert updates[0].update_norm == pytest.approx(0.5 * 0.05, rel=1e-3)
