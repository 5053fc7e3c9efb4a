"""Compiling once per node: its first rank goes ahead, the others load what it left on disk."""

from collections.abc import Callable
from typing import TypeVar

from iwes_mpi.compiled import cache, jit
from iwes_mpi.mpi.world import World

T = TypeVar("T")


def in_turn(world: World, function: Callable[[], T]) -> T:
    """Call a function that compiles on the node's first rank, then on its others. Collective on the node.

    The first rank compiles, and leaves the code on disk; the others load it. Nodes whose cache directory is one and
    the same take turns too, and so do several jobs on a node, from the first function on that has to be compiled. If
    any rank is without a cache directory, all call it at once.

    Returns
    -------
    object
        What `function` returned on this rank.
    """
    if world.node.any(jit.CACHE is None):
        return function()
    if world.node.rank > 0:
        world.node.rest_until_all()
        return function()
    with cache.Turn(jit.CACHE):
        result = function()
    world.node.rest_until_all()
    return result
