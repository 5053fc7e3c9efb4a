"""Run the commands of documentation pages as they are written.

    python tests/run_pages.py [--seconds 20] README.md docs/tutorial.md …

The console blocks of all pages run in turn in one new folder, which has links to what is in the repository, with this
Python's programs first on the path and `VARIABLES` set: films need no screen, Open MPI may have more ranks than cores
and run as root. Python blocks that begin with ``import iwes_mpi`` run too. One that begins with the comment ``#
NAME.py`` is put there as that file, and `MODULES` stand for what the reader has of his own. A training that goes on
for longer than ``--seconds`` is asked to stop, by the signal that a batch system sends at the end of a time limit.
Passed over are commands that install something, need more ranks than `MOST_RANKS` or a batch system, and those of
`LEFT_OUT`. What each command takes is shown; the exit code is 1 if one failed.
"""

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import launch

from iwes_mpi.supervise import descendants

ROOT = Path(__file__).resolve().parents[1]
MOST_RANKS = 8
STOPPED = 75  # the exit code of a training that was asked to stop
PATIENCE = 300.0  # seconds for one command, or for a training to end once it is asked to
VARIABLES = {
    "MUJOCO_GL": "egl",
    "TERM": "dumb",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
LEFT_OUT = (
    r"pip install|python3 -m venv|^source |module load|^make |git clone|^export |srun|sbatch|scontrol|scancel|apptainer"
    r"|podman|conda|spack|ssh |bashrc|zshrc|paper-|reference-es|runs/ant|--logdir|tests/soak"
    r"|policy\.pt"  # PyTorch is gigabytes
)
WHOLE = r"run_table"  # not asked to stop: what follows needs whole runs
MODULES = {
    "my_module.py": """
import gymnasium
from gymnasium.envs.classic_control import PendulumEnv


def make(goal):
    return PendulumEnv(g=goal)


gymnasium.register("MyEnv-v0", entry_point=make, max_episode_steps=100)
""",
    "their_module.py": """
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, MultiDiscrete


class Theirs(gymnasium.Env):
    observation_space = Dict({"place": Box(-1, 1, (2,)), "speed": Box(-1, 1, (1,))})
    action_space = MultiDiscrete([3, 2])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return {"place": self.place, "speed": np.zeros(1, np.float32)}, {}

    def step(self, action):
        self.place = np.clip(self.place + 0.1 * (np.asarray(action) - 1), -1, 1).astype(np.float32)
        return {"place": self.place, "speed": np.zeros(1, np.float32)}, -float(abs(self.place).sum()), False, False, {}


gymnasium.register("Theirs-v0", entry_point=Theirs)
""",
}


def steps(text: str) -> list[str]:
    """What a page has its reader run, in turn: commands, each with its further lines, and whole Python examples."""
    found = []
    for kind, block in re.findall(r"^```(console|python)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        if kind == "console":
            found += re.findall(r"^\$ (.*)", re.sub(r"\\\n\s*", " ", block), re.MULTILINE)
        elif re.search(r"^import iwes_mpi$", block.partition("\n\n")[0], re.MULTILINE) and not block.startswith("#"):
            found.append(f"python -c {shlex.quote(block)}")
    return found


def left_out(command: str) -> bool:
    """Whether a command is not for this machine."""
    ranks = [int(n) for n in re.findall(r"mpi(?:run|exec) -n (\d+)", command)]
    return bool(re.search(LEFT_OUT, command)) or any(n > MOST_RANKS for n in ranks)


def going_on(shell: int) -> list[tuple[int, bool]]:
    """The processes of a shell that train, or watch a run, and whether they watch."""
    found = []
    for process in (shell, *descendants(shell)):  # a shell with one command becomes that
        try:
            words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        names = {Path(os.fsdecode(word)).name for word in words[:3]}
        if "python" in words[0].decode() and names & {"iwes_mpi.train", "iwes-train", "iwes_mpi.watch", "iwes-watch"}:
            found.append((process, bool(names & {"iwes_mpi.watch", "iwes-watch"})))
    return found


def ask_to_stop(shell: int) -> bool:
    """Send SIGTERM to what trains of a shell, and an interrupt to what watches; returns whether there is any."""
    found = going_on(shell)
    for process, watches in found:
        launch.send([process], signal.SIGINT if watches else signal.SIGTERM)
    return bool(found)


def run(command: str, folder: str, variables: dict[str, str], seconds: float) -> tuple[int, str, float, bool]:
    """A command's exit code, what it printed, its seconds, and whether it was asked to stop."""
    begin, asked = time.monotonic(), False
    with tempfile.TemporaryFile("w+") as output:
        shell = subprocess.Popen(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored by what runs in the background
        )
        while shell.poll() is None:
            spent = time.monotonic() - begin
            if spent > PATIENCE:
                launch.kill_tree(shell.pid)
            elif spent > seconds and not asked and not re.search(WHOLE, command):
                lines = os.pread(output.fileno(), 1 << 20, 0).splitlines()
                if sum(line.startswith(b"iteration ") for line in lines) >= 3 or "iwes_mpi.watch" in command:
                    asked = ask_to_stop(shell.pid)
            time.sleep(0.1)
        output.seek(0)
        code = 0 if asked and shell.returncode == STOPPED else shell.returncode
        return code, output.read(), time.monotonic() - begin, asked


def main() -> int:
    """Run the pages; 1 if a command failed."""
    parser = argparse.ArgumentParser(description="run the commands of documentation pages as they are written")
    parser.add_argument("pages", nargs="+")
    parser.add_argument("--seconds", type=float, default=900.0, help="what a training has before it is asked to stop")
    arguments = parser.parse_args()
    variables = os.environ | VARIABLES
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        variables["HOME"] = folder
        for entry in ROOT.iterdir():
            if entry.name == "jobs":  # its programs look for runs beside them
                shutil.copytree(entry, Path(folder) / "jobs")
            elif entry.name not in ("runs", "build") and not entry.name.startswith("."):
                (Path(folder) / entry.name).symlink_to(entry)
        for name, text in MODULES.items():
            (Path(folder) / name).write_text(text)
        for page in arguments.pages:
            print(page, flush=True)
            text = (ROOT / page).read_text("utf-8")
            for block, name in re.findall(r"^```python\n(# (\w+\.py)\n.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
                (Path(folder) / name).write_text(block)
            for run_dir in re.findall(r"--run-dir (\S+)", text):  # whoever follows this page has not made it before
                shutil.rmtree(Path(folder) / run_dir, ignore_errors=True)
            for command in steps(text):
                if left_out(command):
                    print(f"     left out  {command}", flush=True)
                    continue
                code, output, seconds, asked = run(command, folder, variables, arguments.seconds)
                verdict = (f"code {code}" if code else "ok") + (", asked to stop" if asked else "")
                print(f"{seconds:6.1f} s {verdict}  {command.splitlines()[0]}", flush=True)
                if code:
                    failed += 1
                    print(output[-3000:], flush=True)
    if failed:
        print(f"{failed} commands failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
