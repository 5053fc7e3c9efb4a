"""Iterations of milliseconds: what share of them is spent in episodes, and what an episode of one step costs.

    python benchmarks/short_iterations.py [--ranks 2] [--rounds 3]

Trains HalfCheetah-v5 with a linear policy on two ranks and times the compiled call that runs an episode.

* **short**: iterations of 8 pairs of episodes of 100 steps, some 20 ms each. At least 0.9 of the ranks' time must be
  spent in episodes.
* **tiny**: iterations of 10^5 pairs of episodes of one step. Per episode and rank they may take `TINY_LIMIT` µs in all.

The exit code is 1 if a figure, in the median over the rounds, is missed. The first iterations of a run do not count.
A machine with other work to do gives worse figures: then ranks wait for each other.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

SHORT_LIMIT = 0.9  # share of the time in episodes
TINY_LIMIT = 35.0  # µs per episode and rank, the episode's own step included

COMMON = shlex.split(
    "--env-id HalfCheetah-v5 --hidden-sizes --min-env-steps 0 --n-eval 0 --noise-table-size 1000000 --display none "
    "--obs-stat-probability 1 --iw-updates 0 --sigma 0.02 --learning-rate 0.001"
)
CASES = {  # arguments, iterations that do not count, iterations that do
    "short": (["--n-pairs", "8", "--train-episode-steps", "100"], 10, 150),
    "tiny": (["--n-pairs", "100000", "--train-episode-steps", "1"], 1, 2),
}


def measure(ranks: int, case: str) -> dict[str, float]:
    """One run: seconds per iteration and rank in all, and in episodes; episodes per iteration and rank."""
    arguments, skipped, counted = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        marks = Path(folder) / "marks"
        variables = os.environ | {"IWES_MARKS": str(marks), "IWES_SKIPPED": str(skipped)}
        mpirun = str(Path(sys.executable).parent / "mpirun")
        command = [mpirun, "-n", str(ranks), sys.executable, __file__, "--as-rank", *COMMON, *arguments]
        command += ["--iterations", str(skipped + counted), "--run-dir", folder + "/run"]
        subprocess.run(command, env=variables, check=True)
        found = [json.loads(line) for line in marks.read_text().splitlines()]
        assert len(found) == ranks, "some rank has no figures"
    whole, inside, episodes = (sum(values) / ranks / counted for values in zip(*found, strict=True))
    return {"iteration": whole, "inside": inside, "episodes": episodes}


def _as_rank(arguments: list[str]) -> None:
    """``python -m iwes_mpi.train`` that times its episodes."""
    from iwes_mpi.method.es import EvolutionStrategies
    from iwes_mpi.rollouts.native import NativeRunner

    spent = [0.0, 0.0, 0]  # s in all since the skipped iterations, s in episodes, episodes
    clock = time.perf_counter
    compile_episode, iterate = NativeRunner._compile, EvolutionStrategies.iterate

    def compile_timed(self: Any) -> Any:
        run = compile_episode(self)

        def timed(*arguments: Any) -> Any:
            begin = clock()
            result = run(*arguments)
            spent[1] += clock() - begin
            spent[2] += 1
            return result

        return timed

    def iterate_counted(self: Any) -> Any:
        if self.state.iteration == int(os.environ["IWES_SKIPPED"]):
            spent[:] = [clock(), 0.0, 0]
        report = iterate(self)
        if self.state.iteration == self.config.iterations:
            with open(os.environ["IWES_MARKS"], "a") as marks:
                marks.write(json.dumps([clock() - spent[0], spent[1], spent[2]]) + "\n")
        return report

    NativeRunner._compile = compile_timed  # type: ignore[method-assign]
    EvolutionStrategies.iterate = iterate_counted  # type: ignore[method-assign]
    from iwes_mpi.mpi.program import run_program
    from iwes_mpi.settings.command_line import build_parser
    from iwes_mpi.train import train

    sys.argv[1:] = arguments
    run_program("iwes_mpi.train", build_parser, train)


def main() -> int:
    """Print both figures; 1 if one is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=[*CASES], default=[*CASES])
    options = parser.parse_args()
    missed = 0
    for case in options.cases:
        rounds = [measure(options.ranks, case) for _ in range(options.rounds)]
        if case == "short":
            share = median(found["inside"] / found["iteration"] for found in rounds)
            rest = median(found["iteration"] - found["inside"] for found in rounds)
            verdict = "PASS" if share >= SHORT_LIMIT else "FAIL"
            print(
                f"{verdict}  short: {share:.3f} of an iteration is spent in episodes (at least {SHORT_LIMIT}); "
                f"{1e3 * rest:.2f} ms of {1e3 * median(found['iteration'] for found in rounds):.1f} are not",
                flush=True,
            )
        else:
            each = 1e6 * median(found["iteration"] / found["episodes"] for found in rounds)
            inside = 1e6 * median(found["inside"] / found["episodes"] for found in rounds)
            verdict = "PASS" if each <= TINY_LIMIT else "FAIL"
            print(
                f"{verdict}  tiny: {each:.1f} µs per episode and rank (at most {TINY_LIMIT:.0f}), "
                f"of which {inside:.1f} in the episode",
                flush=True,
            )
        missed += verdict == "FAIL"
    return min(missed, 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-rank"]:
        _as_rank(sys.argv[2:])
    sys.exit(main())
