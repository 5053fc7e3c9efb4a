"""Messages: what one rank puts into a slot reaches all as it is, counts add up exactly, on any number of ranks."""

import json

import launch
import numpy as np
import pytest
from fakes import on_ranks
from special_numbers import SPECIAL, whole_numbers

from iwes_mpi.mpi.group import alone
from iwes_mpi.mpi.message import Message, counts, slots
from iwes_mpi.mpi.ranks import split


@pytest.mark.parametrize("size", [1, 2, 3, 7, 12])
def test_slots_arrive_bit_by_bit(size):
    """NaN, infinity and −0.0 among them, each filled by one rank: the others' zeros add nothing."""

    def fill(group):
        message = Message(first=slots(SPECIAL.size), second=slots(3, 4))
        for item in group.slice(SPECIAL.size):
            message["first"][item] = SPECIAL[item]
        for item in range(SPECIAL.size):
            if (item * 5 + 2) % group.size == group.rank:
                message["second"].flat[item] = SPECIAL[item]
        message.reduce(group)
        return message["first"].copy(), message["second"].copy()

    for first, second in on_ranks(size, fill):
        assert first.dtype == second.dtype == np.float64
        assert second.shape == (3, 4)
        assert first.tobytes() == second.tobytes() == SPECIAL.tobytes()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16])
def test_counts_add_up_exactly(size):
    """Beyond 2^53, where float64 would lose units, and with both signs."""

    def fill(group):
        message = Message(a=counts(2, 3), b=counts(1))
        message["a"][:] = whole_numbers(group.rank, 2, 3)
        message["b"][0] += group.rank - 1
        message.reduce(group)
        return message["a"].copy(), int(message["b"][0])

    exact = [sum(int(whole_numbers(rank, 2, 3).flat[i]) for rank in range(size)) for i in range(6)]
    for a, b in on_ranks(size, fill):
        assert a.dtype == np.int64
        assert a.ravel().tolist() == exact
        assert b == sum(rank - 1 for rank in range(size))


@pytest.mark.parametrize("size", [1, 3])
def test_fields_do_not_touch(size):
    """Every field keeps to its own memory, those without elements too, and all travel in one exchange."""
    exchanges = []

    def fill(group):
        message = Message(a=counts(2), none=slots(0, 5), b=slots(1, 2), nothing=counts(0), scalar=counts(), c=slots(1))
        assert message["none"].shape == (0, 5)
        assert message["scalar"].shape == ()
        message["a"][:] = -1
        if group.rank == 0:
            message["b"][:] = [[-0.0, np.nan]]
        if group.rank == group.size - 1:
            message["c"][0] = -1.5
        message["scalar"][()] = 7
        real = group.sum_integers
        group.sum_integers = lambda values: (exchanges.append(values.size), real(values))
        message.reduce(group)
        return message["a"].tolist(), message["b"].tobytes(), message["c"].tolist(), int(message["scalar"])

    expected = [-size, -size], np.array([-0.0, np.nan]).tobytes(), [-1.5], 7 * size
    assert on_ranks(size, fill) == [expected] * size
    assert exchanges == [6] * size


def test_cleared_messages_are_as_new():
    message = Message(a=counts(3), b=slots(2))
    assert not message["a"].any()
    message["a"][:], message["b"][:] = 5, np.nan
    message.clear()
    message.reduce(alone())
    assert message["a"].tolist() == [0, 0, 0]
    assert message["b"].tobytes() == bytes(16)


def test_unknown_fields_are_an_error():
    with pytest.raises(KeyError):
        Message(a=counts(3))["b"]


@pytest.mark.mpi
@pytest.mark.parametrize(("ranks", "nodes"), [(2, "1"), (5, "1"), (5, "2")])
def test_under_mpi(ranks, nodes):
    """The same through the MPI library, and where there are more ranks than cores through the node's memory."""
    outcome = launch.program(ranks, "message_probe.py", MPIR_CVAR_NUM_CLIQUES=nodes)
    assert outcome.code == 0, outcome.err
    lines = [json.loads(line) for line in outcome.out.splitlines() if line.startswith("{")]
    assert sorted(line["rank"] for line in lines) == list(range(ranks))
    exact = [sum(int(whole_numbers(rank, 5)[i]) for rank in range(ranks)) for i in range(5)]
    for line in lines:
        assert line["sums"] == exact
        assert line["many"]
        assert line["largest"] == [-2.5, ranks - 1, -1.0]
        assert line["theta"] == list(range(7))
        assert line["values"] == SPECIAL.tobytes().hex()


# -- shares of the work --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 5, 12, 1001])
@pytest.mark.parametrize("parts", [1, 2, 3, 7, 64])
def test_shares_are_contiguous_and_even(n, parts):
    shares = [split(n, parts, index) for index in range(parts)]
    assert [item for share in shares for item in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
