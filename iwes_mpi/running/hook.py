"""The user's own function that is called after each iteration: ``--on-iteration module:function``."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from iwes_mpi.settings.wrong_input import WrongInput


def find_hook(name: str) -> Callable[..., Any]:
    """The function that ``module:function`` names; modules are looked for in the working directory too.

    Raises
    ------
    WrongInput
        If there is none.
    """
    module, separator, path = name.partition(":")
    if not (module and separator and path):
        raise WrongInput("on_iteration", f"must be module:function, got {name!r}")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise WrongInput("on_iteration", f"importing {module} failed: {type(error).__name__}: {error}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise WrongInput("on_iteration", f"the module {module} has no {path}")
        found = getattr(found, part)
    if not callable(found):
        raise WrongInput("on_iteration", f"{name} cannot be called: it is {type(found).__name__}")
    return found  # type: ignore[no-any-return]
