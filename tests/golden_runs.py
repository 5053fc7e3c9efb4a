"""The runs whose results are on record (test_golden.py): short, and together they go through every setting and task.

Each is a name and the flags of its stages; a later stage resumes what an earlier one left. A run whose flags change
gets another record, so never change one: add another. Names of runs are keys of the records in data/golden.
"""

import json
import os
import shlex
from pathlib import Path

import launch

# -- the package: the only place of this file that names it --------------------------------------------------
import iwes_mpi

PACKAGE = Path(iwes_mpi.__file__).parent.parent  # a working tree's tests start that tree's package
# ------------------------------------------------------------------------------------------------------------

COLD = 900  # s that one launch may take, when nothing is compiled yet and the cores are shared

# What a setting was by default when the records were begun.
_FORMER = (
    "--hidden-sizes 64 64 --n-pairs 5000 --min-env-steps 100000 --sigma 0.02 --obs-stat-probability 0.01 "
    "--learning-rate 0.01 --l2 0.005 --iw-updates 0 --min-ess 0 --n-eval 30 --eval-every 1 "
)
# The preset quickstart of that time.
_QUICKSTART = (
    _FORMER + "--env-id HalfCheetah-v5 --hidden-sizes --min-env-steps 0 --obs-stat-probability 1 --sigma 0.02 "
    "--learning-rate 0.01 --l2 0 --max-env-steps 6000000 --checkpoint-minutes 0.5 "
)

# A moment's work, with importance weights that count: the effective sample size is around a half.
_SMALL = (
    _FORMER + "--display none --iterations 2 --n-pairs 5 --min-env-steps 0 --n-eval 1 --max-episode-steps 20 "
    "--noise-table-size 200000 --hidden-sizes 4 --sigma 0.1 --learning-rate 0.01 --obs-stat-probability 0.3 "
)
_DRIFT = _SMALL + "--env-id environments:Drift-v0 --max-episode-steps 60 --iw-updates 3 --n-pairs 6 "
_LONGER = _SMALL + "--env-id HalfCheetah-v5 --iw-updates 2 --iterations 3 "
_RESUME = "--resume --iterations "

# Stopped after two of four iterations, and kept in data/checkpoint-v1: see test_old_files.py.
OLD = {
    "adam": _SMALL + "--env-id Hopper-v5 --max-episode-steps 40 --iw-updates 3 --clip inf --iterations 4 --n-eval 2",
    "sgd": _SMALL + "--env-id InvertedPendulum-v5 --hidden-sizes 3 --optimizer sgd --momentum 0.7 --learning-rate 0.05 "
    "--iw-updates 1 --center --iterations 4 --n-eval 1",
}

_STAGES: dict[str, tuple[str, ...]] = {
    # Every task of the native rollouts; linear policies, one hidden layer and two; plain ES and IW-ES.
    "HalfCheetah": (_SMALL + "--env-id HalfCheetah-v5 --iw-updates 3",),
    "HalfCheetah, 64 x 64": (
        _SMALL + "--env-id HalfCheetah-v5 --hidden-sizes 64 64 --sigma 0.02 --learning-rate 2e-4 --iw-updates 3",
    ),
    "Hopper, linear": (_SMALL + "--env-id Hopper-v5 --hidden-sizes --max-episode-steps 60",),
    "Walker2d": (_SMALL + "--env-id Walker2d-v5 --hidden-sizes 8 --max-episode-steps 60 --iw-updates 3",),
    "Ant-v5": (_SMALL + "--env-id Ant-v5",),
    "Ant-v4": (_SMALL + "--env-id Ant-v4 --hidden-sizes 16 16 --learning-rate 0.002 --iw-updates 3",),
    "Ant-v4 with contact forces": (
        _SMALL + """--env-id Ant-v4 --env-kwargs '{"use_contact_forces": true}' --learning-rate 0.003 --iw-updates 3""",
    ),
    "Humanoid": (_SMALL + "--env-id Humanoid-v5 --hidden-sizes 2 --learning-rate 0.003 --iw-updates 3",),
    "HumanoidStandup, linear": (_SMALL + "--env-id HumanoidStandup-v5 --hidden-sizes --max-episode-steps 8",),
    "Swimmer": (_SMALL + "--env-id Swimmer-v5 --iw-updates 3",),
    "Reacher": (_SMALL + "--env-id Reacher-v5 --iw-updates 3",),
    "Pusher": (_SMALL + "--env-id Pusher-v5",),
    "InvertedPendulum": (_SMALL + "--env-id InvertedPendulum-v5 --iw-updates 3 --max-episode-steps 100",),
    "InvertedDoublePendulum, linear": (
        _SMALL + "--env-id InvertedDoublePendulum-v5 --hidden-sizes --max-episode-steps 100 --iw-updates 3",
    ),
    # Through Gymnasium: the same task, and others with continuous and discrete actions.
    "HalfCheetah through Gymnasium": (_SMALL + "--env-id HalfCheetah-v5 --iw-updates 3 --rollouts gymnasium",),
    "Pendulum-v1": (_SMALL + "--env-id Pendulum-v1 --iw-updates 3",),
    "CartPole-v1": (_SMALL + "--env-id CartPole-v1 --max-episode-steps 40 --iw-updates 3",),
    "a discrete action that starts at -1": (_DRIFT + "--env-id environments:Choice-v0",),
    # Presets, as far as they fit into a moment.
    "paper-ant": (
        "--preset paper-ant --display none --iterations 2 --n-pairs 7 --n-eval 2 --max-episode-steps 20 "
        "--noise-table-size 200000",
    ),
    "quickstart": (
        _QUICKSTART + "--display none --iterations 2 --n-pairs 5 --n-eval 1 --max-episode-steps 20 "
        "--noise-table-size 200000",
    ),
    # From here on one setting at a time differs from the first of these.
    "Drift": (_DRIFT,),
    "K = 0": (_DRIFT + "--iw-updates 0",),
    "64 x 64": (_DRIFT + "--hidden-sizes 64 64 --learning-rate 1e-3",),
    "linear": (_DRIFT + "--hidden-sizes --learning-rate 0.03",),
    "one pair": (_DRIFT + "--n-pairs 1",),
    "13 pairs": (_DRIFT + "--n-pairs 13",),
    "further blocks of pairs": (_DRIFT + "--n-pairs 5 --min-env-steps 700",),
    "clip 0.5": (_DRIFT + "--clip 0.5",),
    "clip 3": (_DRIFT + "--clip 3",),
    "clip inf": (_DRIFT + "--clip inf",),
    "center": (_DRIFT + "--center",),
    "center, clip 0.5": (_DRIFT + "--center --clip 0.5 --n-pairs 7",),
    "center, clip inf": (_DRIFT + "--center --clip inf",),
    "density-ratio": (_DRIFT + "--weight-kernel density-ratio",),
    "density-ratio, clip 3": (_DRIFT + "--weight-kernel density-ratio --clip 3",),
    "precomputed": (_DRIFT + "--weight-kernel precomputed --hidden-sizes 32 32 --learning-rate 2e-3",),
    "precomputed, center, clip inf": (_DRIFT + "--weight-kernel precomputed --center --clip inf",),
    "weights on node": (_DRIFT + "--weights-on node",),
    "weights on root": (_DRIFT + "--weights-on root",),
    "weights on root, center, clip inf": (_DRIFT + "--weights-on root --center --clip inf",),
    "static schedule": (_DRIFT + "--schedule static",),
    "sgd": (_DRIFT + "--optimizer sgd --learning-rate 0.2",),
    "sgd without momentum, K = 0": (_DRIFT + "--optimizer sgd --learning-rate 0.1 --momentum 0 --iw-updates 0",),
    "standardize": (_DRIFT + "--shaping standardize",),
    "standardize, sgd": (_DRIFT + "--shaping standardize --optimizer sgd --learning-rate 0.05 --n-pairs 7",),
    "returns as they are": (_DRIFT + "--shaping none",),
    "without weight decay": (_DRIFT + "--l2 0",),
    "common random numbers": (_DRIFT + "--common-random-numbers",),
    "all observations": (_DRIFT + "--obs-stat-probability 1",),
    "no observations": (_DRIFT + "--obs-stat-probability 0",),
    "observations clipped, no action noise": (_DRIFT + "--obs-clip 0.5 --action-noise 0 --obs-stat-probability 1",),
    "min-ess": (_DRIFT + "--min-ess 0.7",),
    "max-kl": (_DRIFT + "--max-kl 0.2",),
    "overlap lost": (_DRIFT + "--learning-rate 1",),
    "the largest seed": (_DRIFT + "--seed 18446744073709551615",),
    "without evaluation": (_DRIFT + "--n-eval 0",),
    "log-population": (_DRIFT + "--log-population",),
    "train-env-kwargs": (
        _SMALL
        + """--env-id Hopper-v5 --iw-updates 3 --max-episode-steps 60 --train-env-kwargs '{"healthy_reward": 0}'""",
    ),
    # A run left alone, and the same run stopped and resumed.
    "uninterrupted": (_LONGER,),
    "resumed": (_LONGER + "--iterations 1", _RESUME + "2", _RESUME + "3"),
    "uninterrupted, sgd": (_LONGER + "--optimizer sgd --learning-rate 0.2 --center",),
    "resumed, sgd": (_LONGER + "--optimizer sgd --learning-rate 0.2 --center --iterations 2", _RESUME + "3"),
    **{f"checkpoint-v1, {name}": (flags,) for name, flags in OLD.items()},
}

RUNS = {name: [shlex.split(stage) for stage in stages] for name, stages in _STAGES.items()}

# Where there is no record, these have to do: the same bits on any number of ranks, at least.
FEW = ("HalfCheetah", "Drift", "precomputed, center, clip inf", "weights on node", "min-ess", "resumed")

# What a setting must not change: each of these has the record of the other.
SAME = {
    "HalfCheetah through Gymnasium": "HalfCheetah",
    "weights on node": "Drift",
    "weights on root": "Drift",
    "weights on root, center, clip inf": "center, clip inf",
    "static schedule": "Drift",
    "log-population": "Drift",
    "resumed": "uninterrupted",
    "resumed, sgd": "uninterrupted, sgd",
}


def run_all(ranks, rows, folder):
    """The results of runs by name, all made in one process per rank (programs/golden.py) in an existing folder.

    Parameters
    ----------
    ranks : int
    rows : dict
        The flags of each run's stages, as in `RUNS`.
    folder : Path
        A run resumes what lies in ``runs/<name>`` in it, if there is something.
    """
    (folder / "rows.json").write_text(json.dumps(rows))
    arguments = [str(folder / name) for name in ("rows.json", "runs", "results.json")]
    here = os.pathsep.join([str(launch.TESTS), str(PACKAGE)])
    # Two nodes are simulated with MPICH: `--weights-on node` is then half of the ranks.
    nodes = {"MPIR_CVAR_NUM_CLIQUES": "2"} if ranks == 4 else {}
    program = str(launch.TESTS / "programs" / "golden.py")
    outcome = launch.run(ranks, program, *arguments, timeout=COLD, PYTHONPATH=here, **nodes)
    assert outcome.code == 0, outcome.err
    return json.loads((folder / "results.json").read_text())
