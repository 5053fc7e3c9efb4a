"""One iteration, through the real classes, against the published algorithms in long double."""

import math

import numpy as np
import pytest
import reference
from fakes import LENGTH, build, epsilons, rugged, smooth

from iwes_mpi.files.columns import rows_of
from iwes_mpi.method import learner
from iwes_mpi.method import state as states
from iwes_mpi.settings.registry import SHAPINGS, WEIGHT_KERNELS

# -- plain ES ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sizes", "updates"),
    [
        ({"learning_rate": 0.01}, (5, 7, 3), 15),
        ({"learning_rate": 0.01, "min_env_steps": 1500}, (5, 7, 3), 4),
        ({"learning_rate": 0.05, "l2": 0.3}, (5, 3), 10),
        ({"optimizer": "sgd", "learning_rate": 0.3, "momentum": 0.8}, (5, 7, 3), 10),
        ({"learning_rate": 0.01, "sigma": 0.02, "n_pairs": 12}, (111, 64, 64, 8), 4),
    ],
    ids=["adam", "several blocks", "linear policy, strong decay", "sgd", "paper's size"],
)
def test_without_reuse_it_is_the_reference_es(world, noise, settings, sizes, updates):
    """K = 0: theta after every one of several consecutive updates, from the same noise and the same returns."""
    run, _ = build(world, noise, rugged, sizes, **settings)
    config, theta = run.config, run.state.theta.astype(np.longdouble)
    start = theta.copy()
    if config.optimizer == "adam":
        optimizer = reference.Adam(theta.size, config.learning_rate)
    else:
        optimizer = reference.SGD(theta.size, config.learning_rate, config.momentum)
    for _ in range(updates):
        population = run.iterate().population
        if config.min_env_steps:
            assert population.starts.size == math.ceil(config.min_env_steps / (2 * config.n_pairs * LENGTH)) * 30
        assert len(set(population.returns.ravel())) == population.returns.size, "ties would leave the ranks open"
        epsilon = epsilons(noise, population.starts, theta.size)
        theta = reference.es_update(theta, optimizer, epsilon, population.returns, config.l2)
        moved = np.linalg.norm((theta - start).astype(float))
        error = np.linalg.norm((run.state.theta - theta).astype(float))
        assert error <= 1e-6 * moved
    assert moved > 0.01


def test_returns_belong_to_the_two_members_of_a_pair(world, noise):
    """returns[i] are of theta + sigma·epsilon_i and theta − sigma·epsilon_i, in this order."""
    run, runner = build(world, noise, n_eval=3)
    theta = run.state.theta.copy()
    population = run.iterate().population
    for start, returns in zip(population.starts, population.returns, strict=True):
        epsilon = noise.values[start : start + theta.size].astype(float)
        for sign, value in zip((1, -1), returns, strict=True):
            assert value == smooth((theta + sign * 0.05 * epsilon).astype(np.float32).astype(float), None)
    assert (population.eval_returns == smooth(theta.astype(np.float32).astype(float), None)).all()
    assert population.eval_returns.size == 3
    assert len(runner.tasks) == 63


# -- importance weighting, a whole iteration -----------------------------------------------------------------


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("clip", [1.0, 10.0, math.inf])
@pytest.mark.parametrize("weight_kernel", WEIGHT_KERNELS.names)
def test_reused_population_follows_eqs_3_and_4(world, noise, clip, center, weight_kernel):
    """K = 3: every reuse weighs the samples at the new theta, with one Adam going on through all updates."""
    k, lr, l2, sigma = 3, 0.01, 0.1, 0.05
    run, _ = build(
        world, noise, rugged, clip=clip, center=center, weight_kernel=weight_kernel, iw_updates=k,
        learning_rate=lr, l2=l2, sigma=sigma,
    )  # fmt: skip
    theta = run.state.theta.astype(np.longdouble)
    start, optimizer = theta.copy(), reference.Adam(theta.size, lr)
    seen = []
    for _ in range(3):
        report = run.iterate()
        rows = rows_of(report).updates
        epsilon = epsilons(noise, report.population.starts, theta.size)
        u = reference.centered_ranks(report.population.returns)
        start_of_iteration = theta.copy()
        assert [row.k for row in rows] == [0, 1, 2, 3]
        for row in rows:
            delta = (theta - start_of_iteration) / np.longdouble(sigma)
            log_c, score = reference.importance(epsilon, delta, sigma)
            expected = reference.iwes(log_c, score, u, clip, center)
            step = optimizer.step(-expected.gradient + l2 * theta)
            theta = theta + step
            seen.append(math.sqrt(2 * row.kl))
            assert row.accepted == 1
            assert row.kl == pytest.approx(float(delta @ delta) / 2, rel=1e-5, abs=1e-9)
            assert row.ess == pytest.approx(float(expected.ess), rel=1e-4)
            assert row.mean_weight == pytest.approx(float(expected.mean_weight), rel=1e-4)
            assert row.max_weight == pytest.approx(float(expected.max_weight), rel=1e-4)
            assert row.clipped_share == expected.clipped_share
            assert row.grad_norm == pytest.approx(np.linalg.norm(expected.gradient.astype(float)), rel=1e-4)
            assert row.update_norm == pytest.approx(np.linalg.norm(step.astype(float)), rel=1e-4)
        error = np.linalg.norm((run.state.theta - theta).astype(float))
        assert error <= 1e-5 * np.linalg.norm((theta - start).astype(float))
    assert 1 < max(seen) < 10, "the weights mattered"


# -- when to stop --------------------------------------------------------------------------------------------

REUSE = {"learning_rate": 0.02, "iw_updates": 6}


def column(report, name):
    return [getattr(row, name) for row in rows_of(report).updates]


def test_min_ess_stops_before_the_update(world, noise):
    free, _ = build(world, noise, rugged, **REUSE)
    ess = column(free.iterate(), "ess")
    assert len(ess) == 7
    threshold = (ess[2] + ess[3]) / 2
    stop = next(k for k, value in enumerate(ess) if value < threshold)
    assert 1 < stop < 6
    ruled, _ = build(world, noise, rugged, **REUSE, min_ess=threshold)
    report = ruled.iterate()
    assert column(report, "ess") == ess[: stop + 1]
    assert column(report, "accepted") == [1] * stop + [0]
    assert report.updates[-1].update_norm == 0
    assert rows_of(report).iteration.updates == stop
    short, _ = build(world, noise, rugged, **REUSE | {"iw_updates": stop - 1})
    short.iterate()
    assert ruled.state.theta.tobytes() == short.state.theta.tobytes()
    assert ruled.state.optimizer.step == stop


def test_the_first_update_is_always_made(world, noise):
    run, _ = build(world, noise, rugged, **REUSE, min_ess=1.0)
    assert column(run.iterate(), "accepted") == [1, 0]


@pytest.mark.parametrize("center", [False, True])
def test_lost_overlap_ends_the_reuse(world, noise, center):
    """A first step of r = 60 and more: recorded, no further update, and theta stays finite."""
    run, _ = build(world, noise, rugged, (111, 64, 64, 8), iw_updates=3, learning_rate=0.05, center=center)
    report = run.iterate()
    assert column(report, "accepted") == [1, 0]
    lost = rows_of(report).updates[-1]
    assert lost.kl > 60**2 / 2
    assert (lost.ess, lost.mean_weight, lost.update_norm) == (0, 0, 0)
    assert rows_of(report).iteration.updates == 1
    assert np.isfinite(run.state.theta).all()
    assert run.state.optimizer.step == 1
    assert run.iterate().updates[0].accepted, "the next population starts afresh"


def test_theta_that_diverges_is_an_error(world, noise):
    run, _ = build(world, noise, optimizer="sgd", learning_rate=1e200, momentum=0.0, shaping="none")
    with pytest.raises(learner.Diverged, match="`learning_rate` 1e\\+200 is too large"):  # and not a word from NumPy
        run.iterate()
    assert run.state.iteration == 0


# -- invalid returns -----------------------------------------------------------------------------------------


def test_population_without_a_valid_return_makes_no_update(world, noise):
    run, _ = build(world, noise, lambda theta, rng: math.nan, iw_updates=2)
    before, optimizer = run.state.theta.tobytes(), run.state.optimizer
    report = run.iterate()
    assert report.updates == []
    assert rows_of(report).iteration.updates == 0
    assert rows_of(report).iteration.invalid_episodes == 62
    assert run.state.theta.tobytes() == before
    assert run.state.optimizer is optimizer
    assert run.state.iteration == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", SHAPINGS.names)
def test_returns_that_are_not_finite_count_as_the_worst(world, noise, bad, method):
    start = build(world, noise)[0].state.theta

    def invalid(theta):
        return theta[0] - start[0] > theta[1] - start[1] + 0.02

    def partly(value):
        return lambda theta, rng: value if invalid(theta) else smooth(theta, rng)

    settings = {"shaping": method, "learning_rate": 0.01, "iw_updates": 1}
    run, _ = build(world, noise, partly(bad), **settings)
    report = run.iterate()
    finite = report.population.returns[np.isfinite(report.population.returns)]
    assert 10 < finite.size < 50
    assert rows_of(report).iteration.invalid_episodes == 60 - finite.size
    assert rows_of(report).iteration.return_min == finite.min()
    expected, _ = build(world, noise, partly(finite.min()), **settings)
    expected.iterate()
    assert run.state.theta.tobytes() == expected.state.theta.tobytes()


# -- bookkeeping of an iteration -----------------------------------------------------------------------------


def test_counters_and_digest(world, noise):
    run, _ = build(world, noise, n_eval=4)
    for iteration in range(3):
        before = run.state.theta.copy()
        row = rows_of(run.iterate()).iteration
        assert row.iteration == iteration
        assert row.episodes == 60 * (iteration + 1)
        assert row.env_steps == 60 * LENGTH * (iteration + 1), "evaluation episodes do not count"
        assert row.eval_episodes == 4
        assert row.episode_length_mean == LENGTH
        assert row.theta_norm == pytest.approx(np.linalg.norm(run.state.theta))
        assert row.update_norm == pytest.approx(np.linalg.norm(run.state.theta - before))
        assert row.theta_digest == states.digest(run.state.theta)
    assert states.digest(before) != row.theta_digest


def test_observation_statistics_of_the_chosen_episodes(world, noise):
    """Taken from the population alone, merged exactly, and frozen while a population is in use."""
    run, runner = build(world, noise, obs_stat_probability=0.4, iw_updates=2)
    for _ in range(3):
        before = run.state.obs.normalizer()
        runner.tasks.clear()
        run.iterate()
        assert all((task.normalizer == before).all() for task in runner.tasks)
        assert not any(task.observe for task in runner.tasks if (task.theta == runner.tasks[0].theta).all())
    seen = np.concatenate(runner.observations)
    assert 0.3 < len(runner.observations) / 180 < 0.5
    assert run.state.obs.n == pytest.approx(len(seen) + 0.01)
    np.testing.assert_allclose(run.state.obs.mean, seen.sum(axis=0) / (len(seen) + 0.01), rtol=1e-10)
    square = ((seen**2).sum(axis=0) + 0.01) / (len(seen) + 0.01)
    np.testing.assert_allclose(run.state.obs.m2 / run.state.obs.n, square - run.state.obs.mean**2, rtol=1e-9)


def test_common_random_numbers(world, noise):
    def draw(theta, rng):
        return rng.random()

    same, _ = build(world, noise, draw, common_random_numbers=True)
    returns = same.iterate().population.returns
    assert (returns[:, 0] == returns[:, 1]).all()
    assert len(set(returns[:, 0])) == 30
    own, _ = build(world, noise, draw)
    returns = [own.iterate().population.returns for _ in range(2)]
    assert len(set(np.ravel(returns))) == 120, "every episode of every iteration has its own"


# -- a new cap on episodes -------------------------------------------------------------------------------------------

GROWING = {"train_episode_steps": 4, "episode_schedule": "budget", "episode_budget": 2500, "iw_updates": 2}


def test_a_new_cap_leaves_ranks_weights_and_moments_alone(world, noise):
    """The objective here does not know of caps, so all that follows from one would show as other bits of theta."""
    runs = [build(world, noise, **GROWING | {"episode_schedule": name})[0] for name in ("budget", "constant")]
    caps = []
    for run in runs:
        run.state.episode_cap = 4
    for _ in range(5):
        growing, constant = (run.iterate() for run in runs)
        caps.append(growing.episode_cap)
        assert constant.episode_cap == 4
        assert runs[0].state.theta.tobytes() == runs[1].state.theta.tobytes()
        for one, other in zip(runs[0].state.optimizer, runs[1].state.optimizer, strict=True):
            np.testing.assert_array_equal(one, other)
    assert len(set(caps)) > 2


def test_populations_under_another_cap_are_not_used_again(world, noise):
    run, _ = build(world, noise, reuse_batches=3, **GROWING)
    run.state.episode_cap = cap = 4
    kept = []
    for _ in range(6):
        run.iterate()
        kept.append(len(run.state.drawn))
        if run.state.episode_cap != cap:
            assert kept[-1] == 0
            assert run.state.history.size == 0
        cap = run.state.episode_cap
    assert 0 in kept
    assert max(kept) > 0, "as long as the cap stays, they are kept"
