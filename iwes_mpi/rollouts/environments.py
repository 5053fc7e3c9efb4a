"""Environments: Gymnasium's, with a flat Box observation and a Box or Discrete action space."""

import importlib
import importlib.util
import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from iwes_mpi.policy.policy import Actions
from iwes_mpi.rollouts.fresh_world import with_fresh_worlds
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput


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
        except Exception as error:
            raise WrongInput("env_id", f"importing {module} failed: {type(error).__name__}: {error}") from error
    try:
        spec = gymnasium.spec(config.env_id.rpartition(":")[2])
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise WrongInput("env_id", f"{config.env_id}: {error}") from None
    if spec.max_episode_steps is None and config.max_episode_steps is None:
        raise WrongInput(
            "max_episode_steps",
            f"is needed: {config.env_id} is registered without a time limit, so an episode might never end",
        )
    arguments = dict(config.env_kwargs)
    if config.max_episode_steps is not None:
        arguments["max_episode_steps"] = config.max_episode_steps
    if render_mode is not None:
        arguments["render_mode"] = render_mode
    try:
        if isinstance(spec.entry_point, str):
            _name_glfw_library()
            load_env_creator(spec.entry_point)  # imports what it needs, so that MuJoCo is silenced before it speaks
        _silence_mujoco()
        with warnings.catch_warnings():  # "out of date" would be said once per rank; the paper's Ant is meant to be v4
            warnings.simplefilter("ignore", DeprecationWarning)
            env = with_fresh_worlds(gymnasium.make(config.env_id, disable_env_checker=True, **arguments))
    except Exception as error:
        setting = "env_kwargs" if config.env_kwargs else "env_id"
        raise WrongInput(setting, f"{config.env_id} cannot be made: {type(error).__name__}: {error}") from error
    try:
        _check_spaces(config.env_id, env)
    except WrongInput:
        env.close()
        raise
    return env


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


_RAM = '{"obs_type": "ram"}'


def _check_spaces(env_id: str, env: gymnasium.Env[Any, Any]) -> None:
    """Refuse spaces that are not supported, with what to do about them (docs/environments.md has it as code)."""
    observation, action = env.observation_space, env.action_space
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


def _is_flat(space: gymnasium.Space[Any]) -> bool:
    """Whether a space is one of vectors."""
    return isinstance(space, Box) and len(space.shape) == 1 and space.shape[0] > 0


def _shown(space: gymnasium.Space[Any]) -> str:
    """A space in a few words: bounds of large boxes and the parts of a Dict would fill the screen."""
    if isinstance(space, Box):
        return f"Box of shape {space.shape} and type {space.dtype}"
    text = " ".join(str(space).split())
    return text if len(text) <= 80 else f"{text[:79]}…"
