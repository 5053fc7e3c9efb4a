"""Whether a population fits into memory: what cannot is refused before the run begins."""

from iwes_mpi.method.noise import cgroup_bytes, free_memory
from iwes_mpi.mpi.ranks import Nodes
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput

# Bytes that a rank holds for an episode at once: return and length, twice while they travel, then as they are shaped,
# ranked and weighed. Fewer than are really needed, so that nothing is refused that fits.
_EPISODE = 64


def require_room(setting: str, count: int, each: int, world: Nodes) -> None:
    """Refuse a number of things that each take so many bytes on every rank, if they cannot fit. Collective.

    Raises
    ------
    WrongInput
        Naming the setting, and the number that would fit. On every rank.
    """
    share = world.minimum_integer(min(free_memory(), cgroup_bytes()) // world.node.size)
    if count * each > share:
        raise WrongInput(
            setting, f"{count} need {count * each / 1e9:.3g} GB of memory on every rank, but there are only "
            f"{share / 1e9:.3g} GB for each: at most {share // each} fit"
        )  # fmt: skip


def require_room_for_population(config: Config, world: Nodes, obs_size: int) -> None:
    """Refuse a population and an evaluation that cannot fit. Collective.

    Parameters
    ----------
    config : Config
    world : Nodes
    obs_size : int
        Numbers in an observation: an episode's statistics of them travel too.

    Raises
    ------
    WrongInput
        As `require_room`.
    """
    numbers = 1 + obs_size * (1 + obs_size if config.whiten else 2)
    statistics = int(16 * config.obs_stat_probability * numbers)
    require_room("n_pairs", config.n_pairs, 2 * (_EPISODE + statistics), world)
    require_room("n_eval", config.n_eval, _EPISODE, world)
