"""Forms in which a policy leaves the program: each module is one, named by its file, and can read what it wrote.

A module has ``write(policy, path)`` and ``reader(path)``, which gives a function from observations (n, obs_size) to
actions (n, …), and ``SUFFIX`` and ``NEEDS``, the packages of the extra that it needs.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.policy.policy import Policy
from iwes_mpi.settings.registry import Registry
from iwes_mpi.settings.wrong_input import WrongInput

FORMS = Registry("policy/exports", "to")
_SAMPLES = 512
_TOLERANCE = 1e-4  # of the largest number that the network puts out; float32, and tanh within 4e-7


class ExportError(RuntimeError):
    """What was written does not act like the policy; the message says by how much."""


def require(form: str) -> Any:
    """The module of a form, with the packages that it needs.

    Raises
    ------
    WrongInput
        If there is no such form, or one of these packages is missing.
    """
    module = FORMS.module(form)
    for package in module.NEEDS:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise WrongInput(
                "to", f"{form} needs {package} ({error}): pip install 'iwes_mpi[{module.EXTRA}]'"
            ) from None
    return module


def export(policy: Policy, form: str, path: Path) -> float:
    """Write a policy and check that what was written acts like it.

    Returns
    -------
    float
        The largest difference of continuous actions; 0 for discrete ones.

    Raises
    ------
    WrongInput
        From `require`.
    ExportError
        If the actions differ.
    OSError
        If the file cannot be written.
    """
    module = require(form)
    module.write(policy, path)
    return compare(policy, module.reader(path))


def compare(policy: Policy, act: Callable[[NDArray[np.float64]], NDArray[Any]]) -> float:
    """The largest difference between actions of a policy and of another form of it, on likely observations.

    Raises
    ------
    ExportError
        If they are not the same: discrete ones wherever the choice is not a tie, to rounding.
    """
    obs = likely_observations(policy)
    ours, theirs = np.asarray(policy(obs)), np.asarray(act(obs))
    if ours.shape != theirs.shape:
        raise ExportError(f"actions have the shape {theirs.shape} instead of {ours.shape}")
    outputs = policy.outputs(obs)
    scale = max(1.0, float(np.abs(outputs).max()))
    if policy.discrete:
        best = np.sort(outputs, axis=1)
        clear = np.ones(len(obs), dtype=bool) if best.shape[1] < 2 else best[:, -1] - best[:, -2] > _TOLERANCE * scale
        wrong = int(np.count_nonzero((ours != theirs) & clear))
        if wrong:
            raise ExportError(f"{wrong} of {len(obs)} actions are others")
        return 0.0
    difference = float(np.abs(ours.astype(np.float64) - theirs).max())
    if not difference <= _TOLERANCE * scale:
        raise ExportError(f"actions differ by up to {difference:g}")
    return difference


def likely_observations(policy: Policy) -> NDArray[np.float64]:
    """Observations (n, obs_size) as the policy has seen them, and farther out, beyond where they are clipped."""
    rng = np.random.default_rng(0)
    mean, rest = policy.normalizer[0], policy.normalizer[1:]
    deviation = 1.0 / rest[0] if len(rest) == 1 else 1.0 / np.maximum(np.abs(rest).sum(axis=0), 1e-6)
    spread = np.repeat([1.0, 1.0, 3.0, 10.0], _SAMPLES // 4)[:, None]
    return mean + deviation * spread * rng.standard_normal((_SAMPLES, mean.size))
