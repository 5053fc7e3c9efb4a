"""MuJoCo for rollouts: its functions in compiled code, its messages kept quiet, its instabilities found."""

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
