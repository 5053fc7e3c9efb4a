"""Films of episodes, rendered off screen: what ``python -m iwes_mpi.evaluate RUN --video FILE`` writes.

An episode is run through Gymnasium, which gives the same bits as native rollouts: a film shows the very episode that
was scored.
"""

import importlib
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from iwes_mpi.config import Config, ConfigError
from iwes_mpi.rollouts import Episode, EpisodeTask
from iwes_mpi.rollouts.gym_env import GymRunner, is_mujoco, make_env

Frame = NDArray[np.uint8]  # (height, width, 3)

_HIGHEST_RATE = 50.0  # frames/s; what a GIF can show, and more than enough
_PROBE = "import mujoco; context = mujoco.GLContext(16, 16); context.make_current(); context.free()"


class Film(NamedTuple):
    """What was filmed."""

    episode: Episode
    frames: int
    rate: float  # frames per second


# -- rendering -----------------------------------------------------------------------------------------------


def choose_renderer() -> str:
    """Have MuJoCo render off screen, with EGL or else OSMesa, or as MUJOCO_GL asks; returns the one that works.

    They are tried in a process of its own: MuJoCo can settle for one only once, and a broken driver may crash.

    Raises
    ------
    ConfigError
        If none works here.
    """
    asked = os.environ.get("MUJOCO_GL")  # MuJoCo and Gymnasium can be told in no other way
    problems = []
    for renderer in [asked] if asked else ["egl", "osmesa"]:
        try:
            outcome = subprocess.run(
                [sys.executable, "-c", _PROBE], env=os.environ | {"MUJOCO_GL": renderer},
                capture_output=True, text=True, errors="replace", timeout=60, check=False,
            )  # fmt: skip
            if outcome.returncode == 0:
                os.environ["MUJOCO_GL"] = renderer
                return renderer
            lines = [line for line in outcome.stderr.splitlines() if line.strip() and not line.startswith(" ")]
            problems.append(f"{renderer}: {lines[-1] if lines else f'exit code {outcome.returncode}'}")
        except subprocess.TimeoutExpired:
            problems.append(f"{renderer}: no answer within 60 s")
    advice = "unset MUJOCO_GL, or set it to what works" if asked else "install libegl1 or libosmesa6"
    raise ConfigError("--video", f"MuJoCo cannot render off screen here ({'; '.join(problems)}): {advice}")


def open_camera(config: Config) -> gymnasium.Env[Any, Any]:
    """The environment of a configuration, of which pictures can be taken.

    Raises
    ------
    ConfigError
        If it cannot be rendered, or not here.
    """
    try:
        plain = make_env(config)
    except ConfigError:
        if os.environ.get("MUJOCO_GL"):
            choose_renderer()  # with one that does not work, MuJoCo cannot even be imported
        raise
    modes, with_mujoco = plain.metadata.get("render_modes") or [], is_mujoco(plain)
    plain.close()
    if "rgb_array" not in modes:
        raise ConfigError("--video", f"{config.env_id} cannot be filmed: it has no render mode rgb_array")
    if with_mujoco:
        choose_renderer()
    env = make_env(config, "rgb_array")
    if with_mujoco:
        _follow(env)
    try:
        env.reset(seed=0)
        _take(env)
    except Exception as error:
        env.close()
        raise ConfigError("--video", f"{config.env_id} cannot be filmed: {type(error).__name__}: {error}") from error
    return env


def _follow(env: gymnasium.Env[Any, Any]) -> None:
    """Film with the model's camera "track", unless --env-kwargs say how: Gymnasium's own may stand still."""
    inner: Any = env.unwrapped
    spec = env.spec
    if spec is not None and any("camera" in name for name in spec.kwargs):
        return
    mujoco = importlib.import_module("mujoco")
    camera = mujoco.mj_name2id(inner.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
    renderer = getattr(inner, "mujoco_renderer", None)
    if renderer is not None and camera >= 0:
        renderer.camera_id = camera


def _take(env: gymnasium.Env[Any, Any]) -> Frame:
    """A picture of an environment as it stands. Raises TypeError if it gives something else."""
    frame: Any = env.render()
    if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3):
        raise TypeError(f"render() gave {type(frame).__name__}, not a picture")
    return frame


class Camera(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Passes an environment's pictures to a reel: one of the start, then one of every `every` steps.

    Parameters
    ----------
    env : gymnasium.Env
        From `open_camera`.
    reel : Reel
    every : int
        Steps from one picture to the next.
    most : int
        After so many pictures no more are taken.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], reel: "Reel", every: int, most: int):
        super().__init__(env)
        self._reel, self._every, self._most = reel, every, most
        self._steps = self.frames = 0

    def _shoot(self) -> None:
        if self._steps % self._every == 0 and self.frames < self._most:
            self._reel.add(_take(self.env))
            self.frames += 1

    def reset(self, **options: Any) -> Any:
        """As the environment's."""
        result = self.env.reset(**options)
        self._steps = 0
        self._shoot()
        return result

    def step(self, action: Any) -> Any:
        """As the environment's."""
        result = self.env.step(action)
        self._steps += 1
        self._shoot()
        return result


# -- files ---------------------------------------------------------------------------------------------------


class Reel(Protocol):
    """A film being written."""

    def add(self, frame: Frame) -> None:
        """Append a picture."""
        ...

    def finish(self) -> None:
        """Complete the file."""
        ...


class Mp4:
    """H.264 in MP4, through the ffmpeg that imageio-ffmpeg brings."""

    def __init__(self, path: Path, rate: float):
        self._path, self._rate = path, rate
        self._ffmpeg: Any = None

    def add(self, frame: Frame) -> None:
        """See `Reel`."""
        if self._ffmpeg is None:
            from imageio_ffmpeg import write_frames

            size = (frame.shape[1], frame.shape[0])
            options = ["-movflags", "+faststart"]  # plays in a browser before all of it has arrived
            self._ffmpeg = write_frames(
                str(self._path), size, fps=self._rate, quality=8, macro_block_size=2, output_params=options,
                ffmpeg_log_level="error",
            )  # fmt: skip
            self._ffmpeg.send(None)
        self._ffmpeg.send(np.ascontiguousarray(frame))

    def finish(self) -> None:
        """See `Reel`."""
        if self._ffmpeg is not None:
            self._ffmpeg.close()


class Gif:
    """An animated GIF, through Pillow."""

    def __init__(self, path: Path, rate: float):
        self._path, self._rate = path, rate
        self._images: list[Any] = []

    def add(self, frame: Frame) -> None:
        """See `Reel`."""
        from PIL import Image

        self._images.append(Image.fromarray(frame).quantize(128))

    def finish(self) -> None:
        """See `Reel`."""
        first, *rest = self._images
        # Pictures stay for whole hundredths of a second.
        ends = np.rint(100 * np.arange(len(self._images) + 1) / self._rate)
        durations = [10 * int(length) for length in np.diff(ends)]
        first.save(self._path, save_all=True, append_images=rest, duration=durations, loop=0)


KINDS: dict[str, tuple[type[Mp4] | type[Gif], str]] = {".mp4": (Mp4, "imageio_ffmpeg"), ".gif": (Gif, "PIL")}


class Studio:
    """All that a film needs, found to be there before any work.

    Parameters
    ----------
    config : Config
    path : Path
        The film: .mp4 or .gif.
    seconds : float or None
        Only the beginning is filmed, so long.

    Raises
    ------
    ConfigError
        If the file is of another kind or cannot be written, or the environment cannot be filmed.
    """

    def __init__(self, config: Config, path: Path, seconds: float | None = None):
        if path.suffix.lower() not in KINDS:
            raise ConfigError("--video", f"{path}: the name must end in {' or '.join(KINDS)}")
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise ConfigError("--video", f"{path.parent} is not a directory that can be written")
        self._kind, module = KINDS[path.suffix.lower()]
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError("--video", f"needs {module} ({error}): pip install 'iwes_mpi[video]'") from None
        self.path, self._config = path, config
        self._env = open_camera(config)
        rate = float(self._env.metadata.get("render_fps") or 30)
        self._every = max(1, math.ceil(rate / _HIGHEST_RATE))
        self.rate = rate / self._every  # so the film runs at the simulation's own speed
        self._most = sys.maxsize if seconds is None else max(1, round(seconds * self.rate))

    def film(self, task: EpisodeTask) -> Film:
        """Run an episode, and write its film: whole, or not at all."""
        draft = self.path.with_name(f".{self.path.stem}.part{self.path.suffix}")
        reel = self._kind(draft, self.rate)
        camera = Camera(self._env, reel, self._every, self._most)
        try:
            episode = GymRunner(self._config, camera).run(task)
            reel.finish()
            os.replace(draft, self.path)
        finally:
            draft.unlink(missing_ok=True)
        return Film(episode, camera.frames, self.rate)

    def close(self) -> None:
        """Close the environment."""
        self._env.close()
