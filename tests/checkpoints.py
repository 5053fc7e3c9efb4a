"""Checkpoints made up on the spot, and whether two are equal to the last bit."""

import dataclasses
from typing import Any

import numpy as np

from iwes_mpi.files.checkpoint import Checkpoint
from iwes_mpi.method.optimizers import optimizer_named
from iwes_mpi.method.state import State
from iwes_mpi.policy.obs_stats import ObsStats
from iwes_mpi.settings.config import Config


def example(iteration: int = 7, d: int = 40, **settings: Any) -> Checkpoint:
    """A checkpoint whose every number follows from the iteration."""
    config, rng = Config(**settings), np.random.default_rng(iteration)
    rules = optimizer_named(config.optimizer)
    optimizer, _ = rules.update(rules.init(d), rng.normal(size=d), 0.01, 0.9)
    stats = ObsStats(1e3 / 7, rng.normal(size=5), rng.random(5))
    state = State(iteration, rng.normal(size=d), optimizer, stats, 12345678901, 42, 1 / 3)
    tables = {"iterations": {"theta_digest": rng.integers(0, 2**64, 5, dtype=np.uint64), "sigma": rng.random(5)}}
    return Checkpoint(state, config, {"host": "ö", "n": 3}, tables)


def _plain(value: Any) -> Any:
    """A value in which arrays are their kind, shape and bytes, so that ``==`` compares all of it."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [type(value).__name__, *map(_plain, value)]
    return value


def assert_equal(found: Checkpoint, expected: Checkpoint) -> None:
    """Every part of the two is equal, to the last bit."""
    assert _plain(found) == _plain(expected)
