"""Options beyond the paper, each in a short run: the same bits on any number of ranks, natively or not, and resumed.

The runs of one number of ranks share a process per rank, as the golden runs do (golden_runs.py); what each option does
is tested elsewhere, by formulas. Whitening and importance mixing have such runs in their own files.
"""

import shlex
from functools import cache

import pytest
from golden_runs import run_all

pytestmark = [pytest.mark.mpi, pytest.mark.slow]

_DRIFT = (
    "--display none --env-id environments:Drift-v0 --hidden-sizes 4 --iterations 4 --n-pairs 6 --n-eval 1 "
    "--eval-every 1 --noise-table-size 200000 --iw-updates 3 --min-ess 0 "
)
_CHEETAH = (
    "--display none --env-id HalfCheetah-v5 --iterations 4 --n-pairs 4 --n-eval 1 --eval-every 1 --min-ess 0.2 "
    "--max-episode-steps 40 --noise-table-size 200000 --iw-updates 3 --train-episode-steps 5 "
)
_MANY = "--reuse-batches 2 --cross-fit --weigh-pairs --max-step 0.5 --shaping log-rank --optimizer clipup "
_GROWING = "--train-episode-steps 4 --episode-schedule "

OPTIONS = {
    "none": _DRIFT,
    "step-in-sigma": _DRIFT + "--step-in-sigma 0.3",
    "max-step": _DRIFT + "--max-step 0.4",
    "max-kl": _DRIFT + "--max-kl 0.3",
    "cross-fit": _DRIFT + "--cross-fit",
    "weigh-pairs": _DRIFT + "--weigh-pairs",
    "repeat-gradient": _DRIFT + "--repeat-gradient",
    "reuse-batches": _DRIFT + "--reuse-batches 3",
    "clipup": _DRIFT + "--optimizer clipup",
    "log-rank": _DRIFT + "--shaping log-rank",
    "top-directions": _DRIFT + "--shaping top-directions --top-share 0.5",
    "sigma-schedule": _DRIFT + "--sigma-schedule cosine --schedule-iterations 4 --reuse-batches 2",
    "learning-rate-schedule": _DRIFT + "--learning-rate-schedule linear --schedule-iterations 4",
    "constant": _DRIFT + _GROWING + "constant",
    "budget": _DRIFT + _GROWING + "budget --episode-budget 200",
    "survivors": _DRIFT + _GROWING + "survivors --reuse-batches 2",
    "many": _CHEETAH + _MANY + "--episode-schedule budget --episode-budget 150",
    "many, through Gymnasium": _CHEETAH + _MANY + "--episode-schedule budget --episode-budget 150 --rollouts gymnasium",
    "follow": _CHEETAH + "--episode-schedule follow",
    "evaluation within a tenth": _CHEETAH + "--eval-every 0 --iterations 12",
}
RUNS = {name: [shlex.split(flags)] for name, flags in OPTIONS.items()} | {
    "many, resumed": [shlex.split(OPTIONS["many"] + " --iterations 2"), ["--resume", "--iterations", "4"]],
    "reuse-batches, resumed": [
        shlex.split(OPTIONS["reuse-batches"] + " --iterations 1"),
        ["--resume", "--iterations", "3"],
        ["--resume", "--iterations", "4"],
    ],
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What came of the runs on a number of ranks, by name; they are made once."""
    folder = tmp_path_factory.mktemp("options")

    @cache
    def made(ranks):
        (folder / str(ranks)).mkdir()
        # Ranks that share cores spend most of their time waiting: every other run on 3, the rest on 4.
        share = {name: RUNS[name] for number, name in enumerate(RUNS) if ranks == 1 or number % 2 == ranks % 2}
        return run_all(ranks, share, folder / str(ranks))

    return made


@pytest.mark.parametrize("ranks", [3, 4])
def test_the_number_of_ranks_changes_no_bit(ranks, results):
    alone = results(1)
    assert [name for name, result in results(ranks).items() if result != alone[name]] == []


def test_resuming_and_gymnasium_change_no_bit(results):
    alone = results(1)
    for name in ("many, resumed", "many, through Gymnasium"):
        assert alone[name] == alone["many"], name
    assert alone["reuse-batches, resumed"] == alone["reuse-batches"]


def test_every_option_makes_a_difference(results):
    found = {name: tuple(results(1)[name]["theta_digest"]) for name in OPTIONS if "through" not in name}
    assert len(set(found.values())) == len(found)
