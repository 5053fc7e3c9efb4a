"""Opening the environment on all ranks."""

from iwes_mpi.mpi.program import agree, agree_in_order
from iwes_mpi.mpi.turns import in_turn
from iwes_mpi.mpi.world import World
from iwes_mpi.policy.network import Layout
from iwes_mpi.rollouts.choose import open_runner
from iwes_mpi.rollouts.episode import EnvironmentRunner
from iwes_mpi.settings.config import Config
from iwes_mpi.settings.wrong_input import WrongInput


def open_on_all(world: World, config: Config) -> EnvironmentRunner:
    """This rank's runner of episodes. Collective.

    Rank 0 goes first: what is wrong with the environment is found, and said, once. Which seeds it takes is found there
    too.

    Raises
    ------
    Refused
        If an environment is wrong on any rank.
    """
    opened = agree(world, lambda: open_runner(config), on_root=True)
    bound: int = world.from_root(opened.seed_bound if opened else None)  # all ranks must use the same seeds
    runner = agree_in_order(world, lambda: opened or open_runner(config, bound), in_turn)
    layout = runner.network
    assert isinstance(layout, Layout)  # an environment's is that of a network
    sizes = layout.obs_size, layout.action_size
    expected = world.from_root(sizes)
    agree(world, lambda: _require_sizes(sizes, expected))
    return runner


def _require_sizes(sizes: tuple[int, int], expected: tuple[int, int]) -> None:
    """Refuse an environment that is another one on this rank than on rank 0."""
    if sizes != expected:
        raise WrongInput(
            "env_id", f"the environment has {sizes[0]} observations and {sizes[1]} actions here, but {expected[0]} "
            f"and {expected[1]} on rank 0"
        )  # fmt: skip
