"""``python -m iwes_mpi.evaluate RUN``: score a run's policy with fresh episodes, on any number of ranks; film one."""

from iwes_mpi.mpi import process  # isort: skip  # noqa: F401 - before NumPy: it settles the number of threads

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.method.room import require_room
from iwes_mpi.method.seeding import Stream, generator
from iwes_mpi.mpi.message import Message, counts, slots
from iwes_mpi.mpi.program import FINISHED, STORAGE_FAILED, agree, run_program
from iwes_mpi.mpi.turns import in_turn
from iwes_mpi.mpi.world import World
from iwes_mpi.rollouts.episode import EpisodeTask
from iwes_mpi.rollouts.together import open_on_all
from iwes_mpi.settings import values
from iwes_mpi.settings.command_line import ArgumentParser
from iwes_mpi.settings.printable import one_line
from iwes_mpi.settings.wrong_input import WrongInput

if TYPE_CHECKING:
    from iwes_mpi.files.checkpoint import Checkpoint
    from iwes_mpi.settings.config import Config
    from iwes_mpi.shown.film import Studio


class Scores(NamedTuple):
    """What a policy's episodes came to."""

    returns: NDArray[np.float64]  # (episodes,)
    lengths: NDArray[np.int64]  # (episodes,) environment steps

    def table(self) -> str:
        """The figures for people, one per line."""
        valid = self.returns[np.isfinite(self.returns)]
        if not valid.size:
            return f"none of the {self.returns.size} episodes was valid"
        lines = [
            f"median  {np.median(valid):12.3f}",
            f"mean    {valid.mean():12.3f}",
            f"std     {valid.std():12.3f}",
            f"min     {valid.min():12.3f}",
            f"max     {valid.max():12.3f}",
            f"length  {self.lengths.mean():12.1f}  steps, mean",
        ]
        if valid.size < self.returns.size:
            lines.append(f"invalid {self.returns.size - valid.size:12d}  episodes, left out")
        return "\n".join(lines)


def build_parser() -> ArgumentParser:
    """The command line of ``python -m iwes_mpi.evaluate``."""
    parser = ArgumentParser(
        prog="python -m iwes_mpi.evaluate",
        description="Run episodes with the policy in a run's newest checkpoint. The run may be finished, going on or "
        "killed. Works under mpirun too; the scores do not depend on the number of ranks.",
    )
    parser.add_argument("run", metavar="RUN", help="run directory, or a checkpoint file")
    parser.add_argument("--episodes", type=int, default=30, metavar="N", help="episodes [default 30]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the episodes [default 0]")
    parser.add_argument("--deterministic", action="store_true", help="act without action noise")
    parser.add_argument(
        "--trust", action="store_true", help="import the module that the run's env_id names: its code is executed"
    )
    parser.add_argument("--video", metavar="FILE", help="film the first of the episodes, off screen: .mp4 or .gif")
    parser.add_argument(
        "--video-seconds", type=float, metavar="X", help="film only the first so many seconds [default: all]"
    )
    return parser


def _prepare(argv: list[str]) -> "tuple[argparse.Namespace, Checkpoint]":
    """The options, and the checkpoint they name. Raises WrongInput if either is wrong. Rank 0 only."""
    from iwes_mpi.files.checkpoint import CheckpointError, load, load_newest, require_policy, require_trust

    options = build_parser().parse_args(argv)
    for name, check in (("episodes", values.at_least_one), ("seed", values.seed)):
        if problem := check(getattr(options, name)):
            raise WrongInput(name, f"{problem}, got {getattr(options, name)}")
    if options.video_seconds is not None:
        if not 0 < options.video_seconds < math.inf:
            raise WrongInput("video_seconds", f"must be positive and finite, got {options.video_seconds:g}")
        if options.video is None:
            raise WrongInput("video_seconds", "needs `video`")
    path = Path(options.run)
    try:
        if not path.exists():
            raise WrongInput("run", f"{path} does not exist")
        found = load_newest(path, print_warning) if path.is_dir() else load(path)
    except CheckpointError as error:
        raise WrongInput("run", str(error)) from None
    except OSError as error:
        raise WrongInput("run", f"{path}: {error.strerror}" if error.strerror else str(error)) from None
    require_policy(found, str(path))
    require_trust(found.config, options.trust)
    return options, found


def evaluate(world: World, argv: list[str]) -> int:
    """Run the episodes that a command line asks for, shared by all ranks, print the scores and film one. Collective.

    Returns
    -------
    int
        The exit code.

    Raises
    ------
    Refused
        If the command line or the run it names is wrong.
    """
    found = agree(world, lambda: _prepare(argv), on_root=True)
    options, state, config = world.from_root(found and (found[0], found[1].state, found[1].config))

    studio = agree(world, lambda: _open_studio(config, options), on_root=True)
    runner = open_on_all(world, config)
    agree(world, lambda: require_room("episodes", options.episodes, 64, world))
    theta, normalizer = state.theta.astype(np.float32), state.obs.normalizer()
    noise = 0.0 if options.deterministic else config.action_noise

    def task(episode: int) -> EpisodeTask:
        rng = generator(options.seed, Stream.SCORE_EPISODE, 0, episode)
        return EpisodeTask(theta, normalizer, rng, noise, False, True)

    in_turn(world, lambda: runner.rehearse(task(0)))
    scores = Message(returns=slots(options.episodes), lengths=counts(options.episodes))
    returns, lengths = scores["returns"], scores["lengths"]
    for episode in world.share(options.episodes):
        outcome = runner.run(task(episode))
        returns[episode], lengths[episode] = outcome.total_reward, outcome.length
    scores.reduce(world)
    runner.close()
    if world.is_root:
        print(
            f"{one_line(options.run)}: {config.env_id} after {state.iteration} iterations, "
            f"{options.episodes} {'deterministic' if options.deterministic else 'stochastic'} episodes",
        )
        print(Scores(returns, lengths).table(), flush=True)
    code = FINISHED if studio is None else _film(studio, task(0), (returns[0], lengths[0]), runner.seed_bound)
    world.rest_until_all()  # the others sleep while rank 0 films
    return world.from_root(code)


def _open_studio(config: "Config", options: argparse.Namespace) -> "Studio | None":
    """What a film needs, if one is asked for. Raises WrongInput if it is not there."""
    if options.video is None:
        return None
    from iwes_mpi.shown.film import Studio

    return Studio(config, Path(options.video).absolute(), options.video_seconds)


def _film(studio: "Studio", task: EpisodeTask, scored: tuple[float, int], bound: int) -> int:
    """Film the episode that was scored as `scored` (return, length), and say so; returns the exit code.

    The environment is seeded below `bound`.
    """
    from iwes_mpi.shown.film import FilmError

    try:
        film = studio.film(task, _progress(studio.rate, scored[1]), bound)
    except FilmError as error:
        print(f"iwes_mpi.evaluate: error: {one_line(error)}", file=sys.stderr, flush=True)
        return STORAGE_FAILED
    finally:
        studio.close()
    total, length = film.episode.total_reward, film.episode.length
    print(
        f"{one_line(studio.path)}: the first episode, return {total:.3f} in {length} steps; {film.frames} pictures, "
        f"{film.frames / film.rate:.1f} s at {film.rate:g} per second",
        flush=True,
    )
    if not np.array_equal([total, length], scored, equal_nan=True):
        print_warning(f"it was scored {scored[0]:.3f}: the environment does not repeat itself from a seed")
    return FINISHED


def _progress(rate: float, steps: int) -> Callable[[int], None]:
    """What tells, on a terminal, how many seconds there are of a film of an episode of so many steps."""
    if not sys.stderr.isatty():
        return lambda frames: None
    print(f"filming an episode of {steps} steps …", file=sys.stderr, flush=True)
    told = time.monotonic()

    def tell(frames: int) -> None:
        nonlocal told
        if time.monotonic() - told >= 1:
            told = time.monotonic()
            print(f"{frames / rate:.1f} s of film", end="\r", file=sys.stderr, flush=True)

    return tell


def print_warning(text: str) -> None:
    """Tell of something that was passed over."""
    print(f"iwes_mpi.evaluate: warning: {one_line(text)}", file=sys.stderr, flush=True)


def main() -> NoReturn:
    """Run the program on this process's command line."""
    run_program("iwes_mpi.evaluate", build_parser, evaluate)


if __name__ == "__main__":
    main()
