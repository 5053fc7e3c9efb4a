"""Run under mpirun by test_message.py: a message of every kind of number; a line of JSON from each rank, in turn."""

import json

import numpy as np
from special_numbers import SPECIAL, whole_numbers

from iwes_mpi.mpi.message import Message, counts, slots
from iwes_mpi.mpi.world import World

world = World()
message = Message(sums=counts(5), values=slots(SPECIAL.size), many=counts(300_000))
message["sums"][:] = whole_numbers(world.rank, 5)
for item in world.slice(SPECIAL.size):
    message["values"][item] = SPECIAL[item]
message["many"][:] = np.arange(300_000) * 7**world.rank  # on crowded cores more than is summed at a time
message.reduce(world)
found = {"rank": world.rank, "sums": message["sums"].tolist(), "values": message["values"].tobytes().hex()}
factor = sum(7**rank for rank in range(world.size))
found["many"] = bool((message["many"] == factor * np.arange(300_000)).all())
found["largest"] = [world.maximum(-2.5 - world.rank), world.maximum_integer(world.rank), world.node.maximum(-1.0)]
theta = np.arange(7.0) * (1 if world.is_root else np.nan)
world.broadcast(theta)
found["theta"] = theta.tolist()
for rank in range(world.size):
    if rank == world.rank:
        print(json.dumps(found), flush=True)
    world.barrier()
