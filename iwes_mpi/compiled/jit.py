"""The one decorator of every compiled function, and the scalar tools Numba lacks."""

import contextlib
import importlib
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from iwes_mpi.compiled import cache


def _load_numba() -> None:
    """Load what Numba knows of NumPy, without SciPy.

    It would import SciPy's linear algebra, if there is one: 8 MB for each rank, and no kernel needs it. Others' code
    that does imports it when it is compiled.
    """
    if "scipy.linalg" not in sys.modules:
        sys.modules["scipy.linalg"] = None  # type: ignore[assignment]  # as if there were none
        try:
            importlib.import_module("numba.np.arraymath")
        finally:
            del sys.modules["scipy.linalg"]


_load_numba()
CACHE = cache.find_directory(numba.config.CACHE_DIR)  # None: nothing is kept on disk

# Contraction (a·b + c in one rounding) is the same on every rank of one kind of CPU. Reassociation is left out:
# where a kernel needs several accumulators, it asks for them with `reassociate`.
_EXACT_ORDER = {"contract"}
_ANY_ORDER = {"contract", "reassoc", "nsz"}


def kernel(function: Callable[..., Any] | None = None, *, reassociate: bool = False, contract: bool = True) -> Any:
    """Compile `function` to nopython machine code that is cached on disk and releases the GIL.

    Parameters
    ----------
    function : callable
        Takes arrays and scalars; returns scalars or fills its output.
    reassociate : bool
        Lets the compiler reorder sums, so that reductions vectorize. The order it picks is fixed in the
        machine code: the same input still gives the same bits.
    contract : bool
        Lets the compiler round a·b + c once. Without it every operation is rounded as written.
    """
    fastmath = _ANY_ORDER if reassociate else _EXACT_ORDER if contract else False
    compiler = numba.njit(nogil=True, error_model="numpy", fastmath=fastmath)

    def compiled(function: Callable[..., Any]) -> Any:
        dispatcher = compiler(function)
        if CACHE is not None:
            with contextlib.suppress(RuntimeError):  # the directory has gone since
                dispatcher._cache = cache.OnceOnly(function, CACHE)  # as njit(cache=True) sets Numba's own
        return dispatcher

    return compiled if function is None else compiled(function)


Method = TypeVar("Method", bound=Callable[..., Any])


def compiled(method: Method) -> Method:
    """Mark a method of a NamedTuple that kernels compile where they call it (through `numba.extending.overload`)."""
    return method


@intrinsic
def float_bits(typingctx: Any, value: Any) -> Any:
    """The 64 bits of a float64, as an int64 (compiled code only)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), codegen


@intrinsic
def multiply_add(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a·b + c of float64 numbers, rounded once (compiled code only)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float64(types.float64, types.float64, types.float64), codegen
