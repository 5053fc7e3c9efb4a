"""NumPy's generators in compiled code, by address: seeded as Gymnasium seeds an environment's.

Handing a `numpy.random.Generator` to a compiled function costs as much as several light environment steps, and so
does making a new one. Both are avoided: a generator is passed as the address of its ``bitgen_t``, NumPy's public C
interface, and an environment's PCG64 is seeded anew in place.
"""

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic
from numba.np.random.generator_core import next_uint64

from iwes_mpi.compiled.jit import kernel

_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype = ctypes.c_void_p
_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]

_GENERATOR = types.NumPyRandomGeneratorType("Generator")
_BIT_GENERATOR = types.NumPyRandomBitGeneratorType("BitGenerator")
_FIELDS = ("state", "fnptr_next_uint64", "fnptr_next_uint32", "fnptr_next_double")  # of bitgen_t, in its order


def address(rng: np.random.Generator) -> int:
    """Where a generator's ``bitgen_t`` lies; valid as long as the generator lives."""
    return _pointer(rng.bit_generator.capsule, b"BitGenerator")


@intrinsic
def generator_at(typingctx: Any, bitgen: Any) -> Any:
    """The generator whose ``bitgen_t`` lies at an address (compiled code only); it is not kept alive."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = context.get_value_type(types.uintp)
        words = builder.inttoptr(args[0], ir.PointerType(word))
        bits = cgutils.create_struct_proxy(_BIT_GENERATOR)(context, builder)
        for place, name in enumerate(_FIELDS):
            setattr(bits, name, builder.load(cgutils.gep(builder, words, place)))
        generator = cgutils.create_struct_proxy(_GENERATOR)(context, builder)
        generator.bit_generator = bits._getvalue()
        return impl_ret_borrowed(context, builder, _GENERATOR, generator._getvalue())

    return _GENERATOR(types.intp), codegen


@intrinsic
def _words_at(typingctx: Any, start: Any, place: Any) -> Any:
    """The 64-bit word at an address, counted in words from `start` (compiled code only)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words = builder.inttoptr(args[0], ir.PointerType(ir.IntType(64)))
        return builder.load(builder.gep(words, [args[1]]))

    return types.uint64(types.intp, types.intp), codegen


@intrinsic
def _set_word_at(typingctx: Any, start: Any, place: Any, value: Any) -> Any:
    """Set the 64-bit word at an address, counted in words from `start` (compiled code only)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words = builder.inttoptr(args[0], ir.PointerType(ir.IntType(64)))
        builder.store(args[2], builder.gep(words, [args[1]]))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.uint64), codegen


# -- NumPy's SeedSequence and PCG64 (NEP 19 freezes both streams) ----------------------------------------------

_U32 = np.uint64(0xFFFFFFFF)
_INIT_A, _MULT_A = np.uint64(0x43B0D7E5), np.uint64(0x931E8875)
_INIT_B, _MULT_B = np.uint64(0x8B51F9DD), np.uint64(0x58F38DED)
_MIX_L, _MIX_R = np.uint64(0xCA01F9DD), np.uint64(0x4973F715)
_MULT_HIGH, _MULT_LOW = np.uint64(0x2360ED051FC65DA4), np.uint64(0x4385DF649FCCF645)
_U0, _U1, _U16, _U32_BITS = np.uint64(0), np.uint64(1), np.uint64(16), np.uint64(32)

exact = kernel(contract=False)


@exact
def draw_seed(rng):
    """``rng.integers(2**63)``: what NumPy makes of one 64-bit draw when the bound is a power of two."""
    return next_uint64(rng.bit_generator) >> _U1


@exact
def _hash(value, constant, multiplier):
    """One word of SeedSequence's hash and the constant for the next, 32 bits each."""
    value ^= constant
    constant = (constant * multiplier) & _U32
    value = (value * constant) & _U32
    return value ^ (value >> _U16), constant


@exact
def _mix(x, y):
    """SeedSequence's mix of two 32-bit words."""
    result = ((_MIX_L * x) & _U32) - ((_MIX_R * y) & _U32) & _U32
    return result ^ (result >> _U16)


@exact
def _product(a, b):
    """The 128-bit product of two 64-bit words: high, low."""
    a0, a1, b0, b1 = a & _U32, a >> _U32_BITS, b & _U32, b >> _U32_BITS
    low, middle, cross = a0 * b0, a1 * b0, a0 * b1
    carry = ((low >> _U32_BITS) + (middle & _U32) + (cross & _U32)) >> _U32_BITS
    return a1 * b1 + (middle >> _U32_BITS) + (cross >> _U32_BITS) + carry, a * b


@exact
def seed_words(seed, pool, words):
    """``numpy.random.SeedSequence(seed).generate_state(4, numpy.uint64)`` for 0 <= seed < 2^64.

    Parameters
    ----------
    seed : uint64
    pool : uint64 (4,)
        Working memory.
    words : uint64 (4,)
        Filled.
    """
    constant = _INIT_A
    for i in range(4):
        entropy = seed & _U32 if i == 0 else (seed >> _U32_BITS if i == 1 else _U0)
        pool[i], constant = _hash(entropy, constant, _MULT_A)
    for source in range(4):
        for target in range(4):
            if source != target:
                hashed, constant = _hash(pool[source], constant, _MULT_A)
                pool[target] = _mix(pool[target], hashed)
    constant = _INIT_B
    for i in range(4):
        low, constant = _hash(pool[2 * i % 4], constant, _MULT_B)
        high, constant = _hash(pool[(2 * i + 1) % 4], constant, _MULT_B)
        words[i] = low | high << _U32_BITS


@exact
def seed_pcg64(bitgen, seed, scratch):
    """Make the PCG64 at an address what ``numpy.random.PCG64(seed)`` is.

    Parameters
    ----------
    bitgen : int
        From `address`, of a generator over PCG64.
    seed : uint64
    scratch : uint64 (8,)
        Working memory.
    """
    pool, words = scratch[:4], scratch[4:]
    seed_words(seed, pool, words)
    # words: initial state (high, low), stream (high, low). Then state = (stream + initial)·multiplier + stream.
    inc_high, inc_low = words[2] << _U1 | words[3] >> np.uint64(63), words[3] << _U1 | _U1
    low = inc_low + words[1]
    high = inc_high + words[0] + (_U1 if low < inc_low else _U0)
    top, bottom = _product(low, _MULT_LOW)
    top += high * _MULT_LOW + low * _MULT_HIGH
    state_low = bottom + inc_low
    state_high = top + inc_high + (_U1 if state_low < bottom else _U0)
    # NumPy's pcg64_state: a pointer to (state, stream), 128 bits each, then one buffered 32-bit draw and its flag
    state = np.intp(_words_at(bitgen, 0))
    numbers = np.intp(_words_at(state, 0))
    _set_word_at(numbers, 0, state_low)
    _set_word_at(numbers, 1, state_high)
    _set_word_at(numbers, 2, inc_low)
    _set_word_at(numbers, 3, inc_high)
    _set_word_at(state, 1, _U0)


def numpy_is_known() -> bool:
    """Whether this version of NumPy keeps a PCG64 in memory, and draws integers, as is taken for granted here."""
    rng = np.random.Generator(np.random.PCG64(3))
    state = rng.bit_generator.state["state"]
    expected = [state["state"] & 2**64 - 1, state["state"] >> 64, state["inc"] & 2**64 - 1, state["inc"] >> 64]
    start = ctypes.c_uint64.from_address(ctypes.c_uint64.from_address(address(rng)).value).value
    if list((ctypes.c_uint64 * 4).from_address(start)) != expected:
        return False
    return int(rng.integers(2**63)) == np.random.PCG64(3).random_raw() >> 1
