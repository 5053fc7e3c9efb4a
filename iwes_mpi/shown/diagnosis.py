"""What a run's figures say about its settings, in words."""

import math

from iwes_mpi.files.columns import Rows
from iwes_mpi.method.schedules import learning_rate_at
from iwes_mpi.settings.config import Config

_USELESS_ESS, _IN_A_ROW = 0.1, 3  # when it is said that importance-weighted updates are of no use


class UselessUpdates:
    """Notices, once, that populations are of no use for the importance-weighted updates made from them.

    Parameters
    ----------
    config : Config
    d : int
        The policy's parameters.
    """

    def __init__(self, config: Config, d: int):
        self._config, self._d = config, d
        self._in_a_row, self._told = 0, False

    def __call__(self, rows: Rows) -> str | None:
        """One sentence when it is time to say so."""
        config = self._config
        useless = config.iw_updates > 0 and rows.smallest_ess < _USELESS_ESS
        self._in_a_row = self._in_a_row + 1 if useless else 0
        if self._told or self._in_a_row < _IN_A_ROW:
            return None
        self._told = True
        ratio = learning_rate_at(config, 0, self._d) * math.sqrt(self._d) / config.sigma
        return (
            f"theta moves so far from its population that less than a tenth of it still counts (ESS), for "
            f"{self._in_a_row} iterations now. learning_rate·√d/sigma is {ratio:.2g}; the paper's is 0.5. Lower "
            f"`step_in_sigma` (or `learning_rate`) or `iw_updates`, or set `min_ess`"
        )
