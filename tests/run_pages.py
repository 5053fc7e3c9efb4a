"""Run the commands of documentation pages as they are written.

    python tests/run_pages.py README.md docs/tutorial.md …

The console blocks of all pages run in turn in one new folder, which has links to what is in the repository, with this
Python's programs first on the path and `VARIABLES` set: films need no screen, Open MPI may have more ranks than cores.
A Python block that begins with the comment ``# NAME.py`` is put there as that file. Passed over are commands that
install something, need more ranks than `MOST_RANKS` or a batch system, and those of `LEFT_OUT`. What each command takes
is shown; the exit code is 1 if one failed.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_RANKS = 8
VARIABLES = {"MUJOCO_GL": "egl", "TERM": "dumb", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
LEFT_OUT = (
    r"pip install|python3 -m venv|^source |module load|^make |git clone|^export |srun|sbatch|scontrol|scancel|apptainer"
    r"|podman|conda|spack|ssh |bashrc|zshrc|runs/other|iwes_mpi\.watch|paper-|reference-es|runs/ant|--logdir|report:"
)


def commands(text: str) -> list[str]:
    """The commands of a page's console blocks, each with its further lines."""
    blocks = re.findall(r"^```console\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in re.findall(r"^\$ (.*)", re.sub(r"\\\n\s*", " ", block), re.MULTILINE)]


def left_out(command: str) -> bool:
    """Whether a command is not for this machine."""
    ranks = [int(n) for n in re.findall(r"mpi(?:run|exec) -n (\d+)", command)]
    return bool(re.search(LEFT_OUT, command)) or any(n > MOST_RANKS for n in ranks)


def main() -> int:
    """Run the pages; 1 if a command failed."""
    pages = [ROOT / page for page in sys.argv[1:]]
    variables = os.environ | VARIABLES
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for entry in ROOT.iterdir():
            if entry.name not in ("runs", "build") and not entry.name.startswith("."):
                (Path(folder) / entry.name).symlink_to(entry)
        for page in pages:
            text = page.read_text("utf-8")
            for block, name in re.findall(r"^```python\n(# (\w+\.py)\n.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
                (Path(folder) / name).write_text(block)
            for command in commands(text):
                if left_out(command):
                    print(f"     left out  {command}", flush=True)
                    continue
                begin = time.monotonic()
                done = subprocess.run(
                    ["bash", "-c", command], cwd=folder, env=variables, capture_output=True, text=True, timeout=900
                )
                verdict = "ok" if done.returncode == 0 else f"code {done.returncode}"
                print(f"{time.monotonic() - begin:6.1f} s {verdict}  {command}", flush=True)
                if done.returncode:
                    failed += 1
                    print(done.stdout[-2000:] + done.stderr[-2000:], flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
