"""One iteration of IW-ES but for the evaluation of its population: what to draw, and what to learn from the returns.

Whoever has the returns (`es` from all ranks, `running.ask_tell` from its caller) goes on from them in the same way.
"""

import math

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.method import episode_schedules, kernels, shapings
from iwes_mpi.method.batch import Batch
from iwes_mpi.method.mixing import Fresh, Mixing
from iwes_mpi.method.noise import NoiseTable
from iwes_mpi.method.phases import Phases
from iwes_mpi.method.report import Population, Report, Update
from iwes_mpi.method.schedules import learning_rate_at, sigma_at
from iwes_mpi.method.seeding import Movable, Stream, generator
from iwes_mpi.method.state import Drawn, State, digest
from iwes_mpi.method.updates import Updater
from iwes_mpi.mpi.ranks import Ranks
from iwes_mpi.policy import obs_stats
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.limits import GOAL_WINDOW

_HISTORY = 64  # evaluations that an episode schedule may look back on


class Diverged(FloatingPointError):
    """Theta is no longer finite, and the run is lost; known on every rank."""


class Learner:
    """What a run draws and learns; the same on every rank that makes updates.

    Parameters
    ----------
    config : Config
    everyone : Ranks
        All ranks: they choose the samples.
    updating : Ranks or None
        Those that make the updates; None if this rank is not one of them.
    noise : NoiseTable
    state : State
        Advanced in place by `update`, `count` and `close`, in this order.
    phases : Phases
    limit : int
        Steps of the longest episode.
    """

    def __init__(
        self, config: Config, everyone: Ranks, updating: Ranks | None, noise: NoiseTable, state: State,
        phases: Phases, limit: int,
    ):  # fmt: skip
        self._config, self._noise, self._state, self._limit = config, noise, state, limit
        self._mixing = None if config.importance_mixing is None else Mixing(config, everyone, noise, phases)
        self._updater = None if updating is None else Updater(config, updating, noise, phases)
        self._rng = Movable(config.seed, Stream.POPULATION_EPISODE)

    @property
    def sigma(self) -> float:
        """Standard deviation of the perturbations in this iteration."""
        return sigma_at(self._config, self._state.iteration)

    # -- what to draw ----------------------------------------------------------------------------------------

    def choose(self) -> tuple[list[Drawn], Fresh | None]:
        """The populations drawn before that this iteration uses again, and what it draws; None for whole blocks."""
        return (self._state.drawn, None) if self._mixing is None else self._mixing.choose(self._state, self.sigma)

    def block(self, first_pair: int) -> Fresh:
        """A block of n_pairs pairs, from pair `first_pair` of this iteration on."""
        config, state = self._config, self._state
        return Fresh.whole(
            self._noise.starts(config.seed, state.iteration, first_pair, config.n_pairs, state.theta.size)
        )

    def perturb(
        self, starts: NDArray[np.int64], first_pair: int, member: int, sigma: float, out: NDArray[np.float32]
    ) -> np.random.Generator:
        """Set `out` (d,) to the parameters of a member of a block's pairs, counted in order.

        Returns
        -------
        numpy.random.Generator
            The member's; it is another member's once this is called again.
        """
        pair, second = divmod(member, 2)
        start = int(starts[pair])
        row = self._noise.values[start : start + out.size]
        kernels.perturb(self._state.theta, sigma, row, 1.0 - 2.0 * second, out)
        return self._rng.at(self._state.iteration, self._sample(first_pair, member))

    def rng(self, first_pair: int, member: int) -> np.random.Generator:
        """A member's generator, for its caller to keep."""
        address = self._state.iteration, self._sample(first_pair, member)
        return generator(self._config.seed, Stream.POPULATION_EPISODE, *address)

    def _sample(self, first_pair: int, member: int) -> int:
        """The address of a member's draws in an iteration; with common random numbers both of a pair have one."""
        return first_pair + member // 2 if self._config.common_random_numbers else 2 * first_pair + member

    # -- what to learn ---------------------------------------------------------------------------------------

    def update(self, kept: list[Drawn], population: Population) -> Report:
        """Up to 1 + K updates of theta; none on ranks that make none, or without a valid return. Collective on those.

        Returns
        -------
        Report
            Without the counts, which `count` fills in.
        """
        config, state, mixed = self._config, self._state, self._mixing is not None
        before = state.theta.copy()
        used = population.ran if mixed else None
        drawn = [*kept, Drawn(before.copy(), self.sigma, population.starts, population.returns, used)]
        returns = _returns_in_use(drawn) if mixed else population.returns
        state.drawn = drawn if mixed else drawn[1 - config.reuse_batches :] if config.reuse_batches > 1 else []
        updates: list[Update] = []
        if self._updater is not None and np.isfinite(returns).any():
            # One utility for one return, whichever population it is from.
            utilities = shapings.shape(_returns_in_use(drawn), config.shaping, config.top_share).ravel()
            parts = np.split(utilities, np.cumsum([one.returns_in_use.size for one in drawn[:-1]]))
            batches = [_batch(one, part) for one, part in zip(drawn, parts, strict=True)]
            updates = self._updater.update(state, batches, learning_rate_at(config, state.iteration, state.theta.size))
        return Report(
            iteration=state.iteration,
            episode_cap=state.episode_cap,
            population=population,
            returns=returns,
            kept_samples=1.0 - int(np.count_nonzero(population.ran)) / returns.size if mixed else 0.0,
            updates=updates,
            sigma=self.sigma,
            update_norm=kernels.norm(state.theta - before),
            theta_norm=kernels.norm(state.theta),
            theta_digest=digest(state.theta),
        )

    def count(self, report: Report) -> None:
        """Enter an iteration's episodes into the state, and what that comes to into its report."""
        state, population = self._state, report.population
        state.obs = obs_stats.merge_all(state.obs, population.observed)
        state.env_steps += int(population.lengths.sum())
        state.episodes += int(np.count_nonzero(population.ran))
        state.eval_env_steps += int(population.eval_lengths.sum())
        state.eval_episodes += population.eval_lengths.size
        report.env_steps, report.episodes, report.eval_env_steps = state.env_steps, state.episodes, state.eval_env_steps

    def is_finite(self) -> bool:
        """Whether this rank's theta is finite, and its norm too."""
        return math.isfinite(kernels.norm(self._state.theta))

    def diverged(self) -> Diverged:
        """What to raise once theta is not finite on any rank."""
        config, state = self._config, self._state
        rate = learning_rate_at(config, state.iteration, state.theta.size)
        return Diverged(
            f"theta is no longer finite in iteration {state.iteration}: `learning_rate` {rate:g} is too large for "
            f"`sigma` {config.sigma} and `shaping` {config.shaping}"
        )

    def close(self, population: Population) -> None:
        """Go on to the next iteration."""
        state = self._state
        score = mean_of_finite(population.eval_returns)
        if math.isfinite(score):
            state.recent_evaluations = [*state.recent_evaluations, score][-GOAL_WINDOW:]
        self._adapt_episodes(population)
        state.iteration += 1

    def _adapt_episodes(self, population: Population) -> None:
        """Decide after how many steps the next population's episodes are cut."""
        config, state = self._config, self._state
        if not state.episode_cap or not population.ran.any():
            return
        if population.eval_returns.size:
            cut = mean_of_finite(population.returns) / float(population.lengths[population.ran].mean())
            whole = mean_of_finite(population.eval_returns) / float(population.eval_lengths.mean())
            seen = [[cut], [whole]]  # returns per step
            state.history = np.concatenate([state.history, seen], axis=1)[:, -_HISTORY:]
        cap = episode_schedules.next_cap(
            config.episode_schedule,
            episode_schedules.Facts(
                state.episode_cap, config.train_episode_steps or 0, population.lengths[population.ran], state.env_steps,
                config.episode_budget, self._limit, config.episode_growth, state.history,
            ),
        )  # fmt: skip
        if cap != state.episode_cap:
            state.episode_cap, state.history, state.drawn = cap, np.zeros((2, 0)), []


def _batch(drawn: Drawn, utilities: NDArray[np.float64]) -> Batch:
    """A population with the utilities (samples,) of its members in use."""
    if drawn.used is None or drawn.used.all():
        return Batch(drawn.center, drawn.sigma, drawn.starts, utilities.reshape(drawn.returns.shape))
    spread = np.zeros(drawn.returns.shape)
    spread[drawn.used] = utilities
    return Batch(drawn.center, drawn.sigma, drawn.starts, spread, drawn.used)


def _returns_in_use(drawn: list[Drawn]) -> NDArray[np.float64]:
    """Returns (samples / 2, 2) of all that is in use, in order; with importance mixing two in a row need be no pair."""
    return np.concatenate([one.returns_in_use for one in drawn]).reshape(-1, 2)


def mean_of_finite(sample: NDArray[np.float64]) -> float:
    """The mean of what is finite; NaN if nothing is."""
    finite = sample[np.isfinite(sample)]
    return float(finite.mean()) if finite.size else math.nan
