"""jobs/tune.py: the same settings from the same file, whatever is killed, for the budget that the file states."""

import csv
import dataclasses
import importlib.util
import io
import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import launch
import numpy as np
import pandas as pd
import pytest

import iwes_mpi
from iwes_mpi.mpi.world import World
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput

pytest.importorskip("optuna")

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "jobs/tune.py"
SPACE = """
[fixed]
env_id = "environments:Drift-v0"
hidden_sizes = []
obs_stat_probability = 1.0
min_env_steps = 0
l2 = 0.0
n_eval = 3
eval_every = 1
noise_table_size = 20_000
whiten = true

[search]
n_pairs = { low = 2, high = 12, log = true }
sigma = { low = 0.02, high = 0.3, log = true }
min_ess = { low = 0.0, high = 1.0 }
train_episode_steps = [10, 100]
train_env_kwargs = [{}, { sleep = 0.0 }]
"""
AREA = (
    "trials = 8\nseeds = 2\nsteps = 2500\nat_once = 3\nstartup = 3\ncriterion = { area = true, start = -30 }\n" + SPACE
)
GOAL = AREA.replace("area = true, start = -30", "return = -22.0, start = -60.0")


@pytest.fixture(scope="module")
def tune() -> ModuleType:
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("tune", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tune"] = module
    spec.loader.exec_module(module)
    return module


def variables() -> dict[str, str]:
    """As in a run, with whatever this process finds packages by."""
    found = launch.environment()
    return found | {"PYTHONPATH": ":".join([found["PYTHONPATH"], *filter(None, sys.path)])}


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, PROGRAM, *map(str, arguments)]
    return subprocess.run(command, env=variables(), capture_output=True, text=True, timeout=240, check=False)


def search(file: Path, directory: Path, *arguments: object) -> None:
    done = call(file, "--directory", directory, *arguments)
    assert done.returncode == 0, done.stderr


def report(file: Path, directory: Path, *arguments: object) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """The table of trials without their times, and the best settings."""
    done = call(file, "--directory", directory, "--report", *arguments)
    assert done.returncode == 0, done.stderr
    table, _, best = done.stdout.partition("\n\n")
    rows = list(csv.DictReader(io.StringIO(table), delimiter="\t", quoting=csv.QUOTE_NONE))
    return [{name: row[name] for name in row if name != "seconds"} for row in rows], tomllib.loads(best)


@pytest.fixture(scope="module")
def area(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A search file, and the directory of its trials, all made in turn."""
    folder = tmp_path_factory.mktemp("area")
    (folder / "area.toml").write_text(AREA)
    search(folder / "area.toml", folder / "trials")
    return folder / "area.toml", folder / "trials"


@pytest.fixture(scope="module")
def goal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same with a return to reach."""
    folder = tmp_path_factory.mktemp("goal")
    (folder / "goal.toml").write_text(GOAL)
    search(folder / "goal.toml", folder / "trials")
    return folder / "goal.toml", folder / "trials"


def test_all_trials_within_their_ranges(area: tuple[Path, Path]) -> None:
    rows, best = report(*area)
    assert [row["trial"] for row in rows] == [str(i) for i in range(8)]
    assert {row["state"] for row in rows} <= {"complete", "stopped early"}
    for row in rows:
        assert 2 <= int(row["n_pairs"]) <= 12
        assert 0.02 <= float(row["sigma"]) <= 0.3
        assert 0 <= float(row["min_ess"]) <= 1
        assert row["train_episode_steps"] in ("10", "100")
        assert json.loads(row["train_env_kwargs"]) in ({}, {"sleep": 0.0})
    complete = [row for row in rows if row["state"] == "complete"]
    assert len(complete) >= 3
    winner = min(complete, key=lambda row: float(row["loss"]))
    assert float(winner["loss"]) == pytest.approx(np.mean([float(winner[f"loss_seed{i}"]) for i in (1, 2)]), rel=1e-5)
    assert best["n_pairs"] == int(winner["n_pairs"])
    assert best["sigma"] == float(winner["sigma"])
    assert best["max_env_steps"] == 2500


def test_the_same_search_again_finds_the_same(area: tuple[Path, Path], tmp_path: Path) -> None:
    search(area[0], tmp_path / "trials", "--parallel", 3)
    assert report(area[0], tmp_path / "trials") == report(*area)


def test_a_killed_search_goes_on_as_if_nothing_had_been(area: tuple[Path, Path], tmp_path: Path) -> None:
    directory = tmp_path / "trials"
    command = [sys.executable, str(PROGRAM), str(area[0]), "--directory", str(directory), "--parallel", "2"]
    journal = directory / "journal.log"
    for lines in (20, 60, 90):  # of some 150
        process = subprocess.Popen(command, env=variables(), start_new_session=True, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            if journal.exists() and journal.read_bytes().count(b"\n") >= lines:
                break
            time.sleep(0.005)
        launch.kill_tree(process.pid)
        process.wait()
        assert process.returncode == -signal.SIGKILL, "it was to be under way"
        with journal.open("ab") as file:
            file.write(b'{"op_code": 4, "wor')  # what a kill may leave of a line
    search(area[0], directory)
    assert report(area[0], directory) == report(*area)


def test_a_trial_has_all_its_settings_whenever_a_search_is_killed(
    area: tuple[Path, Path], tune: ModuleType, tmp_path: Path
) -> None:
    found, lines = tune.read_search(area[0]), (area[1] / "journal.log").read_bytes().splitlines(keepends=True)
    for n in range(2, len(lines)):  # the first two tell of the search
        (tmp_path / "journal.log").write_bytes(b"".join(lines[:n]))
        assert all(set(trial.params) == set(found.space) for trial in tune.Study(found, tmp_path).trials)


def test_a_search_goes_on_from_whatever_a_kill_leaves(tune: ModuleType, tmp_path: Path) -> None:
    text = (
        AREA.replace("steps = 2500", "steps = 400")
        .replace("trials = 8", "trials = 5")
        .replace("at_once = 3", "at_once = 1")
    )
    (tmp_path / "small.toml").write_text(text.replace("startup = 3", "startup = 1"))
    found, journal = tune.read_search(tmp_path / "small.toml"), tmp_path / "0/journal.log"

    def outcome(directory: Path) -> list[list[str]]:
        tune.work(found, directory, False, None)
        rows = list(tune.table(found, tune.Study(found, directory).trials, {}))
        return [[value for name, value in zip(rows[0], row, strict=True) if name != "seconds"] for row in rows]

    undisturbed = outcome(journal.parent)
    assert any("stopped early" in row for row in undisturbed)
    lines = journal.read_bytes().splitlines(keepends=True)
    for n in range(2, len(lines)):
        if not all(b"intermediate_value" in line for line in lines[n - 1 : n + 1]):  # points are many, and alike
            (tmp_path / str(n)).mkdir()
            (tmp_path / str(n) / "journal.log").write_bytes(b"".join(lines[:n]))
            assert outcome(tmp_path / str(n)) == undisturbed


def test_one_trial_at_a_time_in_an_array(goal: tuple[Path, Path], tmp_path: Path) -> None:
    for done in (1, 2):
        search(goal[0], tmp_path / "trials", "--array")
        rows, _ = report(goal[0], tmp_path / "trials")
        assert rows == report(*goal)[0][:done]


def test_more_trials_may_be_asked_for_later(goal: tuple[Path, Path], tmp_path: Path) -> None:
    few = tmp_path / "few.toml"
    few.write_text(GOAL.replace("trials = 8", "trials = 3"))
    search(few, tmp_path / "trials")
    few.write_text(GOAL.replace("trials = 8", "trials = 5"))
    search(few, tmp_path / "trials")
    assert report(few, tmp_path / "trials")[0] == report(*goal)[0][:5]


def train(tmp_path: Path, best: Path, seed: int, *arguments: str) -> pd.DataFrame:
    """The iterations of a run with the settings found."""
    run_dir = tmp_path / f"run-{seed}"
    outcome = launch.train(
        1, "--config", str(best), "--seed", str(seed), "--run-dir", str(run_dir), "--display", "none", *arguments
    )
    assert outcome.code == 0, outcome.err
    return iwes_mpi.open_run(run_dir).iterations


def test_the_area_is_that_of_a_run_of_train(area: tuple[Path, Path], tmp_path: Path) -> None:
    rows, best = report(*area, tmp_path / "best.toml")
    assert tomllib.loads((tmp_path / "best.toml").read_text()) == best
    winner = min((row for row in rows if row["loss"]), key=lambda row: float(row["loss"]))
    for seed in (1, 2):
        log = train(tmp_path, tmp_path / "best.toml", seed)
        x = np.concatenate([[0], log["env_steps"].shift(1, fill_value=0) + log["eval_env_steps"]])
        y = np.concatenate([[-30.0], log["eval_return_mean"]])
        x, y = x[x <= 2500], y[x <= 2500]
        mean = np.trapezoid(np.append(y, y[-1]), np.append(x, 2500)) / 2500
        assert float(winner[f"loss_seed{seed}"]) == pytest.approx(-mean, rel=1e-5)


def test_the_steps_to_a_return_are_those_of_a_run_of_train(goal: tuple[Path, Path], tmp_path: Path) -> None:
    rows, best = report(*goal, tmp_path / "best.toml")
    assert best["stop_at_return"] == -22.0
    winner = min((row for row in rows if row["loss"]), key=lambda row: float(row["loss"]))
    found = [float(winner[f"loss_seed{seed}"]) for seed in (1, 2)]
    assert min(found) < 1, "one seed at least is to reach it"
    for seed, loss in zip((1, 2), found, strict=True):
        log = train(tmp_path, tmp_path / "best.toml", seed)
        spent = log["env_steps"].shift(1, fill_value=0) + log["eval_env_steps"]
        if loss < 1:
            assert spent.iloc[-1] / 2500 == pytest.approx(loss, rel=1e-5)
            assert log["eval_return_mean"].tail(3).mean() >= -22
        else:
            best_mean = log["eval_return_mean"][spent <= 2500].rolling(3).mean().max()
            assert loss == pytest.approx(2 - np.clip((best_mean + 60) / 38, 0, 1), rel=1e-5)


def test_the_best_with_further_seeds_is_chosen(area: tuple[Path, Path], tune: ModuleType, tmp_path: Path) -> None:
    """Finalists are asked for once the trials are made; they run with the seeds after those of the trials."""
    file, directory = tmp_path / "area.toml", tmp_path / "trials"
    file.write_text("finalists = 3\nfinal_seeds = 2\n" + AREA)
    shutil.copytree(area[1], directory)
    before, _ = report(*area)
    search(file, directory, "--array")  # one run, with others to come: the best trial is still the best
    complete = sorted((float(row["loss"]), int(row["trial"])) for row in before if row["loss"])
    assert f": trial {complete[0][1]}, " in call(file, "--directory", directory, "--report").stdout
    search(file, directory, "--parallel", 2)
    rows, best = report(file, directory)
    chosen = {int(row["trial"]): float(row["final"]) for row in rows if row["final"]}
    assert set(chosen) == {number for _, number in complete[:3]}
    winner = min(chosen, key=lambda number: chosen[number])
    assert best["sigma"] == float(rows[winner]["sigma"])
    found, world = tune.read_search(file), World()
    params = tune.Study(found, directory).trials[winner].params
    nobody_stops = SimpleNamespace(pending=lambda: False)
    losses = []
    for seed in (3, 4):  # after 1 and 2
        curve = tune.Curve(found.criterion, found.steps)
        tune.run(found, found.config(params, seed), world, nobody_stops, curve, lambda point, spent: None)
        losses.append(curve.loss(found.steps))
    assert chosen[winner] == pytest.approx(np.mean(losses), rel=1e-5)


def test_trials_are_stopped_as_is_said(area: tuple[Path, Path], tune: ModuleType) -> None:
    trials = tune.Study(tune.read_search(area[0]), area[1]).trials
    assert any(trial.state.name == "PRUNED" for trial in trials)
    for trial in trials:
        known = [other for other in trials[: max(0, trial.number - 2)] if other.state.name == "COMPLETE"]
        worse = {
            point: loss > statistics.median(other.intermediate_values[point] for other in known)
            for point, loss in trial.intermediate_values.items()
            if point >= 2 and len(known) >= 3
        }
        assert [point for point, is_worse in worse.items() if is_worse] == (
            [max(trial.intermediate_values)] if trial.state.name == "PRUNED" else []
        )


def test_what_a_run_is_worth(tune: ModuleType) -> None:
    curve = tune.Curve(tune.Criterion(goal=10.0, start=0.0), 1000)
    losses = []
    for spent, score in ((100, 2.0), (200, 4.0), (300, 6.0), (400, 11.0), (500, 13.5), (600, -99.0)):
        curve.add(spent, score)
        losses.append(curve.loss(spent))
    assert losses == pytest.approx([2, 2, 1.6, 1.3, 0.5, 0.5])  # (6 + 11 + 13.5) / 3 > 10
    late = tune.Curve(tune.Criterion(goal=10.0, start=0.0), 1000)
    for spent in (990, 995, 1001):
        late.add(spent, 50.0)
    assert late.loss(1000) == 2.0, "the third evaluation ends after the last step"
    level = tune.Curve(tune.Criterion(goal=None, start=4.0), 100)
    assert level.loss(50) == -4.0
    level.add(20, 8.0)
    assert level.loss(20) == -6.0
    assert level.loss(100) == pytest.approx(-(20 * 6 + 80 * 8) / 100)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "jobs/tune").glob("*.toml")))
def test_the_searches_of_the_study_are_valid_and_equal(tune: ModuleType, name: str) -> None:
    found = tune.read_search(ROOT / f"jobs/tune/{name}.toml")
    assert (found.fixed["iw_updates"] > 0) == name.endswith("-iwes")
    other = tune.read_search(ROOT / "jobs/tune" / f"{name.rpartition('-')[0]}-es.toml")
    for part in (
        "trials",
        "seeds",
        "steps",
        "at_once",
        "startup",
        "seed",
        "finalists",
        "final_seeds",
        "criterion",
        "preset",
    ):
        assert getattr(found, part) == getattr(other, part)
    reuse = {field.name for field in dataclasses.fields(Config) if field.metadata["group"] == "importance weighting"}
    for part in ("fixed", "space"):
        common = [{k: v for k, v in getattr(one, part).items() if k not in reuse} for one in (found, other)]
        assert common[0] == common[1], "what is not about reuse is the same for both"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("trials = 8\n", "", "trials is missing"),
        ("trials = 8", "trials = 0", "trials must be at least 1, got 0"),
        ("trials = 8", "trials = 2.5", "trials must be a whole number, got 2.5"),
        ("trials = 8", "trails = 8\ntrials = 8", "trails is unknown here"),
        ("trials = 8", "trials =", "is not valid TOML: "),
        ("area = true", "area = false", "criterion: must have return = … or area = true"),
        ("area = true, start = -30", "area = true", "criterion: start is missing"),
        ("area = true", "area = true, steps = 4", "criterion: steps is unknown here"),
        ("area = true", "return = -31", "criterion: return must be above start, got -31.0 and -30.0"),
        ("criterion = {", "other = {", "[criterion] is missing"),
        ("n_eval = 3", "n_evals = 3", "fixed: unknown setting n_evals (did you mean n_eval?)"),
        ("l2 = 0.0", "l2 = -1.0", "l2: must be zero or more, and finite, got -1.0"),
        ("l2 = 0.0", "sigma = 0.1", "sigma is both fixed and searched"),
        ("l2 = 0.0", "seed = 3", "fixed: seed is for the search to set"),
        ("n_eval = 3", "n_eval = 0", "n_eval is 0, but evaluations are what counts"),
        ("low = 0.02", "low = 0.5", "search: sigma: 0.5 to 0.3 is no range"),
        ("low = 0.02", "low = 0", "search: sigma: 0.0 to 0.3 is no range of logarithms"),
        ("low = 2, high = 12", "low = 2.5, high = 12", "search: n_pairs: low must be a whole number, got 2.5"),
        ("low = 0.0, high = 1.0", "low = 0.0, high = 1.5", "min_ess: must lie between 0 and 1, got 1.5"),
        ("low = 0.0, high = 1.0", "low = 0.0, hihg = 1.0", "search: min_ess: must be a list of choices or { low = …, "),
        ("[10, 100]", "[]", "search: train_episode_steps: must be a list of choices or { low = …, high = …, "),
        ("[10, 100]", "[10, 0]", "train_episode_steps: must be at least 1, got 0"),
        ("[{}, { sleep = 0.0 }]", "{ low = 1, high = 2 }", "search: train_env_kwargs: must be a list of choices, "),
    ],
)
def test_a_bad_file_is_refused(tune: ModuleType, tmp_path: Path, old: str, new: str, said: str) -> None:
    file = tmp_path / "bad.toml"
    assert AREA.count(old) == 1
    file.write_text(AREA.replace(old, new))
    with pytest.raises(WrongInput) as caught:
        tune.read_search(file)
    assert str(caught.value).startswith(f"{file}: {said}")


@pytest.mark.parametrize(
    ("old", "new", "said"), [("seeds = 2", "seeds = 0", "{file}: seeds must be"), ("Drift", "No", "env_id: ")]
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(AREA.replace(old, new))
    done = call(file, "--directory", tmp_path / "trials", "--parallel", 2)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
    assert done.stderr.startswith(f"tune.py: error: {said.format(file=file)}")
    assert not (tmp_path / "trials").exists()


def test_other_bad_input_is_refused_in_one_line(
    area: tuple[Path, Path], goal: tuple[Path, Path], tmp_path: Path
) -> None:
    for arguments, said in (
        ((tmp_path / "none.toml",), f"{tmp_path / 'none.toml'}: cannot be read: No such file or directory"),
        ((area[0], "--parallel", 4), "--parallel: must be at least 1, and at most at_once = 3, got 4"),
        ((area[0], "--report", "--directory", tmp_path), f"{tmp_path}: holds no trials of this search yet"),
        (
            (area[0], "--directory", goal[1]),
            f"{goal[1]}: was begun with other settings than area has now; choose another --directory",
        ),
        ((area[0], "--directory", area[0]), f"{area[0]}: cannot be written: Not a directory"),
    ):
        done = call(*arguments)
        assert (done.returncode, done.stderr) == (2, f"tune.py: error: {said}\n")
