"""What is golden on every machine: integers, and floating-point numbers that no rounding enters, or one at most.

Utilities, fixed-point exponents and sums, log weights of dyadic numbers, addresses of draws, slices. Values are in
data/golden/exact.json; each is also computed here by brute force, from an independent formula, except for NumPy's
normal draws, whose tables are its own. With ``IWES_RECORD_GOLDEN=1`` values that are not in the file yet are added.
"""

import hashlib
import json
import math
import os
from fractions import Fraction

import golden_record
import golden_runs
import launch
import numpy as np
import pytest

# -- the package's modules: the only place of this file that names them --------------------------------------
from iwes_mpi import open_run
from iwes_mpi.method import kernels, shapings
from iwes_mpi.method.exact_sums import fixed_point
from iwes_mpi.method.kernels import Bounds, FixedPoint, Pairs, Sums
from iwes_mpi.method.noise import NoiseTable
from iwes_mpi.method.seeding import Stream, generator
from iwes_mpi.method.state import digest, initial_state
from iwes_mpi.method.weight_kernels import kernel_named
from iwes_mpi.mpi.ranks import split
from iwes_mpi.policy import network
from iwes_mpi.settings.registry import WEIGHT_KERNELS

# ------------------------------------------------------------------------------------------------------------

FILE = golden_record.FOLDER / "exact.json"
MASK = 2**64 - 1


def check(name, found):
    """Compare plain integers and text, in lists and dictionaries, with what is on record."""
    found = json.loads(json.dumps(found))
    record = json.loads(FILE.read_text()) if FILE.exists() else {}
    if name not in record and golden_record.recording():
        record = dict(sorted((record | {name: found}).items()))
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in record.items()]
        FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    assert name in record, f"not on record: run {golden_record.RECORD}=1 python -m pytest tests/test_exact.py"
    assert found == record[name]


def hexadecimal(values):
    """Floating-point numbers as exact text, in nested lists."""
    return [hexadecimal(value) for value in values] if np.ndim(values) else float(values).hex()


# -- utilities -----------------------------------------------------------------------------------------------

RETURNS = {
    "distinct": [[3, -1], [4, 1.5], [-5, 9], [2, 6]],
    "ties": [[1, 2], [2, 2], [0, 1], [7, 7], [-3, 2]],
    "one pair": [[-2, 5]],
    "all equal": [[0.1, 0.1], [0.1, 0.1]],
    "large": [[1e300, -1e300], [0, 5e-324]],
}


@pytest.mark.parametrize("name", RETURNS)
def test_centered_ranks(name):
    """The mean rank by counting, one division and one subtraction."""
    returns = np.array(RETURNS[name], dtype=float)
    flat = returns.ravel().tolist()
    ranks = [Fraction(2 * sum(y < x for y in flat) + sum(y == x for y in flat) - 1, 2) for x in flat]
    expected = [float(rank / (len(flat) - 1)) - 0.5 for rank in ranks]
    found = shapings.shape(returns, "centered-rank")
    assert found.ravel().tolist() == expected
    check(f"centered-rank, {name}", hexadecimal(found))


@pytest.mark.parametrize("n", [1, 2, 4, 64])
def test_standardized_returns(n):
    """A power of two of small integers: mean and mean square are exact, whatever order they are summed in.

    Other returns are rounded on the way; the runs that standardize are on record for each kind of machine.
    """
    returns = np.array([[(7 * i * i + 3 * i) % 31 - 11, (5 * i + 2) % 17 - 9] for i in range(n)], dtype=float)
    flat = [Fraction(x) for x in returns.ravel()]
    mean = sum(flat) / len(flat)
    variance = sum((x - mean) ** 2 for x in flat) / len(flat)
    scale = Fraction(2) ** -math.frexp(max(map(abs, flat)))[1]  # a power of two: no rounding
    assert Fraction(float(variance * scale**2)) == variance * scale**2
    deviation = math.sqrt(variance * scale**2)
    expected = [float((x - mean) * scale) / deviation for x in flat]
    found = shapings.shape(returns, "standardize")
    assert found.ravel().tolist() == expected
    check(f"standardize, {n} pairs", hexadecimal(found))


def test_returns_as_they_are():
    for returns in RETURNS.values():
        found = shapings.shape(np.array(returns, dtype=float), "none")
        assert found.tolist() == np.array(returns, dtype=float).tolist()


# -- fixed point ---------------------------------------------------------------------------------------------


def test_fixed_point_exponents():
    """The finest for which n pairs of the largest terms, in any sum, stay below 2^62, and one term below 2^50."""
    found = {}
    for n in (1, 2, 3, 4, 5, 13, 64, 65, 1000, 5000, 16384, 16385, 2**20, 2**20 + 1, 2**30):
        finest = [
            max(e for e in range(64) if n * largest * 2**e <= 2**62 and term * 2**e <= 2**50)
            for largest, term in ((16, 16), (2, 1))
        ]
        found[str(n)] = list(fixed_point(n))
        assert found[str(n)] == finest, n
    check("fixed_point", found)


D, N = 21, 7  # neither is a multiple of what a vector instruction or a group of rows takes


def dyadic():
    """A table of multiples of 1/8 below 4, where pairs begin in it, utilities and log weights of 0 and −∞."""
    table = np.array([(37 * i * i + 11 * i) % 63 - 31 for i in range(300)], dtype=np.float32) / 8
    starts = np.array([(53 * i) % (300 - D) for i in range(N)])
    utilities = np.array([[(5 * i) % 17 - 8, (11 * i + 3) % 17 - 8] for i in range(N)], dtype=float) / 8
    log_c = np.where(np.arange(2 * N).reshape(N, 2) % 5 == 3, -math.inf, 0.0)
    return table, starts, utilities, log_c


class Noise:
    """The table of `dyadic`, with its sums of squares."""

    def __init__(self):
        self.values = dyadic()[0]
        squares = self.values[: kernels.BLOCK].astype(float) ** 2
        self.prefix = np.concatenate([[0.0], np.cumsum(squares)[-1:]])


def accumulate(pairs, exponents, rows, log_c, kernel=None):
    table, starts, utilities, _ = dyadic()
    sums = Sums(np.zeros((rows, D), dtype=np.int64), np.zeros(kernels.N_SCALARS, dtype=np.int64))
    weights = None if kernel is None else kernel_named(kernel).of(Noise(), np.zeros(D), 0.0)
    kernels.weigh_and_accumulate(
        weights, Pairs(table, starts[pairs], utilities[pairs], 1.0), Bounds(0.0, 0.0), FixedPoint(*exponents),
        log_c[pairs].copy(), sums,
    )  # fmt: skip
    return [*sums.gradient.tolist(), sums.scalars.tolist()]


def exact_sums(exponents, log_c):
    """The same sums of Python's integers; Python, too, rounds halves to even."""
    table, starts, utilities, _ = dyadic()
    weights = [[1 if value == 0 else 0 for value in pair] for pair in log_c]
    totals = [[0] * D, [0] * D]
    scalars = [0] * 4
    for i in range(N):
        (c, other), (u, v) = weights[i], map(Fraction, utilities[i])
        for row, a in enumerate((c * u - other * v, Fraction(c - other))):
            for j in range(D):
                totals[row][j] += round(Fraction(float(table[starts[i] + j])) * a * 2 ** exponents[0])
        for weight, utility in ((c, u), (other, v)):
            scalars[0] += round(weight * 2 ** exponents[1])
            scalars[1] += round(weight * weight * 2 ** exponents[1])
            scalars[2] += round(weight * utility * 2 ** exponents[1])
            scalars[3] += weight
    return [*totals, scalars]


# The last three leave fractions, halves among them, which are rounded to even.
@pytest.mark.parametrize("exponents", [fixed_point(N), (20, 3), (5, 2), (3, 1), (0, 0)], ids=str)
@pytest.mark.parametrize("rows", [1, 2], ids=["plain", "centered"])
def test_gradient_sums(exponents, rows):
    """Weights 0 and 1, so that all products are exact; over slices for any number of ranks."""
    log_c = dyadic()[3]
    found = accumulate(slice(None), exponents, rows, log_c)
    whole = exact_sums(exponents, log_c)
    assert found == [*whole[:rows], whole[2]]
    for parts in (2, 3, 4, 5, 9):
        shares = [split(N, parts, part) for part in range(parts)]
        pieces = [accumulate(slice(s.start, s.stop), exponents, rows, log_c) for s in shares]
        for position, total in enumerate(found):
            assert np.sum([piece[position] for piece in pieces], axis=0).tolist() == total
    check(f"sums, exponents {exponents[0]} and {exponents[1]}, {rows} rows", found)


@pytest.mark.parametrize("kernel", WEIGHT_KERNELS.names)
def test_sums_of_plain_es(kernel):
    """Every kernel, at the population's center: all weights are 1."""
    ones, exponents = np.zeros((N, 2)), fixed_point(N)
    found = accumulate(slice(None), exponents, 1, np.full((N, 2), np.nan), kernel)
    whole = exact_sums(exponents, ones)
    assert found == [whole[0], whole[2]]
    check("sums of plain ES", found)


@pytest.mark.parametrize("kernel", WEIGHT_KERNELS.names)
def test_log_weights(kernel):
    """Multiples of 1/8 as noise and as delta: eq. 4's exponents are multiples of 1/128, and no sum of them rounds."""
    table, starts, _, _ = dyadic()
    delta = np.array([7 - (29 * j) % 15 for j in range(D)]) / 8
    found = np.full((N, 2), np.nan)
    r2 = kernels.sum_squares(delta)
    kernels.log_weights(kernel_named(kernel).of(Noise(), delta, r2), starts, found)
    exact = [Fraction(x) for x in delta]
    assert r2 == sum(x * x for x in exact)
    for i, start in enumerate(starts):
        epsilon = [Fraction(float(x)) for x in table[start : start + D]]
        for member, sign in enumerate((1, -1)):
            here = sum((sign * e - x) ** 2 for e, x in zip(epsilon, exact, strict=True))
            assert Fraction(found[i, member]) == (sum(e * e for e in epsilon) - here) / 2
    check("log weights", hexadecimal(found))


def test_perturbed_parameters():
    """float32(theta ± sigma·epsilon) of numbers whose product is exact: one rounding of the sum, one to float32."""
    table, starts, _, _ = dyadic()
    theta, sigma = np.array([(3 * j) % 11 - 5 for j in range(D)]) / 3, 0.25
    out, found = np.zeros(D, dtype=np.float32), []
    for sign in (1.0, -1.0):
        row = table[starts[1] : starts[1] + D]
        kernels.perturb(theta, sigma, row, sign, out)
        sums = [
            float(Fraction(t) + Fraction(sign * sigma) * Fraction(float(e))) for t, e in zip(theta, row, strict=True)
        ]
        assert out.tolist() == np.array(sums).astype(np.float32).tolist()
        found.append(hexadecimal(out))
    check("perturbed parameters", found)


# -- draws ---------------------------------------------------------------------------------------------------

ADDRESSES = [
    (seed, int(stream), iteration, sample)
    for stream in range(1, 8)  # those that there were when the record was made
    for seed, iteration, sample in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (7, 3, 12), (MASK, 2**40, MASK))
]


def philox(address, blocks):
    """Philox4x64-10 from Salmon et al. (2011); NumPy steps the counter before each block of four numbers."""
    seed, stream, iteration, sample = address
    numbers = []
    for step in range(1, blocks + 1):
        c, k = [step, 0, sample, iteration], [seed, stream]
        for _ in range(10):
            p, q = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
            c = [(q >> 64) ^ c[1] ^ k[0], q & MASK, (p >> 64) ^ c[3] ^ k[1], p & MASK]
            k = [(k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK]
        numbers += c
    return numbers


def below(address, bound, count):
    """Integers below a bound of at most 2^32, by Lemire's multiplication (2019), from halves of 64-bit numbers."""
    halves = [half for number in philox(address, count) for half in (number & 0xFFFFFFFF, number >> 32)]
    found = []
    while len(found) < count:
        product = halves.pop(0) * bound
        if product & 0xFFFFFFFF >= (2**32 - bound) % bound:  # else it would not be uniform
            found.append(product >> 32)
    return found


def test_first_draws():
    found = []
    for seed, stream, iteration, sample in ADDRESSES:
        raw = generator(seed, Stream(stream), iteration, sample).bit_generator.random_raw(6).tolist()
        assert raw == philox((seed, stream, iteration, sample), 2)[:6]
        found.append([f"{number:016x}" for number in raw])
    assert len({tuple(numbers) for numbers in found}) == len(found)
    check("first draws", found)


def episode_seed(address):
    """What an episode seeds its environment with: its first number below 2^63, a power of two."""
    return philox(address, 1)[0] >> 1


def test_seeds_of_environments():
    addresses = [address for address in ADDRESSES if address[1] in (Stream.POPULATION_EPISODE, Stream.SCORE_EPISODE)]
    found = [int(generator(a[0], Stream(a[1]), *a[2:]).integers(2**63)) for a in addresses]
    assert found == [episode_seed(address) for address in addresses]
    check("seeds of environments", found)


def test_noise_table(world):
    """Starts of pairs as integers; the table's numbers around the borders of its blocks, which ranks share out."""
    size, d = 3 * 65536 + 100, 1000
    noise = NoiseTable(world, 5, size)
    starts = {}
    for iteration, first_pair in ((0, 0), (0, 13), (1, 0), (2**33, 5)):
        found = noise.starts(5, iteration, first_pair, 13, d).tolist()
        assert found == below((5, Stream.NOISE_INDEX, iteration, first_pair), size - d + 1, 13)
        starts[f"{iteration} {first_pair}"] = found
    check("starts in the noise table", starts)
    borders = [[0, 8], [65528, 65544], [131064, 131080], [size - 108, size - 92], [size - 8, size]]
    check("noise table", [hexadecimal(noise.values[first:stop]) for first, stop in borders])
    for block in range(4):
        drawn = generator(5, Stream.NOISE_TABLE, 0, block).standard_normal(16, dtype=np.float32)
        assert noise.values[65536 * block :][:16].tolist() == drawn.tolist()


def test_initial_parameters():
    """The draws; a unit with one input has weight ±1, or ±0.01 in the last layer, to rounding, and biases are 0."""
    theta = initial_state(9, network.layout(1, (6,), 2), "adam").theta
    drawn = generator(9, Stream.INITIALIZATION).standard_normal(6 + 12)
    assert np.abs(np.abs(theta[:6]) - 1).max() <= 2**-51
    assert (np.sign(theta[:6]) == np.sign(drawn[:6])).all()
    assert not theta[6:12].any()
    last = drawn[6:].reshape(6, 2)
    norms = np.sqrt((last.astype(np.longdouble) ** 2).sum(axis=0))
    assert np.abs(theta[12:24].reshape(6, 2) - 0.01 * last / norms).max() < 1e-17
    assert not theta[24:].any()
    check("draws of initial parameters", hexadecimal(drawn))


def test_digest_of_theta():
    """The first 8 bytes of BLAKE2b over the parameters as little-endian float64."""
    theta = np.array([1.0, -0.5, 2.0**-1074])
    content = bytes.fromhex("000000000000f03f" + "000000000000e0bf" + "0100000000000000")
    assert digest(theta) == int.from_bytes(hashlib.blake2b(content).digest()[:8], "little")
    check("digest", f"{digest(theta):016x}")


# -- shares --------------------------------------------------------------------------------------------------


def test_shares_of_work():
    """Contiguous, complete, in order, and no two differ by more than one."""
    found = {}
    for n in (0, 1, 2, 5, 13, 64, 5000):
        for parts in (1, 2, 3, 4, 7, 48, 720):
            shares = [split(n, parts, part) for part in range(parts)]
            assert [item for share in shares for item in share] == list(range(n))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
            if parts <= 7:
                found[f"{n} over {parts}"] = [share.stop for share in shares]
    check("shares of work", found)


# -- addresses of a whole run --------------------------------------------------------------------------------

EPISODES = {
    "plain": ["--n-pairs", "3", "--min-env-steps", "0"],
    "further blocks": ["--n-pairs", "3", "--min-env-steps", "40"],
    "common random numbers": ["--n-pairs", "3", "--min-env-steps", "40", "--common-random-numbers"],
}


def seeds_to_see(extra, iteration):
    """By brute force: the seeds of the evaluation episode, and of the population's pairs (n, 2), of an iteration."""
    common, least = "--common-random-numbers" in extra, int(extra[3])
    pairs, steps = [], 0
    while not pairs or steps < least:
        for pair in range(len(pairs), len(pairs) + 3):
            samples = (pair, pair) if common else (2 * pair, 2 * pair + 1)
            pairs.append([episode_seed((6, Stream.POPULATION_EPISODE, iteration, sample)) for sample in samples])
            steps += sum(1 + seed % 7 for seed in pairs[-1])
    return episode_seed((6, Stream.EVALUATION_EPISODE, iteration, 0)), pairs


@pytest.mark.mpi
@pytest.mark.parametrize("name", EPISODES)
def test_every_episode_is_seeded_by_its_address(name, tmp_path):
    """A run on two ranks whose episodes return the seed of their environment, as far as a float64 holds it."""
    flags = [
        "--env-id",
        "telling:Seed-v0",
        "--hidden-sizes",
        "2",
        "--n-eval",
        "1",
        "--eval-every",
        "1",
        "--iw-updates",
        "0",
        "--noise-table-size",
        "1000",
    ]
    flags += ["--seed", "6", "--iterations", "2", "--log-population", "--display", "none", *EPISODES[name]]
    here = os.pathsep.join([str(launch.TESTS), str(golden_runs.PACKAGE)])
    outcome = launch.train(2, *flags, "--run-dir", str(tmp_path / "run"), PYTHONPATH=here)
    assert outcome.code == 0, outcome.err
    run, found = open_run(tmp_path / "run"), []
    for iteration in range(2):
        alone, pairs = seeds_to_see(EPISODES[name], iteration)
        rows = [returns for returns in run.population["returns"][iteration].tolist() if not np.isnan(returns).any()]
        assert rows == [[float(seed >> 11) for seed in pair] for pair in pairs]
        lengths = run.population["lengths"][iteration][: len(pairs)].tolist()
        assert lengths == [[1 + seed % 7 for seed in pair] for pair in pairs]
        assert run.iterations["eval_return_median"][iteration] == float(alone >> 11)
        found.append([alone >> 11, *([seed >> 11 for seed in pair] for pair in pairs)])
    assert (len(found[0]) > 4) == ("further" in name or "common" in name)
    check(f"seeds of episodes, {name}", found)
