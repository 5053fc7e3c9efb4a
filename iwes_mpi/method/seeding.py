"""Random generators addressed by (seed, stream, iteration, sample), so that no draw depends on a rank.

The address goes into the key and the counter of Philox4x64-10 (Salmon et al. 2011), a counter-based
generator: different addresses give disjoint stretches of 2^128 numbers by construction, with no hashing and
no chance of collision.
"""

import ctypes
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import DTypeLike, NDArray


class Stream(IntEnum):
    """What a generator is used for. The numbers are part of every result: never change one, only add."""

    NOISE_TABLE = 1  # iteration 0, sample = block of the table
    NOISE_INDEX = 2  # sample = first pair of the block of pairs
    OBS_STATISTICS = 3  # sample = first pair of the block of pairs
    POPULATION_EPISODE = 4  # sample = 2 * pair + member, or the pair under common random numbers
    EVALUATION_EPISODE = 5  # sample = evaluation episode
    INITIALIZATION = 6  # the policy's initial parameters
    SCORE_EPISODE = 7  # python -m iwes_mpi.evaluate; sample = episode
    MIXING_KEPT = 8  # sample 0; one draw for each member of the set in use, in order
    MIXING_FRESH = 9  # sample = first pair of the block of pairs


class _Key(ISeedSequence):
    """Hands a key to Philox, whose own argument `key` costs the drawing of entropy that it then does not use."""

    def __init__(self, key: NDArray[np.uint64]):
        self._key = key

    def generate_state(self, n_words: int, dtype: DTypeLike = np.uint64) -> NDArray[Any]:
        """The key, which is what Philox asks for: two 64-bit words."""
        if n_words != 2:
            raise ValueError(f"this NumPy asks for {n_words} words to seed Philox, not for the two of its key")
        return self._key


def generator(seed: int, stream: Stream, iteration: int = 0, sample: int = 0) -> np.random.Generator:
    """The generator at an address.

    Parameters
    ----------
    seed : int
        The run's seed, 0 to 2^64 - 1.
    stream : Stream
        What the draws are for.
    iteration, sample : int
        Iteration and sample (pair, episode, block …) the draws belong to, each 0 to 2^64 - 1.

    Returns
    -------
    numpy.random.Generator
        Over Philox, at the start of the address's own stretch of numbers.
    """
    return np.random.Generator(
        np.random.Philox(
            _Key(np.array([seed, stream], dtype=np.uint64)),  # type: ignore[arg-type]  # stubs lack ISeedSequence
            counter=np.array([0, 0, sample, iteration], dtype=np.uint64),
        )
    )


class _PhiloxState(ctypes.Structure):
    """NumPy's ``philox_state``."""

    _fields_ = (
        ("counter", ctypes.POINTER(ctypes.c_uint64 * 4)),
        ("key", ctypes.POINTER(ctypes.c_uint64 * 2)),
        ("buffer_pos", ctypes.c_int),
        ("buffer", ctypes.c_uint64 * 4),
        ("has_uint32", ctypes.c_int),
        ("uinteger", ctypes.c_uint32),
    )


class Movable:
    """One generator that moves from address to address: a new one costs as much as a light environment's step.

    It is moved in place, in the memory of NumPy's Philox; where this version of NumPy keeps it otherwise, each address
    has a new one.

    Parameters
    ----------
    seed, stream : int
        As in `generator`.
    """

    def __init__(self, seed: int, stream: Stream):
        self._seed, self._stream = seed, stream
        self._rng = generator(seed, stream)
        address: Any = self._rng.bit_generator.ctypes.state_address
        self._state = _PhiloxState.from_address(address)
        self._counter = self._state.counter.contents
        self._known = self._is_known()

    def at(self, iteration: int, sample: int) -> np.random.Generator:
        """The generator at an address, until this is called again."""
        if not self._known:
            return generator(self._seed, self._stream, iteration, sample)
        state = self._state
        self._counter[:] = 0, 0, sample, iteration
        state.buffer_pos, state.has_uint32 = _BUFFER_EMPTY, 0
        return self._rng

    def _is_known(self) -> bool:
        """Whether this NumPy keeps a Philox in memory as is taken for granted here."""
        rng, state = self._rng, self._state
        rng.integers(100, dtype=np.uint32)  # leaves half a number, and three whole ones
        told: Any = rng.bit_generator.state
        return bool(
            list(self._counter) == told["state"]["counter"].tolist() == [1, 0, 0, 0]
            and list(state.key.contents) == told["state"]["key"].tolist()
            and list(state.buffer) == told["buffer"].tolist()
            and (state.buffer_pos, state.has_uint32, state.uinteger)
            == (told["buffer_pos"], told["has_uint32"], told["uinteger"])
            == (1, 1, told["uinteger"])
        )


_BUFFER_EMPTY = 4  # the position after the last of the numbers that Philox makes at once
