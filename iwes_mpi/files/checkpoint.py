"""Checkpoints: written atomically, checked before HDF5 sees them.

A checkpoint is an HDF5 file whose user block (the 512 bytes HDF5 leaves to applications at the start of a file)
holds the format's name and a BLAKE2b checksum of all that follows. A file that was damaged anywhere is recognized
before its content is parsed. The previous checkpoint is kept until the new one is safely on disk.

It also holds the rows of the log up to its iteration, so that a run goes on with its whole log even if the log file
was lost or damaged.
"""

import hashlib
import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np

from iwes_mpi.files.columns import Tables
from iwes_mpi.files.disk import sync
from iwes_mpi.files.trail import extend_trail
from iwes_mpi.method import optimizers
from iwes_mpi.method.state import Drawn, State
from iwes_mpi.policy import obs_stats
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput

if TYPE_CHECKING:
    from iwes_mpi.policy.policy import Policy

CURRENT = "checkpoint.h5"
PREVIOUS = "checkpoint-previous.h5"
MAGIC = b"iwes-mpi checkpoint "
VERSION = 2  # 1 had the optimizer's state under the names of Adam's, and less of what a run may remember
_USER_BLOCK = 512
_COUNTS = ("iteration", "env_steps", "episodes", "eval_env_steps", "eval_episodes", "episode_cap")


class CheckpointError(ValueError):
    """A file that is not an intact checkpoint of this format."""


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was passed over."""


class Checkpoint(NamedTuple):
    """The state of a run, the settings it was made with, and its log so far."""

    state: State
    config: Config
    attrs: dict[str, Any]  # the log's root attributes: text and integers
    tables: Tables


def encode(checkpoint: Checkpoint) -> bytes:
    """The bytes of a checkpoint file."""
    state = checkpoint.state
    image = io.BytesIO()
    with h5py.File(image, "w", libver="latest", userblock_size=_USER_BLOCK) as file:
        file.attrs["format"] = f"iwes-mpi-checkpoint/{VERSION}"
        file.attrs["config"] = checkpoint.config.to_json()
        for name in _COUNTS:
            file.attrs[name] = np.int64(getattr(state, name))
        file.attrs["wall_time"] = np.float64(state.wall_time)
        file["theta"], file["history"] = state.theta, state.history
        file["recent_evaluations"] = np.array(state.recent_evaluations, np.float64)
        for i, drawn in enumerate(state.drawn):
            for name, value in vars(drawn).items():
                if value is not None:
                    file[f"drawn/{i:04d}/{name}"] = value
        for name, value in optimizers.saved(state.optimizer).items():
            file[f"optimizer/{name}"] = value
        file["obs_stats"] = obs_stats.pack(state.obs)
        file.create_group("log").attrs.update(checkpoint.attrs)
        for table, columns in checkpoint.tables.items():
            for name, values in columns.items():
                file[f"log/{table}/{name}"] = values
    content = image.getvalue()[_USER_BLOCK:]
    return _header(VERSION, content) + content


def _header(version: int, content: bytes) -> bytes:
    """The user block before a checkpoint's content."""
    checksum = hashlib.blake2b(content).hexdigest()
    return MAGIC + f"{version} blake2b {checksum}\n".encode().ljust(_USER_BLOCK - len(MAGIC), b"\0")


def decode(data: bytes, name: str) -> Checkpoint:
    """The checkpoint in a file's bytes; `name` names the file in errors.

    Raises
    ------
    CheckpointError
        If it is of another format, or damaged.
    """
    if not data.startswith(MAGIC):
        raise CheckpointError(f"{name} is not a checkpoint of iwes_mpi" if data else f"{name} is empty")
    fields = data[:_USER_BLOCK].rstrip(b"\0").removeprefix(MAGIC).split()
    version = int(fields[0]) if len(fields) == 3 and fields[0].isdigit() else VERSION
    if not 1 <= version <= VERSION:
        raise CheckpointError(f"{name} has format {version}; this version of iwes_mpi reads formats up to {VERSION}")
    content = data[_USER_BLOCK:]
    if data[:_USER_BLOCK] != _header(version, content):
        raise CheckpointError(f"{name} is damaged: its checksum does not match")
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            attrs, config = file.attrs, Config.from_json(file.attrs["config"])
            optimizer = _optimizer(file, config.optimizer, version)
            stats = obs_stats.unpack(file["obs_stats"][:], config.whiten)
            counts: dict[str, Any] = {name: int(attrs[name]) for name in _COUNTS if name in attrs or version > 1}
            state = State(
                theta=file["theta"][:], optimizer=optimizer, obs=stats, wall_time=float(attrs["wall_time"]), **counts
            )
            if version > 1:
                state.history = file["history"][:]
                state.recent_evaluations = list(map(float, file.get("recent_evaluations", ())))
                state.drawn = [_drawn(group) for _, group in sorted(file.get("drawn", {}).items())]
            log = file["log"]
            tables = {table: {name: column[:] for name, column in log[table].items()} for table in log}
            return Checkpoint(state, config, dict(log.attrs), tables)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{name} cannot be understood: {error}") from None


def _drawn(group: h5py.Group) -> Drawn:
    """A population that may be used again."""
    used = group["used"][:] if "used" in group else None
    return Drawn(group["center"][:], float(group["sigma"][()]), group["starts"][:], group["returns"][:], used)


def _optimizer(file: h5py.File, name: str, version: int) -> optimizers.OptimizerState:
    """The optimizer's state in a checkpoint."""
    if version == 1:
        fields = {"step": int(file.attrs["optimizer_step"]), "m": file["optimizer_m"][:], "v": file["optimizer_v"][:]}
        if name == "sgd":
            fields = {"step": fields["step"], "velocity": fields["m"]}
    else:
        fields = {key: field[()] for key, field in file["optimizer"].items()}
        fields["step"] = int(fields["step"])
    return optimizers.restored(name, fields)


def load(path: Path) -> Checkpoint:
    """Read one checkpoint file.

    Raises
    ------
    CheckpointError
        If it is missing, unreadable or damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    return decode(data, str(path))


def policy_in(checkpoint: Checkpoint, name: str) -> "Policy":
    """The policy in a checkpoint, with the action space of its environment; `name` names the run in messages.

    Raises
    ------
    WrongInput
        If the environment cannot be made, or there is no policy in it.
    """
    state, config = checkpoint.state, checkpoint.config
    require_policy(checkpoint, name)
    from iwes_mpi.rollouts.acting import policy_of  # loads Gymnasium

    about = f"{config.env_id} after {state.iteration} iterations"
    return policy_of(config, state.theta, state.obs.normalizer(), about)


def require_policy(checkpoint: Checkpoint, name: str) -> None:
    """Raise WrongInput if a run has no policy, since it maximizes an objective."""
    if not checkpoint.state.obs.mean.size:
        raise WrongInput("run", f"{name} maximizes an objective, {checkpoint.config.env_id}: it has no policy")


def _warn(text: str) -> None:
    warnings.warn(text, CheckpointWarning, stacklevel=3)


def load_newest(run_dir: Path, warn: Callable[[str], None] = _warn) -> Checkpoint:
    """The newest intact checkpoint of a run; damaged ones are passed over with a warning.

    Raises
    ------
    CheckpointError
        If none is intact, naming what is wrong with each; FileNotFoundError if there is no checkpoint at all.
    """
    found = [path for path in (run_dir / CURRENT, run_dir / PREVIOUS) if path.exists()]
    if not found:
        raise FileNotFoundError(f"{run_dir} holds no checkpoint")
    problems = []
    for path in found:
        try:
            checkpoint = load(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            warn(f"{problem}; using {path.name}")
        return checkpoint
    raise CheckpointError("; ".join(problems))


def promote(run_dir: Path) -> None:
    """Give the newest intact checkpoint the current one's name, so that the next `save` keeps it.

    Raises
    ------
    CheckpointError
        If the current one is damaged, and so is the previous one, or there is none.
    """
    try:
        load(run_dir / CURRENT)
    except CheckpointError:
        load(run_dir / PREVIOUS)
        os.replace(run_dir / PREVIOUS, run_dir / CURRENT)


def save(run_dir: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that at every instant an intact one is there, whatever is killed.

    The new file is complete on disk before the current one is renamed to the previous, and takes its name then.
    With ``keep_checkpoints`` it joins the trail.
    """
    current, previous, draft = run_dir / CURRENT, run_dir / PREVIOUS, run_dir / (CURRENT + ".new")
    with open(draft, "wb") as file:
        file.write(encode(checkpoint))
        file.flush()
        os.fsync(file.fileno())
    if current.exists():
        os.replace(current, previous)
    os.replace(draft, current)
    sync(run_dir)
    if checkpoint.config.keep_checkpoints:
        extend_trail(run_dir, current, checkpoint.state.iteration, checkpoint.config.keep_checkpoints)
