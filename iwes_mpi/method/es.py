"""One iteration of IW-ES on the state of a run.

Reads like the algorithm: evaluate a population around theta on all ranks, then learn from its returns (`learner`):
shape them and make up to 1 + K updates, the later ones reweighted by importance sampling (Campos et al. 2018).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.method.learner import Learner
from iwes_mpi.method.mixing import Fresh
from iwes_mpi.method.noise import NoiseTable
from iwes_mpi.method.phases import Phase, Phases
from iwes_mpi.method.report import Population, Report
from iwes_mpi.method.seeding import Stream, generator
from iwes_mpi.method.state import State
from iwes_mpi.mpi.message import Message, counts, slots
from iwes_mpi.mpi.queue import Seconds, WorkQueue
from iwes_mpi.mpi.stop import StopFlag
from iwes_mpi.mpi.world import World
from iwes_mpi.policy import network
from iwes_mpi.rollouts.episode import EpisodeRunner, EpisodeTask
from iwes_mpi.settings.config import Config

EVALUATION_SHARE = 0.1  # of all environment steps, unless --eval-every says how often


class Interrupted(Exception):
    """A population was dropped unfinished because of a request to stop; the state is that before the iteration."""


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
        self._tendency = 0  # of pairs' lengths in the last population
        self._theta32 = network.empty_parameters(state.theta.size)
        updating = world.weights_group(config.weights_on)
        self.learner = Learner(config, world, updating, noise, state, self.phases, runner.limit)

    def iterate(self) -> Report:
        """One iteration: a population, and the updates made from it. Collective.

        Raises
        ------
        Interrupted
            On every rank, if a request to stop came before the population was complete.
        Diverged
            On every rank, if an update made theta infinite or NaN. The state is of no use any more.
        """
        learner = self.learner
        self._wait()
        with self.phases(Phase.COMM):
            self.world.broadcast(self.state.theta)  # ranks that took no part in the last updates learn theta here
        kept, fresh = learner.choose()
        population = self._evaluate(fresh)
        self._tendency = tendency(population.lengths)
        report = learner.update(kept, population)
        self._wait()  # ranks that take no part in the updates
        learner.count(report)
        report.ranks, report.seconds = self.world.size, self._share_seconds()
        learner.close(population)
        return report

    def _wait(self) -> None:
        """Wait for the other ranks, charged as idle time."""
        with self.phases(Phase.IDLE):
            self.world.barrier()

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

    def _evaluate_block(
        self, fresh: Fresh | None, first_pair: int, n_eval: int, normalizer: NDArray[np.float64]
    ) -> Population:
        """Evaluation episodes of theta, then one block of pairs, over all ranks as single-episode work items."""
        config, state, theta32 = self.config, self.state, self._theta32
        iteration = state.iteration
        with self.phases(Phase.ROLLOUTS):
            starts, ran = fresh or self.learner.block(first_pair)
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
            sigma, perturb, run, episodes_run = self.learner.sigma, self.learner.perturb, self.runner.run, 0
            tell, size, n_episodes = self.on_episode, self.world.size, n_eval + members.size
            seconds = None
            if self._tendency and members.size == 2 * n:
                seconds = Seconds(lengths[n_eval:].reshape(n, 2), self._tendency)
            for is_population, item in self._queue.items(n_eval, members.size, seconds=seconds):
                if not is_population:
                    theta32[:] = state.theta
                    rng = generator(config.seed, Stream.EVALUATION_EPISODE, iteration, item)
                    slot, row, cap = item, -1, 0
                else:
                    member = int(members[item])
                    rng = perturb(starts, first_pair, member, sigma, theta32)
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

    # -- report ----------------------------------------------------------------------------------------------

    def _share_seconds(self) -> dict[Phase, float]:
        """Phase times as means over ranks. Collective. Whether theta is finite travels along: one exchange less.

        Raises
        ------
        Diverged
            On every rank, if theta is not finite on any.
        """
        message = Message(nanoseconds=counts(len(Phase)), diverged=counts(1))
        message["nanoseconds"][:] = [round(1e9 * seconds) for seconds in self.phases.take().values()]
        message["diverged"][0] = not self.learner.is_finite()
        with self.phases(Phase.COMM):
            message.reduce(self.world)
        if message["diverged"][0]:
            raise self.learner.diverged()
        means = message["nanoseconds"] / (1e9 * self.world.size)
        return dict(zip(Phase, means.tolist(), strict=True))


def tendency(lengths: NDArray[np.int64]) -> int:
    """Whether the second member of a pair lasts the longer, the longer (1) or the shorter (-1) the first one lasted.

    Told by the correlation of ranks in a population's lengths (n, 2), of the first pairs if there are many; 0 if it is
    within what chance makes of unrelated lengths, if all are as long, or if there are none.
    """
    sample = lengths[:_TELLING]
    if not len(sample):  # importance mixing may have kept all samples
        return 0
    ranks = [np.unique(column, return_inverse=True)[1] for column in sample.T]
    first, second = (column - column.mean() for column in ranks)
    product, squares = float(first @ second), float(first @ first) * float(second @ second)
    if len(sample) * product**2 <= _CHANCE**2 * squares:
        return 0
    return 1 if product > 0 else -1


_TELLING = 2000  # pairs, from which the correlation is clear enough
_CHANCE = 2.0  # standard deviations of the correlation of unrelated lengths
