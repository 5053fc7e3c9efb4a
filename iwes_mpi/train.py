"""``python -m iwes_mpi.train``: read the settings, build the parts, and iterate until a limit is reached."""

from iwes_mpi.mpi import signals

if __name__ == "__main__":
    signals.note()

from iwes_mpi.mpi import process  # isort: skip  # noqa: F401 - before NumPy: it settles the number of threads

import math
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from iwes_mpi.mpi.program import FINISHED, run_program
from iwes_mpi.mpi.world import World
from iwes_mpi.running import session
from iwes_mpi.running.hook import find_hook
from iwes_mpi.settings.command_line import build_parser, flag, parse
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.printable import one_line
from iwes_mpi.settings.wrong_input import WrongInput

if TYPE_CHECKING:  # loaded by rank 0 alone, or once the input is known to be right
    from iwes_mpi.files.columns import IterationRow
    from iwes_mpi.files.directory import Plan
    from iwes_mpi.method.state import State
    from iwes_mpi.rollouts.episode import EpisodeRunner


def train(world: World, argv: list[str]) -> int:
    """Run the whole of a training run on all ranks; returns the exit code. Collective.

    Raises
    ------
    Refused
        If the input is wrong.
    """
    if "--dry-run" in argv:
        from iwes_mpi.running.dry import dry_run

        return dry_run(world, Training(argv))
    return session.run(world, Training(argv), time.monotonic()).code


class Training:
    """What a command line asks to be trained: a `work.Work`.

    Parameters
    ----------
    argv : list of str
        The command line.
    """

    def __init__(self, argv: list[str]):
        self._argv = argv
        self.command = ["python", "-m", "iwes_mpi.train", *argv]

    def plan(self) -> "Plan":
        """Settle the settings with what the run directory holds; see `work.Work`."""
        from iwes_mpi.files.directory import make_plan  # files are rank 0's business alone, and so is importing them

        plan = make_plan(parse(self._argv))
        if plan.config.stop_at_return is not None and plan.config.n_eval == 0:
            raise WrongInput("stop_at_return", "needs evaluations, but `n_eval` is 0")
        if plan.config.tensorboard:
            from iwes_mpi.shown.tensorboard import require

            require()
        self.hook(plan.config)
        return plan

    def open(self, world: World, config: Config) -> "EpisodeRunner":
        """The environment; see `work.Work`."""
        from iwes_mpi.rollouts.together import open_on_all

        return open_on_all(world, config)

    def hook(self, config: Config) -> "Callable[[IterationRow], object] | None":
        """What ``--on-iteration`` names; see `work.Work`."""
        return None if config.on_iteration is None else find_hook(config.on_iteration)

    def spell(self, text: str) -> str:
        """Settings as flags; see `work.Work`."""
        return build_parser().spell(text)

    def fail(self, problem: str) -> None:
        """Print one line; see `work.Work`."""
        print(f"iwes_mpi.train: error: {one_line(problem)}", file=sys.stderr, flush=True)

    def summarize(self, plan: "Plan", state: "State", median: float, code: int) -> str:
        """Two lines; see `work.Work`."""
        from iwes_mpi.shown.console import clock

        run_dir = plan.run_dir
        verb = "Finished" if code == FINISHED else "Stopped early, with a checkpoint"
        reached = "" if math.isnan(median) else f", evaluation median {median:.1f}"
        python = sys.executable if " " not in sys.executable else "python"
        python = os.path.relpath(python) if python.startswith(os.getcwd() + os.sep) else "python"
        if code == FINISHED:
            trust = " --trust" if ":" in plan.config.env_id else ""
            next_step = f"Results are in {run_dir}; see them with: {python} -m iwes_mpi.evaluate {run_dir}{trust}"
        else:
            go_on = f"{python} -m iwes_mpi.train {flag('resume')} {flag('run_dir')} {run_dir}"
            next_step = f"To go on, on any number of ranks: {go_on}"
        return (
            f"{verb}: {state.iteration} iterations, {state.env_steps} environment steps "
            f"in {clock(state.wall_time)}{reached}.\n{next_step}"
        )


def main() -> NoReturn:
    """Run the program on this process's command line."""
    run_program("iwes_mpi.train", build_parser, train)


if __name__ == "__main__":
    main()
