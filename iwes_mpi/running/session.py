"""A run on all ranks, whatever it runs: agree on a plan, get ready, iterate until a limit, save, and say how it ended.

`iwes_mpi.train` and `maximize` differ in their `Work` alone: where settings come from, what runs an item of the
population, and what is said.
"""

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from iwes_mpi.mpi.program import FAILED, FINISHED, STOPPED_EARLY, agree
from iwes_mpi.mpi.stop import StopFlag
from iwes_mpi.mpi.world import World
from iwes_mpi.running.work import Work
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.limits import finished
from iwes_mpi.settings.wrong_input import WrongInput

if TYPE_CHECKING:  # loaded by rank 0 alone, or once the input is known to be right
    from iwes_mpi.files.directory import Plan
    from iwes_mpi.method.state import State
    from iwes_mpi.rollouts.episode import EpisodeRunner
    from iwes_mpi.running.desk import Desk

_GO_ON = 0


class Outcome(NamedTuple):
    """How a session ended; the same on every rank."""

    code: int  # the exit code
    problem: str  # what ended it, if it was neither a limit nor a request
    state: "State | None"  # as it was left, complete on rank 0; None if the run had not begun
    returns: tuple[float, float] | None  # of the population: mean in the last iteration, largest in all of them


def run(world: World, work: Work, begin: float) -> Outcome:
    """Run the whole of a run on all ranks. Collective.

    A stop that is requested while the run gets ready ends with STOPPED_EARLY too: between its stages, which take as
    long as compiling does at most. Before the environment is made, a new run has left nothing behind yet and an old
    one is as it was; ``--resume auto`` goes on in either case.

    Parameters
    ----------
    world : World
    work : Work
    begin : float
        When this job began, by `time.monotonic`.

    Raises
    ------
    Refused
        If the input is wrong.
    """
    if not world.is_root:
        _import_parts()  # while rank 0 finds out whether the input is right
    plan = agree(world, work.plan, on_root=True)
    config, state = world.from_root(plan and (plan.config, plan.checkpoint and plan.checkpoint.state))
    stop = StopFlag(world, None if config.max_wall_time is None else begin + config.max_wall_time)
    try:
        return _run(world, work, begin, plan, config, state, stop)
    finally:
        stop.release()


def _run(
    world: World, work: Work, begin: float, plan: "Plan | None", config: Config, state: "State | None", stop: StopFlag
) -> Outcome:
    """`run` with a plan."""
    if stop.agreed():
        if world.is_root:
            print(work.spell("Stopped before the run had begun: start it again with `resume` auto"), flush=True)
        stop.drain()
        world.close()
        return Outcome(STOPPED_EARLY, "", None, None)

    from iwes_mpi.method.noise import choose_size
    from iwes_mpi.method.room import require_room_for_population
    from iwes_mpi.method.state import initial_state

    runner = work.open(world, config)
    stop.listen()
    d = runner.network.n_parameters
    agree(world, lambda: require_room_for_population(config, world, runner.network.obs_size))
    size, notice = agree(world, lambda: choose_size(config, world, d)) or (0, None)
    config = dataclasses.replace(config, noise_table_size=size)
    state = state or initial_state(
        config.seed, runner.network, config.optimizer, config.train_episode_steps or 0, config.whiten
    )
    agree(world, lambda: check_fit(state, runner))

    desk = agree(world, lambda: plan and _open_desk(plan, config, state, world, work, begin), on_root=True)
    if desk is not None:
        desk.begin(f"{runner.description}, {d} parameters", notice)
    try:
        code, problem = _iterate(config, world, runner, size, state, stop, desk)
    except BaseException:
        if desk is not None:
            desk.abandon()
        raise
    stop.drain()
    if desk is not None:
        code, problem = desk.end(code, problem)
    # Rank 0 alone knows whether its files are written, and all of the log.
    code, problem, returns = world.from_root((code, problem, desk.returns) if desk else None)
    runner.close()
    world.close()
    return Outcome(code, problem, state, returns)


def _iterate(
    config: Config, world: World, runner: "EpisodeRunner", size: int, state: "State", stop: StopFlag,
    desk: "Desk | None",
) -> tuple[int, str]:  # fmt: skip
    """Get ready, fill a noise table of `size` and iterate until a limit is reached or the run must stop. Collective.

    Returns
    -------
    code : int
        The exit code, as far as it is known.
    problem : str
        What ended the run, if it was neither a limit nor a request; known on rank 0.
    """
    from iwes_mpi.method.es import EvolutionStrategies, Interrupted
    from iwes_mpi.method.learner import Diverged
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
        stop.listen()
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


def _open_desk(plan: "Plan", config: Config, state: "State", world: World, work: Work, begin: float) -> "Desk":
    from iwes_mpi.running.desk import Desk

    return Desk(plan, config, state, world, work, begin)


def _import_parts() -> None:
    """Import what every rank of a run needs, whatever its settings."""
    from iwes_mpi.method import rehearsal  # noqa: F401
    from iwes_mpi.rollouts import together  # noqa: F401


def check_fit(state: "State", runner: "EpisodeRunner") -> None:
    """Raise WrongInput if a state is of another policy than a runner's."""
    shape = runner.network
    if (state.theta.size, state.obs.mean.size) != (shape.n_parameters, shape.obs_size):
        raise WrongInput(
            "resume",
            f"the checkpoint has {state.theta.size} parameters and {state.obs.mean.size} observations, but "
            f"{runner.description} needs {shape.n_parameters} and {shape.obs_size}",
        )
