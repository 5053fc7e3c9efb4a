"""An environment whose episodes sleep instead of compute, so that many ranks run truly side by side on few cores."""

import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box


def draw_length(rng: np.random.Generator, kind: str) -> int:
    """Steps of one episode, 1 to 1000."""
    if kind == "mixed" and rng.random() < 0.4:
        return 1000
    return int(min(1000.0, 1.0 + rng.exponential(200.0)))


class Sleeper(gymnasium.Env[Any, Any]):
    """One step that sleeps as long as a whole episode would compute, and returns that episode's steps.

    Parameters
    ----------
    kind : str
        See `draw_length`.
    unit : float
        Seconds per step of the episode it stands for.
    """

    observation_space = Box(-1.0, 1.0, (1,), np.float64)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, kind: str = "mixed", unit: float = 0.001):
        self.kind, self.unit = kind, unit

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Draw how long the episode will be."""
        super().reset(seed=seed)
        self.length = draw_length(self.np_random, self.kind)
        return np.zeros(1), {}

    def step(self, action: Any) -> Any:
        """The whole episode."""
        time.sleep(self.unit * self.length)
        return np.zeros(1), float(self.length), True, False, {}


gymnasium.register("Sleeper-v0", Sleeper, max_episode_steps=1)
