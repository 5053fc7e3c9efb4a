"""Figures: what is averaged, what belongs together, and pictures that can be read."""

import itertools
import subprocess
import sys
from pathlib import Path

import launch
import numpy as np
import pytest
from matplotlib.figure import Figure
from synthetic import make_run, open_log, rows

from iwes_mpi import open_run, plot
from iwes_mpi.method.phases import Phase
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput
from iwes_mpi.shown import figures
from iwes_mpi.shown.chosen import read_runs


def runs_of(folder, iterations=20, **variants):
    """Runs with every combination of some settings' values."""
    found = []
    for values in itertools.product(*variants.values()):
        settings = dict(zip(variants, values, strict=True))
        found.append(open_run(make_run(folder / str(len(found)), iterations, **settings)))
    return found


# -- averages ------------------------------------------------------------------------------------------------


def test_mean_of_straight_lines_on_different_points():
    curves = [(np.array([0.0, 1, 4]), np.array([0.0, 1, 4])), (np.array([-1.0, 3, 9]), np.array([-3.0, 9, 27]))]
    x, mean, low, high = figures.average(curves)
    assert (x[0], x[-1]) == (0, 4)
    np.testing.assert_allclose(mean, 2 * x, atol=1e-12)
    np.testing.assert_allclose(low, x, atol=1e-12)
    np.testing.assert_allclose(high, 3 * x, atol=1e-12)


def test_bands():
    values = np.array([[1.0, 2, 4, 8, 0], [5, 5, 5, 5, 5]]).T
    curves = [(np.arange(2.0), row) for row in values]
    mean = values.mean(axis=0)
    error = np.sqrt(((values - mean) ** 2).sum(axis=0) / 4 / 5)
    expected = {
        "min-max": ([0, 5], [8, 5]),
        "standard-error": (mean - error, mean + error),
        "quartiles": ([1, 5], [4, 5]),
        "none": (mean, mean),
    }
    assert set(expected) == set(figures.BANDS)
    for band, (low, high) in expected.items():
        curve = figures.average(curves, band)
        np.testing.assert_allclose(curve.mean, mean)
        np.testing.assert_allclose(curve.low, low)
        np.testing.assert_allclose(curve.high, high)


def test_a_mean_goes_as_far_as_more_than_half_of_the_curves():
    """Lines y = 0, 1, 2 ... that end at different x: at each x the mean and band of those that reach it."""
    ends = [10, 10, 10, 6, 0]  # one run is behind, and one has only just begun
    curves = [(np.arange(end + 1.0), np.full(end + 1, float(level))) for level, end in enumerate(ends)]
    for order in (curves, curves[::-1]):
        x, mean, low, high = figures.average(order)
        assert x.tolist() == list(range(11))
        assert mean.tolist() == [2] + 6 * [1.5] + 4 * [1]
        assert low.tolist() == 11 * [0]
        assert high.tolist() == [4] + 6 * [3] + 4 * [2]
    errors = figures.average(curves, "standard-error")
    spreads = [np.std(range(n), ddof=1) / np.sqrt(n) for n in (5, 4, 3)]
    np.testing.assert_allclose(errors.high - errors.mean, np.repeat(spreads, (1, 6, 4)))
    assert figures.average(curves[2:]).x[-1] == 6, "two of three are more than half"
    assert figures.average(curves[1:]).x[-1] == 6, "two of four are not"
    assert figures.average(curves[3:]).x.tolist() == [0], "a mean is of two runs at least"


def test_average_of_few_or_no_points():
    empty = (np.zeros(0), np.zeros(0))
    assert figures.average([]).x.size == figures.average([empty]).x.size == 0
    apart = figures.average([(np.array([0.0, 1]), np.zeros(2)), (np.array([2.0, 3]), np.zeros(2))])
    assert apart.x.size == 0
    one = figures.average([(np.array([0.0]), np.array([7.0])), empty], "standard-error")
    assert (one.mean.tolist(), one.low.tolist(), one.high.tolist()) == ([7], [7], [7])


def test_evaluations_are_drawn_at_what_was_spent_before_them(tmp_path):
    run = open_run(make_run(tmp_path / "run", 3))
    for column, expected in (("env_steps", [0, 2000, 4000]), ("wall_time", [0, 3.5, 4.5]), ("iteration", [0, 1, 2])):
        x, y = run.curve(column)
        assert x.tolist() == expected
        assert y.tolist() == run.iterations["eval_return_median"].tolist()


def test_smallest_ess_of_an_iteration(tmp_path):
    run = open_run(make_run(tmp_path / "run", 6, iw_updates=3))
    x, ess = run.smallest_ess("iteration")
    assert x.tolist() == list(range(6))
    expected = [min(row.ess for row in rows(run.config, i).updates) for i in range(6)]
    np.testing.assert_array_equal(ess, expected)


def run_with_times(run_dir, seconds, **settings):
    """A run whose iterations spent so many seconds in rollouts, and a tenth of them idle."""
    config = Config(**settings)
    log = open_log(run_dir, config)
    for iteration, time_rollouts in enumerate(seconds):
        log.append(rows(config, iteration, time_rollouts=time_rollouts, time_idle=time_rollouts / 10))
    log.close()
    return open_run(run_dir)


def test_the_iteration_that_compiles_is_left_out_of_times(tmp_path):
    times = figures.phase_times(run_with_times(tmp_path / "run", [100, 1, 2]))
    assert times["rollouts"] == 1.5
    assert set(times) == set(Phase)
    assert figures.phase_times(run_with_times(tmp_path / "one", [100]))["rollouts"] == 100


def test_a_stalled_iteration_does_not_count(tmp_path):
    stalled = run_with_times(tmp_path / "run", [30, 2, 8, 1950, 4, 1, 5, 3, 6])
    times = figures.phase_times(stalled)
    assert times["rollouts"] == np.mean([3, 4, 5, 6])
    assert times["idle"] == pytest.approx(0.45), "of the same iterations"
    assert figures.phase_times(run_with_times(tmp_path / "short", [30, 2, 1950, 4]))["rollouts"] == 4


def test_bars_are_means_of_the_runs_that_have_more_than_compiled(tmp_path):
    runs = [run_with_times(tmp_path / str(i), seconds, seed=i) for i, seconds in enumerate([[9, 2, 2], [9, 4], [90]])]
    ax = figures.time_per_iteration(runs, Figure().subplots())
    assert [bar.get_width() for bar in ax.patches][:2] == pytest.approx([3, 0.3])
    assert "middle half" in ax.get_xlabel()


# -- settings ------------------------------------------------------------------------------------------------


def test_what_does_not_change_results_does_not_divide_runs(tmp_path):
    same = [
        {"seed": 1, "display": "none", "max_env_steps": 5},
        {"seed": 2, "log_population": True, "max_wall_time": 60.0, "checkpoint_every": 3, "noise_table_size": 1000},
        {"seed": 3, "schedule": "static", "weights_on": "root", "rollouts": "gymnasium"},
    ]
    runs = [open_run(make_run(tmp_path / str(i), 2, **settings)) for i, settings in enumerate(same)]
    (setting,) = figures.group_runs(runs)
    assert setting.runs == runs
    assert setting.label == "Ant-v5"
    assert len(figures.group_runs(runs, timing=True)) == 2


def test_settings_are_labeled_by_what_differs_and_ordered_by_value(tmp_path):
    runs = runs_of(tmp_path, 1, iw_updates=[10, 2], seed=[1, 2], center=[True, False])
    assert [s.label for s in figures.group_runs(runs)] == [
        "K = 2, no center", "K = 2, center", "K = 10, no center", "K = 10, center"
    ]  # fmt: skip
    assert [len(s.runs) for s in figures.group_runs(runs)] == [2, 2, 2, 2]
    others = runs_of(tmp_path / "2", 1, hidden_sizes=[(64, 64), ()], max_episode_steps=[None, 5])
    labels = [s.label for s in figures.group_runs(others)]
    assert len(set(labels)) == 4
    assert all("linear policy" in label or "64-64 units" in label for label in labels)


# -- pictures ------------------------------------------------------------------------------------------------


def visible_axes(figure):
    return [ax for ax in figure.axes if ax.get_visible()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variants", "iterations"),
    [
        ({"iw_updates": [2]}, 45),
        ({"iw_updates": [2]}, 1),
        ({"iw_updates": [0]}, 3),
        ({"iw_updates": [3], "seed": [1, 2, 3, 4, 5]}, 45),
        ({"iw_updates": range(6), "seed": [1, 2]}, 2),
        ({"learning_rate": np.geomspace(1e-4, 1, 30).tolist(), "iw_updates": [1]}, 3),
        ({"env_id": ["Ant-v5", "Hopper-v5"]}, 1),
    ],
    ids=["one run", "one row", "plain ES", "five seeds", "twelve runs", "thirty settings", "two environments"],
)
def test_axes_are_labeled_and_no_legend_covers_data(tmp_path, variants, iterations):
    figure = figures.overview(runs_of(tmp_path, iterations, **variants), "wall_time")
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    axes = visible_axes(figure)
    assert len(axes) == (5 if any(variants.get("iw_updates", [Config().iw_updates])) else 2)
    frames = [ax.get_window_extent() for ax in axes]
    for ax in axes:
        assert ax.get_xlabel()
        assert ax.get_ylabel() or ax.get_yticklabels(), "a vertical axis says what it shows"
        label = ax.xaxis.label.get_window_extent()
        assert label.x0 >= 0
        assert label.x1 <= figure.bbox.width
        if legend := ax.get_legend():
            assert not any(legend.get_window_extent().overlaps(frame) for frame in frames)
    for legend in figure.legends:
        assert not any(legend.get_window_extent().overlaps(frame) for frame in frames)
        assert legend.get_window_extent().x0 >= 0
        assert legend.get_window_extent().x1 <= figure.bbox.width
    for first, second in itertools.combinations(frames, 2):
        assert not first.overlaps(second)


def test_thirty_settings_differ_without_color():
    looks = [figures.style(i, 30) for i in range(30)]
    seen = {(str(look["linestyle"]), look["marker"], look["markerfacecolor"] == "white") for look in looks}
    assert len(seen) == 30


def test_lines_of_six_settings_differ_in_pairs():
    looks = [figures.style(k, 6) for k in range(6)]
    for name in ("linestyle", "marker", "color"):
        assert len({str(look[name]) for look in looks}) == 6, f"K = 0 ... 5 by {name} alone"
    greys = [np.dot(look["color"][:3], (0.2126, 0.7152, 0.0722)) for look in looks]  # luminance, ITU-R BT.709
    assert np.diff(greys).min() > 0.05, "so do their greys"


def test_learning_curves_on_given_axes_show_the_mean(tmp_path):
    runs = runs_of(tmp_path, 20, iw_updates=[0, 2], seed=[1, 2, 3])
    ax = figures.learning_curves(runs, Figure().subplots(), x="iteration")
    lines = {line.get_label(): line for line in ax.lines}
    for k in (0, 2):
        found = lines[f"K = {k} (3 runs)"]
        values = [run.iterations["eval_return_median"] for run in runs if run.config.iw_updates == k]
        np.testing.assert_allclose(found.get_ydata(), np.mean(values, axis=0))
        np.testing.assert_array_equal(found.get_xdata(), np.arange(20))


def test_population_means_are_shown_where_nothing_was_evaluated(tmp_path):
    figure = figures.overview(runs_of(tmp_path, n_eval=[0]))
    assert "population" in figure.axes[0].get_ylabel()
    assert len(figure.axes[0].lines[0].get_xdata()) == 20


def test_a_run_that_stopped_early_shortens_the_mean_but_not_the_others(tmp_path):
    runs = [open_run(make_run(tmp_path / str(n), n, seed=n)) for n in (10, 30)]
    ax = figures.learning_curves(runs, Figure().subplots(), x="iteration")
    ends = sorted(line.get_xdata()[-1] for line in ax.lines)
    assert ends == [9, 9, 9, 29]  # mean and band, then the longer run alone


def test_a_run_that_has_just_begun_takes_nothing_from_the_others(tmp_path):
    runs = [open_run(make_run(tmp_path / str(seed), 1 if seed == 3 else 30, seed=seed)) for seed in range(5)]
    ax = figures.learning_curves(runs, Figure().subplots(), x="iteration")
    mean, low, high = ax.lines
    values = np.array([run.iterations["eval_return_median"] for run in runs if run.config.seed != 3])[:, 1:]
    for line, expected in ((mean, values.mean(axis=0)), (low, values.min(axis=0)), (high, values.max(axis=0))):
        np.testing.assert_allclose(line.get_ydata()[1:], expected)


@pytest.mark.slow
def test_the_legend_says_what_is_drawn(tmp_path):
    runs = [open_run(make_run(tmp_path / str(seed), n, seed=seed)) for seed, n in enumerate((9, 9, 1, 5, 7))]
    for chosen, mean, thin in (
        (runs[:2], "mean of the runs;", False),
        (runs[:3], "mean of the runs that have come so far, where more than half have;", False),
        (runs, "mean of the runs that have come so far, where more than half have;", True),
        (runs[3:], "mean of the runs that have come so far, where more than half have;", True),
    ):
        figure = figures.overview(chosen)
        (explained,) = [legend.get_title().get_text() for legend in figure.legends]
        assert explained.startswith(f"{mean} band: minimum to maximum")
        assert ("thin lines" in explained) == thin == (len(figure.axes[0].lines) > 3)
    assert not figures.overview(runs[:1]).legends
    ess, kl = figures.overview([open_run(make_run(tmp_path / "k", 5, iw_updates=2))]).axes[3:]
    assert "quartile" in ess.get_xlabel()
    assert "quartile" in kl.get_xlabel()


# -- command line --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pictures_of_a_run_that_goes_on_and_one_that_was_killed(tmp_path):
    """As a program of its own, without MPI, while another process has the log open, and after it was killed."""
    command = [sys.executable, str(launch.PROGRAMS / "log_writer.py"), str(tmp_path / "run"), "5", "synthetic", "wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=launch.environment()) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        for state in ("going on", "killed"):
            if state == "killed":
                writer.kill()
                writer.wait()
            output = tmp_path / f"{state}.png"
            outcome = launch.plain("plot_lightly.py", str(tmp_path / "run"), "-o", str(output), timeout=60)
            assert outcome.code == 0, outcome.err
            assert output.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_every_format_and_option(tmp_path, capsys):
    runs = [str(make_run(tmp_path / str(seed), 12, iw_updates=1, seed=seed)) for seed in (1, 2)]
    for suffix, start in (("pdf", b"%PDF"), ("svg", b"<?xml")):
        output = tmp_path / f"figure.{suffix}"
        assert plot.main([*runs, "-o", str(output), "--x", "iterations", "--band", "quartiles"]) == 0
        assert output.read_bytes().startswith(start)
    captured = capsys.readouterr()
    assert "2 runs of 1 setting" in captured.out
    assert captured.err == ""


def test_a_run_given_twice_is_one_run(tmp_path, capsys, monkeypatch):
    make_run(tmp_path / "run", 3)
    make_run(tmp_path / "other", 3, seed=2)
    (tmp_path / "link").symlink_to("run")
    monkeypatch.chdir(tmp_path)
    runs = read_runs(["run", "run/", str(tmp_path / "run"), "link", "other"], "plot")
    assert [run.config.seed for run in runs] == [Config().seed, 2]
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 3
    assert all(note.startswith("iwes_mpi.plot: left out: ") and "more than once" in note for note in notes)


def test_a_sweep_that_is_going_on_is_drawn_without_what_cannot_be_read(tmp_path, capsys):
    make_run(tmp_path / "run", 3)
    make_run(tmp_path / "no rows", 0)
    (make_run(tmp_path / "damaged", 1) / "log.h5").write_bytes(b"nonsense")
    (tmp_path / "not started").mkdir()
    (tmp_path / "notes.txt").write_text("a file among the runs")
    paths = sorted(map(str, tmp_path.iterdir()))
    assert len(read_runs(paths, "plot")) == 1
    notes = capsys.readouterr().err.splitlines()
    for note, name in zip(notes, ("damaged", "no rows", "not started", "notes.txt"), strict=True):
        assert note.startswith("iwes_mpi.plot: left out: ")
        assert name in note
    with pytest.raises(WrongInput, match=r"nothing to plot: .*damaged.* \(and 1 more\)$"):
        read_runs([str(tmp_path / "damaged"), str(tmp_path / "no rows")], "plot")
    assert capsys.readouterr().err == "", "the error says it all"


def test_what_is_wrong_is_said_in_one_line(tmp_path, capsys):
    run, empty = str(make_run(tmp_path / "run", 1)), str(make_run(tmp_path / "empty", 0))
    output = ["-o", str(tmp_path / "x.png")]
    damaged = Path(make_run(tmp_path / "damaged", 1))
    (damaged / "log.h5").write_bytes(b"nonsense")
    for arguments, named in (
        ([], "no run"),
        (output, "no run"),
        ([run], "--output"),
        ([run, "-o", "x.doc"], "--output"),
        ([run, "-o", str(tmp_path / "no" / "x.png")], "--output"),
        ([run, *output, "--x", "time"], "--x"),
        ([run, *output, "--dpi", "0"], "--dpi"),
        ([run, str(tmp_path / "nothing"), *output], "nothing"),
        ([str(damaged), *output], "damaged"),
        ([str(damaged / "log.h5"), *output], "not a run directory"),
        ([empty, *output], "nothing to plot"),
        ([run, "--color", *output], "--color"),
    ):
        with pytest.raises(WrongInput) as error:
            plot.main(arguments)
        told = plot.build_parser().describe(error.value)
        assert named in told
        assert "\n" not in told
    assert not (tmp_path / "x.png").exists()
    assert capsys.readouterr().err == ""


def test_without_runs_the_program_ends_with_two():
    outcome = subprocess.run(
        [sys.executable, "-m", "iwes_mpi.plot"], capture_output=True, text=True, timeout=60, check=False
    )
    assert outcome.returncode == 2
    assert outcome.stderr == "iwes_mpi.plot: error: RUN: no run is given; name one or more run directories\n"


def test_without_matplotlib_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(WrongInput, match=r"pip install 'iwes_mpi\[plot\]'"):
        plot.main([str(make_run(tmp_path / "run", 1)), "-o", str(tmp_path / "x.png")])
