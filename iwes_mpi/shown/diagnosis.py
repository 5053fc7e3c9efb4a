"""What a run's settings and figures say about each other, in words: each sentence names the setting to turn."""

import math

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.files.columns import Rows
from iwes_mpi.method.schedules import learning_rate_at
from iwes_mpi.settings.config import Config

_USELESS_ESS, _IN_A_ROW = 0.1, 3  # when it is said that importance-weighted updates are of no use
_NONE_IN_A_ROW = 5  # populations without any, after which that is said
_FEWEST_PAIRS = 2  # in use, for weighted updates; with three, weighted updates have paid on a small task
_LATE = 0.23  # an Adam step late in a run, as a share of its first one: the noise decides its direction


def _normal(x: float) -> float:
    """The cumulative distribution function of the standard normal distribution."""
    return math.erfc(-x / math.sqrt(2)) / 2


def expected_ess(r: float, spread: float, clip: float = 1.0) -> float:
    """The effective sample size after theta has moved, as a share of the population.

    Parameters
    ----------
    r : float
        How far, in sigma.
    spread : float
        How many times r² the variance of the log weights is: 1 if theta moved independently of the noise, and about
        1 + d / n_pairs if it moved along it.
    clip : float
        Of the weights; may be infinite.

    Returns
    -------
    float
        Of weights c = min(clip, exp(x)), x ~ N(−r²/2, spread·r²): E[c]² / E[c²].
    """
    variance = spread * r * r
    if variance == 0:
        return 1.0
    deviation = math.sqrt(variance)
    if math.isinf(clip):
        return math.exp(-variance)
    mean = -r * r / 2 - math.log(clip)

    def moment(p: int) -> float:
        """E[min(1, exp(x))^p]; the second term as its limit where its factors leave the range of numbers."""
        x = mean / deviation + p * deviation
        if x > 30:
            beyond = math.exp(-(mean**2) / (2 * variance)) / (x * math.sqrt(2 * math.pi))
        else:
            beyond = math.exp(p * mean + p * p * variance / 2) * _normal(-x)
        return _normal(mean / deviation) + beyond

    return moment(1) ** 2 / max(moment(2), 1e-300)


def beforehand(config: Config, d: int, ranks: int) -> list[str]:
    """What is known to go wrong before the first iteration, one sentence each.

    Parameters
    ----------
    config : Config
    d : int
        The policy's parameters.
    ranks : int
        Of the job.
    """
    found = []
    episodes = 2 * config.n_pairs
    if episodes < ranks and not config.min_env_steps:
        found.append(
            f"a population of {episodes} episodes leaves {ranks - episodes} of {ranks} ranks without work: raise "
            f"`n_pairs`, or use fewer ranks"
        )
    if config.iw_updates and config.n_pairs * config.reuse_batches < _FEWEST_PAIRS:
        found.append(
            f"a population of {config.n_pairs} pair{'s' if config.n_pairs > 1 else ''} is too small to be weighed: the "
            f"ESS of so few samples says nothing; raise `n_pairs`, or set `iw_updates` 0"
        )
    elif text := _useless_updates(config, d):
        found.append(text)
    return found


def _useless_updates(config: Config, d: int) -> str | None:
    """What is wrong if weighted updates will not be made, or be of no use, even with steps as short as they get."""
    adam = config.optimizer == "adam"
    if config.iw_updates == 0 or config.repeat_gradient or (config.learning_rate is not None and not adam):
        return None
    first = learning_rate_at(config, 0, d) * math.sqrt(d) / config.sigma if adam else config.step_in_sigma
    least = max(_USELESS_ESS, config.min_ess / 2)
    along = (2 / math.pi if adam else 1.0) * d / (config.n_pairs * config.reuse_batches)
    ess = expected_ess(_LATE * first, 1 + along, config.clip)
    fresh = expected_ess(_LATE * first, 1.0, config.clip)
    # Of few samples for many parameters, theta moves along their noise, and half of them may count in full: the ESS is
    # large, and says nothing. How far theta is from where new samples would be tells.
    if ess >= least and fresh >= _USELESS_ESS:
        return None
    ess = min(ess, fresh)
    what = "not be made (`min_ess`)" if config.min_ess > ess else "be of no use"
    if fresh >= max(_USELESS_ESS, config.min_ess):
        return (
            f"a population of {config.n_pairs} pairs is so small for {d} parameters that weighted updates will {what}: "
            f"the ESS is about {ess:.2g}; raise `n_pairs`, lower `step_in_sigma`, or set `iw_updates` 0"
        )
    return (
        f"steps are so long that weighted updates will {what}: learning_rate·√d/sigma is {first:.2g}, the ESS about "
        f"{ess:.2g}; leave `learning_rate` out and set `step_in_sigma` to 1 or 2, or set `iw_updates` 0"
    )


def flat_reward(returns: NDArray[np.float64]) -> str | None:
    """One sentence if perturbed policies all got the same return, in four episodes or more."""
    finite = returns[np.isfinite(returns)]
    if finite.size < 4 or np.ptp(finite) > 0:
        return None
    return _flat(float(finite[0]))


def _flat(value: float) -> str:
    return (
        f"all perturbed policies got the same return, {value:g}, which tells nothing of where to go: raise `sigma`, "
        f"lengthen `train_episode_steps`, or give training another reward (`train_env_kwargs`)"
    )


class Diagnosis:
    """Notices, once each, what is wrong with a run while it goes on.

    Parameters
    ----------
    config : Config
    d : int
        The policy's parameters.
    """

    def __init__(self, config: Config, d: int):
        self._config, self._d = config, d
        self._useless, self._none, self._flat = 0, 0, 0  # iterations in a row
        self._told = False  # of useless updates

    def beforehand(self, ranks: int) -> list[str]:
        """See `beforehand`; what it says of updates is not said again."""
        self._told = _useless_updates(self._config, self._d) is not None
        return beforehand(self._config, self._d, ranks)

    def __call__(self, rows: Rows) -> str | None:
        """One sentence when it is time to say so."""
        row = rows.iteration
        # Later it may mean that the task is solved: every policy gets all there is.
        self._flat += row.iteration == self._flat and row.return_std == 0 and row.return_min == row.return_max
        config = self._config
        useless = config.iw_updates > 0 and rows.smallest_ess < _USELESS_ESS
        self._useless = self._useless + 1 if useless else 0
        self._none = self._none + 1 if config.iw_updates > 0 and row.updates == 1 else 0
        if self._flat == _IN_A_ROW == row.iteration + 1:
            return _flat(row.return_mean)
        if self._told or (self._useless < _IN_A_ROW and self._none < _NONE_IN_A_ROW):
            return None
        self._told = True
        ratio = learning_rate_at(config, 0, self._d) * math.sqrt(self._d) / config.sigma
        if self._useless < _IN_A_ROW:
            return (
                f"no importance-weighted update was made for {self._none} iterations now: after its first update theta "
                f"is too far from its population for them (`min_ess`, `max_kl`, `max_step`). learning_rate·√d/sigma is "
                f"{ratio:.2g}; the paper's is 0.5. Lower `step_in_sigma` (or `learning_rate`), raise `n_pairs`, or set "
                f"`iw_updates` 0"
            )
        return (
            f"theta moves so far from its population that less than a tenth of it still counts (ESS), for "
            f"{self._useless} iterations now. learning_rate·√d/sigma is {ratio:.2g}; the paper's is 0.5. Lower "
            f"`step_in_sigma` (or `learning_rate`) or `iw_updates`, or set `min_ess`"
        )
