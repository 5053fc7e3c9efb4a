"""Importance Weighted Evolution Strategies (Campos, Giro-i-Nieto, Torres 2018) under MPI.

Importing the package is cheap: MPI, Numba and MuJoCo are loaded by the modules that need them.
"""

from typing import TYPE_CHECKING, Any

from iwes_mpi.version import __version__

if TYPE_CHECKING:
    from iwes_mpi.files.run import Run, open_run

__all__ = ["Run", "__version__", "open_run"]


def __getattr__(name: str) -> Any:
    if name in ("open_run", "Run"):
        from iwes_mpi.files import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
