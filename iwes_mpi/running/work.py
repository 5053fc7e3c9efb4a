"""What a session runs, as far as it needs to know."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from iwes_mpi.mpi.world import World
from iwes_mpi.settings.config import Config

if TYPE_CHECKING:  # loaded by rank 0 alone, or once the input is known to be right
    from iwes_mpi.files.columns import IterationRow
    from iwes_mpi.files.directory import Plan
    from iwes_mpi.method.state import State
    from iwes_mpi.rollouts.episode import EpisodeRunner


class Work(Protocol):
    """What a session runs."""

    def plan(self) -> "Plan":
        """Settings, directory and checkpoint. On rank 0 alone. Raises WrongInput."""
        ...

    def open(self, world: World, config: Config) -> "EpisodeRunner":
        """What runs an item of the population on this rank. Collective. Raises Refused."""
        ...

    @property
    def command(self) -> list[str]:
        """The command that started it, for the log."""
        ...

    def hook(self, config: Config) -> "Callable[[IterationRow], object] | None":
        """What rank 0 calls after each iteration, if anything. Raises WrongInput."""
        ...

    def spell(self, text: str) -> str:
        """A text in which settings stand in backquotes, as the user spells them."""
        ...

    def fail(self, problem: str) -> None:
        """Say on rank 0 what ended the run."""
        ...

    def summarize(self, plan: "Plan", state: "State", median: float, code: int) -> str:
        """What the run reached (`median`: of its last evaluation), and how to look at it or to go on."""
        ...
