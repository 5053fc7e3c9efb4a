"""`iwes_mpi.AskTell`: the method for those who own their loop, in one process and without MPI."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from iwes_mpi.files.columns import Rows, rows_of
from iwes_mpi.method.learner import Learner
from iwes_mpi.method.mixing import Fresh
from iwes_mpi.method.noise import NoiseTable, choose_size
from iwes_mpi.method.phases import Phases
from iwes_mpi.method.report import Population
from iwes_mpi.method.room import require_room_for_population
from iwes_mpi.method.state import Drawn, initial_state
from iwes_mpi.method.weight_kernels import needs_norms
from iwes_mpi.mpi.ranks import Solo
from iwes_mpi.rollouts.objective import StartingPoint, number, starting_point
from iwes_mpi.running.objectives import FIXED, OF_UPDATES, plain, refuse_others
from iwes_mpi.settings.config import Config, check_together
from iwes_mpi.settings.wrong_input import WrongInput


class AskTell:
    """IW-ES whose candidates somebody else evaluates: the same updates, bit for bit, as `maximize` makes.

    Each iteration is one `ask` and one `tell`, with up to K importance-weighted updates in it::

        es = iwes_mpi.AskTell(theta0, sigma=0.1)
        for _ in range(100):
            candidates = es.ask()
            es.tell([evaluate(theta) for theta in candidates])

    Parameters
    ----------
    theta0 : array (d,)
        Where it begins.
    seed : int
    **settings
        Settings of ``python -m iwes_mpi.train --help`` on population, update and importance weighting, such as
        `n_pairs`, `sigma`, `learning_rate`, `optimizer`, `iw_updates`, and `noise_table_size`.

    Raises
    ------
    WrongInput
        If an argument is wrong, naming it.
    """

    def __init__(self, theta0: ArrayLike, *, seed: int = 0, **settings: Any):
        refuse_others(settings, OF_UPDATES, "AskTell")
        shape, solo = StartingPoint(starting_point(theta0)), Solo()
        try:
            config = Config(**settings, **FIXED, seed=seed)
            check_together(config)
            require_room_for_population(config, solo, shape.obs_size)
            size, notice = choose_size(config, solo, shape.n_parameters)
        except WrongInput as error:
            raise WrongInput(error.setting, plain(error.problem)) from None
        if notice:  # where memory is short: another table is other noise
            warnings.warn(plain(notice), stacklevel=2)
        self._config = dataclasses.replace(config, noise_table_size=size)
        noise = NoiseTable(solo, seed, size, with_norms=needs_norms(config.weight_kernel))
        self._state = initial_state(seed, shape, config.optimizer)
        self._phases = Phases()
        self._learner = Learner(self._config, solo, solo, noise, self._state, self._phases, limit=1)
        self._asked: tuple[list[Drawn], Fresh] | None = None

    @property
    def theta(self) -> NDArray[np.float64]:
        """The center of the search distribution, a copy (d,): the best guess so far."""
        return self._state.theta.copy()

    @property
    def sigma(self) -> float:
        """Standard deviation of the next candidates around it."""
        return self._learner.sigma

    @property
    def iteration(self) -> int:
        """Iterations that are complete."""
        return self._state.iteration

    def ask(self) -> NDArray[np.float32]:
        """The candidates of this iteration; the same until their returns are told.

        Returns
        -------
        float32 (2·n_pairs, d)
            Mirrored pairs: rows 0 and 1 are theta ± sigma·epsilon, and so on. Fewer with `importance_mixing`.
        """
        _, fresh = self._asking()
        members = np.flatnonzero(fresh.used)
        candidates = np.empty((members.size, self._state.theta.size), dtype=np.float32)
        for row, member in zip(candidates, members.tolist(), strict=True):
            self._learner.perturb(fresh.starts, 0, member, self._learner.sigma, row)
        return candidates

    def rng(self, candidate: int) -> np.random.Generator:
        """A generator of a candidate's own, the one that `maximize` hands to an objective with it.

        Raises
        ------
        IndexError
            If there is no such candidate.
        """
        _, fresh = self._asking()
        member = int(np.flatnonzero(fresh.used)[candidate])
        return self._learner.rng(0, member)

    def tell(self, returns: Sequence[float] | NDArray[Any]) -> Rows:
        """Learn from what the candidates of the last `ask` came to: up to 1 + K updates of theta.

        Parameters
        ----------
        returns : sequence of float
            One for each candidate, in order; larger is better. NaN counts as the worst of them.

        Returns
        -------
        Rows
            What the log of a run would say: `.iteration`, an `IterationRow`, and `.updates`, with the effective sample
            size of each.

        Raises
        ------
        WrongInput
            If nothing was asked, or there are not as many numbers as candidates.
        Diverged
            If theta is not finite any more.
        """
        if self._asked is None:
            raise WrongInput("tell", "comes after ask: there are no candidates whose returns it could be")
        kept, fresh = self._asked
        values = [number("returns", value) for value in returns]
        wanted = int(np.count_nonzero(fresh.used))
        if len(values) != wanted:
            raise WrongInput("returns", f"must be {wanted} numbers, one for each candidate, got {len(values)}")
        told = np.full(fresh.used.shape, np.nan)
        told[fresh.used] = values
        population = Population(
            fresh.starts, fresh.used, told, fresh.used.astype(np.int64), np.zeros((0, 1)), np.zeros(0),
            np.zeros(0, dtype=np.int64),
        )  # fmt: skip
        report = self._learner.update(kept, population)
        self._learner.count(report)
        report.seconds = self._phases.take()
        if not self._learner.is_finite():
            raise self._learner.diverged()
        self._learner.close(population)
        self._asked = None
        return rows_of(report)

    def _asking(self) -> tuple[list[Drawn], Fresh]:
        """What this iteration uses again, and what it draws."""
        if self._asked is None:
            kept, fresh = self._learner.choose()
            self._asked = kept, fresh or self._learner.block(0)
        return self._asked
