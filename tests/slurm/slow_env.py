"""An environment whose speed a test sets while it runs: InvertedPendulum with a pause at every reset.

The pause, in seconds, stands in the file that SLOW_ENV_FILE names (no file: none), so it is no part of the run's
configuration and cannot change a bit of it.
"""

import os
import time
from pathlib import Path

import gymnasium as gym
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv


class SlowPendulum(InvertedPendulumEnv):
    """InvertedPendulum-v5 that waits before every episode."""

    def reset(self, **kwargs):
        """Wait, then start an episode."""
        path = os.environ.get("SLOW_ENV_FILE")
        if path:
            time.sleep(float(Path(path).read_text() or 0))
        return super().reset(**kwargs)


gym.register("SlowPendulum-v0", SlowPendulum, max_episode_steps=30)
