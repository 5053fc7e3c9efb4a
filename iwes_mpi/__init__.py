"""Importance Weighted Evolution Strategies (Campos, Giro-i-Nieto, Torres 2018) under MPI.

Importing the package is cheap: MPI, Numba and MuJoCo are loaded by the modules that need them.
"""

import importlib
from typing import TYPE_CHECKING, Any

from iwes_mpi.version import __version__

if TYPE_CHECKING:
    from iwes_mpi.files.run import Run, open_run
    from iwes_mpi.policy.policy import Policy, load_policy
    from iwes_mpi.running.ask_tell import AskTell
    from iwes_mpi.running.maximize import Result, RunFailed, maximize
    from iwes_mpi.settings.wrong_input import WrongInput

_HOMES = {  # where a name is defined; loaded when it is first asked for
    "AskTell": "running.ask_tell",
    "Policy": "policy.policy",
    "Result": "running.maximize",
    "Run": "files.run",
    "RunFailed": "running.maximize",
    "WrongInput": "settings.wrong_input",
    "load_policy": "policy.policy",
    "maximize": "running.maximize",
    "open_run": "files.run",
}

__all__ = [
    "AskTell", "Policy", "Result", "Run", "RunFailed", "WrongInput", "__version__", "load_policy", "maximize",
    "open_run",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__})
