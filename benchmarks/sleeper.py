"""An environment whose episodes sleep instead of compute, so that many ranks run truly side by side on few cores."""

import math
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


def draw_pair(rng: np.random.Generator) -> tuple[int, int]:
    """Steps of a pair's two episodes, each as "early", with a correlation of ranks of -0.5, as on Hopper."""
    first, other = rng.standard_normal(2)
    second = -0.52 * first + math.sqrt(1 - 0.52**2) * other
    lengths = [1.0 - 200.0 * math.log(math.erfc(z / math.sqrt(2)) / 2) for z in (first, second)]  # exponential
    return int(min(1000.0, lengths[0])), int(min(1000.0, lengths[1]))


class Sleeper(gymnasium.Env[Any, Any]):
    """One step that sleeps as long as a whole episode would compute, and returns that episode's steps.

    Parameters
    ----------
    kind : str
        See `draw_length`; or "mirrored": `draw_pair`, where the sign of the action tells members apart. They need
        common random numbers, no action noise, and a policy whose action for observations of zero is its bias.
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
        mirrored = self.kind == "mirrored"
        one = 0 if mirrored else draw_length(self.np_random, self.kind)
        self.lengths = draw_pair(self.np_random) if mirrored else (one, one)
        return np.zeros(1), {}

    def step(self, action: Any) -> Any:
        """The whole episode."""
        length = self.lengths[int(action[0] <= 0)]
        time.sleep(self.unit * length)
        return np.zeros(1), float(length), True, False, {}


gymnasium.register("Sleeper-v0", Sleeper, max_episode_steps=1)
