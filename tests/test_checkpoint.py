"""Checkpoints: what is saved is what is loaded; whatever is damaged is recognized; one is there at every instant."""

import dataclasses
import hashlib
import io
import json
import os
import random
from pathlib import Path

import h5py
import numpy as np
import pytest

from iwes_mpi.files import checkpoint
from iwes_mpi.files.checkpoint import Checkpoint, CheckpointError, CheckpointWarning
from iwes_mpi.method.optimizers import adam, sgd
from iwes_mpi.method.state import Drawn, State
from iwes_mpi.policy import obs_stats
from iwes_mpi.settings.config import Config


def example(iteration: int = 7, d: int = 40, optimizer: str = "adam") -> Checkpoint:
    rng = np.random.default_rng(iteration)
    m, v = rng.normal(size=d), rng.random(d)
    moments = adam.State(3 * iteration, m, v) if optimizer == "adam" else sgd.State(3 * iteration, m)
    stats = obs_stats.ObsStats(1e3 / 7, rng.normal(size=5), rng.random(5))
    drawn = [
        Drawn(rng.normal(size=d), 0.1 * m, rng.integers(0, 99, 3), rng.normal(size=(3, 2)), rng.random((3, 2)) < 0.5)
        for m in (1, 2)
    ]
    state = State(
        iteration, rng.normal(size=d), moments, stats, 12345678901, 42, 1 / 3, 6789, 7, 55, rng.normal(size=(2, 4)),
        [1.5, -2.0], drawn,
    )  # fmt: skip
    tables = {"iterations": {"theta_digest": rng.integers(0, 2**64, 5, dtype=np.uint64), "sigma": rng.random(5)}}
    config = Config(env_kwargs={"a": [1, None]}, clip=float("inf"), optimizer=optimizer)
    return Checkpoint(state, config, {"host": "ö", "n": 3}, tables)


def assert_equal(found: Checkpoint, expected: Checkpoint) -> None:
    a, b = found.state, expected.state
    assert (a.iteration, a.env_steps, a.episodes, a.wall_time) == (b.iteration, b.env_steps, b.episodes, b.wall_time)
    assert type(a.optimizer) is type(b.optimizer)
    assert type(a.optimizer.step) is int
    for x, y in zip((a.theta, *a.optimizer), (b.theta, *b.optimizer), strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
    assert obs_stats.pack(a.obs).tobytes() == obs_stats.pack(b.obs).tobytes()
    for name in ("eval_env_steps", "eval_episodes", "episode_cap", "recent_evaluations"):
        assert getattr(a, name) == getattr(b, name), name
    np.testing.assert_array_equal(a.history, b.history, strict=True)
    assert len(a.drawn) == len(b.drawn)
    for one, other in zip(a.drawn, b.drawn, strict=True):
        assert one.sigma == other.sigma
        for name in ("center", "starts", "returns", "used"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert found.config == expected.config
    assert found.attrs == expected.attrs
    for table, columns in expected.tables.items():
        for name, values in columns.items():
            assert found.tables[table][name].dtype == values.dtype
            assert found.tables[table][name].tobytes() == values.tobytes()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_round_trip(tmp_path: Path, optimizer: str) -> None:
    checkpoint.save(tmp_path, example(optimizer=optimizer))
    assert_equal(checkpoint.load(tmp_path / checkpoint.CURRENT), example(optimizer=optimizer))


# -- formats -------------------------------------------------------------------------------------------------

# Settings that there were when version 1 was written.
SETTINGS_OF_VERSION_1 = [
    "env_id", "env_kwargs", "train_env_kwargs", "max_episode_steps", "hidden_sizes", "action_noise", "obs_clip",
    "obs_stat_probability", "n_pairs", "min_env_steps", "sigma", "common_random_numbers", "shaping", "optimizer",
    "learning_rate", "momentum", "l2", "iw_updates", "clip", "center", "min_ess", "max_kl", "weight_kernel",
    "weights_on", "n_eval", "iterations", "max_env_steps", "max_wall_time", "seed", "noise_table_size", "schedule",
    "run_dir", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "rollouts", "log_population",
    "tensorboard", "display",
]  # fmt: skip


def with_header(image: bytes, version: object) -> bytes:
    """An HDF5 file as a checkpoint that says to be of a version."""
    content = image[512:]
    header = f"iwes-mpi checkpoint {version} blake2b {hashlib.blake2b(content).hexdigest()}\n".encode()
    return header.ljust(512, b"\0") + content


def version_1(made: Checkpoint) -> bytes:
    """A checkpoint as version 1 was written: the velocity of SGD under Adam's first moment, with a second of zeros."""
    state, config = made.state, json.loads(made.config.to_json())
    first, *second = (x for x in state.optimizer if isinstance(x, np.ndarray))
    image = io.BytesIO()
    with h5py.File(image, "w", libver="latest", userblock_size=512) as file:
        file.attrs["format"] = "iwes-mpi-checkpoint/1"
        file.attrs["config"] = json.dumps({name: config[name] for name in SETTINGS_OF_VERSION_1})
        file.attrs["iteration"] = np.int64(state.iteration)
        file.attrs["env_steps"] = np.int64(state.env_steps)
        file.attrs["episodes"] = np.int64(state.episodes)
        file.attrs["wall_time"] = np.float64(state.wall_time)
        file.attrs["optimizer_step"] = np.int64(state.optimizer.step)
        file["theta"] = state.theta
        file["optimizer_m"] = first
        file["optimizer_v"] = second[0] if second else np.zeros_like(first)
        file["obs_stats"] = np.concatenate([[state.obs.n], state.obs.mean, state.obs.m2])
        file.create_group("log").attrs.update(made.attrs)
        for table, columns in made.tables.items():
            for name, values in columns.items():
                file[f"log/{table}/{name}"] = values
    return with_header(image.getvalue(), 1)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_version_1_loads(tmp_path: Path, optimizer: str) -> None:
    """As the state of its own optimizer, and from then on it is written as any other."""
    old = example(optimizer=optimizer)
    old = old._replace(config=dataclasses.replace(old.config, eval_every=1))  # as it was before there was a choice
    (tmp_path / checkpoint.CURRENT).write_bytes(version_1(old))
    found = checkpoint.load_newest(tmp_path)
    later = {"eval_env_steps": 0, "eval_episodes": 0, "episode_cap": 0, "history": np.zeros((2, 0))}
    later |= {"recent_evaluations": [], "drawn": []}  # what version 1 did not know of
    old = old._replace(state=dataclasses.replace(old.state, **later))
    assert_equal(found, old)
    checkpoint.save(tmp_path, found)
    assert_equal(checkpoint.load(tmp_path / checkpoint.CURRENT), old)
    assert (tmp_path / checkpoint.CURRENT).read_bytes().startswith(b"iwes-mpi checkpoint 2 ")
    assert_equal(checkpoint.load(tmp_path / checkpoint.PREVIOUS), old)


def test_version_2_names_the_fields_of_the_optimizer() -> None:
    for optimizer, fields in (("adam", {"step", "m", "v"}), ("sgd", {"step", "velocity"})):
        with h5py.File(io.BytesIO(checkpoint.encode(example(optimizer=optimizer)))) as file:
            assert set(file["optimizer"]) == fields
            assert file.attrs["format"] == "iwes-mpi-checkpoint/2"


@pytest.mark.parametrize("version", [3, 10, 999])
def test_a_newer_format_is_said_to_be_newer(version: int) -> None:
    data = with_header(checkpoint.encode(example()), version)
    problem = rf"it has format {version}; this version of iwes_mpi reads formats up to 2$"
    with pytest.raises(CheckpointError, match=problem):
        checkpoint.decode(data, "it")


@pytest.mark.parametrize("version", [0, -1, "2.0", "x", ""])
def test_a_format_that_there_never_was_is_refused(version: object) -> None:
    with pytest.raises(CheckpointError, match=r"it has format 0|it is damaged"):
        checkpoint.decode(with_header(checkpoint.encode(example()), version), "it")


def test_the_state_of_another_optimizer_is_refused() -> None:
    """A file whose checksum is right, but whose settings name another optimizer than the one whose state it holds."""
    mixed = example()._replace(config=Config(optimizer="sgd"))
    with pytest.raises(CheckpointError, match="it cannot be understood: the optimizer's state holds m, step, v, sgd"):
        checkpoint.decode(checkpoint.encode(mixed), "it")


# -- saving --------------------------------------------------------------------------------------------------


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


# -- damage --------------------------------------------------------------------------------------------------


def test_every_mutation_is_recognized() -> None:
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
