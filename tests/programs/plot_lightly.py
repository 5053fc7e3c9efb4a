"""Started by test_plot.py: ``python -m iwes_mpi.plot``, which must not load what it has no use for."""

import sys

from iwes_mpi.plot import main

code = main(sys.argv[1:])
unwanted = {"mpi4py", "numba", "mujoco", "matplotlib.pyplot"} & set(sys.modules)
assert not unwanted, unwanted
sys.exit(code)
