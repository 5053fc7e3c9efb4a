"""Options beyond the paper, each in a short run: the same bits on any number of ranks, natively or not, and resumed.

The runs of one number of ranks share a process per rank, as the golden runs do (golden_runs.py); what each option does
is tested elsewhere, by formulas. Whitening and importance mixing have such runs in their own files. On 3 and 4 ranks
every other run is made; with ``IWES_GOLDEN_RANKS=all`` all of them are.
"""

import os
import shlex
from functools import cache

import numpy as np
import pytest
from golden_runs import run_all

from iwes_mpi import open_run

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
_OTHERS = (
    "--max-kl 0.5 --shaping top-directions --top-share 0.5 --sigma-schedule cosine --schedule-iterations 4 "
    "--learning-rate-schedule linear --episode-schedule survivors "
)
_CONTROL = "--repeat-gradient --common-random-numbers --episode-schedule follow --eval-every 0 --iterations 24 "
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
    "others": _CHEETAH + _OTHERS,
    "others, through Gymnasium": _CHEETAH + _OTHERS + "--rollouts gymnasium",
    "control": _CHEETAH + _CONTROL,
    "control, through Gymnasium": _CHEETAH + _CONTROL + "--rollouts gymnasium",
    "agreement": _CHEETAH + "--episode-schedule agreement --iterations 24",
    "follow": _CHEETAH + "--episode-schedule follow",
    "evaluation within a tenth": _CHEETAH + "--eval-every 0 --iterations 12",
}
RUNS = {name: [shlex.split(flags)] for name, flags in OPTIONS.items()} | {
    "many, resumed": [shlex.split(OPTIONS["many"] + " --iterations 2"), ["--resume", "--iterations", "4"]],
    "others, resumed": [shlex.split(OPTIONS["others"] + " --iterations 2"), ["--resume", "--iterations", "4"]],
    "control, resumed": [shlex.split(OPTIONS["control"] + " --iterations 17"), ["--resume", "--iterations", "24"]],
    "agreement, resumed": [shlex.split(OPTIONS["agreement"] + " --iterations 7"), ["--resume", "--iterations", "24"]],
    "reuse-batches, resumed": [
        shlex.split(OPTIONS["reuse-batches"] + " --iterations 1"),
        ["--resume", "--iterations", "3"],
        ["--resume", "--iterations", "4"],
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the runs lie, by number of ranks."""
    return tmp_path_factory.mktemp("options")


@pytest.fixture(scope="module")
def results(folder):
    """What came of the runs on a number of ranks, by name; they are made once."""

    @cache
    def made(ranks):
        (folder / str(ranks)).mkdir()
        # Ranks that share cores spend most of their time waiting: every other run on 3, the rest on 4.
        whole = ranks == 1 or os.environ.get("IWES_GOLDEN_RANKS") == "all"
        share = {name: RUNS[name] for number, name in enumerate(RUNS) if whole or number % 2 == ranks % 2}
        return run_all(ranks, share, folder / str(ranks))

    return made


@pytest.fixture
def iterations(folder, results):
    """The table of iterations in the log of a run on one rank, by its name."""

    def read(name):
        results(1)
        return open_run(folder / "1" / "runs" / f"{list(RUNS).index(name):02}").iterations

    return read


@pytest.mark.parametrize("ranks", [3, 4])
def test_the_number_of_ranks_changes_no_bit(ranks, results):
    alone = results(1)
    assert [name for name, result in results(ranks).items() if result != alone[name]] == []


def test_resuming_and_gymnasium_change_no_bit(results):
    alone = results(1)
    for name, found in alone.items():
        assert found == alone[name.split(",")[0]], name


@pytest.mark.parametrize("name", ["many", "many, through Gymnasium", "others", "control", "agreement"])
def test_the_cap_is_for_the_population_alone(name, iterations):
    """HalfCheetah's episodes end at a limit only: at the cap, or at the 40 steps of whole ones."""
    found = iterations(name)
    np.testing.assert_array_equal(found["episode_length_mean"], found["episode_cap"])
    assert found["episode_cap"].min() < 40
    assert set(np.diff(found["eval_env_steps"], prepend=0).tolist()) - {0} == {40}


def test_the_cap_grows_by_agreement(iterations):
    assert iterations("agreement")["episode_cap"].nunique() > 1


@pytest.mark.parametrize("name", ["evaluation within a tenth", "control"])
def test_evaluation_stays_within_a_tenth(name, iterations):
    found = iterations(name)
    share = found["eval_env_steps"] / (found["env_steps"] + found["eval_env_steps"])
    assert 0.04 < share.max() <= 0.1


def test_every_option_makes_a_difference(results):
    found = {name: tuple(results(1)[name]["theta_digest"]) for name in OPTIONS if "through" not in name}
    assert len(set(found.values())) == len(found)
