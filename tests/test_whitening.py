"""Whitening: covariances against long double, whitened samples against the identity, and the same bits everywhere."""

import json
from pathlib import Path
from typing import Any

import checkpoints
import launch
import numpy as np
import pytest
from fakes import LENGTH, FakeRunner, build
from same_bits import assert_same_bits

from iwes_mpi import open_run
from iwes_mpi.files import checkpoint
from iwes_mpi.method.seeding import Stream, generator
from iwes_mpi.policy import network, obs_stats, whitening
from iwes_mpi.policy.obs_stats import MIN_VARIANCE, PRIOR_COUNT, ObsStats
from iwes_mpi.rollouts.choose import open_runner
from iwes_mpi.rollouts.episode import Episode, EpisodeTask
from iwes_mpi.settings.config import Config

rng = np.random.default_rng(5)


def correlated(n: int, size: int, spread: float = 1.0) -> Any:
    """A sample (n, size) of correlated observations of different scales, far from zero."""
    mixing = rng.standard_normal((size, size)) * np.exp(spread * rng.standard_normal(size))
    return rng.standard_normal((n, size)) @ mixing + 10 * rng.standard_normal(size)


SAMPLE = correlated(1000, 4) + np.array([0, 1e3, 0, 0])


def of(sample: Any) -> ObsStats:
    """The statistics of a sample (n, obs_size), two-pass in long double."""
    x = np.asarray(sample, dtype=np.longdouble)
    centered = x - x.mean(axis=0)
    products = (centered[:, :, None] * centered[:, None, :]).sum(axis=0)
    return ObsStats(len(x), x.mean(axis=0).astype(float), products.astype(float))


def observed(sample: Any) -> ObsStats:
    """The statistics by the compiled one-pass kernel."""
    size = sample.shape[1]
    packed = np.zeros(1 + size + size * size)
    for row in sample:
        obs_stats.observe(packed, row)
    return obs_stats.unpack(packed, whiten=True)


def assert_same(a: ObsStats, b: ObsStats, rtol: float = 1e-11) -> None:
    assert a.n == pytest.approx(b.n, rel=1e-14)
    np.testing.assert_allclose(a.mean, b.mean, rtol=rtol, atol=1e-12)
    np.testing.assert_allclose(a.m2, b.m2, rtol=rtol, atol=rtol * np.abs(b.m2).max())


def normalized(sample: Any, normalizer: Any, clip: float = np.inf) -> Any:
    """What the policy sees, by the compiled kernel; float32 like `sample`."""
    seen = np.zeros(sample.shape, dtype=np.float32)
    for obs, out in zip(sample, seen, strict=True):
        assert network.normalize(obs, normalizer, clip, out)
    return seen


# -- statistics ----------------------------------------------------------------------------------------------


def test_observe_is_mean_and_covariance() -> None:
    assert_same(observed(SAMPLE), of(SAMPLE))
    assert_same(observed(SAMPLE[:1]), ObsStats(1, SAMPLE[0], np.zeros((4, 4))))
    np.testing.assert_allclose(of(SAMPLE).m2 / len(SAMPLE), np.cov(SAMPLE.T, ddof=0), rtol=1e-9)


def test_the_variances_are_those_without_whitening() -> None:
    packed = np.zeros(1 + 2 * 4)
    for row in SAMPLE:
        obs_stats.observe(packed, row)
    alone = obs_stats.unpack(packed)
    np.testing.assert_allclose(np.diag(observed(SAMPLE).m2), alone.m2, rtol=1e-12)
    assert observed(SAMPLE).mean.tobytes() == alone.mean.tobytes()


def test_merge_of_any_partition_in_any_order() -> None:
    for seed in range(20):
        order = np.random.default_rng(seed)
        shuffled = order.permutation(SAMPLE)
        cuts = np.sort(order.integers(1, len(SAMPLE), size=order.integers(1, 60)))
        total = obs_stats.unpack(np.zeros(1 + 4 + 16), whiten=True)
        for part in np.split(shuffled, cuts):
            if len(part):
                total = obs_stats.merge(total, observed(part))
        assert_same(total, of(SAMPLE))


def test_the_prior_is_a_hundredth_of_an_observation_without_correlations() -> None:
    stats = obs_stats.merge(obs_stats.initial_stats(4, whiten=True), of(SAMPLE))
    n = len(SAMPLE) + PRIOR_COUNT
    mean = SAMPLE.sum(axis=0) / n
    covariance = (SAMPLE.T @ SAMPLE + PRIOR_COUNT * np.eye(4)) / n - np.outer(mean, mean)
    np.testing.assert_allclose(stats.m2 / stats.n, covariance, rtol=1e-6, atol=1e-6)
    assert obs_stats.merge(stats, obs_stats.unpack(np.zeros(21), whiten=True)) is stats


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("whiten", [False, True])
def test_pack_and_unpack(size: int, whiten: bool) -> None:
    stats = obs_stats.initial_stats(size, whiten)
    stats = ObsStats(3.5, rng.standard_normal(size), rng.random(stats.m2.shape))
    packed = obs_stats.pack(stats)
    assert packed.size == 1 + stats.normalizer().size
    again = obs_stats.unpack(packed, whiten)
    assert (again.n, again.m2.shape) == (stats.n, stats.m2.shape)
    assert again.mean.tobytes() == stats.mean.tobytes()
    assert again.m2.tobytes() == stats.m2.tobytes()


# -- the matrix ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 17, 111])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
def test_inverse_root_against_lapack(size: int, scale: float) -> None:
    covariance = scale * np.cov(correlated(3 * size, size).T, ddof=0).reshape(size, size)
    values, vectors = np.linalg.eigh(covariance)
    expected = (vectors / np.sqrt(np.maximum(values, MIN_VARIANCE))) @ vectors.T
    found = whitening.inverse_root(covariance, MIN_VARIANCE)
    rounding = 1e-15 * values[-1] / max(values[0], MIN_VARIANCE)  # of LAPACK's smallest eigenvalues
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 + rounding * np.abs(expected).max())
    np.testing.assert_allclose(found, found.T, rtol=0, atol=1e-12 * np.abs(found).max())


def test_inverse_root_of_special_covariances() -> None:
    for size in (1, 6):
        assert (whitening.inverse_root(np.zeros((size, size)), 0.01) == 10 * np.eye(size)).all()
        np.testing.assert_allclose(whitening.inverse_root(np.eye(size), 0.01), np.eye(size), atol=1e-15)
    ones = np.ones((3, 3)) / 3  # the projection on the diagonal
    np.testing.assert_allclose(whitening.inverse_root(ones, 0.01), ones + 10 * (np.eye(3) - ones), atol=1e-13)
    twice = np.array([[2.0, 2.0], [2.0, 2.0]])  # the same observation twice
    np.testing.assert_allclose(whitening.inverse_root(twice, 0.01), [[5.25, -4.75], [-4.75, 5.25]], rtol=1e-13)
    with np.errstate(over="raise", invalid="raise"):
        for scale in (1e-300, 1e300):
            assert np.isfinite(whitening.inverse_root(scale * twice, 0.01)).all()


def test_without_correlations_it_is_mean_and_deviation() -> None:
    variances = np.array([4.0, 1e-3, 0.25, 1e4, 0.0])
    mean = rng.standard_normal(5)
    alone = ObsStats(1.0, mean, variances).normalizer()
    matrix = ObsStats(1.0, mean, np.diag(variances)).normalizer()
    assert alone.shape == (2, 5)
    assert matrix.shape == (6, 5)
    np.testing.assert_allclose(matrix[1:], np.diag(alone[1]), rtol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 4, 17, 40])
def test_whitened_observations_have_identity_covariance(size: int) -> None:
    sample = 3 * correlated(200 + 20 * size, size, spread=0.3)
    covariance = np.cov(sample.T, ddof=0).reshape(size, size)
    assert np.linalg.eigvalsh(covariance)[0] > MIN_VARIANCE, "the bound would show"
    seen = normalized(sample, of(sample).normalizer()).astype(float)
    np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(seen.T, ddof=0).reshape(size, size), np.eye(size), atol=1e-3)


def test_directions_without_variance_are_not_blown_up() -> None:
    """An observation that says the same as another: their difference is stretched tenfold at most."""
    one = rng.standard_normal((500, 1))
    sample = np.hstack([2 * one, 2 * one + 1e-6 * rng.standard_normal((500, 1)), np.full((500, 1), 4.0)])
    seen = normalized(sample, of(sample).normalizer()).astype(float)
    assert np.abs(seen[:, 0] - seen[:, 1]).max() < 1e-4
    assert not seen[:, 2].any()
    assert seen[:, 0].std() == pytest.approx(np.sqrt(0.5), rel=1e-2)  # one unit of variance for the two of them


def test_the_clip_and_what_is_not_finite() -> None:
    sample = 50 * correlated(300, 9)
    normalizer = np.vstack([rng.standard_normal(9), rng.standard_normal((9, 9))])
    normalizer[1:] += normalizer[1:].T.copy()
    expected = np.clip((sample - normalizer[0]) @ normalizer[1:], -5, 5)
    seen = normalized(sample, normalizer, 5.0)
    np.testing.assert_allclose(seen, expected, rtol=1e-3, atol=1e-2)
    assert seen.max() == 5
    assert seen.min() == -5
    for bad in (np.nan, np.inf, -np.inf):
        for j in range(9):
            obs = sample[0].copy()
            obs[j] = bad
            assert not network.normalize(obs, normalizer, 5.0, np.zeros(9, dtype=np.float32))


def test_mean_and_deviation_are_as_before() -> None:
    """To the bit, by the formulas that there were before there was whitening."""
    stats = obs_stats.merge(obs_stats.initial_stats(4), ObsStats(1000, of(SAMPLE).mean, np.diag(of(SAMPLE).m2).copy()))
    normalizer = np.stack([stats.mean, 1.0 / np.sqrt(np.maximum(stats.m2 / stats.n, 1e-2))])
    assert stats.normalizer().tobytes() == normalizer.tobytes()
    expected = np.clip((SAMPLE - normalizer[0]) * normalizer[1], -1.5, 1.5).astype(np.float32)
    assert normalized(SAMPLE, normalizer, 1.5).tobytes() == expected.tobytes()


# -- runs ----------------------------------------------------------------------------------------------------


class Whitened(FakeRunner):
    """A fake whose statistics are whole covariances."""

    def run(self, task: EpisodeTask) -> Episode:
        episode = super().run(task)
        if task.observe:
            self.observations[-1] = self.observations[-1] @ np.triu(np.ones((5, 5)))
            return Episode(episode.total_reward, episode.length, obs_stats.pack(of(self.observations[-1])))
        return episode


def test_the_normalizer_is_frozen_while_a_population_is_in_use(world: Any, noise: Any) -> None:
    """And is then that of all observations so far, in every block of pairs."""
    run, runner = build(
        world, noise, whiten=True, eval_every=1, obs_stat_probability=0.3, iw_updates=2, min_env_steps=1000
    )
    run.runner = Whitened(runner.objective)
    run.state.obs = obs_stats.initial_stats(5, whiten=True)
    seen: list[Any] = []
    for _ in range(3):
        run.runner.tasks.clear()
        run.iterate()
        assert len(run.runner.tasks) > 2 * 30 + 2, "the test wants several blocks"
        assert len({task.normalizer.tobytes() for task in run.runner.tasks}) == 1
        used = run.runner.tasks[0].normalizer
        if seen:
            everything = obs_stats.merge(obs_stats.initial_stats(5, whiten=True), of(np.concatenate(seen)))
            np.testing.assert_allclose(used, everything.normalizer(), rtol=1e-8, atol=1e-9)
        else:
            assert used.tobytes() == np.vstack([np.zeros(5), np.eye(5)]).tobytes()
        seen, run.runner.observations = seen + run.runner.observations, []
        assert run.state.obs.n == pytest.approx(PRIOR_COUNT + LENGTH * len(seen))


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Ant-v5", "Swimmer-v5"])
def test_native_episodes_are_those_of_gymnasium(env_id: str) -> None:
    runners = [
        open_runner(Config(env_id=env_id, hidden_sizes=(7,), max_episode_steps=60, whiten=True, rollouts=kind))
        for kind in ("native", "gymnasium")
    ]
    shape = runners[0].network
    stats = obs_stats.initial_stats(int(shape.sizes[0]), whiten=True)
    for sample in range(6):
        theta = (3 * shape.initial_parameters(np.random.default_rng(sample))).astype(np.float32)
        found = []
        for runner in runners:
            random = generator(7, Stream.POPULATION_EPISODE, 0, sample)
            found.append(runner.run(EpisodeTask(theta, stats.normalizer(), random, 0.1, True)))
        native, through = found
        assert native.obs_stats is not None
        assert through.obs_stats is not None
        assert native.total_reward == through.total_reward
        assert native.obs_stats.tobytes() == through.obs_stats.tobytes()
        stats = obs_stats.merge(stats, obs_stats.unpack(native.obs_stats, whiten=True))
    covariance = stats.m2 / stats.n
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() > 0.01, "nothing to whiten"
    for runner in runners:
        runner.close()


def test_a_checkpoint_keeps_the_covariance() -> None:
    example = checkpoints.example(whiten=True)
    example.state.obs = of(SAMPLE)
    found = checkpoint.decode(checkpoint.encode(example), "it")
    checkpoints.assert_equal(found, example)
    assert found.state.obs.normalizer().tobytes() == example.state.obs.normalizer().tobytes()


def test_runs_from_before_there_was_whitening_have_none() -> None:
    settings = Config(env_id="Ant-v5").as_dict()
    del settings["whiten"], settings["top_share"]
    assert Config.from_json(json.dumps(settings)) == Config(env_id="Ant-v5")
    assert Config(whiten=True).differences(Config()) == ["whiten"]


CHEETAH = [
    *("--env-id", "HalfCheetah-v5", "--hidden-sizes", "--n-pairs", "5", "--min-env-steps", "0", "--n-eval", "2"),
    *("--eval-every", "2"),
    *("--max-episode-steps", "50", "--obs-stat-probability", "0.7", "--noise-table-size", "20000", "--iterations", "4"),
    *("--iw-updates", "1", "--sigma", "0.1", "--learning-rate", "0.05", "--whiten"),
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one rank, uninterrupted."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    outcome = launch.train(1, *CHEETAH, "--run-dir", str(run_dir))
    assert outcome.code == 0, outcome.err
    run = open_run(run_dir)
    assert run.iterations["theta_digest"].nunique() == 4
    assert run.checkpoint.state.obs.m2.shape == (17, 17)
    return run_dir


def assert_same_run(run_dir: Path, reference: Path) -> None:
    """The logs are the same, and so are the statistics, to the bit."""
    assert_same_bits(run_dir, reference)
    found, expected = (obs_stats.pack(open_run(path).checkpoint.state.obs) for path in (run_dir, reference))
    assert found.tobytes() == expected.tobytes()


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [3, 4])
def test_the_number_of_ranks_changes_no_bit(ranks: int, reference: Path, tmp_path: Path) -> None:
    outcome = launch.train(ranks, *CHEETAH, "--run-dir", str(tmp_path / "run"))
    assert outcome.code == 0, outcome.err
    assert_same_run(tmp_path / "run", reference)


@pytest.mark.mpi
def test_resuming_on_other_ranks_and_other_rollouts_changes_no_bit(reference: Path, tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    first = launch.train(3, *CHEETAH, "--iterations", "2", "--rollouts", "gymnasium", "--run-dir", run_dir)
    assert first.code == 0, first.err
    second = launch.train(2, "--resume", "--run-dir", run_dir, "--iterations", "4", "--rollouts", "native")
    assert second.code == 0, second.err
    assert_same_run(tmp_path / "run", reference)


@pytest.mark.mpi
def test_whitening_makes_a_difference(reference: Path, tmp_path: Path) -> None:
    outcome = launch.train(1, *CHEETAH, "--no-whiten", "--run-dir", str(tmp_path / "run"))
    assert outcome.code == 0, outcome.err
    assert open_run(tmp_path / "run").theta.tobytes() != open_run(reference).theta.tobytes()
    refused = launch.train(1, "--resume", "--run-dir", str(tmp_path / "run"), "--whiten", "--iterations", "5")
    assert refused.code == 2
    assert "whiten" in refused.err


@pytest.mark.mpi
def test_a_whitened_run_is_evaluated(reference: Path) -> None:
    outcome = launch.run(2, "-m", "iwes_mpi.evaluate", str(reference), "--episodes", "3")
    assert outcome.code == 0, outcome.err
    assert "HalfCheetah-v5" in outcome.out
