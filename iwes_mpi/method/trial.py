"""A few episodes and updates, timed: what an iteration would take, known before a run begins."""

import dataclasses
import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.method import kernels
from iwes_mpi.method.batch import Batch
from iwes_mpi.method.phases import Phases
from iwes_mpi.method.rehearsal import SmallTable
from iwes_mpi.method.seeding import Stream, generator
from iwes_mpi.method.state import State, initial_state
from iwes_mpi.method.updates import Updater
from iwes_mpi.method.weight_kernels import needs_norms
from iwes_mpi.mpi.group import alone
from iwes_mpi.mpi.message import Message, counts, slots
from iwes_mpi.mpi.world import World
from iwes_mpi.rollouts.episode import EpisodeRunner, EpisodeTask
from iwes_mpi.settings.config import Config

_EPISODES = 4  # of each rank, and as many more as none is begun after so many seconds:
_ENOUGH = 5.0  # s
_PAIRS = 64  # that an update is timed with, at most


class Trial(NamedTuple):
    """What was measured: sums and means over all ranks."""

    episode_steps: float  # mean length of the population's episodes
    whole_steps: float  # mean length of whole episodes, as evaluation has them
    step_seconds: float  # s of a rank, per environment step
    pair_seconds: float  # s of a rank, per update and pair
    returns: NDArray[np.float64]  # (episodes,) of perturbed policies


def trial(config: Config, world: World, runner: EpisodeRunner, state: State) -> Trial:
    """Run a few episodes of perturbed policies on every rank, and updates of a small population. Collective.

    The state is not touched, nothing is written, and there is no noise table. Call `rehearsal.rehearse` before.
    """
    mine = world.rank * _EPISODES
    message = Message(
        run=counts(2), steps=counts(2), nanoseconds=counts(2), returns=slots(world.size * _EPISODES),
        known=counts(world.size * _EPISODES),
    )  # fmt: skip
    normalizer, d = state.obs.normalizer(), state.theta.size
    theta32 = np.empty(d, dtype=np.float32)
    whole_too = bool(state.episode_cap or config.train_env_kwargs)
    begin = time.monotonic()
    for i in range(_EPISODES + whole_too):
        if i > whole_too and time.monotonic() - begin > _ENOUGH:
            break
        whole = whole_too and i == 0
        rng = generator(config.seed, Stream.SCORE_EPISODE, 1, mine + i)
        theta32[:] = state.theta if whole else state.theta + config.sigma * rng.standard_normal(d)
        task = EpisodeTask(
            theta32, normalizer, rng, config.action_noise, False, whole, 0 if whole else state.episode_cap
        )
        before = time.perf_counter_ns()
        episode = runner.run(task)
        message["nanoseconds"][int(whole)] += time.perf_counter_ns() - before
        message["run"][int(whole)] += 1
        message["steps"][int(whole)] += episode.length
        if not whole:
            message["returns"][mine + i - whole_too] = episode.total_reward
            message["known"][mine + i - whole_too] = 1
    pair_seconds = _time_updates(config, runner)
    message.reduce(world)
    run, steps, ns = (message[name] for name in ("run", "steps", "nanoseconds"))
    means = steps / np.maximum(run, 1)
    return Trial(
        episode_steps=float(means[0]),
        whole_steps=float(means[1] if whole_too else means[0]),
        step_seconds=float(ns.sum() / max(steps.sum(), 1)) / 1e9,
        pair_seconds=world.maximum(pair_seconds),
        returns=message["returns"][message["known"] > 0].copy(),
    )


def _time_updates(config: Config, runner: EpisodeRunner) -> float:
    """Seconds of this rank per update and pair."""
    n, d = min(config.n_pairs, _PAIRS), runner.network.n_parameters
    table = SmallTable(d + kernels.BLOCK, needs_norms(config.weight_kernel))
    updater = Updater(dataclasses.replace(config, iw_updates=1, min_ess=0.0), alone(), table, Phases())
    state = initial_state(0, runner.network, config.optimizer)
    utilities = np.linspace(-0.5, 0.5, 2 * n).reshape(n, 2)
    seconds = []
    for _ in range(3):
        batch = Batch(state.theta.copy(), config.sigma, np.arange(n) % kernels.BLOCK, utilities)
        before = time.perf_counter()
        updater.update(state, [batch], 0.1 * config.sigma / np.sqrt(d))
        seconds.append(time.perf_counter() - before)
    return min(seconds) / (2 * n)
