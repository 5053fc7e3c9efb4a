"""Memory that each rank has to itself, and what it is made of.

    python benchmarks/memory.py [--ranks 2]

Trains HalfCheetah-v5 with 64×64 units for a few iterations and reads, on each rank, the private memory that the kernel
counts (``/proc/self/smaps_rollup``): what another rank on the node adds, beside the noise table. Then one process
imports what a rank needs, step by step. Exits with 1 if a rank other than rank 0 has more than `LIMIT` MB. Code must be
compiled already, so a first run does not count.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

LIMIT = 95.0  # MB
SETTINGS = shlex.split(
    "--env-id HalfCheetah-v5 --hidden-sizes 64 64 --n-pairs 4 --iterations 4 --min-env-steps 0 --n-eval 0 "
    "--noise-table-size 1000000 --display none --max-episode-steps 20"
)
STEPS = (
    ("Python", "sys"),
    ("mpi4py and MPI", "iwes_mpi.mpi.process"),
    ("NumPy", "numpy.random"),
    ("llvmlite and Numba", "numba"),
    ("what Numba knows of NumPy", "iwes_mpi.compiled.jit"),
    ("Gymnasium", "gymnasium"),
    ("MuJoCo", "mujoco"),
    ("iwes_mpi", "iwes_mpi.method.rehearsal"),
)


def private() -> float:
    """MB that this process has changed and shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:")) / 1024


def _as_rank(arguments: list[str]) -> None:
    """``python -m iwes_mpi.train`` that tells its memory after the last iteration."""
    from iwes_mpi.method.es import EvolutionStrategies
    from iwes_mpi.method.report import Report

    iterate = EvolutionStrategies.iterate

    def measured(self: EvolutionStrategies) -> Report:
        report = iterate(self)
        if self.state.iteration == self.config.iterations:
            with open(os.environ["IWES_MARKS"], "a") as marks:
                marks.write(f"{self.world.rank} {private()}\n")
        return report

    EvolutionStrategies.iterate = measured  # type: ignore[method-assign]
    from iwes_mpi.mpi.program import run_program
    from iwes_mpi.settings.command_line import build_parser
    from iwes_mpi.train import train

    sys.argv[1:] = arguments
    run_program("iwes_mpi.train", build_parser, train)


def ranks_memory(ranks: int) -> dict[int, float]:
    """MB by rank."""
    with tempfile.TemporaryDirectory() as folder:
        marks = Path(folder) / "marks"
        mpirun = str(Path(sys.executable).parent / "mpirun")
        command = [mpirun, "-n", str(ranks), sys.executable, __file__, "--as-rank", *SETTINGS]
        subprocess.run(
            [*command, "--run-dir", folder + "/run"], env=os.environ | {"IWES_MARKS": str(marks)}, check=True
        )
        return {int(rank): float(mb) for rank, mb in map(str.split, marks.read_text().splitlines())}


def _print_steps() -> None:
    """Print what each import adds, in this process."""
    import importlib

    before = 0.0
    for label, module in STEPS:
        importlib.import_module(module)
        now = private()
        print(f"  {label:28}{now - before:6.1f}")
        before = now


def main() -> int:
    """Print the table; 1 if a rank has too much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    ranks_memory(options.ranks)  # compiles
    found = ranks_memory(options.ranks)
    print("MB private to a process, by what it has imported:", flush=True)
    subprocess.run([sys.executable, __file__, "--steps"], check=True)
    others = max(mb for rank, mb in found.items() if rank > 0)
    verdict = "PASS" if others <= LIMIT else "FAIL"
    print(f"{verdict}  in a run rank 0 has {found[0]:.0f} MB, the others {others:.0f} (at most {LIMIT:.0f})")
    return 0 if verdict == "PASS" else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-rank"]:
        _as_rank(sys.argv[2:])
    if sys.argv[1:2] == ["--steps"]:
        _print_steps()
        sys.exit(0)
    sys.exit(main())
