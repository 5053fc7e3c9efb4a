"""An environment that tells which seed it was given, by nothing but integers: the same on every machine."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box


class Seed(gymnasium.Env[Any, Any]):
    """An episode returns the leading 52 bits of its 63-bit seed, and takes 1 + seed mod 7 steps."""

    observation_space = Box(-1.0, 1.0, (1,), np.float64)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        assert seed is not None
        self.seed, self.steps = seed, 0
        return np.zeros(1), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.zeros(1), float(self.seed >> 11) if self.steps == 1 else 0.0, self.steps > self.seed % 7, False, {}


gymnasium.register("Seed-v0", entry_point=Seed, max_episode_steps=100)
