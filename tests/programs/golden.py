"""Started under mpirun by test_golden.py and test_old_files.py: many short training runs in one process.

Arguments: a JSON file with the flags of the stages of each run by name, a folder for run directories, and the JSON file
to write what came of them to. A run directory that is there already is used as it is.
"""

import json
import sys
from pathlib import Path

# -- the package's modules: the only place of this file that names them --------------------------------------
from iwes_mpi import open_run
from iwes_mpi.mpi.launch import launch
from iwes_mpi.train import train

# ------------------------------------------------------------------------------------------------------------


def results(run_dir):
    """What must not change by a bit: floating-point numbers as exact hexadecimal text."""
    run = open_run(run_dir)
    iterations, updates = run.iterations, run.updates
    ess = [updates["ess"][updates["iteration"] == iteration] for iteration in iterations["iteration"]]
    return {
        "theta_digest": [f"{digest:016x}" for digest in iterations["theta_digest"]],
        "env_steps": iterations["env_steps"].tolist(),
        "updates": iterations["updates"].tolist(),
        "eval_return_median": [score.hex() for score in iterations["eval_return_median"]],
        "ess": [[share.hex() for share in shares] for shares in ess],
    }


def main(world):
    rows, folder, output = map(Path, sys.argv[1:])
    found = {}
    for number, (name, stages) in enumerate(json.loads(rows.read_text()).items()):
        run_dir = folder / (name if (folder / name).exists() else f"{number:02}")
        for stage in stages:
            code = train(world, [*stage, "--run-dir", str(run_dir)])
            if code != 0:
                raise RuntimeError(f"{name}: exit code {code} from {stage}")
        if world.is_root:
            found[name] = results(run_dir)
    if world.is_root:
        output.write_text(json.dumps(found))
    return 0


launch(main)
