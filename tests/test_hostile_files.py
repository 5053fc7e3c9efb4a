"""Files that others made up: one line or what they hold, nothing from outside the file, and no more memory than it has.

All in one process: what is said is read from exceptions and from captured output.
"""

import contextlib
import io
import json
import os
import signal
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import checkpoints
import h5py
import numpy as np
import pytest
import synthetic
from rich.console import Console

import iwes_mpi
from iwes_mpi import plot
from iwes_mpi.files import checkpoint, record
from iwes_mpi.files.checkpoint import CheckpointError
from iwes_mpi.files.log import LOG
from iwes_mpi.files.reader import LogError
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput
from iwes_mpi.shown.view import frame, look

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "jobs"))
import status

MB = 1 << 20
ESCAPE = "\x1b]0;owned\x07\x1b[31m\r\u202e"
HUGE = 300_000_000  # rows


@contextlib.contextmanager
def at_most(seconds: int, n_bytes: int) -> Iterator[None]:
    """Fail if the block takes longer than a hard limit, or this process at some moment more memory than it had."""

    def late(*_: object) -> None:
        raise TimeoutError(f"still at it after {seconds} s")

    def memory(of: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(of))

    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    before, handler = memory("VmRSS"), signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    assert memory("VmHWM") - before <= n_bytes


def assert_fit_for_a_terminal(text: str, lines: bool = False) -> None:
    shown = text.replace("\n", "") if lines else text
    assert shown.isprintable(), text[:300]


def replace(group: h5py.Group, name: str, *made: Any, **options: Any) -> h5py.Dataset:
    """Another dataset under a name."""
    if name in group:
        del group[name]
    return group.create_dataset(name, *made, **options)


def link(group: h5py.Group, name: str, to: h5py.ExternalLink | h5py.SoftLink) -> None:
    if name in group:
        del group[name]
    group[name] = to


def virtual(file: h5py.File, name: str, source: Path, rows: int) -> None:
    """A dataset that shows another file's data."""
    layout = h5py.VirtualLayout((rows,), "i8")
    layout[:] = h5py.VirtualSource(str(source), "secret", (rows,))
    del file[name]
    file.create_virtual_dataset(name, layout)


def bomb(file: h5py.File) -> None:
    """A chunk of 80 bytes which inflates to 200 MB."""
    dataset = replace(file["iterations"], "sigma", (10,), "f8", chunks=(10,), compression="gzip")
    compressor = zlib.compressobj(9)
    zeros = bytes(MB)
    parts = [compressor.compress(zeros) for _ in range(200)]
    dataset.id.write_direct_chunk((0,), b"".join([*parts, compressor.flush()]))


ROWS = 10
# What is done to a log, and what must be said of it; "" if it is read all the same
LOGS: dict[str, tuple[Callable[[h5py.File, Path], Any], str]] = {
    "short": (lambda f, p: replace(f["iterations"], "sigma", data=np.zeros(3)), "has 3 rows instead of 10"),
    "two-dimensional": (lambda f, p: replace(f["iterations"], "sigma", data=np.zeros((10, 2))), "sigma has 2 dim"),
    "scalar": (lambda f, p: replace(f["iterations"], "iteration", data=3), "iteration has 0 dimensions"),
    "empty": (lambda f, p: replace(f["iterations"], "sigma", data=h5py.Empty("f8")), "sigma is empty"),
    "text": (lambda f, p: replace(f["iterations"], "sigma", data=["x"] * 10), "sigma does not hold numbers"),
    "compound": (lambda f, p: replace(f["iterations"], "sigma", (10,), "f8,i4"), "sigma does not hold numbers"),
    "complex": (lambda f, p: replace(f["iterations"], "sigma", (10,), "c16"), "sigma does not hold numbers"),
    "reals for integers": (lambda f, p: replace(f["iterations"], "ranks", (10,), "f8"), "of type float64"),
    "a group": (lambda f, p: (f["iterations"].pop("sigma"), f["iterations"].create_group("sigma")), "not an array"),
    "a table is an array": (lambda f, p: replace(f, "updates", data=[1]), "updates is not a group"),
    "no table": (lambda f, p: f.pop("updates"), "no table updates"),
    "no rows' numbers": (lambda f, p: f["updates"].pop("iteration"), "iteration is not there"),
    "numbers of rows": (lambda f, p: f["iterations/iteration"].write_direct(np.full(10, 5)), "not counted from 0"),
    "a circle": (lambda f, p: link(f, "updates", h5py.SoftLink("/updates")), "updates is a link"),
    "a soft link": (lambda f, p: link(f["updates"], "k", h5py.SoftLink("/updates/ess")), "k is a link"),
    "another file": (lambda f, p: link(f, "updates", h5py.ExternalLink(str(p / "other.h5"), "/")), "is a link"),
    "a pipe": (lambda f, p: link(f, "updates", h5py.ExternalLink(str(p / "pipe"), "/")), "updates is a link"),
    "a column in a pipe": (lambda f, p: link(f["iterations"], "k", h5py.ExternalLink(str(p / "pipe"), "/")), ""),
    "virtual": (lambda f, p: virtual(f, "updates/k", p / "other.h5", 20), "k keeps its data in another file"),
    "external": (
        lambda f, p: replace(f["iterations"], "sigma", (10,), "f8", external=[(str(p / "other.h5"), 0, 80)]),
        "sigma keeps its data in another file",
    ),
    "terabytes": (lambda f, p: f["iterations/sigma"].resize((2**45,)), ""),  # as many as there are iterations are read
    "terabytes of rows": (lambda f, p: f["iterations/iteration"].resize((2**45,)), "more than the file can hold"),
    "many rows": (lambda f, p: replace(f["iterations"], "iteration", (HUGE,), "i8", chunks=(512,)), "can hold"),
    "compressed": (
        lambda f, p: replace(f["updates"], "iteration", (HUGE,), "i8", chunks=(MB,), compression="gzip"), "can hold"
    ),
    "a chunk of gigabytes": (
        lambda f, p: replace(f["iterations"], "sigma", (10,), "f8", maxshape=(None,), chunks=(2**28,)), "can hold"
    ),
    "a bomb": (lambda f, p: bomb(f), "sigma is larger than it declares"),
    "no format": (lambda f, p: f.attrs.pop("format"), "is not a log of iwes_mpi"),
    "a format of numbers": (lambda f, p: f.attrs.__setitem__("format", [1, 2]), "is not a log of iwes_mpi"),
    "a format that a terminal obeys": (lambda f, p: f.attrs.__setitem__("format", f"iwes-mpi/{ESCAPE}"), "\\x1b]0;"),
    "a long format": (lambda f, p: f.attrs.__setitem__("format", "iwes-mpi/" + 60_000 * "x"), "has format"),
    "no configuration": (lambda f, p: f.attrs.pop("config"), "no valid configuration"),
}  # fmt: skip
CONFIGS = {
    "a number": 7,
    "no JSON": "{",
    "a list": "[]",
    "deep": "[" * 60_000,
    "deep settings": '{"env_kwargs": ' + '{"a": ' * 10_000 + "1" + "}" * 10_001,
    "digits": '{"sigma": 1' + "0" * 5000 + "}",
    "a large number": '{"sigma": 1' + "0" * 400 + "}",
    "other types": '{"n_pairs": "many"}',
    "unknown": json.dumps({ESCAPE: 1}),
    "escapes": json.dumps({"env_id": ESCAPE}),
    "a choice": json.dumps({"optimizer": ESCAPE}),
}
for what, text in CONFIGS.items():
    LOGS[f"configuration: {what}"] = (lambda f, p, t=text: f.attrs.__setitem__("config", t), "no valid configuration")
POPULATIONS = {
    "flat": lambda f, p: replace(f["population"], "returns", data=np.zeros(10)),
    "of three": lambda f, p: replace(f["population"], "returns", data=np.zeros((10, 3, 3))),
    "unlike": lambda f, p: replace(f["population"], "lengths", data=np.zeros((10, 4, 2), "i8")),
    "wide": lambda f, p: [
        replace(f["population"], name, (0, 2**40, 2), kind, maxshape=(None, None, 2), chunks=(1, 8, 2))
        for name, kind in (("returns", "f8"), ("lengths", "i8"))
    ],
    "elsewhere": lambda f, p: link(f, "population", h5py.ExternalLink(str(p / "pipe"), "/")),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with ten iterations, a file with secrets, and a pipe that nobody writes into."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "good").mkdir()
    synthetic.numbered_log(folder / "good" / LOG, ROWS, population={
        "returns": np.zeros((0, 3, 2)), "lengths": np.zeros((0, 3, 2), "i8")
    }).close()  # fmt: skip
    with h5py.File(folder / "other.h5", "w") as file:
        file["secret"] = np.arange(20)
        file.create_group("iterations")
    os.mkfifo(folder / "pipe")
    everything(folder / "good")  # imports
    return folder


def changed(place: Path, name: str, change: Callable[[h5py.File, Path], Any]) -> Path:
    """A copy of the good run to whose log something is done."""
    run_dir = place / name.replace(" ", "-").replace("/", "-")
    run_dir.mkdir()
    (run_dir / LOG).write_bytes((place / "good" / LOG).read_bytes())
    with h5py.File(run_dir / LOG, "r+", libver="latest") as file:
        change(file, place)
    return run_dir


def everything(run_dir: Path) -> iwes_mpi.files.run.Run:
    """All that a log holds, but for the population."""
    run = iwes_mpi.open_run(run_dir)
    _ = run.config, run.iterations, run.updates, run.finished
    return run


def screen(run_dir: Path) -> str:
    """What a terminal gets to see of a run from `watch`."""
    console = Console(width=100, file=io.StringIO(), record=True, force_terminal=False)
    console.print(frame(look(run_dir), run_dir, "env_steps", 4, 100, 30, False))
    return console.export_text()


def test_a_text_of_gigabytes_in_a_file_of_kilobytes(tmp_path: Path) -> None:
    path = tmp_path / LOG
    with h5py.File(path, "w", libver="earliest") as file:  # attributes without checksums
        file.attrs["format"], file.attrs["config"] = "iwes-mpi/1", "x" * 12345
    length = (12345).to_bytes(4, "little")
    data = path.read_bytes()
    assert data.count(length) == 2, "where the text is named, and where it lies"
    path.write_bytes(data.replace(length, (2**31 - 1).to_bytes(4, "little"), 1))
    with at_most(10, 100 * MB), pytest.raises(LogError, match="cannot be read"):
        iwes_mpi.open_run(tmp_path)


QUEUE = status.Queue({}, {}, False)


def test_logs_that_others_made(place: Path) -> None:
    wrong = []
    for name, (change, said) in LOGS.items():
        run_dir = changed(place, name, change)
        told = ""
        with at_most(20, (run_dir / LOG).stat().st_size + 100 * MB):
            try:
                everything(run_dir)
            except LogError as error:
                told = str(error)
            on_screen, row = screen(run_dir), status.report([status.inspect(run_dir, None, QUEUE, 60)])
        if (said not in told) or bool(said) != bool(told):
            wrong.append((name, said, told))
        assert_fit_for_a_terminal(told)
        assert_fit_for_a_terminal(on_screen, lines=True)
        assert_fit_for_a_terminal(row, lines=True)
        if said:
            assert "cannot be read just now" in " ".join(on_screen.split()), name  # long paths break lines
            assert row.splitlines()[1].startswith(("failed", "running")), name
    assert not wrong, "\n".join(map(str, wrong))


def test_populations_that_others_made(place: Path) -> None:
    for name, change in POPULATIONS.items():
        run = iwes_mpi.open_run(changed(place, f"population {name}", change))
        with at_most(20, 100 * MB), pytest.raises(LogError) as error:
            _ = run.population
        assert_fit_for_a_terminal(str(error.value))


@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
def test_what_is_no_file_is_not_opened(kind: str, place: Path) -> None:
    run_dir = place / f"is-a-{kind}"
    run_dir.mkdir()
    for name in (LOG, checkpoint.CURRENT, record.CONFIG, "slurm.log"):
        if kind == "pipe":
            os.mkfifo(run_dir / name)
        elif kind == "device":
            (run_dir / name).symlink_to("/dev/zero")
        else:
            (run_dir / name).mkdir()
    with at_most(5, 10 * MB):
        with pytest.raises(LogError, match=r"cannot be read: a (pipe or device|directory) is not a file"):
            iwes_mpi.open_run(run_dir)
        with pytest.raises(CheckpointError, match=r"cannot be read: a (pipe or device|directory) is not a file"):
            checkpoint.load_newest(run_dir)
        with pytest.raises(WrongInput, match=r"cannot be read: a (pipe or device|directory) is not a file"):
            record.recorded_config(run_dir)
        assert "cannot be read just now" in " ".join(screen(run_dir).split())
        assert status.inspect(run_dir, None, QUEUE, 60).state == "failed"


def test_numbers_out_of_all_proportion_are_drawn(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NaN, infinities, the largest and smallest numbers there are, in every column; and labels that are no formulas."""
    runs = []
    extremes = {"f8": [np.nan, np.inf, -np.inf, 1.7e308, -1.7e308, 5e-324, 0.0], "i8": [2**63 - 1, -(2**63), 0, -1]}
    for seed in range(3):
        rng = np.random.default_rng(seed)

        def extreme(file: h5py.File, _: Path, rng: np.random.Generator = rng, seed: int = seed) -> None:
            kwargs = {"name": [r"$\frac", "$a$", ESCAPE][seed]}
            file.attrs["config"] = Config(env_kwargs=kwargs, iterations=20, max_env_steps=5).to_json()
            for path in ("iterations", "updates"):
                for name, column in file[path].items():
                    if column.dtype.kind in "fi" and (path, name) != ("iterations", "iteration"):
                        column[...] = rng.choice(extremes[column.dtype.str[1:]], column.size)

        run_dir = changed(place, f"extreme {seed}", extreme)
        assert_fit_for_a_terminal(screen(run_dir), lines=True)
        runs.append(str(run_dir))
    with contextlib.suppress(WrongInput):
        plot.main([*runs, "-o", str(place / "figure.png")])
    told = capsys.readouterr()
    assert_fit_for_a_terminal(told.out + told.err, lines=True)


def altered(change: Callable[[h5py.File], Any], path: Path) -> Path:
    """A checkpoint with a right checksum to which something was done."""
    image = path / "image.h5"
    image.write_bytes(checkpoint.encode(checkpoints.example()))
    with h5py.File(image, "r+", libver="latest") as file:
        change(file)
    content = image.read_bytes()[512:]
    (path / checkpoint.CURRENT).write_bytes(checkpoint._header(checkpoint.VERSION, content) + content)
    return path


CHECKPOINTS: dict[str, Callable[[h5py.File], Any]] = {
    "huge theta": lambda f: replace(f, "theta", (HUGE,), "f8", chunks=(MB,), compression="gzip"),
    "declared theta": lambda f: replace(f, "theta", (2**45,), "f8", chunks=(512,)),
    "theta in two dimensions": lambda f: replace(f, "theta", data=np.zeros((4, 4))),
    "theta of text": lambda f: replace(f, "theta", data="zero"),
    "theta elsewhere": lambda f: link(f, "theta", h5py.ExternalLink("/dev/zero", "/")),
    "theta is a circle": lambda f: link(f, "theta", h5py.SoftLink("/theta")),
    "moments of another size": lambda f: replace(f["optimizer"], "m", data=np.zeros(3)),
    "negative iteration": lambda f: f.attrs.__setitem__("iteration", -1),
    "iteration of text": lambda f: f.attrs.__setitem__("iteration", ESCAPE),
    "no time": lambda f: f.attrs.__setitem__("wall_time", np.nan),
    "statistics of nothing": lambda f: replace(f, "obs_stats", data=np.zeros(0)),
    "a history of one row": lambda f: replace(f, "history", data=np.zeros((1, 3))),
    "evaluations in two dimensions": lambda f: replace(f, "recent_evaluations", data=np.zeros((1, 3))),
    "a population of no arrays": lambda f: f.create_dataset("drawn/0000/center", data=1),
    "a log of unequal columns": lambda f: replace(f["log/iterations"], "sigma", data=np.zeros(3)),
    "a log in two dimensions": lambda f: replace(f["log/iterations"], "sigma", data=np.zeros((5, 3))),
    "a log elsewhere": lambda f: link(f, "log", h5py.ExternalLink("/dev/zero", "/")),
    "no log": lambda f: f.pop("log"),
    "no configuration": lambda f: f.attrs.pop("config"),
    "a deep configuration": lambda f: f.attrs.__setitem__("config", "[" * 60_000),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_that_others_made(name: str, tmp_path: Path) -> None:
    path = altered(CHECKPOINTS[name], tmp_path) / checkpoint.CURRENT
    with at_most(10, path.stat().st_size + 100 * MB), pytest.raises(CheckpointError) as error:
        checkpoint.load(path)
    assert_fit_for_a_terminal(str(error.value))
    assert f"{path} cannot be understood: " in str(error.value)


def test_a_checkpoint_that_is_left_alone_loads(tmp_path: Path) -> None:
    found = checkpoint.load(altered(lambda f: None, tmp_path) / checkpoint.CURRENT)
    checkpoints.assert_equal(found, checkpoints.example())
