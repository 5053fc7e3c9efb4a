"""Run under mpirun by test_message.py: a message of every kind of number; a line of JSON from each rank, in turn."""

import json

from special_numbers import SPECIAL, whole_numbers

from iwes_mpi.mpi.message import Message, counts, slots
from iwes_mpi.mpi.world import World

world = World()
message = Message(sums=counts(5), values=slots(SPECIAL.size))
message["sums"][:] = whole_numbers(world.rank, 5)
for item in world.slice(SPECIAL.size):
    message["values"][item] = SPECIAL[item]
message.reduce(world)
found = {"rank": world.rank, "sums": message["sums"].tolist(), "values": message["values"].tobytes().hex()}
for rank in range(world.size):
    if rank == world.rank:
        print(json.dumps(found), flush=True)
    world.barrier()
