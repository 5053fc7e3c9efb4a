"""Print the table of the paper's runs: python jobs/paper_table.py > jobs/paper.tsv.

One row per run, in the order of the figures; row n is element n of the job array of jobs/paper.sbatch.
"""

from collections.abc import Iterator

COLUMNS = ("figure", "run_dir", "preset", "iw_updates", "learning_rate", "seed", "iterations")
PRESETS = {64: "paper-ant", 256: "paper-ant-256", 512: "paper-ant-512"}
SETTINGS = [  # figure, hidden units, learning rate
    (1, 64, "1e-4"),
    (2, 256, "1e-4"),
    (2, 512, "1e-4"),
    (4, 64, "1e-3"),
    (4, 64, "1e-2"),
]
IW_UPDATES = range(6)  # K, in all three figures
SEEDS = range(1, 6)
ITERATIONS = 1000  # our choice: about 10^10 environment steps where every episode lasts 1000 steps


def rows() -> Iterator[tuple[str, ...]]:
    """The table's rows, without the heading."""
    for figure, units, learning_rate in SETTINGS:
        for k in IW_UPDATES:
            for seed in SEEDS:
                run_dir = f"runs/paper/ant-{units}-K{k}-lr{learning_rate}-seed{seed}"
                values = (figure, run_dir, PRESETS[units], k, learning_rate, seed, ITERATIONS)
                yield tuple(str(value) for value in values)


if __name__ == "__main__":
    for row in (COLUMNS, *rows()):
        print("\t".join(row))
