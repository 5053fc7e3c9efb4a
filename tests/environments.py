"""Small environments for tests: quick, deterministic from their seed, and some of them broken on purpose."""

import os
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

OBS_SIZE, ACTION_SIZE = 3, 2


class Drift(gymnasium.Env[Any, Any]):
    """A point that drifts; reward for steering it home. Episodes end at a random time, so that lengths differ."""

    observation_space = Box(-np.inf, np.inf, (OBS_SIZE,), np.float64)
    action_space = Box(-1.0, 1.0, (ACTION_SIZE,), np.float32)

    def __init__(self, sleep: float = 0.0, marker: str | None = None):
        self.sleep = sleep  # s per step
        self.marker = marker  # a file that tells that episodes are under way
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.state = self.np_random.normal(size=OBS_SIZE)
        self.end = int(self.np_random.integers(5, 60))
        self.steps = 0
        return self.state.copy(), {}

    def step(self, action: Any) -> Any:
        if self.marker:
            Path(self.marker).touch()
        if self.sleep:
            time.sleep(self.sleep)
        self.steps += 1
        self.state = 0.95 * self.state + 0.05 * self.np_random.normal(size=OBS_SIZE)
        self.state[:ACTION_SIZE] += 0.2 * np.asarray(action, dtype=np.float64)
        return self.state.copy(), -float(np.sum(self.state**2)), self.steps >= self.end, False, {}


class Legacy(Drift):
    """Drift that draws from NumPy's global generator, which takes no seeds from 2^32 on."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None):
        super().__init__()
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        np.random.seed(seed)  # noqa: NPY002
        return super().reset(seed=int(np.random.randint(2**31)))  # noqa: NPY002

    def render(self) -> Any:
        return np.full((16, 16, 3), self.steps, dtype=np.uint8)


class Choice(Drift):
    """Drift with a discrete action that starts at −1."""

    action_space = Discrete(3, start=-1)

    def step(self, action: Any) -> Any:
        assert action in (-1, 0, 1)
        return super().step(np.full(ACTION_SIZE, float(action)))


class Faulty(Drift):
    """Drift that does `fault` on the step `at` of every episode of the rank `rank` (any rank by default).

    `since` is a file whose time tells when that was last.
    """

    def __init__(self, fault: str, at: int = 3, rank: int | None = None, share: float = 1.0, since: str | None = None):
        super().__init__()
        self.fault, self.at, self.share, self.since = fault, at, share, since
        variables = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID")
        mine = next((int(os.environ[name]) for name in variables if name in os.environ), 0)
        self.active = rank is None or rank == mine
        self.episodes = 0
        if fault == "absent" and self.active:
            raise FileNotFoundError("its model is not on this node")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.episodes += 1
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        if self.fault == "late" and self.episodes <= 1000:
            return obs, reward, terminated, truncated, info
        if not (self.active and self.steps == self.at and self.np_random.random() < self.share):
            return obs, reward, terminated, truncated, info
        if self.since is not None:
            Path(self.since).touch()
        if self.fault == "raise":
            raise ArithmeticError("the environment gave up")
        if self.fault == "late":
            raise ArithmeticError(f"after {self.episodes - 1} episodes")
        if self.fault == "reject":
            raise ValueError(f"action {action} is not one of mine")
        if self.fault == "exit":
            raise SystemExit(0)
        if self.fault == "segfault":
            import ctypes

            ctypes.string_at(0)
        if self.fault == "kill":
            os.kill(os.getpid(), 9)
        if self.fault == "nan reward":
            reward = float("nan")
        if self.fault == "infinite reward":
            reward = float("inf")
        if self.fault == "nan observation":
            obs = np.full(OBS_SIZE, np.nan)
        if self.fault == "infinite observation":
            obs = np.full(OBS_SIZE, np.inf)
        if self.fault == "other shape":
            obs = np.zeros(OBS_SIZE + 1)
        if self.fault == "print":
            print("x" * 1_000_000)
        if self.fault == "endless":
            self.end = 10**9
        return obs, reward, terminated, truncated, info


class Nested(Drift):
    """Drift whose observations are a dictionary of vectors, one of them within another."""

    observation_space = Dict({
        "place": Box(-np.inf, np.inf, (1,), np.float64),
        "others": Dict({"rest": Box(-np.inf, np.inf, (OBS_SIZE - 1,), np.float64)}),
    })  # fmt: skip

    def _nested(self, obs: Any) -> Any:
        return {"others": {"rest": obs[1:]}, "place": obs[:1]}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        obs, info = super().reset(seed=seed, options=options)
        return self._nested(obs), info

    def step(self, action: Any) -> Any:
        obs, *rest = super().step(action)
        return self._nested(obs), *rest


def flat(**options: Any) -> gymnasium.Env[Any, Any]:
    """Nested, as a policy can observe it: as docs/environments.md says."""
    return gymnasium.wrappers.FlattenObservation(gymnasium.make("Nested-v0", **options))


class Picture(Drift):
    """Drift whose observations are declared to be a picture."""

    observation_space = Box(0, 255, (4, 4, 3), np.uint8)


def _register(name: str, kind: type, **options: Any) -> None:
    gymnasium.register(name, entry_point=kind, **({"max_episode_steps": 100} | options))


_register("Drift-v0", Drift)
_register("Choice-v0", Choice)
_register("Legacy-v0", Legacy)
_register("Faulty-v0", Faulty)
_register("Endless-v0", Drift, max_episode_steps=None)
_register("Nested-v0", Nested)
_register("Flat-v0", flat)
_register("Picture-v0", Picture)
