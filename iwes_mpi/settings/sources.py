"""Where settings come from besides flags: named presets and TOML files."""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from iwes_mpi.settings.config import refuse_unknown
from iwes_mpi.settings.wrong_input import WrongInput

_LONGEST = 1 << 20  # bytes of a TOML file


def preset_names() -> list[str]:
    """The names ``--preset`` takes."""
    files = resources.files("iwes_mpi.settings.presets").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def load_preset(name: str) -> dict[str, Any]:
    """The settings of a preset, by name.

    Raises
    ------
    WrongInput
        If there is no such preset.
    """
    if name not in preset_names():
        raise WrongInput("preset", f"there is no preset {name!r}; there are {', '.join(preset_names())}")
    return tomllib.loads((resources.files("iwes_mpi.settings.presets") / f"{name}.toml").read_text("utf-8"))


def load_toml(path: str | Path) -> dict[str, Any]:
    """The settings in a TOML file, by name; dashes in names count as underscores.

    Raises
    ------
    WrongInput
        If the file cannot be read, is not TOML, or names an unknown setting.
    """
    source = f"`config` {path}"
    try:
        with open(path, "rb") as file:
            content = file.read(_LONGEST + 1)
        text = content.decode("utf-8")  # not as a text file, which takes a bare carriage return for a line's end
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise WrongInput(source, f"cannot be read: {problem}") from None
    if len(content) > _LONGEST:
        raise WrongInput(source, f"is longer than {_LONGEST} bytes")
    try:
        found = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits among them
        raise WrongInput(source, f"is not valid TOML: {error}") from None
    settings: dict[str, Any] = {}
    for name, value in found.items():
        spelled = name.replace("-", "_")
        if spelled in settings:
            raise WrongInput(source, f"names {spelled} twice, with a dash and with an underscore")
        settings[spelled] = value
    refuse_unknown(settings, source)
    return settings
