"""``python -m iwes_mpi.train``: read the settings, build the parts, and iterate until a limit is reached."""

from iwes_mpi import signals

if __name__ == "__main__":
    signals.note()

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from iwes_mpi import mpi
from iwes_mpi.config import Config, ConfigError, build_parser, parse
from iwes_mpi.launching import (
    FAILED,
    FINISHED,
    STOPPED_EARLY,
    STORAGE_FAILED,
    StorageError,
    agree,
    agree_in_order,
    run_program,
)

if TYPE_CHECKING:
    from iwes_mpi.es import Report
    from iwes_mpi.rollouts import EpisodeRunner
    from iwes_mpi.rundir import Keeper, Plan
    from iwes_mpi.state import State

_GO_ON = 0


def train(world: mpi.World, argv: list[str]) -> int:
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
    stop = mpi.StopFlag(world, None if config.max_wall_time is None else begin + config.max_wall_time)

    if stop.agreed():
        if world.is_root:
            print("Stopped before the run had begun: start it again with --resume auto", flush=True)
        stop.drain()
        stop.release()
        world.close()
        return STOPPED_EARLY

    from iwes_mpi.noise import choose_size
    from iwes_mpi.rehearsal import in_turn
    from iwes_mpi.rollouts import open_runner
    from iwes_mpi.state import initial_state

    # Rank 0 first: what is wrong with the environment is found, and said, once.
    opened: EpisodeRunner | None = agree(world, lambda: open_runner(config), on_root=True)
    runner = agree_in_order(world, lambda: opened or open_runner(config), in_turn)
    d = runner.network.n_parameters
    size, notice = agree(world, lambda: choose_size(config, world, d)) or (0, None)
    config = dataclasses.replace(config, noise_table_size=size)
    state = state or initial_state(config.seed, runner.network)
    agree(world, lambda: _check_fit(state, runner))

    keeper = agree(world, lambda: plan and _open_keeper(plan, config, state, world, begin), on_root=True)
    if keeper is not None and plan is not None:
        if notice:
            keeper.note(f"warning: {notice}")
        keeper.note(
            f"{'Resuming' if plan.resumed else 'Starting'} {plan.run_dir} at iteration {state.iteration}: "
            f"{runner.description}, {d} parameters, K = {config.iw_updates}, {world.size} "
            f"rank{'s' if world.size > 1 else ''} on {world.n_nodes} node{'s' if world.n_nodes > 1 else ''}"
        )
    code, problem = _iterate(config, world, runner, size, state, stop, keeper)
    stop.drain()
    if keeper is not None and plan is not None:
        code = _end(keeper, plan.run_dir, state, code, problem, quiet=config.display == "none")
    code = world.from_root(code)  # rank 0 alone knows whether its files are written
    stop.release()
    runner.close()
    world.close()
    return code


def _iterate(
    config: Config, world: mpi.World, runner: "EpisodeRunner", size: int, state: "State", stop: mpi.StopFlag,
    keeper: "Keeper | None",
) -> tuple[int, str]:  # fmt: skip
    """Get ready, fill a noise table of `size` and iterate until a limit is reached or the run must stop. Collective.

    Returns
    -------
    code : int
        The exit code, as far as it is known.
    problem : str
        What ended the run, if it was neither a limit nor a request; known on rank 0.
    """
    from iwes_mpi.es import Diverged, EvolutionStrategies, Interrupted
    from iwes_mpi.noise import NoiseTable
    from iwes_mpi.rehearsal import in_turn, rehearse

    if stop.agreed():
        return STOPPED_EARLY, ""
    in_turn(world, lambda: rehearse(config, runner))
    if stop.agreed():
        return STOPPED_EARLY, ""
    noise = NoiseTable(world, config.seed, size, with_norms=config.weight_kernel == "precomputed")
    es = EvolutionStrategies(config, world, runner, noise, state, stop)
    code, problem = FINISHED, ""
    while not limit_reached(config, state):
        # The safe point of an iteration: all ranks agree to go on, or why not.
        with es.phases("idle"):  # the others wait for what rank 0 writes
            code = world.maximum_integer(code if code else STOPPED_EARLY if stop.pending() else _GO_ON)
        if code != _GO_ON:
            break
        try:
            report = es.iterate()
        except Interrupted:  # by the agreement of all ranks
            return STOPPED_EARLY, ""
        except Diverged as error:  # likewise
            return FAILED, f"{error}; start a new run with a smaller one"
        if keeper is not None:
            with es.phases("io"):
                try:
                    keeper.keep(report)
                except StorageError as error:
                    code, problem = STORAGE_FAILED, str(error)
    return code, problem


def _import_parts() -> None:
    """Import what every rank of a run needs, whatever its settings."""
    from iwes_mpi import rehearsal  # noqa: F401
    from iwes_mpi.rollouts import gym_env  # noqa: F401


def _plan(argv: list[str]) -> "Plan":
    from iwes_mpi.rundir import make_plan  # files are rank 0's business alone, and so is importing what reads them

    plan = make_plan(parse(argv))
    if plan.config.tensorboard:
        from iwes_mpi.tensorboard import require

        require()
    return plan


def _open_keeper(plan: "Plan", config: Config, state: "State", world: mpi.World, begin: float) -> "Keeper":
    from iwes_mpi.rundir import Keeper
    from iwes_mpi.runlog import provenance

    return Keeper(plan, config, state, provenance(config, mpi.library_version(), world.size, world.n_nodes), begin)


def limit_reached(config: Config, state: "State") -> bool:
    """Whether the run is finished: it has all its iterations or environment steps. The same on every rank."""
    return (config.iterations is not None and state.iteration >= config.iterations) or (
        config.max_env_steps is not None and state.env_steps >= config.max_env_steps
    )


def _check_fit(state: "State", runner: "EpisodeRunner") -> None:
    d = runner.network.n_parameters
    if state.theta.size != d or state.obs.mean.size != runner.network.sizes[0]:
        raise ConfigError(
            "--resume", f"the checkpoint has {state.theta.size} parameters, but the environment's policy has {d}"
        )


def _end(keeper: "Keeper", run_dir: Path, state: "State", code: int, problem: str, quiet: bool) -> int:
    """Save the last state, close the files and say how the run ended. Rank 0 only; returns the exit code."""
    failed = code == FAILED  # the state is not worth saving
    if not problem:
        try:
            keeper.save()
        except StorageError as error:
            problem = str(error)
    try:
        keeper.close()
    except StorageError as error:
        problem = problem or str(error)
    if problem:
        if not failed:
            code = STORAGE_FAILED
            problem += "; the run stopped at its last good checkpoint, continue with --resume"
        print(f"iwes_mpi.train: error: {problem}", file=sys.stderr, flush=True)
    elif not quiet:
        print(_summary(run_dir, state, keeper.last, code), flush=True)
    return code


def _summary(run_dir: Path, state: "State", last: "Report | None", code: int) -> str:
    """Two lines: what the run reached, and how to look at it or to go on."""
    from iwes_mpi.console import clock

    verb = "Finished" if code == FINISHED else "Stopped early, with a checkpoint"
    scored = last is not None and last.iteration["eval_episodes"] > 0
    reached = f", evaluation median {last.iteration['eval_return_median']:.1f}" if last and scored else ""
    python = sys.executable if " " not in sys.executable else "python"
    python = os.path.relpath(python) if python.startswith(os.getcwd() + os.sep) else "python"
    if code == FINISHED:
        next_step = f"Results are in {run_dir}; see them with: {python} -m iwes_mpi.evaluate {run_dir}"
    else:
        next_step = f"To go on, on any number of ranks: {python} -m iwes_mpi.train --resume --run-dir {run_dir}"
    return (
        f"{verb}: {state.iteration} iterations, {state.env_steps} environment steps "
        f"in {clock(state.wall_time)}{reached}.\n{next_step}"
    )


if __name__ == "__main__":
    run_program("iwes_mpi.train", build_parser, train)
