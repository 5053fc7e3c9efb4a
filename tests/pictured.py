"""An environment that draws itself without OpenGL, so that tests of films need none."""

from typing import Any

import gymnasium
import numpy as np
from environments import Drift


class Pictured(Drift):
    """Drift whose picture is as bright as the episode is old: its value is the number of steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 100}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, fail_at: int = -1, kind: str = "picture", repeats: bool = True):
        super().__init__()
        self.render_mode, self.fail_at, self.kind, self.repeats = render_mode, fail_at, kind, repeats

    def step(self, action: Any) -> Any:
        obs, reward, *rest = super().step(action)
        return obs, reward if self.repeats else np.random.default_rng().random(), *rest

    def render(self) -> Any:
        if self.steps == self.fail_at:
            raise OSError("the screen went black")
        return np.full((32, 48, 3), self.steps, dtype=np.uint8) if self.kind == "picture" else [1, 2]


gymnasium.register("Pictured-v0", entry_point=Pictured, max_episode_steps=100)


class Actions(Drift):
    """Drift with as many discrete actions as one likes."""

    def __init__(self, n: int = 2):
        super().__init__()
        self.action_space = gymnasium.spaces.Discrete(n)


gymnasium.register("Actions-v0", entry_point=Actions, max_episode_steps=100)
