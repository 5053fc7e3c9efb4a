"""``python -m iwes_mpi.train``: read the settings, build the parts, and iterate until a limit is reached."""

from iwes_mpi.mpi import signals

if __name__ == "__main__":
    signals.note()

import dataclasses
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from iwes_mpi.mpi.process import library_version
from iwes_mpi.mpi.program import FAILED, FINISHED, STOPPED_EARLY, STORAGE_FAILED, agree, run_program
from iwes_mpi.mpi.stop import StopFlag
from iwes_mpi.mpi.world import World
from iwes_mpi.settings.command_line import build_parser, flag, parse
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.limits import finished, reached_limit
from iwes_mpi.settings.wrong_input import WrongInput

if TYPE_CHECKING:  # loaded by rank 0 alone, or once the input is known to be right
    from iwes_mpi.files.directory import Plan
    from iwes_mpi.method.report import Report
    from iwes_mpi.method.state import State
    from iwes_mpi.rollouts.episode import EpisodeRunner
    from iwes_mpi.shown.console import Display

_GO_ON = 0


def train(world: World, argv: list[str]) -> int:
    """Run the whole of a training run on all ranks; returns the exit code. Collective.

    A stop that is requested while the run gets ready ends with STOPPED_EARLY too: between its stages, which take as
    long as compiling does at most. Before the environment is made, a new run has left nothing behind yet and an old
    one is as it was; ``--resume auto`` goes on in either case.

    Raises
    ------
    Refused
        If the input is wrong.
    """
    begin = time.monotonic()
    if not world.is_root:
        _import_parts()  # while rank 0 finds out whether the input is right
    plan = agree(world, lambda: _plan(argv), on_root=True)
    config, state = world.from_root(plan and (plan.config, plan.checkpoint and plan.checkpoint.state))
    stop = StopFlag(world, None if config.max_wall_time is None else begin + config.max_wall_time)

    if stop.agreed():
        if world.is_root:
            print(
                build_parser().spell("Stopped before the run had begun: start it again with `resume` auto"), flush=True
            )
        stop.drain()
        stop.release()
        world.close()
        return STOPPED_EARLY

    from iwes_mpi.method.noise import choose_size
    from iwes_mpi.method.state import initial_state
    from iwes_mpi.rollouts.together import open_on_all

    runner = open_on_all(world, config)
    d = runner.network.n_parameters
    size, notice = agree(world, lambda: choose_size(config, world, d)) or (0, None)
    config = dataclasses.replace(config, noise_table_size=size)
    state = state or initial_state(
        config.seed, runner.network, config.optimizer, config.train_episode_steps or 0, config.whiten
    )
    agree(world, lambda: _check_fit(state, runner))

    if "--dry-run" in argv:
        _dry_run(config, world, runner, size, state, notice)
        stop.drain()
        stop.release()
        runner.close()
        world.close()
        return FINISHED
    desk = agree(world, lambda: plan and _Desk(plan, config, state, world, begin), on_root=True)
    if desk is not None:
        desk.begin(f"{runner.description}, {d} parameters", notice)
    code, problem = _iterate(config, world, runner, size, state, stop, desk)
    stop.drain()
    if desk is not None:
        code = desk.end(code, problem)
    code = world.from_root(code)  # rank 0 alone knows whether its files are written
    stop.release()
    runner.close()
    world.close()
    return code


def _iterate(
    config: Config, world: World, runner: "EpisodeRunner", size: int, state: "State", stop: StopFlag,
    desk: "_Desk | None",
) -> tuple[int, str]:  # fmt: skip
    """Get ready, fill a noise table of `size` and iterate until a limit is reached or the run must stop. Collective.

    Returns
    -------
    code : int
        The exit code, as far as it is known.
    problem : str
        What ended the run, if it was neither a limit nor a request; known on rank 0.
    """
    from iwes_mpi.method.es import Diverged, EvolutionStrategies, Interrupted
    from iwes_mpi.method.noise import NoiseTable
    from iwes_mpi.method.phases import Phase
    from iwes_mpi.method.rehearsal import rehearse
    from iwes_mpi.method.weight_kernels import needs_norms
    from iwes_mpi.mpi.turns import in_turn

    if stop.agreed():
        return STOPPED_EARLY, ""
    in_turn(world, lambda: rehearse(config, runner))
    if stop.agreed():
        return STOPPED_EARLY, ""
    if desk is not None:
        desk.episodes(0, 2 * config.n_pairs)  # compiling is over
    noise = NoiseTable(world, config.seed, size, with_norms=needs_norms(config.weight_kernel))
    es = EvolutionStrategies(config, world, runner, noise, state, stop)
    es.on_episode = None if desk is None else desk.episodes
    code, problem = FINISHED, ""
    while not finished(config, state.iteration, state.env_steps, state.recent_evaluations):
        # The safe point of an iteration: all ranks agree to go on, or why not.
        with es.phases(Phase.IDLE):  # the others wait for what rank 0 writes
            code = world.maximum_integer(code if code else STOPPED_EARLY if stop.pending() else _GO_ON)
        if code != _GO_ON:
            break
        try:
            report = es.iterate()
        except Interrupted:  # by the agreement of all ranks
            return STOPPED_EARLY, ""
        except Diverged as error:  # likewise
            return FAILED, f"{error}; start a new run with a smaller one"
        if desk is not None:
            with es.phases(Phase.IO):
                code, problem = desk.take(report)
    return code, problem


def _dry_run(
    config: Config, world: World, runner: "EpisodeRunner", size: int, state: "State", notice: str | None
) -> None:
    """Time a few episodes and print what the run would take. Collective."""
    from iwes_mpi.method.rehearsal import rehearse
    from iwes_mpi.method.trial import trial
    from iwes_mpi.mpi.turns import in_turn
    from iwes_mpi.shown import diagnosis, dry_run

    in_turn(world, lambda: rehearse(config, runner))
    found = trial(config, world, runner, state)
    per_node = world.maximum_integer(world.node.size)
    place = dry_run.Place(world.size, world.n_nodes, per_node, world.maximum_integer(dry_run.process_bytes()))
    if world.is_root:
        spell = build_parser().spell
        print(spell(dry_run.report(config, found, runner, state, size, place)))
        told = [
            notice,
            *diagnosis.beforehand(config, state.theta.size, world.size),
            diagnosis.flat_reward(found.returns),
        ]
        for text in filter(None, told):
            print(f"warning: {spell(text)}")
        sys.stdout.flush()


class _Desk:
    """Rank 0's side of a run: its files, and what is shown of it.

    Parameters
    ----------
    plan : Plan
    config : Config
        Settled in full.
    state : State
    world : World
    begin : float
        When this job began, by `time.monotonic`.

    Raises
    ------
    WrongInput
        If the run directory cannot be written, or is in use.
    """

    def __init__(self, plan: "Plan", config: Config, state: "State", world: World, begin: float):
        from iwes_mpi.files.keeper import Keeper
        from iwes_mpi.files.provenance import provenance
        from iwes_mpi.shown.console import LastEvaluation, open_display
        from iwes_mpi.shown.diagnosis import Diagnosis

        origin = provenance(config, library_version(), world.size, world.n_nodes)
        self._plan, self._config, self._state, self._world = plan, config, state, world
        self._keeper: Keeper = Keeper(plan, config, state, origin, begin)
        self._display: Display = open_display(config, state)
        self._diagnosis: Diagnosis = Diagnosis(config, state.theta.size)
        self._spell = build_parser().spell
        self._evaluation: LastEvaluation = LastEvaluation()

    def begin(self, description: str, notice: str | None) -> None:
        """Say what begins."""
        plan, world = self._plan, self._world
        for text in (*self._keeper.notices, *([notice] if notice else [])):
            self._warn(text)
        self._display.note(
            f"{'Resuming' if plan.resumed else 'Starting'} {plan.run_dir} at iteration {self._state.iteration}: "
            f"{description}, K = {self._config.iw_updates}, {world.size} "
            f"rank{'s' if world.size > 1 else ''} on {world.n_nodes} node{'s' if world.n_nodes > 1 else ''}"
        )
        for text in [] if plan.resumed else self._diagnosis.beforehand(world.size):
            self._warn(text)
        state = self._state
        if limit := reached_limit(self._config, state.iteration, state.env_steps, state.recent_evaluations):
            value = getattr(self._config, limit)
            self._warn(
                f"nothing is left to do: `{limit}` {value} is reached; give another, or lift it by `{limit}` none"
            )

    def _warn(self, text: str) -> None:
        self._display.note(f"warning: {self._spell(text)}")

    def episodes(self, done: int, n: int) -> None:
        """Show how many of an iteration's episodes are done."""
        self._display.episodes(done, n)

    def take(self, report: "Report") -> tuple[int, str]:
        """Keep and show an iteration; returns the exit code that it gives cause for, or 0, and what is wrong."""
        from iwes_mpi.files.keeper import StorageError

        try:
            rows = self._keeper.keep(report)
        except StorageError as error:
            return STORAGE_FAILED, str(error)
        self._evaluation(rows)
        self._display.update(rows)
        if text := self._diagnosis(rows):
            self._warn(text)
        return FINISHED, ""

    def end(self, code: int, problem: str) -> int:
        """Save the last state, close the files and say how the run ended; returns the exit code."""
        from iwes_mpi.files.keeper import StorageError

        failed = code == FAILED  # the state is not worth saving
        if not problem:
            try:
                self._keeper.save()
            except StorageError as error:
                problem = str(error)
        self._display.close()
        try:
            self._keeper.close()
        except StorageError as error:
            problem = problem or str(error)
        if problem:
            if not failed:
                code = STORAGE_FAILED
                problem += "; the run stopped at its last good checkpoint, continue with `resume`"
            print(f"iwes_mpi.train: error: {self._spell(problem)}", file=sys.stderr, flush=True)
        elif self._config.display != "none":
            print(_summary(self._plan.run_dir, self._state, self._evaluation.median, code), flush=True)
        return code


def _import_parts() -> None:
    """Import what every rank of a run needs, whatever its settings."""
    from iwes_mpi.method import rehearsal  # noqa: F401
    from iwes_mpi.rollouts import together  # noqa: F401


def _plan(argv: list[str]) -> "Plan":
    from iwes_mpi.files.directory import make_plan  # files are rank 0's business alone, and so is importing them

    plan = make_plan(parse(argv))
    if plan.config.stop_at_return is not None and plan.config.n_eval == 0:
        raise WrongInput("stop_at_return", "needs evaluations, but `n_eval` is 0")
    if plan.config.tensorboard:
        from iwes_mpi.shown.tensorboard import require

        require()
    return plan


def _check_fit(state: "State", runner: "EpisodeRunner") -> None:
    d = runner.network.n_parameters
    if state.theta.size != d or state.obs.mean.size != runner.network.sizes[0]:
        raise WrongInput(
            "resume", f"the checkpoint has {state.theta.size} parameters, but the environment's policy has {d}"
        )


def _summary(run_dir: Path, state: "State", median: float, code: int) -> str:
    """Two lines: what the run reached, and how to look at it or to go on."""
    from iwes_mpi.shown.console import clock

    verb = "Finished" if code == FINISHED else "Stopped early, with a checkpoint"
    reached = "" if math.isnan(median) else f", evaluation median {median:.1f}"
    python = sys.executable if " " not in sys.executable else "python"
    python = os.path.relpath(python) if python.startswith(os.getcwd() + os.sep) else "python"
    if code == FINISHED:
        next_step = f"Results are in {run_dir}; see them with: {python} -m iwes_mpi.evaluate {run_dir}"
    else:
        next_step = (
            f"To go on, on any number of ranks: {python} -m iwes_mpi.train {flag('resume')} {flag('run_dir')} {run_dir}"
        )
    return (
        f"{verb}: {state.iteration} iterations, {state.env_steps} environment steps "
        f"in {clock(state.wall_time)}{reached}.\n{next_step}"
    )


if __name__ == "__main__":
    run_program("iwes_mpi.train", build_parser, train)
