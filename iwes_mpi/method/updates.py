"""The updates made from one population: plain ES first, then up to K that importance weights carry further.

Each rule that bounds them is an option; with none of them, and one batch, this is the method of Campos et al. (2018).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.method import kernels
from iwes_mpi.method.batch import LOST, Batch
from iwes_mpi.method.estimator import Estimator
from iwes_mpi.method.noise import NoiseTable
from iwes_mpi.method.optimizers import optimizer_named
from iwes_mpi.method.phases import Phases
from iwes_mpi.method.report import Stop, Update
from iwes_mpi.method.state import State
from iwes_mpi.mpi.ranks import Ranks
from iwes_mpi.settings.config import Config


class Updater:
    """Moves theta by what populations tell. Collective on the group.

    Parameters
    ----------
    config : Config
    group : Ranks
        The ranks that share the weights.
    noise : NoiseTable
    phases : Phases
    """

    def __init__(self, config: Config, group: Ranks, noise: NoiseTable, phases: Phases):
        self._config = config
        self._optimizer = optimizer_named(config.optimizer)
        self._estimator = Estimator(
            group, noise, phases, clip=config.clip, center=config.center, weight_kernel=config.weight_kernel,
            per_pair=config.weigh_pairs, mixed=config.importance_mixing is not None,
        )  # fmt: skip

    def update(self, state: State, batches: Sequence[Batch], learning_rate: float) -> list[Update]:
        """Up to 1 + K updates of theta from the newest of `batches`, and from the older ones with it.

        Parameters
        ----------
        state : State
            Its theta and optimizer move.
        batches : sequence of Batch
            The newest last; its center is theta.
        learning_rate : float

        Returns
        -------
        list of Update
            Those that were made, and the one that a rule prevented.
        """
        config, newest, estimator = self._config, batches[-1], self._estimator
        updates: list[Update] = []
        for k in range(1 + config.iw_updates):
            update = Update(state.iteration, k, kl=newest.kl(state.theta))
            updates.append(update)
            if update.kl > LOST:
                update.stop = Stop.OVERLAP
                break
            if config.repeat_gradient and k > 0:
                update.estimate = updates[0].estimate
            else:
                weighed = estimator.weigh(self._taking_turns(k, batches), state.theta)  # eq. 4: log c± = −r²/2 ± ε·δ
                totals = estimator.add_up(weighed)  # Σc, Σcu and Σ (c₊u₊ − c₋u₋)·ε over the pairs of all ranks
                update.estimate = estimator.solve(totals)  # eq. 3: g = (1/Σc) [Σ (c₊u₊ − c₋u₋)·ε − (Σcu)·δ]
            update.stop = self._prevented(update, batches)
            gradient = update.estimate.gradient if update.estimate else None
            if gradient is None or update.stop is not Stop.NOT:
                break
            step = self._step(state, gradient, newest.sigma, learning_rate)  # theta^{t+k} becomes theta^{t+k+1}
            update.accepted = True
            update.grad_norm, update.update_norm = kernels.norm(gradient), kernels.norm(step)
            if not math.isfinite(kernels.norm(state.theta)):
                break  # for `EvolutionStrategies` to say on every rank
            if self._into_trust_region(state, newest):
                update.stop = Stop.KL
                break
            update.stop = Stop.UPDATES if k == config.iw_updates else Stop.NOT
        return updates

    def _taking_turns(self, k: int, batches: Sequence[Batch]) -> Sequence[Batch]:
        """The batches for update k: with ``cross_fit`` every other pair, those that the update before did not use."""
        return [*batches[:-1], batches[-1].half(k % 2)] if self._config.cross_fit else batches

    def _prevented(self, update: Update, batches: Sequence[Batch]) -> Stop:
        """The rule that keeps an update from being made, if any does. The first update is made if it can be."""
        estimate = update.estimate
        if estimate is None or estimate.gradient is None:
            return Stop.OVERLAP
        effective = estimate.ess
        if self._config.importance_mixing is None:
            # In samples of the newest population: what older ones add may make it more than 1.
            effective = effective * sum(batch.samples for batch in batches) / batches[-1].samples
        return Stop.ESS if update.k > 0 and effective < self._config.min_ess else Stop.NOT

    def _step(
        self, state: State, gradient: NDArray[np.float64], sigma: float, learning_rate: float
    ) -> NDArray[np.float64]:
        """Move theta up the gradient with the optimizer and weight decay; returns the step (d,)."""
        config = self._config
        with np.errstate(over="ignore", invalid="ignore"):  # it is said once, as Diverged
            descent = config.l2 * state.theta - gradient
            state.optimizer, step = self._optimizer.update(state.optimizer, descent, learning_rate, config.momentum)
            r = kernels.norm(step) / sigma
            if r > config.max_step:
                step *= config.max_step / r
            state.theta += step
        return step

    def _into_trust_region(self, state: State, newest: Batch) -> bool:
        """Bring theta back to the sphere ``max_kl`` around the population's center; returns whether it lay outside.

        The optimizer's moments stay: they tell of gradients, not of steps.
        """
        if self._config.max_kl == math.inf:
            return False
        kl = newest.kl(state.theta)
        if kl <= self._config.max_kl:
            return False
        state.theta[:] = newest.center + (state.theta - newest.center) * math.sqrt(self._config.max_kl / kl)
        return True
