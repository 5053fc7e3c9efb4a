"""Time per noise element of the weight kernels, against reading the same bytes and against NumPy's eq. 4.

    python benchmarks/kernels.py [--rounds 9] [--elements 100_000_000] [--table-size 250_000_000]

For each of the paper's policies (64, 256, 512 hidden units) the kernels weigh the same pairs, whose noise lies all
over a table that is much larger than the processor's cache. A round runs, one after another:

  stream          a compiled sum of the same rows: what this machine's memory allows
  log weights     eq. 4 alone, by each --weight-kernel
  fused           what an update runs: weights and gradient sums in one pass, plain and with --center
  literal NumPy   eq. 4 taken literally, two densities per sample, in float64 and in float32 (on a share of the rows)
  NumPy           the same weights and gradient sums as the fused kernel's, as one would write them in NumPy and BLAS: a
                  float32 dot product per pair, then an axpy per pair

Shown are medians over the rounds: of the processor time of the one thread, which other programs on the core do not add
to, and of each round's own ratios, so that what they do to memory falls on both sides. An element is one number of one
pair's epsilon, and serves both members of the pair. The error is the largest one in log c.

The fused kernel is there because its sums are exact: in integers, whose sum is the same bits in any order, at any
number of ranks. BLAS reads each row twice, and sums in float32. Beside it, exactness must cost next to nothing.

Ends with three figures and exits with 1 if one is missed: fused within `WITHIN_STREAM` times the stream, within
`WITHIN_NUMPY` times NumPy, and `FASTER_THAN_LITERAL` times as fast as literal NumPy's weights alone. That is judged in
float64, the precision of theta: in float32 eq. 4 subtracts two numbers of the size of d, and what is left of a weight
is the error shown.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from statistics import median

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import numpy as np  # noqa: E402
from scipy.linalg.blas import saxpy  # noqa: E402

from iwes_mpi.compiled.jit import kernel  # noqa: E402
from iwes_mpi.method import kernels  # noqa: E402
from iwes_mpi.method.exact_sums import fixed_point  # noqa: E402
from iwes_mpi.method.kernels import Bounds, Pairs, Sums  # noqa: E402
from iwes_mpi.method.noise import NoiseTable  # noqa: E402
from iwes_mpi.method.weight_kernels import kernel_named  # noqa: E402
from iwes_mpi.mpi.world import World  # noqa: E402
from iwes_mpi.settings.registry import WEIGHT_KERNELS  # noqa: E402

POLICIES = {64: 11_848, 256: 96_520, 512: 324_104}  # hidden units: parameters
SIGMA, R = 0.02, 1.0
WITHIN_STREAM, WITHIN_NUMPY, FASTER_THAN_LITERAL = 2.8, 1.2, 10.0
FUSED = ("fused", "fused, centered")
LITERAL = ("literal NumPy, float64", "literal NumPy, float32")
NUMPY = "NumPy"


@kernel(reassociate=True)
def _sum(row):
    total = np.float32(0.0)
    for j in range(row.shape[0]):
        total += row[j]
    return total


@kernel
def stream(table, starts, d):
    """Read the rows of all pairs and do next to nothing."""
    total = 0.0
    for i in range(starts.shape[0]):
        total += np.float64(_sum(table[starts[i] : starts[i] + d]))
    return total


def literal(table, starts, old, new, dtype):
    """Log weights (n, 2) from eq. 4 as it stands: the density of each sample under both search distributions."""
    old, new, sigma = old.astype(dtype), new.astype(dtype), dtype(SIGMA)
    log_c = np.empty((starts.size, 2))
    for i, start in enumerate(starts):
        epsilon = table[start : start + old.size]
        for member, sign in enumerate((1, -1)):
            x = old + dtype(sign) * sigma * epsilon
            log_c[i, member] = (np.sum((x - old) ** 2) - np.sum((x - new) ** 2)) / (2 * sigma**2)
    return log_c


def dot_and_axpy(table, starts, delta, utilities, log_c):
    """Gradient sum (d,) with weights clipped at 1, by BLAS in float32; fills log_c (n, 2)."""
    delta32, r2 = delta.astype(np.float32), float(delta @ delta)
    total = np.zeros(delta.size, dtype=np.float32)
    for i, start in enumerate(starts):
        row = table[start : start + delta.size]
        s = float(row @ delta32)
        log_c[i] = -r2 / 2 + s, -r2 / 2 - s
        c = np.exp(np.minimum(0.0, log_c[i]))
        total = saxpy(row, total, a=c[0] * utilities[i, 0] - c[1] * utilities[i, 1])
    return total


class Case:
    """The kernels on one set of pairs."""

    def __init__(self, noise: NoiseTable, d: int, elements: int, numpy_share: float, rng: np.random.Generator):
        n = max(8, elements // d)
        self.d, self.n, self.few = d, n, max(2, int(n * numpy_share))
        starts = rng.integers(0, noise.values.size - d + 1, size=n)
        old = 0.1 * rng.standard_normal(d)
        delta = rng.standard_normal(d)
        delta *= R / kernels.norm(delta)
        new = old + SIGMA * delta
        r2 = kernels.sum_squares(delta)
        weights = {name: kernel_named(name).of(noise, delta, r2) for name in WEIGHT_KERNELS.names}
        utilities = rng.uniform(-1, 1, (n, 2))
        pairs = Pairs(noise.values, starts, utilities, stretch=1.0)
        exponents = fixed_point(n)
        self.log_c = {name: np.zeros((n, 2)) for name in (*WEIGHT_KERNELS.names, *FUSED, NUMPY)}
        few = starts[: self.few]

        def weigh(method: str) -> None:
            kernels.log_weights(weights[method], starts, self.log_c[method])

        def fused(name: str, rows: int) -> None:
            sums = Sums(np.zeros((rows, d), dtype=np.int64), np.zeros(kernels.N_SCALARS, dtype=np.int64))
            kernels.weigh_and_accumulate(
                weights["cancelled"], pairs, Bounds(0.0, 0.0), exponents, self.log_c[name], sums
            )

        self.run: dict[str, Callable[[], object]] = {
            "stream": lambda: stream(noise.values, starts, d),
            **{name: lambda name=name: weigh(name) for name in WEIGHT_KERNELS.names},
            FUSED[0]: lambda: fused(FUSED[0], 1),
            FUSED[1]: lambda: fused(FUSED[1], 2),
            NUMPY: lambda: dot_and_axpy(noise.values, starts, delta, utilities, self.log_c[NUMPY]),
            LITERAL[0]: lambda: literal(noise.values, few, old, new, np.float64),
            LITERAL[1]: lambda: literal(noise.values, few, old, new, np.float32),
        }

    def nanoseconds(self, name: str) -> float:
        """Processor time of one run, per noise element."""
        begin = time.thread_time()
        self.run[name]()
        return (time.thread_time() - begin) * 1e9 / (self.d * (self.few if name in LITERAL else self.n))

    def errors(self) -> dict[str, float]:
        """Largest error in log c of all that computes it, against literal NumPy in float64."""
        expected = self.run[LITERAL[0]]()
        found = self.log_c | {LITERAL[1]: self.run[LITERAL[1]]()}
        return {name: float(np.abs(log_c[: self.few] - expected).max()) for name, log_c in found.items()}


def measure(case: Case, rounds: int) -> dict[str, list[float]]:
    """Nanoseconds per element, by kernel and round; the first round, which compiles, is thrown away."""
    times: dict[str, list[float]] = {name: [] for name in case.run}
    for _ in range(rounds + 1):
        for name in times:
            times[name].append(case.nanoseconds(name))
    return {name: values[1:] for name, values in times.items()}


def ratio(a: list[float], b: list[float]) -> float:
    """Median of each round's own a / b."""
    return median(x / y for x, y in zip(a, b, strict=True))


def main() -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--elements", type=int, default=100_000_000, help="noise elements that each kernel reads")
    parser.add_argument("--table-size", type=int, default=250_000_000, help="numbers in the noise table")
    parser.add_argument("--numpy-share", type=float, default=0.1, help="share of the rows that literal NumPy weighs")
    options = parser.parse_args()

    noise = NoiseTable(World(), seed=0, size=options.table_size, with_norms=True)
    print(f"noise table {4 * options.table_size / 1e9:.1f} GB, {4 * options.elements / 1e9:.2f} GB of it per run")
    worst = {"stream": 0.0, NUMPY: 0.0, LITERAL[0]: 0.0}  # the fused kernel's time over theirs
    rng = np.random.default_rng(0)
    for units, d in POLICIES.items():
        case = Case(noise, d, options.elements, options.numpy_share, rng)
        times = measure(case, options.rounds)
        print(f"\n{units} hidden units, d = {d}, {case.n} pairs, {options.rounds} rounds")
        print(f"  {'':26}{'ns/element':>11}{'/ stream':>11}{'/ NumPy':>11}{'literal /':>11}{'error':>11}")
        errors = case.errors()
        for name, values in times.items():
            to = {other: ratio(values, times[other]) for other in worst}
            error = f"{errors[name]:11.0e}" if name in errors else ""
            label = f"log weights, {name}" if name in WEIGHT_KERNELS.names else name
            ratios = f"{to['stream']:11.2f}{to[NUMPY]:11.2f}{1 / to[LITERAL[0]]:11.1f}"
            print(f"  {label:26}{median(values):11.3f}{ratios}{error}", flush=True)
            if name in FUSED:
                worst = {
                    other: max(worst[other], to[other]) if other != NUMPY or name == FUSED[0] else worst[other]
                    for other in worst
                }
    verdicts = [
        (worst["stream"] <= WITHIN_STREAM, f"fused within {WITHIN_STREAM:g} x the stream: {worst['stream']:.2f} x"),
        (worst[NUMPY] <= WITHIN_NUMPY, f"fused, plain, within {WITHIN_NUMPY:g} x NumPy's dot and axpy: "
         f"{worst[NUMPY]:.2f} x"),
        (1 / worst[LITERAL[0]] >= FASTER_THAN_LITERAL, f"fused at least {FASTER_THAN_LITERAL:g} x as fast as literal "
         f"NumPy's weights alone: {1 / worst[LITERAL[0]]:.1f} x"),
    ]  # fmt: skip
    print()
    for passed, text in verdicts:
        print(f"{'PASS' if passed else 'FAIL'}  {text} (the worst of all sizes)")
    return 0 if all(passed for passed, _ in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
