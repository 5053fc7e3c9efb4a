"""The estimator and one iteration, through the real classes, against the published algorithms in long double."""

import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import reference

from iwes_mpi.method import es, kernels
from iwes_mpi.method import state as states
from iwes_mpi.mpi.group import split
from iwes_mpi.policy import network, obs_stats
from iwes_mpi.rollouts.episode import Episode
from iwes_mpi.settings.config import Config

LENGTH = 10  # steps of every fake episode


class FakeRunner:
    """An objective in place of an environment; remembers what it was asked."""

    description = "a fake"

    def __init__(self, objective, sizes=(5, 7, 3)):
        self.network = network.layout(sizes[0], sizes[1:-1], sizes[-1])
        self.objective = objective
        self.tasks, self.observations = [], []

    def run(self, task):
        self.tasks.append(task._replace(theta=task.theta.copy(), normaliser=task.normaliser.copy()))
        value = float(self.objective(task.theta.astype(float), task.rng))
        if not task.observe:
            return Episode(value, LENGTH, None)
        seen = task.rng.normal(3, 2, size=(LENGTH, int(self.network.sizes[0])))
        self.observations.append(seen)
        mean = seen.mean(axis=0)
        packed = obs_stats.pack(obs_stats.ObsStats(LENGTH, mean, ((seen - mean) ** 2).sum(axis=0)))
        return Episode(value, LENGTH, packed)

    def close(self):
        pass


def rugged(theta, rng):
    """Different for every parameter vector and every episode."""
    return np.cos(3 * theta).sum() + theta[0] + 0.1 * rng.standard_normal()


def smooth(theta, rng):
    return -np.sum((theta - 0.3) ** 2)


class NeverStop:
    """In place of `StopFlag`, which takes over the process's signals."""

    @staticmethod
    def pending():
        return False


def build(world, noise, objective=smooth, sizes=(5, 7, 3), **settings):
    """A run on one rank; returns it and its runner."""
    config = Config(**{"n_pairs": 30, "min_env_steps": 0, "n_eval": 2, "sigma": 0.05, **settings})
    runner = FakeRunner(objective, sizes)
    state = states.initial_state(3, runner.network)
    return es.EvolutionStrategies(config, world, runner, noise, state, NeverStop), runner


def epsilons(noise, starts, d):
    return np.stack([noise.values[start : start + d] for start in starts]).astype(np.longdouble)


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
@pytest.mark.parametrize("weight_kernel", kernels.WEIGHT_KERNELS)
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
        epsilon = epsilons(noise, report.population.starts, theta.size)
        u = reference.centered_ranks(report.population.returns)
        centre = theta.copy()
        assert [row["k"] for row in report.updates] == [0, 1, 2, 3]
        for row in report.updates:
            delta = (centre - theta) / np.longdouble(sigma)
            log_c, score = reference.importance(epsilon, delta, sigma)
            expected = reference.iwes(log_c, score, u, clip, center)
            step = optimizer.step(-expected.gradient + l2 * theta)
            theta = theta + step
            seen.append(math.sqrt(2 * row["kl"]))
            assert row["accepted"] == 1
            assert row["kl"] == pytest.approx(float(delta @ delta) / 2, rel=1e-5, abs=1e-9)
            assert row["ess"] == pytest.approx(float(expected.ess), rel=1e-4)
            assert row["mean_weight"] == pytest.approx(float(expected.mean_weight), rel=1e-4)
            assert row["max_weight"] == pytest.approx(float(expected.max_weight), rel=1e-4)
            assert row["clipped_share"] == expected.clipped_share
            assert row["grad_norm"] == pytest.approx(np.linalg.norm(expected.gradient.astype(float)), rel=1e-4)
            assert row["update_norm"] == pytest.approx(np.linalg.norm(step.astype(float)), rel=1e-4)
        error = np.linalg.norm((run.state.theta - theta).astype(float))
        assert error <= 1e-5 * np.linalg.norm((theta - start).astype(float))
    assert 1 < max(seen) < 10, "the weights mattered"


# -- the estimator -------------------------------------------------------------------------------------------


def estimator(world, noise, **settings):
    return es.GradientEstimator(Config(**settings), world, noise, es.Phases())


def estimate(world, noise, starts, utilities, delta, **settings):
    return estimator(world, noise, **settings).estimate(starts, utilities, delta, kernels.sum_squares(delta))


def assert_finite(found):
    assert all(math.isfinite(x) for x in found[1:]), found[1:]
    assert found.gradient is None or np.isfinite(found.gradient).all()


@pytest.mark.parametrize("fitted", [False, True], ids=["independent", "fitted"])
@pytest.mark.parametrize("d", [11_848, 96_520, 324_104])
def test_estimates_match_long_double(world, noise, d, fitted):
    rng = np.random.default_rng(d)
    n = 3 if d > 2e5 else 6
    starts = rng.integers(0, noise.values.size - d + 1, size=n)
    epsilon = epsilons(noise, starts, d)
    utilities = shaping.centered_rank(rng.standard_normal((n, 2)))
    direction = epsilon.sum(axis=0).astype(float) if fitted else rng.standard_normal(d)
    for r in (0.0, 0.3, 1.0, 5.0) if d < 2e4 else (1.0, 5.0):
        delta = direction * (r / np.linalg.norm(direction))
        log_c, score = reference.importance(epsilon, delta)
        for clip in (1.0, 10.0, math.inf):
            for center in (False, True):
                expected = reference.iwes(log_c, score, utilities, clip, center)
                norm = np.linalg.norm(expected.gradient.astype(float))
                methods = kernels.WEIGHT_KERNELS if d < 2e4 or clip == 1 else ("cancelled",)
                for method in methods:
                    found = estimate(
                        world, noise, starts, utilities, delta, clip=clip, center=center, weight_kernel=method
                    )
                    assert_finite(found)
                    assert np.linalg.norm((found.gradient - expected.gradient).astype(float)) <= 1e-4 * norm
                    # A weight is rounded to 2^-50 or so, of 1 or of the largest one.
                    unit = float(n * 2.0**-50 / expected.sum_c2 * (1 if clip == 1 else expected.max_weight**2))
                    assert found.ess == pytest.approx(float(expected.ess), rel=1e-4 + unit)
                    assert found.clipped_share == expected.clipped_share
                    if expected.max_weight < 1e300:
                        assert found.mean_weight == pytest.approx(float(expected.mean_weight), rel=1e-4)
                        assert found.max_weight == pytest.approx(float(expected.max_weight), rel=1e-4)


@pytest.mark.parametrize("method", kernels.WEIGHT_KERNELS)
@pytest.mark.parametrize("d", [2, 11_848, 324_104])
def test_nothing_is_ever_nan_or_inf(world, noise, d, method):
    """Near and far, clipped or not, towards the noise or away from it. Overlap that is lost gives no gradient."""
    rng = np.random.default_rng(d)
    n = 2
    starts = rng.integers(0, noise.values.size - d + 1, size=n)
    utilities = np.array([[0.5, -0.5], [0.0, 0.25]])
    towards = epsilons(noise, starts, d).sum(axis=0).astype(float)
    for direction in (rng.standard_normal(d), towards, -towards):
        for r in (0.0, 1e-12, 20.0, 60.0, 1e4) if d < 1e5 else (60.0,):
            delta = direction * (r / np.linalg.norm(direction))
            for clip in (1e-3, 1.0, 10.0, math.inf):
                for center in (False, True):
                    found = estimate(
                        world, noise, starts, utilities, delta, clip=clip, center=center, weight_kernel=method
                    )
                    assert_finite(found)
                    assert 0 <= found.ess <= 1 + 1e-12
                    assert found.gradient is not None or found.ess == 0


def test_lost_overlap_gives_no_gradient(world, noise):
    """Independent of the noise, r = 60 leaves weights of exp(−1800)."""
    d = 11_848
    delta = np.full(d, 60 / math.sqrt(d))
    starts = np.arange(5) * d
    lost = estimate(world, noise, starts, np.ones((5, 2)), delta)
    assert lost.gradient is None
    assert (lost.ess, lost.mean_weight, lost.clipped_share) == (0, 0, 0)
    # Without a clip the estimator is self-normalised: one sample carries everything.
    alone = estimate(world, noise, starts, np.ones((5, 2)), delta, clip=math.inf)
    assert alone.gradient is not None
    assert alone.ess == pytest.approx(0.1, rel=0.05)


def test_all_utilities_zero(world, noise):
    found = estimate(world, noise, np.arange(3), np.zeros((3, 2)), np.full(50, 0.1))
    assert not found.gradient.any()


@pytest.mark.parametrize("clip", [0.5, 1.0, 10.0, math.inf])
def test_at_the_centre_all_weights_are_equal(world, noise, clip):
    """k = 0: plain ES whatever the clip; ESS is 1."""
    rng = np.random.default_rng(1)
    starts, utilities = rng.integers(0, 10**6, 8), rng.standard_normal((8, 2))
    found = estimate(world, noise, starts, utilities, np.zeros(99), clip=clip)
    plain = (utilities[:, 0] - utilities[:, 1]) @ epsilons(noise, starts, 99).astype(float) / 16
    np.testing.assert_allclose(found.gradient, plain, rtol=1e-9, atol=1e-12)
    assert found.ess == pytest.approx(1, rel=1e-12)
    assert found.mean_weight == found.max_weight == pytest.approx(min(1, clip), rel=1e-12)


class ThreadGroup:
    """Ranks of one group as threads."""

    def __init__(self, rank, size, shared):
        self.rank, self.size, self._shared = rank, size, shared

    def slice(self, n):
        return split(n, self.size, self.rank)

    def _gather(self, value):
        self._shared.slots[self.rank] = value
        self._shared.barrier.wait(30)
        found = list(self._shared.slots)
        self._shared.barrier.wait(30)
        return found

    def sum_integers(self, values):
        values[:] = sum(self._gather(values.copy()))

    def maximum(self, value):
        return max(self._gather(value))


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("clip", [1.0, 10.0, math.inf])
def test_the_same_bits_on_any_number_of_ranks(noise, clip, center):
    rng = np.random.default_rng(4)
    n, d = 10, 1234
    starts, utilities = rng.integers(0, 10**6, n), rng.standard_normal((n, 2))
    delta = rng.standard_normal(d) * 0.05

    def on_ranks(size):
        shared = SimpleNamespace(slots=[None] * size, barrier=threading.Barrier(size))
        results = [None] * size

        def rank_main(rank):
            group = ThreadGroup(rank, size, shared)
            results[rank] = estimate(group, noise, starts, utilities, delta, clip=clip, center=center)

        threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return [(found.gradient.tobytes(), found[1:]) for found in results]

    alone = on_ranks(1)[0]
    for size in (2, 3, 7, 13):
        assert on_ranks(size) == [alone] * size


# -- the estimator's statistics ------------------------------------------------------------------------------


def populations(rng, count, n, d):
    """Independent noise, with no overlap between pairs."""
    for _ in range(count):
        yield SimpleNamespace(values=rng.standard_normal(n * d, dtype=np.float32), prefix=np.zeros(1))


@pytest.mark.parametrize("r", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("objective", ["linear", "quadratic"])
def test_estimator_is_unbiased(world, objective, r):
    """Mean over populations against sigma times the known gradient of E F at theta^{t+k}; D independent, no clip.

    Gaussian smoothing leaves the gradient of a linear and of a quadratic function as it is. The self-normalised
    estimator's bias, of order 1/n, is a fiftieth of the standard error at this n.
    """
    d, n, count, sigma = 6, 20_000, 20, 0.5
    rng = np.random.default_rng(17)
    w, m = rng.standard_normal(d), rng.standard_normal(d)
    a = rng.standard_normal((d, d))
    a = a @ a.T / d
    delta = rng.standard_normal(d)
    delta *= r / np.linalg.norm(delta)
    old = rng.standard_normal(d)
    new = old - sigma * delta

    def f(x):
        y = x - m
        return 1.5 + x @ w if objective == "linear" else x @ w - 1.5 - 0.5 * np.sum((y @ a) * y, axis=-1)

    gradient = w if objective == "linear" else w - a @ (new - m)
    weigh = estimator(world, None, clip=math.inf, center=False, shaping="none")
    found, mean_f = [], []
    for noise in populations(rng, count, n, d):
        weigh._noise = noise
        epsilon = noise.values.reshape(n, d).astype(float)
        utilities = np.stack([f(old + sigma * epsilon), f(old - sigma * epsilon)], axis=1)
        found.append(weigh.estimate(np.arange(n) * d, utilities, delta, kernels.sum_squares(delta)).gradient)
        mean_f.append(utilities.mean())
    error = np.std(found, axis=0, ddof=1) / math.sqrt(count)
    z = (np.mean(found, axis=0) - sigma * gradient) / error
    assert np.abs(z).max() < 3.9  # d = 6 values of Student's t with 19 degrees of freedom: p = 0.006
    # The test has power: sigma, and eq. 3's term along D, are worth many standard errors.
    assert np.linalg.norm(sigma * gradient) > 50 * np.linalg.norm(error)
    if r > 0:
        assert abs(np.mean(mean_f)) * r > 20 * np.linalg.norm(error)


def weights_of_independent_move(world, r, clip):
    n, d = 100_000, 16
    rng = np.random.default_rng(23)
    noise = next(populations(rng, 1, n, d))
    delta = rng.standard_normal(d)
    delta *= r / np.linalg.norm(delta)
    return estimate(world, noise, np.arange(n) * d, np.ones((n, 2)), delta, clip=clip)


@pytest.mark.parametrize(("r", "stated"), [(0.5, 0.93), (1, 0.78), (2, 0.43), (3, 0.19)])
def test_clipped_weights_of_an_independent_move(world, r, stated):
    """ESS and mean weight against their closed forms, when theta did not move along this very noise."""
    found = weights_of_independent_move(world, r, 1.0)
    assert reference.ess_clipped(r) == pytest.approx(stated, abs=0.005)
    assert found.ess == pytest.approx(reference.ess_clipped(r), rel=0.01)
    assert found.mean_weight == pytest.approx(2 * reference.normal_cdf(-r / 2), rel=0.01)
    assert found.clipped_share == pytest.approx(reference.normal_cdf(-r / 2), rel=0.02)
    assert found.max_weight == 1


@pytest.mark.parametrize("r", [0.25, 0.5, 1])
def test_unclipped_weights_of_an_independent_move(world, r):
    found = weights_of_independent_move(world, r, math.inf)
    assert found.ess == pytest.approx(math.exp(-r * r), rel=0.03)
    assert found.mean_weight == pytest.approx(1, rel=0.01)
    assert found.clipped_share == 0


@pytest.mark.parametrize(("optimizer", "factor"), [("sgd", 1.0), ("adam", 2 / math.pi)])
def test_a_move_along_the_noise_spreads_the_weights(world, noise, optimizer, factor):
    """Var(s) = r²(1 + d/n_pairs) after a step of SGD, r²(1 + (2/π)·d/n_pairs) after Adam's first (DESIGN.md)."""
    n, d = 200, 4000
    rng = np.random.default_rng(6)
    starts = rng.integers(0, noise.values.size - d + 1, size=n)
    epsilon = epsilons(noise, starts, d).astype(float)
    gradient = rng.choice([-1.0, 1.0], size=n) @ epsilon
    delta = np.sign(gradient) if optimizer == "adam" else gradient
    delta = delta / np.linalg.norm(delta)
    log_c = np.zeros((n, 2))
    kernels.log_weights(0, noise.values, starts, noise.prefix, delta, delta.astype(np.float32), 1.0, log_c)
    assert np.mean((log_c[:, 1] + 0.5) ** 2) == pytest.approx(1 + factor * d / n, rel=0.1)


# -- centring ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [1.0, math.inf])
def test_centring_cancels_the_term_along_d(world, noise, clip):
    """g = (1/Σc) Σ c (u − ū_c)(±epsilon): no D in it, and a constant added to all utilities changes nothing."""
    rng = np.random.default_rng(9)
    n, d = 20, 700
    starts, utilities = rng.integers(0, 10**6, n), rng.uniform(-1, 1, (n, 2))
    epsilon = epsilons(noise, starts, d)
    delta = rng.standard_normal(d) / math.sqrt(d)
    log_c, _ = reference.importance(epsilon, delta)
    c = np.minimum(np.exp(log_c), clip)
    v = utilities - np.sum(c * utilities) / np.sum(c)
    expected = (c[:, 0] * v[:, 0] - c[:, 1] * v[:, 1]) @ epsilon / np.sum(c)
    size = np.linalg.norm(expected.astype(float))
    for shift in (0.0, 0.7, -30.0):
        found = estimate(world, noise, starts, utilities + shift, delta, clip=clip, center=True).gradient
        assert np.linalg.norm((found - expected).astype(float)) <= 1e-5 * size
    plain = estimate(world, noise, starts, utilities, delta, clip=clip).gradient
    shifted = estimate(world, noise, starts, utilities + 0.7, delta, clip=clip).gradient
    assert np.linalg.norm(shifted - plain) > 0.3 * size, "without centring a constant matters"


# -- when to stop --------------------------------------------------------------------------------------------

REUSE = {"learning_rate": 0.02, "iw_updates": 6}


def column(report, name):
    return [row[name] for row in report.updates]


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
    assert report.updates[-1]["update_norm"] == 0
    assert report.iteration["updates"] == stop
    short, _ = build(world, noise, rugged, **REUSE | {"iw_updates": stop - 1})
    short.iterate()
    assert ruled.state.theta.tobytes() == short.state.theta.tobytes()
    assert ruled.state.optimizer.step == stop


def test_max_kl_stops_before_the_update(world, noise):
    free, _ = build(world, noise, rugged, **REUSE)
    kl = column(free.iterate(), "kl")
    assert kl[0] == 0
    threshold = (kl[2] + kl[3]) / 2
    stop = next(k for k, value in enumerate(kl) if value > threshold)
    assert 1 < stop < 6
    ruled, _ = build(world, noise, rugged, **REUSE, max_kl=threshold)
    report = ruled.iterate()
    assert column(report, "kl") == kl[: stop + 1]
    assert column(report, "accepted") == [1] * stop + [0]
    assert report.iteration["updates"] == stop
    short, _ = build(world, noise, rugged, **REUSE | {"iw_updates": stop - 1})
    short.iterate()
    assert ruled.state.theta.tobytes() == short.state.theta.tobytes()


def test_the_first_update_is_always_made(world, noise):
    run, _ = build(world, noise, rugged, **REUSE, min_ess=1.0, max_kl=1e-300)
    assert column(run.iterate(), "accepted") == [1, 0]


@pytest.mark.parametrize("center", [False, True])
def test_lost_overlap_ends_the_reuse(world, noise, center):
    """A first step of r = 60 and more: recorded, no further update, and theta stays finite."""
    run, _ = build(world, noise, rugged, (111, 64, 64, 8), iw_updates=3, learning_rate=0.05, center=center)
    report = run.iterate()
    assert column(report, "accepted") == [1, 0]
    lost = report.updates[-1]
    assert lost["kl"] > 60**2 / 2
    assert (lost["ess"], lost["mean_weight"], lost["update_norm"]) == (0, 0, 0)
    assert report.iteration["updates"] == 1
    assert np.isfinite(run.state.theta).all()
    assert run.state.optimizer.step == 1
    assert run.iterate().updates[0]["accepted"] == 1, "the next population starts afresh"


def test_theta_that_diverges_is_an_error(world, noise):
    run, _ = build(world, noise, optimizer="sgd", learning_rate=1e200, momentum=0.0, shaping="none")
    with pytest.raises(es.Diverged, match="--learning-rate 1e\\+200 is too large"):  # and not a word from NumPy
        run.iterate()
    assert run.state.iteration == 0


# -- invalid returns -----------------------------------------------------------------------------------------


def test_population_without_a_valid_return_makes_no_update(world, noise):
    run, _ = build(world, noise, lambda theta, rng: math.nan, iw_updates=2)
    before, optimizer = run.state.theta.tobytes(), run.state.optimizer
    report = run.iterate()
    assert report.updates == []
    assert report.iteration["updates"] == 0
    assert report.iteration["invalid_episodes"] == 62
    assert run.state.theta.tobytes() == before
    assert run.state.optimizer is optimizer
    assert run.state.iteration == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", ["centered-rank", "standardize", "none"])
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
    assert report.iteration["invalid_episodes"] == 60 - finite.size
    assert report.iteration["return_min"] == finite.min()
    expected, _ = build(world, noise, partly(finite.min()), **settings)
    expected.iterate()
    assert run.state.theta.tobytes() == expected.state.theta.tobytes()


# -- bookkeeping of an iteration -----------------------------------------------------------------------------


def test_counters_and_digest(world, noise):
    run, _ = build(world, noise, n_eval=4)
    for iteration in range(3):
        before = run.state.theta.copy()
        row = run.iterate().iteration
        assert row["iteration"] == iteration
        assert row["episodes"] == 60 * (iteration + 1)
        assert row["env_steps"] == 60 * LENGTH * (iteration + 1), "evaluation episodes do not count"
        assert row["eval_episodes"] == 4
        assert row["episode_length_mean"] == LENGTH
        assert row["theta_norm"] == pytest.approx(np.linalg.norm(run.state.theta))
        assert row["update_norm"] == pytest.approx(np.linalg.norm(run.state.theta - before))
        assert row["theta_digest"] == states.digest(run.state.theta)
    assert states.digest(before) != row["theta_digest"]


def test_observation_statistics_of_the_chosen_episodes(world, noise):
    """Taken from the population alone, merged exactly, and frozen while a population is in use."""
    run, runner = build(world, noise, obs_stat_probability=0.4, iw_updates=2)
    for _ in range(3):
        before = run.state.obs.normaliser()
        runner.tasks.clear()
        run.iterate()
        assert all((task.normaliser == before).all() for task in runner.tasks)
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
