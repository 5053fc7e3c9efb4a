"""``--dry-run``: get ready as a run does, time a few episodes, and say what it would take; nothing is written."""

from iwes_mpi.mpi.program import FINISHED, agree
from iwes_mpi.mpi.world import World
from iwes_mpi.running.session import check_fit
from iwes_mpi.running.work import Work


def dry_run(world: World, work: Work) -> int:
    """Print what a run would take; returns the exit code. Collective.

    Raises
    ------
    Refused
        If the input is wrong.
    """
    plan = agree(world, work.plan, on_root=True)
    config, state = world.from_root(plan and (plan.config, plan.checkpoint and plan.checkpoint.state))

    from iwes_mpi.method.noise import choose_size
    from iwes_mpi.method.rehearsal import rehearse
    from iwes_mpi.method.state import initial_state
    from iwes_mpi.method.trial import trial
    from iwes_mpi.mpi.turns import in_turn
    from iwes_mpi.shown import diagnosis, dry_run

    runner = work.open(world, config)
    d = runner.network.n_parameters
    size, notice = agree(world, lambda: choose_size(config, world, d)) or (0, None)
    state = state or initial_state(
        config.seed, runner.network, config.optimizer, config.train_episode_steps or 0, config.whiten
    )
    agree(world, lambda: check_fit(state, runner))
    in_turn(world, lambda: rehearse(config, runner))
    found = trial(config, world, runner, state)
    per_node = world.maximum_integer(world.node.size)
    place = dry_run.Place(world.size, world.n_nodes, per_node, world.maximum_integer(dry_run.process_bytes()))
    if world.is_root:
        print(work.spell(dry_run.report(config, found, runner, state, size, place)))
        told = [notice, *diagnosis.beforehand(config, d, world.size), diagnosis.flat_reward(found.returns)]
        for text in filter(None, told):
            print(f"warning: {work.spell(text)}", flush=True)
    runner.close()
    world.close()
    return FINISHED
