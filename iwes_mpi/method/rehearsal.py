"""Getting ready for the first iteration: every compiled function that a run calls is compiled, or loaded, before it.

A function compiled in the midst of a population would be compiled by all ranks of a node at once, and the time
would be charged to the rollouts.
"""

import dataclasses

import numpy as np

from iwes_mpi.method import kernels
from iwes_mpi.method.batch import Batch
from iwes_mpi.method.mixing import Mixing
from iwes_mpi.method.noise import NoiseTable
from iwes_mpi.method.phases import Phases
from iwes_mpi.method.seeding import Stream, generator
from iwes_mpi.method.state import Drawn, initial_state
from iwes_mpi.method.updates import Updater
from iwes_mpi.method.weight_kernels import needs_norms
from iwes_mpi.mpi.group import alone
from iwes_mpi.policy.obs_stats import initial_stats, merge_all, pack
from iwes_mpi.rollouts.episode import EpisodeRunner, EpisodeTask
from iwes_mpi.settings.config import Config


class SmallTable(NoiseTable):
    """A small noise table of this process alone."""

    def __init__(self, size: int, with_norms: bool):
        self.values = np.resize(generator(0, Stream.NOISE_TABLE).standard_normal(1000, np.float32), size)
        self.prefix = np.zeros(1 + (size // kernels.BLOCK if with_norms else 0))
        if with_norms:
            kernels.block_square_sums(self.values, 0, self.prefix[1:])
        self.values.flags.writeable = self.prefix.flags.writeable = False


def rehearse(config: Config, runner: EpisodeRunner) -> None:
    """Call once, on small numbers and with no effect, each compiled function of an iteration."""
    obs_size, d = runner.network.obs_size, runner.network.n_parameters
    theta, theta32 = np.zeros(d), np.zeros(d, dtype=np.float32)
    table = SmallTable(d + kernels.BLOCK, needs_norms(config.weight_kernel))
    kernels.perturb(theta, config.sigma, table.values[:d], 1.0, theta32)
    stats = initial_stats(obs_size, config.whiten)
    normalizer = stats.normalizer()
    merge_all(stats, pack(stats)[None])
    for observe in (False, True):
        runner.rehearse(EpisodeTask(theta32, normalizer, generator(0, Stream.INITIALIZATION), 0.01, observe))
    if config.importance_mixing is not None:
        _rehearse_mixing(config, runner, table)
    # At the center of a population its weights are known to be 1, farther out they are not.
    updater = Updater(dataclasses.replace(config, iw_updates=1, min_ess=0.0), alone(), table, Phases())
    for n_batches in {1, 2 if config.importance_mixing is not None else min(2, config.reuse_batches)}:
        state = initial_state(0, runner.network, config.optimizer)
        batches = [
            Batch(state.theta + 0.1 * i * config.sigma / np.sqrt(d), (1 + i) * config.sigma,
                  np.full(1, i), np.array([[0.5, -0.5]]))
            for i in reversed(range(n_batches))
        ]  # fmt: skip
        updater.update(state, batches, 0.1 * config.sigma / np.sqrt(d))


def _rehearse_mixing(config: Config, runner: EpisodeRunner, table: NoiseTable) -> None:
    """Call once each compiled function that chooses samples."""
    state = initial_state(0, runner.network, config.optimizer)
    returns, used = np.zeros((1, 2)), np.ones((1, 2), dtype=np.bool_)
    state.drawn = [Drawn(state.theta + config.sigma, config.sigma, np.zeros(1, dtype=np.int64), returns, used)]
    Mixing(dataclasses.replace(config, n_pairs=1), alone(), table, Phases()).choose(state, config.sigma)
