"""Which seeds an environment takes: those of 63 bits, or fewer where it hands them to something that takes no more."""

from typing import Any

import gymnasium

from iwes_mpi.mpi.guard import Guard

# Bounds of seeds: of ours, of `numpy.random.seed`, of C's int
SEED_BOUND, *_SMALLER = 2**63, 2**32, 2**31
_ANYTHING = (Exception, SystemExit, KeyboardInterrupt)  # a real interrupt does not come as an exception


def seed_bound(env: gymnasium.Env[Any, Any]) -> int:
    """The bound below which an environment is seeded: the first whose largest seed it takes.

    Gymnasium's own environments are not asked. Where `reset` fails with any seed it is not the seed's fault: the bound
    is `SEED_BOUND`, and the first episode shows the error.
    """
    inner: Any = env.unwrapped  # a reset that fails would confuse Gymnasium's wrapper that checks environments
    if type(inner).__module__.startswith("gymnasium.envs."):
        return SEED_BOUND
    for bound in (SEED_BOUND, *_SMALLER):
        try:
            inner.reset(seed=bound - 1)
        except _ANYTHING as error:
            Guard.require_one_process(error)
            continue
        Guard.require_one_process()
        return bound
    return SEED_BOUND
