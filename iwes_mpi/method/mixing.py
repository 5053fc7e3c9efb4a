"""Importance mixing: a set of samples that moves with the search distribution (Sun et al. 2009, section 4).

The set in use has 2·n_pairs samples and counts as drawn from p_t = N(theta_t, sigma_t²I). For the next iteration it
becomes one drawn from p_{t+1}:

1. each of its samples x is kept with probability min(1, (1 − alpha)·p_{t+1}(x)/p_t(x));
2. fresh samples x from p_{t+1} are taken with probability max(alpha, 1 − p_t(x)/p_{t+1}(x)), until the set is full.

The densities of the two kinds, min(p_t, (1 − alpha)·p_{t+1}) and max(alpha·p_{t+1}, p_{t+1} − p_t), add up to p_{t+1}.
Only fresh samples that are taken cost an episode. Members of mirrored pairs are kept and taken one by one.

Each decision is made on one rank, by numbers addressed by the sample, and exchanged: all ranks have the same set.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.method import kernels
from iwes_mpi.method.batch import LOST
from iwes_mpi.method.densities import Around, Densities
from iwes_mpi.method.noise import NoiseTable
from iwes_mpi.method.phases import Phase, Phases
from iwes_mpi.method.seeding import Stream, generator
from iwes_mpi.method.state import Drawn, State
from iwes_mpi.mpi.message import Message, counts
from iwes_mpi.mpi.ranks import Ranks
from iwes_mpi.settings.config import Config


class Fresh(NamedTuple):
    """Pairs that an iteration draws; the same on every rank."""

    starts: NDArray[np.int64]  # (n,) where each pair's noise starts in the table
    used: NDArray[np.bool_]  # (n, 2) the members of which an episode is run

    @classmethod
    def whole(cls, starts: NDArray[np.int64]) -> "Fresh":
        """Pairs of which both members are run."""
        return cls(starts, np.ones((starts.size, 2), dtype=np.bool_))


class Mixing:
    """Chooses the set of an iteration. Collective on the group.

    Parameters
    ----------
    config : Config
    group : Ranks
        The ranks that share the decisions, and all learn them.
    noise : NoiseTable
    phases : Phases
    """

    def __init__(self, config: Config, group: Ranks, noise: NoiseTable, phases: Phases):
        assert config.importance_mixing is not None
        self._alpha, self._n_pairs, self._seed = config.importance_mixing, config.n_pairs, config.seed
        self._group, self._noise, self._phases = group, noise, phases
        self._densities = Densities(group, noise)

    def choose(self, state: State, sigma: float) -> tuple[list[Drawn], Fresh]:
        """The set for the search distribution N(theta, sigma²I) of the state, which is not changed.

        Returns
        -------
        kept : list of Drawn
            What stays of the populations drawn before: pairs of which some member is in use.
        fresh : Fresh
            What is missing for 2·n_pairs samples.
        """
        with self._phases(Phase.WEIGHTS):
            last = state.drawn[-1] if state.drawn else None  # its distribution is p_t
            if last is not None and not kernels.sum_squares((state.theta - last.center) / last.sigma) < 2 * LOST:
                last = None
            kept = [] if last is None else self._keep(state, sigma, last)
            missing = 2 * self._n_pairs - sum(one.returns_in_use.size for one in kept)
            return kept, self._draw(state, sigma, last, missing)

    def _keep(self, state: State, sigma: float, last: Drawn) -> list[Drawn]:
        """Step 1."""
        bounds = np.cumsum([0, *(one.starts.size for one in state.drawn)])
        uniform = generator(self._seed, Stream.MIXING_KEPT, state.iteration).random((int(bounds[-1]), 2))
        message = Message(kept=counts(int(bounds[-1]), 2))
        for one, first in zip(state.drawn, bounds[:-1], strict=True):
            log_ratios = self._densities.ratios(one, state.theta, sigma)
            if one is not last:
                log_ratios -= self._densities.ratios(one, last.center, last.sigma)
            mine = self._group.slice(one.starts.size)
            rows = slice(first + mine.start, first + mine.stop)
            kernels.keep_samples(log_ratios, uniform[rows], self._alpha, message["kept"][rows])
        with self._phases(Phase.COMM):
            message.reduce(self._group)
        kept = (
            _remainder(one, message["kept"][first : first + one.starts.size] > 0)
            for one, first in zip(state.drawn, bounds[:-1], strict=True)
        )
        return [one for one in kept if one.starts.size]

    def _draw(self, state: State, sigma: float, last: Drawn | None, missing: int) -> Fresh:
        """Step 2: `missing` samples, from as many blocks of pairs as it takes."""
        first, d = 0, state.theta.size
        found = [Fresh.whole(np.zeros(0, dtype=np.int64))]
        while missing > 0:
            starts = self._noise.starts(self._seed, state.iteration, first, self._n_pairs, d)
            used = Fresh.whole(starts).used if last is None else self._accept(state, sigma, last, starts, first)
            used &= np.cumsum(used).reshape(used.shape) <= missing
            rows = used.any(axis=1)
            found.append(Fresh(starts[rows], used[rows]))
            missing -= int(np.count_nonzero(used))
            first += self._n_pairs
        return Fresh(*(np.concatenate(parts) for parts in zip(*found, strict=True)))

    def _accept(
        self, state: State, sigma: float, last: Drawn, starts: NDArray[np.int64], first_pair: int
    ) -> NDArray[np.bool_]:
        """Which members (n, 2) of a block of pairs around theta the set could take."""
        mine = self._group.slice(starts.size)
        uniform = generator(self._seed, Stream.MIXING_FRESH, state.iteration, first_pair).random((starts.size, 2))
        message = Message(accepted=counts(starts.size, 2))
        log_ratios = self._densities.ratios(Around(state.theta, sigma, starts), last.center, last.sigma)
        rows = slice(mine.start, mine.stop)
        kernels.accept_samples(log_ratios, uniform[rows], self._alpha, message["accepted"][rows])
        with self._phases(Phase.COMM):
            message.reduce(self._group)
        return message["accepted"] > 0


def _remainder(drawn: Drawn, kept: NDArray[np.bool_]) -> Drawn:
    """The pairs of a population of which some member is in use and kept."""
    used = kept if drawn.used is None else drawn.used & kept
    rows = used.any(axis=1)
    return Drawn(drawn.center, drawn.sigma, drawn.starts[rows], drawn.returns[rows], used[rows])
