"""``python -m iwes_mpi``: what commands there are."""

import ast
import sys
from pathlib import Path

from iwes_mpi.settings.printable import printable
from iwes_mpi.version import __version__


def commands() -> dict[str, str]:
    """The programs of this package, each with the first line of its docstring after the command itself."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        command, _, purpose = text.partition("\n")[0].partition(": ")
        if command.startswith(f"``python -m iwes_mpi.{path.stem}"):
            found[path.stem] = purpose
    return found


def main(argv: list[str]) -> int:
    """Print the commands, or the version; returns the exit code."""
    if "--version" in argv:
        print(f"iwes_mpi {__version__}")
        return 0
    known = commands()
    width = max(map(len, known))
    lines = [f"  python -m iwes_mpi.{name:{width}}  {purpose}" for name, purpose in known.items()]
    print("\n".join(["Importance Weighted Evolution Strategies under MPI. Commands:", "", *lines, ""]))
    print("Each explains its settings with --help; mpirun -n RANKS before train and evaluate runs them in parallel.")
    wrong = next((word for word in argv if word not in ("-h", "--help")), None)
    if wrong is not None:
        meant = f"; say python -m iwes_mpi.{wrong}" if wrong in known else ""
        print(
            f"iwes_mpi: error: nothing was run: {printable(wrong)} is not an argument of this list{meant}",
            file=sys.stderr,
        )
    return 0 if wrong is None else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
