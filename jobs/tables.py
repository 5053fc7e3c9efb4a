"""Print a table of runs: python jobs/tables.py paper > jobs/paper.tsv (or another name).

One row per run; row n is element n of a job array by jobs/table.sbatch. Columns other than figure and run_dir are
settings, as flags of iwes_mpi.train.

    python jobs/tables.py grid runs/sweep config=jobs/scaled/linear.toml iw_updates=0,2,4 seed=1-3 > sweep.tsv

prints a table of your own: a run for every combination of the settings' values, below the folder that is named first.
1-3 is 1, 2 and 3; of a setting whose values have commas, give one value only. The last setting varies slowest: with the
seed last, each part of the table has as many seeds of each setting.

=================  ===========================================================================================
paper              figures 1, 2 and 4 of Campos et al. (2018) at the paper's size
scaled             the same figures on a laptop: HalfCheetah-v5 cut to 200 steps, small policies, with the paper's
                   d / n_pairs (2.4) and learning_rate · √d / sigma (0.54 at the low rate); figure 1 on Ant as well
reference          environment steps to the returns of Salimans et al. (2017), by ES and by IW-ES
sample_efficiency  environment steps to a return, by ES and by IW-ES with the settings that jobs/tune.py has found,
                   and seeds that it has not seen
options            what one option more brings on HalfCheetah, by the environment steps to a return
populations        HalfCheetah with a large population, for a cluster, by ES and by IW-ES
controls           what else may be behind the gain of IW-ES: a higher rate, less momentum, ARS V2-t
=================  ===========================================================================================
"""

import re
import sys
from collections.abc import Callable, Iterator
from itertools import product

Row = tuple[object, ...]
SEEDS = range(1, 6)
IW_UPDATES = range(6)  # K

# Settings that `options` changes one at a time, and their values where it does not.
OPTIONS: dict[str, object] = {
    "common_random_numbers": "true", "weigh_pairs": "false", "cross_fit": "false", "reuse_batches": 1,
    "importance_mixing": "none",
}  # fmt: skip

COLUMNS = {
    "paper": ("figure", "run_dir", "preset", "iw_updates", "learning_rate", "seed", "iterations"),
    "scaled": ("figure", "run_dir", "config", "iw_updates", "learning_rate", "seed", "iterations"),
    "reference": ("figure", "run_dir", "config", "iw_updates", "learning_rate", "seed"),
    "sample_efficiency": ("figure", "run_dir", "config", "seed"),
    "options": ("figure", "run_dir", "config", "stop_at_return", "max_env_steps", *OPTIONS, "seed"),
    "controls": ("figure", "run_dir", "config", "seed"),
    "populations": (
        "figure",
        "run_dir",
        "config",
        "stop_at_return",
        "max_env_steps",
        "n_pairs",
        "iw_updates",
        "step_in_sigma",
        "seed",
    ),
}


def paper() -> Iterator[Row]:
    """Figures 1, 2 and 4; 1000 iterations are our choice: about 10^10 steps where every episode lasts 1000."""
    presets = {64: "paper-ant", 256: "paper-ant-256", 512: "paper-ant-512"}
    settings = [(1, 64, "1e-4"), (2, 256, "1e-4"), (2, 512, "1e-4"), (4, 64, "1e-3"), (4, 64, "1e-2")]
    for figure, units, rate in settings:
        for k in IW_UPDATES:
            for seed in SEEDS:
                run_dir = f"runs/paper/ant-{units}-K{k}-lr{rate}-seed{seed}"
                yield figure, run_dir, presets[units], k, rate, seed, 1000


def scaled() -> Iterator[Row]:
    """Seeds outermost: after every fifth of a figure's runs, each setting has as many seeds as the others."""

    def row(figure: int, policy: str, k: int, rate: float, seed: int, iterations: int) -> Row:
        run_dir = f"runs/scaled/{policy}-K{k}-lr{rate:g}-seed{seed}"
        return figure, run_dir, f"jobs/scaled/{policy}.toml", k, f"{rate:g}", seed, iterations

    low = 5.2e-3  # the low rate of the linear policy
    for seed in SEEDS:
        for k in IW_UPDATES:
            yield row(1, "linear", k, low, seed, 100)
    for seed in SEEDS:
        for factor in (3, 6, 9, 18, 27, 54):  # also the control: K = 2 and 5 at a rate against ES at 3 and 6 times it
            yield row(4, "linear", 0, factor * low, seed, 40)
        for k in (2, 5):
            for factor in (3, 9, 27):
                yield row(4, "linear", k, factor * low, seed, 40)
    for policy, rate, iterations, updates in (("8x8", 3.3e-3, 50, (0, 1, 3, 5)), ("16x16", 2.1e-3, 30, (0, 3))):
        for seed in SEEDS:
            for k in updates:
                yield row(2, policy, k, rate, seed, iterations)
    for seed in (1, 2, 3):  # the paper's own task
        for k in IW_UPDATES:
            run_dir = f"runs/scaled/ant-linear-K{k}-seed{seed}"
            yield "1-ant", run_dir, "jobs/scaled/ant-linear.toml", k, "9.1e-4", seed, 25


def reference() -> Iterator[Row]:
    """ES and IW-ES; where ES does best with steps too large for reuse, IW-ES makes three of a third."""
    tasks = {  # learning rates of ES and of IW-ES with K = 2
        "InvertedPendulum-v5": ("5e-2", "5e-2"),
        "InvertedDoublePendulum-v5": ("2e-2", "2e-2"),
        "Swimmer-v5": ("2e-2", "2e-2"),
        "HalfCheetah-v5": ("1.5e-2", "5e-3"),
        "Hopper-v5": ("2e-2", "7e-3"),
        "Walker2d-v5": ("1e-2", "3.3e-3"),
    }
    for task, rates in tasks.items():
        for seed in SEEDS:
            for k, rate in zip((0, 2), rates, strict=True):
                run_dir = f"runs/reference/{task}-K{k}-seed{seed}"
                yield "reference", run_dir, f"jobs/reference/{task}.toml", k, rate, seed


def sample_efficiency() -> Iterator[Row]:
    """Ten seeds of each task; the methods take turns, so that a part of the runs compares as many of each.

    The control ``repeat`` has the settings of IW-ES, but repeats the first gradient without weights.
    """
    tasks = ("halfcheetah", "swimmer", "inverted-double-pendulum", "hopper", "walker2d", "ant", "reacher", "pusher")
    for task in (*tasks, "humanoid", "inverted-pendulum"):
        first = 100 if task in ("halfcheetah", "swimmer") else 210  # none that a search or a hand has tried
        for seed in range(first, first + 10):
            for method in ("es", "iwes", "repeat"):
                run_dir = f"runs/sample_efficiency/{task}-{method}-seed{seed}"
                yield task, run_dir, f"jobs/sample_efficiency/{task}-{method}.toml", seed
    for seed in range(230, 250):  # a third try, with settings searched for this return alone, and twenty seeds
        for method in ("es", "iwes", "repeat"):
            run_dir = f"runs/halfcheetah_2386/halfcheetah-{method}-seed{seed}"
            yield "halfcheetah-2386", run_dir, f"jobs/sample_efficiency/halfcheetah-2386-{method}.toml", seed
    for seed in range(310, 320):  # another try
        for method in ("es", "iwes", "repeat"):
            run_dir = f"runs/halfcheetah_reuse/halfcheetah-{method}-seed{seed}"
            yield "halfcheetah-reuse", run_dir, f"jobs/sample_efficiency/halfcheetah-reuse-{method}.toml", seed


def options() -> Iterator[Row]:
    """Ten seeds; the options take turns."""
    tried: list[dict[str, object]] = [
        {}, {"common_random_numbers": "false"}, {"weigh_pairs": "true"}, {"cross_fit": "true"}, {"reuse_batches": 2},
        {"importance_mixing": 0.1},
    ]  # fmt: skip
    for seed in range(300, 310):
        for changed in tried:
            name = "".join(f"-{setting}-{value}" for setting, value in changed.items()) or "-none"
            run_dir = f"runs/options/halfcheetah{name}-seed{seed}"
            config = "jobs/sample_efficiency/halfcheetah-iwes.toml"
            yield "options", run_dir, config, 2385.79, 250_000, *(OPTIONS | changed).values(), seed


def controls() -> Iterator[Row]:
    """What else may be behind IW-ES's gain, with the seeds of `sample_efficiency`; the controls take turns.

    ``rate`` and ``momentum`` have the settings of IW-ES without further updates, and the rate times, or Adam's beta1 to
    the power of, the updates that IW-ES makes of a population. ``ars`` is ARS V2-t as published, which has no settings
    for the pendulum. ``healthy`` is plain ES on Walker2d, trained with a fifth of the reward for being healthy.
    """
    for task in ("halfcheetah", "swimmer", "hopper", "inverted-double-pendulum"):
        first = 100 if task in ("halfcheetah", "swimmer") else 210
        for seed in range(first, first + 10):
            for control in ("rate", "momentum", "ars"):
                if (task, control) != ("inverted-double-pendulum", "ars"):
                    run_dir = f"runs/controls/{task}-{control}-seed{seed}"
                    yield task, run_dir, f"jobs/sample_efficiency/{task}-{control}.toml", seed
    for seed in range(210, 215):
        run_dir = f"runs/controls/walker2d-healthy-seed{seed}"
        yield "walker2d", run_dir, "jobs/sample_efficiency/walker2d-healthy.toml", seed


def populations() -> Iterator[Row]:
    """Eight times the population of `sample_efficiency`, at its rate and at three times it; the settings take turns."""
    for seed in range(320, 325):
        for k in (0, 8):
            for step in (1.6, 4.8):
                run_dir = f"runs/populations/halfcheetah-n64-K{k}-step{step}-seed{seed}"
                config = "jobs/sample_efficiency/halfcheetah-iwes.toml"
                yield "populations", run_dir, config, 2385.79, 1_500_000, 64, k, step, seed


TABLES: dict[str, Callable[[], Iterator[Row]]] = {
    "paper": paper, "scaled": scaled, "reference": reference, "sample_efficiency": sample_efficiency,
    "options": options, "controls": controls, "populations": populations,
}  # fmt: skip


def lines(name: str) -> Iterator[str]:
    """The lines of a table, heading first."""
    for row in (COLUMNS[name], *TABLES[name]()):
        yield "\t".join(str(value) for value in row)


def values(text: str) -> list[str]:
    """The values of one setting of a grid: 1-3, or 0,2,4, or one as it is; JSON is never taken apart."""
    if text[:1] in "{[":
        return [text]
    if span := re.fullmatch(r"(\d+)-(\d+)", text):
        return [str(value) for value in range(int(span[1]), int(span[2]) + 1)]
    return text.split(",")


def grid(folder: str, settings: list[str]) -> Iterator[str]:
    """The lines of a table with a run for every combination of some settings' values, given as name=values.

    Raises
    ------
    ValueError
        If a setting has no name or no value, or comes twice.
    """
    names, choices = [], []
    for text in settings:
        name, separator, given = text.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if not separator or not name or not all(found := values(given)):
            raise ValueError(f"{text!r} is not a setting with values, such as iw_updates=0,2")
        if name in (*names, "run_dir", "figure"):
            raise ValueError(f"{name} " + ("comes twice" if name in names else "is not a setting"))
        names.append(name)
        choices.append(found)
    if not names:
        raise ValueError("no setting is given")
    varying = [name for name, found in zip(names, choices, strict=True) if len(found) > 1]
    yield "\t".join(["run_dir", *names])
    for combination in product(*reversed(choices)):
        row = dict(zip(names, reversed(combination), strict=True))
        called = "-".join(f"{name}{re.sub(r'[^A-Za-z0-9.+-]+', '_', row[name])}" for name in varying) or "run"
        yield "\t".join([f"{folder}/{called}", *row.values()])


def main(arguments: list[str]) -> int:
    """Print the table that a command line asks for; 2 if it is wrong."""
    if arguments[:1] == ["grid"] and len(arguments) > 1:
        try:
            print("\n".join(grid(arguments[1].rstrip("/"), arguments[2:])))
        except ValueError as error:
            print(f"tables.py: error: {error}", file=sys.stderr)
            return 2
        return 0
    if len(arguments) != 1 or arguments[0] not in TABLES:
        print(f"usage: python jobs/tables.py {{{','.join(TABLES)}}}, or grid FOLDER SETTING=VALUES …", file=sys.stderr)
        return 2
    print("\n".join(lines(arguments[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
