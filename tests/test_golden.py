"""Results do not change by a bit: some sixty short runs (golden_runs.py) against what is on record for this machine.

A change of code that changes no result passes here; one that changes results on purpose deletes the records that it
changes, and says so. With ``IWES_RECORD_GOLDEN=1`` what is not on record for this kind of machine yet is added to
data/golden/<key>.json (golden_record.py); results that are on record are compared all the same.

On a kind of machine without a record there is nothing to compare with: the test is left out and says how to make one.
That results are the same on 1, 3 and 4 ranks is then still shown, for a few runs. Every run is made
on 1 rank; those few and a quarter of the others on 3 ranks, another quarter on 4, which costs most of the time where
ranks share cores; all on both with ``IWES_GOLDEN_RANKS=all``.
"""

import json
import os
import subprocess
import sys
from functools import cache

import golden_record
import launch
import pytest
from golden_runs import COLD, FEW, RUNS, SAME, run_all

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(COLD + 60)]


def share(ranks):
    """The names of the runs to be made on so many ranks."""
    if golden_record.load() is None and not golden_record.recording():
        return list(FEW)
    if ranks == 1 or os.environ.get("IWES_GOLDEN_RANKS") == "all":
        return list(RUNS)
    return [name for number, name in enumerate(RUNS) if name in FEW or number % 2 == ranks % 2]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What came of the runs on a number of ranks, by name; they are made once."""
    folder = tmp_path_factory.mktemp("golden")

    @cache
    def made(ranks):
        (folder / str(ranks)).mkdir()
        return run_all(ranks, {name: RUNS[name] for name in share(ranks)}, folder / str(ranks))

    return made


@pytest.mark.parametrize("ranks", [3, 4])
def test_the_number_of_ranks_changes_no_bit(ranks, results):
    alone = results(1)
    changed = [name for name, result in results(ranks).items() if result != alone[name]]
    assert not changed


def test_no_result_changes_by_a_bit(results):
    record = golden_record.load()
    absent = [name for name in RUNS if name not in (record or {})]
    if absent and golden_record.recording():
        golden_record.add(results(1))
        record, absent = golden_record.load(), []
    if record is None:
        pytest.skip(golden_record.missing())
    if absent:
        pytest.fail(golden_record.missing(absent))
    changed = golden_record.differences(results(1), record)
    assert not changed, golden_record.report(changed)


@pytest.mark.parametrize("path", golden_record.everywhere(), ids=lambda path: path.stem)
def test_every_record_tells_what_it_must(path):
    """Of any machine: what must be the same is the same, what must differ differs, and the rules were at work."""
    found = json.loads(path.read_text())["results"]
    for name, other in SAME.items():
        assert found[name] == found[other], name
    distinct = [name for name in RUNS if name not in SAME and name != "without evaluation"]
    assert len({found[name]["theta_digest"][-1] for name in distinct}) == len(distinct)
    assert found["without evaluation"]["theta_digest"] == found["Drift"]["theta_digest"]
    assert set(found["without evaluation"]["eval_return_median"]) == {"nan"}
    for name in RUNS:
        digests = found[name]["theta_digest"]
        assert len(set(digests)) == len(found[name]["env_steps"]) == len(digests) >= 2, name
    assert found["min-ess"]["updates"][0] < len(found["min-ess"]["ess"][0])
    assert max(map(len, found["min-ess"]["ess"])) == 4
    assert found["max-kl"]["updates"] == [len(shares) for shares in found["max-kl"]["ess"]], "each step is made"
    assert max(found["max-kl"]["updates"]) < 4, "the trust region's edge ends them"
    assert found["overlap lost"]["ess"] == [["0x1.0000000000000p+0", "0x0.0p+0"]] * 2
    assert found["further blocks of pairs"]["env_steps"][0] >= 700 > found["13 pairs"]["env_steps"][0] * 5 / 13


def test_a_changed_result_is_found(results):
    """The comparison itself: any one number of any result, changed in its last place."""
    found = results(1)
    assert golden_record.differences(found, found) == []
    for what, change in (
        ("theta_digest", lambda digest: f"{int(digest, 16) ^ 1:016x}"),
        ("env_steps", lambda steps: steps + 1),
        ("eval_return_median", lambda score: (float.fromhex(score) * (1 + 2**-52)).hex()),
        ("ess", lambda shares: [*shares[:-1], (float.fromhex(shares[-1]) * (1 + 2**-52)).hex()]),
    ):
        other = json.loads(json.dumps(found))
        other["Drift"][what][-1] = change(other["Drift"][what][-1])
        (line,) = golden_record.differences(found, other)
        assert line.startswith(f"Drift: {what} from iteration 1 on"), line


def test_the_key_is_the_same_with_and_without_ci():
    """And it hangs on no other variable of the environment: threads, folders, launchers."""
    program = "import golden_record; print(golden_record.key())"
    chosen = {name: value for name, value in os.environ.items() if name.startswith("NUMBA_CPU_")}
    bare = chosen | {"PATH": os.environ["PATH"], "PYTHONPATH": str(launch.TESTS)}
    keys = {
        subprocess.run(
            [sys.executable, "-c", program], env=variables, text=True, capture_output=True, check=True
        ).stdout
        for variables in (bare, bare | {"CI": "true", golden_record.RECORD: "1"}, launch.environment(CI="false"))
    }
    assert keys == {golden_record.key() + "\n"}
