"""Started under mpirun by test_startup.py: training that tells what is compiled, and what is put into the cache.

Each rank appends a line to the file $WRITES for every function it compiles, with its signature, and every file it
writes into a cache.
Arguments: the command line of iwes_mpi.train.
"""

import os
import runpy

from numba.core.caching import IndexDataCacheFile

from iwes_mpi.compiled.cache import OnceOnly


def tell(text):
    with open(os.environ["WRITES"], "a") as log:
        log.write(f"{os.getpid()} {text}\n")


def compiled(self, sig, data, original=OnceOnly.save_overload):
    tell(f"compiled {self._py_func.__name__} {sig}".replace(", ", ","))
    return original(self, sig, data)


OnceOnly.save_overload = compiled


def watch(name):
    original = getattr(IndexDataCacheFile, name)

    def save(self, *arguments):
        target = self._index_path if name == "_save_index" else self._data_path(arguments[0])
        tell(f"{name} {target} {len(arguments[0])}")
        return original(self, *arguments)

    setattr(IndexDataCacheFile, name, save)


watch("_save_index")
watch("_save_data")
runpy.run_module("iwes_mpi.train", run_name="__main__", alter_sys=True)
