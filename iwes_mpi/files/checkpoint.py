"""Checkpoints: written atomically, checked before HDF5 sees them.

A checkpoint is an HDF5 file whose user block (the 512 bytes HDF5 leaves to applications at the start of a file)
holds the format's name and a BLAKE2b checksum of all that follows. A file that was damaged anywhere is recognized
before its content is parsed. The previous checkpoint is kept until the new one is safely on disk.

It also holds the rows of the log up to its iteration, so that a run goes on with its whole log even if the log file
was lost or damaged.
"""

import hashlib
import io
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from iwes_mpi.files.columns import Tables
from iwes_mpi.files.disk import sync
from iwes_mpi.files.trail import extend_trail
from iwes_mpi.files.untrusted import Contents, Untrusted, require_file
from iwes_mpi.method import optimizers
from iwes_mpi.method.state import Drawn, State
from iwes_mpi.policy import obs_stats
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.printable import one_line
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
    """A file that is not an intact checkpoint of this format; the message is one line, fit for a terminal."""

    def __init__(self, text: str):
        super().__init__(one_line(text))


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
    return _user_block(version, hashlib.blake2b(content).hexdigest())


def _user_block(version: int, checksum: str) -> bytes:
    return MAGIC + f"{version} blake2b {checksum}\n".encode().ljust(_USER_BLOCK - len(MAGIC), b"\0")


def decode(data: bytes, name: str) -> Checkpoint:
    """The checkpoint in a file's bytes; `name` names the file in errors.

    Raises
    ------
    CheckpointError
        If it is of another format, or damaged.
    """
    return _decode(io.BytesIO(data), len(data), name)


def _decode(file: BinaryIO, size: int, name: str) -> Checkpoint:
    """The checkpoint in an open file of `size` bytes, of which only what becomes part of it is held in memory."""
    head = file.read(_USER_BLOCK)
    if not head.startswith(MAGIC):
        raise CheckpointError(f"{name} is not a checkpoint of iwes_mpi" if head else f"{name} is empty")
    fields = head.rstrip(b"\0").removeprefix(MAGIC).split()
    version = int(fields[0]) if len(fields) == 3 and fields[0].isdigit() and len(fields[0]) < 9 else VERSION
    if not 1 <= version <= VERSION:
        raise CheckpointError(f"{name} has format {version}; this version of iwes_mpi reads formats up to {VERSION}")
    checksum = hashlib.blake2b()
    while part := file.read(1 << 20):
        checksum.update(part)
    if head != _user_block(version, checksum.hexdigest()):
        raise CheckpointError(f"{name} is damaged: its checksum does not match")
    file.seek(0)
    try:
        with h5py.File(file, "r") as opened:
            return _understood(Contents(opened, size), version)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, OverflowError, RecursionError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error  # without quotes
        raise CheckpointError(f"{name} cannot be understood: {text}") from None


def _understood(contents: Contents, version: int) -> Checkpoint:
    """What an intact checkpoint of a format holds. Raises many kinds of errors if that is no state of a run."""
    root, attrs = contents.root, contents.attributes(contents.root)
    config = Config.from_json(attrs["config"])
    theta = contents.array(root, "theta", 1, np.float64)
    packed = contents.array(root, "obs_stats", 1, np.float64)
    stats = obs_stats.unpack(packed, config.whiten) if packed.size else None  # 1: an objective has none to observe
    if stats is None or stats.m2.shape[-1] != stats.mean.size:
        raise Untrusted("its statistics of observations are none")
    counts: dict[str, Any] = {name: int(attrs[name]) for name in _COUNTS if name in attrs or version > 1}
    optimizer = _optimizer(contents, attrs, config.optimizer, version, theta.size)
    state = State(theta=theta, optimizer=optimizer, obs=stats, wall_time=float(attrs["wall_time"]), **counts)
    if min(counts.values()) < 0 or not math.isfinite(state.wall_time):
        raise Untrusted("its counts are not those of a run")
    if version > 1:
        state.history = contents.array(root, "history", 2, np.float64)
        if state.history.shape[0] != 2:
            raise Untrusted("history does not have two rows")
        there = contents.names(root)
        if "recent_evaluations" in there:
            state.recent_evaluations = contents.array(root, "recent_evaluations", 1, np.float64).tolist()
        drawn = contents.group(root, "drawn")
        for name in sorted(contents.names(drawn)) if drawn is not None else ():
            state.drawn.append(_drawn(contents, _required(contents, drawn, name), theta.size))
    log = _required(contents, root, "log")
    tables = {table: _rows(contents, _required(contents, log, table)) for table in contents.names(log)}
    return Checkpoint(state, config, contents.attributes(log), tables)


def _required(contents: Contents, parent: h5py.Group | None, name: str) -> h5py.Group:
    """A group in another one. Raises KeyError if it is not there."""
    group = None if parent is None else contents.group(parent, name)
    if group is None:
        raise KeyError(f"{name} is not there")
    return group


def _rows(contents: Contents, group: h5py.Group) -> dict[str, NDArray[Any]]:
    """The rows of a table of the log, by column."""
    columns = {name: contents.array(group, name, 1) for name in contents.names(group)}
    if len({column.size for column in columns.values()}) > 1:
        raise Untrusted("the columns of its log differ in length")
    return columns


def _drawn(contents: Contents, group: h5py.Group, d: int) -> Drawn:
    """A population that may be used again."""
    used = contents.array(group, "used", 2) if "used" in contents.names(group) else None
    found = Drawn(
        contents.array(group, "center", 1, np.float64),
        float(contents.array(group, "sigma", 0, np.float64)),
        contents.array(group, "starts", 1, np.int64),
        contents.array(group, "returns", 2, np.float64),
        used,
    )
    pairs = (found.starts.size, 2)
    if found.center.size != d or found.returns.shape != pairs or (used is not None and used.shape != pairs):
        raise Untrusted("a population that it holds is of another shape")
    return found


def _optimizer(contents: Contents, attrs: dict[str, Any], name: str, version: int, d: int) -> optimizers.OptimizerState:
    """The optimizer's state in a checkpoint, for d parameters."""
    root = contents.root
    if version == 1:
        moments = {key: contents.array(root, f"optimizer_{key}", 1, np.float64) for key in ("m", "v")}
        fields: dict[str, Any] = {"step": int(attrs["optimizer_step"])}
        fields |= {"velocity": moments["m"]} if name == "sgd" else moments
    else:
        group = _required(contents, root, "optimizer")
        fields = {key: contents.array(group, key, 0 if key == "step" else 1) for key in contents.names(group)}
        fields["step"] = int(fields["step"])
    if any(values.shape != (d,) for key, values in fields.items() if key != "step"):
        raise Untrusted("its optimizer is not of theta's size")
    return optimizers.restored(name, fields)


def load(path: Path) -> Checkpoint:
    """Read one checkpoint file.

    Raises
    ------
    CheckpointError
        If it is missing, unreadable or damaged.
    """
    try:
        size = require_file(path)
        with open(path, "rb") as file:
            return _decode(file, size, str(path))
    except (OSError, Untrusted) as error:
        raise CheckpointError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def policy_in(checkpoint: Checkpoint, name: str, trust: bool = False) -> "Policy":
    """The policy in a checkpoint, with the action space of its environment; `name` names the run in messages.

    Raises
    ------
    WrongInput
        If the environment cannot be made, it is in a module that is not trusted, or there is no policy in it.
    """
    state, config = checkpoint.state, checkpoint.config
    require_policy(checkpoint, name)
    require_trust(config, trust)
    from iwes_mpi.rollouts.acting import policy_of  # loads Gymnasium

    about = f"{config.env_id} after {state.iteration} iterations"
    return policy_of(config, state.theta, state.obs.normalizer(), about)


def require_policy(checkpoint: Checkpoint, name: str) -> None:
    """Raise WrongInput if a run has no policy, since it maximizes an objective."""
    if not checkpoint.state.obs.mean.size:
        raise WrongInput("run", f"{name} maximizes an objective, {checkpoint.config.env_id}: it has no policy")


def require_trust(config: Config, trust: bool) -> None:
    """Raise WrongInput if making a run's environment imports a module that a file names, and nobody trusts it."""
    module, names_one, _ = config.env_id.partition(":")
    if names_one and not trust:
        raise WrongInput(
            "trust",
            f"is needed: the run's environment is {config.env_id}, so module {module} would be imported, which "
            "executes its code. Give it if you know where run and module come from",
        )


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
