"""Checkpoints: what is saved is what is loaded; whatever is damaged is recognised; one is there at every instant."""

import os
import random
from pathlib import Path

import numpy as np
import pytest

from iwes_mpi.files import checkpoint
from iwes_mpi.files.checkpoint import Checkpoint, CheckpointError, CheckpointWarning
from iwes_mpi.method.optimizers import OptimizerState
from iwes_mpi.method.state import State
from iwes_mpi.policy import obs_stats
from iwes_mpi.settings.config import Config


def example(iteration: int = 7, d: int = 40) -> Checkpoint:
    rng = np.random.default_rng(iteration)
    optimizer = OptimizerState(3 * iteration, rng.normal(size=d), rng.random(d))
    stats = obs_stats.ObsStats(1e3 / 7, rng.normal(size=5), rng.random(5))
    state = State(iteration, rng.normal(size=d), optimizer, stats, 12345678901, 42, 1 / 3)
    tables = {"iterations": {"theta_digest": rng.integers(0, 2**64, 5, dtype=np.uint64), "sigma": rng.random(5)}}
    return Checkpoint(state, Config(env_kwargs={"a": [1, None]}, clip=float("inf")), {"host": "ö", "n": 3}, tables)


def assert_equal(found: Checkpoint, expected: Checkpoint) -> None:
    a, b = found.state, expected.state
    assert (a.iteration, a.env_steps, a.episodes, a.wall_time) == (b.iteration, b.env_steps, b.episodes, b.wall_time)
    assert a.optimizer.step == b.optimizer.step
    for x, y in ((a.theta, b.theta), (a.optimizer.m, b.optimizer.m), (a.optimizer.v, b.optimizer.v)):
        assert x.dtype == np.float64
        assert x.tobytes() == y.tobytes()
    assert obs_stats.pack(a.obs).tobytes() == obs_stats.pack(b.obs).tobytes()
    assert found.config == expected.config
    assert found.attrs == expected.attrs
    for table, columns in expected.tables.items():
        for name, values in columns.items():
            assert found.tables[table][name].dtype == values.dtype
            assert found.tables[table][name].tobytes() == values.tobytes()


def test_round_trip(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, example())
    assert_equal(checkpoint.load(tmp_path / checkpoint.CURRENT), example())


def test_the_previous_one_is_kept(tmp_path: Path) -> None:
    for iteration in (1, 2, 3):
        checkpoint.save(tmp_path, example(iteration))
    assert_equal(checkpoint.load(tmp_path / checkpoint.CURRENT), example(3))
    assert_equal(checkpoint.load(tmp_path / checkpoint.PREVIOUS), example(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == [checkpoint.PREVIOUS, checkpoint.CURRENT]


def test_one_loads_at_every_step_of_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before any of the file system operations of `save`, the directory holds the old state or the new."""

    class Killed(BaseException):
        pass

    operations = ["replace", "fsync", "open"]
    step, survived = 0, True
    while survived:
        for path in tmp_path.iterdir():
            path.unlink()
        checkpoint.save(tmp_path, example(0))
        checkpoint.save(tmp_path, example(1))
        calls = 0
        with monkeypatch.context() as patch:

            def killing(real, step=step):
                def call(*arguments, **named):
                    nonlocal calls
                    calls += 1
                    if calls > step:
                        raise Killed
                    return real(*arguments, **named)

                return call

            for name in operations:
                patch.setattr(os, name, killing(getattr(os, name)))
            try:
                checkpoint.save(tmp_path, example(2))
                survived = False  # all operations were let through
            except Killed:
                pass
        found = checkpoint.load_newest(tmp_path)
        assert_equal(found, example(found.state.iteration))
        assert found.state.iteration in (1, 2)
        step += 1
    assert step > 4


def test_a_damaged_one_is_named_and_the_previous_used(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, example(1))
    checkpoint.save(tmp_path, example(2))
    current = tmp_path / checkpoint.CURRENT
    data = bytearray(current.read_bytes())
    data[len(data) // 2] ^= 1
    current.write_bytes(data)
    with pytest.warns(CheckpointWarning, match=r"checkpoint\.h5 is damaged.*using checkpoint-previous\.h5"):
        assert_equal(checkpoint.load_newest(tmp_path), example(1))


def test_none_intact_names_each(tmp_path: Path) -> None:
    (tmp_path / checkpoint.CURRENT).write_bytes(b"")
    (tmp_path / checkpoint.PREVIOUS).write_bytes(b"something else")
    with pytest.raises(CheckpointError, match=r"checkpoint\.h5 is empty; .*previous\.h5 is not a checkpoint"):
        checkpoint.load_newest(tmp_path)


def test_a_newer_format_is_said_to_be_newer() -> None:
    data = checkpoint.encode(example()).replace(b"checkpoint 1 ", b"checkpoint 2 ", 1)
    with pytest.raises(CheckpointError, match=r"has format 2; this version of iwes_mpi reads format 1"):
        checkpoint.decode(data, "it")


def test_every_mutation_is_recognised() -> None:
    """Truncated at every tenth byte, and with random bytes changed at 1,000 places: never a load, never a crash."""
    data = checkpoint.encode(example())
    for length in range(0, len(data), 10):
        with pytest.raises(CheckpointError):
            checkpoint.decode(data[:length], "it")
    rng = random.Random(5)
    for _ in range(1000):
        mutated = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 50))):
            mutated[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        with pytest.raises(CheckpointError) as caught:
            checkpoint.decode(bytes(mutated), "it")
        assert "\n" not in str(caught.value)


def test_a_damaged_current_never_replaces_a_good_previous(tmp_path: Path) -> None:
    for iteration in (1, 2):
        checkpoint.save(tmp_path, example(iteration))
    (tmp_path / checkpoint.CURRENT).write_bytes(b"damaged")
    checkpoint.promote(tmp_path)
    assert_equal(checkpoint.load(tmp_path / checkpoint.CURRENT), example(1))
    checkpoint.save(tmp_path, example(3))
    assert_equal(checkpoint.load(tmp_path / checkpoint.PREVIOUS), example(1))
