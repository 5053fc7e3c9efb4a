"""Time from launch to the first episode: compiled before, not compiled, and with many ranks to a core.

    python benchmarks/startup.py [--ranks 2 16] [--rounds 3] [--env-id HalfCheetah-v5] [--noise-table-size N]

Launches whole training runs and notes, on each rank, when it asks for its first episode; the last rank counts. All
of it is in there: the launcher, imports, reading the settings, compiling or loading, and filling the noise table.
"cold" starts from an empty cache directory, "warm" from the one that leaves behind. Beside the wall clock stands the
CPU time that the ranks together have taken by then, and that over the number of cores: what the wall clock could be
without other work on the machine, if nothing were serial. For more ranks than cores, 0.6 of the first figure, times
how many more ranks share a core, is allowed; the exit code is 1 if any case takes longer than it may.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any


def launch(ranks: int, cache: Path, arguments: list[str]) -> tuple[float, float]:
    """One run: seconds from launch until the last rank's first episode, and CPU seconds of all ranks until then."""
    with tempfile.TemporaryDirectory() as folder:
        marks = Path(folder) / "marks"
        variables = os.environ | {"NUMBA_CACHE_DIR": str(cache), "IWES_STARTUP_MARKS": str(marks)}
        mpirun = str(Path(sys.executable).parent / "mpirun")
        begin = time.time()
        command = [mpirun, "-n", str(ranks), sys.executable, __file__, "--as-rank", *arguments]
        subprocess.run([*command, "--run-dir", folder + "/run"], env=variables, check=True)
        found = [json.loads(line) for line in marks.read_text().splitlines()]
    assert len(found) == ranks, "some rank never began"
    return max(mark[0] for mark in found) - begin, sum(mark[1] for mark in found)


def _as_rank(arguments: list[str]) -> None:
    """``python -m iwes_mpi.train`` that notes when it asks for its first episode."""
    from iwes_mpi.mpi.queue import WorkQueue

    original = WorkQueue.items

    def items(self: Any, *lengths: int, **options: Any) -> Any:
        WorkQueue.items = original  # type: ignore[method-assign]
        with open(os.environ["IWES_STARTUP_MARKS"], "a") as marks:
            marks.write(json.dumps([time.time(), sum(os.times()[:4])]) + "\n")
        return original(self, *lengths, **options)

    WorkQueue.items = items  # type: ignore[method-assign]
    from iwes_mpi.mpi.program import run_program
    from iwes_mpi.settings.command_line import build_parser
    from iwes_mpi.train import train

    sys.argv[1:] = arguments
    run_program("iwes_mpi.train", build_parser, train)


def main() -> int:
    """Print a line per case: medians over the rounds; 1 if one takes too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--env-id", default="HalfCheetah-v5")
    parser.add_argument("--noise-table-size", default="none", help="[none: the default, 250 million]")
    options = parser.parse_args()
    arguments = [
        *("--env-id", options.env_id, "--noise-table-size", options.noise_table_size, "--n-pairs", "8"),
        *("--n-eval", "2", "--eval-every", "1"),
        *("--min-env-steps", "0", "--max-episode-steps", "10", "--iterations", "1", "--iw-updates", "1"),
        *("--display", "none"),
    ]
    cores = len(os.sched_getaffinity(0))
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            found.setdefault(("cold", options.ranks[0]), []).append(launch(options.ranks[0], Path(cache), arguments))
            for ranks in options.ranks:
                found.setdefault(("warm", ranks), []).append(launch(ranks, Path(cache), arguments))
    print(f"{options.env_id}, {cores} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'cache':5}  {'ranks':>5}  {'wall s':>7}  {'CPU s':>6}  {'CPU s/cores':>11}  {'CPU s/rank':>10}  allowed s")
    first = median(wall for wall, _ in found["warm", options.ranks[0]])
    late = 0
    for (kind, ranks), times in found.items():
        wall, cpu = (median(values) for values in zip(*times, strict=True))
        share = max(1.0, ranks / cores) / max(1.0, options.ranks[0] / cores)
        allowed = 20.0 if kind == "cold" else 5.0 if ranks == options.ranks[0] else 0.6 * first * share
        figures = f"{wall:7.2f}  {cpu:6.2f}  {cpu / min(ranks, cores):11.2f}  {cpu / ranks:10.2f}  {allowed:9.1f}"
        print(f"{kind:5}  {ranks:5}  {figures}")
        late += wall > allowed
    return min(late, 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-rank"]:
        _as_rank(sys.argv[2:])
    sys.exit(main())
