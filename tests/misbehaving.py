"""An environment that does to its process what no environment should, once: when it is imported, made or stepped."""

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import gymnasium
import numpy as np
from environments import Drift
from gymnasium.spaces import Box


def _fork() -> None:
    """Go on in two processes."""
    os.fork()


def _fork_and_leave() -> None:
    """What a child process may do: run something else, and end."""
    if (child := os.fork()) == 0:
        sys.exit(0)
    os.waitpid(child, 0)


def _finalize_or_abort() -> None:
    from mpi4py import MPI

    try:
        MPI.Finalize()
    except RuntimeError as error:
        print(error, file=sys.stderr, flush=True)
    MPI.COMM_WORLD.Abort()


def _thread() -> None:
    threading.Thread(target=time.sleep, args=(600,)).start()


def _child() -> None:
    subprocess.Popen(["sleep", "604.25"])


def _handlers() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _interrupt() -> None:
    raise KeyboardInterrupt


def _exit_at_once() -> None:
    os._exit(0)


def _colors() -> None:
    raise ValueError("\x1b[31mred\x1b]0;owned\x07")


DEEDS = {
    "interrupt": _interrupt,
    "exit": lambda: sys.exit(0),
    "exit at once": _exit_at_once,
    "fork": _fork,
    "fork and leave": _fork_and_leave,
    "another directory": lambda: os.chdir("/"),
    "other handlers": _handlers,
    "close all": lambda: os.closerange(0, 1000),
    "finalize or abort": _finalize_or_abort,
    "thread": _thread,
    "child": _child,
    "recursion": lambda: sys.setrecursionlimit(60),
    "colors": _colors,
}
RANK = int(next((os.environ[name] for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK") if name in os.environ), "0"))


class Misbehaving(Drift):
    """Drift that does deeds, by name, when it is made and in its first step, on one rank or on all."""

    def __init__(self, made: str = "", stepped: str = "", rank: int | None = None, gives: str = ""):
        super().__init__()
        mine = rank in (None, RANK)
        self._stepped, self._gives = stepped if mine else "", gives if mine else ""
        if gives == "no spaces":
            self.observation_space = None
        if gives == "another space" and mine:
            self.observation_space = Box(-np.inf, np.inf, (7,), np.float64)
        for deed in made.split(", ") if made and mine else ():
            DEEDS[deed]()

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        deeds, self._stepped = self._stepped, ""
        for deed in deeds.split(", ") if deeds else ():
            DEEDS[deed]()
        if self._gives == "complex":
            obs = obs + 1j
        if self._gives == "text":
            terminated = "no"
        return obs, reward, terminated, truncated, info


gymnasium.register("Misbehaving-v0", Misbehaving, max_episode_steps=100)
