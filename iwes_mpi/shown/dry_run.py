"""What ``--dry-run`` prints: sizes, memory, steps and seconds of a run that is not begun."""

import math
import resource
import sys
from typing import NamedTuple

from iwes_mpi.method.es import EVALUATION_SHARE
from iwes_mpi.method.state import State
from iwes_mpi.method.trial import Trial
from iwes_mpi.policy.network import Layout
from iwes_mpi.rollouts.episode import EpisodeRunner
from iwes_mpi.settings.config import Config
from iwes_mpi.shown.console import clock

_VECTORS = 16  # of d float64 that a rank keeps: theta, moments, gradients, sums


class Place(NamedTuple):
    """Where the run would be."""

    ranks: int
    nodes: int
    ranks_per_node: int  # at most
    rank_bytes: int  # of the process as it is now, at most


def process_bytes() -> int:
    """The most memory that this process has had so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def plural(n: float, word: str) -> str:
    """A number with its word: 1 rank, 2 ranks, 10,000 steps."""
    return f"{n:,.0f} {word}" + ("" if round(n) == 1 else "s")


def size_text(n_bytes: float) -> str:
    """Bytes in the unit that fits."""
    unit, size = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6)) if n_bytes >= s), ("kB", 1e3))
    return f"{n_bytes / size:.3g} {unit}"


def seconds_text(seconds: float) -> str:
    """A duration with two digits, or as a clock shows it."""
    return clock(seconds) if seconds >= 100 else f"{seconds:.2g} s"


class Forecast(NamedTuple):
    """What an iteration would take."""

    episodes: int  # of the population
    steps: float  # of the population, mean
    most_steps: int  # of the population, if no episode ends early; no fewer than can be
    evaluation_steps: float  # of one evaluation
    evaluation_every: float  # iterations from one evaluation to the next, on average
    episode_seconds: float  # of population and evaluation, mean over iterations
    update_seconds: float  # of 1 + K updates

    @property
    def seconds(self) -> float:
        """Of an iteration."""
        return self.episode_seconds + self.update_seconds


def forecast(config: Config, trial: Trial, runner: EpisodeRunner, state: State, place: Place) -> Forecast:
    """What an iteration takes, by what was measured of a few episodes and updates."""
    longest = min(runner.limit, state.episode_cap or runner.limit)
    block = 2 * config.n_pairs
    blocks = max(1, math.ceil(config.min_env_steps / max(block * trial.episode_steps, 1)))
    steps = blocks * block * trial.episode_steps
    evaluation = config.n_eval * trial.whole_steps
    if not config.n_eval:
        every = math.inf
    elif config.eval_every:
        every = float(config.eval_every)
    else:
        every = max(1.0, evaluation * (1 - EVALUATION_SHARE) / (EVALUATION_SHARE * steps))
    busy = min(place.ranks, blocks * block)
    sharing = {"all": place.ranks, "node": place.ranks_per_node, "root": 1}[config.weights_on]
    return Forecast(
        blocks * block,
        steps,
        block * longest + config.min_env_steps,
        evaluation,
        every,
        trial.step_seconds * (steps / busy + evaluation / every / min(place.ranks, max(config.n_eval, 1))),
        trial.pair_seconds * (1 + config.iw_updates) * blocks * config.n_pairs * config.reuse_batches / sharing,
    )


def report(config: Config, trial: Trial, runner: EpisodeRunner, state: State, table_size: int, place: Place) -> str:
    """The lines that are printed, one fact each."""
    found = forecast(config, trial, runner, state, place)
    d, shape = state.theta.size, runner.network
    numbers = ""
    if isinstance(shape, Layout):
        numbers = f"{plural(shape.obs_size, 'observation')}, {plural(shape.action_size, 'action')}, "
    hidden = "-".join(map(str, config.hidden_sizes))
    table, own = 4 * table_size, place.rank_bytes + 8 * _VECTORS * d
    k = config.iw_updates
    policy = "policy as it is" if state.iteration else "untrained policy"
    facts = {
        "environment": f"{runner.description}: {numbers}at most {plural(runner.limit, 'step')} an episode",
        "policy": f"{f'{hidden} hidden units' if hidden else 'linear'}, d = {plural(d, 'parameter')}",
        "population": f"{plural(config.n_pairs, 'pair')}, {plural(found.episodes, 'episode')} an iteration"
        + (f", cut after {plural(state.episode_cap, 'step')}" if state.episode_cap else ""),
        "noise table": f"{plural(table_size, 'number')}, {size_text(table)}, once on each node",
        "memory": f"{size_text(own)} a rank, {size_text(place.ranks_per_node * own + table)} on a node with "
        f"{plural(place.ranks_per_node, 'rank')}",
        "steps": f"about {found.steps:,.0f} an iteration with the {policy}, at most {found.most_steps:,}",
        "time": f"about {seconds_text(found.seconds)} an iteration on {plural(place.ranks, 'rank')} of this machine: "
        f"episodes {seconds_text(found.episode_seconds)} ({1 / max(trial.step_seconds, 1e-12):,.0f} steps/s a rank), "
        + (f"1 + {plural(k, 'update')}" if k else "the update")
        + f" {seconds_text(found.update_seconds)}"
        + (" if all are made" if k else ""),
        "evaluation": _evaluation(config, found),
    }
    if whole := _whole(config, found, state):
        facts["what is left" if state.iteration else "whole run"] = whole
    width = max(map(len, facts))
    lines = [f"  {name:{width}}  {text}" for name, text in facts.items()]
    return "\n".join(["Dry run: nothing is written.", *lines])


def _evaluation(config: Config, found: Forecast) -> str:
    """How often there are evaluations, and what they cost."""
    if not config.n_eval:
        return "none (`n_eval` 0)"
    often = (
        "in every iteration" if found.evaluation_every <= 1 else f"in one of {found.evaluation_every:.0f} iterations"
    )
    share = found.evaluation_steps / found.evaluation_every
    return (
        f"{plural(config.n_eval, 'episode')} {'' if config.eval_every else 'about '}{often}: "
        f"{found.evaluation_steps:,.0f} steps, {share / max(share + found.steps, 1e-9):.0%} of all"
    )


def _whole(config: Config, found: Forecast, state: State) -> str:
    """What is left of the run, up to its first limit of iterations or steps; empty without one."""
    limits = []
    if config.iterations is not None:
        limits.append((float(config.iterations - state.iteration), "iterations"))
    if config.max_env_steps is not None:
        left = config.max_env_steps - state.env_steps
        limits.append((math.ceil(left / max(found.steps, 1)), "max_env_steps"))
    if not limits:
        return ""
    n, name = min(limits)
    if n <= 0:
        return f"nothing: the run is over by its limit (`{name}`)"
    return f"about {clock(n * found.seconds)} for {plural(n, 'iteration')} (`{name}`), {n * found.steps:,.0f} steps"
