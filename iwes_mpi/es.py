"""One iteration of IW-ES on the state of a run.

Reads like the algorithm: evaluate a population around theta, shape its returns, then make up to 1 + K updates
from it, the later ones reweighted by importance sampling (Campos et al. 2018, eqs. 3 and 4).
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi import kernels, obs_stats, optimizers, policy, shaping
from iwes_mpi.config import Config
from iwes_mpi.mpi import Group, StopFlag, WorkQueue, World
from iwes_mpi.noise import NoiseTable
from iwes_mpi.rollouts import EpisodeRunner, EpisodeTask
from iwes_mpi.seeding import Stream, generator
from iwes_mpi.state import State, digest

Row = dict[str, float]


class Interrupted(Exception):
    """A population was dropped unfinished because of a request to stop; the state is that before the iteration."""


class Diverged(FloatingPointError):
    """Theta is no longer finite, and the run is lost; known on every rank."""


_LOG_MAX = math.log(1.7e308)
# The mean of c², in units of the exact sums, below which rounding would show in the effective sample size. Weights are
# then a few millionths at most: the population says nothing about where theta is now.
_RESOLVED = 1024


class Population(NamedTuple):
    """The evaluated samples of one iteration, the same on every rank."""

    starts: NDArray[np.int64]  # (n_pairs,) where each epsilon starts in the noise table
    returns: NDArray[np.float64]  # (n_pairs, 2) of theta + sigma·epsilon and theta − sigma·epsilon; may be NaN
    lengths: NDArray[np.int64]  # (n_pairs, 2) environment steps
    observed: NDArray[np.float64]  # (episodes, 1 + 2·obs_size) packed statistics, in sample order
    eval_returns: NDArray[np.float64]  # (n_eval,)
    eval_lengths: NDArray[np.int64]  # (n_eval,)


class Report(NamedTuple):
    """What an iteration did, for the log: rows of the tables of `runlog`, and the population."""

    iteration: Row
    updates: list[Row]
    population: Population


class Phases:
    """Seconds this rank spends in each phase of an iteration."""

    NAMES = ("rollouts", "idle", "weights", "comm", "update", "io")

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(self.NAMES, 0.0)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time spent inside the block to a phase."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - begin


class Weighted(NamedTuple):
    """One importance-weighted estimate, eq. 3, and what its weights say."""

    gradient: NDArray[np.float64] | None  # (d,) sigma times eq. 3; None if no overlap is left
    ess: float  # (Σc)² / (2n Σc²)
    mean_weight: float
    max_weight: float
    clipped_share: float


class GradientEstimator:
    """Eqs. 3 and 4 over the ranks of a group, with exact sums.

    Parameters
    ----------
    config : Config
        Its clip, centring and weight kernel.
    group : Group
        The ranks that share the pairs.
    noise : NoiseTable
    phases : Phases
        Charged with weights and communication.
    """

    def __init__(self, config: Config, group: Group, noise: NoiseTable, phases: Phases):
        self._config, self._group, self._noise, self._phases = config, group, noise, phases
        self._method = kernels.WEIGHT_KERNELS.index(config.weight_kernel)
        self._log_clip = math.log(config.clip)
        self._buffer = np.zeros(0, dtype=np.int64)

    def estimate(
        self,
        starts: NDArray[np.int64],
        utilities: NDArray[np.float64],
        delta: NDArray[np.float64],
        r2: float,
    ) -> Weighted:
        """The estimate at theta^{t+k} from the population drawn around theta^t. Collective on the group.

        Parameters
        ----------
        starts : int64 (n_pairs,)
        utilities : float64 (n_pairs, 2)
        delta : float64 (d,)
            (theta^t − theta^{t+k}) / sigma.
        r2 : float
            ‖delta‖².
        """
        n, d = starts.size, delta.size
        group, noise, phases = self._group, self._noise, self._phases
        exponents = kernels.fixed_point(n)
        scale = float(np.abs(utilities).max()) or 1.0
        rows = 2 if self._config.center else 1
        # One vector travels: gradient sums, scalars, and one slot per rank for its largest weight.
        size = rows * d + kernels.N_SCALARS + group.size
        if self._buffer.size != size:
            self._buffer = np.empty(size, dtype=np.int64)
        self._buffer[:] = 0
        sums = self._buffer[: rows * d].reshape(rows, d)
        scalars = self._buffer[rows * d : rows * d + kernels.N_SCALARS]
        largest = self._buffer[rows * d + kernels.N_SCALARS :].view(np.float64)

        mine = slice(group.slice(n).start, group.slice(n).stop)
        with phases("weights"):
            pairs = (
                self._method,
                noise.values,
                starts[mine],
                noise.prefix,
                delta,
                delta.astype(np.float32),
                r2,
            )
            log_c = np.zeros((starts[mine].size, 2))
        reference = min(0.0, self._log_clip)  # no weight exceeds it at the centre, nor anywhere if clipped at 1
        weigh = r2 > 0.0  # before the first step every log weight is exactly 0
        if weigh and self._log_clip != 0.0:
            with phases("weights"):
                kernels.log_weights(*pairs, log_c)
                weigh = False
            with phases("comm"):
                reference = min(self._log_clip, group.maximum(log_c.max(initial=-math.inf)))
        with phases("weights"):
            largest[group.rank] = kernels.weigh_and_accumulate(
                self._method, weigh, *pairs[1:], self._log_clip, reference, utilities[mine] / scale,
                *exponents, log_c, sums, scalars,
            )  # fmt: skip
        with phases("comm"):
            group.sum_integers(self._buffer)
        with phases("weights"):
            return self._solve(n, exponents, scale, delta, reference, sums, scalars, float(largest.max()))

    def _solve(
        self, n: int, exponents: kernels.FixedPoint, scale: float, delta: NDArray[np.float64], reference: float,
        sums: NDArray[np.int64], scalars: NDArray[np.int64], largest: float,
    ) -> Weighted:  # fmt: skip
        """From the integer sums over all pairs to the gradient."""
        unit = 2.0**-exponents.scalar
        sum_c, sum_c2 = int(scalars[kernels.SUM_C]), int(scalars[kernels.SUM_C2])
        mean_weight = math.exp(min(_LOG_MAX, reference)) * (sum_c * unit / (2 * n))
        share = int(scalars[kernels.N_CLIPPED]) / (2 * n)
        if sum_c2 < 2 * n * _RESOLVED:  # overlap lost
            return Weighted(None, 0.0, mean_weight, largest, share)
        ess = sum_c * sum_c * unit / (2 * n * sum_c2)
        mean_utility = int(scalars[kernels.SUM_CU]) / sum_c  # ū_c = Σcu/Σc, in units of the scale
        to_gradient = 2.0**-exponents.gradient / (sum_c * unit)
        gradient = sums[0] * to_gradient
        if self._config.center:
            gradient -= mean_utility * (sums[1] * to_gradient)
        else:
            gradient += mean_utility * delta
        gradient *= scale
        return Weighted(gradient, ess, mean_weight, largest, share)


class EvolutionStrategies:
    """IW-ES on all ranks: each holds the same state and makes the same updates from the exchanged returns.

    Parameters
    ----------
    config : Config
    world : World
    runner : EpisodeRunner
        This rank's environment.
    noise : NoiseTable
    state : State
        The same on every rank; advanced in place by `iterate`.
    stop : StopFlag
        Looked at between episodes.
    """

    def __init__(
        self, config: Config, world: World, runner: EpisodeRunner, noise: NoiseTable, state: State, stop: StopFlag
    ):
        self.config, self.world, self.runner, self.noise, self.state = config, world, runner, noise, state
        self.phases = Phases()
        self._group = world.weights_group(config.weights_on)
        self._queue = WorkQueue(world, config.schedule, stop)
        self._theta32 = policy.empty_parameters(state.theta.size)

    def iterate(self) -> Report:
        """One iteration: a population, and the updates made from it. Collective.

        Raises
        ------
        Interrupted
            On every rank, if a request to stop came before the population was complete.
        Diverged
            On every rank, if an update made theta infinite or NaN. The state is of no use any more.
        """
        state, world = self.state, self.world
        self._wait()
        with self.phases("comm"):
            world.broadcast(state.theta)  # ranks that took no part in the last updates learn theta here
        population = self._evaluate()
        before = state.theta.copy()
        updates = self._update(population)
        self._wait()  # ranks that take no part in the updates
        seconds = self._share_seconds()
        for packed in population.observed:
            state.obs = obs_stats.merge(state.obs, obs_stats.unpack(packed))
        state.iteration += 1
        state.env_steps += int(population.lengths.sum())
        state.episodes += population.returns.size
        return self._report(population, before, updates, seconds)

    def _wait(self) -> None:
        """Wait for the other ranks, charged as idle time."""
        with self.phases("idle"):
            self.world.barrier()

    # -- population ------------------------------------------------------------------------------------------

    def _evaluate(self) -> Population:
        """The population of this iteration: blocks of n_pairs until enough environment steps are made."""
        blocks: list[Population] = []
        steps = 0
        while not blocks or (steps < self.config.min_env_steps and blocks[-1].lengths.any()):
            blocks.append(self._evaluate_block(len(blocks) * self.config.n_pairs, 0 if blocks else self.config.n_eval))
            steps += int(blocks[-1].lengths.sum())
        return Population(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))

    def _evaluate_block(self, first_pair: int, n_eval: int) -> Population:
        """Evaluation episodes of theta, then one block of pairs, over all ranks as single-episode work items."""
        config, iteration = self.config, self.state.iteration
        n, d = config.n_pairs, self.state.theta.size
        starts = self.noise.starts(config.seed, iteration, first_pair, n, d)
        chosen = generator(config.seed, Stream.OBS_STATISTICS, iteration, first_pair).random(2 * n)
        observe = np.flatnonzero(chosen < config.obs_stat_probability)
        normaliser = self.state.obs.normaliser()
        results = np.zeros((n_eval + 2 * n + 1, 2))  # return, length; last, as an integer, the episodes run
        n_run = results[-1:, 0].view(np.int64)
        observed = np.zeros((observe.size, 1 + 2 * normaliser.shape[1]))
        with self.phases("rollouts"):
            for is_population, item in self._queue.items(n_eval, 2 * n):
                if not is_population:
                    self._theta32[:] = self.state.theta
                    rng = generator(config.seed, Stream.EVALUATION_EPISODE, iteration, item)
                    slot, row = item, -1
                else:
                    rng = self._perturb(starts, first_pair, item)
                    slot = n_eval + item
                    row = int(np.searchsorted(observe, item))
                    row = row if row < observe.size and observe[row] == item else -1
                episode = self.runner.run(
                    EpisodeTask(self._theta32, normaliser, rng, config.action_noise, row >= 0, not is_population)
                )
                results[slot] = episode.total_reward, episode.length
                n_run += 1
                if episode.obs_stats is not None and np.isfinite(episode.obs_stats).all():
                    observed[row] = episode.obs_stats
        self._wait()
        with self.phases("comm"):
            self.world.merge_slots(results)
            self.world.merge_slots(observed)
        if n_run[0] < n_eval + 2 * n:
            raise Interrupted
        returns, lengths = results[:-1, 0], results[:-1, 1].astype(np.int64)
        return Population(
            starts, returns[n_eval:].reshape(n, 2), lengths[n_eval:].reshape(n, 2), observed,
            returns[:n_eval], lengths[:n_eval],
        )  # fmt: skip

    def _perturb(self, starts: NDArray[np.int64], first_pair: int, item: int) -> np.random.Generator:
        """Set theta32 to the parameters of population episode `item` of a block; returns its generator."""
        pair, member = divmod(item, 2)
        row = self.noise.values[starts[pair] : starts[pair] + self._theta32.size]
        kernels.perturb(self.state.theta, self.config.sigma, row, 1.0 - 2.0 * member, self._theta32)
        sample = first_pair + pair if self.config.common_random_numbers else 2 * first_pair + item
        return generator(self.config.seed, Stream.POPULATION_EPISODE, self.state.iteration, sample)

    # -- updates ---------------------------------------------------------------------------------------------

    def _update(self, population: Population) -> list[Row]:
        """Up to 1 + K updates of theta from one population; returns a row for each that was tried.

        Ranks outside the weights group do nothing here and receive theta before the next population.
        """
        config, state = self.config, self.state
        if self._group is None or not np.isfinite(population.returns).any():
            return []
        returns, _ = shaping.replace_invalid(population.returns)
        utilities = shaping.shape(returns, config.shaping)
        estimator = GradientEstimator(config, self._group, self.noise, self.phases)
        centre = state.theta.copy()
        rows: list[Row] = []
        for k in range(1 + config.iw_updates):
            delta = (centre - state.theta) / config.sigma
            r2 = kernels.sum_squares(delta)
            row: Row = dict.fromkeys(("mean_weight", "max_weight", "clipped_share", "grad_norm", "ess"), math.nan)
            row |= {"iteration": state.iteration, "k": k, "kl": r2 / 2, "update_norm": 0.0, "accepted": 0}
            rows.append(row)
            if k > 0 and r2 / 2 > config.max_kl:
                break
            estimate = estimator.estimate(population.starts, utilities, delta, r2)
            row |= {
                "ess": estimate.ess,
                "mean_weight": estimate.mean_weight,
                "max_weight": estimate.max_weight,
                "clipped_share": estimate.clipped_share,
            }
            if estimate.gradient is None or (k > 0 and estimate.ess < config.min_ess):
                break
            with self.phases("update"), np.errstate(over="ignore", invalid="ignore"):  # it is said once, as Diverged
                step = self._step(estimate.gradient)
                row |= {
                    "grad_norm": kernels.norm(estimate.gradient),
                    "update_norm": kernels.norm(step),
                    "accepted": 1,
                }
            if not self._is_finite():
                break  # for `_share_seconds` to say on every rank
        return rows

    def _step(self, gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move theta up the gradient with the optimiser and weight decay; returns the step (d,)."""
        config, state = self.config, self.state
        descent = config.l2 * state.theta - gradient
        if config.optimizer == "adam":
            state.optimizer, step = optimizers.adam(state.optimizer, descent, config.learning_rate)
        else:
            state.optimizer, step = optimizers.sgd(state.optimizer, descent, config.learning_rate, config.momentum)
        state.theta += step
        return step

    def _is_finite(self) -> bool:
        """Whether this rank's theta is finite, and its norm too."""
        return math.isfinite(kernels.norm(self.state.theta))

    # -- report ----------------------------------------------------------------------------------------------

    def _share_seconds(self) -> Row:
        """Phase times as means over ranks. Collective. What ranks know of theta travels along: one exchange less.

        Raises
        ------
        Diverged
            On every rank, if theta is not finite on any.
        """
        seconds, config = self.phases.seconds, self.config
        *means, broken = self.world.mean(np.array([*seconds.values(), float(not self._is_finite())])).tolist()
        if broken:
            raise Diverged(
                f"theta is no longer finite in iteration {self.state.iteration}: --learning-rate "
                f"{config.learning_rate} is too large for --sigma {config.sigma} and --shaping {config.shaping}"
            )
        self.phases.seconds = dict.fromkeys(seconds, 0.0)
        return {f"time_{name}": mean for name, mean in zip(seconds, means, strict=True)}

    def _report(self, population: Population, before: NDArray[np.float64], updates: list[Row], seconds: Row) -> Report:
        """The iteration in numbers."""
        state, world = self.state, self.world
        returns = population.returns[np.isfinite(population.returns)]
        scores = population.eval_returns[np.isfinite(population.eval_returns)]
        row: Row = {
            "iteration": state.iteration - 1,
            "env_steps": state.env_steps,
            "episodes": state.episodes,
            "wall_time": state.wall_time,
            "episode_length_mean": float(population.lengths.mean()),
            "eval_episodes": scores.size,
            "grad_norm": updates[0]["grad_norm"] if updates else math.nan,
            "update_norm": kernels.norm(state.theta - before),
            "theta_norm": kernels.norm(state.theta),
            "sigma": self.config.sigma,
            "updates": sum(update["accepted"] for update in updates),
            "theta_digest": digest(state.theta),
            "invalid_episodes": population.returns.size - returns.size + population.eval_returns.size - scores.size,
            "ranks": world.size,
        }
        row |= seconds
        for prefix, sample in (("return", returns), ("eval_return", scores)):
            for statistic in ("mean", "std", "median", "min", "max"):
                value = float(getattr(np, statistic)(sample)) if sample.size else math.nan
                row[f"{prefix}_{statistic}"] = value
        return Report(row, updates, population)
