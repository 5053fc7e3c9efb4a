"""One iteration of IW-ES on the state of a run.

Reads like the algorithm: evaluate a population around theta, shape its returns, then make up to 1 + K updates
from it, the later ones reweighted by importance sampling (Campos et al. 2018, eqs. 3 and 4).
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.method import episode_schedules, kernels, shapings
from iwes_mpi.method.batch import Batch
from iwes_mpi.method.mixing import Fresh, Mixing
from iwes_mpi.method.noise import NoiseTable
from iwes_mpi.method.phases import Phase, Phases
from iwes_mpi.method.report import Population, Report, Update
from iwes_mpi.method.schedules import learning_rate_at, sigma_at
from iwes_mpi.method.seeding import Movable, Stream, generator
from iwes_mpi.method.state import Drawn, State, digest
from iwes_mpi.method.updates import Updater
from iwes_mpi.mpi.message import Message, counts, slots
from iwes_mpi.mpi.queue import WorkQueue
from iwes_mpi.mpi.stop import StopFlag
from iwes_mpi.mpi.world import World
from iwes_mpi.policy import network, obs_stats
from iwes_mpi.rollouts.episode import EpisodeRunner, EpisodeTask
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.limits import GOAL_WINDOW

EVALUATION_SHARE = 0.1  # of all environment steps, unless --eval-every says how often
_HISTORY = 64  # evaluations that an episode schedule may look back on


class Interrupted(Exception):
    """A population was dropped unfinished because of a request to stop; the state is that before the iteration."""


class Diverged(FloatingPointError):
    """Theta is no longer finite, and the run is lost; known on every rank."""


class EvolutionStrategies:
    """IW-ES on all ranks: each makes the same updates from the exchanged returns.

    With ``--weights-on`` a node or the root, the other ranks make none and receive theta before the next population.

    Parameters
    ----------
    config : Config
    world : World
    runner : EpisodeRunner
        This rank's environment.
    noise : NoiseTable
    state : State
        Advanced in place by `iterate`; the same on every rank that makes updates.
    stop : StopFlag
        Looked at between episodes.

    Attributes
    ----------
    on_episode : callable or None
        Called after each of this rank's episodes with how many of a block of episodes are done, about, and how many
        there are; it must not touch the state.
    """

    def __init__(
        self, config: Config, world: World, runner: EpisodeRunner, noise: NoiseTable, state: State, stop: StopFlag
    ):
        self.config, self.world, self.runner, self.noise, self.state = config, world, runner, noise, state
        self.phases = Phases()
        self.on_episode: Callable[[int, int], None] | None = None
        self._queue = WorkQueue(world, config.schedule, stop, config.n_eval + 2 * config.n_pairs)
        self._theta32 = network.empty_parameters(state.theta.size)
        self._rng = Movable(config.seed, Stream.POPULATION_EPISODE)
        group = world.weights_group(config.weights_on)
        self._mixing = None if config.importance_mixing is None else Mixing(config, world, noise, self.phases)
        self._updater = None if group is None else Updater(config, group, noise, self.phases)

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
        with self.phases(Phase.COMM):
            world.broadcast(state.theta)  # ranks that took no part in the last updates learn theta here
        kept, fresh = (state.drawn, None) if self._mixing is None else self._mixing.choose(state, self.sigma)
        population = self._evaluate(fresh)
        before = state.theta.copy()
        used = None if self._mixing is None else population.ran
        drawn = [*kept, Drawn(before.copy(), self.sigma, population.starts, population.returns, used)]
        returns = population.returns if self._mixing is None else _returns_in_use(drawn)
        updates = self._update(drawn, returns)
        self._wait()  # ranks that take no part in the updates
        state.obs = obs_stats.merge_all(state.obs, population.observed)
        state.env_steps += int(population.lengths.sum())
        state.episodes += int(np.count_nonzero(population.ran))
        state.eval_env_steps += int(population.eval_lengths.sum())
        state.eval_episodes += population.eval_lengths.size
        report = Report(
            iteration=state.iteration,
            env_steps=state.env_steps,
            episodes=state.episodes,
            eval_env_steps=state.eval_env_steps,
            episode_cap=state.episode_cap,
            population=population,
            returns=returns,
            kept_samples=0.0 if self._mixing is None else 1.0 - int(np.count_nonzero(population.ran)) / returns.size,
            updates=updates,
            sigma=self.sigma,
            update_norm=kernels.norm(state.theta - before),
            theta_norm=kernels.norm(state.theta),
            theta_digest=digest(state.theta),
            ranks=world.size,
            seconds=self._share_seconds(),
        )
        score = _mean(population.eval_returns)
        if math.isfinite(score):
            state.recent_evaluations = [*state.recent_evaluations, score][-GOAL_WINDOW:]
        self._adapt_episodes(population)
        state.iteration += 1
        return report

    @property
    def sigma(self) -> float:
        """Standard deviation of the perturbations in this iteration."""
        return sigma_at(self.config, self.state.iteration)

    def _wait(self) -> None:
        """Wait for the other ranks, charged as idle time."""
        with self.phases(Phase.IDLE):
            self.world.barrier()

    # -- updates ---------------------------------------------------------------------------------------------

    def _update(self, drawn: list[Drawn], returns: NDArray[np.float64]) -> list[Update]:
        """Up to 1 + K updates of theta; none on ranks outside the weights group, or without a valid return."""
        config, state = self.config, self.state
        state.drawn = drawn if self._mixing else drawn[1 - config.reuse_batches :] if config.reuse_batches > 1 else []
        if self._updater is None or not np.isfinite(returns).any():
            return []
        # One utility for one return, whichever population it is from.
        utilities = shapings.shape(_returns_in_use(drawn), config.shaping, config.top_share).ravel()
        parts = np.split(utilities, np.cumsum([one.returns_in_use.size for one in drawn[:-1]]))
        batches = [self._batch(one, part) for one, part in zip(drawn, parts, strict=True)]
        return self._updater.update(state, batches, learning_rate_at(config, state.iteration, state.theta.size))

    def _batch(self, drawn: Drawn, utilities: NDArray[np.float64]) -> Batch:
        """A population with the utilities (samples,) of its members in use."""
        if drawn.used is None or drawn.used.all():
            return Batch(drawn.center, drawn.sigma, drawn.starts, utilities.reshape(drawn.returns.shape))
        spread = np.zeros(drawn.returns.shape)
        spread[drawn.used] = utilities
        return Batch(drawn.center, drawn.sigma, drawn.starts, spread, drawn.used)

    def _is_finite(self) -> bool:
        """Whether this rank's theta is finite, and its norm too."""
        return math.isfinite(kernels.norm(self.state.theta))

    # -- population ------------------------------------------------------------------------------------------

    def _evaluate(self, fresh: Fresh | None) -> Population:
        """The population of this iteration: blocks of n_pairs until enough environment steps are made, or `fresh`."""
        blocks: list[Population] = []
        steps, n_eval = 0, self._evaluations_due()
        with self.phases(Phase.ROLLOUTS):
            normalizer = self.state.obs.normalizer()
        while not blocks or (steps < self.config.min_env_steps and blocks[-1].lengths.any()):
            first, n_eval = len(blocks) * self.config.n_pairs, 0 if blocks else n_eval
            blocks.append(self._evaluate_block(fresh, first, n_eval, normalizer))
            steps += int(blocks[-1].lengths.sum())
        return Population(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))

    def _evaluations_due(self) -> int:
        """How many evaluation episodes this iteration has: all of ``n_eval``, or none.

        Unless ``eval_every`` says when, whenever the steps of all evaluations stay within their share of all steps.
        """
        config, state = self.config, self.state
        if config.eval_every:
            return config.n_eval if state.iteration % config.eval_every == 0 else 0
        if state.eval_episodes:
            length = state.eval_env_steps / state.eval_episodes
        elif state.episodes and not state.episode_cap:
            length = state.env_steps / state.episodes
        else:
            length = self.runner.limit
        evaluations = state.eval_env_steps + config.n_eval * length
        return config.n_eval if evaluations <= EVALUATION_SHARE * (state.env_steps + evaluations) else 0

    def _adapt_episodes(self, population: Population) -> None:
        """Decide after how many steps the next population's episodes are cut."""
        config, state = self.config, self.state
        if not state.episode_cap or not population.ran.any():
            return
        if population.eval_returns.size:
            cut = _mean(population.returns) / float(population.lengths[population.ran].mean())
            whole = _mean(population.eval_returns) / float(population.eval_lengths.mean())
            seen = [[cut], [whole]]  # returns per step
            state.history = np.concatenate([state.history, seen], axis=1)[:, -_HISTORY:]
        cap = episode_schedules.next_cap(
            config.episode_schedule,
            episode_schedules.Facts(
                state.episode_cap, config.train_episode_steps or 0, population.lengths[population.ran], state.env_steps,
                config.episode_budget, self.runner.limit, config.episode_growth, state.history,
            ),
        )  # fmt: skip
        if cap != state.episode_cap:
            state.episode_cap, state.history, state.drawn = cap, np.zeros((2, 0)), []

    def _evaluate_block(
        self, fresh: Fresh | None, first_pair: int, n_eval: int, normalizer: NDArray[np.float64]
    ) -> Population:
        """Evaluation episodes of theta, then one block of pairs, over all ranks as single-episode work items."""
        config, state, theta32 = self.config, self.state, self._theta32
        iteration, d = state.iteration, state.theta.size
        with self.phases(Phase.ROLLOUTS):
            starts, ran = fresh or Fresh.whole(
                self.noise.starts(config.seed, iteration, first_pair, config.n_pairs, d)
            )  # fmt: skip
            n, members = starts.size, np.flatnonzero(ran)
            chosen = generator(config.seed, Stream.OBS_STATISTICS, iteration, first_pair).random(2 * n)
            observe = np.flatnonzero(ran.ravel() & (chosen < config.obs_stat_probability))
            row_of = np.full(2 * n, -1)  # by member, where its statistics go
            row_of[observe] = np.arange(observe.size)
            message = Message(
                returns=slots(n_eval + 2 * n),
                lengths=counts(n_eval + 2 * n),
                observed=slots(observe.size, 1 + normalizer.size),
                episodes_run=counts(1),
            )
            returns, lengths, observed = message["returns"], message["lengths"], message["observed"]
            sigma, run, episodes_run = self.sigma, self.runner.run, 0
            tell, size, n_episodes = self.on_episode, self.world.size, n_eval + members.size
            for is_population, item in self._queue.items(n_eval, members.size):
                if not is_population:
                    theta32[:] = state.theta
                    rng = generator(config.seed, Stream.EVALUATION_EPISODE, iteration, item)
                    slot, row, cap = item, -1, 0
                else:
                    member = int(members[item])
                    rng = self._perturb(starts, first_pair, member, sigma)
                    slot, row, cap = n_eval + member, row_of[member], state.episode_cap
                episode = run(
                    EpisodeTask(theta32, normalizer, rng, config.action_noise, row >= 0, not is_population, cap)
                )
                returns[slot], lengths[slot] = episode.total_reward, episode.length
                episodes_run += 1
                if episode.obs_stats is not None:
                    observed[row] = episode.obs_stats
                if tell is not None:  # the others are as far, about
                    tell(min(episodes_run * size, n_episodes), n_episodes)
            message["episodes_run"][0] = episodes_run
        self._wait()
        with self.phases(Phase.COMM):
            message.reduce(self.world)
        if message["episodes_run"][0] < n_episodes:
            raise Interrupted
        return Population(
            starts, ran, np.where(ran, returns[n_eval:].reshape(n, 2), np.nan), lengths[n_eval:].reshape(n, 2),
            observed, returns[:n_eval], lengths[:n_eval],
        )  # fmt: skip

    def _perturb(self, starts: NDArray[np.int64], first_pair: int, member: int, sigma: float) -> np.random.Generator:
        """Set theta32 to the parameters of a member of a block's pairs, counted in order; returns its generator."""
        pair, second = divmod(member, 2)
        start = int(starts[pair])
        row = self.noise.values[start : start + self._theta32.size]
        kernels.perturb(self.state.theta, sigma, row, 1.0 - 2.0 * second, self._theta32)
        sample = first_pair + pair if self.config.common_random_numbers else 2 * first_pair + member
        return self._rng.at(self.state.iteration, sample)

    # -- report ----------------------------------------------------------------------------------------------

    def _share_seconds(self) -> dict[Phase, float]:
        """Phase times as means over ranks. Collective. Whether theta is finite travels along: one exchange less.

        Raises
        ------
        Diverged
            On every rank, if theta is not finite on any.
        """
        config, state = self.config, self.state
        message = Message(nanoseconds=counts(len(Phase)), diverged=counts(1))
        message["nanoseconds"][:] = [round(1e9 * seconds) for seconds in self.phases.take().values()]
        message["diverged"][0] = not self._is_finite()
        with self.phases(Phase.COMM):
            message.reduce(self.world)
        if message["diverged"][0]:
            rate = learning_rate_at(config, state.iteration, state.theta.size)
            raise Diverged(
                f"theta is no longer finite in iteration {state.iteration}: `learning_rate` {rate:g} is too large for "
                f"`sigma` {config.sigma} and `shaping` {config.shaping}"
            )
        means = message["nanoseconds"] / (1e9 * self.world.size)
        return dict(zip(Phase, means.tolist(), strict=True))


def _returns_in_use(drawn: list[Drawn]) -> NDArray[np.float64]:
    """Returns (samples / 2, 2) of all that is in use, in order; with importance mixing two in a row need be no pair."""
    return np.concatenate([one.returns_in_use for one in drawn]).reshape(-1, 2)


def _mean(sample: NDArray[np.float64]) -> float:
    """The mean of what is finite; NaN if nothing is."""
    finite = sample[np.isfinite(sample)]
    return float(finite.mean()) if finite.size else math.nan
