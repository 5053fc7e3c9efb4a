"""Environments: Gymnasium's, with a flat Box observation and a Box or Discrete action space."""

import importlib
import importlib.util
import math
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from iwes_mpi.mpi.guard import Guard
from iwes_mpi.policy.policy import Actions
from iwes_mpi.rollouts.fresh_world import with_fresh_worlds
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput

# What an import or a constructor may end with: an interrupt too, since a real one does not come as an exception
_ANYTHING = (Exception, SystemExit, KeyboardInterrupt)
_PACKAGE = f"{Path(__file__).resolve().parents[1]}{os.sep}"


def make_env(config: Config, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """The environment of a configuration, with its time limit.

    Raises
    ------
    WrongInput
        If its module or id does not exist, it does not take the given arguments, has no time limit, or its
        spaces are not supported.
    """
    module, separator, _ = config.env_id.partition(":")
    if separator:
        try:
            importlib.import_module(module)
        except _ANYTHING as error:
            Guard.require_one_process(error)
            raise WrongInput(
                "env_id", f"importing {module} failed: {_said(error)}", detail=_own_frames(error)
            ) from error
    try:
        spec = gymnasium.spec(config.env_id.rpartition(":")[2])
    except (gymnasium.error.Error, ModuleNotFoundError, ValueError) as error:
        raise WrongInput("env_id", f"{config.env_id}: {error}{_newest(config.env_id.rpartition(':')[2])}") from None
    if spec.max_episode_steps is None and config.max_episode_steps is None:
        raise WrongInput(
            "max_episode_steps",
            f"is needed: {config.env_id} is registered without a time limit, so an episode might never end",
        )
    arguments = dict(config.env_kwargs)
    if "max_episode_steps" in arguments:
        raise WrongInput("env_kwargs", "max_episode_steps is a setting of its own, `max_episode_steps`")
    if config.max_episode_steps is not None:
        arguments["max_episode_steps"] = config.max_episode_steps
    if render_mode is not None:
        arguments["render_mode"] = render_mode
    try:
        creator: Any = spec.entry_point
        if isinstance(creator, str):
            _name_glfw_library()
            creator = load_env_creator(creator)  # imports what it needs, so that MuJoCo is silenced before it speaks
        _silence_mujoco()
        _check_render_mode(config, creator)
        with warnings.catch_warnings():  # "out of date" would be said once per rank; the paper's Ant is meant to be v4
            warnings.simplefilter("ignore", DeprecationWarning)
            env = with_fresh_worlds(gymnasium.make(config.env_id, disable_env_checker=True, **arguments))
    except WrongInput:
        raise
    except _ANYTHING as error:
        Guard.require_one_process(error)
        setting = "env_kwargs" if config.env_kwargs else "env_id"
        raise WrongInput(
            setting, f"{config.env_id} cannot be made: {_said(error)}", detail=_own_frames(error)
        ) from error
    Guard.require_one_process()
    try:
        _check_spaces(config.env_id, env)
        _check_render_mode(config, env)
    except WrongInput:
        env.close()
        raise
    return env


def _newest(name: str) -> str:
    """The question whether an environment without a version was meant to be its newest; empty if there is none."""
    versions = {spec.version: spec.id for spec in gymnasium.registry.values() if spec.id == f"{name}-v{spec.version}"}
    return f"; is it {versions[max(versions)]}?" if versions else ""


def _said(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _own_frames(error: BaseException) -> str:
    """The traceback of an error from the user's own code on; empty if none of that was under way."""
    if isinstance(error, SyntaxError):  # it names the file that has no frame yet
        return "".join(traceback.format_exception_only(error))
    specs = [importlib.util.find_spec(name) for name in ("gymnasium", "mujoco", "importlib")]
    others = [str(Path(spec.origin).parent) + os.sep for spec in specs if spec is not None and spec.origin]
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not name.startswith(("<", _PACKAGE, *others)):
            return "".join(traceback.format_exception(type(error), error, trace))
        trace = trace.tb_next
    return ""


def _name_glfw_library() -> None:
    """Tell glfw, which Gymnasium's MuJoCo tasks import, where the library is that it brings along.

    It would start another Python process on every rank to ask the library for its version.
    """
    spec = None if "glfw" in sys.modules else importlib.util.find_spec("glfw")
    if spec is not None and spec.origin is not None:
        session = "wayland" if os.environ.get("XDG_SESSION_TYPE") == "wayland" else "x11"
        library = Path(spec.origin).parent / session / "libglfw.so"
        if library.is_file():
            os.environ.setdefault("PYGLFW_LIBRARY", str(library))


def _silence_mujoco() -> None:
    """Keep MuJoCo quiet if it is loaded at all."""
    if "mujoco" in sys.modules:
        from iwes_mpi.rollouts import simulator

        simulator.silence()


def is_mujoco(env: gymnasium.Env[Any, Any]) -> bool:
    """Whether an environment holds the data of a MuJoCo simulation."""
    mujoco = sys.modules.get("mujoco")
    return mujoco is not None and isinstance(getattr(env.unwrapped, "data", None), mujoco.MjData)


def actions_of(space: gymnasium.Space[Any]) -> tuple[Actions, int]:
    """What a supported action space takes, and how many numbers the policy puts out for it."""
    if isinstance(space, Discrete):
        nothing = np.zeros(0, dtype=np.float32)
        return Actions(nothing, nothing, int(space.start)), int(space.n)
    assert isinstance(space, Box)
    return Actions(space.low.astype(np.float32), space.high.astype(np.float32), None), space.shape[0]


def _check_render_mode(config: Config, env: Any) -> None:
    """Refuse a render mode that an environment, or its class, does not have: Gymnasium only warns."""
    mode, modes = config.env_kwargs.get("render_mode"), (getattr(env, "metadata", None) or {}).get("render_modes")
    if mode is not None and modes is not None and mode not in modes:
        have = f"it has {', '.join(map(str, modes))}" if modes else "it has none"
        raise WrongInput("env_kwargs", f"{config.env_id} has no render mode {mode!r}; {have}")


_RAM = '{"obs_type": "ram"}'


def _check_spaces(env_id: str, env: gymnasium.Env[Any, Any]) -> None:
    """Refuse spaces that are not supported, with what to do about them (docs/environments.md has it as code)."""
    observation, action = (getattr(env, f"{what}_space", None) for what in ("observation", "action"))
    if not _is_flat(observation):
        advice = "wrap it in gymnasium.wrappers.FlattenObservation"
        if isinstance(observation, Box) and len(observation.shape) in (2, 3) and observation.dtype == np.uint8:
            advice = f"these are images: {advice} if they are small; Atari games take `env_kwargs` {_RAM} instead"
        elif not isinstance(observation, Box | Dict | Discrete | MultiBinary | MultiDiscrete | Tuple):
            advice = "wrap it in a gymnasium.ObservationWrapper that makes it a vector"
        raise WrongInput(
            "env_id",
            f"{env_id} has observations {_shown(observation)}; supported are flat Box spaces, shape (n,): {advice} "
            "(docs/environments.md)",
        )
    if isinstance(action, Discrete) or _is_flat(action):
        return
    advice = "make them vectors"
    if isinstance(action, MultiDiscrete | MultiBinary):
        choices = action.nvec.ravel().tolist() if isinstance(action, MultiDiscrete) else [2] * math.prod(action.shape)
        advice = f"number their {math.prod(choices)} combinations, or round those of a Box,"
    raise WrongInput(
        "env_id",
        f"{env_id} has actions {_shown(action)}; supported are Discrete and flat Box spaces, shape (n,): {advice} "
        "in a gymnasium.wrappers.TransformAction (docs/environments.md)",
    )


def _is_flat(space: gymnasium.Space[Any] | None) -> bool:
    """Whether a space is one of vectors."""
    return isinstance(space, Box) and len(space.shape) == 1 and space.shape[0] > 0


def _shown(space: gymnasium.Space[Any] | None) -> str:
    """A space in a few words: bounds of large boxes and the parts of a Dict would fill the screen."""
    if isinstance(space, Box):
        return f"Box of shape {space.shape} and type {space.dtype}"
    text = " ".join(str(space).split())
    return text if len(text) <= 80 else f"{text[:79]}…"
