"""A discrete-event model of this program on a cluster: time per iteration and efficiency at any number of ranks.

From a run's log come how long episodes last (``--log-population``), how long a step takes, and what the weights of a
pair, an update and the log cost: `of_run`. The model hands out episodes as `iwes_mpi.mpi.queue.WorkQueue` does, one by
one; messages cost latency and bandwidth as given: `predict`.
"""

import functools
import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sleeper import draw_length, draw_pair

from iwes_mpi import open_run
from iwes_mpi.mpi import queue
from iwes_mpi.mpi.ranks import split

Schedule = Literal["static", "dynamic", "nodes", "pairs"]
# "nodes": as "dynamic", without a reserve; "pairs": the same, both members of a pair together
WeightsOn = Literal["all", "node", "root"]


@dataclass(frozen=True)
class Machine:
    """The cluster. Defaults: a current interconnect, as the paper's nodes of 48 cores."""

    ranks_per_node: int = 48
    latency: float = 2e-6  # s per message
    bandwidth: float = 10e9  # bytes/s into and out of a node
    memory_bandwidth: float = 100e9  # bytes/s of a node, for reading noise and for exchanges within it


@dataclass(frozen=True)
class Workload:
    """One iteration's work, in core-seconds."""

    lengths: NDArray[np.float64]  # (iterations, n_pairs, 2) steps of population episodes; iterations are draws
    n_eval: int
    step: float  # s of one core per environment step, everything included
    weights: float = 0.0  # s of one core per pair and update
    update: float = 0.0  # s per optimizer update, on every rank
    io: float = 0.0  # s of rank 0 per iteration
    d: int = 0  # parameters
    obs_bytes: int = 0  # bytes of observation statistics exchanged per iteration
    rows: int = 1  # gradient sums that travel: 2 with centering

    @property
    def n_pairs(self) -> int:
        """Pairs per iteration."""
        return self.lengths.shape[1]

    def busy_share(
        self,
        ranks: int,
        schedule: Schedule,
        ranks_per_node: int = 10**9,
        repeats: int = 20,
        order: Callable[[NDArray[np.float64]], NDArray[np.int64]] | None = None,
        seconds: int = 0,
    ) -> float:
        """The share of the cores' time that goes into episodes, if nothing else took any.

        `order` makes an order of a population's episodes out of their durations (n_pairs, 2); `seconds` as in `spans`.
        """
        total = span = 0.0
        for population, evaluation in self.draws(repeats):
            chosen = None if order is None else order(population)
            busy = spans(population, evaluation, ranks, ranks_per_node, schedule, chosen, seconds)
            total += busy.mean()
            span += busy.max()
        return total / span

    def draws(self, repeats: int, seed: int = 0) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Durations (s) of the logged populations in turn, (n_pairs, 2), each with evaluation episodes drawn alike."""
        rng = np.random.default_rng(seed)
        return [
            (self.step * population, self.step * rng.choice(population.ravel(), self.n_eval))
            for population in (self.lengths[i % len(self.lengths)] for i in range(repeats))
        ]


@dataclass(frozen=True)
class Prediction:
    """Seconds per iteration, by phase as in the log, and what they amount to."""

    ranks: int
    rollouts: float  # mean over ranks
    idle: float  # mean over ranks
    weights: float  # on the critical path
    comm: float
    update: float
    io: float
    efficiency: float  # time of one rank over (ranks × time)

    @property
    def time(self) -> float:
        """Seconds per iteration."""
        return self.rollouts + self.idle + self.weights + self.comm + self.update + self.io


def of_run(
    path: str | Path,
    lengths: Literal["lengths", "returns"] = "lengths",
    sizes: tuple[int, int] | None = None,
    typical: Callable[[Any], Any] = np.median,
) -> Workload:
    """The workload that a run's log tells of.

    Parameters
    ----------
    path : path
        A run with ``--log-population``. Phase times that oversubscribed cores have spoilt spoil the model.
    lengths : "lengths" or "returns"
        Which column holds the episodes' lengths ("returns" for `sleeper.Sleeper`).
    sizes : (int, int) or None
        Numbers of parameters and of observations; by default those of the run's checkpoint.
    typical : function
        What it makes of the iterations' times. Where other work shared the machine, the fastest (`np.min`) is best.

    Raises
    ------
    ValueError
        If the run did not log its population.
    """
    run = open_run(path)
    if run.population is None or not len(run.iterations):
        raise ValueError(f"{path} has no logged population: run it with --log-population")
    table, config = run.iterations, run.config
    ranks = table["ranks"].to_numpy()
    found = np.asarray(run.population[lengths], dtype=np.float64)
    n_eval = table["eval_episodes"].to_numpy()
    evaluation = n_eval * found.mean(axis=(1, 2))  # their own lengths are not logged
    steps = found.sum(axis=(1, 2)) + evaluation
    updates = np.maximum(1, table["updates"].to_numpy())
    group = {"all": ranks, "node": np.ceil(ranks / run.attrs["nodes"]), "root": 1}[config.weights_on]
    mean_to_group = ranks / group  # times in the log are means over all ranks
    observed = config.obs_stat_probability * 2 * found.shape[1]
    d, obs_size = sizes or (run.theta.size, run.checkpoint.state.obs.mean.size)
    return Workload(
        lengths=found,
        n_eval=round(n_eval.mean()),
        step=float(typical(table["time_rollouts"] * ranks / steps)),
        weights=float(typical(table["time_weights"] * ranks / (found.shape[1] * updates))),
        update=float(typical(table["time_update"] * mean_to_group / updates)),
        io=float(np.median(table["time_io"] * ranks)),
        d=d,
        obs_bytes=int(8 * observed * (1 + 2 * obs_size)),
        rows=2 if config.center else 1,
    )


def spans(
    population: NDArray[np.float64],
    evaluation: NDArray[np.float64],
    ranks: int,
    ranks_per_node: int,
    schedule: Schedule,
    order: NDArray[np.int64] | None = None,
    seconds: int = 0,
) -> NDArray[np.float64]:
    """How long each rank is busy with episodes, (ranks,), if they are handed out as `WorkQueue` does.

    Asking for more takes no time, and rank 0 is not busy while it hands out the reserve.

    Parameters
    ----------
    population : (n_pairs, 2)
        Duration of each episode.
    evaluation : (n_eval,)
    ranks, ranks_per_node : int
    schedule : "static", "dynamic", "nodes" or "pairs"
    order : (2·n_pairs,) or None
        In which episodes of the population are begun; by default as they come.
    seconds : -1, 0 or 1
        If not 0, all first members come first, and then second ones as `WorkQueue` orders them: by how short (-1) or
        how long (1) the first was.
    """
    if schedule == "static":
        return _slices(evaluation, ranks) + _slices(population.ravel(), ranks)
    nodes = math.ceil(ranks / ranks_per_node)
    shares = schedule == "dynamic" and ranks >= queue.FEWEST_RANKS
    if schedule != "dynamic" or not (shares or 1 == nodes < ranks):
        seconds = 0
    units = population.sum(axis=1) if schedule == "pairs" else (population.T if seconds else population).ravel()
    if order is not None:
        units = units[order]
    durations = np.concatenate([evaluation, units])
    work, n_pairs = durations.tolist(), len(population)
    node_of = (np.arange(ranks) // ranks_per_node).tolist()
    held_back = n_pairs if seconds else int(queue.RESERVE * len(work)) if shares and nodes > 1 else 0
    own_of = np.arange(len(work) - held_back) % ranks // ranks_per_node  # of every `ranks` items in a row, one per rank
    own = [iter(np.flatnonzero(own_of == node).tolist()) for node in range(nodes)]
    granted: list[list[int]] = [[] for _ in range(nodes)]
    serves_from = queue.SERVES_FROM * np.count_nonzero(own_of == 0) if held_back and nodes > 1 else math.inf
    rest = queue.Choice(len(work) - held_back, held_back, seconds or None)
    ended = np.full(len(work), np.inf)  # when each item is done
    begun = 0  # episodes begun on node 0
    busy = np.zeros(ranks)
    free = [(0.0, rank) for rank in range(ranks)]  # when each rank is next free: a heap
    while free:
        now, rank = free[0]
        node = node_of[rank]
        item = None if rank == 0 and begun >= serves_from else next(own[node], None)
        if item is None and held_back and (rank > 0 or nodes == 1):
            if not granted[node]:
                if seconds:
                    firsts = len(evaluation) + np.arange(n_pairs)
                    told = np.flatnonzero((own_of[firsts] == node) & (ended[firsts] <= now))
                    rest.learn(told, durations[firsts[told]])
                granted[node] = rest.take(2 * nodes)[::-1].tolist()
            item = granted[node].pop() if granted[node] else None
        if item is None:
            heapq.heappop(free)
            continue
        begun += node == 0
        busy[rank] = ended[item] = now + work[item]
        heapq.heapreplace(free, (now + work[item], rank))
    return busy


def longest_first(population: NDArray[np.float64]) -> NDArray[np.int64]:
    """The order of who knows all durations (n_pairs, 2) beforehand."""
    return np.argsort(-population.ravel(), kind="stable")


def second_by_first(population: NDArray[np.float64]) -> NDArray[np.int64]:
    """First all first members; then second members, those whose first was short first, as its mirror image."""
    firsts = np.arange(0, population.size, 2)
    return np.concatenate([firsts, firsts[np.argsort(population[:, 0], kind="stable")] + 1])


def _slices(work: NDArray[np.float64], ranks: int) -> NDArray[np.float64]:
    """Sums over the static slices of the work."""
    ends = np.concatenate([[0.0], np.cumsum(work)])
    bounds = np.array([0, *(split(len(work), ranks, rank).stop for rank in range(ranks))])
    return np.diff(ends[bounds])


def exchange(n_bytes: float, ranks: int, machine: Machine, broadcast: bool = False) -> float:
    """Seconds of an Allreduce (or Bcast) of `n_bytes` over `ranks` ranks: a tree's latency, a pipeline's bandwidth.

    Rabenseifner's reduction moves every byte in and out of a node twice; within a node it goes through memory.
    """
    if ranks <= 1:
        return 0.0
    rounds = math.ceil(math.log2(ranks)) * (1 if broadcast else 2)
    nodes = math.ceil(ranks / machine.ranks_per_node)
    on_node = min(ranks, machine.ranks_per_node)
    across = (1 if broadcast else 2) * n_bytes * (1 - 1 / nodes) / machine.bandwidth
    within = n_bytes * on_node / machine.memory_bandwidth
    return rounds * machine.latency + across + within


def predict(
    workload: Workload,
    machine: Machine,
    ranks: int,
    schedule: Schedule = "dynamic",
    weights_on: WeightsOn = "all",
    iw_updates: int = 0,
    repeats: int = 5,
) -> Prediction:
    """Time per iteration and efficiency on `ranks` ranks.

    Parameters
    ----------
    workload : Workload
    machine : Machine
    ranks : int
    schedule : "static", "dynamic" or "pairs"
    weights_on : "all", "node" or "root"
        The ranks that share the weights.
    iw_updates : int
        K; 1 + K estimates are made. The first needs no weights, but costs about as much for its sums.
    repeats : int
        Populations to average over.
    """
    group = {"all": ranks, "node": min(ranks, machine.ranks_per_node), "root": 1}[weights_on]
    rollouts, span = _episodes(
        workload.lengths.tobytes(), workload.lengths.shape, workload.n_eval, workload.step, ranks,
        machine.ranks_per_node, schedule, repeats,
    )  # fmt: skip
    updates = 1 + iw_updates
    # A node's ranks read their pairs' noise through one memory.
    rows_per_node = workload.n_pairs * min(group, machine.ranks_per_node) / group
    reading = 4 * workload.d * rows_per_node / machine.memory_bandwidth
    weights = updates * max(workload.weights * math.ceil(workload.n_pairs / group), reading)
    update = updates * workload.update
    returns_bytes = 16 * (workload.n_eval + 2 * workload.n_pairs)
    comm = (
        exchange(8 * workload.d, ranks, machine, broadcast=True)
        + exchange(returns_bytes, ranks, machine)
        + exchange(workload.obs_bytes, ranks, machine)
        + updates * exchange(8 * (workload.rows * workload.d + 4 + group), group, machine)
        + 4 * exchange(8, ranks, machine)  # barriers and small agreements
    )
    one = rollouts * ranks + updates * (workload.weights * workload.n_pairs + workload.update) + workload.io
    total = span + weights + comm + update + workload.io
    return Prediction(ranks, rollouts, span - rollouts, weights, comm, update, workload.io, one / (ranks * total))


@functools.lru_cache(maxsize=64)
def _episodes(
    lengths: bytes, shape: tuple[int, ...], n_eval: int, step: float, ranks: int, ranks_per_node: int,
    schedule: Schedule, repeats: int,
) -> tuple[float, float]:  # fmt: skip
    """Seconds of a rank's episodes and of those of the last to be done, means over populations.

    Predictions that differ in updates or messages alone share it: it takes nearly all of a prediction's time.
    """
    workload = Workload(np.frombuffer(lengths).reshape(shape), n_eval, step)
    rollouts = span = 0.0
    for population, evaluation in workload.draws(repeats):
        busy = spans(population, evaluation, ranks, ranks_per_node, schedule)
        rollouts += busy.mean() / repeats
        span += busy.max() / repeats
    return rollouts, span


def grown(workload: Workload, factor: float, seed: int = 0) -> Workload:
    """The workload with `factor` times the pairs, their lengths drawn from those logged."""
    rng = np.random.default_rng(seed)
    n = max(1, round(workload.n_pairs * factor))
    populations = [population[rng.integers(0, len(population), n)] for population in workload.lengths[-3:]]
    obs_bytes = round(workload.obs_bytes * n / workload.n_pairs)
    return replace(workload, lengths=np.stack(populations), obs_bytes=obs_bytes)


def simulated(kind: str, n_pairs: int, n_eval: int, populations: int = 10, seed: int = 1) -> Workload:
    """Episodes of `sleeper.draw_length`, or of `draw_pair` if `kind` is "mirrored", a second per step."""
    rng = np.random.default_rng(seed)
    if kind == "mirrored":
        pairs = np.array([draw_pair(rng) for _ in range(populations * n_pairs)], dtype=np.float64)
        return Workload(pairs.reshape(populations, n_pairs, 2), n_eval, 1.0)
    drawn = [draw_length(rng, kind) for _ in range(populations * 2 * n_pairs)]
    return Workload(np.array(drawn, dtype=np.float64).reshape(populations, n_pairs, 2), n_eval, 1.0)
