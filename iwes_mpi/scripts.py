"""Console scripts: ``iwes-train`` is ``python -m iwes_mpi.train``, and so on. Importing this takes next to no time."""

import os
import sys


def _here() -> None:
    """Look for modules in the working directory, as ``python -m`` does: the user's environments may be there."""
    sys.path[0] = os.getcwd()


def train() -> None:
    """``iwes-train``."""
    from iwes_mpi.mpi import signals

    signals.note()  # before all imports that take time: a request to stop counts from now on
    _here()
    from iwes_mpi.train import main

    main()


def evaluate() -> None:
    """``iwes-evaluate``."""
    _here()
    from iwes_mpi.evaluate import main

    main()


def plot() -> None:
    """``iwes-plot``."""
    from iwes_mpi.plot import run

    run()


def compare() -> None:
    """``iwes-compare``."""
    from iwes_mpi.compare import run

    run()


def watch() -> None:
    """``iwes-watch``."""
    from iwes_mpi.watch import run

    run()


def supervise() -> None:
    """``iwes-supervise``."""
    from iwes_mpi.supervise import run

    run()


def completion() -> None:
    """``iwes-completion``."""
    from iwes_mpi.completion import run

    run()


def export() -> None:
    """``iwes-export``."""
    _here()
    from iwes_mpi.export import run

    run()
