"""MuJoCo for rollouts: its functions in compiled code, its messages kept quiet, its instabilities found."""

import ctypes
import weakref
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

# MuJoCo meets these by resetting the state to the model's own and going on: such an episode means nothing.
UNSTABLE = [
    int(warning)
    for warning in (
        mujoco.mjtWarning.mjWARN_BADQPOS,
        mujoco.mjtWarning.mjWARN_BADQVEL,
        mujoco.mjtWarning.mjWARN_BADQACC,
    )
]


def library() -> Path:
    """The MuJoCo library that the mujoco package has loaded.

    Raises
    ------
    FileNotFoundError
        If it is not where the package keeps it.
    """
    folder = Path(mujoco.__file__).parent
    for pattern in ("libmujoco.so*", "libmujoco*.dylib", "mujoco.dll"):
        for path in sorted(folder.glob(pattern)):
            return path
    raise FileNotFoundError(f"no MuJoCo library in {folder}")


def version() -> str:
    """MuJoCo's version."""
    return str(mujoco.__version__)


def silence() -> None:
    """Keep MuJoCo from printing warnings and from writing MUJOCO_LOG.TXT, for the whole process.

    Hundreds of ranks would print the same line about a deprecated attribute and write one file together. What
    makes an episode meaningless is found by `instabilities`; errors are still raised, or printed.
    """
    quiet = mujoco.MjLogConfig.get()
    quiet.logto_file = False
    quiet.set()
    mujoco.set_mju_user_warning(_ignore)


def _ignore(message: Any) -> None:
    pass


def instabilities(data: mujoco.MjData) -> NDArray[np.int32]:
    """Counters since the last reset of what makes an episode meaningless: a view of mjData, shape (3,)."""
    counters: NDArray[np.int32] = data.warning.number[UNSTABLE[0] : UNSTABLE[-1] + 1]
    return counters


class NoClock:
    """Keeps MuJoCo from timing itself, for the whole process, as long as one of these is open.

    Importing ``mujoco`` in Python sets a callback that tells the time, and each step of a simulation then asks it many
    times: 15 % of HalfCheetah's. No result depends on it, only ``mjData.timer``. The package's own
    ``set_mjcb_time(None)`` leaves the callback of the library in place, so it is cleared there. The last one that is
    closed, or forgotten, puts it back for others.
    """

    _open = 0
    _before: int | None = None

    def __init__(self) -> None:
        if NoClock._open == 0:
            callback = _clock()
            NoClock._before, callback.value = callback.value, None
        NoClock._open += 1
        self.close = weakref.finalize(self, NoClock._restore)
        self.close.atexit = False

    @staticmethod
    def _restore() -> None:
        NoClock._open -= 1
        callback = _clock()
        if NoClock._open == 0 and callback.value is None:  # else somebody has set another one meanwhile
            callback.value = NoClock._before


def _clock() -> ctypes.c_void_p:
    """The library's own pointer to what tells the time."""
    return ctypes.c_void_p.in_dll(ctypes.CDLL(str(library())), "mjcb_time")


def skip_islands(model: mujoco.MjModel) -> None:
    """Have MuJoCo not look for islands of constraints in a model of one kinematic tree, where there can be one only.

    It costs time at each step and finds nothing. With several trees (Pusher's arm and what it pushes) it would change
    the order of the solver's sums, and so the bits: such models are left as they are.
    """
    if model.ntree == 1:
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_ISLAND
