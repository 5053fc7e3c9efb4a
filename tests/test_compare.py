"""``python -m iwes_mpi.compare``: groups of runs by their steps to a return, on logs with known answers."""

import itertools
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from synthetic import open_log, rows

from iwes_mpi import compare, open_run
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput
from iwes_mpi.shown import comparison

DATA = Path(__file__).resolve().parent.parent / "analysis" / "data" / "sample_efficiency"
FEW = {"resamples": 100}
NEVER = 10**9


def made(folder: Path, at: int, n_rows: int = 12, **settings: object) -> str:
    """A run whose evaluations return 0 before iteration `at`, and 100 from there on; of 7 steps each."""
    config = Config(**{"iterations": n_rows} | settings)
    path = folder / f"run{len(list(folder.iterdir()))}"
    log = open_log(path, config)
    for i in range(n_rows):
        log.append(rows(config, i, eval_return_mean=100.0 * (i >= at), eval_env_steps=7 * (i + 1)))
    log.close()
    return str(path)


def steps(at: int) -> int:
    """Steps at the end of the third evaluation from iteration `at`: its iteration's population comes after it."""
    return 2000 * (at + 2) + 7 * (at + 3)


def group(folder: Path, *ats: int, **settings: object) -> list[str]:
    """A run for each iteration, with seeds of their own."""
    return [made(folder, at, seed=seed, **settings) for seed, at in enumerate(ats)]


# -- known answers -------------------------------------------------------------------------------------------


def test_steps_of_made_up_runs(tmp_path: Path) -> None:
    slow, fast = group(tmp_path, 5, 3, 4, 6, iw_updates=0), group(tmp_path, 1, 0, NEVER, 2, iw_updates=2)
    runs = [open_run(path) for path in [*fast, *slow]]
    found = comparison.compare(runs, 100.0, ["iw_updates"])
    made_at_all = 12 * 2007
    assert found.limit == made_at_all, "that of the run which never comes to it"
    es, iw = comparison.summarize(found, **FEW)
    assert (es.label, es.runs, es.reached, iw.label, iw.runs, iw.reached) == ("K = 0", 4, 4, "K = 2", 4, 3)
    assert es.median.value == es.mean.value == (steps(4) + steps(5)) / 2
    assert iw.median.value == iw.mean.value == (steps(1) + steps(2)) / 2
    assert es.median.low >= steps(3)
    assert es.median.high <= steps(6)
    assert iw.mean.high == made_at_all, "some resamplings have it four times"
    assert es.improvement is None
    assert iw.improvement.value == 12 / 16, "three of four need fewer than any"
    (reverse, _) = comparison.compare(runs, 100.0, ["iw_updates"], baseline="2").groups
    assert reverse == "K = 2"
    assert comparison.compare(runs, 100.0, limit=steps(2)).groups["K = 0"] == [(steps(2), False)] * 4


def test_a_return_in_each_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        path
        for env_id, at in (("Ant-v5", 4), ("Hopper-v5", 1))
        for k in (0, 1)
        for path in group(tmp_path, at, at + 1, at + k, env_id=env_id, iw_updates=k, max_env_steps=20_000)
    ]
    goals = ["--return", "80", "--return", "Hopper-v5=99"]
    assert compare.main([*runs, *goals, "--by", "iw-updates", "--resamples", "100"]) == 0
    out = capsys.readouterr()
    titles = re.findall(r"^(\S+): environment steps to a return of (\S+), within (.*)$", out.out, re.MULTILINE)
    assert titles == [("Ant-v5", "80", "20 k"), ("Hopper-v5", "80", "20 k"), ("Hopper-v5", "99", "20 k")]
    assert "All 2 environments: share of the limit" in out.out
    assert out.err == ""
    # The middle half of three is one run for the environment, and of six four, over both.
    shares = sorted(steps(at) / 20_000 for at in (4, 5, 4, 1, 2, 1))
    assert re.search(rf"K = 0 +6 +6 +\S+ \[.*?\] +{np.mean(shares[1:-1]):.2f} \[", out.out.partition("All 2")[2])


def test_the_committed_logs() -> None:
    """Swimmer, from the logs themselves and by other formulas; the notebook has the same figures."""
    limit, needed = 500_000, {}
    for name in ("es", "iwes"):
        needed[name] = []
        for log in sorted(DATA.glob(f"swimmer-{name}-seed*/log.h5")):
            with h5py.File(log) as file:
                table = file["iterations"]
                spent = np.append(0, table["env_steps"][:-1]) + table["eval_env_steps"][:]
                known = np.isfinite(table["eval_return_mean"][:])
                scores, spent = table["eval_return_mean"][known], spent[known]
            means = np.convolve(scores, np.full(3, 1 / 3), "valid")
            reached = spent[2:][(means >= 128.25) & (spent[2:] <= limit)]
            needed[name].append(reached[0] if reached.size else np.inf)
    runs = [open_run(path) for name in ("es", "iwes") for path in sorted(DATA.glob(f"swimmer-{name}-seed*"))]
    found = comparison.compare(runs, 128.25, ["iw_updates"])
    assert found.limit == limit
    es, iw = comparison.summarize(found, **FEW)
    for summary, steps_needed in ((es, needed["es"]), (iw, needed["iwes"])):
        ordered = np.sort(steps_needed)
        assert summary.reached == np.isfinite(ordered).sum()
        assert summary.median.value == np.mean(ordered[4:6])
        assert summary.mean.value == pytest.approx(np.minimum(ordered, limit)[2:8].mean())
    pairs = itertools.product(needed["iwes"], needed["es"])
    assert iw.improvement.value == pytest.approx(np.mean([0.5 if a == b else a < b for a, b in pairs]))
    assert [comparison.steps_text(x) for x in (es.median.value, iw.median.value)] == ["never", "122 k"]
    assert f"{iw.improvement.value:.2f}" == "0.79"


# -- what is printed and drawn -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "text"),
    [(321, "321"), (999.7, "1 k"), (98_300, "98.3 k"), (999_900, "1000 k"), (2.88e6, "2.88 M"), (np.inf, "never")],
)
def test_steps_as_text(steps: float, text: str) -> None:
    assert comparison.steps_text(steps) == text


def test_latex_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [*group(tmp_path, 1, 2, 3, env_id="my_module:Env_1-v0", iw_updates=0), *group(tmp_path, 1, 2, NEVER)]
    runs = [open_run(path) for path in paths]
    for run in runs:
        run.config = Config(env_id="my_module:Env_1-v0", iw_updates=run.config.iw_updates, seed=run.config.seed)
    found = comparison.compare(runs, 100.0)
    text = comparison.latex_table(comparison.title(found), comparison.cells(comparison.summarize(found, **FEW)))
    body = text.partition(r"\toprule")[2].partition(r"\bottomrule")[0]
    assert [line.count(" & ") for line in body.splitlines() if line.endswith(r"\\")] == [5, 5, 5]
    assert r"my\_module:Env\_1-v0" in text
    assert text.count(r"\begin") == text.count(r"\end") == 2
    assert comparison.latex_text(r"50 % of $x_1 \& {y}") == r"50 \% of \$x\_1 \textbackslash{}\& \{y\}"
    assert compare.main([*paths[:3], "--return", "100", "--latex", "--resamples", "100"]) == 0
    assert all(
        line.startswith("%") for line in capsys.readouterr().out.partition(r"\end{table}")[2].split("\n") if line
    )


@pytest.mark.slow
def test_survival_curves_are_drawn(tmp_path: Path) -> None:
    runs = [*group(tmp_path, 1, 2, NEVER, iw_updates=0), *group(tmp_path, 0, 0, 1, iw_updates=1)]
    found = comparison.compare([open_run(path) for path in runs], 100.0)
    figure = comparison.figure([found])
    es, ended = figure.axes[0].lines[:2]
    drawn = dict(zip(*es.get_data(), strict=True))
    assert drawn[steps(1)] == pytest.approx(2 / 3)
    assert drawn[steps(2)] == pytest.approx(1 / 3)
    assert ended.get_xdata().tolist() == [12 * 2007]
    assert ended.get_ydata() == pytest.approx([1 / 3])
    output = tmp_path / "x.png"
    assert compare.main([*runs, "--return", "100", "-o", str(output), "--resamples", "100"]) == 0
    assert output.read_bytes().startswith(b"\x89PNG")


def test_runs_that_differ_in_more_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [*group(tmp_path, 1, 2, 3, sigma=0.1), *group(tmp_path, 1, 2, NEVER, sigma=0.2)]
    arguments = ["--return", "100", "--resamples", "100"]
    compare.main([*runs, "--by", "iw_updates", *arguments, "--limit", "1e6"])
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 2
    assert "differ in sigma too" in notes[0]
    assert "1 runs of Ant-v5 have not come to the limit" in notes[1]
    compare.main([*runs, *arguments])
    assert capsys.readouterr().err == ""


# -- wrong input ---------------------------------------------------------------------------------------------


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = group(tmp_path, 1, 2, 3)
    goal = ["--return", "100"]
    ended = [*runs[:2], made(tmp_path, 1, seed=3, stop_at_return=50.0)]
    twice = [*runs, made(tmp_path, 2, seed=0)]
    silent = tmp_path / "silent"
    log = open_log(silent, Config(n_eval=0, seed=9))
    log.append(rows(Config(n_eval=0), 0))
    log.close()
    for arguments, named in (
        ([], "no run"),
        (runs, "--return: is needed"),
        ([*runs, "--return", "much"], "--return: must be a number"),
        ([*runs, "--return", "Ant-v4=3"], "--return: Ant-v4 is not among the environments: Ant-v5"),
        ([*runs, *goal, "--by", "iw_update"], "--by: there is no setting 'iw_update'; is it iw_updates?"),
        ([*runs, *goal, "--by", "iw_updates", "--baseline", "9"], "--baseline: there is no group '9', only K = 8"),
        ([*runs[:2], *goal], "has 2 runs: an interval needs at least 3"),
        ([*ended, "--return", "101"], "--return: " + ended[2] + " was ended at a return of 50"),
        ([*twice, *goal], "have the same settings and the same seed"),
        ([*runs, str(silent), *goal, "--by", "iw_updates"], "silent has no evaluations"),
        ([*runs, *goal, "--level", "1"], "--level: must be"),
        ([*runs, *goal, "--limit", "0"], "--limit: must be"),
        ([*runs, *goal, "--resamples", "9"], "--resamples: must"),
        ([*runs, *goal, "-o", "x.doc"], "--output: x.doc"),
        ([*runs, str(tmp_path / "nothing"), *goal], "nothing does not exist"),
    ):
        with pytest.raises(WrongInput) as error:
            compare.main(arguments)
        told = compare.build_parser().describe(error.value)
        assert named in told
        assert "\n" not in told
    capsys.readouterr()
