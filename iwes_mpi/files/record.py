"""The settings of a run as its directory records them: config.toml."""

from pathlib import Path

from iwes_mpi.files.disk import replace_text
from iwes_mpi.files.untrusted import Untrusted, require_file
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.sources import load_toml
from iwes_mpi.settings.wrong_input import WrongInput

CONFIG = "config.toml"


def write_config(run_dir: Path, config: Config) -> None:
    """Write a run's config.toml, all at once."""
    replace_text(run_dir / CONFIG, "# Every setting of this run, defaults included.\n\n" + config.to_toml())


def recorded_config(run_dir: Path) -> Config:
    """The settings in a run directory's config.toml.

    Raises
    ------
    WrongInput
        If it cannot be read or is not valid.
    """
    try:
        require_file(run_dir / CONFIG)
    except (OSError, Untrusted) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        raise WrongInput(f"{run_dir / CONFIG}", f"cannot be read: {problem}") from None
    return Config.recorded(load_toml(run_dir / CONFIG), str(run_dir / CONFIG))
