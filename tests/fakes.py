"""Stand-ins: an objective in place of an environment, threads in place of ranks."""

import threading
from types import SimpleNamespace

import numpy as np

from iwes_mpi.method import es
from iwes_mpi.method import state as states
from iwes_mpi.mpi.ranks import split
from iwes_mpi.policy import network, obs_stats
from iwes_mpi.rollouts.episode import Episode
from iwes_mpi.settings.config import Config

LENGTH = 10  # steps of every fake episode


# -- an objective in place of an environment -----------------------------------------------------------------


class FakeRunner:
    """An objective in place of an environment; remembers what it was asked."""

    description = "a fake"
    limit = LENGTH

    def __init__(self, objective, sizes=(5, 7, 3)):
        self.network = network.layout(sizes[0], sizes[1:-1], sizes[-1])
        self.objective = objective
        self.tasks, self.observations = [], []

    def run(self, task):
        self.tasks.append(task._replace(theta=task.theta.copy(), normalizer=task.normalizer.copy()))
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


def build(world, noise, objective=smooth, sizes=(5, 7, 3), state=None, **settings):
    """A run on one rank, from its beginning or a state; returns it and its runner."""
    small = {"n_pairs": 30, "min_env_steps": 0, "n_eval": 2, "eval_every": 1, "sigma": 0.05}
    plain = {"iw_updates": 0, "min_ess": 0.0, "learning_rate": 0.01, "l2": 0.005, "obs_stat_probability": 0.01}
    config = Config(**small | plain | settings)
    runner = FakeRunner(objective, sizes)
    state = state or states.initial_state(3, runner.network, config.optimizer)
    return es.EvolutionStrategies(config, world, runner, noise, state, NeverStop), runner


def epsilons(noise, starts, d):
    return np.stack([noise.values[start : start + d] for start in starts]).astype(np.longdouble)


# -- threads in place of ranks -------------------------------------------------------------------------------


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


def on_ranks(size, rank_main):
    """What `rank_main(group)` returns on each of `size` ranks."""
    shared = SimpleNamespace(slots=[None] * size, barrier=threading.Barrier(size))
    results, errors = [None] * size, []

    def main(rank):
        try:
            results[rank] = rank_main(ThreadGroup(rank, size, shared))
        except threading.BrokenBarrierError:  # another rank failed
            pass
        except BaseException as error:
            errors.append(error)
            shared.barrier.abort()

    threads = [threading.Thread(target=main, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    return results
