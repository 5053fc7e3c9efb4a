"""Films of episodes, rendered off screen: what ``python -m iwes_mpi.evaluate RUN --video FILE`` writes.

An episode is run through Gymnasium, which gives the same bits as native rollouts: a film shows the very episode that
was scored.
"""

import importlib
import io
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from iwes_mpi.files.disk import sync
from iwes_mpi.rollouts.environments import is_mujoco, make_env
from iwes_mpi.rollouts.episode import Episode, EpisodeTask
from iwes_mpi.rollouts.gym_runner import GymRunner
from iwes_mpi.rollouts.seeds import SEED_BOUND
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput

Frame = NDArray[np.uint8]  # (height, width, 3)

_FLOOR = 2000.0  # m, from a floor's middle to its edge
_HIGHEST_RATE = 50.0  # frames/s; what a GIF can show, and more than enough
_PROBE = "import mujoco; context = mujoco.GLContext(16, 16); context.make_current(); context.free()"
_GLFW = ("enable", "enabled", "on", "true", "1", "glx")  # MuJoCo's other names for it, which Gymnasium does not know


class FilmError(OSError):
    """A film does not come about; the message says which, and why."""


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
    WrongInput
        If none works here.
    """
    # MuJoCo and Gymnasium can be told in no other way; MuJoCo does not mind capitals, Gymnasium does.
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    asked = "glfw" if asked in _GLFW else asked
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
    raise WrongInput("video", f"MuJoCo cannot render off screen here ({'; '.join(problems)}): {advice}")


def open_camera(config: Config) -> gymnasium.Env[Any, Any]:
    """The environment of a configuration, of which pictures can be taken.

    Raises
    ------
    WrongInput
        If it cannot be rendered, or not here.
    """
    try:
        plain = make_env(config)
    except WrongInput:
        if os.environ.get("MUJOCO_GL"):
            choose_renderer()  # with one that does not work, MuJoCo cannot even be imported
        raise
    modes, with_mujoco = plain.metadata.get("render_modes") or [], is_mujoco(plain)
    plain.close()
    if "rgb_array" not in modes:
        raise WrongInput("video", f"{config.env_id} cannot be filmed: it has no render mode rgb_array")
    if with_mujoco:
        choose_renderer()
    env = make_env(config, "rgb_array")
    if with_mujoco:
        _follow(env)
        _extend_floor(env)
    try:
        env.reset(seed=0)
        _take(env)
    except Exception as error:
        env.close()
        raise WrongInput("video", f"{config.env_id} cannot be filmed: {type(error).__name__}: {error}") from error
    return env


def _follow(env: gymnasium.Env[Any, Any]) -> None:
    """Film with the model's camera "track", unless `env_kwargs` say how: Gymnasium's own may stand still."""
    inner: Any = env.unwrapped
    spec = env.spec
    if spec is not None and any("camera" in name for name in spec.kwargs):
        return
    mujoco = importlib.import_module("mujoco")
    camera = mujoco.mj_name2id(inner.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
    renderer = getattr(inner, "mujoco_renderer", None)
    if renderer is not None and camera >= 0:
        renderer.camera_id = camera


def _extend_floor(env: gymnasium.Env[Any, Any]) -> None:
    """Have planes drawn as far as one sees: in the models of Gymnasium they end some 40 m from the start.

    A plane's size is for drawing only, things collide with an endless one: no number of an episode changes.
    """
    mujoco = importlib.import_module("mujoco")
    inner: Any = env.unwrapped
    model = inner.model
    for geom in np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE):
        size = model.geom_size[geom, :2]
        material = model.geom_matid[geom]
        if not size.all() or size.min() >= _FLOOR:
            continue
        if material >= 0 and not model.mat_texuniform[material]:
            model.mat_texrepeat[material] *= _FLOOR / size  # tiles stay as large as they are
        model.geom_size[geom, :2] = _FLOOR


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
    tell : callable
        Called with the number of pictures after each.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], reel: "Reel", every: int, most: int, tell: Callable[[int], None]):
        super().__init__(env)
        self._reel, self._every, self._most, self._tell = reel, every, most, tell
        self._steps = self.frames = 0

    def _shoot(self) -> None:
        if self._steps % self._every == 0 and self.frames < self._most:
            try:
                frame = _take(self.env)
            except Exception as error:
                raise FilmError(f"no picture of step {self._steps}: {type(error).__name__}: {error}") from error
            self._reel.add(frame)
            self.frames += 1
            self._tell(self.frames)

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
    """A film being written. Its methods raise OSError if it cannot be."""

    def add(self, frame: Frame) -> None:
        """Append a picture."""
        ...

    def finish(self) -> None:
        """Complete the file; once this returns, all of it is written."""
        ...

    def close(self) -> None:
        """Have no more to do with the file, finished or not."""
        ...


class Mp4:
    """H.264 in MP4, by the ffmpeg that imageio-ffmpeg brings.

    It is run from here, since imageio-ffmpeg's own writer does not say whether ffmpeg succeeded.
    """

    def __init__(self, path: Path, rate: float):
        self._path, self._rate = path, Fraction(rate).limit_denominator(100_000)
        self._ffmpeg: subprocess.Popen[bytes] | None = None
        self._errors: list[bytes] = []

    def _start(self, width: int, height: int) -> subprocess.Popen[bytes]:
        from imageio_ffmpeg import get_ffmpeg_exe

        try:
            program = get_ffmpeg_exe()
        except RuntimeError as error:
            raise OSError(str(error)) from error
        command = [
            program, "-y", "-v", "error", "-xerror", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
            "-r", str(self._rate), "-i", "-", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2",  # the format wants even numbers
            "-pix_fmt", "yuv420p", "-crf", "10", "-movflags", "+faststart",  # plays before all of it has arrived
            "-f", "mp4", f"file:{self._path}",
        ]  # fmt: skip
        try:
            self._ffmpeg = ffmpeg = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                process_group=0,  # Ctrl-C is for the caller
                restore_signals=False,  # a file beyond the size limit is to be an error that is told, not a signal
            )  # fmt: skip
        except OSError as error:
            raise OSError(f"ffmpeg ({program}) cannot be run: {_reason(error)}") from error
        assert ffmpeg.stderr is not None
        errors = ffmpeg.stderr
        # All the while: were nobody to read, ffmpeg would wait, and so would who feeds it.
        self._listener = Thread(target=lambda: self._errors.extend(errors), daemon=True)
        self._listener.start()
        return ffmpeg

    def add(self, frame: Frame) -> None:
        """See `Reel`."""
        ffmpeg = self._ffmpeg or self._start(frame.shape[1], frame.shape[0])
        assert ffmpeg.stdin is not None
        try:
            ffmpeg.stdin.write(frame.tobytes())
        except BrokenPipeError:  # it has given up, and says why
            self.finish()
            raise

    def finish(self) -> None:
        """See `Reel`."""
        code = self._end()
        if code:
            said = [re.sub(r"^(\[[^]]*\] *)+", "", line.decode(errors="replace")).strip() for line in self._errors]
            reason = next(filter(None, said), f"exit code {code}" if code > 0 else f"signal {-code}")
            raise OSError(f"ffmpeg failed: {reason}")

    def _end(self) -> int:
        """Let ffmpeg come to its end; returns its exit code, or minus the number of the signal that ended it."""
        if self._ffmpeg is None:
            return 0
        assert self._ffmpeg.stdin is not None
        with suppress(BrokenPipeError):
            self._ffmpeg.stdin.close()
        code = self._ffmpeg.wait()
        self._listener.join()
        return code

    def close(self) -> None:
        """See `Reel`."""
        if self._ffmpeg is not None:
            self._ffmpeg.kill()
            self._end()
            assert self._ffmpeg.stderr is not None
            self._ffmpeg.stderr.close()


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
        content = io.BytesIO()  # Pillow does not say why it could not write a file
        first.save(content, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
        self._path.write_bytes(content.getbuffer())

    def close(self) -> None:
        """See `Reel`."""
        self._images.clear()


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
    WrongInput
        If the file is of another kind or cannot be written, or the environment cannot be filmed.
    """

    def __init__(self, config: Config, path: Path, seconds: float | None = None):
        if path.suffix.lower() not in KINDS:
            raise WrongInput("video", f"{path}: the name must end in {' or '.join(KINDS)}")
        if not path.parent.is_dir():
            raise WrongInput("video", f"{path.parent} is not a directory")
        if path.is_dir():
            raise WrongInput("video", f"{path} is a directory")
        self._kind, module = KINDS[path.suffix.lower()]
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise WrongInput("video", f"needs {module} ({error}): pip install 'iwes_mpi[video]'") from None
        self.path, self._config = path, config
        try:
            with self._draft():
                pass
        except OSError as error:
            raise WrongInput("video", f"{path} cannot be written: {_reason(error)}") from error
        self._env = open_camera(config)
        rate = float(self._env.metadata.get("render_fps") or 30)
        self._every = max(1, math.ceil(rate / _HIGHEST_RATE))
        self.rate = rate / self._every  # so the film runs at the simulation's own speed
        self._most = sys.maxsize if seconds is None else max(1, round(seconds * self.rate))
        try:
            self._rehearse()
        except OSError as error:
            self._env.close()
            raise WrongInput("video", f"{path} cannot be written: {_reason(error)}") from error

    def _rehearse(self) -> None:
        """Make a film of one picture, and throw it away: what is wrong with its writer is found before any work."""
        with self._draft() as draft, self._reel(draft) as reel:
            reel.add(_take(self._env))
            reel.finish()

    @contextmanager
    def _draft(self) -> Iterator[Path]:
        """A file beside the film, gone at the end of the block."""
        draft = self.path.with_name(f".{self.path.stem}.part{self.path.suffix}")
        draft.touch()
        try:
            yield draft
        finally:
            draft.unlink(missing_ok=True)

    @contextmanager
    def _reel(self, draft: Path) -> Iterator[Reel]:
        """What writes a film to `draft`, closed at the end of the block."""
        reel = self._kind(draft, self.rate)
        try:
            yield reel
        finally:
            reel.close()

    def film(
        self, task: EpisodeTask, tell: Callable[[int], None] = lambda frames: None, bound: int = SEED_BOUND
    ) -> Film:
        """Run an episode, and write its film: whole, or not at all.

        Parameters
        ----------
        task : EpisodeTask
        tell : callable
            Called with the number of pictures after each.
        bound : int
            Below which the environment is seeded.

        Raises
        ------
        FilmError
            If a picture cannot be taken, or the film cannot be written. An older film stays as it is then.
        """
        try:
            with self._draft() as draft, self._reel(draft) as reel:
                camera = Camera(self._env, reel, self._every, self._most, tell)
                episode = GymRunner(self._config, camera, bound=bound).run(task)
                reel.finish()
                sync(draft)  # some file systems find only now that there is no room
                os.replace(draft, self.path)
        except OSError as error:
            raise FilmError(f"{self.path} could not be written: {_reason(error)}") from error
        return Film(episode, camera.frames, self.rate)

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def _reason(error: OSError) -> str:
    """What an error says, in one line and without the name of the draft."""
    return " ".join((error.strerror or str(error)).split())
