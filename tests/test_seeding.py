"""Addresses of random draws: distinct, independent, reproducible, and fixed for ever."""

import itertools

import numpy as np
import pytest
from scipy import stats

from iwes_mpi.method.seeding import Movable, Stream, _Key, generator
from iwes_mpi.settings.values import MAX_SEED

EDGES = (0, 1, 2, 3, 2**32 - 1, 2**32, 2**63, MAX_SEED)


def test_the_same_address_gives_the_same_draws():
    a, b = (generator(5, Stream.POPULATION_EPISODE, 7, 9) for _ in range(2))
    assert (a.standard_normal(100) == b.standard_normal(100)).all()


def test_no_two_addresses_collide():
    """Neighboring, swapped, shifted and extreme addresses all begin differently."""
    seen = {}
    for seed, stream, iteration, sample in itertools.product(EDGES, Stream, EDGES, EDGES):
        key = generator(seed, stream, iteration, sample).bit_generator.random_raw(2).tobytes()
        assert key not in seen, ((seed, stream, iteration, sample), seen[key])
        seen[key] = (seed, stream, iteration, sample)
    assert len(seen) == len(EDGES) ** 3 * len(Stream)


def test_sequences_of_neighbors_do_not_overlap():
    """No stretch of one address's numbers is found in those of its neighbors."""
    addresses = list(itertools.product((0, 1), (Stream.NOISE_TABLE, Stream.NOISE_INDEX), (0, 1), (0, 1)))
    draws = np.concatenate([generator(*address).bit_generator.random_raw(4096) for address in addresses])
    assert np.unique(draws).size == draws.size


def test_neighbors_are_uncorrelated():
    """First draws along each coordinate of the address: uniform, and without serial correlation."""
    n = 4000
    along = {
        "seed": [generator(i, Stream.POPULATION_EPISODE).random() for i in range(n)],
        "iteration": [generator(0, Stream.POPULATION_EPISODE, i).random() for i in range(n)],
        "sample": [generator(0, Stream.POPULATION_EPISODE, 0, i).random() for i in range(n)],
    }
    for name, draws in along.items():
        assert stats.kstest(draws, "uniform").pvalue > 1e-3, name
        assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4 / np.sqrt(n), name
    for a, b in itertools.combinations(along.values(), 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(n)


def test_draws_are_those_of_philox():
    """Key (seed, stream), counter (0, 0, sample, iteration): results of published runs hang on it.

    Philox4x64-10 written out from Salmon et al. (2011). NumPy steps the counter before each block of four.
    """
    mask = 2**64 - 1

    def block(counter, key):
        c, k = list(counter), list(key)
        for _ in range(10):
            p0, p1 = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
            c = [(p1 >> 64) ^ c[1] ^ k[0], p1 & mask, (p0 >> 64) ^ c[3] ^ k[1], p0 & mask]
            k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
        return c

    for seed, stream, iteration, sample in ((0, 1, 0, 0), (MAX_SEED, 4, 3, MAX_SEED), (123, 5, 2**40, 17)):
        found = generator(seed, Stream(stream), iteration, sample).bit_generator.random_raw(8).tolist()
        first, second = (block((step, 0, sample, iteration), (seed, stream)) for step in (1, 2))
        assert found == first + second


def test_stream_numbers_are_fixed():
    assert {stream.name: stream.value for stream in Stream} == {
        "NOISE_TABLE": 1, "NOISE_INDEX": 2, "OBS_STATISTICS": 3, "POPULATION_EPISODE": 4, "EVALUATION_EPISODE": 5,
        "INITIALIZATION": 6, "SCORE_EPISODE": 7, "MIXING_KEPT": 8, "MIXING_FRESH": 9,
    }  # fmt: skip


@pytest.mark.parametrize("address", [(-1, 0, 0), (2**64, 0, 0), (0, -1, 0), (0, 0, 2**64)])
def test_addresses_out_of_range_are_refused(address):
    seed, iteration, sample = address
    with pytest.raises((OverflowError, ValueError)):
        generator(seed, Stream.NOISE_TABLE, iteration, sample)


def test_a_philox_that_asks_for_more_than_its_key_is_refused():
    with pytest.raises(ValueError, match="4 words"):
        _Key(np.zeros(2, dtype=np.uint64)).generate_state(4)


def test_a_movable_generator_is_the_one_at_each_address() -> None:
    """Whatever was drawn before, half numbers included, by a moved generator and by new ones."""
    moved, anew = Movable(2**64 - 1, Stream.POPULATION_EPISODE), Movable(2**64 - 1, Stream.POPULATION_EPISODE)
    assert moved._known, "it works with this NumPy, but slowly"
    anew._known = False
    for iteration, sample in ((0, 0), (3, 17), (2**64 - 1, 2**64 - 1), (3, 17)):
        expected = generator(2**64 - 1, Stream.POPULATION_EPISODE, iteration, sample)
        numbers = [(rng.integers(2**63), rng.standard_normal(), rng.integers(7, dtype=np.uint32), rng.random())
                   for rng in (moved.at(iteration, sample), anew.at(iteration, sample), expected)]  # fmt: skip
        assert numbers[0] == numbers[1] == numbers[2]
