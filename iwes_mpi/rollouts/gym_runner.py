"""Episodes through Gymnasium's own interface."""

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from iwes_mpi.compiled.jit import kernel
from iwes_mpi.mpi.guard import Guard
from iwes_mpi.policy import network, obs_stats
from iwes_mpi.rollouts import generators
from iwes_mpi.rollouts.environments import actions_of, is_mujoco
from iwes_mpi.rollouts.episode import Episode, EpisodeTask
from iwes_mpi.rollouts.seeds import SEED_BOUND, seed_bound
from iwes_mpi.settings.config import Config


@kernel
def _add_noise(bitgen, scale, low, high, action):
    """`network.add_noise` with a generator by its address: handing over the object takes some 10 µs a step."""
    network.add_noise(generators.generator_at(bitgen), scale, low, high, action)


def _real(raw: Any) -> NDArray[np.float64]:
    """An observation as contiguous float64. Raises RuntimeError if it is complex: half of it would be lost."""
    found = np.asarray(raw)
    if found.dtype.kind == "c":
        raise RuntimeError("an observation holds complex numbers")
    return found.astype(np.float64, order="C", copy=False)


def _is_true(name: str, value: Any) -> bool:
    """What an environment says of an episode's end. Raises RuntimeError if that is neither true nor false."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    found = np.asarray(value)
    if found.dtype.kind in "biuf" and found.size == 1:
        return bool(found)
    raise RuntimeError(f"step gave {value!r} for {name}; it must be true or false")


class GymRunner:
    """Runs episodes through Gymnasium's own interface.

    Parameters
    ----------
    config : Config
        Shapes the policy.
    env : gymnasium.Env
        From `make_env`.
    timed : bool
        Whether MuJoCo may time itself, at a cost; see `simulator.NoClock`.
    bound : int, optional
        Below which the environment is seeded. If not given, the environment is asked.
    """

    def __init__(self, config: Config, env: gymnasium.Env[Any, Any], timed: bool = True, bound: int | None = None):
        self.env = env
        self.seed_bound = seed_bound(env) if bound is None else bound
        self._is_mujoco = is_mujoco(env)
        self._no_clock = None if timed or not self._is_mujoco else _no_clock()
        self.description = f"{config.env_id} through Gymnasium"
        assert self.env.observation_space.shape is not None
        self._obs_size = self.env.observation_space.shape[0]
        self._clip = config.obs_clip
        spec = self.env.spec
        self.limit = config.max_episode_steps or (spec and spec.max_episode_steps) or 2**53
        self._actions, size = actions_of(self.env.action_space)
        self.network = network.layout(self._obs_size, config.hidden_sizes, size, config.bias, config.activation)
        self._act = network.compiled_act(self.network)
        self._scratch = self.network.scratch()
        self._output = np.zeros(size, dtype=np.float32)

    def run(self, task: EpisodeTask) -> Episode:
        """Run one episode; see `EpisodeRunner`.

        It is invalid if an observation or the return is not finite, or if MuJoCo became unstable on the way.

        Raises
        ------
        RuntimeError
            If the environment's observations are not of the shape it declares or no real numbers, or if it does not
            say true or false of an episode's end.
        """
        step = self.env.step
        low, high, start = self._actions
        shape, scratch, output = self.network, self._scratch, self._output
        stats = np.zeros(1 + task.normalizer.size) if task.observe else None
        raw, _ = self.env.reset(seed=int(task.rng.integers(SEED_BOUND)) % self.seed_bound)
        bitgen = generators.address(task.rng)
        unstable = self._instabilities()
        total, length = 0.0, 0
        while True:
            obs = _real(raw)
            if obs.shape != (self._obs_size,):
                raise RuntimeError(
                    f"step {length} gave an observation of shape {obs.shape}; "
                    f"the environment declares ({self._obs_size},)"
                )
            if not self._act(shape, task.theta, task.normalizer, self._clip, scratch, obs, output):
                return Episode(float("nan"), length, None)
            if stats is not None:
                obs_stats.observe(stats, obs)
            if start is None:
                _add_noise(bitgen, task.action_noise, low, high, output)
                action: Any = output.copy()  # environments may keep what they are given
            else:
                action = start + int(np.argmax(output))
            raw, reward, terminated, truncated, _ = step(action)
            total += float(reward)
            length += 1
            if any(unstable.tolist()):
                return Episode(float("nan"), length, None)
            if terminated is False and truncated is False and length != task.cap:
                continue
            if _is_true("terminated", terminated) | _is_true("truncated", truncated) or length == task.cap:
                Guard.require_one_process()
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
        self._act(self.network, task.theta, task.normalizer, self._clip, self._scratch, obs, self._output)
        obs_stats.observe(np.zeros(1 + task.normalizer.size), obs)
        low, high, start = self._actions
        if start is None:
            _add_noise(generators.address(task.rng), task.action_noise, low, high, self._output)

    def close(self) -> None:
        """Close the environment."""
        if self._no_clock is not None:
            self._no_clock.close()
        self.env.close()


def _no_clock() -> Any:
    """A `simulator.NoClock`; MuJoCo is imported for environments that have it loaded only."""
    from iwes_mpi.rollouts import simulator

    return simulator.NoClock()
