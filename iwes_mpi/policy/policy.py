"""A trained policy that acts, outside of rollouts too, and its file: everything an action depends on, in one npz."""

import itertools
import os
import stat
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from iwes_mpi.policy import network
from iwes_mpi.policy.network import Layout
from iwes_mpi.settings.printable import one_line

FORMAT = "iwes-mpi-policy/1"


class PolicyError(ValueError):
    """A file that is not a whole policy of this format; the message is one line, fit for a terminal."""

    def __init__(self, text: str):
        super().__init__(one_line(text))


class Actions(NamedTuple):
    """What an environment takes, as far as acting needs it."""

    low: NDArray[np.float32]  # (action_size,) bounds of continuous actions; empty for discrete ones
    high: NDArray[np.float32]  # (action_size,)
    start: int | None  # the first of the discrete actions; None for continuous ones


class Policy:
    """A deterministic function from observations to actions: the same actions as in rollouts without action noise.

    ``action = policy(obs)`` takes one observation (obs_size,) or a batch (n, obs_size). For one thread at a time.

    Parameters
    ----------
    layout : Layout
    theta : float32 (d,)
    normalizer : float64 (2, obs_size) or (1 + obs_size, obs_size)
        See `network.normalize`.
    obs_clip : float
    actions : Actions
    action_noise : float
        Deviation of the noise that training added to continuous actions; not used unless asked for.
    about : str
        Where it comes from, for people.

    Raises
    ------
    ValueError
        If these do not fit together.
    """

    def __init__(
        self, layout: Layout, theta: NDArray[np.float32], normalizer: NDArray[np.float64], obs_clip: float,
        actions: Actions, action_noise: float = 0.0, about: str = "",
    ):  # fmt: skip
        size = layout.obs_size
        shapes: dict[str, tuple[tuple[int, ...], list[tuple[int, ...]]]] = {
            "theta": (theta.shape, [(layout.n_parameters,)]),
            "normalizer": (normalizer.shape, [(2, size), (1 + size, size)]),
        }
        if actions.start is None:
            shapes |= {name: (getattr(actions, name).shape, [(layout.action_size,)]) for name in ("low", "high")}
        for name, (found, allowed) in shapes.items():
            if found not in allowed:
                raise ValueError(f"{name} has the shape {found} instead of {' or '.join(map(str, allowed))}")
        self.layout, self.obs_clip, self.actions = layout, float(obs_clip), actions
        self.action_noise, self.about = float(action_noise), about
        self.theta = network.empty_parameters(theta.size)
        self.theta[:] = theta
        self.normalizer = np.ascontiguousarray(normalizer, dtype=np.float64)
        self._scratch = layout.scratch()
        self._act = network.compiled_act(layout)
        self._still = np.random.Generator(np.random.PCG64(0))  # nothing is drawn from it

    @property
    def discrete(self) -> bool:
        """Whether actions are whole numbers, of a Discrete space."""
        return self.actions.start is not None

    def __call__(self, obs: ArrayLike, *, noise: float = 0.0, rng: np.random.Generator | None = None) -> Any:
        """The action for an observation, or those for a batch.

        Parameters
        ----------
        obs : array (obs_size,) or (n, obs_size)
        noise : float
            Deviation of Gaussian noise to be added to continuous actions, such as `action_noise`, the one in training.
        rng : numpy.random.Generator, optional
            Draws it.

        Returns
        -------
        float32 (action_size,) or (n, action_size), within the bounds of the action space
            For discrete actions int, or int64 (n,).

        Raises
        ------
        ValueError
            If observations have another shape or are not finite, or noise comes without a generator.
        """
        batch = np.asarray(obs, dtype=np.float64, order="C")
        if batch.ndim not in (1, 2) or batch.shape[-1] != self.layout.obs_size:
            size = self.layout.obs_size
            raise ValueError(f"observations must have the shape ({size},) or (n, {size}), got {batch.shape}")
        if noise > 0.0 and rng is None:
            raise ValueError("noise needs rng, a generator to draw it from")
        outputs = self.outputs(np.atleast_2d(batch))
        if self.actions.start is None:
            for output in outputs:
                network.add_noise(rng or self._still, float(noise), self.actions.low, self.actions.high, output)
            return outputs if batch.ndim == 2 else outputs[0]
        chosen = self.actions.start + np.argmax(outputs, axis=1)
        return chosen if batch.ndim == 2 else int(chosen[0])

    def outputs(self, obs: NDArray[np.float64]) -> NDArray[np.float32]:
        """What the network puts out, (n, action_size), for contiguous observations (n, obs_size).

        Raises
        ------
        ValueError
            If one is not finite.
        """
        outputs = np.zeros((len(obs), self.layout.action_size), dtype=np.float32)
        for i, (row, output) in enumerate(zip(obs, outputs, strict=True)):
            if not self._act(self.layout, self.theta, self.normalizer, self.obs_clip, self._scratch, row, output):
                raise ValueError(f"observation {i} is not finite")
        return outputs

    def layers(self) -> list[tuple[NDArray[np.float32], NDArray[np.float32] | None]]:
        """Weights (inputs, outputs) and biases (outputs,), if there are any, layer by layer; copies."""
        found, offset, layout = [], 0, self.layout
        for inputs, outputs in itertools.pairwise(layout.sizes.tolist()):
            weights = self.theta[offset : offset + inputs * outputs].reshape(inputs, outputs).copy()
            offset += weights.size
            bias = self.theta[offset : offset + outputs].copy() if layout.bias else None
            offset += 0 if bias is None else outputs
            found.append((weights, bias))
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the policy to an npz file, all at once; `load_policy` reads it, and so does anything that reads npz.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        path = Path(path)
        start = np.array([] if self.actions.start is None else [self.actions.start], dtype=np.int64)
        draft = path.with_name(f"{path.name}.{os.getpid()}.new")
        try:
            with open(draft, "wb") as file:
                np.savez(
                    file, format=np.array(FORMAT), about=np.array(self.about), sizes=self.layout.sizes,
                    bias=np.array(self.layout.bias), relu=np.array(self.layout.relu), theta=self.theta,
                    normalizer=self.normalizer, obs_clip=np.array(self.obs_clip), low=self.actions.low,
                    high=self.actions.high, start=start, action_noise=np.array(self.action_noise),
                )  # fmt: skip
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)

    def __repr__(self) -> str:
        kind = "discrete" if self.discrete else "continuous"
        sizes = "-".join(map(str, self.layout.sizes.tolist()))
        return f"Policy({sizes}, {kind} actions{f', {one_line(self.about)}' if self.about else ''})"


# Arrays of a file: kind of number and dimensions.
_ARRAYS = {
    "format": ("U", 0), "about": ("U", 0), "sizes": ("i", 1), "bias": ("b", 0), "relu": ("b", 0), "theta": ("f", 1),
    "normalizer": ("f", 2), "obs_clip": ("f", 0), "low": ("f", 1), "high": ("f", 1), "start": ("i", 1),
    "action_noise": ("f", 0),
}  # fmt: skip


def _opened(path: str | os.PathLike[str]) -> BinaryIO:
    """A file of arrays that are no larger than the file. Raises OSError, ValueError or BadZipFile if it is none."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe or a device might take for ever
        raise OSError("it is not a file")
    file = open(path, "rb")  # noqa: SIM115 - for the caller to close
    try:
        if sum(member.file_size for member in zipfile.ZipFile(file).infolist()) > os.fstat(file.fileno()).st_size:
            raise ValueError("it declares more than it can hold")
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """The policy in a file that `Policy.save` wrote. Nothing in it is executed.

    Raises
    ------
    PolicyError
        If the file is not there, or not a whole policy of this format; in one line.
    """
    try:
        with _opened(path) as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files if name in _ARRAYS}
    except OSError as error:
        raise PolicyError(f"{path} cannot be read: {error.strerror or error}") from None
    except (
        ValueError, EOFError, KeyError, zipfile.BadZipFile, AttributeError, NotImplementedError, TypeError, MemoryError,
        OverflowError, RuntimeError, zlib.error,
    ):  # fmt: skip
        raise PolicyError(f"{path} is not a policy of iwes_mpi, or is damaged") from None
    if "format" not in found or str(found["format"]) != FORMAT:
        is_format = f"has format {str(found['format'])[:40]}, not {FORMAT}" if "format" in found else "holds no policy"
        raise PolicyError(f"{path} {is_format}")
    for name, (kind, dimensions) in _ARRAYS.items():
        if name not in found:
            raise PolicyError(f"{path} is not whole: {name} is missing")
        if found[name].dtype.kind != kind or found[name].ndim != dimensions:
            raise PolicyError(f"{path}: {name} is of another kind: {found[name].dtype} {found[name].shape}")
    sizes, start = found["sizes"].astype(np.int64), found["start"]
    is_network = 2 <= sizes.size < 1 << 10 and sizes.min() > 0 and sizes.max() < 1 << 24  # so that 64 bits hold d
    if not is_network or start.size > 1:
        raise PolicyError(f"{path}: sizes {sizes[:10].tolist()} are those of no network")
    if not (np.isfinite(found["theta"]).all() and np.isfinite(found["normalizer"]).all() and found["obs_clip"] > 0):
        raise PolicyError(f"{path}: theta and normalizer must be finite, obs_clip positive")
    low, high = (np.ascontiguousarray(found[name], dtype=np.float32) for name in ("low", "high"))
    actions = Actions(low, high, int(start[0]) if start.size else None)
    try:
        return Policy(
            Layout(sizes, bool(found["bias"]), bool(found["relu"])), found["theta"].astype(np.float32),
            found["normalizer"], float(found["obs_clip"]), actions, float(found["action_noise"]), str(found["about"]),
        )  # fmt: skip
    except ValueError as error:
        raise PolicyError(f"{path}: {error}") from None
