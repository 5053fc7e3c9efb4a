"""A run directory for its readers: settings, tables and policy."""

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.files.log import LOG
from iwes_mpi.files.reader import LogError, read_attrs, read_population, read_table
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.limits import finished

if TYPE_CHECKING:
    import pandas as pd

    from iwes_mpi.files.checkpoint import Checkpoint  # loads compiled code: only for whoever asks for one
    from iwes_mpi.policy.policy import Policy

X = Literal["env_steps", "wall_time", "iteration"]  # what a run's figures are drawn against


class Run:
    """What a run directory tells: settings, tables and policy, of a finished, running or killed run.

    Everything is read when it is first asked for, and kept; open the run again for news.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    @cached_property
    def attrs(self) -> dict[str, Any]:
        """Root attributes of the log: provenance of the run."""
        return read_attrs(self.path / LOG)

    @cached_property
    def config(self) -> Config:
        """The run's settings."""
        try:
            return Config.from_json(self.attrs["config"])
        except (KeyError, ValueError, TypeError) as error:
            raise LogError(f"{self.path / LOG} has no valid configuration: {error}") from None

    @cached_property
    def iterations(self) -> "pd.DataFrame":
        """One row per iteration (`columns.IterationRow`)."""
        return read_table(self.path / LOG, "iterations")

    @cached_property
    def updates(self) -> "pd.DataFrame":
        """One row per optimizer update (`columns.UpdateRow`), of the iterations in `iterations`."""
        complete = len(self.iterations)
        updates = read_table(self.path / LOG, "updates")
        return updates[updates["iteration"] < complete]

    @cached_property
    def population(self) -> dict[str, NDArray[Any]] | None:
        """Arrays ``returns`` and ``lengths`` (iterations, n_pairs, 2), or None if the run did not log them."""
        return read_population(self.path / LOG, len(self.iterations))

    @cached_property
    def checkpoint(self) -> "Checkpoint":
        """The newest checkpoint that is intact. Raises CheckpointError if there is none."""
        from iwes_mpi.files.checkpoint import load_newest

        return load_newest(self.path)

    @property
    def theta(self) -> NDArray[np.float64]:
        """The policy's parameters (d,) in the newest checkpoint."""
        return self.checkpoint.state.theta

    def policy(self, checkpoint: int | str | os.PathLike[str] | None = None, *, trust: bool = False) -> "Policy":
        """The run's policy as something that acts: ``action = run.policy()(obs)``.

        Parameters
        ----------
        checkpoint : int or path, optional
            The iteration of one that `keep_checkpoints` has kept, or any checkpoint file; by default the newest.
        trust : bool
            Whether to import the module that the run's `env_id` names, if it names one: its code is executed.

        Raises
        ------
        CheckpointError
            If there is no such checkpoint, or it is damaged.
        WrongInput
            If the run's environment cannot be made (its action space is asked), or not without `trust`; or the run has
            no policy.
        """
        from iwes_mpi.files.checkpoint import policy_in

        return policy_in(self._kept(checkpoint), str(self.path), trust)

    def _kept(self, checkpoint: int | str | os.PathLike[str] | None) -> "Checkpoint":
        from iwes_mpi.files.checkpoint import CheckpointError, load
        from iwes_mpi.files.trail import trail

        if checkpoint is None:
            return self.checkpoint
        if not isinstance(checkpoint, int):
            return load(Path(checkpoint))
        kept = trail(self.path)
        if checkpoint not in kept:
            there = f"those of {', '.join(map(str, kept))}" if kept else "none"
            raise CheckpointError(f"{self.path} has kept no checkpoint of iteration {checkpoint}, but {there}")
        return load(kept[checkpoint])

    @property
    def env_steps(self) -> int:
        """Environment steps of population episodes so far."""
        return int(self.iterations["env_steps"].iloc[-1]) if len(self.iterations) else 0

    @property
    def finished(self) -> bool:
        """Whether the run has come to one of the limits that it was given."""
        evaluations = self.iterations["eval_return_mean"].dropna().tolist()
        return finished(self.config, len(self.iterations), self.env_steps, evaluations)

    def spent(self, x: X) -> "pd.Series[Any]":
        """What had been spent at the *start* of each iteration: 0 in the first row.

        Returns and evaluations belong to theta at that moment.
        """
        rows = self.iterations
        return rows["iteration"] if x == "iteration" else rows[x].shift(1, fill_value=0)

    def curve(self, x: X = "env_steps", y: str = "eval_return_median") -> tuple[NDArray[Any], NDArray[Any]]:
        """One column against what had been spent (`spent`), without the rows where it is not a number."""
        known = self.iterations[y].notna()
        return self.spent(x)[known].to_numpy(np.float64), self.iterations[y][known].to_numpy(np.float64)

    @property
    def ess_by_iteration(self) -> "pd.Series[Any]":
        """The smallest effective sample size of each iteration's updates, by iteration."""
        return self.updates.groupby("iteration")["ess"].min()

    def smallest_ess(self, x: X = "env_steps") -> tuple[NDArray[Any], NDArray[Any]]:
        """The smallest effective sample size of each iteration that has one, against `spent`."""
        smallest = self.ess_by_iteration.reindex(self.iterations["iteration"])
        values = smallest.to_numpy(np.float64)
        known = np.isfinite(values)
        return self.spent(x).to_numpy(np.float64)[known], values[known]

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open the run in a directory for reading; the run may be going on.

    Raises
    ------
    LogError
        If there is no readable log in it.
    """
    run = Run(path)
    _ = run.attrs
    return run
