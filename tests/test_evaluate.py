"""Scores of a policy, the same on any number of ranks, and films that show the very episode that was scored."""

import dataclasses
import os
import resource
import subprocess
import sys
from pathlib import Path

import gymnasium
import launch
import numpy as np
import pytest

from iwes_mpi import evaluate
from iwes_mpi.files import checkpoint
from iwes_mpi.method.seeding import Stream, generator
from iwes_mpi.method.state import initial_state
from iwes_mpi.mpi.program import run_body
from iwes_mpi.rollouts.choose import open_runner
from iwes_mpi.rollouts.episode import EpisodeTask
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput
from iwes_mpi.shown import film


def make_checkpoint(run_dir: Path, **settings) -> Path:
    """A run directory with nothing but the checkpoint of a fresh policy."""
    config = Config(hidden_sizes=(4,), **settings)
    runner = open_runner(config)
    state = initial_state(3, runner.network, config.optimizer)
    runner.close()
    run_dir.mkdir()
    checkpoint.save(run_dir, checkpoint.Checkpoint(state, config, {}, {}))
    return run_dir


def answer(world, capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, output and errors of ``iwes_mpi.evaluate`` in this process, which trusts the tests' modules."""
    argv = ["--trust", *map(str, arguments)]
    code = run_body("iwes_mpi.evaluate", evaluate.build_parser, evaluate.evaluate, world, argv)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def pictured(tmp_path):
    return make_checkpoint(tmp_path / "run", env_id="pictured:Pictured-v0")


def frames_of(path: Path, height: int = 32, width: int = 48) -> list[np.ndarray]:
    """The pictures of a film."""
    if path.suffix == ".gif":
        from PIL import Image, ImageSequence

        with Image.open(path) as image:
            return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
    from imageio_ffmpeg import get_ffmpeg_exe

    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout
    return list(np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3))


def test_a_module_that_a_file_names_is_imported_only_if_told_to(world, tmp_path, capsys, monkeypatch):
    """Not even found; an environment that Gymnasium knows needs no such word."""
    run_dir = make_checkpoint(tmp_path / "run", env_id="environments:Drift-v0")
    saved = checkpoint.load_newest(run_dir)
    (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint.save(run_dir, saved._replace(config=dataclasses.replace(saved.config, env_id="stranger:Nowhere-v0")))
    for options, named, part in (([], "--trust", "module stranger would be imported"), (["--trust"], "--env-id", "")):
        assert not (tmp_path / "owned").exists()
        argv = [str(run_dir), *options]
        code = run_body("iwes_mpi.evaluate", evaluate.build_parser, evaluate.evaluate, world, argv)
        out, err = capsys.readouterr()
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert err.startswith(f"iwes_mpi.evaluate: error: {named}: " if part else "iwes_mpi.evaluate: error: ")
        assert part in err
    assert (tmp_path / "owned").exists()
    known = make_checkpoint(tmp_path / "known", env_id="CartPole-v1")
    assert run_body("x", evaluate.build_parser, evaluate.evaluate, world, [str(known), "--episodes", "1"]) == 0


# -- scores --------------------------------------------------------------------------------------------------


@pytest.mark.mpi
def test_scores_do_not_depend_on_the_number_of_ranks(tmp_path):
    run_dir = make_checkpoint(tmp_path / "run", env_id="environments:Drift-v0")
    tables = []
    for ranks in (1, 3):
        outcome = launch.run(ranks, "-m", "iwes_mpi.evaluate", str(run_dir), "--trust", "--episodes", "7", timeout=60)
        assert outcome.code == 0, outcome.err
        tables.append(outcome.out)
    assert tables[0] == tables[1]
    assert "7 stochastic episodes" in tables[0]


def test_scores_are_those_of_the_episodes(world, tmp_path, capsys):
    run_dir = make_checkpoint(tmp_path / "run", env_id="environments:Drift-v0")
    saved = checkpoint.load_newest(run_dir)
    theta, normalizer = saved.state.theta.astype(np.float32), saved.state.obs.normalizer()
    for options, noise, seed in ((["--seed", "5"], 0.01, 5), (["--deterministic"], 0.0, 0)):
        runner = open_runner(saved.config)
        expected = [
            runner.run(EpisodeTask(theta, normalizer, generator(seed, Stream.SCORE_EPISODE, 0, i), noise, False))
            for i in range(4)
        ]
        code, out, _ = answer(world, capsys, run_dir / "checkpoint.h5", "--episodes", "4", *options)
        assert code == 0
        returns = [episode.total_reward for episode in expected]
        for name, value in (("median", np.median(returns)), ("min", min(returns)), ("std", np.std(returns))):
            assert f"{name:<8}{value:12.3f}" in out
        assert f"{np.mean([episode.length for episode in expected]):12.1f}" in out


def test_episodes_that_mean_nothing_are_left_out():
    table = evaluate.Scores(np.array([1.0, np.nan, 3.0]), np.array([5, 1, 9])).table()
    assert "2.000" in table
    assert "1  episodes, left out" in table
    assert "none of the 2" in evaluate.Scores(np.full(2, np.nan), np.zeros(2, dtype=np.int64)).table()


# -- films ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_a_film_has_every_second_picture_of_a_hundred_per_second(world, pictured, tmp_path, capsys, suffix):
    path = tmp_path / f"film{suffix}"
    code, out, err = answer(world, capsys, pictured, "--episodes", "1", "--video", path)
    assert (code, err) == (0, "")
    length = int(out.split(" steps; ")[0].split()[-1])
    expected = range(0, length + 1, 2)
    assert f"{len(expected)} pictures" in out
    assert "50 per second" in out
    found = frames_of(path)
    assert found[0].shape == (32, 48, 3)
    assert [round(float(frame.mean())) for frame in found] == pytest.approx(list(expected), abs=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "run"]


def test_a_film_shows_the_episode_that_was_scored(world, pictured, tmp_path, capsys):
    for options in ([], ["--seed", "9"], ["--deterministic"]):
        code, out, err = answer(world, capsys, pictured, "--episodes", "1", "--video", tmp_path / "a.gif", *options)
        assert (code, err) == (0, "")
        score = next(line.split()[1] for line in out.splitlines() if line.startswith("median"))
        assert f"return {score} in" in out


def test_only_the_beginning(world, pictured, tmp_path, capsys):
    code, out, _ = answer(world, capsys, pictured, "--video", tmp_path / "a.gif", "--video-seconds", "0.06")
    assert code == 0
    assert "3 pictures, 0.1 s" in out
    assert len(frames_of(tmp_path / "a.gif")) == 3


def test_an_environment_that_does_not_repeat_itself_is_told_of(world, tmp_path, capsys):
    run_dir = make_checkpoint(tmp_path / "run", env_id="pictured:Pictured-v0", env_kwargs={"repeats": False})
    code, _, err = answer(world, capsys, run_dir, "--episodes", "1", "--video", tmp_path / "a.gif")
    assert code == 0
    assert "does not repeat itself" in err


def test_a_film_that_fails_leaves_nothing(pictured, tmp_path):
    (tmp_path / "a.gif").write_bytes(b"the film before")
    saved = checkpoint.load_newest(pictured)
    studio = film.Studio(saved.config, tmp_path / "a.gif")
    studio._env.unwrapped.fail_at = 4
    theta, normalizer = saved.state.theta.astype(np.float32), saved.state.obs.normalizer()
    with pytest.raises(OSError, match="black"):
        studio.film(EpisodeTask(theta, normalizer, generator(0, Stream.SCORE_EPISODE), 0.01, False))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gif", "run"]
    assert (tmp_path / "a.gif").read_bytes() == b"the film before"


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_a_film_that_cannot_be_written_leaves_the_one_before(pictured, tmp_path, suffix):
    path = tmp_path / f"film{suffix}"
    path.write_bytes(b"the film before")
    saved = checkpoint.load_newest(pictured)
    theta, normalizer = saved.state.theta.astype(np.float32), saved.state.obs.normalizer()
    studio = film.Studio(saved.config, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))  # bytes; the film has more
    try:
        with pytest.raises(film.FilmError, match=rf"film\{suffix} could not be written: .*File too large$") as error:
            studio.film(EpisodeTask(theta, normalizer, generator(0, Stream.SCORE_EPISODE), 0.01, False))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "run"]
    assert path.read_bytes() == b"the film before"


def test_pictures_of_odd_size_get_a_black_edge(tmp_path):
    reel = film.Mp4(tmp_path / "odd.mp4", 30.0)
    for brightness in (90, 180):
        reel.add(np.full((33, 47, 3), brightness, dtype=np.uint8))
    reel.finish()
    reel.close()
    found = frames_of(tmp_path / "odd.mp4", 34, 48)
    assert [round(float(frame[:32, :46].mean())) for frame in found] == pytest.approx([90, 180], abs=2)
    assert max(frame[33].max() for frame in found) < 20


def broken_ffmpeg(tmp_path: Path, end: str) -> str:
    """A program that is ffmpeg when it is run first, and later just ends as said."""
    from imageio_ffmpeg import get_ffmpeg_exe

    program = tmp_path / "ffmpeg"
    first = f'mkdir "{tmp_path}/once" 2>/dev/null && exec "{get_ffmpeg_exe()}" "$@"'
    program.write_text(f"#!/bin/bash\n{first}\n{end}\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.mpi
def test_the_scores_outlive_a_film_that_fails(pictured, tmp_path):
    """Also while the other ranks wait: a table, one line, and the exit code that says so."""
    arguments = ("-m", "iwes_mpi.evaluate", str(pictured), "--trust", "--episodes", "3")
    scored = launch.run(2, *arguments, timeout=60)
    program = broken_ffmpeg(tmp_path, 'echo "[mp4 @ 0x1] [x] No room" >&2; echo "and more" >&2; exit 1')
    path = tmp_path / "film.mp4"
    outcome = launch.run(2, *arguments, "--video", str(path), timeout=60, IMAGEIO_FFMPEG_EXE=program)
    assert (outcome.code, outcome.out) == (74, scored.out)
    errors = [line for line in outcome.err.splitlines() if "iwes_mpi" in line]
    assert errors == [f"iwes_mpi.evaluate: error: {path} could not be written: ffmpeg failed: No room"]
    assert "Traceback" not in outcome.err
    assert not path.exists()


def test_what_goes_wrong_while_filming_is_one_line_after_the_scores(world, pictured, tmp_path, capsys, monkeypatch):
    black = make_checkpoint(tmp_path / "black", env_id="pictured:Pictured-v0", env_kwargs={"fail_at": 4})
    code, out, err = answer(world, capsys, black, "--episodes", "1", "--video", tmp_path / "a.gif")
    assert (code, len(err.splitlines())) == (74, 1)
    assert "a.gif could not be written: no picture of step 4: OSError: the screen went black" in err
    assert "median" in out
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", broken_ffmpeg(tmp_path, "kill -9 $$"))
    code, out, err = answer(world, capsys, pictured, "--episodes", "1", "--video", tmp_path / "a.mp4")
    assert (code, len(err.splitlines())) == (74, 1)
    assert "a.mp4 could not be written: ffmpeg failed: signal 9" in err
    assert "median" in out


@pytest.mark.slow
def test_mujoco_off_screen(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL", ""))
    monkeypatch.delenv("MUJOCO_GL")
    try:
        film.choose_renderer()
    except WrongInput as error:
        pytest.skip(str(error))
    run_dir = make_checkpoint(tmp_path / "run", env_id="Hopper-v5", max_episode_steps=7)
    code, _, err = answer(world, capsys, run_dir, "--episodes", "1", "--video", tmp_path / "hopper.mp4")
    assert (code, err) == (0, ""), "the native episode and the filmed one agree to the bit"
    found = frames_of(tmp_path / "hopper.mp4", 480, 480)
    assert len(found) == 3, "125 steps per second: every third of pictures 0 … 7"
    assert found[0].std() > 10, "there is something to see"
    assert not np.array_equal(found[0], found[-1])


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_camera_follows_a_robot_that_runs_away(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    try:
        film.choose_renderer()
    except WrongInput as error:
        pytest.skip(str(error))
    env = film.open_camera(Config(env_id="HalfCheetah-v5"))
    sizes = []
    for x in (0.0, 40.0):
        env.reset(seed=0)
        qpos = env.unwrapped.data.qpos.copy()
        qpos[0] += x
        env.unwrapped.set_state(qpos, np.zeros_like(qpos))
        red, green, blue = np.moveaxis(env.render().astype(int), 2, 0)
        sizes.append(np.sum((red > green + 20) & (green > blue + 20)))  # the cheetah is brown, its world is not
    env.close()
    assert sizes[0] > 2000
    assert 0.7 < sizes[1] / sizes[0] < 1.4


def test_the_floor_goes_on_and_no_number_changes():
    """A plane is drawn up to its size; what collides with it knows no edge. Its tiles stay as large."""
    ends, tiles = [], []
    for extended in (False, True):
        env = gymnasium.make("HalfCheetah-v5").unwrapped
        if extended:
            film._extend_floor(env)
        (plane,) = np.flatnonzero(env.model.geom_type == 0)
        size = env.model.geom_size[plane, :2]
        assert (size.min() >= 2000) == extended
        tiles.append(size / env.model.mat_texrepeat[env.model.geom_matid[plane]])
        env.reset(seed=1)
        rng = np.random.default_rng(2)
        ends.append([env.step(rng.uniform(-1, 1, 6).astype(np.float32))[0] for _ in range(100)])
        env.close()
    np.testing.assert_array_equal(*ends)
    np.testing.assert_allclose(*tiles, rtol=1e-6)


def test_a_terminal_shows_how_far_a_film_is(capsys, monkeypatch):
    evaluate._progress(25.0, 100)(50)
    assert capsys.readouterr().err == "", "a file of errors is no place for it"
    now = [0.0]
    monkeypatch.setattr(evaluate.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    tell = evaluate._progress(25.0, 100)
    for frames in range(1, 51):
        now[0] += 0.05
        tell(frames)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "filming an episode of 100 steps …"
    assert [line for line in lines[1:] if line] == ["0.8 s of film", "1.6 s of film"]


def test_what_cannot_be_filmed_is_refused_in_one_line_before_work(world, pictured, tmp_path, capsys):
    plain = make_checkpoint(tmp_path / "plain", env_id="environments:Drift-v0")
    black = make_checkpoint(tmp_path / "black", env_id="pictured:Pictured-v0", env_kwargs={"fail_at": 0})
    strange = make_checkpoint(tmp_path / "strange", env_id="pictured:Pictured-v0", env_kwargs={"kind": "list"})
    film_path = tmp_path / "film.gif"
    (tmp_path / "there.gif").mkdir()
    for arguments, named, part in (
        ([plain, "--video", film_path], "--video", "no render mode rgb_array"),
        ([black, "--video", film_path], "--video", "the screen went black"),
        ([strange, "--video", film_path], "--video", "render() gave list"),
        ([pictured, "--video", tmp_path / "film.avi"], "--video", ".mp4 or .gif"),
        ([pictured, "--video", tmp_path / "no" / "film.gif"], "--video", "not a directory"),
        ([pictured, "--video", tmp_path / "there.gif"], "--video", "is a directory"),
        ([pictured, "--video", "/proc/film.gif"], "--video", "cannot be written: No such file"),
        ([pictured, "--video", film_path, "--video-seconds", "0"], "--video-seconds", "positive"),
        ([pictured, "--video", film_path, "--video-seconds", "nan"], "--video-seconds", "positive"),
        ([pictured, "--video-seconds", "3"], "--video-seconds", "needs --video"),
        ([pictured, "--episodes", "0"], "--episodes", "at least 1"),
        ([pictured, "--seed", "-1"], "--seed", "between"),
        ([tmp_path / "nothing"], "RUN", "does not exist"),
        ([tmp_path], "RUN", "no checkpoint"),
    ):
        code, out, err = answer(world, capsys, *arguments)
        assert (code, out, len(err.splitlines())) == (2, "", 1), (arguments, err)
        assert err.startswith(f"iwes_mpi.evaluate: error: {named}: ")
        assert part in err
    assert not film_path.exists()


@pytest.mark.parametrize(("suffix", "module"), [(".mp4", "imageio_ffmpeg"), (".gif", "PIL")])
def test_what_is_missing_is_named(pictured, tmp_path, monkeypatch, suffix, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(WrongInput, match=rf"needs {module} .*pip install 'iwes_mpi\[video\]'"):
        film.Studio(checkpoint.load_newest(pictured).config, tmp_path / f"film{suffix}")


@pytest.mark.parametrize(
    ("program", "part"),
    [("/nonexistent/ffmpeg", "ffmpeg (/nonexistent/ffmpeg) cannot be run: No such file"), ("false", "exit code 1")],
)
def test_an_ffmpeg_that_does_not_work_is_found_before_work(
    world, pictured, tmp_path, capsys, monkeypatch, program, part
):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", program)
    (tmp_path / "film.mp4").write_bytes(b"the film before")
    code, out, err = answer(world, capsys, pictured, "--video", tmp_path / "film.mp4")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("iwes_mpi.evaluate: error: --video: ")
    assert part in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["film.mp4", "run"]
    assert (tmp_path / "film.mp4").read_bytes() == b"the film before"


def test_renderers_are_tried_in_turn(monkeypatch):
    """EGL, then OSMesa, then a sentence that says what was wrong with each; or just what MUJOCO_GL asks for."""
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.delenv("MUJOCO_GL")
    works: set[str] = {"osmesa"}
    tried = []

    def run(command, env, **_):
        tried.append(env["MUJOCO_GL"])
        return subprocess.CompletedProcess(command, 0 if tried[-1] in works else 1, "", f"no {tried[-1]}!\n  detail\n")

    monkeypatch.setattr(film.subprocess, "run", run)
    assert film.choose_renderer() == "osmesa"
    assert os.environ["MUJOCO_GL"] == "osmesa"
    assert tried == ["egl", "osmesa"]
    works.clear()
    monkeypatch.delenv("MUJOCO_GL")
    with pytest.raises(WrongInput, match=r"video: .*egl: no egl!; osmesa: no osmesa!.*libegl1") as error:
        film.choose_renderer()
    assert "\n" not in str(error.value)
    assert "MUJOCO_GL" not in os.environ
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(WrongInput, match=r"glfw: no glfw!.*MUJOCO_GL"):
        film.choose_renderer()
    assert tried[4:] == ["glfw"]
    works.update(("egl", "glfw"))
    for asked, name in ((" EGL", "egl"), ("On", "glfw")):  # as MuJoCo reads it; Gymnasium knows the plain names only
        monkeypatch.setenv("MUJOCO_GL", asked)
        assert film.choose_renderer() == os.environ["MUJOCO_GL"] == name
