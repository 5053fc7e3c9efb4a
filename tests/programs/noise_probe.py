"""Started under mpirun by test_noise.py: what one rank sees of the noise table, as one line of JSON per rank."""

import hashlib
import json
import sys
from pathlib import Path

from iwes_mpi.method.noise import NoiseTable
from iwes_mpi.mpi.launch import launch


def resident():
    """Bytes of this process's resident memory that no other process maps, and of that which others map too."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return [1024 * sum(int(line.split()[1]) for line in lines if line.startswith(k)) for k in ("Private_", "Shared_")]


def main(world):
    seed, size = map(int, sys.argv[1:])
    NoiseTable(world, seed, 1000, with_norms=True)  # compiles and loads all that the measured one needs
    world.barrier()
    before = resident()
    noise = NoiseTable(world, seed, size, with_norms=True)
    values = hashlib.blake2b(noise.values).hexdigest()  # reads every page on every rank
    prefix = hashlib.blake2b(noise.prefix).hexdigest()
    world.barrier()
    private, shared = (after - b for after, b in zip(resident(), before, strict=True))
    writeable = noise.values.flags.writeable or noise.prefix.flags.writeable
    line = {"rank": world.rank, "nodes": world.n_nodes, "digest": [values, prefix]}
    line |= {"private": private, "shared": shared}
    for found in world.comm.allgather(line | {"writeable": writeable}):
        if world.is_root:
            print(json.dumps(found))
    return 0


launch(main)
