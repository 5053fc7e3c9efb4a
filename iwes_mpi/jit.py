"""The one decorator of every compiled function, and the scalar tools Numba lacks."""

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

# Contraction (a·b + c in one rounding) is the same on every rank of one kind of CPU. Reassociation is left out:
# where a kernel needs several accumulators, it asks for them with `reassociate`.
_EXACT_ORDER = {"contract"}
_ANY_ORDER = {"contract", "reassoc", "nsz"}


def kernel(function: Callable[..., Any] | None = None, *, reassociate: bool = False) -> Any:
    """Compile `function` to nopython machine code that is cached on disk and releases the GIL.

    Parameters
    ----------
    function : callable
        Takes arrays and scalars; returns scalars or fills its output.
    reassociate : bool
        Lets the compiler reorder sums, so that reductions vectorise. The order it picks is fixed in the
        machine code: the same input still gives the same bits.
    """
    fastmath = _ANY_ORDER if reassociate else _EXACT_ORDER
    compiler = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=fastmath)
    return compiler if function is None else compiler(function)


@intrinsic
def float_bits(typingctx: Any, value: Any) -> Any:
    """The 64 bits of a float64, as an int64 (compiled code only)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), codegen
