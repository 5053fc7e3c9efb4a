"""Started by test_runlog.py: read a log with random bytes changed, or cut off, again and again.

It loads or gives a LogError of one line, never another exception or a crash. Arguments: a run directory, and the range
of the seeds, each of which is printed before it is tried.
"""

import random
import sys
from pathlib import Path

import iwes_mpi
from iwes_mpi.files.reader import LogError

folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
data = (folder / "log.h5").read_bytes()
place = folder / sys.argv[2]
place.mkdir()
for number in range(first, last):
    rng = random.Random(number)
    mutated = bytearray(data)
    if number % 10 == 0:
        mutated = mutated[: rng.randrange(len(data))]
    else:
        for _ in range(rng.choice((1, 1, 3, 30))):
            mutated[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    (place / "log.h5").write_bytes(mutated)
    print(number, flush=True)
    try:
        run = iwes_mpi.open_run(place)
        _ = run.iterations, run.updates, run.config
    except LogError as error:
        if "\n" in str(error):
            sys.exit(f"an error of several lines: {error}")
