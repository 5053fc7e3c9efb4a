"""Importance mixing: which samples are kept and drawn, the set's distribution, its gradient, and its bits."""

import dataclasses
import math
from pathlib import Path

import checkpoints
import launch
import numpy as np
import pytest
import reference
from fakes import LENGTH, NeverStop, build, on_ranks, rugged, smooth
from same_bits import assert_same_bits

from iwes_mpi import open_run
from iwes_mpi.files import checkpoint, record
from iwes_mpi.files.columns import population_of, rows_of
from iwes_mpi.files.directory import make_plan
from iwes_mpi.method import es
from iwes_mpi.method.mixing import Mixing
from iwes_mpi.method.phases import Phases
from iwes_mpi.method.seeding import Stream, generator
from iwes_mpi.method.state import Drawn, initial_state
from iwes_mpi.mpi.group import alone
from iwes_mpi.policy import network
from iwes_mpi.settings.command_line import build_parser, parse
from iwes_mpi.settings.config import Config, check_together
from iwes_mpi.settings.wrong_input import WrongInput

LAYOUT = network.layout(9, (), 4)
D, SIGMA = 40, 0.05
NEVER = 1e-12  # a refresh rate so small that it refreshes nothing


def fresh_state(n_pairs, noise, sigma=SIGMA, seed=1):
    """A state with a whole population around its theta in use."""
    state = initial_state(3, LAYOUT, "adam")
    starts = np.random.default_rng(seed).integers(0, noise.values.size - D + 1, size=n_pairs)
    state.drawn = [Drawn(state.theta.copy(), sigma, starts, np.zeros((n_pairs, 2)), np.ones((n_pairs, 2), bool))]
    return state


def move(state, r, sigma=SIGMA, seed=2):
    """Move theta by r in units of sigma, in a direction that has nothing to do with the noise; returns it."""
    direction = np.random.default_rng(seed).standard_normal(D)
    direction /= np.linalg.norm(direction)
    state.theta += r * sigma * direction
    return direction


def mixing(noise, n_pairs, alpha, group=None):
    return Mixing(Config(n_pairs=n_pairs, importance_mixing=alpha, seed=5), group or alone(), noise, Phases())


def advance(state, chosen, sigma):
    """What an iteration leaves of the state."""
    kept, fresh = chosen
    newest = Drawn(state.theta.copy(), sigma, fresh.starts, np.zeros(fresh.used.shape), fresh.used)
    state.drawn, state.iteration = [*kept, newest], state.iteration + 1


def members(drawn, noise):
    """All members x (n, 2, d) of a population."""
    epsilon = np.stack([noise.values[start : start + D] for start in drawn.starts]).astype(np.longdouble)
    return drawn.center + np.longdouble(drawn.sigma) * np.stack([epsilon, -epsilon], axis=1)


def samples(all_drawn, noise):
    """The samples x (samples, d) in use."""
    return np.concatenate([members(one, noise)[one.used] for one in all_drawn if one.starts.size])


def count(all_drawn):
    return sum(int(one.used.sum()) for one in all_drawn)


# -- which samples -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [NEVER, 0.3])
@pytest.mark.parametrize("r", [0.3, 1.0, 2.0, 3.0])
def test_the_share_kept_is_that_of_the_overlap(noise, r, alpha):
    """E min(1, (1 − alpha)·c) of a move independent of the noise; 2Φ(−r/2) for alpha = 0. To 4 standard errors."""
    n = 20_000
    state = fresh_state(n, noise)
    move(state, r)
    kept, fresh = mixing(noise, n, alpha).choose(state, SIGMA)
    lost = -math.log1p(-alpha)
    phi = reference.normal_cdf
    expected = phi(-(lost + r * r / 2) / r) + (1 - alpha) * phi((lost - r * r / 2) / r)
    if alpha == NEVER:
        assert expected == pytest.approx(2 * phi(-r / 2), abs=1e-9)
    assert count(kept) / (2 * n) == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / (2 * n)))
    assert count(kept) + fresh.used.sum() == 2 * n


def test_each_decision_is_that_of_sun_et_al(noise):
    """Against densities in long double, for a set of four populations with different sigmas."""
    n, alpha = 60, 0.2
    mix, state = mixing(noise, n, alpha), fresh_state(60, noise, sigma=0.05)
    sigmas = [0.055, 0.045, 0.06]
    for i, sigma in enumerate(sigmas[:-1]):
        move(state, 0.7, sigma, seed=i)
        advance(state, mix.choose(state, sigma), sigma)
    assert len(state.drawn) == 3
    assert all(one.used.any(axis=1).all() for one in state.drawn), "pairs of which nothing is in use are dropped"
    assert any(not one.used.all() for one in state.drawn)
    move(state, 0.7, sigmas[-1], seed=9)
    last, theta, sigma = state.drawn[-1], state.theta, sigmas[-1]
    kept, fresh = mix.choose(state, sigma)

    def density_ratio(x):
        return np.exp(reference.log_density(x, theta, sigma) - reference.log_density(x, last.center, last.sigma))

    uniform = iter(generator(5, Stream.MIXING_KEPT, state.iteration).random((1000, 2)))
    expected = []
    for one in state.drawn:
        for pair, used in zip(members(one, noise), one.used, strict=True):
            for x, in_use, u in zip(pair, used, next(uniform), strict=True):
                p = min(1, (1 - alpha) * density_ratio(x))
                assert abs(u - p) > 1e-5, "too close to call"
                expected += [x] if in_use and u < p else []
    np.testing.assert_array_equal(samples(kept, noise), expected)
    assert 0 < len(expected) < 2 * n

    expected, first = [], 0
    missing = 2 * n - count(kept)
    while len(expected) < missing:
        starts = noise.starts(5, state.iteration, first, n, D)
        uniform = generator(5, Stream.MIXING_FRESH, state.iteration, first).random((n, 2))
        block = Drawn(theta, sigma, starts, np.zeros((n, 2)))
        for pair, us in zip(members(block, noise), uniform, strict=True):
            for x, u in zip(pair, us, strict=True):
                p = max(alpha, 1 - 1 / density_ratio(x))
                assert abs(u - p) > 1e-5, "too close to call"
                expected += [x] if u < p else []
        first += n
    newest = Drawn(theta, sigma, fresh.starts, np.zeros(fresh.used.shape), fresh.used)
    np.testing.assert_array_equal(samples([newest], noise), expected[:missing])


def ks(values):
    """√n times the Kolmogorov–Smirnov distance from N(0, 1); above 1.95 once in a thousand times."""
    values = np.sort(np.asarray(values, float))
    cdf = np.array([reference.normal_cdf(x) for x in values])
    n = values.size
    return math.sqrt(n) * max(np.max(np.arange(1, n + 1) / n - cdf), np.max(cdf - np.arange(n) / n))


@pytest.mark.parametrize("alpha", [NEVER, 0.1])
def test_the_set_is_distributed_as_if_it_were_new(noise, alpha):
    """After moves independent of the noise, of theta and of sigma: along each move, and in all moments of order 2."""
    n, sigma = 3000, SIGMA
    mix, state = mixing(noise, n, alpha), fresh_state(3000, noise)
    directions = []
    for i in range(5):
        sigma *= 0.97
        directions.append(move(state, 0.8, sigma, seed=100 + i))
        kept, fresh = mix.choose(state, sigma)
        advance(state, (kept, fresh), sigma)
    assert 0.2 < count(kept) / (2 * n) < 0.8
    assert len(state.drawn) > 3
    z = ((samples(state.drawn, noise) - state.theta) / sigma).astype(float)
    assert z.shape == (2 * n, D)
    for direction in (*directions, np.eye(D)[0]):
        assert ks(z @ direction) < 1.95
    old = ((samples(kept, noise) - state.theta) / sigma).astype(float)
    assert ks(old @ directions[-1]) > 5, "what is kept alone is not"
    # Mean, covariance and length against what they are for 2n independent samples, to 4 standard errors.
    assert np.abs(z.mean(axis=0)).max() * math.sqrt(2 * n) < 4.5
    off = (z.T @ z / (2 * n))[np.triu_indices(D, 1)]
    assert np.sqrt(np.mean(off**2)) == pytest.approx(1 / math.sqrt(2 * n), rel=0.6)  # pairs share their squares
    assert np.mean(z**2) == pytest.approx(1, abs=4 * math.sqrt(2 / (n * D)))


def test_any_number_of_ranks_chooses_the_same(noise):
    def chosen(group):
        mix, state = mixing(noise, 50, 0.1, group), fresh_state(50, noise)
        for i in range(4):
            move(state, 0.5, seed=i)
            advance(state, mix.choose(state, SIGMA), SIGMA)
        return [(one.starts.tolist(), one.used.tolist(), one.center.tolist()) for one in state.drawn]

    expected = on_ranks(1, chosen)[0]
    assert len(expected) > 2
    for size in (2, 3, 7):
        assert on_ranks(size, chosen) == [expected] * size


# -- a whole iteration ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clip", "center"), [(1.0, False), (math.inf, False), (2.0, True)])
def test_updates_weigh_the_set_as_one_drawn_at_the_center(world, noise, clip, center):
    """k = 0 is the plain mean over the set, k > 0 weighs by p_theta/p_{t+1}; one Adam, sigma moves."""
    sizes, n, lr = (9, 4), 40, 0.006
    run, _ = build(
        world, noise, rugged, sizes, n_pairs=n, importance_mixing=0.1, iw_updates=2, clip=clip, center=center,
        learning_rate=lr, l2=0.0, sigma_schedule="exponential", sigma_end=0.5, schedule_iterations=20, min_ess=0.0,
    )  # fmt: skip
    theta, adam = run.state.theta.astype(np.longdouble), reference.Adam(D, lr)
    shares = []
    for _ in range(5):
        sigma = np.longdouble(run.learner.sigma)
        report = run.iterate()
        drawn, origin = run.state.drawn, theta.copy()
        assert count(drawn) == 2 * n
        shares.append(report.kept_samples)
        assert shares[-1] == pytest.approx(1 - drawn[-1].used.sum() / (2 * n))
        x = samples(drawn, noise)
        u = reference.centered_ranks(np.concatenate([one.returns[one.used] for one in drawn]))
        for update in report.updates:
            log_c = np.array(
                [reference.log_density(s, theta, sigma) - reference.log_density(s, origin, sigma) for s in x]
            )
            score = (x - theta) / sigma
            expected = reference.iwes(log_c[:, None], score[:, None], u[:, None], clip, center)
            if update.k == 0:
                plain = (u[:, None] * score).mean(axis=0)
                np.testing.assert_allclose(plain.astype(float), expected.gradient.astype(float), rtol=1e-9, atol=1e-12)
                assert (update.estimate.ess, update.estimate.mean_weight) == (1.0, 1.0)
            error = np.linalg.norm((update.estimate.gradient - expected.gradient).astype(float))
            assert error < 1e-4 * np.linalg.norm(expected.gradient.astype(float))
            assert update.estimate.ess == pytest.approx(float(expected.ess), rel=1e-4)
            assert update.estimate.mean_weight == pytest.approx(float(expected.mean_weight), rel=1e-4)
            assert update.estimate.max_weight == pytest.approx(float(expected.max_weight), rel=1e-4)
            theta = theta + adam.step(-expected.gradient)
        assert len(report.updates) == 3
        np.testing.assert_allclose(run.state.theta, theta.astype(float), rtol=1e-5, atol=1e-6)
        assert rows_of(report).iteration.return_mean == pytest.approx(
            float(np.mean(np.concatenate([one.returns[one.used] for one in drawn])))
        )
    assert shares[0] == 0
    assert all(0.1 < share < 0.9 for share in shares[1:])


def test_only_new_samples_cost_episodes(world, noise):
    """Each at its own parameters; what is not run is counted nowhere."""
    run, runner = build(
        world, noise, lambda theta, rng: math.nan if theta[0] > 0 else smooth(theta, rng), n_pairs=25,
        importance_mixing=0.2, iw_updates=0, learning_rate=0.01, n_eval=0, obs_stat_probability=1.0,
    )  # fmt: skip
    episodes, invalid = 0, 0
    for iteration in range(4):
        runner.tasks.clear()
        report = run.iterate()
        row, population = rows_of(report).iteration, report.population
        episodes += len(runner.tasks)
        assert (row.episodes, row.env_steps) == (episodes, LENGTH * episodes)
        assert len(runner.tasks) == population.ran.sum() == round((1 - row.kept_samples) * 50)
        assert (len(runner.tasks) < 50) == (iteration > 0)
        invalid = sum(task.theta[0] > 0 for task in runner.tasks)
        assert row.invalid_episodes == invalid
        assert np.isnan(population.returns[population.ran]).sum() == invalid
        assert row.episode_length_mean == LENGTH
        assert population.observed.shape[0] == len(runner.tasks)
        returns, lengths = population_of(report)
        assert np.isnan(returns[~population.ran]).all()
        assert (lengths == np.where(population.ran, LENGTH, -1)).all()
        center, sigma = run.state.drawn[-1].center, run.state.drawn[-1].sigma
        expected = [
            (center + sign * sigma * noise.values[start : start + center.size].astype(float)).astype(np.float32)
            for start, ran in zip(population.starts, population.ran, strict=True)
            for sign, wanted in zip((1, -1), ran, strict=True)
            if wanted
        ]
        np.testing.assert_array_equal([task.theta for task in runner.tasks], expected)
    assert invalid > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"importance_mixing": 1.0, "learning_rate": 0.002},
        {"importance_mixing": 0.01, "learning_rate": 5.0},
        {"importance_mixing": 0.01, "learning_rate": 1e37, "l2": 0.0},
    ],
    ids=["alpha is 1", "theta moves far", "beyond all numbers"],
)
def test_where_nothing_is_kept_it_is_es(world, noise, settings):
    """The same bits as without mixing, importance-weighted updates included."""
    settings = settings | {"iw_updates": 2, "min_ess": 0.0, "clip": math.inf, "obs_stat_probability": 0.3}
    mixed, mixed_runner = build(world, noise, rugged, **settings)
    plain, plain_runner = build(world, noise, rugged, **settings | {"importance_mixing": None})
    for _ in range(4):
        found, expected = (dataclasses.asdict(rows_of(run.iterate()).iteration) for run in (mixed, plain))
        assert found["kept_samples"] == 0
        different = {name for name in found if found[name] != expected[name] and not name.startswith("time_")}
        assert different <= {"wall_time"}  # which nobody fills in here
    assert mixed.state.theta.tobytes() == plain.state.theta.tobytes()
    assert len(mixed_runner.tasks) == len(plain_runner.tasks) == 4 * (60 + 2)
    assert len(mixed.state.drawn) == 1, "populations of which nothing is in use are dropped"


def test_where_theta_does_not_move_nothing_is_run(world, noise):
    """The set stays; the newest population, an empty one, tells where it counts as drawn from."""
    run, runner = build(
        world, noise, rugged, importance_mixing=NEVER, learning_rate=1e-30, l2=0.0, n_eval=0, iw_updates=1, min_ess=0.9
    )
    for _ in range(3):
        report = run.iterate()
    assert len(runner.tasks) == 60
    row = rows_of(report).iteration
    assert (row.kept_samples, row.episodes, row.invalid_episodes) == (1, 60, 0)
    assert math.isnan(row.episode_length_mean)
    assert [update.accepted for update in report.updates] == [True, True]
    assert [one.starts.size for one in run.state.drawn] == [30, 0]


def test_a_new_episode_cap_drops_the_set(world, noise):
    """Returns under another cap cannot be compared."""
    settings = {"train_episode_steps": 4, "episode_schedule": "budget", "learning_rate": 0.002, "iw_updates": 0}
    run, _ = build(world, noise, importance_mixing=0.1, episode_budget=2500, **settings)
    run.state.episode_cap = 4
    caps, shares = [], []
    for _ in range(8):
        report = run.iterate()
        caps.append(report.episode_cap)
        shares.append(report.kept_samples)
    for before, cap, share in zip([0, *caps], caps, shares, strict=False):
        assert (share > 0) == (cap == before)
    assert len(set(caps)) > 2
    assert any(share > 0 for share in shares)


# -- files and ranks -----------------------------------------------------------------------------------------


def test_a_checkpoint_holds_the_set(world, noise):
    """To the last bit, and the run goes on from it as if it had not stopped."""
    run, runner = build(world, noise, rugged, importance_mixing=0.1, learning_rate=0.005, iw_updates=1)
    for _ in range(3):
        run.iterate()
    assert len(run.state.drawn) > 1
    example = checkpoints.example(importance_mixing=0.1)._replace(state=run.state, config=run.config)
    found = checkpoint.decode(checkpoint.encode(example), "it")
    checkpoints.assert_equal(found, example)
    again = es.EvolutionStrategies(run.config, world, runner, noise, found.state, NeverStop)
    for _ in range(2):
        assert rows_of(again.iterate()).iteration.theta_digest == rows_of(run.iterate()).iteration.theta_digest


MIXED = [*launch.SMALL, "--min-env-steps", "0", "--importance-mixing", "0.15", "--learning-rate", "0.005"]
MIXED += ["--iterations", "5", "--min-ess", "0", "--log-population", "--sigma-schedule", "linear"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one rank."""
    run_dir = tmp_path_factory.mktemp("mixed") / "run"
    outcome = launch.train(1, *MIXED, "--run-dir", str(run_dir))
    assert outcome.code == 0, outcome.err
    run = open_run(run_dir)
    assert run.iterations["kept_samples"].iloc[0] == 0
    assert run.iterations["kept_samples"].iloc[1:].between(0.1, 0.85).all()
    assert run.population is not None
    assert (np.isfinite(run.population["returns"]) == (run.population["lengths"] > 0)).all()
    assert np.isfinite(run.population["returns"]).sum() == run.iterations["episodes"].iloc[-1]
    return run_dir


@pytest.mark.mpi
@pytest.mark.parametrize(("ranks", "where"), [(3, "all"), (4, "all"), (4, "root")])
def test_the_number_of_ranks_changes_no_bit(ranks: int, where: str, uninterrupted: Path, tmp_path: Path) -> None:
    outcome = launch.train(ranks, *MIXED, "--weights-on", where, "--run-dir", str(tmp_path / "run"))
    assert outcome.code == 0, outcome.err
    assert_same_bits(tmp_path / "run", uninterrupted)


@pytest.mark.mpi
def test_resuming_in_the_middle_changes_no_bit(uninterrupted: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    first = launch.train(3, *MIXED, "--iterations", "3", "--run-dir", str(run_dir))
    assert first.code == 0, first.err
    second = launch.train(1, "--resume", "--run-dir", str(run_dir), "--iterations", "5")
    assert second.code == 0, second.err
    assert_same_bits(run_dir, uninterrupted)


# -- settings ------------------------------------------------------------------------------------------------

TOGETHER = [("--reuse-batches", "2"), ("--min-env-steps", "100"), ("--cross-fit",), ("--weigh-pairs",)]
TOGETHER += [("--shaping", "top-directions")]


@pytest.mark.parametrize("other", TOGETHER, ids=lambda other: other[0])
def test_what_cannot_be_combined_is_refused_in_one_line(other, tmp_path):
    parse(["--importance-mixing", "0.1"])
    parse(list(other))
    with pytest.raises(WrongInput) as error:
        parse(["--importance-mixing", "0.1", *other])
    line = build_parser().describe(error.value)
    assert line == f"--importance-mixing: cannot be combined with {' '.join(other)}"
    # With --resume the recorded settings decide.
    again = ["--resume", "auto", "--run-dir", str(tmp_path / "run")]
    request = parse([*again, "--importance-mixing", "0.1", *other])
    with pytest.raises(WrongInput, match="cannot be combined"):
        make_plan(request)
    record_dir = tmp_path / "run"
    record_dir.mkdir()
    record.write_config(record_dir, dataclasses.replace(parse(list(other)).config(), importance_mixing=0.1))
    with pytest.raises(WrongInput, match="cannot be combined"):
        make_plan(parse(again))


@pytest.mark.parametrize("alpha", ["0", "-0.1", "1.01", "inf", "x"])
def test_the_refresh_rate_is_a_share(alpha):
    with pytest.raises(WrongInput) as error:
        parse(["--importance-mixing", alpha])
    assert error.value.setting == "importance_mixing"


def test_off_by_default():
    assert Config().importance_mixing is None
    check_together(Config(reuse_batches=3, cross_fit=True, weigh_pairs=True, min_env_steps=10))
    assert parse(["--importance-mixing", "none"]).config().importance_mixing is None
