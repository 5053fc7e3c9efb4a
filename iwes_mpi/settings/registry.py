"""Choices that are files: each module of a folder is one, named by its file.

So a new optimizer, shaping, weight kernel or schedule is a new file and nothing else. Names and summaries are read
from the files without importing them: the command line's help must not wait for compiled code.
"""

import ast
import importlib
from functools import cached_property
from pathlib import Path
from types import ModuleType

from iwes_mpi.settings.wrong_input import WrongInput

_PACKAGE = Path(__file__).parents[1]


class Registry:
    """The choices in a folder of this package.

    Parameters
    ----------
    folder : str
        Relative to the package, such as ``method/optimizers``.
    setting : str
        The setting whose values they are.
    """

    def __init__(self, folder: str, setting: str):
        self._folder, self._setting = folder, setting
        self._loaded: dict[str, ModuleType] = {}  # an iteration of milliseconds asks for some of them

    @cached_property
    def _files(self) -> dict[str, Path]:
        found = sorted((_PACKAGE / self._folder).glob("[!_]*.py"))
        return {path.stem.replace("_", "-"): path for path in found}

    @property
    def names(self) -> tuple[str, ...]:
        """The choices, in alphabetical order: ``centered_rank.py`` is ``centered-rank``."""
        return tuple(self._files)

    def summary(self, name: str) -> str:
        """The first line of a choice's docstring, without its full stop."""
        text = ast.get_docstring(ast.parse(self._files[name].read_text("utf-8"))) or ""
        return text.partition("\n")[0].rstrip(".")

    def module(self, name: str) -> ModuleType:
        """The module of a choice.

        Raises
        ------
        WrongInput
            If there is none of this name.
        """
        if name in self._loaded:
            return self._loaded[name]
        if name not in self._files:
            raise WrongInput(self._setting, f"must be one of {', '.join(self.names)}, got {name!r}")
        package = ".".join(["iwes_mpi", *self._folder.split("/")])
        self._loaded[name] = importlib.import_module(f"{package}.{self._files[name].stem}")
        return self._loaded[name]


OPTIMIZERS = Registry("method/optimizers", "optimizer")
SHAPINGS = Registry("method/shapings", "shaping")
SCHEDULES = Registry("method/schedules", "sigma_schedule")
EPISODE_SCHEDULES = Registry("method/episode_schedules", "episode_schedule")
WEIGHT_KERNELS = Registry("method/weight_kernels", "weight_kernel")
