"""Opening the environment on all ranks."""

from iwes_mpi.mpi.program import agree, agree_in_order
from iwes_mpi.mpi.turns import in_turn
from iwes_mpi.mpi.world import World
from iwes_mpi.rollouts.choose import open_runner
from iwes_mpi.rollouts.episode import EpisodeRunner
from iwes_mpi.settings.config import Config


def open_on_all(world: World, config: Config) -> EpisodeRunner:
    """This rank's runner of episodes. Collective.

    Rank 0 goes first: what is wrong with the environment is found, and said, once.

    Raises
    ------
    Refused
        If an environment is wrong on any rank.
    """
    opened = agree(world, lambda: open_runner(config), on_root=True)
    return agree_in_order(world, lambda: opened or open_runner(config), in_turn)
