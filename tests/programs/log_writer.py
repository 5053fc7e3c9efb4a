"""Started by tests of what reads logs: a process that writes one, and ends it in some way.

Arguments: the run directory; the rows; "numbered" or "synthetic", the kind of rows; and what follows: "close" the log,
"killed" with the log open, or "wait" a minute with the log open, after the word "ready".
"""

import os
import signal
import sys
import time
from pathlib import Path

from synthetic import numbered_log, open_log, rows

from iwes_mpi.settings.config import Config

run_dir, n_rows, kind, then = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if kind == "numbered":
    log = numbered_log(run_dir / "log.h5", n_rows)
else:
    config = Config(iw_updates=2)
    log = open_log(run_dir, config)
    for iteration in range(n_rows):
        log.append(rows(config, iteration))
if then == "close":
    log.close()
elif then == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
else:
    print("ready", flush=True)
    time.sleep(60)
