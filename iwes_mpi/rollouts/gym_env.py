"""Episodes of any Gymnasium environment with a flat Box observation and a Box or Discrete action space."""

import importlib
import importlib.util
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from iwes_mpi import obs_stats, policy
from iwes_mpi.config import Config, ConfigError
from iwes_mpi.jit import kernel
from iwes_mpi.rollouts import generators
from iwes_mpi.rollouts.base import SEED_BOUND, Episode, EpisodeTask


def make_env(config: Config, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """The environment of a configuration, with its time limit.

    Raises
    ------
    ConfigError
        If its module or id does not exist, it does not take the given arguments, has no time limit, or its
        spaces are not supported.
    """
    module, separator, _ = config.env_id.partition(":")
    if separator:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise ConfigError("--env-id", f"importing {module} failed: {type(error).__name__}: {error}") from error
    try:
        spec = gymnasium.spec(config.env_id.rpartition(":")[2])
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise ConfigError("--env-id", f"{config.env_id}: {error}") from None
    if spec.max_episode_steps is None and config.max_episode_steps is None:
        raise ConfigError(
            "--max-episode-steps",
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
            env = gymnasium.make(config.env_id, disable_env_checker=True, **arguments)
    except Exception as error:
        setting = "--env-kwargs" if config.env_kwargs else "--env-id"
        raise ConfigError(setting, f"{config.env_id} cannot be made: {type(error).__name__}: {error}") from error
    try:
        _check_spaces(config.env_id, env)
    except ConfigError:
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


def _check_spaces(env_id: str, env: gymnasium.Env[Any, Any]) -> None:
    observation, action = env.observation_space, env.action_space
    if not (isinstance(observation, Box) and len(observation.shape) == 1 and observation.shape[0] > 0):
        raise ConfigError(
            "--env-id", f"{env_id} has observations {observation}; supported are flat Box spaces, shape (n,)"
        )
    if isinstance(action, Discrete):
        return
    if not (isinstance(action, Box) and len(action.shape) == 1 and action.shape[0] > 0):
        raise ConfigError(
            "--env-id",
            f"{env_id} has actions {action}; supported are Discrete and flat Box spaces, shape (n,)",
        )


@kernel
def _add_noise(bitgen, scale, low, high, action):
    """`policy.add_noise` with a generator by its address: handing over the object takes some 10 µs a step."""
    policy.add_noise(generators.generator_at(bitgen), scale, low, high, action)


class GymRunner:
    """Runs episodes through Gymnasium's own interface.

    Parameters
    ----------
    config : Config
        Shapes the policy.
    env : gymnasium.Env
        From `make_env`.
    """

    def __init__(self, config: Config, env: gymnasium.Env[Any, Any]):
        self.env = env
        self._is_mujoco = is_mujoco(env)
        self.description = f"{config.env_id} through Gymnasium"
        assert self.env.observation_space.shape is not None
        self._obs_size = self.env.observation_space.shape[0]
        self._clip = config.obs_clip
        space = self.env.action_space
        if isinstance(space, Discrete):
            self._discrete_start: int | None = int(space.start)
            size = int(space.n)
        else:
            assert isinstance(space, Box)
            self._discrete_start = None
            size = space.shape[0]
            self._low = space.low.astype(np.float32)
            self._high = space.high.astype(np.float32)
        self.network = policy.layout(self._obs_size, config.hidden_sizes, size)
        self._scratch = self.network.scratch()
        self._output = np.zeros(size, dtype=np.float32)

    def run(self, task: EpisodeTask) -> Episode:
        """Run one episode; see `EpisodeRunner`.

        It is invalid if an observation or the return is not finite, or if MuJoCo became unstable on the way.

        Raises
        ------
        RuntimeError
            If the environment's observations are not of the shape it declares.
        """
        step = self.env.step
        sizes, scratch, output = self.network.sizes, self._scratch, self._output
        stats = np.zeros(1 + 2 * self._obs_size) if task.observe else None
        raw, _ = self.env.reset(seed=int(task.rng.integers(SEED_BOUND)))
        bitgen = generators.address(task.rng)
        unstable = self._instabilities()
        total, length = 0.0, 0
        while True:
            obs = np.asarray(raw, dtype=np.float64)
            if obs.shape != (self._obs_size,):
                raise RuntimeError(
                    f"step {length} gave an observation of shape {obs.shape}; "
                    f"the environment declares ({self._obs_size},)"
                )
            if not policy.act(sizes, task.theta, task.normaliser, self._clip, scratch, obs, output):
                return Episode(float("nan"), length, None)
            if stats is not None:
                obs_stats.observe(stats, obs)
            if self._discrete_start is None:
                _add_noise(bitgen, task.action_noise, self._low, self._high, output)
                action: Any = output.copy()  # environments may keep what they are given
            else:
                action = self._discrete_start + int(np.argmax(output))
            raw, reward, terminated, truncated, _ = step(action)
            total += float(reward)
            length += 1
            if any(unstable.tolist()):
                return Episode(float("nan"), length, None)
            if terminated or truncated:
                return Episode(total, length, stats)

    def _instabilities(self) -> NDArray[np.int32]:
        """Counters of what makes an episode meaningless, by whatever simulates; shape (n,)."""
        if not self._is_mujoco:
            return np.zeros(0, dtype=np.int32)
        from iwes_mpi.rollouts import simulator

        inner: Any = self.env.unwrapped
        return simulator.instabilities(inner.data)

    def rehearse(self, task: EpisodeTask) -> None:
        """See `EpisodeRunner`; the environment is not touched."""
        obs = np.zeros(self._obs_size)
        policy.act(self.network.sizes, task.theta, task.normaliser, self._clip, self._scratch, obs, self._output)
        obs_stats.observe(np.zeros(1 + 2 * self._obs_size), obs)
        if self._discrete_start is None:
            _add_noise(generators.address(task.rng), task.action_noise, self._low, self._high, self._output)

    def close(self) -> None:
        """Close the environment."""
        self.env.close()
